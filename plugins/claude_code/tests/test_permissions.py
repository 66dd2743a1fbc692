"""Claude's permissions by default and with each option, and their description for the operator."""

import json
import os
from pathlib import Path

import pytest

from molecule_connect import FilePart, OptionError, create_backend
from molecule_connect_claude_code.permissions import Permissions

from .kit import Asking, FakeClaude, Run


async def run_of(asking: Asking, claude: FakeClaude, **options: str | list[str]) -> Run:
    """The call of the program for a message of a peer without files."""
    await asking.ask(backend=asking.backend(**options), caller_id="ws_2")
    return claude.runs[-1]


def denied(run: Run) -> list[str]:
    """The deny rules that the backend adds itself, which are in the last such flag."""
    words = [word.partition("=")[2] for word in run.argv if word.startswith("--disallowedTools=")]
    return words[-1].split(",")


def tools(run: Run) -> list[str]:
    return sorted((run.flag("tools") or "").split(",")) if run.flag("tools") else []


# By default


async def test_no_tools_are_available_without_need(asking: Asking, claude: FakeClaude) -> None:
    run = await run_of(asking, claude)

    assert run.flag("tools") == ""
    assert run.flag("allowedTools") is None
    assert run.flag("permission-mode") == "dontAsk"


async def test_loads_no_settings_servers_or_skills(asking: Asking, claude: FakeClaude) -> None:
    run = await run_of(asking, claude)

    assert run.flag("setting-sources") == ""
    assert run.flag("strict-mcp-config") == ""
    assert run.flag("disable-slash-commands") == ""
    for name in ("FILE_MENTIONS", "AUTO_MEMORY", "GIT_INSTRUCTIONS"):
        assert run.env[f"CLAUDE_CODE_DISABLE_{name}"] == "1"


async def test_files_and_outbox_add_their_tools(asking: Asking, claude: FakeClaude, tmp_path: Path) -> None:
    here = tmp_path / "a.txt"
    here.write_text("x")
    await asking.ask(parts=[FilePart(uri="x", name="a.txt", path=here)], caller_id="ws_2")
    await asking.ask()

    with_file, of_a_person = claude.runs
    assert (tools(with_file), with_file.flag("allowedTools")) == (["Read"], f"Read(/{here})")
    assert tools(of_a_person) == ["Edit", "Write"]


async def test_denies_working_directory_and_claude_folders(asking: Asking, claude: FakeClaude, tmp_path: Path) -> None:
    rules = denied(await run_of(asking, claude))

    for folder in (asking.cwd, tmp_path / "config", f"/tmp/claude-{os.getuid()}"):
        assert {f"Read(/{folder}/**)", f"Edit(/{folder}/**)"} <= set(rules)
    assert f"Read(/{asking.state}/*.token)" in rules


