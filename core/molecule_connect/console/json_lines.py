"""One JSON object per event. The keys are stable: ``v``, ``event``, ``time``, ``level``, and the fields of the event.

``docs/log-events.md`` is their reference.
"""

import datetime
import json
import time
from collections.abc import Callable
from typing import Any, TextIO

import attrs

from molecule_connect import events
from molecule_connect.console.log_options import DEFAULT, LogOptions, event_name, level_of
from molecule_connect.console.screen import Summary
from molecule_connect.console.writer import LineWriter

# Raised when an event or a field is removed or gets another meaning, but not when one is added.
VERSION = 1


class JsonScreen:
    """Writes JSON lines in ASCII. Lines that aren't events are named starting, log, error and left_out."""

    def __init__(self, stream: TextIO, options: LogOptions = DEFAULT, *, wall: Callable[[], float] = time.time) -> None:
        self._options = options
        self._wall = wall
        self._shapes: dict[type[events.Event], tuple[str, tuple[str, ...]]] = {}
        self._writer = LineWriter(stream, lambda count: self._line("left_out", "warning", count=count))

    def open(self, summaries: list[Summary]) -> None:
        for summary in summaries:
            self._writer.put(self._line("starting", "info", **attrs.asdict(summary)))

    def plan(self, summaries: list[Summary]) -> None:
        self.open(summaries)

    def forget(self, workspace_id: str) -> None:
        """Does nothing: each line names its workspace."""

    def __call__(self, event: events.Event) -> None:
        if (shown := self._options.filter(event)) is None:
            return
        event = shown
        name, fields = self._shapes.get(type(event)) or self._shape(type(event))
        self._writer.put(self._line(name, level_of(event), **{field: getattr(event, field) for field in fields}))

    def note(self, level: str, text: str, hint: str = "") -> None:
        if self._options.logs(level.lower()):
            self._writer.put(self._line("log", level, text=text, hint=hint))

    def fail(self, text: str, hint: str, exit_code: int, traceback: str = "") -> None:
        more = {"traceback": traceback} if traceback else {}
        self._writer.put(self._line("error", "error", text=text, hint=hint, exit_code=exit_code, **more))

    def last_words(self, text: str, exit_code: int) -> str:
        return self._line("error", "error", text=text, hint="", exit_code=exit_code) if text else ""

    def close(self) -> None:
        self._writer.close()

    def _shape(self, kind: type[events.Event]) -> tuple[str, tuple[str, ...]]:
        shape = event_name(kind), tuple(field.name for field in attrs.fields(kind))
        self._shapes[kind] = shape
        return shape

    def _line(self, name: str, level: str, /, **fields: Any) -> str:
        moment = datetime.datetime.fromtimestamp(self._wall(), datetime.UTC)
        head = {"v": VERSION, "event": name, "time": moment.isoformat(timespec="microseconds"), "level": level}
        return json.dumps({**head, **fields}, default=str)
