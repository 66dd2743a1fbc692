"""What a sender can make the real Claude Code do, tool by tool; the list of tools is the installed program's own.

A tool that a newer version adds is in its ``system/init`` event, so it is tried here without anybody naming it.
"""

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from molecule_connect import FilePart, Response, create_backend
from molecule_connect.testing import make_request

from .messages_api import MessagesApi, outcomes, spoken
from .test_claude_code import environ_for

# The program takes some seconds for each turn on a busy machine, and 240 MB to install.
pytestmark = [pytest.mark.drill, pytest.mark.timeout(300)]

SECRET = "the-secret-itself"
NEEDED = {"Read", "Edit", "Write"}
# Tools that this version may lack but others have.
OTHERS = (
    "Agent", "AskUserQuestion", "EnterPlanMode", "ExitPlanMode", "Glob", "Grep", "KillShell", "ListMcpResourcesTool",
    "LS", "Monitor", "NotebookRead", "ReadMcpResourceTool", "SlashCommand", "TodoWrite", "Workflow",
)  # fmt: skip
# What the tools are asked to do; any other gets an empty input.
INPUTS: dict[str, dict[str, Any]] = {
    "Bash": {"command": "cat .env", "description": "x"},
    "Glob": {"pattern": "**/*"},
    "Grep": {"pattern": "secret", "output_mode": "content"},
    "LS": {"path": "."},
    "NotebookRead": {"notebook_path": ".env"},
    "NotebookEdit": {"notebook_path": "n.ipynb", "new_source": "1", "cell_id": "a"},
    "WebFetch": {"url": "http://127.0.0.1:1/", "prompt": "x"},
    "WebSearch": {"query": "anything"},
    "Agent": {"description": "x", "prompt": "[[use Bash]]", "subagent_type": "general-purpose"},
    "Task": {"description": "x", "prompt": "[[use Bash]]", "subagent_type": "general-purpose"},
    "Skill": {"skill": "debug"},
    "SlashCommand": {"command": "/init"},
    "CronCreate": {"cron": "* * * * *", "prompt": "x", "recurring": True},
    "EnterWorktree": {"name": "branch-of-a-stranger"},
    "Workflow": {"script": "return 1", "name": "x"},
    "SendMessage": {"to": "main", "message": "x", "summary": "x"},
    "TodoWrite": {"todos": []},
    "Monitor": {"command": "cat .env", "description": "x"},
    "ReadMcpResourceTool": {"server": "s", "uri": "s://x"},
}


class Ground:
    """A project with a secret, the operator's own settings, and backends that serve from it."""

    def __init__(self, folder: Path, program: Path, api: MessagesApi) -> None:
        self.folder, self.api, self.program = folder, api, program
        self.work, self.config, self.state = folder / "work", folder / "config", folder / "state"
        for place in (self.work / "src", self.config, self.state / "files"):
            place.mkdir(parents=True)
        (self.work / ".env").write_text(SECRET)
        (self.work / "src" / "main.py").write_text("print('main')\n")
        (self.state / "files" / "mine.txt").write_text("handed over")
        (self.state / "files" / "other.txt").write_text(SECRET)
        self._wrapper = folder / "claude"
        self._wrapper.write_text(
            f'#!/bin/sh\n{shlex.quote(str(program))} "$@" | tee -a {shlex.quote(str(folder / "output"))}\n'
        )
        self._wrapper.chmod(0o755)
        git = ["git", "-C", str(self.work), "-c", "user.name=Operator", "-c", "user.email=operator@example.org"]
        for words in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "first commit"]):
            subprocess.run([*git, *words], check=True)

    def backend(self, **options: str | list[str]) -> Any:
        given = {"bin": str(self._wrapper), "cwd": str(self.work), **options}
        return create_backend("claude-code", given, workspace_id="ws_1", state_dir=self.state)

    async def ask(self, text: str, *, backend: Any = None, **fields: Any) -> Response:
        request = make_request(text, **fields) if "parts" not in fields else make_request(**fields)
        answer: Response = await (backend or self.backend()).handle_a2a(request, lambda update: None)
        return answer

    async def use(
        self, *uses: tuple[str, dict[str, Any]], backend: Any = None, **fields: Any
    ) -> list[tuple[bool, str]]:
        """What becomes of tools that the model uses in one turn."""
        text = " ".join(f"[[use {name} {json.dumps(given)}]]" for name, given in uses)
        await self.ask(text, backend=backend, **fields)
        return outcomes(self.api.seen[-1])

    def tools(self) -> set[str]:
        """The tools that existed in the last run, by its ``system/init`` event."""
        lines = (self.folder / "output").read_text().splitlines()
        inits = [json.loads(line) for line in lines if '"subtype":"init"' in line]
        return set(inits[-1]["tools"])

    def all_tools(self) -> set[str]:
        """The tools that the program has when nothing restricts it."""
        done = subprocess.run(
            [str(self.program), "-p", "--output-format=stream-json", "--verbose", "--model=sonnet"],
            input="hello", capture_output=True, text=True, cwd=self.folder, check=True,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder), **environ_for(self.api, self.folder)},
        )  # fmt: skip
        (init,) = [json.loads(line) for line in done.stdout.splitlines() if '"subtype":"init"' in line]
        return set(init["tools"])

    def state_of_the_project(self) -> tuple[str, list[str]]:
        """Branches and worktrees, and every file."""
        asked = ("branch", "--all"), ("worktree", "list"), ("status", "--short")
        git = [subprocess.check_output(["git", "-C", str(self.work), *words], text=True) for words in asked]
        files = [str(path) for path in self.work.rglob("*") if ".git" not in path.parts]
        return "".join(git), sorted(files)


