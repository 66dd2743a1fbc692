"""The brake against two programs that answer each other for ever. Only peers are counted, people never.

A turn is a message that was written after an answer of ours, in the same conversation, which no other message has
followed yet; the first message of a new conversation follows the newest answer of all. Turns are counted along the
chain of message, answer, message, and so on. Many messages at once each begin a chain of their own; loops, however many
of them go on side by side, only ever prolong the chains that there are.
"""

import asyncio
import bisect
import enum
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import attrs

from molecule_connect.config.settings import PeerBudget
from molecule_connect.journal.conversations import ConversationReads
from molecule_connect.journal.models import StoredMessage, StoredReply, dump_parts

MINUTE, HOUR = 60.0, 3600.0
SECOND = 1_000_000
PROMPT = 30 * SECOND
IDENTICAL = 5
# A chain that uses up its hour a second time within this is a loop.
REPEATED_EXCESS = 3 * HOUR
# Ten questions a minute are 600 an hour give or take one: who meets the limit as late as this only waits.
SCARCELY = MINUTE
# Answers to each peer that are remembered, also from before the start, and its messages that run.
REMEMBERED = 2000


K = TypeVar("K")
V = TypeVar("V")


class Verdict(enum.Enum):
    """What to do with a message of a peer."""

    RUN = "run"
    WAIT = "wait"
    LOOP = "loop"


@attrs.define
class _Window:
    """A budget for a stretch of time that begins with its first turn."""

    limit: int
    seconds: float
    began: float = float("-inf")
    turns: int = 0

    def is_full(self, now: float) -> bool:
        if now - self.began >= self.seconds:
            self.began, self.turns = now, 0
        return 0 < self.limit <= self.turns


@attrs.define(eq=False)
class _Chain:
    """``prompt``: its last message was written soon after the answer that it follows."""

    minute: _Window
    hour: _Window
    last_excess: float | None = None
    exchange: tuple[str, bytes] | None = None
    run: int = 0
    prompt: bool = False

    def fork(self) -> "_Chain":
        """The same past, another future."""
        return attrs.evolve(self, minute=attrs.evolve(self.minute), hour=attrs.evolve(self.hour))


@attrs.frozen(eq=False)
class _Said:
    at: int
    context_id: str | None
    chain: _Chain


@attrs.define
class _Peer:
    """What is remembered of one peer.

    Attributes:
        said: The answers that no message of their conversation has followed, oldest first.
        following: The turns that are under way, by row.
        contexts: The conversations that we have answered in.
    """

    said: list[_Said] = attrs.field(factory=list)
    following: dict[str, _Chain] = attrs.field(factory=dict)
    contexts: dict[str | None, None] = attrs.field(factory=dict)

    def before(self, entry: StoredMessage) -> _Said | None:
        """The answer that *entry* follows."""
        end = bisect.bisect_left(self.said, entry.time, key=lambda said: said.at)
        if entry.context_id not in self.contexts:
            return self.said[end - 1] if end else None
        return next((said for said in reversed(self.said[:end]) if said.context_id == entry.context_id), None)

    def follow(self, entry: StoredMessage, said: _Said, chain: _Chain) -> None:
        if chain is said.chain:
            self.said.remove(said)
        chain.prompt = entry.time - said.at <= PROMPT
        _put(self.following, entry.row_id, chain)

    def say(self, said: _Said) -> None:
        _put(self.contexts, said.context_id, None)
        bisect.insort(self.said, said, key=lambda said: said.at)
        del self.said[:-REMEMBERED]


@attrs.frozen
class Ruling:
    """The verdict, why, and (to wait) until when by the loop's clock."""

    verdict: Verdict
    reason: str = ""
    until: float = 0.0


@attrs.frozen
class Exchange:
    """A message that was answered *ago* seconds ago, before this process began to count."""

    entry: StoredMessage
    ago: float


