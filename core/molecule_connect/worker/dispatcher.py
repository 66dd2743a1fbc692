"""Dispatcher: one caller and context is answered in order, one at a time, until its answer is accepted or dead."""

import asyncio
import contextlib
import errno
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable

import attrs

from molecule_connect import events
from molecule_connect.errors import JournalError, StateLostError
from molecule_connect.journal.incoming import LONGEST_TRACE
from molecule_connect.journal.journal import WorkspaceJournal
from molecule_connect.journal.models import Conversation, State, StoredMessage, StoredReply
from molecule_connect.worker.attempt import Attempts, exception_text
from molecule_connect.worker.budget import DailyBudget
from molecule_connect.worker.downloads import ChatFiles
from molecule_connect.worker.limits import ConcurrencyLimit
from molecule_connect.worker.loop_guard import LoopGuard, Verdict
from molecule_connect.worker.sending import Accepted, Later, Refused, Replies
from molecule_connect.worker.status import Status

# Conversations of one caller that are in memory at once. When there are more, they take turns: each gives its place up
# after a message, so that those with a long backlog don't keep the others out.
LIVE_CONVERSATIONS = 64
INTERRUPTIONS = 8
# A conversation is parked for at least so many seconds: clocks round.
LEAST_PARKED = 0.1
SECOND = 1_000_000
# Seconds until a message is tried again for which this machine was short of something.
SHORTAGE_WAIT = 30.0
# Seconds until a conversation goes on after the journal could not be read.
JOURNAL_WAIT = 5.0
SHORTAGES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EAGAIN))