@pytest.fixture
def ground(tmp_path: Path, program: Path, api: MessagesApi, monkeypatch: pytest.MonkeyPatch) -> Ground:
    for name, value in environ_for(api, tmp_path).items():
        monkeypatch.setenv(name, value)
    return Ground(tmp_path, program, api)


def handed(path: Path) -> FilePart:
    return FilePart(uri="x", name=path.name, path=path)


async def test_only_message_tools_exist_by_default(ground: Ground) -> None:
    await ground.ask("hello", caller_id="ws_2")
    of_a_peer = ground.tools()
    await ground.ask("hello")
    of_a_person = ground.tools()
    await ground.ask("", parts=(handed(ground.state / "files" / "mine.txt"),), caller_id="ws_2")
    with_a_file = ground.tools()

    assert (of_a_peer, of_a_person, with_a_file) == (set(), {"Edit", "Write"}, {"Read"})


async def test_no_other_tool_runs_by_default(ground: Ground) -> None:
    tools = sorted({*ground.all_tools(), *OTHERS} - NEEDED)
    before = ground.state_of_the_project()

    results = await ground.use(*((tool, INPUTS.get(tool, {})) for tool in tools))

    ran = [tool for tool, (is_run, _) in zip(tools, results, strict=True) if is_run]
    assert ran == []
    assert all("No such tool available" in text for _, text in results)
    assert ground.state_of_the_project() == before
    assert SECRET not in json.dumps(ground.api.seen)


async def test_only_message_files_are_readable_by_default(ground: Ground) -> None:
    await ground.ask("a secret: " + SECRET, context_id="another conversation")
    (transcript,) = (ground.config / "projects").rglob("*.jsonl")
    memory = transcript.parent / "memory"
    memory.mkdir()
    own = [
        ground.config / "CLAUDE.md",
        memory / "MEMORY.md",
        ground.config / "tasks" / "t.md",
        Path.home() / ".profile",
    ]
    for path in own[:3]:
        path.parent.mkdir(exist_ok=True)
        path.write_text(SECRET)
    linked, around = ground.state / "files" / "link.txt", ground.folder / "around"
    linked.symlink_to(ground.work / ".env")
    around.symlink_to(ground.work)
    mine = ground.state / "files" / "mine.txt"
    paths = [
        ground.work / ".env", ".env", "./src/main.py", "../work/.env", ground.work / "src" / ".." / ".env", ground.work,
        ground.work / ".git" / "config", around / ".env", linked, mine.parent / "other.txt", transcript, *own,
        "/etc/hostname", "/proc/self/environ",
    ]  # fmt: skip

    ground.api.seen.clear()
    uses = [("Read", {"file_path": str(path)}) for path in (mine, *paths)]
    text = " ".join(f"[[use {name} {json.dumps(given)}]]" for name, given in uses)
    await ground.ask("", parts=(*make_request(text).parts, handed(mine)))
    first, *others = outcomes(ground.api.seen[-1])

    assert first[0]
    assert "handed over" in first[1]
    assert [str(path) for path, (is_read, _) in zip(paths, others, strict=True) if is_read] == []
    assert SECRET not in json.dumps(ground.api.seen)


