"""Serving one workspace: lease, recover, register, receive and dispatch, drain."""

import asyncio
import contextlib
import functools
import itertools
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

import attrs

from molecule_connect import events
from molecule_connect.backoff import Backoff
from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.config.try_line import try_hint
from molecule_connect.errors import (
    JournalError,
    LeaseError,
    MoleculeError,
    PlatformError,
    StateLostError,
    WorkspaceDeletedError,
)
from molecule_connect.files import files_folder
from molecule_connect.flag import Flag
from molecule_connect.journal.backlog import Backlog
from molecule_connect.journal.files import FileJournal
from molecule_connect.journal.inbox import InboxStore
from molecule_connect.journal.incoming import Stored
from molecule_connect.journal.journal import Journal
from molecule_connect.models import FeedPosition, FilePart, Handler, Progress, Request, Response, Signal
from molecule_connect.observers import Tracer, WorkspaceState
from molecule_connect.worker.admission import Admission
from molecule_connect.worker.attempt import Attempts
from molecule_connect.worker.budget import DailyBudget
from molecule_connect.worker.circuit_breaker import CircuitBreaker
from molecule_connect.worker.clock import SECOND, Clock
from molecule_connect.worker.cursor import CursorFile
from molecule_connect.worker.dispatcher import Dispatcher
from molecule_connect.worker.downloads import ChatFiles
from molecule_connect.worker.feed import FeedPage, FeedReader
from molecule_connect.worker.file_folder import FileFolder
from molecule_connect.worker.file_quota import FolderLimits
from molecule_connect.worker.fleet import Fleet
from molecule_connect.worker.intake import JOURNAL_WAIT, STALLED_AFTER, Intake
from molecule_connect.worker.lease import Lease, acquire, holder
from molecule_connect.worker.limits import ConcurrencyLimit
from molecule_connect.worker.loop_guard import LoopGuard
from molecule_connect.worker.maintenance import JournalSize, Maintenance
from molecule_connect.worker.peer_names import PeerDirectory
from molecule_connect.worker.polling import Polling
from molecule_connect.worker.ports import Pace, Platform, Unlimited
from molecule_connect.worker.presence import Heartbeat, Registration
from molecule_connect.worker.recorder import Recorder
from molecule_connect.worker.sending import ReplySender
from molecule_connect.worker.sharing import LeaseLostError, SeatGate
from molecule_connect.worker.status import Status
from molecule_connect.worker.stream import EventStream
from molecule_connect.worker.tracing import Tracing
from molecule_connect.worker.uploads import Attachments

# A run with ``once`` doesn't wait for messages that are deferred for longer, in seconds: beyond retries these are
# messages of a used-up budget, or held by the loop guard.
ONCE_PATIENCE = 900.0
ONCE_INTERVAL = 0.05
# Seconds between looks of a standby at the lease.
STANDBY_INTERVAL = 0.5
# Seconds that a stop may take beyond the grace period: for plain backends that don't return, and the last heartbeat.
ABANDON, LAST_HEARTBEAT = 1.5, 1.5
# The part under which problems with the lease that machines share are reported.
MIRROR = "mirror"
_START_RETRIES = Backoff(first=1.0, cap=60.0)


@attrs.frozen(kw_only=True)
class WorkerOptions:
    """Options that are set by the program, not by its operator.

    Attributes:
        presence: Register, and send heartbeats; False: another program keeps the workspace online.
        retries_refusals: A workspace that retries its start also retries after refusals.
        asked_at: When the program was asked to serve the workspace (loop time). A first start reads messages from a
            while before that. None: when the worker was created.
        pace: How far the platform's rate limit slows the workspace down.
        file_limits: How large the folder for the files of messages may get.
        wall: Seconds since 1970.
        fleet: The limits for all workspaces of the process; None for no limits.
        tracer: Traces the messages; None for no traces.
        gate: Says when the lease that is shared with other machines is certain; None if no other machine can take it.
    """

    presence: bool = True
    retries_refusals: bool = True
    asked_at: float | None = None
    pace: Pace = attrs.field(factory=Unlimited)
    file_limits: FolderLimits = attrs.field(factory=FolderLimits)
    wall: Callable[[], float] = time.time
    fleet: Fleet | None = None
    tracer: Tracer | None = None
    gate: SeatGate | None = None


