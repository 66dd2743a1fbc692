"""Sending an answer: what counts as accepted, what is final, what is tried again, and what nobody can know."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import attrs

from molecule_connect.backoff import Backoff
from molecule_connect.delivery.files.attachments import Attachments, has_local
from molecule_connect.delivery.journal.entries import Answer, Entry, dump_parts
from molecule_connect.delivery.journal.journal import WorkspaceJournal
from molecule_connect.delivery.journal.transitions import ECHO_DELAY
from molecule_connect.delivery.ports import Sender
from molecule_connect.errors import AuthError, JournalError, Outcome, PermanentPlatformError, TransientPlatformError
from molecule_connect.models import Outgoing, Part, TextPart

GIVE_UP = 24 * 3600 * 1_000_000
BUDGET_WAIT = 600.0
ABSENT_FOR = 3600.0
# An older platform cuts a body at 1 MiB and then calls it invalid.
LONG, SHORT = 100_000, 900_000


@attrs.frozen(kw_only=True)
class Accepted:
    """The platform has it. Unconfirmed: it was sent in full and nobody answered, while beats were accepted."""

    confirmed: bool = True


@attrs.frozen(kw_only=True)
class Refused:
    """It will never be accepted."""

    reason: str


@attrs.frozen(kw_only=True)
class Later:
    """Try again in so many seconds. In doubt: the platform may have it already."""

    reason: str
    seconds: float
    in_doubt: bool


class Replies:
    """Sends one workspace's answers.

    Args:
        now: The platform's time in microseconds.
        reread: A whole read of the feed that begins after the call; False when it failed.
        beat_accepted_since: Whether a beat sent after that moment (loop time) was accepted.
        attachments: Uploads the files of answers to people.
    """

    def __init__(
        self,
        sender: Sender,
        journal: WorkspaceJournal,
        *,
        now: Callable[[], int],
        reread: Callable[[], Awaitable[bool]],
        beat_accepted_since: Callable[[float], bool],
        attachments: Attachments,
        wall: Callable[[], float] = time.time,
        backoff: Backoff | None = None,
    ) -> None:
        self._sender = sender
        self._journal = journal
        self._now = now
        self._reread = reread
        self._beat_accepted_since = beat_accepted_since
        self._attachments = attachments
        self._wall = wall
        self._backoff = backoff or Backoff(first=1.0, cap=300.0)
        self._absent: set[str] = set()
        self._absent_until = float("-inf")

    def fingerprint(self, entry: Entry, answer: Answer) -> str | None:
        """What the echo of *answer* will look like; None for a peer, who echoes nothing."""
        if entry.caller_id is not None:
            return None
        return self._sender.fingerprint(_outgoing(attrs.evolve(entry, answer=answer), answer.parts))

    async def deliver(self, entry: Entry) -> Accepted | Refused | Later:
        """Try once to get *entry*'s stored answer accepted."""
        answer = entry.answer
        if answer is None:
            return Refused(reason="there is no answer to send")
        if entry.caller_id is None and has_local(answer):
            # It was not sent yet: it goes with its files.
            attached = await self._attach(entry)
            if not isinstance(attached, Entry):
                return attached
            entry, answer = attrs.evolve(attached, in_doubt=False), attached.answer or answer
        if entry.in_doubt and entry.caller_id is None:
            arrived = await self._arrived(entry)
            if arrived is None:
                seconds = max(ECHO_DELAY, self._backoff.delay(entry.sends + 1))
                return self._later(entry, "whether the answer arrived is not known yet", seconds, in_doubt=True)
            if arrived:
                return Accepted()
        if entry.caller_id is None and asyncio.get_running_loop().time() < self._absent_until:
            return Refused(reason="this platform has no notify: people cannot be answered")
        return await self._send(entry, answer)

    async def _attach(self, entry: Entry) -> Entry | Refused | Later:
        """*entry* with all files of its answer uploaded."""
        attached: Entry | None = entry
        try:
            while attached is not None and attached.answer is not None and has_local(attached.answer):
                attached = await self._attachments.attach(attached)
        except (AuthError, TransientPlatformError, JournalError) as exc:
            asked = exc.retry_after if isinstance(exc, TransientPlatformError) else None
            return self._later(entry, str(exc), self._backoff.delay(entry.sends + 1, at_least=asked), in_doubt=False)
        if attached is None:
            return self._later(entry, "the journal says otherwise", ECHO_DELAY, in_doubt=False)
        return attached

    async def _arrived(self, entry: Entry) -> bool | None:
        """Whether the feed shows *entry*'s answer, or None while that cannot be found out."""
        try:
            return await self._journal.settle(entry) if await self._reread() else None
        except JournalError:
            return None

    async def _send(self, entry: Entry, answer: Answer, *, may_shorten: bool = True) -> Accepted | Refused | Later:
        began = asyncio.get_running_loop().time()
        try:
            await self._sender.send(_outgoing(entry, answer.parts))
        except AuthError as exc:
            return self._later(entry, str(exc), self._backoff.delay(entry.sends + 1), in_doubt=entry.in_doubt)
        except PermanentPlatformError as exc:
            shorter = shorten(answer.parts)
            if may_shorten and exc.status in (400, 413) and shorter != answer.parts:
                return await self._send_shortened(entry, attrs.evolve(answer, parts=shorter))
            return Refused(reason=str(exc))
        except TransientPlatformError as exc:
            return await self._failed(entry, exc, began)
        return Accepted()

    async def _send_shortened(self, entry: Entry, answer: Answer) -> Accepted | Refused | Later:
        # Its echo is known by what is stored.
        try:
            await self._journal.shortened(entry, answer, send_print=self.fingerprint(entry, answer))
        except JournalError as exc:
            return self._later(entry, str(exc), ECHO_DELAY, in_doubt=entry.in_doubt)
        return await self._send(entry, answer, may_shorten=False)

    async def _failed(self, entry: Entry, exc: TransientPlatformError, began: float) -> Accepted | Refused | Later:
        to_person = entry.caller_id is None
        if to_person and await self._is_absent(entry, exc):
            return Refused(reason=f"this platform has no notify: {exc}")
        if exc.outcome is Outcome.WRITTEN and not to_person and self._beat_accepted_since(began):
            return Accepted(confirmed=False)
        seconds = self._backoff.delay(entry.sends + 1, at_least=exc.retry_after)
        if exc.status == 402:
            seconds = BUDGET_WAIT
        # An echo of an earlier send may still come.
        in_doubt = entry.in_doubt or exc.outcome is not Outcome.NOT_TAKEN
        if in_doubt and to_person:
            seconds = max(seconds, ECHO_DELAY)
        return self._later(entry, str(exc), seconds, in_doubt=in_doubt)

    async def _is_absent(self, entry: Entry, exc: TransientPlatformError) -> bool:
        if exc.status not in (404, 405) or exc.platform_said:
            return False
        is_first = entry.row_id not in self._absent
        self._absent.add(entry.row_id)
        # Where the feed does not read either, the edge is at fault.
        if is_first or not await self._reread():
            return False
        self._absent.clear()
        self._absent_until = asyncio.get_running_loop().time() + ABSENT_FOR
        return True

    def _later(self, entry: Entry, reason: str, seconds: float, *, in_doubt: bool) -> Refused | Later:
        if self._now() - (entry.answered_at or 0) >= GIVE_UP:
            return Refused(reason=f"not accepted for 24 hours: {reason}")
        return Later(reason=reason, seconds=seconds, in_doubt=in_doubt)


def _outgoing(entry: Entry, parts: tuple[Part, ...]) -> Outgoing:
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
