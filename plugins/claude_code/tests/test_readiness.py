"""Checks at the start: invalid options, a missing or outdated program, a missing login."""

import shutil
from pathlib import Path

import pytest

from molecule_connect import OptionError, create_backend
from molecule_connect_claude_code import ClaudeCodeBackend

from .kit import Asking, FakeClaude


@pytest.fixture
def logged_in(monkeypatch: pytest.MonkeyPatch, asking: Asking) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "key")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"session": "running", "model": "opus"}, "session=running can't be combined"),
        ({"session": "mine"}, "'session'"),
        ({"bin": " "}, "'bin'"),
        ({"cwd": "/no/such/folder"}, "'cwd'"),
        ({"add_dirs": "/no/such/folder"}, "'add_dirs'"),
        ({"mcp_config": "/no/such/file"}, "'mcp_config'"),
        ({"mcp_config": "{no json"}, "'mcp_config'"),
        ({"max_turns": "1"}, "'max_turns'"),
        ({"max_budget_usd": "0"}, "'max_budget_usd'"),
        ({"permission_mode": "yolo"}, "'permission_mode'"),
        ({"settings": "user,everything"}, "'settings'"),
        ({"tools": "Bash(git log *)"}, "'tools'"),
        ({"args": "--tools=Bash"}, "'args'"),
        ({"args": "--setting-sources=user"}, "'args'"),
        ({"args": "--dangerously-skip-permissions"}, "'args'"),
        ({"effort": "some"}, "'effort'"),
        ({"model": "--resume x"}, "'model'"),
        ({"allowed_tools": "--resume"}, "'allowed_tools'"),
        ({"append_prompt": "x" * 200_000}, "'append_prompt'"),
        ({"idle_timeout": "soon"}, "'idle_timeout'"),
        ({"timeout": "-1s"}, "'timeout'"),
        ({"pass_meta": "maybe"}, "'pass_meta'"),
        ({"args": "--output-format=text"}, "sets itself"),
        ({"args": ["--settings", "--resume"]}, "sets itself"),
        ({"args": "--model=opus"}, "'args'"),
    ],
)
def test_rejects_invalid_options_on_creation(options: dict[str, str | list[str]], message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        create_backend("claude-code", options)

    assert caught.value.hint


def test_repr_contains_no_secret_options() -> None:
    shown = repr(
        create_backend("claude-code", {"mcp_config": '{"k": "s3cret"}', "append_prompt": "s3cret", "args": "s3cret"})
    )

    assert "s3cret" not in shown


def test_cwd_defaults_to_the_current_folder() -> None:
    assert ClaudeCodeBackend().cwd == Path.cwd()


@pytest.mark.usefixtures("logged_in")
async def test_check_passes_for_a_working_program(asking: Asking) -> None:
    assert await asking.backend().check() == []


@pytest.mark.usefixtures("logged_in")
async def test_finds_the_program_by_name(asking: Asking, claude: FakeClaude, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{claude.folder}:/usr/bin:/bin")

    assert await asking.backend(bin="claude").check() == []


@pytest.mark.usefixtures("logged_in")
async def test_check_reports_a_missing_program(asking: Asking) -> None:
    (problem,) = await asking.backend(bin="no-such-claude").check()

    assert "'no-such-claude' is not found" in problem
    assert "npm install -g @anthropic-ai/claude-code" in problem


@pytest.mark.usefixtures("logged_in")
@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo '2.0.76 (Claude Code)'", "too old"),
        ("echo '2.1.150 (Claude Code)'", "cannot be used"),
        ("echo 'some other claude'", "no version"),
        ("echo 'Illegal instruction' >&2; exit 132", "Illegal instruction"),
        ("echo 'env: node: No such file or directory' >&2; exit 127", "needs Node.js"),
    ],
)
async def test_check_reports_an_unusable_program(asking: Asking, claude: FakeClaude, script: str, problem: str) -> None:
    (claude.folder / "version").write_text(script)

    (found,) = await asking.backend().check()

    assert problem in found


@pytest.mark.usefixtures("logged_in")
async def test_check_reports_missing_node(asking: Asking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "claude"
    script.write_text("#!/usr/bin/env node\n")
    script.chmod(0o755)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "env").symlink_to(str(shutil.which("env")))
    monkeypatch.setenv("PATH", str(bare))

    (found,) = await asking.backend(bin=str(script)).check()

    assert "needs Node.js" in found


async def test_check_reports_a_missing_login(asking: Asking, claude: FakeClaude) -> None:
    (claude.folder / "auth").write_text("""echo '{"loggedIn": false}'; exit 1""")

    (found,) = await asking.backend().check()

    assert "not logged in" in found
    assert "ANTHROPIC_API_KEY" in found


@pytest.mark.parametrize("where", ["file", "variable", "program"])
async def test_check_finds_each_kind_of_login(
    asking: Asking, claude: FakeClaude, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if where == "file":
        (tmp_path / "config").mkdir()
        (tmp_path / "config" / ".credentials.json").write_text("{}")
    if where == "variable":
        monkeypatch.setenv("CLAUDE_CODE_OAUTH_TOKEN", "token")
    if where != "program":
        (claude.folder / "auth").write_text("exit 1")

    assert await asking.backend().check() == []