class LoopGuard:
    """Counts the turns of peers.

    Args:
        clock: Monotonic seconds.
        earlier: What was answered before, oldest first; asked for once, before anything is counted.
    """

    def __init__(
        self, budget: PeerBudget, clock: Callable[[], float], *, earlier: Callable[[], Iterable[Exchange]] = tuple
    ) -> None:
        self._budget = budget
        self._clock = clock
        self._earlier: Callable[[], Iterable[Exchange]] | None = earlier
        self._peers: dict[str, _Peer] = {}

    def rule(self, entry: StoredMessage, *, others_wait: Callable[[], bool] = lambda: False) -> Ruling:
        """Whether *entry*, whose first attempt is due, may run. Its turn is counted once.

        Args:
            others_wait: Whether its peer has another message that is due: who has, may repeat itself.
        """
        # An operator who replays a message wants it run.
        if entry.caller_id is None or entry.delegation_id is not None or entry.replay:
            return Ruling(Verdict.RUN)
        peer = self._peer(entry.caller_id)
        if entry.row_id in peer.following or (said := peer.before(entry)) is None:
            return Ruling(Verdict.RUN)
        chain, prompt = _chain_of(entry, said), entry.time - said.at <= PROMPT
        same = chain.run >= IDENTICAL and chain.exchange is not None and chain.exchange[0] == entry.fingerprint
        if same and prompt and not others_wait():
            return Ruling(Verdict.LOOP, f"loop: {IDENTICAL} identical exchanges in a row with {entry.caller_id}")
        ruling = _charge(chain, entry.caller_id, self._clock())
        if ruling.verdict is Verdict.RUN:
            peer.follow(entry, said, chain)
        else:
            said.chain.last_excess = chain.last_excess
        return ruling

    def answered(self, entry: StoredMessage, *, at: int) -> None:
        """The platform accepted the answer of *entry*, sent at *at* µs, its clock."""
        if entry.caller_id is not None and entry.delegation_id is None:
            self._told(self._peer(entry.caller_id, but=entry.row_id), entry, at)

    def _told(self, peer: _Peer, entry: StoredMessage, at: int) -> None:
        chain = peer.following.pop(entry.row_id, None) or self._new_chain()
        exchange = (entry.fingerprint, _digest(entry.reply))
        chain.run = chain.run + 1 if exchange == chain.exchange and chain.prompt else 1
        chain.exchange = exchange
        peer.say(_Said(at, entry.context_id, chain))

    def _new_chain(self) -> _Chain:
        return _Chain(_Window(self._budget.per_minute, MINUTE), _Window(self._budget.per_hour, HOUR))

    def _peer(self, caller_id: str, *, but: str = "") -> _Peer:
        if self._earlier is not None:
            earlier, self._earlier = self._earlier(), None
            for exchange in earlier:
                if exchange.entry.row_id != but:
                    self._remember(exchange)
        return self._peers.setdefault(caller_id, _Peer())

    def _remember(self, exchange: Exchange) -> None:
        entry, now = exchange.entry, self._clock() - exchange.ago
        if entry.caller_id is None or entry.delegation_id is not None:
            return
        peer = self._peers.setdefault(entry.caller_id, _Peer())
        if not entry.replay and (said := peer.before(entry)) is not None:
            chain = _chain_of(entry, said)
            _count(chain, now)
            # What met the limit early was made to wait.
            if chain.hour.is_full(now) and chain.hour.began + HOUR - now > SCARCELY:
                _exceeds_again(chain, now)
            peer.follow(entry, said, chain)
        self._told(peer, entry, entry.answered_at or entry.time)


def guard_of(budget: PeerBudget, journal: ConversationReads, *, now: Callable[[], int]) -> LoopGuard:
    """A guard on the running loop's clock that knows what *journal* has from before; *now* is the platform's, in µs."""

    def earlier() -> Iterator[Exchange]:
        at = now()
        for entry, accepted in journal.exchanges(at - round(REPEATED_EXCESS * SECOND), REMEMBERED):
            yield Exchange(entry, max(0.0, (at - accepted) / SECOND))

    return LoopGuard(budget, lambda: asyncio.get_running_loop().time(), earlier=earlier)


def _digest(answer: StoredReply | None) -> bytes:
    """Tells answers apart. They may be long, and many are remembered."""
    return hashlib.blake2b(dump_parts(answer.parts).encode(), digest_size=16).digest() if answer else b""


def _chain_of(entry: StoredMessage, said: _Said) -> _Chain:
    return said.chain if said.context_id == entry.context_id else said.chain.fork()


def _put(known: dict[K, V], key: K, value: V) -> None:
    known.pop(key, None)
    known[key] = value
    if len(known) > REMEMBERED:
        del known[next(iter(known))]


def _charge(chain: _Chain, caller_id: str, now: float) -> Ruling:
    if chain.hour.is_full(now):
        until = chain.hour.began + HOUR
        if until - now > SCARCELY and _exceeds_again(chain, now):
            return Ruling(Verdict.LOOP, f"loop: {caller_id} used up its hourly budget twice in three hours")
        return Ruling(Verdict.WAIT, f"{caller_id} has used up its {chain.hour.limit} turns an hour", until)
    if chain.minute.is_full(now):
        until = chain.minute.began + MINUTE
        return Ruling(Verdict.WAIT, f"{caller_id} has used up its {chain.minute.limit} turns a minute", until)
    _count(chain, now)
    return Ruling(Verdict.RUN)


def _count(chain: _Chain, now: float) -> None:
    for window in (chain.hour, chain.minute):
        window.is_full(now)
        window.turns += 1


def _exceeds_again(chain: _Chain, now: float) -> bool:
    if chain.last_excess is None or chain.hour.began >= chain.last_excess + REPEATED_EXCESS:
        chain.last_excess = now
        return False
    return chain.last_excess < chain.hour.began
