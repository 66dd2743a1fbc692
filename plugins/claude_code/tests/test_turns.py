"""Turns: their sessions, the calls of the program, and how a turn ends."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from molecule_connect import BackendError, FilePart, Usage, create_backend
from molecule_connect.testing import check_backend, make_request

from .kit import SESSION, Asking, FakeClaude, assistant, failed, prints, result, text

OTHER = "99999999-2222-4333-8444-555555555555"
GONE = prints({"type": "result", "subtype": "error_during_execution", "is_error": True, "session_id": SESSION,
             "errors": [f"No conversation found with session ID: {SESSION}"]}, status=1)  # fmt: skip
OVERFLOW = prints(failed("Prompt is too long", terminal_reason="prompt_too_long", api_error_status=400), status=1)


def stored(asking: Asking) -> dict[str, dict[str, str]]:
    (file,) = asking.state.rglob("sessions.json")
    assert file.stat().st_mode & 0o777 == 0o600
    sessions: dict[str, dict[str, str]] = json.loads(file.read_text())["sessions"]
    return sessions


def resumed(claude: FakeClaude) -> list[str | None]:
    return [run.flag("resume") for run in claude.runs]


async def test_reply_contains_text_and_usage(asking: Asking) -> None:
    response = await asking.ask()

    assert response.text == "hi"
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.cost_usd) == (210, 3, 0.25)


async def test_session_continues_after_a_restart(asking: Asking, claude: FakeClaude) -> None:
    await asking.ask()
    await asking.ask(backend=asking.backend())

    first, second = claude.runs
    assert first.flag("session-id")
    assert first.flag("resume") is None
    assert second.flag("resume") == SESSION
    assert second.flag("session-id") is None


async def test_finds_sessions_of_uppercase_workspace_ids(asking: Asking, claude: FakeClaude) -> None:
    await asking.ask(workspace_id=OTHER.replace("9", "a"))
    (file,) = asking.state.rglob("sessions.json")
    file.write_text(file.read_text().replace(OTHER.replace("9", "a"), OTHER.replace("9", "A")))
    await asking.ask(backend=asking.backend(), workspace_id=OTHER.replace("9", "a"))

    assert resumed(claude) == [None, SESSION]


async def test_resumes_the_session_of_the_last_result(asking: Asking, claude: FakeClaude) -> None:
    claude.set_next(prints(result()), prints(result(session_id=OTHER)))

    for _ in range(3):
        await asking.ask()

    assert resumed(claude) == [None, SESSION, OTHER]


async def test_callers_and_contexts_have_separate_sessions(asking: Asking, claude: FakeClaude) -> None:
    await asking.ask()
    await asking.ask(caller_id="ws_2")
    await asking.ask(context_id="context-2")

    assert resumed(claude) == [None, None, None]
    assert len(stored(asking)) == 3


async def test_workspace_session_runs_one_turn_at_once(asking: Asking, claude: FakeClaude) -> None:
    busy = f"[ -e {claude.folder}/busy ] && echo twice >> {claude.folder}/clash; touch {claude.folder}/busy; sleep 0.1;"
    claude.set_default(f"{busy} rm {claude.folder}/busy; {prints(result())}")
    backend = asking.backend(session="workspace")

    await asyncio.gather(*(asking.ask(backend=backend, caller_id=f"ws_{number}") for number in range(3)))

    assert resumed(claude) == [None, SESSION, SESSION]
    assert not (claude.folder / "clash").exists()


async def test_session_none_remembers_nothing(asking: Asking, claude: FakeClaude) -> None:
    backend = asking.backend(session="none")

    await asking.ask(backend=backend)
    await asking.ask(backend=backend)

    assert resumed(claude) == [None, None]
    assert all(run.flag("no-session-persistence") == "" for run in claude.runs)
    assert not list(asking.state.rglob("sessions.json"))


@pytest.mark.parametrize("end", [GONE, f"echo 'No conversation found with session ID: {SESSION}' >&2; exit 1"])
async def test_replaces_a_missing_session_immediately(asking: Asking, claude: FakeClaude, end: str) -> None:
    claude.set_next(prints(result()), end, prints(result("new", session_id=OTHER)))
    await asking.ask()

    response = await asking.ask()

    assert response.text == "new"
    assert resumed(claude) == [None, SESSION, None]
    assert "earlier part of this conversation" in claude.runs[2].stdin
    assert [each["id"] for each in stored(asking).values()] == [OTHER]


async def test_second_missing_session_is_a_failure(asking: Asking, claude: FakeClaude) -> None:
    claude.set_next(prints(result()), GONE, GONE)
    await asking.ask()

    with pytest.raises(BackendError) as caught:
        await asking.ask()

    assert caught.value.retryable
    assert len(claude.runs) == 3


async def test_too_long_a_conversation_starts_over(asking: Asking, claude: FakeClaude) -> None:
    claude.set_next(prints(result()), OVERFLOW, prints(result("short again", session_id=OTHER)))
    await asking.ask()

    assert (await asking.ask()).text == "short again"
    assert (await asking.ask()).text == "hi"
    assert resumed(claude) == [None, SESSION, None, OTHER]


async def test_too_long_a_message_keeps_the_session(asking: Asking, claude: FakeClaude) -> None:
    claude.set_next(prints(result()), OVERFLOW, OVERFLOW)
    await asking.ask()

    with pytest.raises(BackendError, match="does not fit") as caught:
        await asking.ask()
    await asking.ask()

    assert not caught.value.retryable
    assert resumed(claude) == [None, SESSION, None, SESSION]


@pytest.mark.parametrize("then", [prints(result("short again", session_id=OTHER)), OVERFLOW])
async def test_usage_includes_the_abandoned_session(asking: Asking, claude: FakeClaude, then: str) -> None:
    claude.set_next(prints(result()), OVERFLOW, then)
    await asking.ask()

    try:
        usage = (await asking.ask()).usage
    except BackendError as exc:
        usage = exc.usage

    assert usage == Usage(input_tokens=420, output_tokens=6, cost_usd=0.5)


async def test_leaves_a_session_that_the_api_rejects(asking: Asking, claude: FakeClaude) -> None:
    claude.set_next(prints(result()), prints(failed("API Error: 400 no image", api_error_status=400), status=1))
    await asking.ask()

    assert (await asking.ask()).text == "hi"
    assert resumed(claude) == [None, SESSION, None]


async def test_another_cwd_starts_a_new_session(asking: Asking, claude: FakeClaude, tmp_path: Path) -> None:
    await asking.ask()

    other = tmp_path / "other"
    other.mkdir()
    await asking.ask(backend=asking.backend(cwd=str(other)))

    assert resumed(claude) == [None, None]
    assert claude.runs[1].cwd.samefile(other)
    assert "earlier part of this conversation" in claude.runs[1].stdin
    assert [each["folder"] for each in stored(asking).values()] == [str(other)]


async def test_failed_first_turn_stores_no_session(asking: Asking, claude: FakeClaude) -> None:
    claude.set_next(prints(failed("API Error: 500", api_error_status=500), status=1))
    with pytest.raises(BackendError):
        await asking.ask()

    await asking.ask()

    assert resumed(claude) == [None, None]
    assert claude.runs[0].flag("session-id") != claude.runs[1].flag("session-id")


@pytest.mark.parametrize("content", ["", "[]", '{"sessions": {"a": 1}}', "\0", "[" * 100_000])
async def test_renames_an_unreadable_sessions_file(
    asking: Asking, claude: FakeClaude, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    await asking.ask()
    (file,) = asking.state.rglob("sessions.json")
    file.write_text(content)

    await asking.ask()

    assert resumed(claude) == [None, None]
    assert "sessions.unreadable" in caplog.text
    assert file.with_suffix(".unreadable").read_text() == content
    assert len(stored(asking)) == 1


async def test_never_resumes_an_invalid_session_id(asking: Asking, claude: FakeClaude) -> None:
    wrong = "--dangerously-skip-permissions"
    claude.set_next(prints(result(session_id=wrong)))
    backend = asking.backend()

    await asking.ask(backend=backend)
    await asking.ask(backend=backend)
    (file,) = asking.state.rglob("sessions.json")
    file.write_text(file.read_text().replace(SESSION, wrong))
    await asking.ask()

    assert resumed(claude) == [None, None, None]


async def test_failed_write_of_sessions_keeps_the_reply(
    asking: Asking, claude: FakeClaude, caplog: pytest.LogCaptureFixture
) -> None:
    backend = asking.backend()
    await asking.ask(backend=backend)
    (file,) = asking.state.rglob("sessions.json")
    file.unlink()
    file.mkdir()

    for _ in range(2):
        assert (await asking.ask(backend=backend, caller_id="ws_2")).text == "hi"

    assert "cannot write the sessions file" in caplog.text
    assert resumed(claude) == [None, None, SESSION]
    assert [each.name for each in file.parent.iterdir() if each.name not in ("runs", "outbox")] == ["sessions.json"]


async def test_remembers_sessions_without_a_state_folder(asking: Asking, claude: FakeClaude) -> None:
    backend = create_backend("claude-code", {"bin": str(claude.path), "cwd": str(asking.cwd)})

    await asking.ask(backend=backend)
    await asking.ask(backend=backend)

    assert resumed(claude) == [None, SESSION]


async def test_options_become_command_line_flags(asking: Asking, claude: FakeClaude, tmp_path: Path) -> None:
    servers = tmp_path / "mcp.json"
    servers.write_text("{}")
    backend = asking.backend(
        model="opus", fallback_model="sonnet", effort="high", permission_mode="acceptEdits",
        allowed_tools=["Edit", "Bash(git log *)"], disallowed_tools="WebFetch", mcp_config=[str(servers), '{"a": 1}'],
        add_dirs=str(tmp_path), append_prompt="Be short.", max_turns="7", max_budget_usd="0.5",
        args=["--settings", "x.json"],
    )  # fmt: skip

    await asking.ask(backend=backend, caller_id="ws_2")

    (run,) = claude.runs
    shown = {name: run.flag(name) for name in ("model", "fallback-model", "effort", "permission-mode", "allowedTools")}
    assert shown == {
        "model": "opus", "fallback-model": "sonnet", "effort": "high", "permission-mode": "acceptEdits",
        "allowedTools": "Edit,Bash(git log *)",
    }  # fmt: skip
    assert [word for word in run.argv if word.startswith("--mcp-config=")] == [
        f"--mcp-config={servers}", '--mcp-config={"a": 1}',
    ]  # fmt: skip
    assert (run.flag("disallowedTools"), run.flag("add-dir")) == ("WebFetch", str(tmp_path))
    assert (run.flag("max-turns"), run.flag("max-budget-usd")) == ("7", "0.5")
    assert str(run.flag("append-system-prompt")).endswith("\n\nBe short.")
    assert run.argv[-2:] == ["--settings", "x.json"]


async def test_refuses_tools_by_default(asking: Asking, claude: FakeClaude) -> None:
    await asking.ask(caller_id="ws_2")

    assert claude.runs[0].flag("permission-mode") == "dontAsk"
    assert claude.runs[0].flag("allowedTools") is None


async def test_allows_reading_only_the_messages_files(asking: Asking, claude: FakeClaude, tmp_path: Path) -> None:
    here, odd = tmp_path / "a file.txt", tmp_path / "odd, *.txt"
    for path in (here, odd):
        path.write_text("x")

    files = [FilePart(uri="x", name=path.name, path=path) for path in (here, odd)]
    await asking.ask(parts=files, caller_id="ws_2")

    assert claude.runs[0].flag("allowedTools") == f"Read(/{here})"
    assert f"a file.txt: at {here}" in claude.runs[0].stdin


async def test_trace_of_the_message_is_in_the_environment(asking: Asking, claude: FakeClaude) -> None:
    await asking.ask(trace="00-1-2-01")
    await asking.ask()
    assert [run.env.get("TRACEPARENT") for run in claude.runs] == ["00-1-2-01", None]


async def test_environment_has_no_token_or_nesting_variables(
    asking: Asking, claude: FakeClaude, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CLAUDECODE", "CLAUDE_CODE_ENTRYPOINT", "CLAUDE_CODE_SESSION_ID"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("MOLECULE_WORKSPACE_TOKEN", "tok-secret")
    monkeypatch.setenv("CLAUDE_CODE_OAUTH_TOKEN", "for-claude")

    await asking.ask()
    await asking.ask(backend=asking.backend(pass_meta="true"), caller_id="ws_2", message_id="m\0\ud800")

    default, with_meta = claude.runs
    assert not {"CLAUDECODE", "CLAUDE_CODE_ENTRYPOINT", "CLAUDE_CODE_SESSION_ID"} & set(default.env)
    assert "tok-secret" not in default.env.values()
    assert default.env["CLAUDE_CODE_OAUTH_TOKEN"] == "for-claude"
    assert "MOLECULE_CALLER_ID" not in default.env
    assert (with_meta.env["MOLECULE_CALLER_ID"], with_meta.env["MOLECULE_MESSAGE_ID"]) == ("ws_2", "m?")


async def test_reports_text_and_tools_as_progress(asking: Asking, claude: FakeClaude) -> None:
    edit = {"type": "tool_use", "name": "Edit", "input": {"file_path": "/a/b/main.py", "new_string": "secret"}}
    bash = {"type": "tool_use", "name": "Bash", "input": {"command": "curl -H secret", "description": "Ask the host"}}
    claude.set_default(prints(
        {"type": "system", "subtype": "init", "mcp_servers": [{"name": "db", "status": "failed"}]},
        {"type": "stream_event", "event": {}}, "no JSON", "[]", {"type": "unheard of"},
        assistant(text("Let me look.")), assistant(edit), assistant(bash), {"type": "user", "message": {}},
        assistant(text("of a sub-agent"), parent_tool_use_id="t1"), result(),
    ))  # fmt: skip

    await asking.ask()

    assert asking.progress.texts == [
        "MCP server db failed to start",
        "Let me look.",
        "Edit: main.py",
        "Bash: Ask the host",
    ]


async def test_reads_long_lines(asking: Asking, claude: FakeClaude) -> None:
    claude.set_default(prints({"type": "user", "content": "x" * 300_000}, result("y" * 300_000)))

    assert len((await asking.ask()).text) == 300_000


async def test_result_is_not_delayed_by_later_output(
    asking: Asking, claude: FakeClaude, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("molecule_connect_claude_code.backend.AFTER_RESULT_SECONDS", 0.1)
    claude.set_default(prints(result()).replace("exit 0", "sleep 60"))

    assert (await asking.ask()).text == "hi"


async def test_each_line_restarts_the_idle_timeout(asking: Asking, claude: FakeClaude) -> None:
    # The fake program itself takes time to start, especially on a busy machine.
    claude.set_next("for i in $(seq 25); do echo '{}'; sleep 0.1; done; " + prints(result("patience")), "sleep 60")
    backend = asking.backend(idle_timeout="2s")

    assert (await asking.ask(backend=backend)).text == "patience"
    with pytest.raises(BackendError, match="idle_timeout") as caught:
        await asking.ask(backend=backend)

    assert caught.value.retryable


async def test_total_timeout_ends_a_turn(asking: Asking, claude: FakeClaude) -> None:
    claude.set_default("while :; do echo '{}'; sleep 0.05; done")

    with pytest.raises(BackendError, match="longer than timeout"):
        await asking.ask(backend=asking.backend(timeout="300ms"))


@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_cancelling_and_closing_end_the_program(asking: Asking, claude: FakeClaude, how: str) -> None:
    claude.set_default(f"echo $$ > {claude.folder}/pid; mv {claude.folder}/pid {claude.folder}/here; sleep 60")
    backend = asking.backend()
    task = asyncio.create_task(asking.ask(backend=backend))
    async with asyncio.timeout(10):
        while not (claude.folder / "here").exists():  # noqa: ASYNC110 - another process creates it
            await asyncio.sleep(0.01)

    if how == "cancel":
        task.cancel()
    else:
        await backend.close()
    await asyncio.wait((task,))

    with pytest.raises(ProcessLookupError):
        os.kill(int((claude.folder / "here").read_text()), 0)
    assert task.cancelled() if how == "cancel" else isinstance(task.exception(), BackendError)


async def test_meets_the_backend_contract(asking: Asking, claude: FakeClaude, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "key")
    claude.set_default(f"if grep -q slow $at/run$run/stdin; then sleep 60; fi; {prints(result())}")
    options = {"bin": str(claude.path), "cwd": str(asking.cwd)}

    await check_backend("claude-code", options, slow=make_request("slow"))


async def test_missing_program_is_retryable(asking: Asking, claude: FakeClaude) -> None:
    backend = asking.backend()
    claude.path.unlink()

    with pytest.raises(BackendError, match="is not found") as caught:
        await asking.ask(backend=backend)

    assert caught.value.retryable


@pytest.mark.skipif(sys.platform != "linux", reason="marks are found in /proc")
async def test_check_ends_leftover_processes(asking: Asking) -> None:
    backend = asking.backend()
    runs, mark = backend.config.state_dir / "runs", "0" * 32
    runs.mkdir()
    (runs / f"{mark}.run").touch()
    leftover = await asyncio.create_subprocess_exec("sleep", "60", env={**os.environ, "MOLECULE_RUN_ID": f"{mark}.1"})

    await backend.check()

    assert await leftover.wait() == -signal.SIGKILL
    assert list(runs.iterdir()) == []
