"""Run a program in its own session: feed it, read it, limit it, and end it with everything it started.

    async with Program(["report", "--json"], environment=config.child_environment(), stdin=b"...") as program:
        async for line in program.lines():
            ...
        ending = await program.finish()

POSIX only. On Linux, processes that left the process group are found by a mark in their environment.
"""

import asyncio
import contextlib
import enum
import errno
import logging
import os
import shutil
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import attrs

from molecule_connect.errors import BackendError, ConfigError
from molecule_connect.models import FilePart, Request
from molecule_connect.process.orphans import VARIABLE, RunMarks, kill_marked, running_processes
from molecule_connect.process.pipes import Pipes, readable

__all__ = ["Ending", "Program", "RunMarks", "Stop", "not_started", "readable", "request_variables", "require_posix"]

# Linux limits a variable to 128 KiB, and all variables and arguments together to at least 128 KiB. Platform ids have at
# most 128 characters.
LONGEST_FACT, LONGEST_FILES = 1024, 32 * 1024
_log = logging.getLogger(__name__)
MOST_BYTES = 32 * 2**20
TERM_SECONDS = 5.0
# How long grandchildren may keep the output open after the program has ended.
LINGER_SECONDS = 0.5
CLOSED_SECONDS = 5.0
# Retry delay when this machine has run out of processes, memory or open files.
SHORTAGE_WAIT = 5.0
_SHORTAGES = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
# How long to wait for the process id of a child that asyncio failed to watch.
_KNOWN_SECONDS = 1.0


class Stop(enum.Enum):
    """Why a program was ended."""

    NONE = "it ended by itself"
    TOTAL = "it ran for too long"
    IDLE = "it wrote nothing for too long"
    OUTPUT = "it wrote too much"
    CLOSED = "it closed its output and kept running"
    ASKED = "it was asked to end"


@attrs.frozen(kw_only=True)
class Ending:
    """How a program ended.

    Attributes:
        status: Its exit status, or the negative number of the signal that ended it.
        output: Its standard output, without the lines that ``lines`` returned.
        error_tail: The end of its standard error, as one line without control characters.
        stop: Why it was ended.
    """

    status: int
    output: bytes
    error_tail: str
    stop: Stop = Stop.NONE


