"""What Claude may do by default, what each option opens, and what the operator reads about it."""

import json
import os
from pathlib import Path

import pytest

from molecule_connect import FilePart, OptionError, create_backend
from molecule_connect_claude_code.permissions import Permissions

from .kit import Asking, FakeClaude, Run


async def run_of(asking: Asking, claude: FakeClaude, **options: str | list[str]) -> Run:
    """How the program is called for a peer's message without files."""
    await asking.ask(backend=asking.backend(**options), caller_id="ws_2")
    return claude.runs[-1]


def denied(run: Run) -> list[str]:
    """The rules that the backend adds by itself: the last word of that flag."""
    words = [word.partition("=")[2] for word in run.argv if word.startswith("--disallowedTools=")]
    return words[-1].split(",")


def tools(run: Run) -> list[str]:
    return sorted((run.flag("tools") or "").split(",")) if run.flag("tools") else []


# By default


async def test_no_tool_exists_for_a_message_that_needs_none(asking: Asking, claude: FakeClaude) -> None:
    run = await run_of(asking, claude)

    assert run.flag("tools") == ""
    assert run.flag("allowedTools") is None
    assert run.flag("permission-mode") == "dontAsk"


async def test_no_settings_servers_or_skills_are_loaded(asking: Asking, claude: FakeClaude) -> None:
    run = await run_of(asking, claude)

    assert run.flag("setting-sources") == ""
    assert run.flag("strict-mcp-config") == ""
    assert run.flag("disable-slash-commands") == ""
    for name in ("FILE_MENTIONS", "AUTO_MEMORY", "GIT_INSTRUCTIONS"):
        assert run.env[f"CLAUDE_CODE_DISABLE_{name}"] == "1"


async def test_a_file_or_an_outbox_brings_the_tools_it_needs(
    asking: Asking, claude: FakeClaude, tmp_path: Path
) -> None:
    here = tmp_path / "a.txt"
    here.write_text("x")
    await asking.ask(parts=[FilePart(uri="x", name="a.txt", path=here)], caller_id="ws_2")
    await asking.ask()

    with_file, of_a_person = claude.runs
    assert (tools(with_file), with_file.flag("allowedTools")) == (["Read"], f"Read(/{here})")
    assert tools(of_a_person) == ["Edit", "Write"]


async def test_its_own_folders_and_the_working_directory_are_denied(
    asking: Asking, claude: FakeClaude, tmp_path: Path
) -> None:
    rules = denied(await run_of(asking, claude))

    for folder in (asking.cwd, tmp_path / "config", f"/tmp/claude-{os.getuid()}"):
        assert {f"Read(/{folder}/**)", f"Edit(/{folder}/**)"} <= set(rules)
    assert f"Read(/{asking.state}/*.token)" in rules


