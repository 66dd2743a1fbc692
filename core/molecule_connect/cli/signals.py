"""Signals: the first SIGTERM, Ctrl-C or SIGHUP drains, a second one exits at once. SIGHUP can also reload the list."""

import asyncio
import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

from molecule_connect.cli.errors import BUG, CLEAN

# Seconds that a stop may take beyond the grace period: last sends, the cursor, a heartbeat, closing plugins.
STOP_MARGIN = 8.0


class StopSignals:
    """Handles signals from before the event loop starts until after it has ended.

    The handlers are set with ``signal``, not on the loop, so they also run while a backend blocks the loop, and a
    second signal always ends the program. A terminal that closes sends SIGHUP more than once, so only SIGINT and
    SIGTERM count as a second signal. A SIGHUP that was ignored at the start (nohup) stays ignored.

    Args:
        spell: Formats a last line from a text, which may be empty, and the exit code. Called from a signal handler.
        reloads: SIGHUP asks for a reload, even under nohup, unless the terminal was closed.

    Attributes:
        grace: The grace period in seconds.
    """

    def __init__(
        self,
        *,
        grace: float,
        spell: Callable[[str, int], str],
        reloads: bool = False,
        has_terminal: Callable[[], bool] | None = None,
        leave: Callable[[int], Any] = os._exit,
        stderr: int = 2,
    ) -> None:
        self.grace = grace
        self._reloads = reloads
        self._has_terminal = has_terminal or _has_terminal
        self._had_terminal = False
        self._reload: asyncio.Event | None = None
        self._reload_asked = False
        self._spell = spell
        self._leave = leave
        self._stderr = stderr
        self._before: dict[signal.Signals, Any] = {}
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watchdog: threading.Timer | None = None
        self.received = False
        self.outcome: int | None = None

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP:
                is_ignored = signal.getsignal(number) is signal.SIG_IGN
                if is_ignored and not self._reloads:
                    continue
                self._had_terminal = not is_ignored and self._has_terminal()
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def bind(self, stop: asyncio.Event, reload: asyncio.Event | None = None) -> None:
        """Set *stop* at the first signal, and *reload* at each SIGHUP that asks for one; at once if it was received.

        Both are events of the running loop.
        """
        self._loop, self._stop, self._reload = asyncio.get_running_loop(), stop, reload
        if self.received:
            stop.set()
        if self._reload_asked and reload is not None:
            reload.set()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Any other code may be interrupted halfway, so this uses no screen, no lock and no buffered stream.
        if number == signal.SIGHUP and self._reloads and not (self._had_terminal and not self._has_terminal()):
            self._reload_asked = True
            self._set(self._reload)
            return
        if self.received:
            if number in (signal.SIGINT, signal.SIGTERM):
                self._end(
                    128 + number, "stopped at once by a second signal; the next start continues unfinished messages"
                )
            return
        self.received = True
        self._watchdog = threading.Timer(self.grace + STOP_MARGIN, self._give_up)
        self._watchdog.daemon = True
        self._watchdog.start()
        self._set(self._stop)

    def _set(self, event: asyncio.Event | None) -> None:
        if self._loop is not None and event is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just been closed
                self._loop.call_soon_threadsafe(event.set)

    def _give_up(self) -> None:
        code = BUG if self.outcome is None else self.outcome
        self._end(code, "" if code == CLEAN else "some tasks did not end in time and were abandoned")

    def _end(self, code: int, words: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            # A terminal that was stopped with Ctrl-S would block.
            if select.select([], [self._stderr], [], 0)[1]:
                line = self._spell(words, code)
                os.write(self._stderr, f"{line}\n".encode() if line else b"")
        self._leave(code)


def _has_terminal() -> bool:
    """Whether this process has a terminal that is still open."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
