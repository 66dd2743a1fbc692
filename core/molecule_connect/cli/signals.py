"""SIGTERM, Ctrl-C and a closed terminal: the first stops, a second ends at once. SIGHUP may mean: read again."""

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

# What a stop may take beside the grace that handlers get: the last sends, the cursor, a beat, closing the plugins.
STOP_MARGIN = 8.0
_SHOW_CURSOR = "\x1b[?25h"


class StopSignals:
    """Turns signals into a stop, from before the event loop runs until after it has ended.

    The handlers are Python's own, not the loop's: they also run while a backend blocks the loop, so that a second
    signal always ends the program. A terminal that closes sends SIGHUP more than once, so only SIGINT and SIGTERM
    count as a second signal. A SIGHUP that was ignored at the start (nohup) stays ignored. *spell* makes a line of the
    last words and the exit code; it is called from a signal handler.

    With *reloads* a SIGHUP asks for a reload instead, nohup or not, unless it says that the terminal is gone.

    Attributes:
        grace: What running handlers get at a stop, in seconds.
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
        """Set *stop*, an event of the running loop, at the first signal, and *reload* at each that asks for one; now,
        if that has been.
        """
        self._loop, self._stop, self._reload = asyncio.get_running_loop(), stop, reload
        if self.received:
            stop.set()
        if self._reload_asked and reload is not None:
            reload.set()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Whatever this calls may have been interrupted half way: no screen, no lock, no buffered stream.
        if number == signal.SIGHUP and self._reloads and not (self._had_terminal and not self._has_terminal()):
            self._reload_asked = True
            self._set(self._reload)
            return
        if self.received:
            if number in (signal.SIGINT, signal.SIGTERM):
                self._end(128 + number, "ended at once by a second signal; the next start takes up what was unfinished")
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
        self._end(code, "" if code == CLEAN else "something did not end in time and was left behind")

    def _end(self, code: int, words: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            # A terminal stopped with Ctrl-S takes nothing, and must not hold up the end.
            if select.select([], [self._stderr], [], 0)[1]:
                cursor = f"{_SHOW_CURSOR}\n" if os.isatty(self._stderr) else ""
                line = f"{self._spell(words, code)}\n" if words else ""
                os.write(self._stderr, (cursor + line).encode())
        self._leave(code)


def _has_terminal() -> bool:
    """Whether this process belongs to a terminal that is still there; one that hung up cannot be opened."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
