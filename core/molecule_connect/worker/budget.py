"""The daily budget, and each caller's share of it."""

from collections import deque

from molecule_connect import events
from molecule_connect.journal.models import StoredMessage
from molecule_connect.journal.transitions import DAY_SPENT
from molecule_connect.journal.workspace import WorkspaceJournal
from molecule_connect.models import Usage
from molecule_connect.worker.clock import Clock
from molecule_connect.worker.outcomes import Deferred
from molecule_connect.worker.status import Status

DAY = 24 * 3600
# Shares of the budget: of one peer, and of all peers together. The rest is reserved for people.
ONE_PEER, ALL_PEERS = 0.5, 0.75
# Reserved amounts below this many US dollars are left over by the rounding of sums.
NEGLIGIBLE = 1e-9
# Attempts from which the cost of the next one is estimated.
RECENT = 50


class DailyBudget:
    """Limits the cost of a day (UTC), as backends report it.

    One peer may spend half of the budget, all peers together three quarters. People may spend all of it; amounts that
    peers spend beyond their share don't count against people.

    The cost of an attempt is known when it ends, so each running attempt reserves an estimate: the caller's highest
    recent cost, else the mean of all recent attempts. Until one attempt has ended, an attempt reserves its caller's
    whole share. An attempt starts while the amounts spent and reserved are below each limit, so a day exceeds a limit
    by the last attempt and the errors of the estimates. If attempts have no cost, nothing is reserved.

    Args:
        limit: US dollars; None for no limit.
    """

    def __init__(self, limit: float | None, journal: WorkspaceJournal, status: Status, clock: Clock) -> None:
        self._limit = limit
        self._journal = journal
        self._status = status
        self._clock = clock
        self._day = -1
        self._spent: dict[str | None, float] = {}
        self._reserved: dict[str | None, float] = {}
        self._recent: deque[tuple[str | None, float]] | None = None

    def attempt_ended(self, message: StoredMessage, usage: object) -> None:
        """Add the cost of an attempt at *message*. *usage* is from a plugin and can be any object."""
        caller_id = message.caller_id
        cost = usage.cost_usd if isinstance(usage, Usage) else 0.0
        if self._limit is not None:
            self._attempts().append((caller_id, cost))
        if cost > 0:
            # Load the day first: the journal adds the cost asynchronously.
            self._load_day()
            self._spent[caller_id] = self._spent.get(caller_id, 0.0) + cost
            self._journal.add_spend(caller_id, cost, row_id=message.row_id)
            self._status.message_event(events.Spent, message, cost_usd=cost)

    def check(self, caller_id: str | None) -> Deferred | None:
        """Defer messages of the caller to the next day if its share is spent."""
        if self._limit is None:
            return None
        self._load_day()
        reason = self._exhausted(caller_id, self._limit, self._spent)
        is_exhausted_for_all = self._exhausted(None, self._limit, self._spent)
        if reason:
            hint = "messages wait for the next day (UTC); restart with a higher --max-cost-per-day to run them now"
            self._status.report("budget" if is_exhausted_for_all else "peer budget", reason, hint)
        if not is_exhausted_for_all:
            self._status.clear("budget")
        if not any(self._exhausted(caller, self._limit, self._spent) for caller in self._spent):
            self._status.clear("peer budget")
        if not reason:
            return None
        return Deferred(not_before=(self._day + 1) * DAY, reason=reason, limit="daily budget")

    def has_room(self, caller_id: str | None) -> bool:
        """Whether an attempt of the caller may start beside those that run.

        True if the share is spent: ``check`` then defers the message, so it doesn't have to wait for a slot.
        """
        if self._limit is None or not self._reserved:
            return True
        self._load_day()
        if self._exhausted(caller_id, self._limit, self._spent):
            return True
        total = {
            caller: self._spent.get(caller, 0.0) + self._reserved.get(caller, 0.0)
            for caller in {*self._spent, *self._reserved}
        }
        return not self._exhausted(caller_id, self._limit, total)

    def reserve(self, caller_id: str | None) -> float:
        """Reserve the estimated cost of an attempt that starts now. Returns the amount, for ``release``."""
        if self._limit is None or (amount := self._estimate(caller_id, self._limit)) == 0:
            return 0.0
        self._reserved[caller_id] = self._reserved.get(caller_id, 0.0) + amount
        return amount

    def release(self, caller_id: str | None, amount: float) -> None:
        """The attempt that reserved *amount* has ended."""
        if not amount:
            return
        left = self._reserved.pop(caller_id, 0.0) - amount
        if left >= NEGLIGIBLE:
            self._reserved[caller_id] = left

    def _estimate(self, caller_id: str | None, limit: float) -> float:
        recent = self._attempts()
        if not recent:
            return limit if caller_id is None else limit * ONE_PEER
        highest = max((cost for caller, cost in recent if caller == caller_id), default=0.0)
        return highest or sum(cost for _, cost in recent) / len(recent)

    def _attempts(self) -> "deque[tuple[str | None, float]]":
        if self._recent is None:
            self._recent = deque(self._journal.recent_costs(RECENT), maxlen=RECENT)
        return self._recent

    def _exhausted(self, caller_id: str | None, limit: float, used: dict[str | None, float]) -> str:
        people = used.get(None, 0.0)
        peers = sum(used.values()) - people
        peers_share = limit * ALL_PEERS
        if people + (min(peers, peers_share) if caller_id is None else peers) >= limit:
            return f"{people + peers:.2f} of {limit:.2f} {DAY_SPENT}"
        if caller_id is None:
            return ""
        if peers >= peers_share:
            return f"the share of peers: {peers:.2f} of {peers_share:.2f} {DAY_SPENT}"
        share, own = limit * ONE_PEER, used.get(caller_id, 0.0)
        return f"the share of peer {caller_id}: {own:.2f} of {share:.2f} {DAY_SPENT}" if own >= share else ""

    def _load_day(self) -> None:
        if (day := int(self._clock.wall() // DAY)) != self._day:
            self._day, self._spent = day, self._journal.spend_by_caller()
