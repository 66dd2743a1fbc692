"""One workspace being served: registered, beating, read, answered, and in the end drained."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from molecule_connect import events
from molecule_connect.backoff import Backoff
from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.errors import (
    JournalError,
    MoleculeError,
    PlatformError,
    StateLostError,
    WorkspaceDeletedError,
)
from molecule_connect.journal.inbox import InboxStore
from molecule_connect.journal.incoming import Stored
from molecule_connect.journal.journal import Journal, Position
from molecule_connect.journal.models import Conversation
from molecule_connect.models import FilePart, Handler, Signal
from molecule_connect.worker.assembly import Answering, Surroundings
from molecule_connect.worker.clock import Clock
from molecule_connect.worker.cursor import CursorFile
from molecule_connect.worker.feed import Reader
from molecule_connect.worker.file_quota import FolderLimits
from molecule_connect.worker.gate import Gate
from molecule_connect.worker.health import SendHealth
from molecule_connect.worker.intake import JOURNAL_WAIT, Intake, insist_on
from molecule_connect.worker.lease import lease
from molecule_connect.worker.maintenance import JournalSize, Upkeep
from molecule_connect.worker.polling import Polling
from molecule_connect.worker.ports import Pace, Platform, Unlimited
from molecule_connect.worker.presence import Heartbeat, Registration
from molecule_connect.worker.sending import MOST_COPIES
from molecule_connect.worker.status import Status

# A run that ends by itself doesn't wait for messages that are put off for longer, in seconds: beyond retries these are
# a used-up budget and the loop brake.
ONCE_PATIENCE = 900.0
ONCE_INTERVAL = 0.05
# What a stop may take beyond the grace: for plain backends that do not return, and for the last beat.
ABANDON, LAST_BEAT = 1.5, 1.5


class Worker:
    """Serves one workspace until it is told to stop.

    Args:
        journal: Open for as long as the connection runs.
        folder: The state folder, for the lease and the cursor file.
        handler: Answers messages; None: an inbox, where they wait for readers.
        pace: How far the platform's rate limit slows the workspace down.
        presence: Register and beat; else another program keeps the workspace online.
        doubts_refusals: As in ``Registration``.
        began: When the program was asked to serve it (loop time), for how far a first start looks back; None: now.
        room: What the folder for the chat's files may come to.
    """

    def __init__(
        self,
        settings: WorkspaceSettings,
        *,
        platform: Platform,
        handler: Handler | None,
        journal: Journal,
        folder: Path,
        listener: events.Listener = events.ignore,
        wall: Callable[[], float] = time.time,
        pace: Pace | None = None,
        backoff: Backoff | None = None,
        presence: bool = True,
        doubts_refusals: bool = True,
        began: float | None = None,
        room: FolderLimits | None = None,
    ) -> None:
        self.settings = settings
        self.workspace_id = settings.workspace_id
        self._platform = platform
        self._folder = folder
        self._wall = wall
        self._clock = Clock(platform, wall)
        self._began = asyncio.get_running_loop().time() if began is None else began
        self._pace = pace or Unlimited()
        self._file = journal
        self._journal = journal.of(settings.workspace_id, inbox=handler is None, quota=settings.journal_quota)
        self._presence = presence
        self._cursor = CursorFile(folder, settings.workspace_id)
        inbox = InboxStore(journal) if handler is None else None
        self._is_inbox = inbox is not None
        self._status = Status(settings, listener, journal=self._journal, inbox=inbox, wall=wall)
        self._patient = settings.patient and not settings.once
        self._backoff = backoff or Backoff(first=1.0, cap=60.0)
        self._registration = Registration(
            platform,
            workspace_id=settings.workspace_id,
            card=settings.card,
            unpause=settings.unpause,
            create=settings.create,
            status=self._status,
            paused=self._paused,
            announced=lambda: self._wakeups.trusted,
            backoff=self._backoff,
            patient=self._patient,
            doubts_refusals=doubts_refusals,
        )
        self._build_intake()
        self._build_answering(handler, room)
        size = JournalSize(journal, self._journal, settings.journal_quota, status=self._status)
        self._upkeep = Upkeep(self._journal, self._cursor, size=size, status=self._status, now=self._reader.now)
        self._first_read = asyncio.Event()
        self._was_trusted = False
        self._fatal: asyncio.Future[None] | None = None

    def _build_intake(self) -> None:
        settings = self.settings
        self._wakeups = Polling(
            self._platform,
            poll_interval=settings.poll_interval,
            safety_interval=lambda: max(
                settings.safety_interval, self._pace.safety_interval(trusted=self._wakeups.trusted)
            ),
            read_rest=self._pace.read_rest,
            least_poll=self._pace.poll_interval,
            on_signal=self._on_signal,
            trouble=self._stream_changed,
            listening=self._listening,
        )
        self._reader = Reader(
            self._platform,
            self._journal,
            since_secs=settings.since_secs,
            wall=self._wall,
            elapsed=lambda: asyncio.get_running_loop().time() - self._began,
            on_stored=self._on_stored,
            conversations_may_run=lambda: self._gate.open(),
            conversations_must_wait=lambda: self._gate.close(),
            woken=self._wakeups.take,
            notice=self._status.notice,
            first_look=self._journal.close_answered,
        )
        self._intake = Intake(
            self._reader,
            self._wakeups,
            raise_if_deleted=self._registration.raise_if_deleted,
            is_queued=lambda: self._pace.is_queued,
            trouble=self._intake_changed,
        )

    def _build_answering(self, handler: Handler | None, room: FolderLimits | None) -> None:
        self._sending = SendHealth(
            report=self._sending_changed,
            # The last send that an answer has left is for its own time.
            probe=lambda: self._send_due(self._journal.retry_one_send_now(most_in_doubt=MOST_COPIES - 2)),
            resend=lambda: self._send_due(self._journal.retry_sends_now()),
        )
        around = Surroundings(
            platform=self._platform,
            file=self._file,
            journal=self._journal,
            folder=self._folder,
            status=self._status,
            now=self._clock.now,
            reread=self._intake.reread,
            beat_accepted_since=self._status.heartbeat_accepted_since,
            files_came=self._files_came,
            insist=self._insist,
            failed=self._fail,
            sending=self._sending,
            wall=self._wall,
        )
        answering = Answering(self.settings, around, handler=handler, room=room)
        self._files, self._slots = answering.files, answering.slots
        self._attempts, self._conversations = answering.attempts, answering.conversations
        self._gate = Gate(self._conversations, self._journal)
        self._heartbeat = Heartbeat(
            self._platform,
            self._status,
            self._wakeups,
            self._conversations,
            pace=self._pace,
            interval=self.settings.heartbeat_interval,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until *stop* is set, then drain; with ``once``, until all that waits is answered.

        Raises:
            LeaseError: Another process serves the workspace.
            ConfigError: The platform has no such workspace.
            AuthError, PermanentPlatformError, TransientPlatformError: Registering failed for good.
            WorkspaceDeletedError: The workspace is gone.
            JournalError: The journal cannot be used.
        """
        async with contextlib.AsyncExitStack() as stack:

            async def take() -> None:
                held = stack.enter_context(lease(self._folder, self.workspace_id))
                stack.enter_context(self._file.watched(self._fail, check=held.check))

            if await self._until_possible(take, stop):
                await stack.enter_async_context(self._status.saved_in(self._folder))
                await self._run(stop)

    async def _run(self, stop: asyncio.Event) -> None:
        self._fatal = asyncio.get_running_loop().create_future()
        if await self._until_possible(self._take_over, stop) and await self._begin(stop, self._fatal):
            await self._serve(stop, self._fatal)

    def slept(self) -> None:
        """The machine slept, or its clock was set: beat, read and reopen the stream, once; what waited may be due."""
        self._heartbeat.send_now()
        self._wakeups.reopen()
        self._wakeups.wake()
        self._journal.bound_waits().add_done_callback(lambda _: self._gate.wake_all())

    def changed_elsewhere(self) -> None:
        """Another program, or a reader of the inbox, changed the journal."""
        if not self._is_inbox and self._journal.has_claims():
            # Whoever reads on since this was an inbox may never finish it.
            self._journal.release_claims().add_done_callback(lambda _: self._gate.wake_all())
        self._gate.wake_all()
        self._status.messages_changed.set()

    # Starting

    async def _until_possible(self, step: Callable[[], Awaitable[None]], stop: asyncio.Event) -> bool:
        """Take a *step* of the start. One of many workspaces retries what may heal. False: stopped before that."""
        for failures in itertools.count(1):
            try:
                await step()
            except MoleculeError as exc:
                if not (self._patient and exc.may_heal):
                    raise
                wait = self._backoff.delay(failures)
                self._status.report("start", str(exc), f"{exc.hint}; trying again in at most a minute")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await stop.wait()
                        return False
            else:
                self._status.clear("start")
                break
        return True

    async def _take_over(self) -> None:
        """Go on where an earlier process ended: with the journal, else with another program's cursor file."""
        await self._journal.recover()
        cursor, warning = self._cursor.load()
        if warning:
            self._status.notice(warning)
        if cursor is not None and self._journal.position() == Position():
            await self._journal.set_position(Position(watermark=cursor))

    async def _begin(self, stop: asyncio.Event, fatal: "asyncio.Future[None]") -> bool:
        """Register. False: stopped before that succeeded."""
        if not self._presence:
            return True
        registering = asyncio.ensure_future(self._registration.begin())
        stopping = asyncio.ensure_future(stop.wait())
        try:
            waits: list[asyncio.Future[Any]] = [registering, stopping, fatal]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if fatal.done():
                fatal.result()
            if not registering.done():
                return False
            if registering.result():
                self._status.emit(events.Registered(workspace_id=self.workspace_id))
            return True
        finally:
            await _cancel([registering, stopping])

    # Serving

    async def _serve(self, stop: asyncio.Event, fatal: "asyncio.Future[None]") -> None:
        beside = (self._upkeep.export_cursor, self._upkeep.tidy, self._files.run)
        staying = [self._spawn(work) for work in beside]
        intake = [self._spawn(self._read_all), self._spawn(self._wakeups.listen)]
        if self._presence:
            staying.append(self._spawn(self._heartbeat.run))
            intake.append(self._spawn(self._registration.watch))
        self._gate.wake_all()
        gone = False
        try:
            await self._until(stop, fatal)
        except (WorkspaceDeletedError, StateLostError):
            gone = True
            raise
        finally:
            await _cancel(intake)
            await self._drain(0.0 if gone else self.settings.grace)
            self._sending.stop()
            await _cancel(staying)
            await self._say_goodbye()

    async def _until(self, stop: asyncio.Event, fatal: "asyncio.Future[None]") -> None:
        """Wait for *stop*, for what ends the connection, or with ``once`` until all is answered."""
        waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(stop.wait())]
        if self.settings.once:
            waits.append(asyncio.ensure_future(self._all_is_answered()))
        try:
            await asyncio.wait([fatal, *waits], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancel(waits)
        if fatal.done():
            fatal.result()

    async def _read_all(self) -> None:
        await self._intake.read_once()
        self._first_read.set()
        self._files.read_once()
        self._gate.first_read_ended()
        if not self.settings.once:
            # Who goes on writing would keep such a run from its end.
            await self._intake.run()

    async def _all_is_answered(self) -> None:
        await self._first_read.wait()
        while self._journal.waiting() or self._files.pending():
            if self._registration.is_paused:
                self._status.notice("the workspace is paused: what waits stays in the journal")
                return
            if not self._files.pending() and self._journal.all_deferred_for(ONCE_PATIENCE):
                self._status.notice(
                    f"all messages that are left wait for more than {ONCE_PATIENCE:g} s: they stay in the journal",
                    "'molecule messages list' shows why; a later start answers them",
                )
                return
            await self._conversations.idle()
            await asyncio.sleep(ONCE_INTERVAL)

    def _spawn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> "asyncio.Task[None]":
        async def guarded() -> None:
            while True:
                try:
                    return await work()
                except JournalError as exc:
                    self._status.report("journal", str(exc), exc.hint, lasting=True)
                    await asyncio.sleep(JOURNAL_WAIT)
                except Exception as exc:  # a part that fails takes the connection with it
                    return self._fail(exc)

        return asyncio.get_running_loop().create_task(guarded(), name=f"connection {self.workspace_id}")

    def _fail(self, error: BaseException) -> None:
        if self._fatal is not None and not self._fatal.done():
            self._fatal.set_exception(error)
            # It may come when nobody waits any more.
            self._fatal.exception()

    # Ending

    async def _drain(self, grace: float) -> None:
        running = self._status.running
        self._status.emit(events.Stopping(workspace_id=self.workspace_id, running=running, grace=grace))
        await self._conversations.drain(grace)
        try:
            await self._conversations.abandon(ABANDON)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ABANDON):
                    await self._journal.sends_committed()
            await self._upkeep.save_cursor()
        except JournalError as exc:
            self._status.report("journal", str(exc), exc.hint, lasting=True)

    async def _say_goodbye(self) -> None:
        if self._presence:
            # When it fails, silence says the same, only later.
            with contextlib.suppress(PlatformError, TimeoutError):
                async with asyncio.timeout(LAST_BEAT):
                    await self._heartbeat.send_final()
        self._status.emit(events.Stopped(workspace_id=self.workspace_id))

    # What the parts tell

    def _intake_changed(self, reason: str, hint: str, lasting: bool) -> None:
        if reason:
            self._status.report("intake", reason, hint, lasting=lasting)
        elif self._status.clear("intake"):
            self._send_due(self._journal.retry_sends_now())

    def _stream_changed(self, reason: str) -> None:
        if reason:
            self._status.report("stream", reason, "messages are noticed by polling meanwhile")
        else:
            self._status.clear("stream")

    def _sending_changed(self, reason: str, hint: str) -> None:
        if reason:
            self._status.report("sending", reason, hint, lasting=True)
        else:
            self._status.clear("sending")

    def _send_due(self, hastened: "asyncio.Future[None]") -> None:
        def wake(outcome: "asyncio.Future[None]") -> None:
            if not outcome.cancelled() and outcome.exception() is None:
                self._gate.wake_all()

        hastened.add_done_callback(wake)

    def _on_stored(self, stored: Sequence[Stored]) -> None:
        self._status.received(stored)
        if any(isinstance(part, FilePart) for one in stored for part in one.item.parts):
            self._files.wake()
        self._gate.stored(one.conversation for one in stored if one.conversation is not None)

    def _files_came(self, row_id: str, conversation: Conversation, names: str) -> None:
        self._status.emit(
            events.Received(
                workspace_id=self.workspace_id,
                row_id=row_id,
                caller_id=None,
                context_id=conversation.context_id,
                text=names[:200],
            )
        )
        self._status.messages_changed.set()
        self._conversations.wake([conversation])

    def _on_signal(self, signal: Signal) -> None:
        if signal is Signal.ROTATED:
            self._status.notice("the platform replaced the workspace's token", "put the new one in the old one's place")
            return
        self._registration.look_again()
        if signal is Signal.OPENED and not self._was_trusted:
            # Its echo says whether the stream can be relied on.
            self._heartbeat.send_soon()

    def _listening(self, trusted: bool) -> None:
        self._was_trusted = self._was_trusted or trusted
        by = "stream" if trusted else "polling"
        self._status.emit(events.Listening(workspace_id=self.workspace_id, by=by))

    def _paused(self, paused: bool) -> None:
        if paused:
            self._gate.pause()
            self._status.emit(events.Paused(workspace_id=self.workspace_id))
        else:
            self._status.emit(events.Resumed(workspace_id=self.workspace_id))
            self._gate.resume()
            self._heartbeat.send_now()

    async def _insist(self, write: Callable[[], Awaitable[bool]]) -> bool:
        def trouble(reason: str, hint: str) -> None:
            if reason:
                self._status.report("journal", reason, hint, lasting=True)
            else:
                self._status.clear("journal")

        return await insist_on(write, trouble=trouble, closed=lambda: self._file.writer.closed)


async def _cancel(tasks: "Sequence[asyncio.Future[Any]]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
