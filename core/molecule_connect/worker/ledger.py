"""The cost of a day against a limit, and each caller's share of it."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from molecule_connect.journal.transitions import DAY_SPENT

# Shares of the limit: of one peer, and of all peers together. The rest is reserved for people.
ONE_PEER, ALL_PEERS = 0.5, 0.75
# Reserved amounts below this many US dollars are left over by the rounding of sums.
NEGLIGIBLE = 1e-9


class Ledger:
    """What was spent and is reserved of a day's limit, in US dollars.

    Callers are any keys; None stands for all people.

    Args:
        limit: None for no limit.
        load: What was spent today, by caller.
        scope: Starts the texts about it.
    """

    def __init__(self, limit: float | None, load: Callable[[], Mapping[Any, float]], scope: str = "") -> None:
        self.limit = limit
        self._load, self._scope = load, scope
        self._day = -1
        self._spent: dict[Hashable, float] = {}
        self._reserved: dict[Hashable, float] = {}

    def open_day(self, day: int) -> None:
        """Load what was spent, if *day*, a number of days since 1970, is another one than before."""
        if day != self._day:
            self._day, self._spent = day, dict(self._load())

    def spend(self, caller: Hashable, cost: float) -> None:
        """Add the cost of an attempt."""
        self._spent[caller] = self._spent.get(caller, 0.0) + cost

    def exhausted(self, caller: Hashable) -> str:
        """Why the caller may not spend more today; empty if it may."""
        return self._exhausted(caller, self._spent)

    @property
    def remaining(self) -> float | None:
        """What is left of the limit; None without one."""
        return None if self.limit is None else max(0.0, self.limit - sum(self._spent.values()))

    @property
    def has_exhausted_peer(self) -> bool:
        """Whether any caller's share is spent."""
        return any(self.exhausted(caller) for caller in self._spent)

    def has_room(self, caller: Hashable) -> bool:
        """Whether an attempt may start beside those that run.

        True if the share is spent: the message is then deferred, so it doesn't have to wait for a slot.
        """
        if self.limit is None or not self._reserved or self.exhausted(caller):
            return True
        total = {
            each: self._spent.get(each, 0.0) + self._reserved.get(each, 0.0) for each in {*self._spent, *self._reserved}
        }
        return not self._exhausted(caller, total)

    def share(self, caller: Hashable) -> float:
        """The caller's part of the limit; infinite without one."""
        if self.limit is None:
            return float("inf")
        return self.limit if caller is None else self.limit * ONE_PEER

    def reserve(self, caller: Hashable, amount: float) -> None:
        """Reserve the estimated cost of an attempt that starts now."""
        if amount:
            self._reserved[caller] = self._reserved.get(caller, 0.0) + amount

    def release(self, caller: Hashable, amount: float) -> None:
        """The attempt that reserved *amount* has ended."""
        left = self._reserved.pop(caller, 0.0) - amount
        if left >= NEGLIGIBLE:
            self._reserved[caller] = left

    def _exhausted(self, caller: Hashable, used: Mapping[Hashable, float]) -> str:
        if (limit := self.limit) is None:
            return ""
        people = used.get(None, 0.0)
        peers = sum(used.values()) - people
        peers_share = limit * ALL_PEERS
        if people + (min(peers, peers_share) if caller is None else peers) >= limit:
            return f"{self._scope}{people + peers:.2f} of {limit:.2f} {DAY_SPENT}"
        if caller is None:
            return ""
        if peers >= peers_share:
            return f"{self._scope}the share of peers: {peers:.2f} of {peers_share:.2f} {DAY_SPENT}"
        share, own = limit * ONE_PEER, used.get(caller, 0.0)
        return f"{self._scope}the share of peer {caller}: {own:.2f} of {share:.2f} {DAY_SPENT}" if own >= share else ""
