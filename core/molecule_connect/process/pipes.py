"""Collect the output of a running program, as a whole or line by line."""

import asyncio
import re
import unicodedata

TAIL_BYTES = 2048
# Beyond this, reading pauses until the reader catches up.
_UNREAD_BYTES = 2**20

_ESCAPE_SEQUENCE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.)")


class Pipes(asyncio.SubprocessProtocol):
    """Collects output. ``exited`` doesn't wait for the pipes, which a grandchild may keep open."""

    def __init__(self, most_bytes: int) -> None:
        self.output = bytearray()
        self.errors = bytearray()
        self.news = asyncio.Event()
        self.exited = asyncio.Event()
        self.drained = asyncio.Event()
        self.known = asyncio.Event()
        self.heard_at = 0.0
        self.exited_at: float | None = None
        self.output_closed_at: float | None = None
        self.by_line = False
        self._most_bytes = most_bytes
        self._open = {1, 2}
        self._searched = 0
        self.transport: asyncio.SubprocessTransport | None = None
        self._is_paused = False

    @property
    def too_long(self) -> bool:
        return len(self.output) > self._most_bytes

    def notify(self) -> None:
        self.news.set()

    def take_line(self) -> bytes | None:
        at = self.output.find(b"\n", self._searched)
        if at < 0:
            self._searched = len(self.output)
            self._pause(False)
            return None
        line = bytes(self.output[:at])
        del self.output[: at + 1]
        self._searched = 0
        return line

    def take_rest(self) -> bytes:
        rest = bytes(self.output)
        self.output.clear()
        return rest

    def read_on(self) -> None:
        """Stop splitting lines, and read without pauses."""
        self.by_line = False
        self._pause(False)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)  # noqa: S101
        self.transport = transport
        self.known.set()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.heard_at = asyncio.get_running_loop().time()
        if fd == 2:
            self.errors += data
            del self.errors[:-TAIL_BYTES]
        elif not self.too_long:
            self.output += data
            if self.by_line and len(self.output) > _UNREAD_BYTES and self.exited_at is None and b"\n" in data:
                self._pause(True)
        self.notify()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._open.discard(fd)
        if fd == 1:
            self.output_closed_at = asyncio.get_running_loop().time()
        if not self._open:
            self.drained.set()
        self.notify()

    def process_exited(self) -> None:
        self.exited_at = asyncio.get_running_loop().time()
        # The rest in the pipe is small, and must be read before the pipe is closed.
        self._pause(False)
        self.exited.set()
        self.notify()

    def _pause(self, paused: bool) -> None:
        if self.transport is None or paused == self._is_paused:
            return
        stdout = self.transport.get_pipe_transport(1)
        if isinstance(stdout, asyncio.ReadTransport) and not stdout.is_closing():
            (stdout.pause_reading if paused else stdout.resume_reading)()
            self._is_paused = paused
            self.heard_at = asyncio.get_running_loop().time()


def readable(output: bytes) -> str:
    """*output* as one line without escape sequences and control characters."""
    text = _ESCAPE_SEQUENCE.sub("", output.decode(errors="replace"))
    kept = "".join(each if not unicodedata.category(each).startswith("C") else " " for each in text)
    return " ".join(kept.split())
