"""Writes the outcomes of attempts and sends to the journal, and emits their events."""

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from molecule_connect import events
from molecule_connect.errors import JournalError
from molecule_connect.journal.incoming import LONGEST_TRACE
from molecule_connect.journal.models import Conversation, State, StoredMessage, StoredReply
from molecule_connect.journal.workspace import WorkspaceJournal
from molecule_connect.models import TextPart
from molecule_connect.worker.attempt import exception_text
from molecule_connect.worker.clock import SECOND, Clock
from molecule_connect.worker.outcomes import (
    Accepted,
    Answered,
    AttemptOutcome,
    Deferred,
    Failed,
    Postponed,
    Refusal,
    Refused,
    Rejected,
    Requeued,
    SendOutcome,
    Silent,
)
from molecule_connect.worker.ports import Sender
from molecule_connect.worker.status import Status

P = ParamSpec("P")
T = TypeVar("T")

# Seconds until a write is retried that the journal could not commit.
JOURNAL_DELAY = 5.0
# Seconds until a message is tried again after this machine was short of a resource.
SHORTAGE_DELAY = 30.0
# A conversation gets at most one notice in this time, in microseconds.
NOTICE_INTERVAL = 600 * SECOND


class Recorder:
    """Records what happens to the messages of one workspace. Writes are retried until the journal commits them."""

    def __init__(self, journal: WorkspaceJournal, platform: Sender, status: Status, clock: Clock) -> None:
        self._journal = journal
        self._platform = platform
        self._status = status
        self._clock = clock

    async def not_run(self, message: StoredMessage) -> None:
        """Put a running message back as if it had not been started."""
        await self.commit(self._journal.requeue, message, counts=False)

    async def attempt_ended(self, message: StoredMessage, outcome: AttemptOutcome) -> StoredMessage | None:
        """Write the outcome of an attempt. Returns the message if there is a reply to send."""
        match outcome:
            case Answered(reply=reply, seconds=seconds):
                stored = await self._store_reply(message, reply)
                cost = reply.usage.cost_usd if reply.usage is not None else 0.0
                facts = {"text": reply.text[:200], "seconds": seconds, "cost_usd": cost}
                self._status.message_event(events.Answered, message, **facts)
                return stored
            case Silent(text=text, seconds=seconds, cost_usd=cost):
                await self.commit(self._journal.finish_without_reply, message)
                facts = {"text": text[:200], "seconds": seconds, "cost_usd": cost, "silent": True}
                self._status.message_event(events.Answered, message, **facts)
            case Requeued():
                await self._requeue(message, outcome)
            case Failed(reason=reason):
                stored = await self._give_up(message, reason)
                facts = {
                    "reason": reason,
                    "hint": outcome.hint,
                    "category": outcome.category,
                    "handler_seconds": outcome.handler_seconds,
                    "notifies": stored is not None,
                }
                self._status.message_event(events.Dead, message, **facts)
                return stored
        return None

    async def refused(self, message: StoredMessage, refusal: Refusal) -> None:
        """Defer a message that was not admitted, or mark it dead."""
        match refusal:
            case Deferred(not_before=not_before, reason=reason, limit=limit):
                await self.commit(self._journal.defer, message, not_before=not_before, error=reason)
                seconds = not_before - self._clock.wall()
                self._status.message_event(events.Retrying, message, what=limit, reason=reason, seconds=seconds)
            case Rejected(reason=reason, category=category):
                await self._mark_dead(message, reason, category)

    async def reuse_reply(self, message: StoredMessage, reply: StoredReply) -> None:
        """Store the reply of a replayed message again; it is sent next."""
        at, send_print = self._clock.now(), self._platform.fingerprint(message.caller_id, reply.parts)
        if await self.commit(self._journal.reuse_reply, message, at=at, send_print=send_print):
            self._status.message_event(events.Answered, message, text=reply.text[:200], seconds=0.0)

    async def prepare_send(self, message: StoredMessage, reply: StoredReply) -> None:
        """Note what sending the reply of an inbox's reader requires. The reader may be in another process."""
        at, send_print = (
            max(self._clock.now(), message.time),
            self._platform.fingerprint(message.caller_id, reply.parts),
        )
        if await self.commit(self._journal.prepare_send, message, at=at, send_print=send_print):
            seconds = max(0.0, (at - message.time) / SECOND)
            self._status.message_event(events.Answered, message, text=reply.text[:200], seconds=seconds)

    async def send_ended(self, message: StoredMessage, outcome: SendOutcome, *, seconds: float = 0.0) -> None:
        """Record the outcome of a send that took *seconds*."""
        is_notice = message.reply is not None and message.reply.is_notice
        match outcome:
            case Accepted(confirmed=confirmed):
                at = self._clock.now()
                self._journal.mark_sent(message, at=at)
                if is_notice:
                    self._status.message_event(events.Notified, message)
                else:
                    facts = {"send_seconds": seconds, "reply_seconds": max(0, at - message.time) / SECOND}
                    self._status.message_event(events.Delivered, message, confirmed=confirmed, **facts)
            case Refused(reason=reason) if is_notice:
                # The event of the dead letter was emitted when the notice was stored.
                dead_reason = f"{message.reply and message.reply.reason} (the caller could not be notified: {reason})"
                await self.commit(self._journal.mark_dead, message, dead_reason)
                self._status.message_event(events.Notified, message, error=reason)
            case Refused(reason=reason, category=category):
                await self._mark_dead(message, f"the reply was not accepted: {reason}", category)
            case Postponed(reason=reason, seconds=delay, in_doubt=in_doubt):
                when = self._clock.wall() + delay
                await self.commit(self._journal.record_failed_send, message, not_before=when, in_doubt=in_doubt)
                self._status.message_event(events.Retrying, message, what="sending", reason=reason, seconds=delay)

    def journal_failed(self, message: StoredMessage, error: JournalError) -> None:
        """Report that *message* waits for the journal."""
        self._status.message_event(events.Retrying, message, what="journal", reason=str(error), seconds=JOURNAL_DELAY)

    async def ran_short(self, row_id: str, exc: Exception) -> bool:
        """Retry later: this machine is short of a resource. False if the backend ran, and would run twice."""
        message, reason = self._journal.message(row_id), exception_text(exc)
        when = self._clock.wall() + SHORTAGE_DELAY
        if message.state is State.RECEIVED:
            await self.commit(self._journal.defer, message, not_before=when, error=reason)
        elif message.state is State.ANSWERED:
            # A send may have been in progress.
            in_doubt = max(message.in_doubt, 1)
            await self.commit(self._journal.record_failed_send, message, not_before=when, in_doubt=in_doubt)
        else:
            return False
        self._status.message_event(events.Retrying, message, what="this machine", reason=reason, seconds=SHORTAGE_DELAY)
        return True

    async def failed_unexpectedly(self, conversation: Conversation, row_id: str, exc: Exception) -> None:
        """Mark a message dead that can't be handled, and perhaps not loaded."""
        reason = f"internal error, please report it: {exception_text(exc)}"
        trace = "".join(traceback.format_exception(exc))[-LONGEST_TRACE:]
        if await self.commit(self._journal.mark_dead_by_id, row_id, conversation.caller_id, reason, trace):
            self._status.emit(
                events.Dead(
                    workspace_id=self._journal.workspace_id,
                    row_id=row_id,
                    caller_id=conversation.caller_id,
                    context_id=conversation.context_id,
                    reason=reason,
                )
            )

    async def _store_reply(self, message: StoredMessage, reply: StoredReply) -> StoredMessage | None:
        at, send_print = self._clock.now(), self._platform.fingerprint(message.caller_id, reply.parts)
        return await self.commit(self._journal.store_reply, message, reply, at=at, send_print=send_print)

    async def _give_up(self, message: StoredMessage, reason: str) -> StoredMessage | None:
        """Notify the caller in one line, unless the conversation had a notice a moment ago."""
        if self._journal.noticed_since(message.conversation, self._clock.now() - NOTICE_INTERVAL):
            await self.commit(self._journal.mark_dead, message, reason)
            return None
        text = f"This message could not be answered (reference {message.row_id[:8]})."
        return await self._store_reply(message, StoredReply(parts=(TextPart(text),), is_notice=True, reason=reason))

    async def _requeue(self, message: StoredMessage, outcome: Requeued) -> None:
        not_before = self._clock.wall() + outcome.seconds
        await self.commit(
            self._journal.requeue,
            message,
            counts=outcome.counts,
            failed_at=outcome.failed_at,
            not_before=not_before,
            error=outcome.reason,
        )
        self._status.message_event(
            events.Retrying,
            message,
            what="answering",
            reason=outcome.reason,
            seconds=outcome.seconds,
            attempt=message.attempt + outcome.counts,
            handler_seconds=outcome.handler_seconds,
        )

    async def _mark_dead(self, message: StoredMessage, reason: str, category: str) -> None:
        await self.commit(self._journal.mark_dead, message, reason)
        self._status.message_event(events.Dead, message, reason=reason, category=category)

    async def commit(self, write: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a *write* of the journal, which is retried while the journal can't be written."""
        while True:
            try:
                result = await write(*args, **kwargs)
            except JournalError as exc:
                if self._journal.is_closed:
                    raise
                self._status.report("journal", str(exc), exc.hint, lasting=True)
                await asyncio.sleep(JOURNAL_DELAY)
            else:
                self._status.clear("journal")
                return result