async def test_a_folder_is_denied_by_both_its_names(asking: Asking, claude: FakeClaude, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.symlink_to(asking.cwd)

    rules = denied(await run_of(asking, claude, cwd=str(linked)))

    assert {f"Read(/{linked}/**)", f"Read(/{asking.cwd}/**)"} <= set(rules)


async def test_a_folder_with_signs_of_the_rules_in_its_name_is_denied(
    asking: Asking, claude: FakeClaude, tmp_path: Path
) -> None:
    odd = tmp_path / "a (b), [c] *"
    odd.mkdir()

    assert f"Read(/{tmp_path}/a ?b?? ?c? ?/**)" in denied(await run_of(asking, claude, cwd=str(odd)))


# What opens it


@pytest.mark.parametrize(
    ("options", "exist", "reads", "writes"),
    [
        ({"allowed_tools": "Bash(git log *)"}, ["Bash"], False, False),
        ({"allowed_tools": "Bash"}, ["Bash"], True, True),
        ({"allowed_tools": "Read(./**)"}, ["Read"], True, False),
        ({"allowed_tools": "Read(//data/**)"}, ["Read"], False, False),
        ({"allowed_tools": ["Read(//data/**)", "Edit(src/**)"]}, ["Edit", "Read", "Write"], True, True),
        ({"allowed_tools": "Edit"}, ["Edit", "Read"], True, True),
        ({"allowed_tools": "Write"}, ["Write"], True, True),
        ({"allowed_tools": "WebFetch(domain:example.org), mcp__db__ask"}, ["WebFetch"], False, False),
        ({"allowed_tools": "Bash(npm test *),Grep Glob"}, ["Bash", "Glob", "Grep"], True, False),
        ({"tools": "Agent,WebSearch"}, ["Agent", "WebSearch"], False, False),
        ({"tools": "default"}, ["default"], False, False),
        ({"permission_mode": "plan"}, ["Glob", "Grep", "Read"], True, False),
        ({"permission_mode": "default"}, [], False, False),
        (
            {"permission_mode": "acceptEdits"},
            ["Edit", "Glob", "Grep", "NotebookEdit", "Read", "Write"],
            True,
            True,
        ),
        ({"permission_mode": "bypassPermissions"}, ["default"], True, True),
        ({"permission_mode": "auto", "allowed_tools": "Edit"}, ["default"], True, True),
        ({"settings": "user"}, [], False, False),
        ({"settings": "user,project"}, [], True, False),
    ],
)
async def test_an_option_opens_what_it_names_and_no_more(
    asking: Asking,
    claude: FakeClaude,
    options: dict[str, str | list[str]],
    exist: list[str],
    reads: bool,
    writes: bool,
) -> None:
    run = await run_of(asking, claude, **options)

    rules = denied(run)
    assert tools(run) == exist
    assert (f"Read(/{asking.cwd}/**)" not in rules) == reads
    assert (f"Edit(/{asking.cwd}/**)" not in rules) == writes


async def test_a_rule_for_the_folder_above_opens_the_working_directory(asking: Asking, claude: FakeClaude) -> None:
    run = await run_of(asking, claude, allowed_tools=f"Read(/{asking.cwd.parent}/**)")

    assert f"Read(/{asking.cwd}/**)" not in denied(run)


async def test_another_folder_is_opened_for_reading(asking: Asking, claude: FakeClaude, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()

    run = await run_of(asking, claude, add_dirs=str(other))

    assert (tools(run), run.flag("add-dir")) == (["Glob", "Grep", "Read"], str(other))
    assert f"Read(/{asking.cwd}/**)" in denied(run)


async def test_logins_transcripts_and_tokens_stay_denied(asking: Asking, claude: FakeClaude, tmp_path: Path) -> None:
    rules = denied(await run_of(asking, claude, permission_mode="bypassPermissions", settings="user,project"))

    config = tmp_path / "config"
    closed = [f"{config}/.credentials.json", f"{config}/projects/**/*.jsonl", f"{asking.state}/*.token"]
    assert {f"Read(/{path})" for path in closed} <= set(rules)


async def test_settings_are_loaded_as_asked(asking: Asking, claude: FakeClaude) -> None:
    run = await run_of(asking, claude, settings="user, project")

    assert run.flag("setting-sources") == "user,project"
    assert run.flag("strict-mcp-config") is None
    assert run.flag("disable-slash-commands") is None
    assert "CLAUDE_CODE_DISABLE_AUTO_MEMORY" not in run.env


async def test_limited_shells_have_a_gate(asking: Asking, claude: FakeClaude) -> None:
    run = await run_of(asking, claude, allowed_tools=["Bash(git log *)", "Bash(make:*)"])

    (hook,) = json.loads(str(run.flag("settings")))["hooks"]["PreToolUse"]
    assert hook["matcher"] == "Bash"
    assert hook["hooks"][0]["command"].endswith("shell_gate.py 'git log *' 'make:*'")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"allowed_tools": "Bash"},
        {"allowed_tools": ["Bash(git log *)", "Bash(*)"]},
        {"allowed_tools": "Bash(git log *)", "settings": "user"},
        {"allowed_tools": "Bash(git log *)", "tools": "Bash"},
        {"allowed_tools": "Bash(git log *)", "permission_mode": "bypassPermissions"},
    ],
)
async def test_other_shells_have_no_gate(
    asking: Asking, claude: FakeClaude, options: dict[str, str | list[str]]
) -> None:
    assert (await run_of(asking, claude, **options)).flag("settings") is None


