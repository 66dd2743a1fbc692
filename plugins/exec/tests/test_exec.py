"""The exec backend, on real processes."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from molecule_connect import BackendConfig, BackendError, OptionError, create_backend
from molecule_connect.testing import make_request
from molecule_connect_exec import ExecBackend
from molecule_connect_exec.shell import ShellCommand


async def answer(cmd: str, text: str = "hello", *, timeout: float = 20.0) -> str:
    return (await ExecBackend(cmd=cmd, timeout=timeout).handle_a2a(make_request(text))).text


async def failure(cmd: str, *, timeout: float = 20.0) -> BackendError:
    with pytest.raises(BackendError) as caught:
        await answer(cmd, timeout=timeout)
    return caught.value


def is_running(pid: int) -> bool:
    """A zombie that nobody collects has ended all the same."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return not Path("/proc").is_dir()
    except ProcessLookupError:
        return False
    return state not in "ZX"


def written(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


async def until(condition: Callable[[], bool]) -> None:
    """Another process brings it about, so there is no event to wait for."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def pids_in(file: Path, count: int) -> list[int]:
    await until(lambda: len(written(file)) >= count)
    return written(file)


async def until_gone(*pids: int) -> None:
    await until(lambda: not any(map(is_running, pids)))


async def test_the_text_comes_on_standard_input_and_the_output_is_the_answer() -> None:
    assert await answer("tr a-z A-Z") == "HELLO"


@pytest.mark.parametrize(("printed", "expected"), [("a\\n", "a"), ("a\\r\\n", "a"), ("a\\n\\n", "a\n"), (" a", " a")])
async def test_one_newline_at_the_end_is_taken_off(printed: str, expected: str) -> None:
    assert await answer(f"printf '{printed}'") == expected


async def test_text_is_utf8_both_ways_and_what_is_not_is_replaced() -> None:
    assert await answer("cat", "grüße 🦊") == "grüße 🦊"
    assert await answer("cat", "half \ud800") == "half ?"
    assert await answer(r"printf 'a\377b'") == "a�b"


async def test_a_large_input_and_a_large_output_at_once_do_not_wait_for_each_other() -> None:
    text = "x" * 3_000_000

    assert await answer("cat", text) == text


async def test_a_command_that_reads_nothing_is_fine() -> None:
    assert await answer("exec 0<&-; echo hi", "x" * 3_000_000) == "hi"


async def test_a_command_that_fails_is_tried_again_and_says_what_it_wrote_last() -> None:
    error = await failure("yes no | head -n 5000 >&2; printf '\\033[31mbad\\a\\nthing\\033[0m' >&2; exit 3")

    assert error.retryable
    assert "exit status 3: " in str(error)
    assert str(error).endswith("no bad thing")
    assert len(str(error)) < 2200


async def test_a_command_ended_by_a_signal_is_tried_again() -> None:
    error = await failure("kill -9 $$")

    assert error.retryable
    assert "signal 9" in str(error)


@pytest.mark.parametrize("cmd", ["true", "echo", "printf ' \\n\\n'"])
async def test_a_command_that_prints_nothing_has_no_answer_and_is_not_tried_again(cmd: str) -> None:
    error = await failure(cmd)

    assert not error.retryable
    assert "no answer" in str(error)


async def test_an_endless_output_is_cut_off() -> None:
    command = ShellCommand("yes", b"", {"PATH": os.environ["PATH"]}, most_bytes=100_000)

    ending = await command.run(20)

    assert ending.too_long


async def test_a_line_of_300_kilobytes_is_read_whole() -> None:
    assert len(await answer("head -c 300000 /dev/zero | tr '\\0' x")) == 300_000


@pytest.mark.parametrize("how", ["timeout", "cancel", "close"])
async def test_the_whole_group_ends_even_if_it_ignores_the_request(tmp_path: Path, how: str) -> None:
    pids = tmp_path / "pids"
    grandchild = f"sh -c 'echo $PPID' >> {pids}; sleep 60; true"
    stubborn = f"trap '' TERM; ({grandchild}) & echo $$ >> {pids}; sleep 60; true"
    command = ShellCommand(stubborn, b"", os.environ, term_seconds=0.2)
    task = asyncio.create_task(command.run(0.5 if how == "timeout" else 60))
    running = await pids_in(pids, 2)

    if how == "cancel":
        task.cancel()
    elif how == "close":
        await command.end()
    await asyncio.wait((task,))

    await until_gone(*running)
    assert task.cancelled() if how == "cancel" else task.result().status == -signal.SIGKILL
    assert how != "timeout" or task.result().timed_out


async def test_a_command_that_obeys_ends_without_the_grace() -> None:
    error = await failure("sleep 60", timeout=0.1)

    assert error.retryable
    assert "still running after 0.1 s" in str(error)


async def test_a_second_cancellation_kills_at_once(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    command = ShellCommand(f"trap '' TERM; echo $$ >> {pids}; sleep 60; true", b"", os.environ, term_seconds=60)
    task = asyncio.create_task(command.run(60))
    (pid,) = await pids_in(pids, 1)

    task.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait((task,))

    await until_gone(pid)
    assert task.cancelled()


async def test_cancelled_while_it_starts_leaves_nothing_behind(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    task = asyncio.create_task(ShellCommand(f"echo $$ >> {pids}; sleep 60; true", b"", os.environ).run(60))
    await asyncio.sleep(0)

    task.cancel()
    await asyncio.wait((task,))

    assert task.cancelled()
    assert not any(map(is_running, written(pids)))


async def test_a_grandchild_that_holds_the_output_does_not_hold_the_answer(tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    assert await answer(f"sleep 60 & echo $! >> {pids}; echo done") == "done"
    (pid,) = await pids_in(pids, 1)
    await until_gone(pid)


async def test_no_zombie_is_left(tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    await answer(f"echo $$ >> {pids}; echo hi")

    with pytest.raises(ProcessLookupError):
        os.kill(int(pids.read_text()), 0)


async def test_the_meta_variables_are_passed_on_request() -> None:
    show = 'echo "$MOLECULE_WORKSPACE_ID|$MOLECULE_CALLER_ID|$MOLECULE_MESSAGE_ID|$MOLECULE_TASK_ID|$MOLECULE_METHOD"'
    request = make_request(
        workspace_id="ws_9", caller_id=None, message_id="m\0\ud8001", task_id="t1", method="message/send"
    )

    told = await ExecBackend(cmd=show, pass_meta=True).handle_a2a(request)
    untold = await ExecBackend(cmd=show).handle_a2a(request)

    assert told.text == "ws_9||m?1|t1|message/send"
    assert untold.text == "||||"


async def test_the_token_is_not_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MOLECULE_WORKSPACE_TOKEN", "MOLECULE_WORKSPACE_TOKEN_FILE", "MOLECULE_WORKSPACES", "MY_COPY"):
        monkeypatch.setenv(name, "tok-secret")
    monkeypatch.setenv("GIVEN", "tok-given")
    monkeypatch.setenv("EMPTY", "")
    config = BackendConfig(name="exec", secrets=frozenset({"tok-given"}))

    shown = (await ExecBackend(cmd="env", config=config).handle_a2a(make_request())).text

    assert "tok-" not in shown
    assert "MOLECULE_WORKSPACE" not in shown
    assert "EMPTY=" in shown


async def test_closing_ends_what_still_runs(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    backend = ExecBackend(cmd=f"echo $$ >> {pids}; sleep 60; true")
    task = asyncio.create_task(backend.handle_a2a(make_request()))
    (pid,) = await pids_in(pids, 1)

    await backend.close()

    assert not is_running(pid)
    with pytest.raises(BackendError, match="signal 15"):
        await task


@pytest.mark.parametrize(
    ("cmd", "problem"),
    [
        ("no-such-program-here --x", "does not find 'no-such-program-here'"),
        ("if true; then", "cannot read cmd"),
        ("tr a-z A-Z", ""),
        ("cd / && ls", ""),
        (f"{sys.executable} -V", ""),
        ("A=1 no-such-program-here", ""),
        ("$PROGRAM x", ""),
    ],
)
def test_the_check_finds_a_missing_program_where_it_can_be_told(cmd: str, problem: str) -> None:
    found = ExecBackend(cmd=cmd).check()

    assert problem in found if problem and found else not (found or problem)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "'cmd'"),
        ({"cmd": "  "}, "'cmd'"),
        ({"cmd": "cat", "timeout": "0s"}, "'timeout'"),
        ({"cmd": "cat", "timeout": "soon"}, "'timeout'"),
        ({"cmd": "cat", "pass_meta": "maybe"}, "'pass_meta'"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        create_backend("exec", options)


def test_options_are_read_from_text() -> None:
    backend = create_backend("exec", {"cmd": "cat", "timeout": "1h30m", "pass_meta": "yes"})

    assert (backend.timeout, backend.pass_meta) == (5400.0, True)


def test_the_command_is_in_no_repr() -> None:
    assert "s3cret" not in repr(ExecBackend(cmd="curl -H 'Authorization: s3cret'"))
