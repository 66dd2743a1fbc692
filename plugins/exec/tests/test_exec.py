"""The exec backend, on real processes."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from molecule_connect import (
    BackendConfig,
    BackendError,
    ConfigError,
    FilePart,
    OptionError,
    Request,
    Response,
    TextPart,
    create_backend,
)
from molecule_connect.testing import check_backend, is_running, make_request, pids_in, until_gone
from molecule_connect_exec import ExecBackend
from molecule_connect_exec.shells import shell_line


async def unheard(update: str | Response, /) -> None:
    raise AssertionError(f"nothing was to be told, and not {update}")


async def response(cmd: str, request: Request | None = None, **options: Any) -> Response:
    backend = ExecBackend(cmd=cmd, **{"timeout": 20.0, **options})
    return await backend.handle_a2a(request or make_request(), unheard)


async def answer(cmd: str, text: str = "hello", **options: Any) -> str:
    return (await response(cmd, make_request(text), **options)).text


async def failure(cmd: str, **options: Any) -> BackendError:
    with pytest.raises(BackendError) as caught:
        await answer(cmd, **options)
    return caught.value


async def test_text_is_stdin_and_output_the_reply() -> None:
    assert await answer("tr a-z A-Z") == "HELLO"


@pytest.mark.parametrize(("printed", "expected"), [("a\\n", "a"), ("a\\r\\n", "a"), ("a\\n\\n", "a\n"), (" a", " a")])
async def test_removes_one_trailing_newline(printed: str, expected: str) -> None:
    assert await answer(f"printf '{printed}'") == expected


async def test_text_is_utf8_with_invalid_bytes_replaced() -> None:
    assert await answer("cat", "grüße 🦊") == "grüße 🦊"
    assert await answer("cat", "half \ud800") == "half ?"
    assert await answer(r"printf 'a\377b'") == "a�b"


async def test_large_input_and_output_never_deadlock() -> None:
    text = "x" * 3_000_000

    assert await answer("cat", text) == text


async def test_a_command_that_reads_nothing_is_fine() -> None:
    assert await answer("exec 0<&-; echo hi", "x" * 3_000_000) == "hi"


async def test_failures_are_retried_with_stderr_tail() -> None:
    error = await failure("yes no | head -n 5000 >&2; printf '\\033[31mbad\\a\\nthing\\033[0m' >&2; exit 3")

    assert error.retryable
    assert "exit status 3: " in str(error)
    assert str(error).endswith("no bad thing")
    assert len(str(error)) < 2200


async def test_signals_are_retried() -> None:
    error = await failure("kill -9 $$")

    assert error.retryable
    assert "signal 9" in str(error)


@pytest.mark.parametrize("cmd", ["true", "echo", "printf ' \\n\\n'"])
async def test_empty_output_fails_without_retry(cmd: str) -> None:
    error = await failure(cmd)

    assert not error.retryable
    assert "no answer" in str(error)


async def test_reads_long_lines_as_a_whole() -> None:
    assert len(await answer("head -c 300000 /dev/zero | tr '\\0' x")) == 300_000


async def test_obedient_commands_end_before_the_grace() -> None:
    error = await failure("sleep 60", timeout=0.1)

    assert error.retryable
    assert "still running after 0.1 s" in str(error)


async def test_grandchildren_holding_output_delay_no_reply(tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    assert await answer(f"sleep 60 & echo $! >> {pids}; echo done") == "done"
    (pid,) = await pids_in(pids, 1)
    await until_gone(pid)


async def test_the_meta_variables_are_passed_on_request() -> None:
    show = 'echo "$MOLECULE_WORKSPACE_ID|$MOLECULE_CALLER_ID|$MOLECULE_MESSAGE_ID|$MOLECULE_TASK_ID|$MOLECULE_METHOD"'
    request = make_request(
        workspace_id="ws_9", caller_id=None, message_id="m\0\ud8001", task_id="t1", method="message/send"
    )

    told = await response(show, request, pass_meta=True)
    untold = await response(show, request)

    assert told.text == "ws_9||m?1|t1|message/send"
    assert untold.text == "||||"


@pytest.mark.parametrize("options", [{}, {"env": "PATH"}, {"pass_meta": True}])
async def test_trace_of_the_message_is_passed(options: dict[str, Any]) -> None:
    traced = await response('echo "[$TRACEPARENT]"', make_request(trace="00-1-2-01"), **options)
    untraced = await response('echo "[$TRACEPARENT]"', make_request(), **options)
    assert (traced.text, untraced.text) == ("[00-1-2-01]", "[]")


async def test_the_token_is_not_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MOLECULE_WORKSPACE_TOKEN", "MOLECULE_WORKSPACE_TOKEN_FILE", "MOLECULE_WORKSPACES", "MY_COPY"):
        monkeypatch.setenv(name, "tok-secret")
    monkeypatch.setenv("GIVEN", "tok-given")
    monkeypatch.setenv("EMPTY", "")
    config = BackendConfig(name="exec", secrets=frozenset({"tok-given"}))

    shown = await answer("env", config=config)

    assert "tok-" not in shown
    assert "MOLECULE_WORKSPACE" not in shown
    assert "EMPTY=" in shown


async def test_closing_ends_what_still_runs(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    backend = ExecBackend(cmd=f"echo $$ >> {pids}; sleep 60; true")
    task = asyncio.create_task(backend.handle_a2a(make_request(), unheard))
    (pid,) = await pids_in(pids, 1)

    await backend.close()

    assert not is_running(pid)
    with pytest.raises(BackendError, match="signal 15"):
        await task


@pytest.mark.parametrize(
    ("cmd", "problem"),
    [
        ("no-such-program-here --x", "cannot find 'no-such-program-here'"),
        ("if true; then", "cannot parse cmd"),
        ("tr a-z A-Z", ""),
        ("cd / && ls", ""),
        (f"{sys.executable} -V", ""),
        ("A=1 no-such-program-here", ""),
        ("$PROGRAM x", ""),
    ],
)
def test_check_finds_missing_programs(cmd: str, problem: str) -> None:
    found = "".join(ExecBackend(cmd=cmd).check())

    assert problem in found
    assert bool(problem) == bool(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "'cmd'"),
        ({"cmd": "  "}, "'cmd'"),
        ({"cmd": "cat", "timeout": "soon"}, "'timeout'"),
        ({"cmd": "cat", "pass_meta": "maybe"}, "'pass_meta'"),
        ({"cmd": "cat", "format": "xml"}, "'format'"),
        ({"cmd": "cat", "concurrency": "0"}, "'concurrency'"),
        ({"cmd": "cat", "output_cap": "-1"}, "'output_cap'"),
        ({"cmd": "cat", "exit_codes": "3"}, "'exit_codes'"),
        ({"cmd": "cat", "exit_codes": "3:later"}, "'exit_codes'"),
        ({"cmd": "cat", "exit_codes": "0:silent"}, "'exit_codes'"),
        ({"cmd": "cat", "exit_codes": "9-3:silent"}, "'exit_codes'"),
        ({"cmd": "cat", "exit_codes": "256:silent"}, "'exit_codes'"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        create_backend("exec", options)


def test_options_are_read_from_text() -> None:
    given = {"cmd": "cat", "timeout": "1h30m", "idle_timeout": "0", "pass_meta": "yes", "cwd": "~/x", "env": "PATH"}
    backend = create_backend("exec", {**given, "exit_codes": ["3:silent", "*:permanent"]})

    assert (backend.timeout, backend.idle_timeout, backend.pass_meta) == (5400.0, 0.0, True)
    assert (backend.cwd, backend.env) == (Path.home() / "x", ["PATH"])
    assert backend.exit_codes == ["3:silent", "*:permanent"]


def test_the_command_is_in_no_repr() -> None:
    assert "s3cret" not in repr(ExecBackend(cmd="curl -H 'Authorization: s3cret'"))


async def test_idle_timeout_retries_only_silent_commands() -> None:
    # What it writes has two seconds to come: a machine with other work starts a shell slowly.
    error, busy = await asyncio.gather(
        failure("echo started >&2; sleep 60", idle_timeout=2.0),
        answer("for i in $(seq 25); do sleep 0.1; echo $i; done", idle_timeout=2.0, timeout=0.0),
    )

    assert error.retryable
    assert str(error) == "the command wrote nothing for 2 s: started"
    assert busy.split() == [str(number) for number in range(1, 26)]


async def test_oversized_output_fails_without_retry() -> None:
    error = await failure("yes", output_cap=10_000)

    assert not error.retryable
    assert str(error) == "the command printed more than 10000 bytes"


async def test_closed_output_completes_the_reply() -> None:
    assert await answer("echo done; exec >&- 2>&-; sleep 60") == "done"


@pytest.mark.parametrize(
    ("status", "retryable"), [(1, True), (64, False), (70, True), (78, False), (75, True), (126, False)]
)
async def test_a_status_means_what_the_operator_says(status: int, retryable: bool) -> None:
    rules = ["100-255:permanent", "64-78:permanent", "70:retry", "3:silent", "75:permanent", "75:retry"]

    error = await failure(f"exit {status}", exit_codes=rules)

    assert error.retryable is retryable
    assert f"exit status {status}" in str(error)
    assert (await response("echo ignored; exit 3", exit_codes=rules)).is_silent


async def test_every_status_but_some_can_be_permanent() -> None:
    rules = ["75:retry", "*:permanent"]

    assert (await failure("exit 75", exit_codes=rules)).retryable
    assert not (await failure("exit 1", exit_codes=rules)).retryable
    assert (await failure("kill -9 $$", exit_codes=rules)).retryable


async def test_it_runs_in_its_folder(tmp_path: Path) -> None:
    backend = ExecBackend(cmd="./here", cwd=tmp_path)
    assert backend.check() == [
        "the shell cannot find './here', the first word of cmd; install it, or use its full path"
    ]
    (tmp_path / "here").write_text("#!/bin/sh\npwd\n")
    (tmp_path / "here").chmod(0o755)

    assert backend.check() == []
    assert (await backend.handle_a2a(make_request(), unheard)).text == str(tmp_path)


async def test_missing_folders_are_problems(tmp_path: Path) -> None:
    gone = tmp_path / "gone"

    error = await failure("pwd", cwd=gone)

    assert error.retryable
    assert str(gone) in str(error)
    assert ExecBackend(cmd="pwd", cwd=gone).check() == [f"cwd is not a folder: {gone}"]


async def test_passes_only_allowed_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LC_ONE", "LC_TWO", "OTHER", "MOLECULE_WORKSPACE_TOKEN"):
        monkeypatch.setenv(name, f"value of {name}")

    shown = await answer("env", env=["PATH", "LC_*", "MOLECULE_WORKSPACE_TOKEN"], pass_meta=True)

    names = {line.partition("=")[0] for line in shown.splitlines()} - {"PWD", "SHLVL", "_"}
    meta = {f"MOLECULE_{name}" for name in ("WORKSPACE_ID", "CALLER_ID", "MESSAGE_ID", "TASK_ID", "METHOD", "FILES")}
    assert names == {"PATH", "LC_ONE", "LC_TWO", "MOLECULE_RUN_ID", *meta}


async def test_limits_concurrent_commands(tmp_path: Path) -> None:
    # Two at once would find each other's folder.
    cmd = f"mkdir {tmp_path}/only && sleep 0.05 && rmdir {tmp_path}/only && echo alone"
    backend = ExecBackend(cmd=cmd, concurrency=1)

    answers = await asyncio.gather(*(backend.handle_a2a(make_request(), unheard) for _ in range(3)))

    assert [each.text for each in answers] == ["alone"] * 3


FILES = (
    FilePart(uri="platform://1", name="a.txt", path=Path("/data/a.txt")),
    FilePart(uri="platform://2", name="b\nc.txt"),
    FilePart(uri="data:text/plain;base64,eA=="),
)


async def test_a_message_without_text_is_its_files() -> None:
    alone = make_request(parts=FILES)
    beside = make_request(parts=(TextPart("look"), *FILES))

    assert (await response("cat", alone)).text == "/data/a.txt\nunavailable:b_c.txt\nunavailable:unnamed"
    assert (await response("cat", beside)).text == "look"
    assert (await response('echo "$MOLECULE_FILES"', beside, pass_meta=True)).text == "/data/a.txt"


@pytest.mark.parametrize(
    "uri", ["file:///etc/passwd", "FILE:/etc/passwd", "/etc/passwd", "../secret", "~/x", "x\n/y", "https://h/x"]
)
@pytest.mark.parametrize("name", ["", "/etc/passwd", ".env", "-rf", "a b /etc/passwd", "..", "\u2028/etc/passwd"])
async def test_missing_files_never_look_like_paths(uri: str, name: str) -> None:
    request = make_request(parts=(FilePart(uri=uri, name=name),))

    (word,) = (await response("cat", request)).text.split()
    assert word.startswith("unavailable:")
    assert "/" not in word
    assert (await response('echo "[$MOLECULE_FILES]"', request, pass_meta=True)).text == "[]"


@pytest.mark.parametrize("mode", ["text", "json"])
async def test_long_ids_are_cut_for_the_environment(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    long = "m" * 200_000
    request = make_request(caller_id=long, message_id=long, task_id=long, method=long)
    show = 'echo "{\\"text\\": \\"${#MOLECULE_MESSAGE_ID} ${#MOLECULE_CALLER_ID} ${#MOLECULE_TASK_ID}\\"}"'

    told = await response(show, request, pass_meta=True, format=mode)

    assert "1024 1024 1024" in told.text
    assert "cut MOLECULE_MESSAGE_ID from 200000 to 1024 bytes" in caplog.text


def records(folder: Path) -> list[Path]:
    return list(folder.rglob("*.run"))


async def test_records_runs_before_start_until_end(tmp_path: Path) -> None:
    backend = create_backend("exec", {"cmd": "echo $MOLECULE_RUN_ID"}, workspace_id="ws", state_dir=tmp_path)

    mark = (await backend.handle_a2a(make_request(), unheard)).text

    (record,) = records(tmp_path)
    assert mark.startswith(f"{record.stem}.")
    await backend.close()
    assert records(tmp_path) == []


def test_windows_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match="Windows"):
        shell_line("dir", platform="nt")
    assert shell_line("ls", platform="posix") == ["/bin/sh", "-c", "ls"]


@pytest.mark.parametrize("options", [{"cmd": "cat"}, {"cmd": "cat", "format": "json", "pass_meta": "yes"}])
async def test_passes_check_backend(options: dict[str, str]) -> None:
    await check_backend("exec", options)


async def test_running_commands_are_cancelled_within_a_second() -> None:
    slow = "if grep -q slow; then sleep 60; fi; echo done"

    await check_backend("exec", {"cmd": slow}, slow=make_request("slow"))


@pytest.mark.skipif(sys.platform != "linux", reason="marks are found in /proc")
async def test_check_kills_leftovers_of_earlier_processes(tmp_path: Path) -> None:
    backend: Any = create_backend("exec", {"cmd": "cat"}, workspace_id="ws_1", state_dir=tmp_path)
    runs, mark = backend.config.state_dir / "runs", "0" * 32
    runs.mkdir()
    (runs / f"{mark}.run").touch()
    left = await asyncio.create_subprocess_exec("sleep", "60", env={**os.environ, "MOLECULE_RUN_ID": f"{mark}.1"})

    assert await asyncio.to_thread(backend.check) == []

    assert await left.wait() == -signal.SIGKILL
    assert list(runs.iterdir()) == []


@pytest.mark.parametrize("cmd", ["cat\r", "cat\r\ncat", "cat |\r\ncat", "tr a-z A-Z\r"])
def test_check_rejects_windows_line_endings(cmd: str) -> None:
    (problem,) = ExecBackend(cmd=cmd).check()
    assert "carriage return" in problem


def test_accepts_carriage_returns_inside_commands() -> None:
    assert ExecBackend(cmd="printf 'a\rb'").check() == []
