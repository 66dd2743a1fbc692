"""The loop guard: stops programs that answer each other endlessly. It counts peers only, never people.

A *turn* is a message that was written after one of our replies in the same conversation, if no other message has
followed that reply yet. The first message of a new conversation follows our newest reply to that peer. Turns are
counted along the chain of message, reply, message, and so on. A burst of messages starts many short chains; loops only
ever extend existing ones, even if many run side by side.
"""

import bisect
import hashlib
from collections.abc import Iterator
from typing import Protocol, TypeVar

import attrs

from molecule_connect.config.settings import PeerBudget
from molecule_connect.journal.models import StoredMessage, StoredReply, dump_parts
from molecule_connect.worker.clock import SECOND, Clock
from molecule_connect.worker.outcomes import Deferred, Refusal, Rejected

MINUTE, HOUR = 60.0, 3600.0
# A message is prompt if it was written at most this long after the reply that it follows, in microseconds.
PROMPT = 30 * SECOND
# Identical prompt exchanges in a row that are a loop.
IDENTICAL = 5
# A chain that uses up its hour a second time within this is a loop.
REPEATED_EXCESS = 3 * HOUR
# Ten messages a minute are about 600 an hour: if the hour is used up this late, messages are only deferred.
NEARLY_OVER = MINUTE
# Replies to each peer that are remembered, also from before the start, and running messages of each peer.
REMEMBERED = 2000
# Clocks round: a conversation is deferred for at least this many seconds.
MIN_DELAY = 0.1

K = TypeVar("K")
V = TypeVar("V")


class History(Protocol):
    """What the guard reads from the journal."""

    def exchanges(self, since: int, most: int) -> Iterator[tuple[StoredMessage, int]]:
        """Peers' messages whose reply was accepted after *since* (µs), and when; oldest first, *most* per peer."""
        ...

    def has_other_due(self, message: StoredMessage) -> bool:
        """Whether the caller of *message* has another message that is due."""
        ...


@attrs.define
class _Window:
    """A budget of turns for a period that starts with its first turn. A limit of 0 means no limit."""

    limit: int
    seconds: float
    start: float = float("-inf")
    turns: int = 0

    def is_full(self, now: float) -> bool:
        if now - self.start >= self.seconds:
            self.start, self.turns = now, 0
        return 0 < self.limit <= self.turns

    @property
    def end(self) -> float:
        return self.start + self.seconds


@attrs.define(eq=False)
class _Chain:
    """Attributes:
    exchange: Fingerprints of the last message and its reply.
    repeats: Number of times in a row that they were the same.
    prompt: Whether the last message was prompt.
    """

    minute: _Window
    hour: _Window
    last_excess: float | None = None
    exchange: tuple[str, bytes] | None = None
    repeats: int = 0
    prompt: bool = False

    def fork(self) -> "_Chain":
        """A copy that continues on its own."""
        return attrs.evolve(self, minute=attrs.evolve(self.minute), hour=attrs.evolve(self.hour))

    def count(self, now: float) -> None:
        for window in (self.hour, self.minute):
            window.is_full(now)
            window.turns += 1

    def exceeds_again(self, now: float) -> bool:
        """Whether this chain used up an earlier hour too; else note that it used up this one."""
        if self.last_excess is None or self.hour.start >= self.last_excess + REPEATED_EXCESS:
            self.last_excess = now
            return False
        return self.last_excess < self.hour.start


@attrs.frozen(eq=False)
class _Reply:
    at: int
    context_id: str | None
    chain: _Chain

    def chain_for(self, message: StoredMessage) -> _Chain:
        """The chain that *message* extends if it follows this reply."""
        return self.chain if self.context_id == message.context_id else self.chain.fork()


@attrs.define
class _Peer:
    """Attributes:
    replies: Replies that no message of their conversation has followed, oldest first.
    following: Chains of the turns in progress, by row.
    contexts: Conversations with at least one reply.
    """

    replies: list[_Reply] = attrs.field(factory=list)
    following: dict[str, _Chain] = attrs.field(factory=dict)
    contexts: dict[str | None, None] = attrs.field(factory=dict)

    def reply_before(self, message: StoredMessage) -> _Reply | None:
        """The reply that *message* follows."""
        end = bisect.bisect_left(self.replies, message.time, key=lambda reply: reply.at)
        if message.context_id not in self.contexts:
            return self.replies[end - 1] if end else None
        earlier = reversed(self.replies[:end])
        return next((reply for reply in earlier if reply.context_id == message.context_id), None)

    def follow(self, message: StoredMessage, reply: _Reply, chain: _Chain) -> None:
        if chain is reply.chain:
            self.replies.remove(reply)
        chain.prompt = _is_prompt(message, reply)
        _remember(self.following, message.row_id, chain)

    def add_reply(self, message: StoredMessage, at: int, chain: _Chain) -> None:
        exchange = (message.fingerprint, _digest(message.reply))
        chain.repeats = chain.repeats + 1 if exchange == chain.exchange and chain.prompt else 1
        chain.exchange = exchange
        _remember(self.contexts, message.context_id, None)
        bisect.insort(self.replies, _Reply(at, message.context_id, chain), key=lambda reply: reply.at)
        del self.replies[:-REMEMBERED]