async def test_only_the_outbox_is_written_by_default(ground: Ground) -> None:
    (ground.config / "agent-memory" / "a").mkdir(parents=True)
    before = ground.state_of_the_project()
    elsewhere = [
        "new.txt", ground.work / "src" / "main.py", ground.work / ".claude" / "launch.json", "OUTBOX/../beside.txt",
        ground.work / ".claude" / "agent-memory" / "a" / "x.md", ground.config / "agent-memory" / "a" / "x.md",
        ground.config / "settings.json", ground.state / "files" / "mine.txt", ground.folder / "anywhere.txt",
    ]  # fmt: skip

    results = await ground.use(
        ("Write", {"file_path": "OUTBOX/plot.txt", "content": "drawn"}),
        ("Edit", {"file_path": "OUTBOX/plot.txt", "old_string": "drawn", "new_string": "mended"}),
        *(("Write", {"file_path": str(path), "content": "by a stranger"}) for path in elsewhere),
    )

    assert [is_written for is_written, _ in results[:2]] == [True, True]
    assert [str(path) for path, (is_written, _) in zip(elsewhere, results[2:], strict=True) if is_written] == []
    assert ground.state_of_the_project() == before


@pytest.mark.parametrize("settings", [[], ["user", "project"]])
async def test_settings_are_loaded_only_when_asked_for(ground: Ground, settings: list[str]) -> None:
    for name, folder in (("user", ground.config), ("project", ground.work / ".claude")):
        folder.mkdir(exist_ok=True)
        mark = {"type": "command", "command": f"touch {ground.folder}/{name}-hook"}
        hooks = {event: [{"hooks": [mark]}] for event in ("SessionStart", "UserPromptSubmit", "Stop")}
        (folder / "settings.json").write_text(json.dumps({"hooks": hooks}))
        (folder / "skills" / name).mkdir(parents=True)
        skill = f"---\nname: {name}\ndescription: the {name} skill\n---\nx"
        (folder / "skills" / name / "SKILL.md").write_text(skill)
    (ground.config / "CLAUDE.md").write_text("the user memory")
    (ground.work / "CLAUDE.md").write_text("the project memory")
    server = {"mcpServers": {"s": {"command": "touch", "args": [f"{ground.folder}/project-server"]}}}
    (ground.work / ".mcp.json").write_text(json.dumps(server))
    options: dict[str, str | list[str]] = {"settings": ",".join(settings), "tools": "Skill"} if settings else {}

    await ground.ask("hello", backend=ground.backend(**options))

    marks = ("user-hook", "project-hook", "project-server")
    texts = ("the user memory", "the project memory", "the user skill", "the project skill")
    sent = json.dumps(ground.api.seen)
    found = [name for name in marks if (ground.folder / name).exists()] + [text for text in texts if text in sent]
    assert found == ([*marks, *texts] if settings else [])
    assert ("first commit" in sent) == bool(settings)


@pytest.mark.parametrize("text", ["/compact", "/init", "!touch made", "# remember this", "@.env look", "@src/main.py"])
async def test_a_message_is_never_a_command(ground: Ground, text: str) -> None:
    before = ground.state_of_the_project()

    answer = await ground.ask(text)

    assert answer.text == f"turn 1: {text}".replace("@", "@\u2060")
    assert text.replace("@", "@\u2060") in spoken(ground.api.seen[0])[0]
    assert ground.state_of_the_project() == before
    assert SECRET not in json.dumps(ground.api.seen)
    assert "print('main')" not in json.dumps(ground.api.seen)


