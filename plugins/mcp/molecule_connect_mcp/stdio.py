"""Standard input and output as lines, for a protocol that has stdout to itself."""

import asyncio
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import attrs

# The SDK's transport reads in threads that the interpreter joins when it exits, so a signal couldn't stop the program
# while the host keeps its side open. The threads here are daemons.

CHUNK_BYTES = 1 << 16
# A host that writes faster than the server reads is throttled at this number of lines.
MAX_UNREAD_LINES, BATCH_LINES = 1024, 256
MAX_LINE_BYTES = 256 << 20


@attrs.frozen
class Descriptors:
    """The file descriptors of the protocol, instead of 0 and 1."""

    reading: int
    writing: int


@contextmanager
def redirected() -> Iterator[Descriptors]:
    """Redirect descriptor 0 to an empty input and 1 to standard error, so that prints don't break the protocol."""
    reading, writing = os.dup(0), os.dup(1)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)
    try:
        yield Descriptors(reading, writing)
    finally:
        os.dup2(reading, 0)
        os.dup2(writing, 1)
        # A thread may still be blocked on the copies, so they stay open until the process exits.


class LineReader:
    """Reads lines in a daemon thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._room = threading.Semaphore(MAX_UNREAD_LINES)
        self._ended = False
        threading.Thread(target=self._read, name="stdin", daemon=True).start()

    async def next(self) -> bytes | None:
        """Return the next line without its newline, or None at the end of the input."""
        if self._ended:
            return None
        line = await self._lines.get()
        self._room.release()
        self._ended = line is None
        return line

    def _read(self) -> None:
        chunks: list[bytes] = []
        length = 0
        while (chunk := self._read_chunk()) and length < MAX_LINE_BYTES:
            head, newline, tail = chunk.rpartition(b"\n")
            if not newline:
                chunks.append(chunk)
                length += len(chunk)
                continue
            lines = b"".join([*chunks, head]).split(b"\n")
            chunks, length = ([tail] if tail else []), len(tail)
            if not self._deliver(lines):
                return
        # Drop a line beyond the maximum, and end the input: the protocol can't recover.
        rest = b"".join(chunks) if length < MAX_LINE_BYTES else b""
        self._deliver([*([rest] if rest else []), None])

    def _read_chunk(self) -> bytes:
        try:
            return os.read(self._descriptor, CHUNK_BYTES)
        except OSError:
            return b""

    def _deliver(self, lines: Sequence[bytes | None]) -> bool:
        for start in range(0, len(lines), BATCH_LINES):
            batch = lines[start : start + BATCH_LINES]
            for _ in batch:
                self._room.acquire()
            try:
                self._loop.call_soon_threadsafe(self._put, batch)
            except RuntimeError:  # the loop is closed
                return False
        return True

    def _put(self, lines: Sequence[bytes | None]) -> None:
        for line in lines:
            self._lines.put_nowait(line)


class LineWriter:
    """Writes lines in order in a daemon thread, so that a host that doesn't read can't block the event loop.

    Attributes:
        broken: Set when the host has stopped reading.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._loop = asyncio.get_running_loop()
        self._condition = threading.Condition()
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self.broken = asyncio.Event()
        threading.Thread(target=self._run, name="stdout", daemon=True).start()

    async def write(self, content: bytes) -> None:
        """Write *content* and a newline, and return once they are written.

        Raises:
            BrokenPipeError: The host has stopped reading.
        """
        if self.broken.is_set():
            raise BrokenPipeError
        written = self._loop.create_future()
        with self._condition:
            self._waiting.append((content + b"\n", written))
            self._condition.notify()
        await written

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._waiting:
                    self._condition.wait()
                batch, self._waiting = self._waiting, []
            written = self._write_all(b"".join(content for content, _ in batch))
            try:
                self._loop.call_soon_threadsafe(self._settle, [future for _, future in batch], written)
            except RuntimeError:  # the loop is closed
                return

    def _write_all(self, content: bytes) -> bool:
        view = memoryview(content)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except OSError:
                return False
        return True

    def _settle(self, futures: list["asyncio.Future[None]"], written: bool) -> None:
        if not written:
            self.broken.set()
        for future in futures:
            if future.done():
                continue
            if written:
                future.set_result(None)
            else:
                future.set_exception(BrokenPipeError())
