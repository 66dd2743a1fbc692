"""Sending an answer: what counts as accepted, what is final, what is tried again, and what nobody can know."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import attrs

from molecule_connect.backoff import Backoff
from molecule_connect.delivery.entries import Answer, Entry, dump_parts
from molecule_connect.delivery.journal import WorkspaceJournal
from molecule_connect.delivery.ports import Sender
from molecule_connect.delivery.transitions import ECHO_DELAY
from molecule_connect.errors import AuthError, Outcome, PermanentPlatformError, TransientPlatformError
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
        feed_reads_well: Whether the last read of the feed succeeded.
    """

    def __init__(
        self,
        sender: Sender,
        journal: WorkspaceJournal,
        *,
        now: Callable[[], int],
        reread: Callable[[], Awaitable[bool]],
        beat_accepted_since: Callable[[float], bool],
        feed_reads_well: Callable[[], bool],
        wall: Callable[[], float] = time.time,
        backoff: Backoff | None = None,
    ) -> None:
        self._sender = sender
        self._journal = journal
        self._now = now
        self._reread = reread
        self._beat_accepted_since = beat_accepted_since
        self._feed_reads_well = feed_reads_well
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
        if entry.answer is None:
            return Refused(reason="there is no answer to send")
        if entry.in_doubt and entry.caller_id is None:
            if not await self._reread():
                return Later(reason="whether the answer arrived is not known yet", seconds=ECHO_DELAY, in_doubt=True)
            if await self._journal.settle(entry):
                return Accepted()
        if entry.caller_id is None and asyncio.get_running_loop().time() < self._absent_until:
            return Refused(reason="this platform has no notify: people cannot be answered")
        return await self._send(entry, entry.answer.parts)

    async def _send(self, entry: Entry, parts: tuple[Part, ...]) -> Accepted | Refused | Later:
        began = asyncio.get_running_loop().time()
        try:
            await self._sender.send(_outgoing(entry, parts))
        except PermanentPlatformError as exc:
            return await self._refused(entry, parts, exc)
        except TransientPlatformError as exc:
            return self._failed(entry, exc, began)
        return Accepted()

    async def _refused(
        self, entry: Entry, parts: tuple[Part, ...], exc: PermanentPlatformError
    ) -> Accepted | Refused | Later:
        if isinstance(exc, AuthError):
            return self._later(entry, str(exc), self._backoff.delay(entry.sends + 1), in_doubt=False)
        shorter = shorten(parts)
        if exc.status in (400, 413) and shorter != parts:
            return await self._send(entry, shorter)
        return Refused(reason=str(exc))

    def _failed(self, entry: Entry, exc: TransientPlatformError, began: float) -> Accepted | Refused | Later:
        to_person = entry.caller_id is None
        if to_person and self._is_absent(entry, exc):
            return Refused(reason=f"this platform has no notify: {exc}")
        if exc.outcome is Outcome.WRITTEN and not to_person and self._beat_accepted_since(began):
            return Accepted(confirmed=False)
        seconds = self._backoff.delay(entry.sends + 1, at_least=exc.retry_after)
        if exc.status == 402:
            seconds = BUDGET_WAIT
        in_doubt = exc.outcome is not Outcome.NOT_TAKEN
        if in_doubt and to_person:
            seconds = max(seconds, ECHO_DELAY)
        return self._later(entry, str(exc), seconds, in_doubt=in_doubt)

    def _is_absent(self, entry: Entry, exc: TransientPlatformError) -> bool:
        if exc.status not in (404, 405) or exc.platform_said:
            return False
        if entry.row_id not in self._absent or not self._feed_reads_well():
            self._absent.add(entry.row_id)
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
