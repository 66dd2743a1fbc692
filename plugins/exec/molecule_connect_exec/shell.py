"""One shell command in a process group of its own. POSIX: Windows has no process groups to end."""

import asyncio
import contextlib
import os
import re
import signal
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import attrs

TERM_SECONDS = 5.0
# How long a grandchild may still hold the output once the command itself has ended.
LINGER_SECONDS = 0.5
TAIL_BYTES = 2048

_ESCAPE_SEQUENCE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.)")


@attrs.frozen(kw_only=True)
class Ending:
    """How a command ended.

    Attributes:
        status: Its exit status; the negative of a signal that ended it.
        error_tail: The end of its standard error, one line, without control characters.
    """

    status: int
    output: bytes
    error_tail: str
    timed_out: bool = False
    too_long: bool = False


class _Pipes(asyncio.SubprocessProtocol):
    """Collects what comes. Its ``exited`` does not wait for the pipes, which a grandchild may hold."""

    def __init__(self, most_bytes: int) -> None:
        self.output = bytearray()
        self.errors = bytearray()
        self.most_bytes = most_bytes
        self.exited = asyncio.Event()
        self.ended = asyncio.Event()
        self._open = {1, 2}
        self.drained = asyncio.Event()

    @property
    def too_long(self) -> bool:
        return len(self.output) > self.most_bytes

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self.errors += data
            del self.errors[:-TAIL_BYTES]
            return
        if not self.too_long:
            self.output += data
        if len(self.output) > self.most_bytes:
            self.ended.set()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._open.discard(fd)
        if not self._open:
            self.drained.set()

    def process_exited(self) -> None:
        self.exited.set()
        self.ended.set()


class ShellCommand:
    """Runs once: ``run`` starts the command and waits, ``end`` makes it stop. Nothing of its group outlives either."""

    MOST_BYTES: ClassVar[int] = 32 * 2**20

    def __init__(
        self,
        command: str,
        text: bytes,
        environment: Mapping[str, str],
        *,
        term_seconds: float = TERM_SECONDS,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._command = command
        self._text = text
        self._environment = dict(environment)
        self._term_seconds = term_seconds
        self._most_bytes = most_bytes
        self._transport: asyncio.SubprocessTransport | None = None
        self._pipes = _Pipes(most_bytes)

    async def run(self, seconds: float) -> Ending:
        """Run for at most *seconds*. Cancelled, it ends the whole group before it returns.

        Raises:
            OSError: The command could not be started.
        """
        transport = await self._start()
        try:
            self._feed(transport)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._pipes.ended.wait()
            timed_out = not self._pipes.ended.is_set()
            await (self._drain() if self._pipes.exited.is_set() else self.end())
        except asyncio.CancelledError:
            await self.end()
            raise
        finally:
            transport.close()
        return Ending(
            status=transport.get_returncode() or 0,
            output=bytes(self._pipes.output),
            error_tail=_readable(bytes(self._pipes.errors)),
            timed_out=timed_out,
            too_long=self._pipes.too_long,
        )

    async def end(self) -> None:
        """TERM to the group, KILL after the grace; at once when the waiting is cancelled."""
        if self._transport is None:
            return
        group = self._transport.get_pid()
        try:
            _signal_group(group, signal.SIGTERM)
            async with asyncio.timeout(self._term_seconds):
                await self._pipes.exited.wait()
                while _is_alive(group):  # noqa: ASYNC110 - nothing tells when a group is empty
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pass
        finally:
            _signal_group(group, signal.SIGKILL)
        await self._pipes.exited.wait()

    async def _start(self) -> asyncio.SubprocessTransport:
        loop = asyncio.get_running_loop()
        starting = asyncio.ensure_future(
            loop.subprocess_shell(
                lambda: self._pipes,
                self._command,
                env=self._environment,
                start_new_session=True,
            )
        )
        try:
            transport, _ = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # A command that was begun has to be known before it can be ended.
            with contextlib.suppress(OSError):
                self._transport, _ = await starting
                await self.end()
                self._transport.close()
            raise
        self._transport = transport
        return transport

    def _feed(self, transport: asyncio.SubprocessTransport) -> None:
        stdin = transport.get_pipe_transport(0)
        assert isinstance(stdin, asyncio.WriteTransport)  # noqa: S101
        stdin.write(self._text)
        stdin.write_eof()

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                await self._pipes.drained.wait()
        except TimeoutError:
            assert self._transport is not None  # noqa: S101
            _signal_group(self._transport.get_pid(), signal.SIGKILL)


def _signal_group(group: int, number: int) -> bool:
    """Whether the group was there to be signalled."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _is_alive(group: int) -> bool:
    if not _signal_group(group, 0):
        return False
    members = [state for state, of in map(_state_and_group, Path("/proc").glob("[0-9]*/stat")) if of == group]
    # In a container whose first process collects nobody, the dead stay in their group for ever.
    return not members or any(state not in "ZX" for state in members)


def _state_and_group(stat: Path) -> tuple[str, int]:
    try:
        state, _, group, *_ = stat.read_text(errors="replace").rpartition(")")[2].split()
    except (OSError, ValueError):  # it ended meanwhile
        return "", 0
    return state, int(group)


def _readable(errors: bytes) -> str:
    text = _ESCAPE_SEQUENCE.sub("", errors.decode(errors="replace"))
    kept = "".join(each if not unicodedata.category(each).startswith("C") else " " for each in text)
    return " ".join(kept.split())