async def test_settings_of_the_operator_take_the_place_of_the_gate(asking: Asking, claude: FakeClaude) -> None:
    backend = asking.backend(allowed_tools="Bash(git log *)", args=["--settings", "x.json"])
    await asking.ask(backend=backend, caller_id="ws_2")

    assert [word for word in claude.runs[0].argv if word.startswith("--settings")] == ["--settings"]
    assert "read-only" in backend.describe()[0]


# What the operator reads


def test_the_default_is_described_in_one_line(asking: Asking) -> None:
    assert asking.backend().describe() == [
        "claude-code may: read the files of a message, write to its outbox; settings: none;"
        f" working directory: {asking.cwd}"
    ]


def test_what_is_open_is_described(asking: Asking) -> None:
    (line,) = asking.backend(
        allowed_tools=["Read(./**)", "Bash(git log *)"], disallowed_tools="Read(./.env)", settings="user,project",
        tools="Agent", permission_mode="acceptEdits",
    ).describe()  # fmt: skip

    for words in (
        "read and change files in the working directory", "use Read(./**), Bash(git log *)", "read-only",
        "never: Read(./.env)", "tools that exist: Agent", "permission mode: acceptEdits", "settings: user, project",
    ):  # fmt: skip
        assert words in line


def test_the_description_holds_no_text_of_secret_options(asking: Asking) -> None:
    (line,) = asking.backend(mcp_config='{"k": "s3cret"}', append_prompt="s3cret", args="s3cret").describe()

    assert "s3cret" not in line


# The working directory


def unsafe(asking: Asking, cwd: Path, **options: str) -> OptionError:
    with pytest.raises(OptionError) as caught:
        asking.backend(cwd=str(cwd), **options)
    return caught.value


@pytest.mark.parametrize("below", ["", "a/b"])
def test_the_home_directory_and_what_contains_it_are_refused(
    asking: Asking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    place = tmp_path / "homes"
    home = place / below
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    linked = tmp_path / "linked"
    linked.symlink_to(place)

    for cwd in (place, linked, Path("/")):
        error = unsafe(asking, cwd)
        assert "home directory" in str(error)
        assert "cd into a project" in error.hint
        assert "cwd=" in error.hint


def test_the_default_directory_is_checked_too(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(asking.cwd))
    monkeypatch.chdir(asking.cwd)

    with pytest.raises(OptionError, match="home directory"):
        create_backend("claude-code", {"bin": str(asking.claude.path)})


@pytest.mark.parametrize("where", [".", "state", "state/ws_1"])
def test_a_directory_that_shares_files_with_the_state_folder_is_refused(
    asking: Asking, tmp_path: Path, where: str
) -> None:
    cwd = tmp_path / where
    cwd.mkdir(exist_ok=True)

    assert str(asking.state) in str(unsafe(asking, cwd))


def test_an_unsafe_directory_is_accepted_on_request(asking: Asking, tmp_path: Path) -> None:
    backend = asking.backend(cwd=str(tmp_path), allow_unsafe_cwd="true")

    assert "because the state folder lies in the working directory" in backend.describe()[0]


def test_a_directory_inside_the_home_directory_is_fine(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(asking.cwd.parent / "home"))

    assert asking.backend().cwd == asking.cwd


def test_an_open_session_works_from_anywhere(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(asking.cwd))
    monkeypatch.chdir(asking.cwd)

    create_backend("claude-code", {"session": "running"})


def test_rules_with_brackets_and_commas_are_split_as_claude_does() -> None:
    permissions = Permissions(cwd=Path("/work"), allowed=("Bash(a, b *),Edit", "WebFetch(domain:x) Grep"))

    words = permissions.flags([], None, {})

    assert words[0] == "--tools=Bash,Edit,Grep,Read,WebFetch"
