"""Sending a reply once: whether the platform accepted it, and whether and when to send it again."""

import asyncio
from typing import Protocol

import attrs

from molecule_connect.backoff import Backoff
from molecule_connect.errors import (
    AuthError,
    JournalError,
    Outcome,
    PermanentPlatformError,
    PlatformError,
    TransientPlatformError,
)
from molecule_connect.journal.models import State, StoredMessage, StoredReply, dump_parts
from molecule_connect.journal.transitions import ECHO_DELAY, LONGEST_WAITS
from molecule_connect.journal.workspace import WorkspaceJournal
from molecule_connect.models import Part, TextPart
from molecule_connect.worker.clock import SECOND, Clock
from molecule_connect.worker.outcomes import Accepted, Postponed, Refused, SendOutcome
from molecule_connect.worker.ports import Sender
from molecule_connect.worker.send_health import SendHealth
from molecule_connect.worker.status import Status
from molecule_connect.worker.tracing import Tracing
from molecule_connect.worker.uploads import Attachments

GIVE_UP_AFTER = 24 * 3600 * SECOND
RETRIES = Backoff(first=1.0, cap=300.0)
# Seconds until a send is retried after the platform reported that a budget is used up (402).
BUDGET_DELAY = LONGEST_WAITS[State.ANSWERED]
# Seconds for which an absent notify endpoint isn't tried again.
ABSENT_FOR = 3600.0
# Sends with unknown outcome per reply: each may be another copy.
MAX_COPIES = 5
# Seconds until the next send after the first send with unknown outcome, the second, and so on.
COPY_DELAYS = (1.0, 10.0, 60.0, 600.0)
# JSON sizes, in bytes, from which a refused reply is shortened. Older platforms cut a body at 1 MiB.
LONG, SHORT = 100_000, 900_000


class EchoFeed(Protocol):
    """Reads the feed on request."""

    async def reread(self) -> bool:
        """Whether a whole read that began after this call succeeded."""
        ...


