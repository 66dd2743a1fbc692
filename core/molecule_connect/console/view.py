"""The state of the live view: events in, a snapshot out, independent of terminals."""

import collections
import time
from collections.abc import Callable

import attrs

from molecule_connect import events
from molecule_connect.console.lines import Line, line_of, named, stopping
from molecule_connect.console.sanitize import one_line, span, who

_MAX_ROWS = 500
_FINISHED = frozenset(("delivered", "silent", "failed", "recorded"))
_PRINTED_ABOVE = (
    events.Trouble, events.Recovered, events.Notice, events.Described, events.Dead, events.Paused, events.Resumed,
    events.Reloaded, events.ReloadRefused,
)  # fmt: skip


@attrs.define(kw_only=True)
class MessageRow:
    """A row of the message table. ``time`` is in seconds since 1970."""

    workspace_id: str
    time: float
    caller: str
    text: str = ""
    state: str = "waiting"
    detail: str = ""

    @property
    def is_finished(self) -> bool:
        return self.state in _FINISHED


@attrs.define(kw_only=True)
class WorkspaceStatus:
    """The status of a workspace. ``last_beat`` is monotonic, in seconds."""

    registered: bool = False
    listening: str = ""
    last_beat: float | None = None
    paused: bool = False
    stopping: str = ""
    problems: dict[str, tuple[str, str]] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Counts:
    """Numbers of messages of this run, by state."""

    received: int
    waiting: int
    running: int
    delivered: int
    failed: int


@attrs.frozen(kw_only=True)
class Snapshot:
    """The data to draw the view from. The lines ``above`` are printed once above it."""

    workspaces: tuple[tuple[str, WorkspaceStatus], ...]
    rows: tuple[MessageRow, ...]
    counts: Counts
    above: tuple[Line, ...]
    uptime: float
    now: float


def pick(rows: tuple[MessageRow, ...], room: int) -> tuple[MessageRow, ...]:
    """At most *room* rows, in order. Old finished rows are left out first, then old ones."""
    spare = len(rows) - room
    kept = []
    for row in rows:
        if spare > 0 and row.is_finished:
            spare -= 1
        else:
            kept.append(row)
    return tuple(kept[len(kept) - room :] if len(kept) > room else kept)


class View:
    """The state of the live view. Not thread-safe."""

    def __init__(
        self, *, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._started = monotonic()
        self._statuses: dict[str, WorkspaceStatus] = {}
        self._rows: collections.OrderedDict[tuple[str, str], MessageRow] = collections.OrderedDict()
        self._waiting: set[tuple[str, str]] = set()
        self._running: set[tuple[str, str]] = set()
        self._received = self._delivered = self._failed = 0
        self._above: collections.deque[Line] = collections.deque(maxlen=200)

    def add(self, workspace_id: str) -> None:
        """Add a workspace."""
        self._statuses.setdefault(workspace_id, WorkspaceStatus())

    def forget(self, workspace_id: str) -> None:
        """Remove a workspace, but keep its messages."""
        self._statuses.pop(workspace_id, None)

    def print_above(self, line: Line) -> None:
        """Add a line to print above the view."""
        self._above.append(line)

    def apply(self, event: events.Event) -> None:
        """Apply an event. Takes a few microseconds."""
        if isinstance(event, _PRINTED_ABOVE):
            line = line_of(event)
            if line is not None:
                is_named = event.workspace_id and len(self._statuses) > 1
                self._above.append(named(line, event.workspace_id) if is_named else line)
        if isinstance(event, events.Reloaded | events.ReloadRefused):
            return
        if isinstance(event, events.MessageEvent):
            self._apply_message(event)
        else:
            self._apply_workspace(event, self._statuses.setdefault(event.workspace_id, WorkspaceStatus()))

    def snapshot(self, max_rows: int) -> Snapshot:
        """The current view, with at most *max_rows* rows. Clears ``above``."""
        above = tuple(self._above)
        self._above.clear()
        return Snapshot(
            workspaces=tuple((name, attrs.evolve(status)) for name, status in self._statuses.items()),
            rows=tuple(attrs.evolve(row) for row in pick(tuple(self._rows.values()), max_rows)),
            counts=Counts(
                received=self._received,
                waiting=len(self._waiting),
                running=len(self._running),
                delivered=self._delivered,
                failed=self._failed,
            ),
            above=above,
            uptime=self._monotonic() - self._started,
            now=self._monotonic(),
        )

    def _apply_message(self, event: events.MessageEvent) -> None:
        key = (event.workspace_id, event.row_id)
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = MessageRow(
                workspace_id=event.workspace_id, time=self._wall(), caller=who(event.caller_id)
            )
            if len(self._rows) > _MAX_ROWS:
                self._rows.popitem(last=False)
        if isinstance(event, events.Received | events.Started | events.Answered) and row.state == "failed":
            self._failed -= 1  # replayed
        match event:
            case events.Received():
                self._received += 1
                row.text = one_line(event.text)
                self._move(key, row, "waiting")
            case events.Started():
                row.text = one_line(event.text) or row.text
                self._move(key, row, "running", f"attempt {event.attempt}" if event.attempt > 1 else "")
            case events.Progressed():
                self._move(key, row, "running", one_line(event.text))
            case events.Answered():
                detail = f"no reply, {span(event.seconds)}" if event.silent else one_line(event.text)
                self._move(key, row, "silent" if event.silent else "answered", detail)
            case events.Delivered() | events.Retrying() if row.state == "failed":
                # This is the notice that there is no reply.
                return
            case events.Delivered():
                self._delivered += 1
                self._move(key, row, "delivered", row.detail if event.confirmed else "not confirmed")
            case events.Retrying():
                self._move(key, row, "retry", f"{one_line(event.reason)}; again in {span(event.seconds)}")
            case events.Dead():
                self._failed += row.state != "failed"
                self._move(key, row, "failed", one_line(event.reason))
            case events.Notified() if row.state != "failed":  # a dead letter from before a restart
                self._failed += 1
                self._move(key, row, "failed", "given up")
            case events.Recorded():
                row.text = one_line(event.text)
                self._move(key, row, "recorded", event.kind)

    def _move(self, key: tuple[str, str], row: MessageRow, state: str, detail: str = "") -> None:
        row.state, row.detail = state, detail
        for name, keys in (("running", self._running), ("waiting", self._waiting)):
            if name == state or (name == "waiting" and state == "retry"):
                keys.add(key)
            else:
                keys.discard(key)

    def _apply_workspace(self, event: events.Event, status: WorkspaceStatus) -> None:
        match event:
            case events.Registered():
                status.registered = True
                _started(status)
            case events.Listening():
                status.listening = event.by
            case events.Beat():
                status.last_beat = self._monotonic()
            case events.Trouble():
                status.problems = {**status.problems, event.part: (event.reason, event.hint)}
            case events.Recovered():
                status.problems = {part: text for part, text in status.problems.items() if part != event.part}
            case events.Paused() | events.Resumed():
                status.paused = isinstance(event, events.Paused)
                _started(status)
            case events.Stopping():
                status.stopping = stopping(event)
            case events.Stopped():
                status.stopping = "stopped"


def _started(status: WorkspaceStatus) -> None:
    """Clear the state of an earlier run."""
    status.stopping = ""
    status.problems = {part: text for part, text in status.problems.items() if part != "connection"}