class LoopGuard:
    """Counts the turns of each peer.

    Args:
        journal: Also read once, before the first count, for the exchanges before the start.
    """

    def __init__(self, budget: PeerBudget, journal: History, clock: Clock) -> None:
        self._budget = budget
        self._journal = journal
        self._clock = clock
        self._peers: dict[str, _Peer] | None = None

    def check(self, message: StoredMessage) -> Refusal | None:
        """Why *message* may not run; None if it may. Its turn is counted once."""
        # Replays are requested by an operator.
        if message.caller_id is None or message.delegation_id or message.replay or message.attempt:
            return None
        peer = self._peer(message.caller_id)
        if message.row_id in peer.following or (reply := peer.reply_before(message)) is None:
            return None
        chain = reply.chain_for(message)
        # A peer with more messages waiting isn't answering our replies.
        if _repeats(message, reply, chain) and not self._journal.has_other_due(message):
            reason = f"loop: {IDENTICAL} identical exchanges in a row with {message.caller_id}"
            return Rejected(reason=reason, category="loop")
        refusal = self._charge(chain, message.caller_id)
        if refusal is None:
            peer.follow(message, reply, chain)
        else:
            reply.chain.last_excess = chain.last_excess
        return refusal

    def reply_accepted(self, message: StoredMessage, *, at: int) -> None:
        """The platform accepted the reply to *message*, sent at *at* (µs, platform time)."""
        if message.caller_id is not None and message.delegation_id is None:
            peer = self._peer(message.caller_id, skip_row=message.row_id)
            self._add_reply(peer, message, at)

    def _charge(self, chain: _Chain, caller_id: str) -> Refusal | None:
        now = self._clock.monotonic()
        if chain.hour.is_full(now):
            if chain.hour.end - now > NEARLY_OVER and chain.exceeds_again(now):
                reason = f"loop: {caller_id} used up its hourly budget twice in three hours"
                return Rejected(reason=reason, category="loop")
            return self._defer(chain.hour, now, f"{caller_id} has used up its {chain.hour.limit} turns an hour")
        if chain.minute.is_full(now):
            return self._defer(chain.minute, now, f"{caller_id} has used up its {chain.minute.limit} turns a minute")
        chain.count(now)
        return None

    def _defer(self, window: _Window, now: float, reason: str) -> Deferred:
        not_before = self._clock.wall() + max(MIN_DELAY, window.end - now)
        return Deferred(not_before=not_before, reason=reason, limit="loop brake")

    def _add_reply(self, peer: _Peer, message: StoredMessage, at: int) -> None:
        chain = peer.following.pop(message.row_id, None)
        if chain is None:
            chain = _Chain(_Window(self._budget.per_minute, MINUTE), _Window(self._budget.per_hour, HOUR))
        peer.add_reply(message, at, chain)

    def _peer(self, caller_id: str, *, skip_row: str = "") -> _Peer:
        if self._peers is None:
            self._peers = {}
            now = self._clock.now()
            for message, accepted_at in self._journal.exchanges(now - round(REPEATED_EXCESS * SECOND), REMEMBERED):
                if message.row_id != skip_row:
                    self._restore(message, max(0.0, (now - accepted_at) / SECOND))
        if (peer := self._peers.get(caller_id)) is None:
            peer = self._peers[caller_id] = _Peer()
        return peer

    def _restore(self, message: StoredMessage, seconds_ago: float) -> None:
        """Count an exchange from before the start."""
        if message.caller_id is None or message.delegation_id is not None:
            return
        then = self._clock.monotonic() - seconds_ago
        peer = self._peer(message.caller_id)
        if not message.replay and (reply := peer.reply_before(message)) is not None:
            chain = reply.chain_for(message)
            chain.count(then)
            # Messages that exceeded the hour while much of it was left were deferred then.
            if chain.hour.is_full(then) and chain.hour.end - then > NEARLY_OVER:
                chain.exceeds_again(then)
            peer.follow(message, reply, chain)
        self._add_reply(peer, message, message.answered_at or message.time)


def _is_prompt(message: StoredMessage, reply: _Reply) -> bool:
    return message.time - reply.at <= PROMPT


def _repeats(message: StoredMessage, reply: _Reply, chain: _Chain) -> bool:
    """Whether *message* continues a series of identical prompt exchanges."""
    if chain.repeats < IDENTICAL or chain.exchange is None:
        return False
    return chain.exchange[0] == message.fingerprint and _is_prompt(message, reply)


def _digest(reply: StoredReply | None) -> bytes:
    # Replies can be long, and many are remembered.
    return hashlib.blake2b(dump_parts(reply.parts).encode(), digest_size=16).digest() if reply else b""


def _remember(known: dict[K, V], key: K, value: V) -> None:
    known.pop(key, None)
    known[key] = value
    if len(known) > REMEMBERED:
        del known[next(iter(known))]