class Worker:
    """Serves one workspace until it is stopped.

    Args:
        journal: Must be open while the worker runs. Lease, cursor file and status file are in its folder.
        handler: Produces the replies; None for an inbox, whose readers produce them.
    """

    def __init__(
        self,
        settings: WorkspaceSettings,
        *,
        platform: Platform,
        handler: Handler | None,
        journal: Journal,
        listener: events.Listener = events.ignore,
        options: WorkerOptions | None = None,
    ) -> None:
        self.settings = settings
        self.workspace_id = settings.workspace_id
        self._task_name = f"worker {self.workspace_id}"
        self._options = options or WorkerOptions()
        self._platform = platform
        self._folder = journal.path.parent
        wall = self._options.wall
        loop_time = asyncio.get_running_loop().time
        self._clock = Clock(platform, wall, monotonic=loop_time, started=self._options.asked_at)
        self._pace = self._options.pace
        self._file = journal
        self._journal = journal.of(settings.workspace_id, inbox=handler is None, quota=settings.journal_quota)
        self._cursor = CursorFile(self._folder, settings.workspace_id)
        inbox = InboxStore(journal) if handler is None else None
        self._status = Status(settings, listener, journal=self._journal, inbox=inbox, wall=wall)
        self._build_intake()
        self._build_dispatcher(handler or _no_handler)
        self._heartbeat = Heartbeat(
            platform,
            self._status,
            self._stream,
            self._dispatcher,
            pace=self._pace,
            interval=settings.heartbeat_interval,
        )
        size = JournalSize(journal, self._journal, settings.journal_quota, status=self._status)
        self._maintenance = Maintenance(self._journal, self._cursor, size, status=self._status, clock=self._clock)
        self._names = PeerDirectory(platform, self._journal, self._status, self._pace)
        self._first_read = Flag()
        self._lookup: asyncio.Task[None] | None = None
        self._lease: Lease | None = None
        # The error that ends the worker.
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def _build_intake(self) -> None:
        settings = self.settings
        self._stream = EventStream(self._platform, self._status)
        self._polling = Polling(
            self._stream,
            self._pace,
            poll_interval=settings.poll_interval,
            safety_interval=settings.safety_interval,
        )
        self._registration = Registration(
            self._platform,
            settings,
            self._status,
            self._stream,
            retries_refusals=self._options.retries_refusals,
        )
        reader = FeedReader(self._platform, self._journal, self._status, self._clock, since_secs=settings.since_secs)
        self._feed = Intake(reader, self._platform, self._polling, self._registration, self._status)

    def _build_dispatcher(self, handler: Handler) -> None:
        settings, status, clock = self.settings, self._status, self._clock
        folder = FileFolder(files_folder(self._folder, self.workspace_id))
        file_journal = FileJournal(self._file, self.workspace_id, folder.path)
        self._files = ChatFiles(self._platform, file_journal, folder, status, clock, self._options.file_limits)
        self._breaker = breaker = CircuitBreaker(status, try_hint(settings))
        fleet = self._options.fleet or Fleet(dict)
        self._budget = budget = DailyBudget(settings.max_cost_per_day, self._journal, status, clock, fleet)
        self._limit = limit = ConcurrencyLimit(settings.concurrency, breaker, budget, fleet)
        guard = LoopGuard(settings.peer_budget, self._journal, clock)
        admission = Admission(budget, guard, self._files, limit)
        tracing = Tracing(self._options.tracer, settings.backend_name)
        attempts = Attempts(handler, self._journal, breaker, budget, status, clock, tracing)
        attachments = Attachments(self._platform, file_journal, clock)
        sender = ReplySender(self._platform, self._journal, attachments, self._feed, status, clock, tracing)
        recorder = Recorder(self._journal, self._platform, status, clock)
        self._dispatcher = Dispatcher(self._journal, admission, attempts, sender, recorder, clock)

    async def run(self, stop: Flag) -> None:
        """Serve until *stop* is set, then drain; with ``once``, until all messages are answered.

        Raises:
            LeaseError: Another process serves the workspace.
            ConfigError: The platform has no such workspace.
            AuthError, PermanentPlatformError, TransientPlatformError: Registering failed for good.
            WorkspaceDeletedError: The workspace was deleted.
            JournalError: The journal can't be used.
        """
        await self._acquire_lease(stop)
        if (held := self._lease) is None:
            return
        try:
            with self._file.watched(self._fail, check=held.check), self._status.saved_in(self._folder):
                if await self._retry_start(self._recover, stop) and await self._register(stop):
                    await self._serve(stop)
        finally:
            self._lease = None
            held.release()

    def lose(self, error: LeaseLostError) -> None:
        """End at once: another machine serves the workspace."""
        self._fail(error)

    def clock_jumped(self) -> None:
        """The machine slept, or its clock was set: connections are dead, and messages may be due."""
        if self._lease is None:
            return
        self._heartbeat.send_now()
        self._stream.reopen()
        self._stream.announce()
        self._wake_after(self._journal.bound_waits())

    def journal_changed(self) -> None:
        """Another program, or a reader of the inbox, changed the journal."""
        if self._lease is None:
            return  # the messages belong to another process
        if not self._journal.is_inbox and self._journal.has_claims():
            # A reader from when this was an inbox may never finish.
            self._wake_after(self._journal.release_claims())
        self._dispatcher.wake_all()
        self._status.messages_changed.set()

    @property
    def has_read(self) -> bool:
        """Whether the feed was read to its end at least once."""
        return self._first_read.is_set()

    @property
    def stalled_for(self) -> float:
        """See ``Intake.stalled_for``. Waiting for a turn under the platform's rate limit is not a stall."""
        return 0.0 if self._platform.is_queued else self._feed.stalled_for

    def state(
        self,
        *,
        up: bool,
        backlog: Backlog | None = None,
        requests: Mapping[tuple[str, int], int] | None = None,
    ) -> WorkspaceState:
        """The state of the workspace.

        Args:
            up: ``run`` has not ended.
            backlog: Its messages; None if unknown.
            requests: Its requests to the platform, by endpoint and status code.
        """
        settings, status, read_at = self.settings, self._status, self._feed.read_at
        return WorkspaceState(
            workspace_id=self.workspace_id,
            backend=settings.backend_name,
            labels=settings.labels,
            up=up,
            unready=self._unready() if up else "ended",
            has_lease=self._lease is not None,
            is_registered=up and status.is_registered,
            is_paused=status.is_paused,
            wedged=status.wedged_parts,
            heartbeat_at=status.heartbeat_at,
            read_at=None if read_at is None else self._clock.wall() - (self._clock.monotonic() - read_at),
            busy=self._limit.busy,
            concurrency=settings.concurrency,
            is_circuit_open=self._breaker.backend.is_open,
            budget_remaining=self._budget.remaining(),
            rate_limit_remaining=self._pace.remaining,
            requests=requests or {},
            messages=None if backlog is None else backlog.counts,
            oldest_waiting=self._age(None if backlog is None else backlog.waiting_since),
            oldest_unsent=self._age(None if backlog is None else backlog.unsent_since),
        )

    def _age(self, since: int | None) -> float:
        return 0.0 if since is None else max(0, self._clock.now() - since) / SECOND

    def _unready(self) -> str:
        """Why the workspace isn't registered and reading; empty if it is."""
        if self._lease is None:
            return "standby" if self.settings.standby else "starting"
        if not (self._status.is_registered or self._status.is_paused):
            return "not registered"
        if self._status.is_broken("intake"):
            return "reading fails"
        if not self.has_read:
            return "not read yet"
        return "reading has stalled" if self.stalled_for > STALLED_AFTER else ""

    # Starting

    async def _retry_start(self, step: Callable[[], Awaitable[None]], stop: Flag) -> bool:
        """Run a step of the start. One of several workspaces retries transient errors. False: stopped meanwhile."""
        for failures in itertools.count(1):
            try:
                await step()
            except MoleculeError as exc:
                if not (self.settings.patient and not self.settings.once and exc.may_heal):
                    raise
                self._status.report("start", str(exc), f"{exc.hint}; trying again in at most a minute")
                if await stop.wait(_START_RETRIES.delay(failures)):
                    return False
            else:
                self._status.clear("start")
                break
        return True

    async def _acquire_lease(self, stop: Flag) -> None:
        """Take the lease, unless stopped meanwhile; a standby waits for it."""
        while not self.settings.standby or await self._wait_for_lease(stop):
            try:
                await self._retry_start(self._take_lease, stop)
                return
            except LeaseError:
                # Another standby may have been faster.
                if not self.settings.standby:
                    raise

    async def _wait_for_lease(self, stop: Flag) -> bool:
        """Wait until no other process serves the workspace. False: stopped meanwhile."""
        is_told = False
        while (found := holder(self._folder, self.workspace_id)) is not None:
            if not is_told:
                name = f"process {found.pid} on {found.host}" if found.pid else "another process"
                self._status.notice(
                    f"standby: {self.workspace_id} is served by {name}; it is taken over when that stops"
                )
                is_told = True
            if await stop.wait(STANDBY_INTERVAL):
                return False
        return True

    async def _take_lease(self) -> None:
        self._lease = acquire(self._folder, self.workspace_id)

    async def _recover(self) -> None:
        """Continue where the last process stopped: by the journal, else by the cursor file of another program."""
        await self._journal.recover()
        cursor, warning = self._cursor.load()
        if warning:
            self._status.notice(warning)
        if cursor is not None and self._journal.position() == FeedPosition():
            await self._journal.set_position(FeedPosition(watermark=cursor))

    async def _register(self, stop: Flag) -> bool:
        """Register the workspace. False: stopped meanwhile."""
        if not self._options.presence:
            return True
        registering = asyncio.ensure_future(self._registration.register())
        await self._wait_for(stop, registering)
        if registering.cancelled():
            return False
        if registering.result():
            self._status.emit(events.Registered(workspace_id=self.workspace_id))
        else:
            self._pause()
        return True

    # Serving

    async def _serve(self, stop: Flag) -> None:
        listening = [self._spawn(functools.partial(self._stream.listen, self._follow_signal))]
        # These tasks continue while the worker drains: a reply with unknown outcome may require a read.
        files = functools.partial(self._files.run, self._dispatcher)
        others = [
            self._spawn(one) for one in (self._receive, self._maintenance.run, files, self._dispatcher.watch_sends)
        ]
        self._lookup = self._spawn(self._names.run)
        if self._options.gate is not None:
            listening.append(self._spawn(functools.partial(self._follow_gate, self._options.gate)))
        if self._options.presence:
            listening.append(self._spawn(functools.partial(self._registration.follow_pauses, self._follow_pause)))
            others.append(self._spawn(self._heartbeat.run))
        self._dispatcher.open()
        grace, says_goodbye = self.settings.grace, True
        try:
            await (self._wait_until_answered(stop) if self.settings.once else self._wait_for(stop))
        except (WorkspaceDeletedError, StateLostError, LeaseLostError) as exc:
            grace = 0.0  # replies could not be sent, or not be stored
            says_goodbye = not isinstance(exc, LeaseLostError)
            raise
        finally:
            self._polling.stop()
            await _cancel(listening)
            await self._drain(grace, until_stored=self._options.gate is not None and says_goodbye)
            await _cancel([*others, self._lookup])
            if says_goodbye:
                await self._send_final_heartbeat()
            self._status.emit(events.Stopped(workspace_id=self.workspace_id))

    async def _receive(self) -> None:
        async with contextlib.aclosing(self._feed.pages()) as pages:
            async for page in pages:
                stored = await self._store(page)
                self._status.received(stored)
                self._names.saw(row.item.caller_id for row in stored)
                if self._names.is_wanted and (self._lookup is None or self._lookup.done()):
                    self._lookup = self._spawn(self._names.run)
                if any(isinstance(part, FilePart) for row in stored for part in row.item.parts):
                    self._files.wake()
                conversations = [row.conversation for row in stored if row.conversation is not None]
                self._dispatcher.wake(conversations, complete=page.complete)
                if page.caught_up and not self._first_read.is_set():
                    self._first_read_ended()
                if page.recovered:
                    self._wake_after(self._journal.retry_sends_now())

    async def _store(self, page: FeedPage) -> list[Stored]:
        """Store *page*, retrying until the journal can be written."""
        is_retry = False
        while True:
            self._feed.moved()
            try:
                return await self._journal.add(page.items, now=page.now)
            except JournalError as exc:
                if self._file.writer.closed:
                    raise
                self._status.report("intake", str(exc), exc.hint, lasting=is_retry)
                await asyncio.sleep(JOURNAL_WAIT)
            is_retry = True

    def _first_read_ended(self) -> None:
        self._first_read.set()
        self._files.read_once()
        if self.settings.once:
            # Senders that keep writing must not prevent the run from ending.
            self._polling.stop()

    def _follow_signal(self, signal: Signal) -> None:
        if signal is Signal.ROTATED:
            self._status.notice("the platform replaced the workspace's token", "replace the old token with the new one")
            return
        self._registration.check_soon()
        if signal is Signal.OPENED and not self._stream.was_trusted:
            # The stream is trusted once it shows a heartbeat.
            self._heartbeat.send_soon()

    def _follow_pause(self, is_paused: bool) -> None:
        if is_paused:
            self._pause()
        else:
            self._status.emit(events.Resumed(workspace_id=self.workspace_id))
            self._resume()
            self._heartbeat.send_now()

    async def _follow_gate(self, gate: SeatGate) -> None:
        """Start no messages and send no replies while another machine may have the lease."""
        async for is_open in gate.changes():
            if is_open:
                if self._status.clear(MIRROR):
                    self._wake_after(self._journal.retry_sends_now())
                self._resume()
            else:
                hint = "results wait, and are sent when the database can be reached again"
                self._status.report(MIRROR, gate.reason, hint, lasting=True)
                self._dispatcher.pause()

    def _resume(self) -> None:
        gate = self._options.gate
        if not self._registration.is_paused and (gate is None or gate.is_open):
            self._dispatcher.resume()

    def _pause(self) -> None:
        self._dispatcher.pause()
        self._status.emit(events.Paused(workspace_id=self.workspace_id))

    async def _wait_for(self, stop: Flag, *tasks: "asyncio.Future[Any]") -> None:
        """Wait for *stop* or the first of *tasks*, and cancel the others. Raises the error that ends the worker."""
        waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(stop.wait()), *tasks]
        try:
            failures = [self._failure, self._dispatcher.failure]
            await asyncio.wait([*failures, *waits], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancel(waits)
        for failure in failures:
            if failure.done():
                failure.result()

    async def _wait_until_answered(self, stop: Flag) -> None:
        await self._wait_for(stop, asyncio.ensure_future(self._until_answered()))

    async def _until_answered(self) -> None:
        await self._first_read.wait()
        while self._journal.waiting() or self._files.pending():
            if self._registration.is_paused:
                self._status.notice("the workspace is paused: waiting messages stay in the journal")
                return
            if not self._files.pending() and self._journal.all_deferred_for(ONCE_PATIENCE):
                self._status.notice(
                    f"the remaining messages are deferred for more than {ONCE_PATIENCE:g} s: they stay in the journal",
                    "'molecule messages list' shows the reasons; a later start answers them",
                )
                return
            await self._dispatcher.idle()
            await asyncio.sleep(ONCE_INTERVAL)

    def _spawn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> "asyncio.Task[None]":
        """Run *work* until it is cancelled; again after errors of the journal. Other errors end the worker."""
        return asyncio.get_running_loop().create_task(self._guarded(work), name=self._task_name)

    async def _guarded(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                return await work()
            except JournalError as exc:
                self._status.report("journal", str(exc), exc.hint, lasting=True)
                await asyncio.sleep(JOURNAL_WAIT)
            except Exception as exc:
                return self._fail(exc)

    def _fail(self, error: BaseException) -> None:
        if not self._failure.done():
            self._failure.set_exception(error)
            # Mark it as retrieved: the worker may be draining already.
            self._failure.exception()

    # Stopping

    async def _drain(self, grace: float, *, until_stored: bool) -> None:
        """End all work.

        Args:
            until_stored: Wait until the journal has all sends, however long it can't be written: once this worker has
                ended, another machine sends the replies again that haven't been sent as far as it knows.
        """
        self._status.emit(events.Stopping(workspace_id=self.workspace_id, running=self._status.running, grace=grace))
        await self._dispatcher.drain(grace)
        try:
            try:
                await self._dispatcher.abandon(ABANDON)
            finally:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if until_stored else ABANDON):
                        await self._journal.sends_committed()
            await self._maintenance.save_cursor()
        except JournalError as exc:
            self._status.report("journal", str(exc), exc.hint, lasting=True)

    async def _send_final_heartbeat(self) -> None:
        if self._options.presence:
            # Without it, the platform notices the silence, but later.
            with contextlib.suppress(PlatformError, TimeoutError):
                async with asyncio.timeout(LAST_HEARTBEAT):
                    await self._heartbeat.send_final()

    # Changes that components report

    def _wake_after(self, write: "asyncio.Future[None]") -> None:
        """Wake all conversations once *write* is committed, or has failed."""
        write.add_done_callback(self._written)

    def _written(self, write: "asyncio.Future[None]") -> None:
        if not write.cancelled():
            write.exception()  # without the write, messages wait until they are due
        self._dispatcher.wake_all()


async def _no_handler(request: Request, progress: Progress) -> Response:
    raise AssertionError("the messages of an inbox are handled by its readers")


async def _cancel(tasks: "Sequence[asyncio.Future[Any]]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
