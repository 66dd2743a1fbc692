"""Programs that misbehave, and what is left of them: nothing. Incidents 27 to 31, on real processes."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from molecule_connect.errors import ConfigError
from molecule_connect.models import FilePart
from molecule_connect.process.program import (
    Ending,
    Program,
    RunMarks,
    Stop,
    not_started,
    readable,
    request_variables,
    require_posix,
)
from molecule_connect.testing import is_running, make_request, pids_in, until_gone

linux_alone = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="there is no /proc")


def program(command: str | list[str], **options: object) -> Program:
    return Program(command, environment=os.environ, **options)  # type: ignore[arg-type]


async def ending(command: str, **options: object) -> Ending:
    return await program(command, **options).run()


async def lines(command: str, **options: object) -> list[bytes]:
    async with program(command, **options) as started:
        return [line async for line in started.lines()]


def written(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def pids(tmp_path: Path) -> Path:
    return tmp_path / "pids"


async def test_lists_run_directly_and_strings_by_shell() -> None:
    assert (await program(["printf", "%s|", "a b", "$HOME"]).run()).output == b"a b|$HOME|"
    assert (await ending("printf '%s|' a b")).output == b"a|b|"


async def test_starts_with_folder_environment_and_mark(tmp_path: Path) -> None:
    told = await Program("pwd; env", environment={"PATH": os.environ["PATH"], "A": "1"}, cwd=tmp_path).run()

    place, *variables = told.output.decode().splitlines()
    assert place == str(tmp_path)
    assert {line.partition("=")[0] for line in variables} - {"PWD", "SHLVL", "_"} == {"A", "PATH", "MOLECULE_RUN_ID"}


@pytest.mark.parametrize("command", [["no-such-program-here"], ["./no-such-program"]])
async def test_missing_programs_cannot_be_started(command: list[str]) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        await program(command).run()
    assert caught.value.filename == command[0]


async def test_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await ending("pwd", cwd=tmp_path / "gone")


def test_rejects_systems_without_process_groups() -> None:
    with pytest.raises(ConfigError, match="Windows") as caught:
        require_posix("nt")
    assert "WSL" in caught.value.hint


async def test_large_input_and_output_never_deadlock() -> None:
    text = b"x" * 3_000_000

    assert (await ending("cat", stdin=text)).output == text


async def test_a_program_that_reads_nothing_is_fine() -> None:
    assert (await ending("exec 0<&-; echo hi", stdin=b"x" * 3_000_000)).output == b"hi\n"


async def test_lines_have_any_length() -> None:
    found = await lines("head -c 300000 /dev/zero | tr '\\0' x; echo; echo; printf last")

    assert [len(line) for line in found] == [300_000, 0, 4]


async def test_slow_readers_pause_the_program() -> None:
    count = 0
    async with program("yes 0123456789 | head -n 500000") as started:
        async for line in started.lines():
            assert line == b"0123456789"
            count += 1
            if count == 1:
                await asyncio.sleep(0.2)
        assert (await started.finish()).stop is Stop.NONE

    assert count == 500_000


async def test_ending_holds_output_not_read_as_lines() -> None:
    async with program("echo one; echo two; exit 3") as started:
        async for line in started.lines():
            assert line == b"one"
            break
        ended = await started.finish()

    assert (ended.output, ended.status, ended.stop) == (b"two\n", 3, Stop.NONE)


@pytest.mark.parametrize("read", [ending, lines])
async def test_an_endless_line_is_cut_off(read: Callable[..., object]) -> None:
    command = "tr '\\0' x < /dev/zero"
    if read is lines:
        assert await lines(command, most_bytes=100_000) == []
    else:
        assert (await ending(command, most_bytes=100_000)).stop is Stop.OUTPUT


async def test_keeps_a_harmless_end_of_stderr() -> None:
    ended = await ending("yes no | head -n 5000 >&2; printf '\\033[31mbad\\a\\nthing\\033[0m' >&2; exit 3")

    assert ended.error_tail.endswith("no bad thing")
    assert len(ended.error_tail) < 2100
    assert readable(b"\x1b]0;title\x07a\xff") == "a\N{REPLACEMENT CHARACTER}"


async def test_idle_timeout_ends_only_silent_programs() -> None:
    # All of it takes longer than the limit, and no part of it nearly as long.
    silent, busy, murmuring = await asyncio.gather(
        ending("echo hi; sleep 60", idle_timeout=2),
        ending("for i in 1 2 3 4 5; do echo $i; sleep 0.5; done", idle_timeout=2),
        ending("for i in 1 2 3 4 5; do echo $i >&2; sleep 0.5; done; echo done", idle_timeout=2),
    )

    assert (silent.stop, silent.output) == (Stop.IDLE, b"hi\n")
    assert (busy.stop, busy.output) == (Stop.NONE, b"1\n2\n3\n4\n5\n")
    assert (murmuring.stop, murmuring.output) == (Stop.NONE, b"done\n")


async def test_total_timeout_ends_busy_programs() -> None:
    ended = await ending("while :; do echo x; sleep 0.05; done", idle_timeout=30, timeout=0.3)

    assert ended.stop is Stop.TOTAL


async def test_finish_accepts_its_own_limit() -> None:
    async with program("echo result; sleep 60") as started:
        async for _ in started.lines():
            break
        assert (await started.finish(within=0.1)).stop is Stop.TOTAL


async def test_closing_output_while_running_ends_soon() -> None:
    ended = await ending("echo hi; exec >&- 2>&-; sleep 60", closed_seconds=0.1)

    assert (ended.stop, ended.output) == (Stop.CLOSED, b"hi\n")


async def test_closing_output_and_exiting_keeps_the_status() -> None:
    ended = await ending("echo hi; exec >&-; sleep 0.1; exit 3")

    assert (ended.stop, ended.status) == (Stop.NONE, 3)


@pytest.mark.parametrize("how", ["timeout", "cancel", "end"])
async def test_whole_group_ends_even_if_it_resists(pids: Path, how: str) -> None:
    grandchild = f"sh -c 'echo $PPID' >> {pids}; sleep 60; true"
    stubborn = f"trap '' TERM; ({grandchild}) & echo $$ >> {pids}; sleep 60; true"
    started = program(stubborn, term_seconds=0.2)

    async def run() -> Ending:
        async with started:
            await pids_in(pids, 2)
            return await started.finish(within=0.1 if how == "timeout" else None)

    task = asyncio.create_task(run())
    running = await pids_in(pids, 2)

    if how == "cancel":
        task.cancel()
    elif how == "end":
        await started.end()
    await asyncio.wait((task,))

    await until_gone(*running)
    assert task.cancelled() if how == "cancel" else task.result().status == -signal.SIGKILL
    assert how == "cancel" or task.result().stop is (Stop.TOTAL if how == "timeout" else Stop.ASKED)


async def test_obedient_programs_end_before_the_grace() -> None:
    ended = await ending("sleep 60", timeout=0.1, term_seconds=60)

    assert ended.status == -signal.SIGTERM


async def test_a_second_cancellation_kills_at_once(pids: Path) -> None:
    task = asyncio.create_task(ending(f"trap '' TERM; echo $$ >> {pids}; sleep 60; true", term_seconds=60))
    (pid,) = await pids_in(pids, 1)

    task.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait((task,))

    await until_gone(pid)
    assert task.cancelled()


async def test_cancelled_while_it_starts_leaves_nothing_behind(pids: Path) -> None:
    task = asyncio.create_task(ending(f"echo $$ >> {pids}; sleep 60; true"))
    await asyncio.sleep(0)

    task.cancel()
    await asyncio.wait((task,))

    assert task.cancelled()
    assert not any(map(is_running, written(pids)))


async def test_two_cancellations_during_start_leave_nothing(pids: Path) -> None:
    task = asyncio.create_task(ending(f"echo $$ >> {pids}; sleep 60; true"))
    await asyncio.sleep(0)

    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
    await asyncio.wait((task,))
    await asyncio.sleep(0.2)

    assert task.cancelled()
    await until_gone(*written(pids))


async def test_ending_during_start_leaves_nothing_running(pids: Path) -> None:
    started = program(f"echo $$ >> {pids}; sleep 60; true")
    task = asyncio.create_task(started.run())
    await asyncio.sleep(0)

    await started.end()

    assert (await task).stop is Stop.ASKED
    assert not any(map(is_running, written(pids)))


async def test_grandchildren_holding_output_delay_no_result(pids: Path) -> None:
    assert (await ending(f"sleep 60 & echo $! >> {pids}; echo done")).output == b"done\n"
    assert await lines(f"sleep 60 & echo $! >> {pids}; echo done") == [b"done"]
    await until_gone(*await pids_in(pids, 2))


async def test_no_zombie_is_left(pids: Path) -> None:
    await ending(f"echo $$ >> {pids}; echo hi")

    (pid,) = written(pids)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


QUIET = "</dev/null >/dev/null 2>&1"


@linux_alone
@pytest.mark.parametrize(
    "leaving",
    [
        pytest.param("(sh -c 'echo $$ >> {pids}; exec sleep 60' {quiet} &)", id="in the group"),
        pytest.param("setsid sh -c 'echo $$ >> {pids}; exec sleep 60' {quiet} &", id="another session"),
        pytest.param("(setsid sh -c '(echo $$ >> {pids}; exec sleep 60) & exit' {quiet} &)", id="double fork"),
        pytest.param("setsid sh -c 'echo $$ >> {pids}; exec sleep 60' &", id="another session that holds the output"),
        pytest.param("setsid sh -c \"trap '' TERM; echo \\$\\$ >> {pids}; sleep 60; :\" {quiet} &", id="stubborn"),
    ],
)
@pytest.mark.parametrize("ends", ["by itself", "by a limit"])
async def test_nothing_that_a_program_started_outlives_it(pids: Path, leaving: str, ends: str) -> None:
    written_first = f"while [ ! -s {pids} ]; do sleep 0.01; done"
    command = f"{leaving.format(pids=pids, quiet=QUIET)}\n{written_first}; echo hi"
    limit = 0.1 if ends == "by a limit" else None
    if limit is not None:
        command += "; sleep 60"

    async with program(command, term_seconds=0.3) as started:
        assert await anext(started.lines()) == b"hi"
        ended = await started.finish(within=limit)

    assert ended.stop is (Stop.NONE if limit is None else Stop.TOTAL)
    await until_gone(*written(pids))


@linux_alone
async def test_another_programs_children_are_left_alone(pids: Path) -> None:
    async with program(f"setsid sh -c 'echo $$ >> {pids}; exec sleep 60' & sleep 60"):
        (pid,) = await pids_in(pids, 1)
        await ending("true")

        assert is_running(pid)
    await until_gone(pid)


def begin(folder: Path) -> RunMarks:
    """What the first run of a new process does, and its end."""
    marks = RunMarks(folder)
    marks.new()
    marks.close()
    return marks


def owner(pids: Path, folder: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", OWNER, str(pids), str(folder)])


OWNER = """
import asyncio, os, sys
from pathlib import Path
from molecule_connect.process.program import Program, RunMarks

