"""The state of a workspace: as events, in its heartbeats, and in its status file."""

import asyncio
import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from molecule_connect import events
from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.errors import MoleculeError, without_credentials
from molecule_connect.flag import Flag
from molecule_connect.journal.inbox import InboxStore
from molecule_connect.journal.incoming import Stored
from molecule_connect.journal.models import State, StoredMessage, in_words
from molecule_connect.journal.workspace import WorkspaceJournal
from molecule_connect.models import Kind, Presence
from molecule_connect.worker.status_file import REFRESH, Problem, SavedStatus, status_path, write_status

# Seconds between writes of the status file after changes.
SAVE_PAUSE = 1.0

# The error rate covers this many seconds, and needs at least this many attempts.
OUTCOME_AGE = 300.0
FEWEST_OUTCOMES = 3
# Outcomes kept per caller.
MOST_OUTCOMES = 200
# A reply by another program is a problem for this long after it appeared, in seconds.
FOREIGN_SECONDS = 600.0
# The platform clamps the spend there (contract 2.2).
MOST_CENTS = 10**12


class Status:
    """The state of one workspace.

    The components of a worker report to it. It emits events, provides the content of heartbeats, and keeps the status
    file. Create it inside the event loop that serves the workspace.

    Args:
        inbox: Of a workspace without a backend: knows how many messages readers have claimed.
        wall: Seconds since 1970.

    Attributes:
        wedged_changed: Set when ``wedged`` changes. The heartbeat clears it.
        messages_changed: Set when messages were stored or finished. The maintenance clears it.
    """

    def __init__(
        self,
        settings: WorkspaceSettings,
        listener: events.Listener,
        *,
        journal: WorkspaceJournal,
        inbox: InboxStore | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.workspace_id = settings.workspace_id
        self.wedged_changed = Flag()
        self.messages_changed = Flag()
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._journal = journal
        self._inbox = inbox
        self._wall = wall
        self._problems: dict[str, Problem] = {}
        self._lasting: dict[str, str] = {}
        self._outcomes = _Outcomes()
        # The progress of the backend, by row.
        self._running: dict[str, str] = {}
        # Messages of an inbox that arrived since the start, with their time of arrival (loop time).
        self._unfinished: dict[str, tuple[events.Received, float]] = {}
        self._foreign_reply_at: float | None = None
        self._heartbeat_sent_at = float("-inf")
        self._started_at = self._loop.time()
        self._saved = SavedStatus(
            workspace_id=settings.workspace_id,
            api_url=without_credentials(settings.api_url),
            backend=settings.backend_name,
            inbox=inbox is not None,
            labels=settings.labels,
        )
        self._folder: Path | None = None
        # The next write of the status file, and the end of the pause after the last one (loop time).
        self._save_timer: asyncio.TimerHandle | None = None
        self._paused_until = 0.0

    # Problems

    def report(self, part: str, reason: str, hint: str = "", *, lasting: bool = False) -> None:
        """Report a problem of *part*; emits an event unless the same problem was reported before.

        Args:
            lasting: More than a transient failure: heartbeats report it until ``clear``.
        """
        if lasting:
            if part not in self._lasting:
                self.wedged_changed.set()
            self._lasting[part] = reason
        known = self._problems.pop(part, None)
        since = known.since if known is not None else self._wall()
        self._problems[part] = problem = Problem(part=part, reason=reason, hint=hint, since=since)
        if problem != known:
            self.emit(events.Trouble(workspace_id=self.workspace_id, part=part, reason=reason, hint=hint))

    def clear(self, part: str) -> bool:
        """Clear the problem of *part*. Returns whether it was a lasting one."""
        was_broken = self._lasting.pop(part, None) is not None
        if was_broken:
            self.wedged_changed.set()
        if self._problems.pop(part, None) is not None:
            self.emit(events.Recovered(workspace_id=self.workspace_id, part=part))
        return was_broken

    def is_broken(self, part: str) -> bool:
        """Whether *part* has a lasting problem."""
        return part in self._lasting

    @property
    def wedged_parts(self) -> tuple[str, ...]:
        """The parts with a lasting problem."""
        return tuple(self._lasting)

    @property
    def heartbeat_at(self) -> float | None:
        """When the platform last accepted a heartbeat, in seconds since 1970."""
        return self._saved.last_beat

    @property
    def is_registered(self) -> bool:
        """Whether the platform registered the workspace."""
        return self._saved.registered

    @property
    def is_paused(self) -> bool:
        """Whether the workspace is paused on the platform."""
        return self._saved.paused

    @property
    def wedged(self) -> str:
        """The lasting problems in one line; empty without any."""
        return "; ".join(f"{part}: {reason}" for part, reason in self._lasting.items())

    # Events

    def emit(self, event: events.Event) -> None:
        """Process *event*, and pass it to the listener, whose errors go to the loop's exception handler."""
        if isinstance(event, events.MessageEvent):
            self._follow_message(event)
        else:
            self._follow_worker(event)
        try:
            self._listener(event)
        except Exception as exc:  # must not fail the message that the event is about
            context = {"message": "the listener for events failed", "exception": exc}
            asyncio.get_running_loop().call_exception_handler(context)

    def notice(self, text: str, hint: str = "") -> None:
        """Emit a notice for the operator."""
        self.emit(events.Notice(workspace_id=self.workspace_id, text=text, hint=hint))

    def message_event(self, kind: type[events.MessageEvent], message: StoredMessage, **facts: Any) -> None:
        """Emit an event about *message*: ``message_event(events.Started, message, attempt=1)``."""
        self.emit(
            kind(
                workspace_id=self.workspace_id,
                row_id=message.row_id,
                caller_id=message.caller_id,
                context_id=message.context_id,
                **facts,
            )
        )

    def received(self, stored: Sequence[Stored]) -> None:
        """New rows are in the journal."""
        if stored:
            self.messages_changed.set()
        for row in stored:
            self._emit_stored(row)
            # Older echoes may be of a program that ran before.
            if row.foreign_echo and row.time > round(self._saved.started * 1e6):
                self._report_foreign_reply()

    def report_finished(self) -> None:
        """Emit events for the messages of an inbox that readers, in any process, finished without a reply."""
        if self._inbox is None:
            return
        for row_id in self._inbox.finished(self.workspace_id, self._unfinished):
            received, since = self._unfinished[row_id]
            self.emit(
                events.Answered(
                    workspace_id=self.workspace_id,
                    row_id=row_id,
                    caller_id=received.caller_id,
                    context_id=received.context_id,
                    text="",
                    seconds=self._loop.time() - since,
                    silent=True,
                )
            )

    def attempt_ended(self, caller_id: str | None, error: str = "") -> None:
        """An attempt for *caller_id* succeeded, or failed with *error*."""
        self._outcomes.add(caller_id, error)

    @property
    def running(self) -> int:
        """Messages at the backend."""
        return len(self._running)

    # Heartbeats

    def presence(self, remark: str = "") -> Presence:
        """The content of a heartbeat. A *remark* takes the place of the newest error of the backend."""
        active_tasks, current_task = self.running, next(iter(self._running.values()), "")
        if self._inbox is not None:
            active_tasks, current_task = self._inbox_tasks(self._inbox)
        return Presence(
            active_tasks=active_tasks,
            current_task=current_task,
            uptime_seconds=self._uptime(),
            error_rate=self._outcomes.error_rate(),
            sample_error=remark or self._outcomes.newest_error(),
            wedged=self.wedged,
            monthly_spend_cents=round(min(self._journal.month_spend() * 100, MOST_CENTS)),
        )

    def final_presence(self) -> Presence:
        """The content of the last heartbeat."""
        return Presence(wedged="stopped", uptime_seconds=self._uptime())

    def heartbeat_accepted(self, presence: Presence, *, sent_at: float) -> None:
        """The platform accepted a heartbeat with this content, sent at *sent_at* (loop time)."""
        self._heartbeat_sent_at = sent_at
        self.clear("heartbeat")
        if self._foreign_reply_at is not None and self._loop.time() - self._foreign_reply_at >= FOREIGN_SECONDS:
            self.clear("people")
        tasks, wedged = presence.active_tasks, presence.wedged
        self.emit(events.Beat(workspace_id=self.workspace_id, active_tasks=tasks, wedged=wedged))

    def heartbeat_accepted_since(self, moment: float) -> bool:
        """Whether the last accepted heartbeat was sent after *moment* (loop time)."""
        return self._heartbeat_sent_at > moment

    # The status file

    @contextlib.contextmanager
    def saved_in(self, folder: Path) -> Iterator[None]:
        """Keep the status file inside the block, which only the holder of the lease may do.

        The file is removed afterwards; an error stays in it.
        """
        self._folder = folder
        self._started_at = self._loop.time()
        self._change(pid=os.getpid(), host=socket.gethostname(), started=self._wall())
        self._save_regularly()
        # The first change is saved without a pause.
        self._paused_until = self._loop.time()
        try:
            yield
        except Exception as exc:
            is_known = isinstance(exc, MoleculeError)
            reason = str(exc) if is_known else f"{type(exc).__name__}: {exc}"
            hint = exc.hint if isinstance(exc, MoleculeError) else ""
            self._change(ended=Problem(part="connection", reason=reason, hint=hint, since=self._wall()))
            self._save()
            raise
        finally:
            self._stop_saving()
            if self._saved.ended is None:
                with contextlib.suppress(OSError):
                    status_path(folder, self.workspace_id).unlink(missing_ok=True)

    def _save_regularly(self) -> None:
        """Save now, soon after changes, and after ``REFRESH`` seconds without any."""
        self._save()
        now = self._loop.time()
        self._paused_until = now + SAVE_PAUSE
        self._save_timer = self._loop.call_at(now + REFRESH, self._save_regularly)

    def _stop_saving(self) -> None:
        if self._save_timer is not None:
            self._save_timer.cancel()
            self._save_timer = None

    def _save(self) -> None:
        self._saved = attrs.evolve(self._saved, written=self._wall())
        if self._folder is not None:
            write_status(self._folder, self._saved)

    def _change(self, **changes: Any) -> None:
        self._saved = attrs.evolve(self._saved, **changes)
        if self._save_timer is not None and self._save_timer.when() > self._paused_until:
            self._save_timer.cancel()
            self._save_timer = self._loop.call_at(self._paused_until, self._save_regularly)

    # Following events

    def _follow_worker(self, event: events.Event) -> None:
        match event:
            case events.Registered():
                self._change(registered=True)
            case events.Listening():
                self._change(listening=event.by)
            case events.Beat():
                self._change(last_beat=self._wall())
            case events.Paused():
                self._change(paused=True)
            case events.Resumed():
                self._change(paused=False, registered=True)
            case events.Trouble() | events.Recovered():
                self._change(ailments=tuple(self._problems.values()))
            case events.Stopping():
                self._change(stopping=True)

    def _follow_message(self, event: events.MessageEvent) -> None:
        match event:
            case events.Received():
                if self._inbox is not None:
                    self._unfinished[event.row_id] = event, self._loop.time()
            case events.Started():
                self._running[event.row_id] = event.text[:80]
            case events.Progressed():
                self._running[event.row_id] = event.text
            case events.Retrying():
                self._running.pop(event.row_id, None)
            case events.Answered() | events.Dead():
                self._running.pop(event.row_id, None)
                self._unfinished.pop(event.row_id, None)
                self.messages_changed.set()
            case events.Delivered():
                self.messages_changed.set()

    def _emit_stored(self, row: Stored) -> None:
        item = row.item
        about: dict[str, Any] = {
            "workspace_id": self.workspace_id,
            "row_id": item.row_id,
            "caller_id": item.caller_id,
            "context_id": item.context_id,
        }
        text = in_words(item.parts)[:200]
        if row.state is State.RECEIVED:
            self.emit(events.Received(**about, text=text))
        elif row.state is State.DEAD:
            category = "unreadable" if item.kind is Kind.UNREADABLE else "quota"
            self.emit(events.Dead(**about, reason=row.reason or "", category=category))
        elif item.kind in (Kind.ANSWER, Kind.RESULT, Kind.UPLOAD) and not row.own_upload:
            self.emit(events.Recorded(**about, kind=item.kind.value, text=text))

    def _report_foreign_reply(self) -> None:
        if self._foreign_reply_at is None:
            self.notice(
                "another program replied to a person as this workspace",
                "check whether a connector on another machine serves the workspace",
            )
        self._foreign_reply_at = self._loop.time()
        self.report(
            "people",
            "another program sends replies to people as this workspace",
            "stop the other connector, or the other program that has this token",
        )

    def _inbox_tasks(self, inbox: InboxStore) -> tuple[int, str]:
        waiting, claimed = inbox.counts(self.workspace_id)
        if waiting:
            return claimed, f"{waiting} message{'s' * (waiting != 1)} wait{'s' * (waiting == 1)} for a reader"
        return claimed, f"{claimed} with a reader" if claimed else ""

    def _uptime(self) -> int:
        return int(self._loop.time() - self._started_at)


@attrs.frozen
class _Outcome:
    when: float
    caller_id: str | None
    error: str


class _Outcomes:
    """The outcomes of recent attempts, by caller: many attempts of one don't displace those of others."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._by_caller: dict[str | None, deque[_Outcome]] = {}

    def add(self, caller_id: str | None, error: str) -> None:
        """Add the outcome of an attempt; an empty *error* is a success."""
        outcomes = self._by_caller.setdefault(caller_id, deque(maxlen=MOST_OUTCOMES))
        outcomes.append(_Outcome(self._loop.time(), caller_id, error))

    def error_rate(self) -> float:
        """The share of failures among the attempts of the last five minutes; 0 for fewer than three attempts.

        If the attempts of a single caller fail, while others succeed, that caller's attempts don't count.
        """
        recent = self._recent()
        failing = {one.caller_id for one in recent if one.error}
        others = [one for one in recent if one.caller_id not in failing]
        counted = others if len(failing) == 1 and others else recent
        if len(counted) < FEWEST_OUTCOMES:
            return 0.0
        return sum(bool(one.error) for one in counted) / len(counted)

    def newest_error(self) -> str:
        """The newest error of the last five minutes."""
        return next((one.error for one in reversed(self._recent()) if one.error), "")

    def _recent(self) -> list[_Outcome]:
        since = self._loop.time() - OUTCOME_AGE
        self._by_caller = {caller: kept for caller, kept in self._by_caller.items() if kept[-1].when >= since}
        recent = (one for kept in self._by_caller.values() for one in kept if one.when >= since)
        return sorted(recent, key=lambda one: one.when)
