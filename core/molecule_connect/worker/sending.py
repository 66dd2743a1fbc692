"""Sending an answer: what counts as accepted, what is final, what is tried again, and what nobody can know."""

import asyncio
import time
from collections.abc import Awaitable, Callable

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
from molecule_connect.journal.journal import WorkspaceJournal
from molecule_connect.journal.models import State, StoredMessage, StoredReply, dump_parts
from molecule_connect.journal.transitions import ECHO_DELAY, LONGEST_WAITS
from molecule_connect.models import Outgoing, Part, TextPart
from molecule_connect.worker.health import SendHealth
from molecule_connect.worker.ports import Sender
from molecule_connect.worker.uploads import Attachments, has_local

GIVE_UP = 24 * 3600 * 1_000_000
BUDGET_WAIT = LONGEST_WAITS[State.ANSWERED]
ABSENT_FOR = 3600.0
# How often an answer is sent while nobody can say whether it arrived: each send may be another copy.
MOST_COPIES = 5
# Seconds until it is sent again after the first such send, the second, and so on: few copies, over minutes of trouble.
COPY_WAITS = (1.0, 10.0, 60.0, 600.0)
# An older platform cuts a body at 1 MiB and then calls it invalid.
LONG, SHORT = 100_000, 900_000


@attrs.frozen(kw_only=True)
class Accepted:
    """The platform has it.

    Unconfirmed: it was sent in full on a connection that worked, and no answer came, while heartbeats were accepted.
    """

    confirmed: bool = True


@attrs.frozen(kw_only=True)
class Refused:
    """It will never be accepted."""

    reason: str


@attrs.frozen(kw_only=True)
class Later:
    """Try again in ``seconds``.

    Attributes:
        in_doubt: How many sends may have arrived all the same.
        error: Why it was not accepted; None where it was not sent.
    """

    reason: str
    seconds: float
    in_doubt: int
    error: PlatformError | None = None