class Dispatcher:
    """The conversations of one workspace. A conversation's task lives while its head can be worked on.

    Args:
        now: The platform's time in microseconds.
        failed: Told of an error that no message can be blamed for; the connection ends by it.
        insist: Runs a journal write until it succeeds.
    """

    def __init__(
        self,
        journal: WorkspaceJournal,
        *,
        slots: ConcurrencyLimit,
        attempts: Attempts,
        replies: Replies,
        files: ChatFiles,
        guard: LoopGuard,
        budget: DailyBudget,
        now: Callable[[], int],
        insist: Callable[[Callable[[], Awaitable[bool]]], Awaitable[bool]],
        failed: Callable[[BaseException], None],
        status: Status,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._journal = journal
        self._slots = slots
        self._attempts = attempts
        self._replies = replies
        self._files = files
        self._guard = guard
        self._budget = budget
        self._now = now
        self._insist = insist
        self._failed = failed
        self._status = status
        self._wall = wall
        self._live: dict[Conversation, asyncio.Task[None]] = {}
        self._timers: dict[Conversation, asyncio.TimerHandle] = {}
        self._caller_timers: dict[str | None, asyncio.TimerHandle] = {}
        # Until when by the loop's clock a head waits: it and its time by the wall, which may be set back.
        self._due: dict[Conversation, tuple[str, float | None, float]] = {}
        self._not_begun: set[Conversation] = set()
        # What was run last: its answer is sent first, although an older message may have become visible.
        self._ran: dict[Conversation, str] = {}
        self._per_caller: Counter[str | None] = Counter()
        self._crowded: set[str | None] = set()
        # Conversations of crowded callers that had their turn and may have more messages.
        self._had_turn: dict[str | None, dict[Conversation, None]] = {}
        self._paused = False
        self._stopping = False
        self._abandoned = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def live(self) -> int:
        """Dispatcher that are being worked on."""
        return len(self._live)

    def remark(self) -> str:
        """What the operator should know of the backend and its slots, for the heartbeat; empty if there is nothing."""
        return self._slots.remark() or self._attempts.remark()

    def wake(self, conversations: Iterable[Conversation]) -> None:
        """These conversations may have a new head."""
        for conversation in conversations:
            self._wake(conversation)

    def wake_all(self) -> None:
        """Every conversation may have a new head."""
        for caller in self._journal.callers():
            self._wake_caller(caller)

    def pause(self) -> None:
        """Begin no new message."""
        self._paused = True

    def resume(self) -> None:
        """Begin messages again, once they are woken."""
        self._paused = False

    async def idle(self) -> None:
        """Wait until no conversation is being worked on. Dispatcher that wait for a time are not."""
        await self._idle.wait()

    async def drain(self, grace: float) -> None:
        """Begin no new message, and let what runs finish and be sent for at most *grace* seconds; then cut it."""
        self._stopping = True
        for timer in (*self._timers.values(), *self._caller_timers.values()):
            timer.cancel()
        for conversation in self._not_begun:
            self._live[conversation].cancel()
        try:
            async with asyncio.timeout(grace):
                await self._idle.wait()
        except TimeoutError:
            for task in self._live.values():
                task.cancel()

    async def abandon(self, seconds: float) -> None:
        """Wait *seconds* more, then put back what still runs: a plain backend cannot be stopped."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        self._abandoned = True
        await self._journal.requeue_running()

    def _wake_caller(self, caller: str | None) -> None:
        room = LIVE_CONVERSATIONS + self._per_caller[caller] + 1
        had_turn = self._had_turn.pop(caller, {})
        conversations = self._journal.due_conversations(caller, room, may_begin=not self._paused, without=had_turn)
        self._crowded.discard(caller)
        if len(conversations) < room:
            self._wake_caller_later(caller)
        for conversation in (*conversations, *had_turn):
            self._wake(conversation)
        if len(conversations) >= room:
            self._crowded.add(caller)
        if caller in self._crowded and (
            waiting := [conversation for conversation in had_turn if conversation not in self._live]
        ):
            self._had_turn[caller] = dict.fromkeys(waiting)

    def _wake_caller_later(self, caller: str | None) -> None:
        if (timer := self._caller_timers.pop(caller, None)) is not None:
            timer.cancel()
        if (when := self._journal.next_due(caller)) is not None and not self._stopping:
            loop, wait = asyncio.get_running_loop(), max(0.0, when - self._wall())
            self._caller_timers[caller] = loop.call_later(wait, self._wake_caller, caller)

    def _wake(self, conversation: Conversation) -> None:
        if conversation in self._live or self._stopping:
            return
        if conversation.caller_id in self._crowded or self._per_caller[conversation.caller_id] >= LIVE_CONVERSATIONS:
            # Those that wait in the journal already have their turn first.
            self._crowded.add(conversation.caller_id)
            return
        if (timer := self._timers.pop(conversation, None)) is not None:
            timer.cancel()
        self._per_caller[conversation.caller_id] += 1
        self._idle.clear()
        self._live[conversation] = asyncio.get_running_loop().create_task(self._work(conversation), name="conversation")

    async def _work(self, conversation: Conversation) -> None:
        failed = ""
        try:
            while (step := await self._step(conversation, failed)) is not None:
                failed = step
                if conversation.caller_id in self._crowded:
                    self._had_turn.setdefault(conversation.caller_id, {})[conversation] = None
                    break
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        except BaseException as exc:
            # A backend that ends after that finds the journal closed, and its message put back already.
            if self._abandoned and isinstance(exc, JournalError):
                return
            self._failed(exc)
            raise
        finally:
            self._end(conversation)

    async def _step(self, conversation: Conversation, failed: str) -> str | None:
        """Do what is due in *conversation*. None: nothing is. Else the row of an unexpected error, "" for none.

        Nothing that one message contains may end the process, so such an error makes its message a dead letter.
        """
        entry = None
        try:
            if (entry := self._due_head(conversation)) is None:
                return None
            await self._advance(entry)
        except JournalError as exc:
            if self._stopping or isinstance(exc, StateLostError):
                raise
            if entry is not None:
                self._status.message_event(
                    events.Retrying, entry, what="journal", reason=str(exc), seconds=JOURNAL_WAIT
                )
            await asyncio.sleep(JOURNAL_WAIT)
        except Exception as exc:  # whatever this message makes us do
            row_id = entry.row_id if entry else self._ran.get(conversation) or self._journal.next_id(conversation)
            if row_id is None or row_id == failed:
                raise
            if not (entry and _is_shortage(exc) and await self._put_off(row_id, exc)):
                await self._set_aside(conversation, row_id, exc)
            return row_id
        return ""

    async def _put_off(self, row_id: str, exc: Exception) -> bool:
        """Try the message again later: the machine is short of something. False where the backend would run twice."""
        entry, reason = self._journal.message(row_id), exception_text(exc)
        when = self._wall() + SHORTAGE_WAIT
        if entry.state is State.RECEIVED:
            await self._insist(lambda: self._journal.defer(entry, not_before=when, error=reason))
        elif entry.state is State.ANSWERED:
            # A send may have been under way.
            in_doubt = max(entry.in_doubt, 1)
            await self._insist(lambda: self._journal.record_failed_send(entry, not_before=when, in_doubt=in_doubt))
        else:
            return False
        self._status.message_event(events.Retrying, entry, what="this machine", reason=reason, seconds=SHORTAGE_WAIT)
        return True

    async def _set_aside(self, conversation: Conversation, row_id: str, exc: Exception) -> None:
        reason = f"internal error, please report it: {exception_text(exc)}"
        trace = "".join(traceback.format_exception(exc))[-LONGEST_TRACE:]
        self._ran.pop(conversation, None)
        if await self._insist(lambda: self._journal.mark_dead_by_id(row_id, conversation.caller_id, reason, trace)):
            self._status.emit(
                events.Dead(
                    workspace_id=self._journal.workspace_id,
                    row_id=row_id,
                    caller_id=conversation.caller_id,
                    context_id=conversation.context_id,
                    reason=reason,
                )
            )

    def _end(self, conversation: Conversation) -> None:
        del self._live[conversation]
        caller = conversation.caller_id
        self._per_caller[caller] -= 1
        if caller in self._crowded and self._per_caller[caller] <= LIVE_CONVERSATIONS // 2 and not self._stopping:
            self._wake_caller(caller)
        if not self._per_caller[caller]:
            del self._per_caller[caller]
        if not self._live:
            self._idle.set()

    def _due_head(self, conversation: Conversation) -> StoredMessage | None:
        entry = self._head(conversation)
        if entry is None:
            return None
        if entry.state is State.RECEIVED and (self._paused or self._stopping):
            return None
        wait = self._seconds_until_due(conversation, entry)
        if wait > 0:
            if not self._stopping:
                self._timers[conversation] = asyncio.get_running_loop().call_later(wait, self._wake, conversation)
            return None
        return entry

    def _head(self, conversation: Conversation) -> StoredMessage | None:
        if (row_id := self._ran.get(conversation)) is not None:
            if (entry := self._journal.message_to_send(row_id)) is not None:
                return entry
            del self._ran[conversation]
        return self._journal.next(conversation)

    def _seconds_until_due(self, conversation: Conversation, entry: StoredMessage) -> float:
        """A wall clock that is set forward ends the wait; one that is set back does not prolong it."""
        now = asyncio.get_running_loop().time()
        wait = (entry.not_before or 0.0) - self._wall()
        row_id, not_before, due = self._due.pop(conversation, ("", None, 0.0))
        if (row_id, not_before) == (entry.row_id, entry.not_before):
            wait = min(wait, due - now)
        if wait > 0:
            self._due[conversation] = (entry.row_id, entry.not_before, now + wait)
        return wait

    async def _advance(self, entry: StoredMessage) -> None:
        if entry.state is State.ANSWERED:
            if entry.answered_at is None and entry.reply is not None:
                await self._stamp(entry, entry.reply)
            else:
                await self._send(entry)
            return
        if entry.state is State.RUNNING:
            # Nobody runs it: its start was told to have failed, and had not.
            await self._attempts.put_back(attrs.evolve(entry, attempt=entry.attempt - 1))
            return
        self._not_begun.add(entry.conversation)
        try:
            await self._begin(entry)
        finally:
            self._not_begun.discard(entry.conversation)

    async def _begin(self, entry: StoredMessage) -> None:
        if entry.reply is not None:
            print_ = self._replies.fingerprint(entry, entry.reply)
            answer, at = entry.reply, self._now()
            if await self._insist(
                lambda: self._journal.store_reply(entry, answer, at=at, send_print=print_, ran=False)
            ):
                self._status.message_event(events.Answered, entry, text=answer.text[:200], seconds=0.0)
        elif entry.crash_count >= INTERRUPTIONS:
            await self._mark_dead(entry, f"the process died {entry.crash_count} times while the backend had it")
        elif await self._may_run(entry):
            await self._run(await self._files.resolve(entry))

    async def _may_run(self, entry: StoredMessage) -> bool:
        if await self._is_over_budget(entry):
            return False
        if entry.attempt:
            return True
        ruling = self._guard.rule(entry, others_wait=lambda: self._journal.has_other_due(entry))
        if ruling.verdict is Verdict.LOOP:
            await self._mark_dead(entry, ruling.reason)
        elif ruling.verdict is Verdict.WAIT:
            seconds = max(LEAST_PARKED, ruling.until - asyncio.get_running_loop().time())
            await self._park(entry, self._wall() + seconds, ruling.reason, what="loop brake")
        return ruling.verdict is Verdict.RUN

    async def _is_over_budget(self, entry: StoredMessage) -> bool:
        if (dry := self._budget.wait(entry.caller_id)) is None:
            return False
        await self._park(entry, *dry, what="daily budget")
        return True

    async def _park(self, entry: StoredMessage, until: float, reason: str, *, what: str) -> None:
        await self._insist(lambda: self._journal.defer(entry, not_before=until, error=reason))
        self._status.message_event(events.Retrying, entry, what=what, reason=reason, seconds=until - self._wall())

    async def _run(self, entry: StoredMessage) -> None:
        async with self._slots.hold(entry):
            # While it waited it may have been paused, stopped or dropped, and others have spent.
            if self._paused or self._stopping or await self._is_over_budget(entry):
                return
            if not await self._insist(lambda: self._journal.start(entry)):
                return
            self._not_begun.discard(entry.conversation)
            self._ran[entry.conversation] = entry.row_id
            finish = await self._attempts.run(entry)
        if (answered := await finish()) is not None:
            await self._send(answered)

    async def _stamp(self, entry: StoredMessage, answer: StoredReply) -> None:
        """A reader of the inbox answered, perhaps in another process: note what sending it needs."""
        at, print_ = max(self._now(), entry.time), self._replies.fingerprint(entry, answer)
        if await self._insist(lambda: self._journal.prepare_send(entry, at=at, send_print=print_)):
            seconds = max(0.0, (at - entry.time) / SECOND)
            self._status.message_event(events.Answered, entry, text=answer.text[:200], seconds=seconds)

    async def _send(self, entry: StoredMessage) -> None:
        began = self._now()
        match await self._replies.deliver(entry):
            case Accepted(confirmed=confirmed):
                at = self._now()
                self._journal.mark_sent(entry, at=at)
                if entry.reply is not None:
                    # A quick peer writes back before we hear that our answer was taken.
                    self._guard.answered(entry, at=began)
                if _is_notice(entry):
                    self._status.message_event(events.Notified, entry)
                else:
                    self._status.message_event(events.Delivered, entry, confirmed=confirmed)
            case Refused(reason=reason) if _is_notice(entry):
                # That the message was given up was reported when the notice was stored.
                await self._insist(lambda: self._journal.mark_dead(entry, State.ANSWERED, _not_accepted(entry, reason)))
                self._status.message_event(events.Notified, entry, error=reason)
            case Refused(reason=reason):
                await self._mark_dead(entry, _not_accepted(entry, reason))
            case Later(reason=reason, seconds=seconds, in_doubt=in_doubt):
                when = self._wall() + seconds
                await self._insist(lambda: self._journal.record_failed_send(entry, not_before=when, in_doubt=in_doubt))
                self._status.message_event(events.Retrying, entry, what="sending", reason=reason, seconds=seconds)

    async def _mark_dead(self, entry: StoredMessage, reason: str) -> None:
        state = State.ANSWERED if entry.state is State.ANSWERED else State.RECEIVED
        await self._insist(lambda: self._journal.mark_dead(entry, state, reason))
        self._status.message_event(events.Dead, entry, reason=reason)


def _is_shortage(exc: Exception) -> bool:
    """Whether the machine, and not the message, is at fault."""
    if isinstance(exc, OSError):
        return exc.errno in SHORTAGES
    return isinstance(exc, MemoryError) or (isinstance(exc, RuntimeError) and "start new thread" in str(exc))


def _is_notice(entry: StoredMessage) -> bool:
    return entry.reply is not None and entry.reply.is_notice


def _not_accepted(entry: StoredMessage, reason: str) -> str:
    if entry.reply is not None and entry.reply.is_notice:
        return f"{entry.reply.reason} (the caller could not be told: {reason})"
    return f"the answer was not accepted: {reason}"