async def test_git_log_rule_allows_no_other_command(ground: Ground) -> None:
    backend = ground.backend(allowed_tools="Bash(git log *)")
    commands = ["git log --format=%s", "cat .env", "grep -r secret .", "head .env", "touch made", "git branch made"]
    commands += ["cat < .env", "git log -1 && cat .env", "git log -1; touch made", "echo $ANTHROPIC_API_KEY"]
    # Claude Code takes these for read-only, and runs them without a rule.
    commands += ["git show HEAD:.env", "git blame .env", "git grep secret", "rev .env", "tac .env", "ps aux", "pwd"]
    before = ground.state_of_the_project()

    results = await ground.use(*(("Bash", {"command": each}) for each in commands), backend=backend, caller_id="ws_2")

    assert ground.tools() == {"Bash"}
    assert [each for each, (is_run, _) in zip(commands, results, strict=True) if is_run] == commands[:1]
    assert "first commit" in results[0][1]
    assert ground.state_of_the_project() == before
    assert SECRET not in json.dumps(ground.api.seen)


async def test_working_directory_rule_allows_only_reading(ground: Ground) -> None:
    backend = ground.backend(allowed_tools="Read(./**)", disallowed_tools="Read(./.env)")

    results = await ground.use(
        ("Read", {"file_path": "src/main.py"}),
        ("Read", {"file_path": ".env"}),
        ("Read", {"file_path": str(ground.state / "files" / "other.txt")}),
        ("Write", {"file_path": "made.txt", "content": "x"}),
        ("Write", {"file_path": ".claude/launch.json", "content": "{}"}),
        backend=backend,
    )

    assert [is_run for is_run, _ in results] == [True, False, False, False, False]


async def test_accepted_edits_open_the_working_directory_alone(ground: Ground) -> None:
    backend = ground.backend(permission_mode="acceptEdits")

    results = await ground.use(
        ("Read", {"file_path": str(ground.work / "src" / "main.py")}),
        ("Edit", {"file_path": str(ground.work / "src" / "main.py"), "old_string": "main", "new_string": "edited"}),
        ("Write", {"file_path": str(ground.work / "made.txt"), "content": "x"}),
        ("Bash", {"command": "touch made-too"}),
        ("Write", {"file_path": str(ground.folder / "outside.txt"), "content": "x"}),
        ("Read", {"file_path": str(ground.state / "files" / "other.txt")}),
        backend=backend,
    )

    assert [is_run for is_run, _ in results] == [True, True, True, False, False, False]
    assert not {"Bash", "Agent", "Task", "EnterWorktree"} & ground.tools()


async def test_secrets_stay_unreadable_with_reading_allowed(ground: Ground) -> None:
    await ground.ask("a secret: " + SECRET, context_id="another conversation")
    (transcript,) = (ground.config / "projects").rglob("*.jsonl")
    token, login = ground.state / "ws_1.token", ground.config / ".credentials.json"
    for path in (token, login):
        path.write_text(SECRET)
    ground.api.seen.clear()

    results = await ground.use(
        *(("Read", {"file_path": str(path)}) for path in ("/etc/hostname", token, login, transcript)),
        backend=ground.backend(allowed_tools="Read"),
    )

    assert [is_run for is_run, _ in results] == [True, False, False, False]
    assert SECRET not in json.dumps(ground.api.seen)


@pytest.mark.parametrize("name", ["my (project), [1] {x}!", "ein Ördner 🙂", "a*b?c"])
async def test_a_folder_with_any_name_stays_closed(ground: Ground, name: str) -> None:
    folder = ground.folder / name
    folder.mkdir()
    (folder / ".env").write_text(SECRET)
    mine = ground.state / "files" / "mine.txt"
    text = f"[[use Read {json.dumps({'file_path': str(folder / '.env')}, ensure_ascii=False)}]]"

    await ground.ask("", backend=ground.backend(cwd=str(folder)), parts=(*make_request(text).parts, handed(mine)))

    ((is_read, _),) = outcomes(ground.api.seen[-1])
    assert not is_read
    assert SECRET not in json.dumps(ground.api.seen)