class ReplySender:
    """Sends the replies of one workspace.

    Args:
        feed: Its echoes show the replies that people received.

    Attributes:
        health: Collects the outcomes.
    """

    def __init__(
        self,
        platform: Sender,
        journal: WorkspaceJournal,
        attachments: Attachments,
        feed: EchoFeed,
        status: Status,
        clock: Clock,
        tracing: Tracing,
    ) -> None:
        self._platform = platform
        self._journal = journal
        self._attachments = attachments
        self._feed = feed
        self._status = status
        self._clock = clock
        self._tracing = tracing
        self._absent_until = float("-inf")
        self.health = SendHealth(status)

    async def deliver(self, message: StoredMessage) -> SendOutcome:
        """Send the stored reply of *message* once."""
        outcome = await self._deliver(message)
        match outcome:
            case Postponed(error=PlatformError() as error) if not getattr(error, "about_peer", False):
                self.health.failed(message.row_id, message.caller_id, error)
            case Postponed(error=None):
                pass
            case Accepted(confirmed=True):
                self.health.succeeded(message.caller_id)
            case _:
                self.health.ended(message.row_id)
        return outcome

    async def _deliver(self, message: StoredMessage) -> SendOutcome:
        reply = message.reply
        if reply is None:
            return Refused(reason="there is no reply to send")
        if message.caller_id is None and reply.has_local_files:
            attached = await self._attach(message)
            if not isinstance(attached, StoredMessage):
                return attached
            # A reply is not sent before its files are uploaded.
            message, reply = attrs.evolve(attached, in_doubt=0), attached.reply or reply
        if message.in_doubt and message.caller_id is None:
            arrived = await self._has_arrived(message)
            if arrived is None:
                seconds = max(ECHO_DELAY, RETRIES.delay(message.sends + 1))
                reason = "it is not known yet whether the reply arrived"
                return self._postpone(message, reason, seconds, in_doubt=message.in_doubt)
            if arrived:
                return Accepted()
        if message.in_doubt >= MAX_COPIES:
            reason = f"it was sent {message.in_doubt} times, with unknown outcome"
            return Refused(reason=reason, category="reply_unconfirmed")
        if message.caller_id is None and asyncio.get_running_loop().time() < self._absent_until:
            return Refused(reason="this platform has no notify endpoint: people can't be answered")
        return await self._send(message, reply)

    async def _attach(self, message: StoredMessage) -> StoredMessage | Refused | Postponed:
        """*message* with all files of its reply uploaded."""
        attached: StoredMessage | None = message
        try:
            while attached is not None and attached.reply is not None and attached.reply.has_local_files:
                attached = await self._attachments.attach(attached)
        except (AuthError, TransientPlatformError, JournalError) as exc:
            retry_after = exc.retry_after if isinstance(exc, TransientPlatformError) else None
            seconds = RETRIES.delay(message.sends + 1, at_least=retry_after)
            error = exc if isinstance(exc, PlatformError) else None
            return self._postpone(message, str(exc), seconds, in_doubt=0, error=error)
        if attached is None:
            return self._postpone(message, "its state in the journal has changed", ECHO_DELAY, in_doubt=0)
        return attached

    async def _has_arrived(self, message: StoredMessage) -> bool | None:
        """Whether the feed shows the reply to *message*; None if unknown."""
        try:
            return await self._journal.settle(message) if await self._feed.reread() else None
        except JournalError:
            return None

    async def _send(
        self, message: StoredMessage, reply: StoredReply, *, may_shorten: bool = True, seems_absent: bool = False
    ) -> SendOutcome:
        started_at = asyncio.get_running_loop().time()
        try:
            await self._platform.send(message.outgoing(reply.parts, trace=self._tracing.send(message)))
        except AuthError as exc:
            seconds = RETRIES.delay(message.sends + 1)
            return self._postpone(message, str(exc), seconds, in_doubt=message.in_doubt, error=exc)
        except PermanentPlatformError as exc:
            shorter = _shorten(reply.parts)
            if may_shorten and exc.status in (400, 413) and shorter != reply.parts:
                return await self._send_shortened(message, attrs.evolve(reply, parts=shorter))
            return Refused(reason=str(exc))
        except TransientPlatformError as exc:
            if message.caller_id is None and exc.status in (404, 405) and not exc.platform_said:
                if seems_absent:
                    self._absent_until = asyncio.get_running_loop().time() + ABSENT_FOR
                    return Refused(reason=f"this platform has no notify endpoint: {exc}")
                # If the feed can't be read either, the proxy before the platform is at fault. The second attempt is
                # made at once, because the process may be stopped before a later one.
                if await self._feed.reread():
                    return await self._send(message, reply, may_shorten=may_shorten, seems_absent=True)
            return self._after_failure(message, exc, started_at)
        return Accepted()

    async def _send_shortened(self, message: StoredMessage, reply: StoredReply) -> SendOutcome:
        # Stored first: its echo is recognized by the stored fingerprint.
        try:
            send_print = self._platform.fingerprint(message.caller_id, reply.parts)
            await self._journal.replace_reply(message, reply, send_print=send_print)
        except JournalError as exc:
            return self._postpone(message, str(exc), ECHO_DELAY, in_doubt=message.in_doubt)
        return await self._send(message, reply, may_shorten=False)

    def _after_failure(self, message: StoredMessage, exc: TransientPlatformError, started_at: float) -> SendOutcome:
        to_person = message.caller_id is None
        if exc.outcome is Outcome.WRITTEN and not to_person and self._status.heartbeat_accepted_since(started_at):
            return Accepted(confirmed=False)
        seconds = RETRIES.delay(message.sends + 1, at_least=exc.retry_after)
        if exc.status == 402 and exc.platform_said:
            seconds = BUDGET_DELAY
        in_doubt = message.in_doubt
        if _may_have_arrived(exc):
            in_doubt += 1
            if in_doubt >= MAX_COPIES and not to_person:
                reason = f"it was sent {in_doubt} times, with unknown outcome: {exc}"
                return Refused(reason=reason, category="reply_unconfirmed")
            delay = COPY_DELAYS[in_doubt - 1] if in_doubt < MAX_COPIES else 0.0
            seconds = max(delay, min(exc.retry_after or 0.0, RETRIES.cap))
        elif exc.outcome is not Outcome.NOT_TAKEN:
            in_doubt = max(in_doubt, 1)
        if in_doubt and to_person:
            # The echo of an earlier send may still appear.
            seconds = max(seconds, ECHO_DELAY)
        return self._postpone(message, str(exc), seconds, in_doubt=in_doubt, error=exc)

    def _postpone(
        self, message: StoredMessage, reason: str, seconds: float, *, in_doubt: int, error: PlatformError | None = None
    ) -> Refused | Postponed:
        # Only the platform's clock gives the age of a reply: this machine's may have been set.
        now = self._clock.platform_now()
        if now is not None and now - (message.answered_at or 0) >= GIVE_UP_AFTER:
            return Refused(reason=f"not accepted for 24 hours: {reason}", category="reply_expired")
        return Postponed(reason=reason, seconds=seconds, in_doubt=in_doubt, error=error)


def _may_have_arrived(exc: TransientPlatformError) -> bool:
    """Whether a failed send may have arrived, so that the next one may be another copy.

    An error in the platform's own words, or from a proxy before it (a captive portal, an unreachable upstream), means
    that the platform didn't take it.
    """
    if exc.outcome is Outcome.NOT_TAKEN or exc.platform_said:
        return False
    return exc.status is None or exc.about_peer or exc.status in (500, 504)


def _shorten(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """*parts* with long texts cut to the size that older platforms accept; the same parts if none is long."""
    size = len(dump_parts(parts))
    if size <= LONG:
        return parts
    room = SHORT if size > SHORT else LONG
    shorter: list[Part] = []
    for part in parts:
        if isinstance(part, TextPart):
            text = _cut(part.text, room)
            room -= len(dump_parts((TextPart(text),)))
            shorter.append(TextPart(text))
        else:
            shorter.append(part)
    return tuple(shorter)


def _cut(text: str, room: int) -> str:
    if len(dump_parts((TextPart(text),))) <= room:
        return text
    # A character takes up to six bytes of JSON.
    kept = text[: max(0, room // 6 if not text.isascii() else room - 200)]
    while kept and len(dump_parts((TextPart(kept),))) > room - 100:
        kept = kept[: len(kept) * 3 // 4]
    return f"{kept}\n[shortened: {len(text) - len(kept)} more characters]"