async def test_denies_a_linked_folder_by_both_paths(asking: Asking, claude: FakeClaude, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.symlink_to(asking.cwd)

    rules = denied(await run_of(asking, claude, cwd=str(linked)))

    assert {f"Read(/{linked}/**)", f"Read(/{asking.cwd}/**)"} <= set(rules)


async def test_denies_folders_with_special_characters_in_names(
    asking: Asking, claude: FakeClaude, tmp_path: Path
) -> None:
    odd = tmp_path / "a (b), [c] *"
    odd.mkdir()

    assert f"Read(/{tmp_path}/a ?b?? ?c? ?/**)" in denied(await run_of(asking, claude, cwd=str(odd)))


# With options


@pytest.mark.parametrize(
    ("options", "available", "reads", "writes"),
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
async def test_each_option_allows_only_what_it_names(
    asking: Asking,
    claude: FakeClaude,
    options: dict[str, str | list[str]],
    available: list[str],
    reads: bool,
    writes: bool,
) -> None:
    run = await run_of(asking, claude, **options)

    rules = denied(run)
    assert tools(run) == available
    assert (f"Read(/{asking.cwd}/**)" not in rules) == reads
    assert (f"Edit(/{asking.cwd}/**)" not in rules) == writes


async def test_rule_for_parent_folder_allows_cwd(asking: Asking, claude: FakeClaude) -> None:
    run = await run_of(asking, claude, allowed_tools=f"Read(/{asking.cwd.parent}/**)")

    assert f"Read(/{asking.cwd}/**)" not in denied(run)


async def test_add_dirs_allows_reading_a_folder(asking: Asking, claude: FakeClaude, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()

    run = await run_of(asking, claude, add_dirs=str(other))

    assert (tools(run), run.flag("add-dir")) == (["Glob", "Grep", "Read"], str(other))
    assert f"Read(/{asking.cwd}/**)" in denied(run)


async def test_always_denies_logins_transcripts_and_tokens(asking: Asking, claude: FakeClaude, tmp_path: Path) -> None:
    rules = denied(await run_of(asking, claude, permission_mode="bypassPermissions", settings="user,project"))

    config = tmp_path / "config"
    closed = [f"{config}/.credentials.json", f"{config}/projects/**/*.jsonl", f"{asking.state}/*.token"]
    assert {f"Read(/{path})" for path in closed} <= set(rules)


async def test_loads_the_requested_settings(asking: Asking, claude: FakeClaude) -> None:
    run = await run_of(asking, claude, settings="user, project")

    assert run.flag("setting-sources") == "user,project"
    assert run.flag("strict-mcp-config") is None
    assert run.flag("disable-slash-commands") is None
    assert "CLAUDE_CODE_DISABLE_AUTO_MEMORY" not in run.env


async def test_restricted_shells_have_a_gate(asking: Asking, claude: FakeClaude) -> None:
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


async def test_own_settings_replace_the_gate(asking: Asking, claude: FakeClaude) -> None:
    backend = asking.backend(allowed_tools="Bash(git log *)", args=["--settings", "x.json"])
    await asking.ask(backend=backend, caller_id="ws_2")

    assert [word for word in claude.runs[0].argv if word.startswith("--settings")] == ["--settings"]
    assert "read-only" in backend.describe()[0]


# The description


def test_describes_the_default_in_one_line(asking: Asking) -> None:
    assert asking.backend().describe() == [
        "claude-code may: read the files of a message, write to its outbox; settings: none;"
        f" working directory: {asking.cwd}"
    ]


def test_describes_what_is_allowed(asking: Asking) -> None:
    (line,) = asking.backend(
        allowed_tools=["Read(./**)", "Bash(git log *)"], disallowed_tools="Read(./.env)", settings="user,project",
        tools="Agent", permission_mode="acceptEdits",
    ).describe()  # fmt: skip

    for text in (
        "read and change files in the working directory", "use Read(./**), Bash(git log *)", "read-only",
        "never: Read(./.env)", "available tools: Agent", "permission mode: acceptEdits", "settings: user, project",
    ):  # fmt: skip
        assert text in line


def test_description_contains_no_secret_options(asking: Asking) -> None:
    (line,) = asking.backend(mcp_config='{"k": "s3cret"}', append_prompt="s3cret", args="s3cret").describe()

    assert "s3cret" not in line


# The working directory


def unsafe(asking: Asking, cwd: Path, **options: str) -> OptionError:
    with pytest.raises(OptionError) as caught:
        asking.backend(cwd=str(cwd), **options)
    return caught.value


@pytest.mark.parametrize("below", ["", "a/b"])
def test_rejects_home_directory_and_its_parents(
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


def test_checks_the_default_directory(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(asking.cwd))
    monkeypatch.chdir(asking.cwd)

    with pytest.raises(OptionError, match="home directory"):
        create_backend("claude-code", {"bin": str(asking.claude.path)})


@pytest.mark.parametrize("where", [".", "state", "state/ws_1"])
def test_rejects_overlap_with_the_state_folder(asking: Asking, tmp_path: Path, where: str) -> None:
    cwd = tmp_path / where
    cwd.mkdir(exist_ok=True)

    assert str(asking.state) in str(unsafe(asking, cwd))


@pytest.mark.parametrize("below", ["", "molecule", "molecule/profiles/work"])
def test_rejects_overlap_with_saved_settings(
    asking: Asking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    cwd = tmp_path / "home" / ".config" / below
    cwd.mkdir(parents=True)

    assert "saved settings" in str(unsafe(asking, cwd))


async def test_denies_saved_settings(
    asking: Asking, claude: FakeClaude, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    home = tmp_path / "home" / ".config" / "molecule"

    rules = denied(await run_of(asking, claude, permission_mode="bypassPermissions", settings="user,project"))

    for tool in ("Read", "Edit"):
        for name in ("token", "config.toml", "profiles/**"):
            assert f"{tool}(/{home}/{name})" in rules


def test_accepts_an_unsafe_directory_on_request(asking: Asking, tmp_path: Path) -> None:
    backend = asking.backend(cwd=str(tmp_path), allow_unsafe_cwd="true")

    assert "because the state folder is in the working directory" in backend.describe()[0]


def test_accepts_a_folder_inside_home(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(asking.cwd.parent / "home"))

    assert asking.backend().cwd == asking.cwd


def test_open_session_accepts_any_directory(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(asking.cwd))
    monkeypatch.chdir(asking.cwd)

    create_backend("claude-code", {"session": "running"})


def test_splits_rules_as_claude_code_does() -> None:
    permissions = Permissions(cwd=Path("/work"), allowed=("Bash(a, b *),Edit", "WebFetch(domain:x) Grep"))

    words = permissions.flags([], None, {})

    assert words[0] == "--tools=Bash,Edit,Grep,Read,WebFetch"