pids, folder = sys.argv[1:]
stray = f"setsid sh -c 'echo $$ >> {pids}; exec sleep 60' </dev/null >/dev/null 2>&1 &"
command = f"({stray}); echo $$ >> {pids}; sleep 60; :"
asyncio.run(Program(command, environment=os.environ, marks=RunMarks(Path(folder))).run())
"""


@linux_alone
async def test_kills_leftovers_of_a_crash(pids: Path, tmp_path: Path) -> None:
    process = owner(pids, tmp_path)
    left = await pids_in(pids, 2)

    begin(tmp_path)
    assert all(map(is_running, left)), "the owner lives, and its record is locked"
    process.kill()
    process.wait()
    assert any(map(is_running, left)), "nothing was left behind: the test shows nothing"
    begin(tmp_path)

    await until_gone(*left)
    assert list((tmp_path / "runs").iterdir()) == []


@linux_alone
async def test_kills_leftovers_without_an_own_run(pids: Path, tmp_path: Path) -> None:
    process = owner(pids, tmp_path)
    left = await pids_in(pids, 2)

    RunMarks(tmp_path).sweep()
    assert all(map(is_running, left)), "the owner lives, and its record is locked"
    process.kill()
    process.wait()
    RunMarks(tmp_path).sweep()

    await until_gone(*left)
    assert list((tmp_path / "runs").iterdir()) == []


def test_sweeping_nothing_creates_nothing(tmp_path: Path) -> None:
    RunMarks(tmp_path).sweep()
    RunMarks().sweep()

    assert list(tmp_path.iterdir()) == []


async def test_the_record_goes_with_its_marks(tmp_path: Path) -> None:
    marks = RunMarks(lambda: tmp_path)
    first, second = marks.new(), marks.new()

    assert [path.name for path in (tmp_path / "runs").iterdir()] == [f"{first.partition('.')[0]}.run"]
    assert first != second
    marks.close()
    marks.close()
    assert list((tmp_path / "runs").iterdir()) == []


@linux_alone
async def test_the_program_itself_dies_with_us(pids: Path, tmp_path: Path) -> None:
    if not begin(tmp_path).death_watch:
        pytest.skip("there is no setpriv that knows --pdeathsig")
    process = owner(pids, tmp_path)
    left = await pids_in(pids, 2)

    process.kill()
    process.wait()

    gone = [asyncio.ensure_future(until_gone(pid)) for pid in left]
    first, others = await asyncio.wait(gone, return_when=asyncio.FIRST_COMPLETED)
    for other in others:
        other.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.gather(*first)
    begin(tmp_path)
    await until_gone(*left)


def test_request_variables_are_bounded_together(caplog: pytest.LogCaptureFixture) -> None:
    here = [FilePart(uri="x", path=Path(f"/state/ws/files/{number:032x}-{'n' * 100}")) for number in range(2000)]
    long = "ü" * 100_000
    request = make_request(caller_id=long, message_id=long, task_id=long, method=long, parts=here)

    variables = request_variables(request, files=True)

    assert sum(len(f"{name}={value}".encode()) + 1 for name, value in variables.items()) < 64 * 1024
    assert variables["MOLECULE_CALLER_ID"] == "ü" * 512
    paths = variables["MOLECULE_FILES"].split("\n")
    assert paths == [str(part.path) for part in here[: len(paths)]]
    assert len(paths) > 200
    assert "cut MOLECULE_FILES" in caplog.text


def test_missing_files_are_in_no_variable() -> None:
    request = make_request(parts=(FilePart(uri="file:///etc/passwd", name="/etc/passwd"),))

    assert request_variables(request, files=True)["MOLECULE_FILES"] == ""
    assert "MOLECULE_FILES" not in request_variables(request)


@linux_alone
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="asyncio waits for a child without a thread")
async def test_unwatchable_children_are_killed(monkeypatch: pytest.MonkeyPatch, pids: Path) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(OSError, match="no more threads") as caught:
        await program(f"echo $$ >> {pids}; read line; touch {pids}.late").run()
    assert caught.value.errno == errno.EAGAIN
    assert not_started("it could not be started", caught.value).retry_after
    for pid in written(pids):
        await until_gone(pid)
    assert pids.with_suffix(".late") not in set(pids.parent.iterdir())


def test_only_shortages_cost_no_attempt() -> None:
    assert not_started("x", OSError(errno.ENOMEM, "no memory")).retry_after
    other = not_started("x", OSError(errno.ENOENT, "no such file"))
    assert (str(other), other.retryable, other.retry_after) == ("x: no such file", True, None)
