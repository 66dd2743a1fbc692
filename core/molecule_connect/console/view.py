"""The state of the live view: events and the journal in, a snapshot out, independent of terminals."""

import collections
import copy
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs

from molecule_connect import events
from molecule_connect.console.journal_facts import JournalFacts
from molecule_connect.console.lines import INFO, Line, line_of, named
from molecule_connect.console.names import Label, PeerNames
from molecule_connect.console.outages import Cause, Problem, causes
from molecule_connect.console.sanitize import count, one_line
from molecule_connect.journal.inspect import MessageSummary
from molecule_connect.journal.models import State
from molecule_connect.journal.totals import Totals

MOST_ROWS, MOST_LINES = 500, 200
# Lines shown below the messages, and seconds for which they are.
MOST_NOTES, NOTE_AGE = 3, 600.0
# Dead letters are shown for this long, in seconds; 'molecule messages' lists all of them.
FAILED_AGE = 24 * 3600.0
_FINISHED = frozenset(("delivered", "silent", "recorded"))
_WAITING = frozenset(("waiting", "retry"))
_KINDS = ("running", "failed", "retry", "answered", "finished", "waiting")
_PRINTED = (
    events.Trouble, events.Recovered, events.Notice, events.Described, events.Dead, events.Paused, events.Resumed,
    events.Reloaded, events.ReloadRefused,
)  # fmt: skip
_NOTED = (events.Notice, events.Described, events.Reloaded, events.ReloadRefused)
_STATES = {
    State.RECEIVED: "waiting",
    # Of an earlier process: it is tried again.
    State.RUNNING: "waiting",
    State.CLAIMED: "waiting",
    State.ANSWERED: "answered",
    State.DONE: "delivered",
    State.DEAD: "failed",
}


@attrs.define(kw_only=True)
class MessageRow:
    """A message. Times without another unit are monotonic, in seconds.

    Attributes:
        time: When it was received, in seconds since 1970.
        text: The beginning of the message, in one line.
        detail: The progress, the beginning of the reply, or the error: unchecked text.
        attempt: The number of the current or last attempt, or, in state "retry", of the next one; 0 if that is unknown.
        started: When the running attempt started.
        worked: Seconds of all attempts that have ended.
        until: When it is tried again.
        ended: When it reached its last state.
        cost_usd: As far as the backend reported it.
        hint: How to find the cause of a failure.
    """

    workspace_id: str
    row_id: str
    caller_id: str | None
    time: float
    text: str = ""
    state: str = "waiting"
    detail: str = ""
    attempt: int = 0
    started: float | None = None
    worked: float = 0.0
    until: float | None = None
    ended: float = 0.0
    cost_usd: float = 0.0
    hint: str = ""

    def seconds(self, now: float) -> float:
        """How long the backend has worked on it, in all attempts."""
        return self.worked + (max(0.0, now - self.started) if self.started is not None else 0.0)


@attrs.define(kw_only=True)
class WorkspaceStatus:
    """The status of a workspace. Times are monotonic, in seconds.

    Attributes:
        stops_at: When the grace period of a stop ends.
        is_over: Whether the workspace is no longer served.
    """

    registered: bool = False
    listening: str = ""
    last_beat: float | None = None
    paused: bool = False
    stops_at: float | None = None
    is_over: bool = False
    running: int = 0
    problems: tuple[Problem, ...] = ()

    @property
    def is_healthy(self) -> bool:
        """Whether there is nothing to report about it."""
        return self.registered and not (self.problems or self.paused or self.is_over or self.stops_at is not None)


@attrs.frozen(kw_only=True)
class Counts:
    """Numbers of messages: unfinished ones, and those of the local day. ``handled`` includes those without a reply."""

    running: int = 0
    waiting: int = 0
    handled: int = 0
    failed: int = 0
    cost_usd: float = 0.0


@attrs.frozen
class Note:
    """A line for the operator. ``time`` is in seconds since 1970."""

    time: float
    line: Line


