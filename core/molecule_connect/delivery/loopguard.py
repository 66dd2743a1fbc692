"""The brake against two programs that answer each other for ever. Only peers are counted, people never."""

import enum
from collections.abc import Callable

import attrs

from molecule_connect.delivery.entries import Entry
from molecule_connect.settings import PeerBudget

MINUTE, HOUR = 60.0, 3600.0
PROMPT = 30 * 1_000_000
IDENTICAL = 5
# A peer that uses up its hour a second time within this is a loop.
REPEATED_EXCESS = 3 * HOUR
# Ten questions a minute are 600 an hour give or take one: who meets the limit as late as this only waits.
SCARCELY = MINUTE


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


@attrs.define
class _Peer:
    minute: _Window
    hour: _Window
    answered_at: int | None = None
    last_excess: float | None = None
    exchange: tuple[str, str] | None = None
    run: int = 0
    # The row of the last true turn, and whether it came promptly.
    turn: str | None = None
    prompt: bool = False


@attrs.frozen
class Ruling:
    """The verdict, why, and (to wait) until when by the loop's clock."""

    verdict: Verdict
    reason: str = ""
    until: float = 0.0


class LoopGuard:
    """Counts true turns: messages that a peer wrote after our last answer to it, with none waiting.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, budget: PeerBudget, clock: Callable[[], float]) -> None:
        self._budget = budget
        self._clock = clock
        self._peers: dict[str, _Peer] = {}

    def may_count(self, entry: Entry) -> bool:
        """Whether *entry* is a true turn if no other message of its peer waits."""
        # An operator who replays a message wants it run.
        if entry.caller_id is None or entry.delegation_id is not None or entry.replay:
            return False
        peer = self._peer(entry.caller_id)
        return peer.answered_at is not None and entry.time > peer.answered_at and peer.turn != entry.row_id

    def rule(self, entry: Entry, *, others_wait: bool) -> Ruling:
        """Whether *entry*, whose first attempt is due, may run. It counts the turn, the last one once."""
        if entry.caller_id is None or others_wait or not self.may_count(entry):
            return Ruling(Verdict.RUN)
        peer = self._peer(entry.caller_id)
        prompt = entry.time - (peer.answered_at or 0) <= PROMPT
        if prompt and peer.run >= IDENTICAL and peer.exchange and peer.exchange[0] == entry.fingerprint:
            return Ruling(Verdict.LOOP, f"loop: {IDENTICAL} identical exchanges in a row with {entry.caller_id}")
        ruling = self._charge(peer, entry.caller_id)
        if ruling.verdict is Verdict.RUN:
            peer.turn, peer.prompt = entry.row_id, prompt
        return ruling

    def _charge(self, peer: _Peer, caller_id: str) -> Ruling:
        now = self._clock()
        if peer.hour.is_full(now):
            until = peer.hour.began + HOUR
            if until - now > SCARCELY and _exceeds_again(peer, now):
                return Ruling(Verdict.LOOP, f"loop: {caller_id} used up its hourly budget twice in three hours")
            return Ruling(Verdict.WAIT, f"{caller_id} has used up its {peer.hour.limit} turns an hour", until)
        if peer.minute.is_full(now):
            until = peer.minute.began + MINUTE
            return Ruling(Verdict.WAIT, f"{caller_id} has used up its {peer.minute.limit} turns a minute", until)
        peer.hour.turns += 1
        peer.minute.turns += 1
        return Ruling(Verdict.RUN)

    def answered(self, entry: Entry, answer: str, *, at: int) -> None:
        """The platform accepted *answer* (any text that is the same for equal answers), sent at *at* µs, its clock."""
        if entry.caller_id is None:
            return
        peer = self._peer(entry.caller_id)
        peer.answered_at = max(at, peer.answered_at or 0)
        if entry.delegation_id is not None or entry.replay:
            return
        exchange = (entry.fingerprint, answer)
        is_prompt = peer.prompt and peer.turn == entry.row_id
        peer.run = peer.run + 1 if exchange == peer.exchange and is_prompt else 1
        peer.exchange = exchange

    def _peer(self, caller_id: str) -> _Peer:
        if caller_id not in self._peers:
            minute = _Window(self._budget.per_minute, MINUTE)
            self._peers[caller_id] = _Peer(minute, _Window(self._budget.per_hour, HOUR))
        return self._peers[caller_id]


def _exceeds_again(peer: _Peer, now: float) -> bool:
    if peer.last_excess is None or peer.hour.began >= peer.last_excess + REPEATED_EXCESS:
        peer.last_excess = now
        return False
    return peer.last_excess < peer.hour.began
