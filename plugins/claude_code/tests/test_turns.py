"""Turns of conversations: which session they belong to, how the program is called, and how a turn ends."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from molecule_connect import BackendError, FilePart, Usage, create_backend
from molecule_connect.testing import check_backend, make_request

from .kit import SESSION, Asking, FakeClaude, assistant, failed, result, says, text

OTHER = "99999999-2222-4333-8444-555555555555"
GONE = says({"type": "result", "subtype": "error_during_execution", "is_error": True, "session_id": SESSION,
             "errors": [f"No conversation found with session ID: {SESSION}"]}, status=1)  # fmt: skip
OVERFLOW = says(failed("Prompt is too long", terminal_reason="prompt_too_long", api_error_status=400), status=1)


def kept(asking: Asking) -> dict[str, dict[str, str]]:
    (file,) = asking.state.rglob("sessions.json")
    assert file.stat().st_mode & 0o777 == 0o600
    sessions: dict[str, dict[str, str]] = json.loads(file.read_text())["sessions"]
    return sessions


def resumed(claude: FakeClaude) -> list[str | None]:
    return [run.flag("resume") for run in claude.runs]


async def test_an_answer_is_the_text_of_the_result_with_what_it_cost(asking: Asking) -> None:
    response = await asking.ask()

    assert response.text == "hi"
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.cost_usd) == (210, 3, 0.25)


async def test_a_conversation_goes_on_in_its_session_also_after_a_restart(asking: Asking, claude: FakeClaude) -> None:
    await asking.ask()
    await asking.ask(backend=asking.backend())

    first, second = claude.runs
    assert first.flag("session-id")
    assert first.flag("resume") is None
    assert second.flag("resume") == SESSION
    assert second.flag("session-id") is None


async def test_a_session_of_a_workspace_in_capitals_goes_on(asking: Asking, claude: FakeClaude) -> None:
    await asking.ask(workspace_id=OTHER.replace("9", "a"))
    (file,) = asking.state.rglob("sessions.json")
    file.write_text(file.read_text().replace(OTHER.replace("9", "a"), OTHER.replace("9", "A")))
    await asking.ask(backend=asking.backend(), workspace_id=OTHER.replace("9", "a"))

    assert resumed(claude) == [None, SESSION]


async def test_the_session_of_the_last_result_counts(asking: Asking, claude: FakeClaude) -> None:
    claude.will(says(result()), says(result(session_id=OTHER)))

    for _ in range(3):
        await asking.ask()

    assert resumed(claude) == [None, SESSION, OTHER]


async def test_another_caller_and_another_context_have_sessions_of_their_own(
    asking: Asking, claude: FakeClaude
) -> None:
    await asking.ask()
    await asking.ask(caller_id="ws_2")
    await asking.ask(context_id="context-2")

    assert resumed(claude) == [None, None, None]
    assert len(kept(asking)) == 3


async def test_one_session_for_the_whole_workspace_is_written_by_one_at_a_time(
    asking: Asking, claude: FakeClaude
) -> None:
    busy = f"[ -e {claude.folder}/busy ] && echo twice >> {claude.folder}/clash; touch {claude.folder}/busy; sleep 0.1;"
    claude.always(f"{busy} rm {claude.folder}/busy; {says(result())}")
    backend = asking.backend(session="workspace")

    await asyncio.gather(*(asking.ask(backend=backend, caller_id=f"ws_{number}") for number in range(3)))

    assert resumed(claude) == [None, SESSION, SESSION]
    assert not (claude.folder / "clash").exists()


async def test_without_a_session_nothing_is_remembered(asking: Asking, claude: FakeClaude) -> None:
    backend = asking.backend(session="none")

    await asking.ask(backend=backend)
    await asking.ask(backend=backend)

    assert resumed(claude) == [None, None]
    assert all(run.flag("no-session-persistence") == "" for run in claude.runs)
    assert not list(asking.state.rglob("sessions.json"))


@pytest.mark.parametrize("end", [GONE, f"echo 'No conversation found with session ID: {SESSION}' >&2; exit 1"])
async def test_a_session_that_is_gone_is_replaced_by_a_new_one_at_once(
    asking: Asking, claude: FakeClaude, end: str
) -> None:
    claude.will(says(result()), end, says(result("new", session_id=OTHER)))
    await asking.ask()

    response = await asking.ask()

    assert response.text == "new"
    assert resumed(claude) == [None, SESSION, None]
    assert "earlier part of this conversation" in claude.runs[2].stdin
    assert [each["id"] for each in kept(asking).values()] == [OTHER]


async def test_a_session_that_is_gone_twice_is_a_failure_and_no_loop(asking: Asking, claude: FakeClaude) -> None:
    claude.will(says(result()), GONE, GONE)
    await asking.ask()

    with pytest.raises(BackendError) as caught:
        await asking.ask()

    assert caught.value.retryable
    assert len(claude.runs) == 3


async def test_a_conversation_that_grew_too_long_begins_anew(asking: Asking, claude: FakeClaude) -> None:
    claude.will(says(result()), OVERFLOW, says(result("short again", session_id=OTHER)))
    await asking.ask()

    assert (await asking.ask()).text == "short again"
    assert (await asking.ask()).text == "hi"
    assert resumed(claude) == [None, SESSION, None, OTHER]


async def test_a_message_that_is_too_long_by_itself_is_reported_and_the_conversation_kept(
    asking: Asking, claude: FakeClaude
) -> None:
    claude.will(says(result()), OVERFLOW, OVERFLOW)
    await asking.ask()

    with pytest.raises(BackendError, match="does not fit") as caught:
        await asking.ask()
    await asking.ask()

    assert not caught.value.retryable
    assert resumed(claude) == [None, SESSION, None, SESSION]


@pytest.mark.parametrize("then", [says(result("short again", session_id=OTHER)), OVERFLOW])
async def test_what_the_old_session_cost_is_counted_too(asking: Asking, claude: FakeClaude, then: str) -> None:
    claude.will(says(result()), OVERFLOW, then)
    await asking.ask()

    try:
        usage = (await asking.ask()).usage
    except BackendError as exc:
        usage = exc.usage

    assert usage == Usage(input_tokens=420, output_tokens=6, cost_usd=0.5)


async def test_a_session_that_holds_what_the_api_does_not_take_is_left(asking: Asking, claude: FakeClaude) -> None:
    claude.will(says(result()), says(failed("API Error: 400 no image", api_error_status=400), status=1))
    await asking.ask()

    assert (await asking.ask()).text == "hi"
    assert resumed(claude) == [None, SESSION, None]


async def test_in_another_folder_a_conversation_begins_anew(asking: Asking, claude: FakeClaude, tmp_path: Path) -> None:
    await asking.ask()

    other = tmp_path / "other"
    other.mkdir()
    await asking.ask(backend=asking.backend(cwd=str(other)))

    assert resumed(claude) == [None, None]
    assert claude.runs[1].cwd.samefile(other)
    assert "earlier part of this conversation" in claude.runs[1].stdin
    assert [each["folder"] for each in kept(asking).values()] == [str(other)]


async def test_a_failed_first_turn_leaves_no_session_behind(asking: Asking, claude: FakeClaude) -> None:
    claude.will(says(failed("API Error: 500", api_error_status=500), status=1))
    with pytest.raises(BackendError):
        await asking.ask()

    await asking.ask()

    assert resumed(claude) == [None, None]
    assert claude.runs[0].flag("session-id") != claude.runs[1].flag("session-id")


@pytest.mark.parametrize("content", ["", "[]", '{"sessions": {"a": 1}}', "\0", "[" * 100_000])
async def test_a_file_of_sessions_that_cannot_be_read_is_set_aside(
    asking: Asking, claude: FakeClaude, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    await asking.ask()
    (file,) = asking.state.rglob("sessions.json")
    file.write_text(content)

    await asking.ask()

    assert resumed(claude) == [None, None]
    assert "sessions begin anew" in caplog.text
    assert file.with_suffix(".unreadable").read_text() == content
    assert len(kept(asking)) == 1


async def test_a_session_id_that_is_none_is_never_put_on_a_command_line(asking: Asking, claude: FakeClaude) -> None:
    wrong = "--dangerously-skip-permissions"
    claude.will(says(result(session_id=wrong)))
    backend = asking.backend()

    await asking.ask(backend=backend)
    await asking.ask(backend=backend)
    (file,) = asking.state.rglob("sessions.json")
    file.write_text(file.read_text().replace(SESSION, wrong))
    await asking.ask()

    assert resumed(claude) == [None, None, None]


async def test_a_session_that_cannot_be_written_down_costs_no_answer(
    asking: Asking, claude: FakeClaude, caplog: pytest.LogCaptureFixture
) -> None:
    backend = asking.backend()
    await asking.ask(backend=backend)
    (file,) = asking.state.rglob("sessions.json")
    file.unlink()
    file.mkdir()

    for _ in range(2):
        assert (await asking.ask(backend=backend, caller_id="ws_2")).text == "hi"

    assert "sessions cannot be kept" in caplog.text
    assert resumed(claude) == [None, None, SESSION]
    assert [each.name for each in file.parent.iterdir() if each.name not in ("runs", "outbox")] == ["sessions.json"]


async def test_a_backend_without_a_state_folder_remembers_as_long_as_it_lives(
    asking: Asking, claude: FakeClaude
) -> None:
    backend = create_backend("claude-code", {"bin": str(claude.path), "cwd": str(asking.cwd)})

    await asking.ask(backend=backend)
    await asking.ask(backend=backend)

    assert resumed(claude) == [None, SESSION]


async def test_the_options_reach_the_command_line(asking: Asking, claude: FakeClaude, tmp_path: Path) -> None:
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


async def test_by_default_what_nobody_allowed_is_refused(asking: Asking, claude: FakeClaude) -> None:
    await asking.ask(caller_id="ws_2")

    assert claude.runs[0].flag("permission-mode") == "dontAsk"
    assert claude.runs[0].flag("allowedTools") is None


async def test_a_file_on_this_machine_may_be_read_and_nothing_beside_it(
    asking: Asking, claude: FakeClaude, tmp_path: Path
) -> None:
    here, odd = tmp_path / "a file.txt", tmp_path / "odd, *.txt"
    for path in (here, odd):
        path.write_text("x")

    files = [FilePart(uri="x", name=path.name, path=path) for path in (here, odd)]
    await asking.ask(parts=files, caller_id="ws_2")

    assert claude.runs[0].flag("allowedTools") == f"Read(/{here})"
    assert f"a file.txt: at {here}" in claude.runs[0].stdin


async def test_the_environment_has_no_token_and_no_trace_of_another_claude_code(
    asking: Asking, claude: FakeClaude, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CLAUDECODE", "CLAUDE_CODE_ENTRYPOINT", "CLAUDE_CODE_SESSION_ID"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("MOLECULE_WORKSPACE_TOKEN", "tok-secret")
    monkeypatch.setenv("CLAUDE_CODE_OAUTH_TOKEN", "for-claude")

    await asking.ask()
    await asking.ask(backend=asking.backend(pass_meta="true"), caller_id="ws_2", message_id="m\0\ud800")

    untold, told = claude.runs
    assert not {"CLAUDECODE", "CLAUDE_CODE_ENTRYPOINT", "CLAUDE_CODE_SESSION_ID"} & set(untold.env)
    assert "tok-secret" not in untold.env.values()
    assert untold.env["CLAUDE_CODE_OAUTH_TOKEN"] == "for-claude"
    assert "MOLECULE_CALLER_ID" not in untold.env
    assert (told.env["MOLECULE_CALLER_ID"], told.env["MOLECULE_MESSAGE_ID"]) == ("ws_2", "m?")


async def test_progress_tells_what_it_is_doing(asking: Asking, claude: FakeClaude) -> None:
    edit = {"type": "tool_use", "name": "Edit", "input": {"file_path": "/a/b/main.py", "new_string": "secret"}}
    bash = {"type": "tool_use", "name": "Bash", "input": {"command": "curl -H secret", "description": "Ask the host"}}
    claude.always(says(
        {"type": "system", "subtype": "init", "mcp_servers": [{"name": "db", "status": "failed"}]},
        {"type": "stream_event", "event": {}}, "no JSON", "[]", {"type": "unheard of"},
        assistant(text("Let me look.")), assistant(edit), assistant(bash), {"type": "user", "message": {}},
        assistant(text("of a sub-agent"), parent_tool_use_id="t1"), result(),
    ))  # fmt: skip

    await asking.ask()

    assert asking.told.texts == ["MCP server db failed to start", "Let me look.", "Edit: main.py", "Bash: Ask the host"]


async def test_a_line_of_any_length_is_read(asking: Asking, claude: FakeClaude) -> None:
    claude.always(says({"type": "user", "content": "x" * 300_000}, result("y" * 300_000)))

    assert len((await asking.ask()).text) == 300_000


async def test_what_comes_after_the_result_holds_nothing_up_but_for_its_deadline(
    asking: Asking, claude: FakeClaude, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("molecule_connect_claude_code.backend.AFTER_RESULT_SECONDS", 0.1)
    claude.always(says(result()).replace("exit 0", "sleep 60"))

    assert (await asking.ask()).text == "hi"


async def test_silence_ends_a_turn_and_any_line_begins_its_time_anew(asking: Asking, claude: FakeClaude) -> None:
    # The stand-in itself takes part of the time, and much of it on a machine with other work.
    claude.will("for i in $(seq 25); do echo '{}'; sleep 0.1; done; " + says(result("patience")), "sleep 60")
    backend = asking.backend(idle_timeout="2s")

    assert (await asking.ask(backend=backend)).text == "patience"
    with pytest.raises(BackendError, match="idle_timeout") as caught:
        await asking.ask(backend=backend)

    assert caught.value.retryable


async def test_the_total_time_is_limited_when_asked_for(asking: Asking, claude: FakeClaude) -> None:
    claude.always("while :; do echo '{}'; sleep 0.05; done")

    with pytest.raises(BackendError, match="timeout was over"):
        await asking.ask(backend=asking.backend(timeout="300ms"))


@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_cancelling_and_closing_end_the_program(asking: Asking, claude: FakeClaude, how: str) -> None:
    claude.always(f"echo $$ > {claude.folder}/pid; mv {claude.folder}/pid {claude.folder}/here; sleep 60")
    backend = asking.backend()
    task = asyncio.create_task(asking.ask(backend=backend))
    async with asyncio.timeout(10):
        while not (claude.folder / "here").exists():  # noqa: ASYNC110 - another process brings it about
            await asyncio.sleep(0.01)

    if how == "cancel":
        task.cancel()
    else:
        await backend.close()
    await asyncio.wait((task,))

    with pytest.raises(ProcessLookupError):
        os.kill(int((claude.folder / "here").read_text()), 0)
    assert task.cancelled() if how == "cancel" else isinstance(task.exception(), BackendError)


async def test_it_keeps_to_what_a_connection_relies_on(
    asking: Asking, claude: FakeClaude, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "key")
    claude.always(f"if grep -q slow $at/run$run/stdin; then sleep 60; fi; {says(result())}")
    options = {"bin": str(claude.path), "cwd": str(asking.cwd)}

    await check_backend("claude-code", options, slow=make_request("slow"))


async def test_a_program_that_vanished_is_tried_again_later(asking: Asking, claude: FakeClaude) -> None:
    backend = asking.backend()
    claude.path.unlink()

    with pytest.raises(BackendError, match="is not found") as caught:
        await asking.ask(backend=backend)

    assert caught.value.retryable


@pytest.mark.skipif(sys.platform != "linux", reason="marks are found in /proc")
async def test_check_ends_what_an_earlier_process_left_running(asking: Asking) -> None:
    backend = asking.backend()
    runs, mark = backend.config.state_dir / "runs", "0" * 32
    runs.mkdir()
    (runs / f"{mark}.run").touch()
    left = await asyncio.create_subprocess_exec("sleep", "60", env={**os.environ, "MOLECULE_RUN_ID": f"{mark}.1"})

    await backend.check()

    assert await left.wait() == -signal.SIGKILL
    assert list(runs.iterdir()) == []