class Replies:
    """Sends one workspace's answers.

    Args:
        platform_now: The platform's time in microseconds; None while it has told none.
        reread: A whole read of the feed that begins after the call; False when it failed.
        beat_accepted_since: Whether a beat sent after that moment (loop time) was accepted.
        attachments: Uploads the files of answers to people.
        health: Learns how each send ended.
    """

    def __init__(
        self,
        sender: Sender,
        journal: WorkspaceJournal,
        *,
        platform_now: Callable[[], int | None],
        reread: Callable[[], Awaitable[bool]],
        beat_accepted_since: Callable[[float], bool],
        attachments: Attachments,
        health: SendHealth,
        wall: Callable[[], float] = time.time,
        backoff: Backoff | None = None,
    ) -> None:
        self._sender = sender
        self._journal = journal
        self._platform_now = platform_now
        self._reread = reread
        self._beat_accepted_since = beat_accepted_since
        self._attachments = attachments
        self._health = health
        self._wall = wall
        self._backoff = backoff or Backoff(first=1.0, cap=300.0)
        self._absent_until = float("-inf")

    def fingerprint(self, entry: StoredMessage, answer: StoredReply) -> str | None:
        """What the echo of *answer* will look like; None for a peer, who echoes nothing."""
        if entry.caller_id is not None:
            return None
        return self._sender.fingerprint(_outgoing(attrs.evolve(entry, reply=answer), answer.parts))

    async def deliver(self, entry: StoredMessage) -> Accepted | Refused | Later:
        """Try once to get *entry*'s stored answer accepted."""
        outcome = await self._deliver(entry)
        match outcome:
            case Later(error=PlatformError() as error) if not getattr(error, "about_peer", False):
                self._health.failed(entry.row_id, entry.caller_id, error)
            case Later(error=None):
                pass
            case Accepted(confirmed=True):
                self._health.succeeded(entry.caller_id)
            case _:
                self._health.over(entry.row_id)
        return outcome

    async def _deliver(self, entry: StoredMessage) -> Accepted | Refused | Later:
        answer = entry.reply
        if answer is None:
            return Refused(reason="there is no answer to send")
        if entry.caller_id is None and has_local(answer):
            # It was not sent yet: it goes with its files.
            attached = await self._attach(entry)
            if not isinstance(attached, StoredMessage):
                return attached
            entry, answer = attrs.evolve(attached, in_doubt=0), attached.reply or answer
        if entry.in_doubt and entry.caller_id is None:
            arrived = await self._arrived(entry)
            if arrived is None:
                seconds = max(ECHO_DELAY, self._backoff.delay(entry.sends + 1))
                reason = "whether the answer arrived is not known yet"
                return self._later(entry, reason, seconds, in_doubt=entry.in_doubt)
            if arrived:
                return Accepted()
        if entry.in_doubt >= MOST_COPIES:
            return Refused(reason=f"it was sent {entry.in_doubt} times, and whether it arrived is not known")
        if entry.caller_id is None and asyncio.get_running_loop().time() < self._absent_until:
            return Refused(reason="this platform has no notify: people cannot be answered")
        return await self._send(entry, answer)

    async def _attach(self, entry: StoredMessage) -> StoredMessage | Refused | Later:
        """*entry* with all files of its answer uploaded."""
        attached: StoredMessage | None = entry
        try:
            while attached is not None and attached.reply is not None and has_local(attached.reply):
                attached = await self._attachments.attach(attached)
        except (AuthError, TransientPlatformError, JournalError) as exc:
            asked = exc.retry_after if isinstance(exc, TransientPlatformError) else None
            seconds = self._backoff.delay(entry.sends + 1, at_least=asked)
            error = exc if isinstance(exc, PlatformError) else None
            return self._later(entry, str(exc), seconds, in_doubt=0, error=error)
        if attached is None:
            return self._later(entry, "the journal says otherwise", ECHO_DELAY, in_doubt=0)
        return attached

    async def _arrived(self, entry: StoredMessage) -> bool | None:
        """Whether the feed shows *entry*'s answer, or None while that cannot be found out."""
        try:
            return await self._journal.settle(entry) if await self._reread() else None
        except JournalError:
            return None

    async def _send(
        self, entry: StoredMessage, answer: StoredReply, *, may_shorten: bool = True, seems_absent: bool = False
    ) -> Accepted | Refused | Later:
        began = asyncio.get_running_loop().time()
        try:
            await self._sender.send(_outgoing(entry, answer.parts))
        except AuthError as exc:
            seconds = self._backoff.delay(entry.sends + 1)
            return self._later(entry, str(exc), seconds, in_doubt=entry.in_doubt, error=exc)
        except PermanentPlatformError as exc:
            shorter = shorten(answer.parts)
            if may_shorten and exc.status in (400, 413) and shorter != answer.parts:
                return await self._send_shortened(entry, attrs.evolve(answer, parts=shorter))
            return Refused(reason=str(exc))
        except TransientPlatformError as exc:
            if entry.caller_id is None and exc.status in (404, 405) and not exc.platform_said:
                if seems_absent:
                    self._absent_until = asyncio.get_running_loop().time() + ABSENT_FOR
                    return Refused(reason=f"this platform has no notify: {exc}")
                # Where the feed does not read either, the edge is at fault. Not put off: a stop may come first.
                if await self._reread():
                    return await self._send(entry, answer, may_shorten=may_shorten, seems_absent=True)
            return self._failed(entry, exc, began)
        return Accepted()

    async def _send_shortened(self, entry: StoredMessage, answer: StoredReply) -> Accepted | Refused | Later:
        # Its echo is known by what is stored.
        try:
            await self._journal.replace_reply(entry, answer, send_print=self.fingerprint(entry, answer))
        except JournalError as exc:
            return self._later(entry, str(exc), ECHO_DELAY, in_doubt=entry.in_doubt)
        return await self._send(entry, answer, may_shorten=False)

    def _failed(self, entry: StoredMessage, exc: TransientPlatformError, began: float) -> Accepted | Refused | Later:
        to_person = entry.caller_id is None
        if exc.outcome is Outcome.WRITTEN and not to_person and self._beat_accepted_since(began):
            return Accepted(confirmed=False)
        seconds = self._backoff.delay(entry.sends + 1, at_least=exc.retry_after)
        if exc.status == 402 and exc.platform_said:
            seconds = BUDGET_WAIT
        # An echo of an earlier send may still come.
        in_doubt = entry.in_doubt
        if _may_be_a_copy(exc):
            in_doubt += 1
            if in_doubt >= MOST_COPIES and not to_person:
                return Refused(reason=f"it was sent {in_doubt} times, and whether it arrived is not known: {exc}")
            wait = COPY_WAITS[in_doubt - 1] if in_doubt < MOST_COPIES else 0.0
            seconds = max(wait, min(exc.retry_after or 0.0, self._backoff.cap))
        elif exc.outcome is not Outcome.NOT_TAKEN:
            in_doubt = max(in_doubt, 1)
        if in_doubt and to_person:
            seconds = max(seconds, ECHO_DELAY)
        return self._later(entry, str(exc), seconds, in_doubt=in_doubt, error=exc)

    def _later(
        self, entry: StoredMessage, reason: str, seconds: float, *, in_doubt: int, error: PlatformError | None = None
    ) -> Refused | Later:
        now = self._platform_now()
        # While the platform has told no time, our own clock alone would have to be right.
        if now is not None and now - (entry.answered_at or 0) >= GIVE_UP:
            return Refused(reason=f"not accepted for 24 hours: {reason}")
        return Later(reason=reason, seconds=seconds, in_doubt=in_doubt, error=error)


def _may_be_a_copy(exc: TransientPlatformError) -> bool:
    """Whether a failed send may have arrived, so that the next one may be another copy.

    What the platform reports in its own words, and what stands before it (a portal, a proxy whose upstream is down),
    was not taken as far as anyone can tell.
    """
    if exc.outcome is Outcome.NOT_TAKEN or exc.platform_said:
        return False
    return exc.status is None or exc.about_peer or exc.status in (500, 504)


def _outgoing(entry: StoredMessage, parts: tuple[Part, ...]) -> Outgoing:
    return Outgoing(
        message_id=entry.outgoing_id(),
        caller_id=entry.caller_id,
        context_id=entry.context_id,
        in_reply_to=entry.message_id,
        parts=parts,
    )


def shorten(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """*parts* with long text cut so that an older platform takes it; the same parts when nothing is long."""
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
    # A character takes up to six bytes of JSON.
    if len(dump_parts((TextPart(text),))) <= room:
        return text
    kept = text[: max(0, room // 6 if not text.isascii() else room - 200)]
    while kept and len(dump_parts((TextPart(kept),))) > room - 100:
        kept = kept[: len(kept) * 3 // 4]
    return f"{kept}\n[shortened: {len(text) - len(kept)} more characters]"
