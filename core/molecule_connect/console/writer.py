"""Write to a terminal or pipe that may be slow, stopped or gone, without blocking the worker."""

import collections
import contextlib
import io
import os
import threading
import time
from collections.abc import Callable
from typing import TextIO

# About a minute of a busy worker. Beyond that, the reader of the pipe has stopped reading.
_MAX_WAITING = 20_000
_PAUSE = 0.05


class GuardedStream(io.TextIOBase):
    """A text stream whose writes never raise, even if the terminal or pipe is gone.

    If there is a file descriptor, it writes to that: a thread that hangs in the buffered ``sys.stderr`` holds its lock,
    and the interpreter aborts at exit if it cannot get that lock.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._fd: int | None = None
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
            self._fd = stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return self._stream.isatty()
        return False

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        safe = text.encode(self.encoding, "backslashreplace")
        with contextlib.suppress(OSError, ValueError):
            if self._fd is None:
                self._stream.write(safe.decode(self.encoding))
                return len(text)
            rest = memoryview(safe)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        return len(text)

    def flush(self) -> None:
        if self._fd is None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.flush()


class LineWriter:
    """Writes lines to a stream, in order, from its own thread.

    A full pipe or a terminal stopped with Ctrl-S blocks its writer. That must not be the event loop, which has to send
    heartbeats, so a daemon thread writes; it doesn't block the exit either. If more than *max_waiting* lines are
    waiting, the newest are dropped, and *left_out* formats the line that says how many.
    """

    def __init__(self, stream: TextIO, left_out: Callable[[int], str], *, max_waiting: int = _MAX_WAITING) -> None:
        self._stream = GuardedStream(stream)
        self._left_out = left_out
        self._max_waiting = max_waiting
        self._waiting: collections.deque[str] = collections.deque()
        self._dropped = 0
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        """Queue a line. Returns at once."""
        with self._changed:
            if len(self._waiting) >= self._max_waiting:
                self._dropped += 1
                return
            self._waiting.append(line)
            if len(self._waiting) == 1:
                self._changed.notify()

    def close(self, timeout: float = 2.0) -> None:
        """Write pending lines, for at most *timeout* seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)

    def _run(self) -> None:
        while lines := self._take():
            self._stream.write("".join(f"{line}\n" for line in lines))
            self._stream.flush()
            if not self._closing:
                # Waking this thread costs as much as ten lines, so let some accumulate.
                time.sleep(_PAUSE)

    def _take(self) -> list[str]:
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            lines = list(self._waiting)
            self._waiting.clear()
            if self._dropped:
                lines.append(self._left_out(self._dropped))
                self._dropped = 0
            return lines
