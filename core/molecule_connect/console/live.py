"""The live view, drawn by its own thread so that a stopped terminal doesn't stop anything else."""

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, TextIO, cast

from molecule_connect.console.lines import INFO, Line, with_hint
from molecule_connect.console.sanitize import failure
from molecule_connect.console.screen import Summary
from molecule_connect.console.view import Snapshot, View
from molecule_connect.console.writer import GuardedStream
from molecule_connect.events import Event

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

_FRAME = 0.25
# Ages are shown in seconds, so an idle view is redrawn once a second.
_IDLE_FRAMES = 4
_MAX_ROWS = 20


class LiveScreen:
    """Status, counters and recent messages, drawn at most four times a second. Important lines are printed above it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = GuardedStream(stream)
        self._view = View()
        self._lock = threading.Lock()
        self._summaries: dict[str, Summary] = {}
        self._changed = True
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure = ""

    def open(self, summaries: list[Summary]) -> None:
        with self._lock:
            for summary in summaries:
                self._summaries[summary.workspace_id] = summary
                self._view.add(summary.workspace_id)
                self._view.print_above(Line(INFO, summary.text))
        if self._thread is not None:
            return
        self._thread = threading.Thread(target=self._run, name="live view", daemon=True)
        self._thread.start()

    def forget(self, workspace_id: str) -> None:
        with self._lock:
            self._view.forget(workspace_id)
            self._changed = True

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._view.apply(event)
            self._changed = True

    def note(self, level: str, text: str, hint: str = "") -> None:
        with self._lock:
            self._view.print_above(Line(level, with_hint(text, hint)))
            self._changed = True

    def fail(self, text: str, hint: str, exit_code: int, traceback: str = "") -> None:
        self._failure = failure(text, hint, traceback)

    def last_words(self, text: str, exit_code: int) -> str:
        return text

    def close(self) -> None:
        """Draw a last time and restore the terminal, within two seconds."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2.0)
        else:
            # Lines logged before the view was opened.
            for line in self._snapshot().above:
                self._stream.write(f"{line.level.lower()}: {line.text}\n")
        if self._failure and (self._thread is None or not self._thread.is_alive()):
            self._stream.write(f"{self._failure}\n")

    def _run(self) -> None:
        from rich.console import Console

        console = Console(file=cast("IO[str]", self._stream), highlight=False, markup=False, emoji=False)
        while True:
            with self._live(console) as live:
                is_over = self._draw_until_resized(console, live)
            if is_over:
                return
            # The old lines are wrapped differently after a resize, so start with an empty screen.
            console.clear()

    @contextlib.contextmanager
    def _live(self, console: "Console") -> Iterator["Live"]:
        from rich.live import Live

        with Live(
            console=console, auto_refresh=False, redirect_stdout=sys.stdout.isatty(), redirect_stderr=True
        ) as live:
            yield live

    def _draw_until_resized(self, console: "Console", live: "Live") -> bool:
        """Draw until the view is closed (True) or the terminal is resized (False)."""
        size, idle = console.size, 0
        while True:
            stopping = self._stop.is_set()
            if console.size != size and not stopping:
                return False
            idle += 1
            if self._changed or stopping or idle >= _IDLE_FRAMES:
                idle = 0
                self._draw(console, live)
            if stopping:
                return True
            self._stop.wait(_FRAME)

    def _draw(self, console: "Console", live: "Live") -> None:
        from molecule_connect.console import render

        snapshot, size = self._snapshot(), console.size
        for line in snapshot.above:
            console.print(render.draw_line(line))
        live.update(render.draw(snapshot, self._summaries, width=size.width, height=size.height), refresh=True)

    def _snapshot(self) -> Snapshot:
        with self._lock:
            self._changed = False
            return self._view.snapshot(_MAX_ROWS)
