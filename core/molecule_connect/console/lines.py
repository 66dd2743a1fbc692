"""Events as lines of plain text, and the screen that writes them."""

import functools
import time
from collections.abc import Callable
from typing import TextIO

import attrs

from molecule_connect import events
from molecule_connect.console.log_options import DEFAULT, LogOptions
from molecule_connect.console.sanitize import failure, one_line, span, who
from molecule_connect.console.screen import Summary
from molecule_connect.console.writer import LineWriter

DEBUG, INFO, WARNING, ERROR = "DEBUG", "INFO", "WARNING", "ERROR"


@attrs.frozen
class Line:
    """A line of text. ``level`` is DEBUG, INFO, WARNING or ERROR."""

    level: str
    text: str


def line_of(event: events.Event) -> Line | None:
    """The line for *event*, or None if it isn't worth a line."""
    if isinstance(event, events.MessageEvent):
        return _message_line(event)
    return _workspace_line(event)


def named(line: Line, workspace_id: str) -> Line:
    """*line* with the workspace that it belongs to."""
    return Line(line.level, f"[{workspace_id}] {line.text}")


def with_hint(text: str, hint: str) -> str:
    """*text* with its hint."""
    return f"{one_line(text, 400)} -> {one_line(hint, 400)}" if hint else one_line(text, 400)


def _message_line(event: events.MessageEvent) -> Line | None:
    row = one_line(event.row_id, 64)
    match event:
        case events.Received():
            return Line(INFO, f"{row} received from {who(event.caller_id)}: {one_line(event.text)}")
        case events.Started(attempt=attempt) if attempt > 1:
            return Line(INFO, f"{row} attempt {attempt}")
        case events.Progressed():
            return Line(INFO, f"{row} running: {one_line(event.text)}")
        case events.Answered(silent=True):
            return Line(INFO, f"{row} handled without a reply in {span(event.seconds)}")
        case events.Answered():
            cost = f" for ${event.cost_usd:.2f}" if event.cost_usd else ""
            return Line(INFO, f"{row} answered in {span(event.seconds)}{cost}: {one_line(event.text)}")
        case events.Delivered():
            return Line(INFO, f"{row} delivered" + ("" if event.confirmed else ", not confirmed by the platform"))
        case events.Retrying():
            return Line(WARNING, f"{row} {event.what}: {one_line(event.reason)}; again in {span(event.seconds)}")
        case events.Dead():
            return Line(ERROR, with_hint(f"{row} given up: {one_line(event.reason, 400)}", event.hint))
        case events.Notified(error=""):
            return Line(INFO, f"{row} notified the sender that there is no reply")
        case events.Notified():
            text = f"{row} could not notify the sender that there is no reply: {one_line(event.error, 400)}"
            return Line(WARNING, text)
        case events.Recorded():
            return Line(INFO, f"{row} {event.kind} from {who(event.caller_id)}: {one_line(event.text)}")
    return None


def _workspace_line(event: events.Event) -> Line | None:
    match event:
        case events.Registered():
            return Line(INFO, "registered")
        case events.Listening():
            return Line(INFO, f"listening by {event.by}")
        case events.Trouble():
            return Line(ERROR, with_hint(problem_text(event.part, event.reason), event.hint))
        case events.Recovered():
            return Line(INFO, f"{event.part}: recovered")
        case events.Notice():
            return Line(WARNING, with_hint(event.text, event.hint))
        case events.Described():
            return Line(INFO, event.text)
        case events.Paused():
            return Line(WARNING, "paused on the platform: messages are stored but not processed")
        case events.Resumed():
            return Line(INFO, "resumed")
        case events.Stopping():
            return Line(INFO, stopping(event))
        case events.Stopped():
            return Line(INFO, "stopped")
        case events.Reloaded():
            return Line(INFO, event.text)
        case events.ReloadRefused():
            return Line(ERROR, with_hint(event.text, event.hint))
        case events.Beat():
            wedged = f", wedged: {one_line(event.wedged)}" if event.wedged else ""
            return Line(DEBUG, f"heartbeat accepted: {event.active_tasks} running{wedged}")
    return None


def problem_text(part: str, reason: str) -> str:
    """A problem and the part that has it, named once."""
    return reason if reason.startswith(f"{part}:") else f"{part}: {reason}"


def stopping(event: events.Stopping) -> str:
    """The line for a worker that is stopping."""
    if not event.running:
        return "stopping"
    return (
        f"stopping: {event.running} running, at most {span(event.grace)}; a second signal exits at once;"
        " unfinished messages stay in the journal and are answered at the next start"
    )


class LineScreen:
    """Writes plain lines: time (UTC), level, text. Progress of a message is limited to one line per second."""

    def __init__(
        self,
        stream: TextIO,
        options: LogOptions = DEFAULT,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._wall = wall
        self._monotonic = monotonic
        self._progress_written: dict[tuple[str, str], float] = {}
        self._writer = LineWriter(stream, lambda count: self._line(Line(WARNING, f"dropped {count} lines")))
        self._served: set[str] = set()

    def open(self, summaries: list[Summary]) -> None:
        self._served.update(summary.workspace_id for summary in summaries)
        for summary in summaries:
            self._writer.put(self._line(Line(INFO, f"molecule connect: {summary.text}")))

    def plan(self, summaries: list[Summary]) -> None:
        self.open(summaries)

    def forget(self, workspace_id: str) -> None:
        self._served.discard(workspace_id)

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.MessageEvent) and not self._is_due(event):
            return
        shown = self._options.filter(event)
        line = line_of(shown) if shown is not None else None
        if line is not None:
            is_named = event.workspace_id and len(self._served) > 1
            self._writer.put(self._line(named(line, event.workspace_id) if is_named else line))

    def note(self, level: str, text: str, hint: str = "") -> None:
        if self._options.logs(level.lower()):
            self._writer.put(self._line(Line(level, with_hint(text, hint))))

    def fail(self, text: str, hint: str, exit_code: int, traceback: str = "") -> None:
        self._writer.put(failure(text, hint, traceback))

    def last_words(self, text: str, exit_code: int) -> str:
        return text

    def close(self) -> None:
        self._writer.close()

    def _is_due(self, event: events.MessageEvent) -> bool:
        key = (event.workspace_id, event.row_id)
        if not isinstance(event, events.Progressed):
            if isinstance(event, events.Answered | events.Retrying | events.Dead):
                self._progress_written.pop(key, None)
            return True
        now = self._monotonic()
        if now - self._progress_written.get(key, -1.0) < 1.0:
            return False
        self._progress_written[key] = now
        return True

    def _line(self, line: Line) -> str:
        return f"{_time_of(int(self._wall()))} {line.level:7} {line.text}"


@functools.lru_cache(maxsize=4)
def _time_of(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second))