@attrs.frozen(kw_only=True)
class Snapshot:
    """The data to draw the view from.

    Attributes:
        labels: How the callers of ``rows`` are shown, by workspace and id.
        causes: The current problems of all workspaces.
        now: Monotonic, in seconds.
    """

    workspaces: tuple[tuple[str, WorkspaceStatus], ...] = ()
    rows: tuple[MessageRow, ...] = ()
    labels: Mapping[tuple[str, str | None], Label] = attrs.field(factory=dict)
    causes: tuple[Cause, ...] = ()
    counts: Counts = Counts()
    notes: tuple[Note, ...] = ()
    uptime: float = 0.0
    now: float = 0.0


def arranged(rows: Iterable[MessageRow], most: int, now: float) -> list[MessageRow]:
    """At most *most* rows of each kind: running, failed, to be retried, to be sent, finished, waiting ones.

    The waiting ones that are next come first; of the others, the newest do.
    """
    kinds: dict[int, collections.deque[MessageRow]] = {}
    for row in rows:
        kind = kind_of(row.state)
        if row.state == "waiting":
            chosen = kinds.setdefault(kind, collections.deque())
            if len(chosen) < most:
                chosen.append(row)
        elif row.state != "failed" or now - row.ended < FAILED_AGE:
            kinds.setdefault(kind, collections.deque(maxlen=most)).appendleft(row)
    return [row for kind in sorted(kinds) for row in _in_order(kinds[kind])]


def _in_order(rows: Sequence[MessageRow]) -> list[MessageRow]:
    if rows and rows[0].state == "waiting":
        return list(rows)
    return sorted(rows, key=lambda row: row.ended, reverse=True)


def kind_of(state: str) -> int:
    """The place of a message in the view."""
    return _KINDS.index("finished" if state in _FINISHED else state)