class Program:
    """One run of a program, or of a shell command if *command* is a string.

    Args:
        command: The program and its arguments, or a line for ``/bin/sh``.
        environment: Its complete environment; a run mark is added.
        stdin: Its standard input, which is closed afterwards.
        cwd: Its working directory.
        marks: The source of run marks. With a state folder, processes left behind by a crash of ours are found, too.
        timeout: Limit in seconds; None is unlimited.
        idle_timeout: Limit in seconds without output on standard output or error.
        most_bytes: The maximum size of the output, or of a line if lines are read.
        term_seconds: Seconds between SIGTERM and SIGKILL.
        closed_seconds: Seconds it may keep running after it closed its output.
    """

    def __init__(
        self,
        command: str | Sequence[str],
        *,
        environment: Mapping[str, str],
        stdin: bytes = b"",
        cwd: Path | None = None,
        marks: RunMarks | None = None,
        timeout: float | None = None,
        idle_timeout: float | None = None,
        most_bytes: int = MOST_BYTES,
        term_seconds: float = TERM_SECONDS,
        closed_seconds: float = CLOSED_SECONDS,
    ) -> None:
        self._argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        self._environment = dict(environment)
        self._stdin = stdin
        self._cwd = cwd
        self._marks = marks or RunMarks()
        self._mark = ""
        self._before: frozenset[int] = frozenset()
        self._timeout = timeout
        self._idle_timeout = idle_timeout
        self._term_seconds = term_seconds
        self._closed_seconds = closed_seconds
        self._pipes = Pipes(most_bytes)
        self._transport: asyncio.SubprocessTransport | None = None
        self._starting: asyncio.Task[None] | None = None
        self._started = 0.0
        self._stop = Stop.NONE
        self._lingered = False
        self._is_cleared = False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.end()

    async def run(self) -> Ending:
        """Start it, wait for its end, and clean up."""
        async with self:
            return await self.finish()

    async def start(self) -> None:
        """Start it and send its standard input.

        Raises:
            OSError: It could not be started.
            ConfigError: This isn't a POSIX system.
        """
        require_posix()
        self._mark = self._marks.new()
        self._before = running_processes()
        self._starting = asyncio.ensure_future(self._spawn())
        try:
            await asyncio.shield(self._starting)
        except asyncio.CancelledError:
            await self.end()
            raise

    async def lines(self) -> AsyncIterator[bytes]:
        """The lines of its standard output, without newlines, until it ends."""
        self._pipes.by_line = True
        while True:
            while (line := self._pipes.take_line()) is not None:
                yield line
            if self._is_over():
                break
            await self._step()
        if self._stop is Stop.NONE and (rest := self._pipes.take_rest()):
            yield rest

    async def finish(self, *, within: float | None = None) -> Ending:
        """Wait until it ends or reaches a limit, and clean up. *within* is an additional limit, in seconds from now."""
        self._pipes.read_on()
        if within is not None:
            spent = asyncio.get_running_loop().time() - self._started
            self._timeout = min(spent + within, self._timeout if self._timeout is not None else spent + within)
        while not (self._is_over() and (self._pipes.exited.is_set() or self._stop is not Stop.NONE)):
            await self._step()
        stop = self._stop
        await self.end()
        assert self._transport is not None  # noqa: S101
        return Ending(
            status=self._transport.get_returncode() or 0,
            output=bytes(self._pipes.output),
            error_tail=readable(bytes(self._pipes.errors)),
            stop=stop,
        )

    async def end(self) -> None:
        """Send SIGTERM to the group, then SIGKILL (at once if cancelled), also to processes that left the group."""
        if self._starting is not None:
            # Its process id is needed to end it.
            try:
                await asyncio.shield(self._starting)
            except OSError:
                return
            except asyncio.CancelledError:
                self._starting.add_done_callback(self._kill_at_birth)
                raise
        if self._transport is None or self._is_cleared:
            return
        group = self._transport.get_pid()
        try:
            try:
                if not self._pipes.exited.is_set():
                    self._stop = Stop.ASKED if self._stop is Stop.NONE else self._stop
                    self._pipes.notify()
                    await self._ask(group)
            finally:
                _signal_group(group, signal.SIGKILL)
                kill_marked(self._mark, skip=self._before)
            await self._pipes.exited.wait()
            # The pipes may still hold output of the killed processes.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER_SECONDS):
                    await self._pipes.drained.wait()
        finally:
            self._is_cleared = True
            self._transport.close()

    def _kill_at_birth(self, starting: "asyncio.Task[None]") -> None:
        if not starting.cancelled() and starting.exception() is None and self._transport is not None:
            _signal_group(self._transport.get_pid(), signal.SIGKILL)
            self._transport.close()

    async def _ask(self, group: int) -> None:
        _signal_group(group, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._term_seconds):
                await self._pipes.exited.wait()
                while _is_alive(group):  # noqa: ASYNC110 - there is no event for an empty group
                    await asyncio.sleep(0.05)

    async def _spawn(self) -> None:
        loop = asyncio.get_running_loop()
        program = _found(self._argv[0], self._environment, self._cwd)
        try:
            self._transport, _ = await loop.subprocess_exec(
                lambda: self._pipes,
                *self._marks.death_watch,
                program,
                *self._argv[1:],
                env={**self._environment, VARIABLE: self._mark},
                cwd=self._cwd,
                start_new_session=True,
            )
        except RuntimeError as exc:
            # Where asyncio watches each child in a thread, it starts the thread after the child.
            await self._end_unwatched()
            raise OSError(errno.EAGAIN, "no more threads can be started") from exc
        self._started = loop.time()
        stdin = self._transport.get_pipe_transport(0)
        assert isinstance(stdin, asyncio.WriteTransport)  # noqa: S101
        stdin.write(self._stdin)
        stdin.write_eof()

    async def _end_unwatched(self) -> None:
        """Kill and reap a child that asyncio failed to watch."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_KNOWN_SECONDS):
                await self._pipes.known.wait()
        if self._pipes.transport is not None:
            _signal_group(self._pipes.transport.get_pid(), signal.SIGKILL)
        kill_marked(self._mark, skip=self._before)
        if self._pipes.transport is not None:
            child = self._pipes.transport.get_extra_info("subprocess")
            while child.poll() is None:  # noqa: ASYNC110 - nothing watches this child
                await asyncio.sleep(0.01)
            self._pipes.transport.close()

    def _is_over(self) -> bool:
        """Whether all of its output was read."""
        return self._stop is not Stop.NONE or self._lingered or self._pipes.output_closed_at is not None

    async def _step(self) -> None:
        """Wait for output or the next limit."""
        when, why = min(self._limits(), key=lambda limit: limit[0], default=(None, Stop.NONE))
        try:
            async with asyncio.timeout_at(when):
                await self._pipes.news.wait()
            self._pipes.news.clear()
        except TimeoutError:
            self._stop = why
            self._lingered = why is Stop.NONE
        if self._pipes.too_long:
            self._stop = Stop.OUTPUT

    def _limits(self) -> "list[tuple[float, Stop]]":
        pipes = self._pipes
        if pipes.exited_at is not None:
            return [(pipes.exited_at + LINGER_SECONDS, Stop.NONE)]
        limits = []
        if self._timeout is not None:
            limits.append((self._started + self._timeout, Stop.TOTAL))
        if self._idle_timeout is not None:
            limits.append((max(self._started, pipes.heard_at) + self._idle_timeout, Stop.IDLE))
        if pipes.output_closed_at is not None:
            limits.append((pipes.output_closed_at + self._closed_seconds, Stop.CLOSED))
        return limits


def request_variables(request: Request, *, files: bool = False) -> dict[str, str]:
    """Environment variables with the ids of *request*; missing ones are empty.

    Most are chosen by the sender. A variable that is too long would prevent the program from starting, so ids are cut
    to 1024 bytes, with a warning in the log. Valid ids are shorter.

    Args:
        files: Add ``MOLECULE_FILES``, the paths of the message's files, one per line, at most 32 KiB.
    """
    facts = {
        "MOLECULE_WORKSPACE_ID": request.workspace_id,
        "MOLECULE_CALLER_ID": request.caller_id,
        "MOLECULE_MESSAGE_ID": request.message_id,
        "MOLECULE_TASK_ID": request.task_id,
        "MOLECULE_METHOD": request.method,
    }
    variables = {name: _cut(name, _storable(value or ""), LONGEST_FACT) for name, value in facts.items()}
    if files:
        paths = [str(part.path) for part in request.parts if isinstance(part, FilePart) and part.path is not None]
        whole = _storable("\n".join(paths))
        kept = _cut("MOLECULE_FILES", whole, LONGEST_FILES)
        variables["MOLECULE_FILES"] = kept if kept == whole else kept.rpartition("\n")[0]
    return variables


def _storable(value: str) -> str:
    # A NUL or a lone surrogate would prevent the program from starting.
    return value.replace("\0", "").encode(errors="replace").decode()


def _cut(name: str, value: str, longest: int) -> str:
    encoded = value.encode()
    if len(encoded) <= longest:
        return value
    _log.warning("cut %s from %d to %d bytes for the program's environment", name, len(encoded), longest)
    return encoded[:longest].decode(errors="ignore")


def not_started(what: str, exc: OSError) -> BackendError:
    """A BackendError for a program that could not be started.

    If this machine has run out of processes, threads, memory or open files, it doesn't count as an attempt.
    """
    wait = SHORTAGE_WAIT if exc.errno in _SHORTAGES else None
    return BackendError(f"{what}: {exc.strerror or exc}", retry_after=wait)


def require_posix(platform: str = os.name) -> None:
    """Require a system with process groups.

    Raises:
        ConfigError: *platform* isn't ``posix``.
    """
    if platform != "posix":
        raise ConfigError(
            "programs can only run on Linux and macOS: Windows has no process groups",
            hint="run molecule-connect in WSL",
        )


def _found(program: str, environment: Mapping[str, str], cwd: Path | None) -> str:
    # Otherwise the error would come from the death watch, which is started in its place.
    if os.sep in program:
        found = os.access(Path(cwd or ".", program), os.X_OK)
    else:
        found = shutil.which(program, path=environment.get("PATH", os.defpath)) is not None
    if not found:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), program)
    return program


def _signal_group(group: int, number: int) -> bool:
    """Send a signal to the group. Returns whether it exists."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _is_alive(group: int) -> bool:
    if not _signal_group(group, 0):
        return False
    members = [state for state, of in map(_state_and_group, Path("/proc").glob("[0-9]*/stat")) if of == group]
    # In a container whose init doesn't reap, zombies stay in their group.
    return not members or any(state not in "ZX" for state in members)


def _state_and_group(stat: Path) -> tuple[str, int]:
    try:
        state, _, group, *_ = stat.read_text(errors="replace").rpartition(")")[2].split()
    except (OSError, ValueError):  # it ended
        return "", 0
    return state, int(group)
