"""Standard input and output as lines, for a program whose stdout carries a protocol and nothing else.

The SDK's own transport reads in threads that the interpreter waits for at its end, so a signal could not end the
program while a host keeps its side open. The threads here are daemons.
"""

import asyncio
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import attrs

PIECE = 1 << 16
# A host that writes faster than it is read is held back from here on.
MOST_UNREAD, AT_ONCE = 1024, 256
LONGEST_LINE = 256 << 20


@attrs.frozen
class Descriptors:
    """The protocol's two ends; numbers 0 and 1 lead elsewhere meanwhile."""

    reading: int
    writing: int


@contextmanager
def claimed() -> Iterator[Descriptors]:
    """While it lasts, input reads as empty, and whatever is printed goes to standard error."""
    reading, writing = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    try:
        yield Descriptors(reading, writing)
    finally:
        os.dup2(reading, 0)
        os.dup2(writing, 1)
        # A thread may still be blocked on these, so they stay open until the process ends.


class LineReader:
    """The lines that come in, read by a daemon thread. ``None`` is the end."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._room = threading.Semaphore(MOST_UNREAD)
        self._ended = False
        threading.Thread(target=self._read, name="stdin", daemon=True).start()

    async def next(self) -> bytes | None:
        """The next line without its end; None once there are no more, however often it is asked."""
        if self._ended:
            return None
        line = await self._lines.get()
        self._room.release()
        self._ended = line is None
        return line

    def _read(self) -> None:
        pieces: list[bytes] = []
        length = 0
        while (piece := self._piece()) and length < LONGEST_LINE:
            head, newline, tail = piece.rpartition(b"\n")
            if not newline:
                pieces.append(piece)
                length += len(piece)
                continue
            lines = b"".join([*pieces, head]).split(b"\n")
            pieces, length = ([tail] if tail else []), len(tail)
            if not self._tell(lines):
                return
        # A line without end is no protocol; what can still be told is that there is no more.
        rest = b"".join(pieces) if length < LONGEST_LINE else b""
        self._tell([*([rest] if rest else []), None])

    def _piece(self) -> bytes:
        try:
            return os.read(self._descriptor, PIECE)
        except OSError:
            return b""

    def _tell(self, lines: Sequence[bytes | None]) -> bool:
        for start in range(0, len(lines), AT_ONCE):
            some = lines[start : start + AT_ONCE]
            for _ in some:
                self._room.acquire()
            try:
                self._loop.call_soon_threadsafe(self._put, some)
            except RuntimeError:  # the loop has ended
                return False
        return True

    def _put(self, lines: Sequence[bytes | None]) -> None:
        for line in lines:
            self._lines.put_nowait(line)


class LineWriter:
    """Writes lines in the order in which they come, by a daemon thread: a host that does not read blocks nobody."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._loop = asyncio.get_running_loop()
        self._wanted = threading.Condition()
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self.broken = asyncio.Event()
        threading.Thread(target=self._write, name="stdout", daemon=True).start()

    async def line(self, content: bytes) -> None:
        """Returns once *content* and a newline are written.

        Raises:
            BrokenPipeError: Nobody reads any more.
        """
        if self.broken.is_set():
            raise BrokenPipeError
        written = self._loop.create_future()
        with self._wanted:
            self._waiting.append((content + b"\n", written))
            self._wanted.notify()
        await written

    def _write(self) -> None:
        while True:
            with self._wanted:
                while not self._waiting:
                    self._wanted.wait()
                batch, self._waiting = self._waiting, []
            done = self._write_whole(b"".join(content for content, _ in batch))
            try:
                self._loop.call_soon_threadsafe(self._settle, [future for _, future in batch], done)
            except RuntimeError:  # the loop has ended
                return

    def _write_whole(self, content: bytes) -> bool:
        view = memoryview(content)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except OSError:
                return False
        return True

    def _settle(self, futures: list["asyncio.Future[None]"], done: bool) -> None:
        if not done:
            self.broken.set()
        for future in futures:
            if future.done():
                continue
            if done:
                future.set_result(None)
            else:
                future.set_exception(BrokenPipeError())
