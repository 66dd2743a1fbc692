"""The live view, drawn by its own thread so that a stopped terminal doesn't stop anything else."""

import contextlib
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, TextIO, cast

from molecule_connect.console.journal_facts import read_facts
from molecule_connect.console.lines import INFO, Line, with_hint
from molecule_connect.console.sanitize import failure, one_line
from molecule_connect.console.screen import Summary
from molecule_connect.console.terminal import Terminal, diverted, restored_on_signals
from molecule_connect.console.view import Snapshot, View
from molecule_connect.events import Event

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_FRAME = 0.25
# Ages are shown in seconds, so an idle view is redrawn once a second.
_IDLE_FRAMES = 4
# The journal is read at most once in this time, and at least once in the longer one, in seconds. A slow read makes the
# next one wait.
_READ_PAUSE, _READ_AGE, _READ_SHARE = 1.0, 30.0, 0.05
# The journal is committed shortly after an event, in seconds.
_SETTLED = 3.0
_MAX_ROWS = 100


class LiveScreen:
    """Status, sums and messages in the whole window, drawn at most four times a second.

    The view has a screen of its own. What happened is written to the normal screen at the end.
    """

    def __init__(self, stream: TextIO) -> None:
        self._terminal = Terminal(stream)
        self._view = View()
        self._lock = threading.Lock()
        self._summaries: dict[str, Summary] = {}
        self._changed = True
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._restoring = contextlib.ExitStack()
        self._failure = ""
        self._unread: set[str] = set()
        self._console: Console | None = None
        self._changed_at = self._read_at = self._next_read = float("-inf")

    def plan(self, summaries: list[Summary]) -> None:
        for summary in summaries:
            self._view.add_line(Line(INFO, summary.text))

    def open(self, summaries: list[Summary]) -> None:
        with self._lock:
            for summary in summaries:
                self._summaries[summary.workspace_id] = summary
                self._unread.add(summary.workspace_id)
                self._view.add(summary.workspace_id)
                self._view.add_line(Line(INFO, summary.text), noted=False)
        if self._thread is not None:
            return
        self._restoring.enter_context(restored_on_signals(self._terminal))
        self._restoring.enter_context(diverted(lambda text: self.note(INFO, text)))
        self._thread = threading.Thread(target=self._run, name="live view", daemon=True)
        self._thread.start()

    def forget(self, workspace_id: str) -> None:
        with self._lock:
            self._view.forget(workspace_id)
            self._changed = True

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._view.apply(event)
            self._changed, self._changed_at = True, time.monotonic()

    def note(self, level: str, text: str, hint: str = "") -> None:
        with self._lock:
            self._view.add_line(Line(level, with_hint(text, hint)))
            self._changed = True

    def fail(self, text: str, hint: str, exit_code: int, traceback: str = "") -> None:
        self._failure = failure(text, hint, traceback)

    def last_words(self, text: str, exit_code: int) -> str:
        return self._terminal.leaving() + text

    def close(self) -> None:
        """Restore the terminal, and write the lines that remain, for at most two seconds."""
        self._stop.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._finish, name="last lines", daemon=True)
            self._thread.start()
        self._thread.join(2.0)
        self._restoring.close()
        # Its settings, if the terminal takes no more text.
        self._terminal.leaving()

    def _run(self) -> None:
        from rich.console import Console

        self._console = Console(
            file=cast("IO[str]", self._terminal.stream), highlight=False, markup=False, emoji=False, soft_wrap=True
        )
        try:
            self._draw_frames()
        except Exception as exc:  # a bug of the view must not leave the terminal unusable
            self._terminal.leave()
            what = f"the live view failed ({type(exc).__name__}: {one_line(str(exc))})"
            self._terminal.write(f"error: {what}; the messages are served without it\n")
            self._stop.wait()
        else:
            self._read_journal(last=True)
        self._finish()

    def _draw_frames(self) -> None:
        size, idle = (0, 0), 0
        while not self._stop.is_set():
            idle += 1
            is_due = self._changed or idle >= _IDLE_FRAMES or self._terminal.size() != size
            if is_due and self._terminal.is_ours():
                idle, size = 0, self._terminal.size()
                self._read_journal()
                self._draw(*size)
            self._stop.wait(_FRAME)

    def _finish(self) -> None:
        from molecule_connect.console.render import farewell

        self._terminal.leave()
        lines, snapshot = self._pending_lines(), self._snapshot()
        if any(status.registered for _, status in snapshot.workspaces):
            lines += f"{farewell(snapshot.counts)}\n"
        self._terminal.write(lines + (f"{self._failure}\n" if self._failure else ""))

    def _draw(self, width: int, height: int) -> None:
        from molecule_connect.console import render

        snapshot = self._snapshot()
        # The last line is for the cursor.
        lines = render.draw(snapshot, self._summaries, width=width, height=height - 1)
        if not self._terminal.is_entered:
            # The others follow at the end.
            self._terminal.write(self._pending_lines())
        self._terminal.draw([self._styled(line) for line in lines])

    def _pending_lines(self) -> str:
        """The lines for the normal screen."""
        from molecule_connect.console import render

        with self._lock:
            lines = self._view.take_lines()
        return "".join(f"{self._styled(render.draw_line(line))}\n" for line in lines)

    def _styled(self, text: "Text") -> str:
        """*text* as the terminal takes it."""
        if self._console is None:
            return text.plain
        with self._console.capture() as capture:
            self._console.print(text, end="", soft_wrap=True)
        return capture.get()

    def _snapshot(self) -> Snapshot:
        with self._lock:
            self._changed = False
            return self._view.snapshot(_MAX_ROWS)

    def _read_journal(self, *, last: bool = False) -> None:
        """Add facts of the journal to the view, if they are due."""
        began = time.monotonic()
        is_quiet = began - self._changed_at > _SETTLED and began - self._read_at < _READ_AGE
        if not last and (began < self._next_read or is_quiet):
            return
        with self._lock:
            summaries, unread = list(self._summaries.values()), set(self._unread)
            failed = self._view.failed_rows()[-_MAX_ROWS:]
        if not summaries:
            return
        names = {summary.workspace_id for summary in summaries}
        facts = read_facts(Path(summaries[0].state_dir), names, new=unread, failed=failed, wall=time.time())
        self._read_at = time.monotonic()
        self._next_read = self._read_at + max(_READ_PAUSE, (self._read_at - began) / _READ_SHARE)
        if facts is not None:
            with self._lock:
                self._view.add_facts(facts)
                self._unread -= unread