class View:
    """The state of the live view. Not thread-safe."""

    def __init__(
        self, *, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._started = monotonic()
        self._statuses: dict[str, WorkspaceStatus] = {}
        self._rows: dict[tuple[str, str], MessageRow] = {}
        # Rows by state, of all messages that events were about, including those whose row made room.
        self._running: set[tuple[str, str]] = set()
        self._waiting: set[tuple[str, str]] = set()
        self._handled = self._failed = 0
        self._cost = 0.0
        self._totals: dict[str, Totals] = {}
        self._names: dict[str, dict[str, str]] = {}
        self._labels: dict[str, PeerNames] = {}
        self._announced: set[str] = set()
        self._notes: collections.deque[Note] = collections.deque(maxlen=MOST_NOTES)
        self._lines: collections.deque[Line] = collections.deque(maxlen=MOST_LINES)
        self._left_out = 0

    @property
    def workspaces(self) -> tuple[str, ...]:
        """The workspaces that are shown."""
        return tuple(self._statuses)

    def add(self, workspace_id: str) -> None:
        """Add a workspace."""
        self._statuses.setdefault(workspace_id, WorkspaceStatus())

    def forget(self, workspace_id: str) -> None:
        """Remove a workspace, but keep its messages."""
        self._statuses.pop(workspace_id, None)

    def add_line(self, line: Line, *, noted: bool = True) -> None:
        """Add a line for the normal screen. With *noted*, it is also shown in the view for a while."""
        self._left_out += len(self._lines) == MOST_LINES
        self._lines.append(line)
        if noted:
            self._notes.append(Note(self._wall(), line))

    def apply(self, event: events.Event) -> None:
        """Apply an event. Takes a few microseconds."""
        if isinstance(event, events.MessageEvent):
            self._apply_message(event)
        elif event.workspace_id:
            status = self._statuses.setdefault(event.workspace_id, WorkspaceStatus())
            self._apply_workspace(event, status)
        if isinstance(event, _PRINTED) and self._is_news(event):
            line = line_of(event)
            if line is not None:
                is_named = event.workspace_id and len(self._statuses) > 1
                line = named(line, event.workspace_id) if is_named else line
                self.add_line(line, noted=isinstance(event, _NOTED))

    def add_facts(self, facts: JournalFacts) -> None:
        """Add what the journal knows: sums, names, messages from before the start, and dead letters that are gone."""
        self._totals |= facts.totals
        for workspace_id, names in facts.names.items():
            self._name(workspace_id, names)
        for message in facts.messages:
            key = message.workspace_id, message.row_id
            if not any(key in known for known in (self._rows, self._waiting, self._running)):
                self._add_row(key, self._stored_row(message))
        for key in facts.gone:
            row = self._rows.get(key)
            if row is not None and row.state == "failed":
                del self._rows[key]

    def failed_rows(self) -> list[tuple[str, str]]:
        """Workspace and row id of the dead letters that are shown."""
        return [key for key, row in self._rows.items() if row.state == "failed"]

    def take_lines(self) -> list[Line]:
        """The lines for the normal screen, once. Of many, the newest."""
        lines = list(self._lines)
        if self._left_out:
            lines.insert(0, Line(INFO, f"{count(self._left_out, 'earlier line')} left out"))
        self._lines.clear()
        self._left_out = 0
        return lines

    def snapshot(self, max_rows: int) -> Snapshot:
        """The current view, with at most *max_rows* rows of each kind."""
        now = self._monotonic()
        running = collections.Counter(name for name, _ in self._running)
        rows = tuple(map(copy.copy, arranged(self._rows.values(), max_rows, now)))
        return Snapshot(
            workspaces=tuple(
                (name, attrs.evolve(status, running=running[name])) for name, status in self._statuses.items()
            ),
            rows=rows,
            labels={
                (row.workspace_id, row.caller_id): self._names_of(row.workspace_id).label(row.caller_id) for row in rows
            },
            causes=tuple(causes(self._problems())),
            counts=self._counts(),
            notes=tuple(note for note in self._notes if self._wall() - note.time < NOTE_AGE),
            uptime=now - self._started,
            now=now,
        )

    def _counts(self) -> Counts:
        running = len(self._running)
        if not self._totals:
            waiting, handled = len(self._waiting), self._handled
            return Counts(running=running, waiting=waiting, handled=handled, failed=self._failed, cost_usd=self._cost)
        totals = self._totals.values()
        return Counts(
            running=running,
            waiting=max(0, sum(one.unfinished for one in totals) - running),
            handled=sum(one.handled for one in totals),
            failed=sum(one.failed for one in totals),
            cost_usd=sum(one.cost_usd for one in totals),
        )

    def _problems(self) -> Iterable[Problem]:
        return (problem for status in self._statuses.values() for problem in status.problems)

    def _is_news(self, event: events.Event) -> bool:
        """Whether *event* is worth a line: the parts that an outage affects have one line together."""
        if not isinstance(event, events.Trouble | events.Recovered):
            return True
        # A stream alone is no outage: messages are noticed by polling. The view shows it while it lasts.
        current = (cause for cause in causes(self._problems()) if cause.parts != ("stream",))
        before, self._announced = self._announced, {cause.problems[0].cause for cause in current}
        if isinstance(event, events.Trouble):
            return not self._announced <= before
        return not before <= self._announced

    def _name(self, workspace_id: str, names: Mapping[str, str]) -> None:
        self._names.setdefault(workspace_id, {}).update(names)
        self._labels.pop(workspace_id, None)

    def _names_of(self, workspace_id: str) -> PeerNames:
        if workspace_id not in self._labels:
            self._labels[workspace_id] = PeerNames(self._names.get(workspace_id, {}))
        return self._labels[workspace_id]

    def _stored_row(self, message: MessageSummary) -> MessageRow:
        now, wall = self._monotonic(), self._wall()
        row = MessageRow(
            workspace_id=message.workspace_id,
            row_id=message.row_id,
            caller_id=message.caller_id,
            time=message.time / 1e6,
            text=one_line(message.text),
            state=_STATES[message.state],
            detail=message.answer or "",
            attempt=message.attempt,
            worked=sum(run.seconds or 0.0 for run in message.runs),
            ended=now - max(0.0, wall - message.changed),
            cost_usd=message.cost_usd or 0.0,
        )
        match message.state:
            case State.RECEIVED | State.RUNNING | State.CLAIMED:
                row.detail = ""
                if message.is_deferred(wall) and message.not_before is not None:
                    row.state, row.until = "retry", now + message.not_before - wall
                    row.attempt, row.detail = message.attempt + 1, message.error or ""
            case State.DONE if not message.has_reply:
                row.state, row.detail = "silent", ""
            case State.DEAD:
                row.detail = message.reason or ""
        return row

    def _add_row(self, key: tuple[str, str], row: MessageRow) -> None:
        self._rows[key] = row
        if len(self._rows) > MOST_ROWS:
            # Finished rows make room first, then waiting ones: they are only counted.
            kinds = (_FINISHED, frozenset(("waiting",)), frozenset(("failed",)))
            oldest = next((one for kind in kinds for one, each in self._rows.items() if each.state in kind), None)
            del self._rows[oldest or next(iter(self._rows))]

    def _apply_message(self, event: events.MessageEvent) -> None:
        key = (event.workspace_id, event.row_id)
        row = self._rows.get(key)
        if row is None:
            row = MessageRow(
                workspace_id=event.workspace_id, row_id=event.row_id, caller_id=event.caller_id, time=self._wall()
            )
            self._add_row(key, row)
        if isinstance(event, events.Received | events.Started | events.Answered) and row.state == "failed":
            self._failed -= 1  # replayed
            row.attempt = 0
        match event:
            case events.Received():
                row.text = one_line(event.text)
                self._move(key, row, "waiting")
            case events.Started():
                row.text = one_line(event.text) or row.text
                row.attempt = event.attempt
                self._move(key, row, "running")
                row.started = self._monotonic()
            case events.Progressed():
                if row.state != "running":
                    self._move(key, row, "running")
                row.detail = event.text
            case events.Answered():
                row.worked, row.started = row.worked + event.seconds, None
                self._handled += event.silent
                self._move(key, row, "silent" if event.silent else "answered", "" if event.silent else event.text)
            case events.Spent():
                row.cost_usd += event.cost_usd
                self._cost += event.cost_usd
            case events.Delivered() | events.Retrying() if row.state == "failed":
                # This is the notice that there is no reply.
                return
            case events.Delivered():
                self._handled += 1
                self._move(key, row, "delivered", row.detail if event.confirmed else "not confirmed")
            case events.Retrying():
                row.attempt = event.attempt
                self._move(key, row, "answered" if event.what == "sending" else "retry", event.reason)
                row.until = self._monotonic() + event.seconds
            case events.Dead():
                self._failed += row.state != "failed"
                self._move(key, row, "failed", event.reason)
                row.hint = event.hint
            case events.Notified() if row.state != "failed":  # a dead letter from before a restart
                self._failed += 1
                self._move(key, row, "failed", "given up")
            case events.Recorded():
                row.text = one_line(event.text)
                self._move(key, row, "recorded", event.kind)

    def _move(self, key: tuple[str, str], row: MessageRow, state: str, detail: str = "") -> None:
        row.worked, row.started = row.seconds(self._monotonic()), None
        row.state, row.detail, row.until, row.ended = state, detail, None, self._monotonic()
        for keys, names in ((self._running, ("running",)), (self._waiting, _WAITING)):
            if state in names:
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
                problem = Problem(event.workspace_id, event.part, event.reason, event.hint)
                status.problems = (*_without(status.problems, event.part), problem)
            case events.Recovered():
                status.problems = _without(status.problems, event.part)
            case events.Paused() | events.Resumed():
                status.paused = isinstance(event, events.Paused)
                status.registered = status.registered or not status.paused
                _started(status)
            case events.PeerNamed():
                self._name(event.workspace_id, {event.peer_id: event.name})
            case events.Stopping():
                status.stops_at = self._monotonic() + event.grace
            case events.Stopped():
                status.is_over = True


def _without(problems: Iterable[Problem], part: str) -> tuple[Problem, ...]:
    return tuple(problem for problem in problems if problem.part != part)


def _started(status: WorkspaceStatus) -> None:
    """Clear the state of an earlier run."""
    status.stops_at, status.is_over = None, False
    status.problems = _without(status.problems, "connection")
