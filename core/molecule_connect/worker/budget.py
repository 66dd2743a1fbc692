"""The daily budget, and each caller's share of it."""

from collections import deque
from collections.abc import Hashable

from molecule_connect import events
from molecule_connect.journal.models import StoredMessage
from molecule_connect.journal.workspace import WorkspaceJournal
from molecule_connect.models import Usage
from molecule_connect.worker.clock import Clock
from molecule_connect.worker.fleet import Fleet
from molecule_connect.worker.ledger import Ledger
from molecule_connect.worker.outcomes import Deferred
from molecule_connect.worker.status import Status

DAY = 24 * 3600
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
        fleet: May limit the costs of all workspaces together, in the same way.
    """

    def __init__(
        self, limit: float | None, journal: WorkspaceJournal, status: Status, clock: Clock, fleet: Fleet
    ) -> None:
        self._journal = journal
        self._status = status
        self._clock = clock
        self._own = Ledger(limit, journal.spend_by_caller)
        self._fleet = fleet
        self._recent: deque[tuple[str | None, float]] | None = None

    @property
    def _is_limited(self) -> bool:
        return self._own.limit is not None or self._fleet.ledger.limit is not None

    def attempt_ended(self, message: StoredMessage, usage: object) -> None:
        """Add the cost of an attempt at *message*. *usage* is from a plugin and can be any object."""
        caller_id = message.caller_id
        cost = usage.cost_usd if isinstance(usage, Usage) else 0.0
        if self._is_limited:
            self._attempts().append((caller_id, cost))
        if cost > 0:
            # Load the day first: the journal adds the cost asynchronously.
            for ledger, caller in self._ledgers(caller_id):
                ledger.spend(caller, cost)
            self._journal.add_spend(caller_id, cost, row_id=message.row_id)
            self._status.message_event(events.Spent, message, cost_usd=cost)

    def check(self, caller_id: str | None) -> Deferred | None:
        """Defer messages of the caller to the next day if its share is spent, of this workspace or of all."""
        if not self._is_limited:
            return None
        ledgers = self._ledgers(caller_id)
        reason = next(filter(None, (ledger.exhausted(caller) for ledger, caller in ledgers)), "")
        is_exhausted_for_all = any(ledger.exhausted(None) for ledger, _ in ledgers)
        if reason:
            hint = "messages wait for the next day (UTC); restart with a higher --max-cost-per-day to run them now"
            self._status.report("budget" if is_exhausted_for_all else "peer budget", reason, hint)
        if not is_exhausted_for_all:
            self._status.clear("budget")
        if not any(ledger.has_exhausted_peer for ledger, _ in ledgers):
            self._status.clear("peer budget")
        if not reason:
            return None
        return Deferred(not_before=(self._today() + 1) * DAY, reason=reason, limit="daily budget")

    def has_room(self, caller_id: str | None) -> bool:
        """Whether an attempt of the caller may start beside those that run.

        True if the share is spent: ``check`` then defers the message, so it doesn't have to wait for a slot.
        """
        return not self._is_limited or all(ledger.has_room(caller) for ledger, caller in self._ledgers(caller_id))

    def remaining(self) -> float | None:
        """US dollars that may still be spent today, by the workspace and by all of them; None without a limit."""
        if not self._is_limited:
            return None
        left = (ledger.remaining for ledger, _ in self._ledgers(None))
        return min((amount for amount in left if amount is not None), default=None)

    def reserve(self, caller_id: str | None) -> float:
        """Reserve the estimated cost of an attempt that starts now. Returns the amount, for ``release``."""
        if not self._is_limited:
            return 0.0
        ledgers = self._ledgers(caller_id)
        amount = self._estimate(caller_id, min(ledger.share(caller) for ledger, caller in ledgers))
        for ledger, caller in ledgers:
            ledger.reserve(caller, amount)
        return amount

    def release(self, caller_id: str | None, amount: float) -> None:
        """The attempt that reserved *amount* has ended."""
        if amount:
            for ledger, caller in self._ledgers(caller_id):
                ledger.release(caller, amount)

    def _ledgers(self, caller_id: str | None) -> tuple[tuple[Ledger, Hashable], ...]:
        """The workspace's and the fleet's ledger of today, each with its key of the caller."""
        day, fleet = self._today(), self._fleet
        self._own.open_day(day)
        fleet.ledger.open_day(day)
        return (self._own, caller_id), (fleet.ledger, fleet.key(self._status.workspace_id, caller_id))

    def _today(self) -> int:
        return int(self._clock.wall() // DAY)

    def _estimate(self, caller_id: str | None, share: float) -> float:
        recent = self._attempts()
        if not recent:
            return share
        highest = max((cost for caller, cost in recent if caller == caller_id), default=0.0)
        return highest or sum(cost for _, cost in recent) / len(recent)

    def _attempts(self) -> "deque[tuple[str | None, float]]":
        if self._recent is None:
            self._recent = deque(self._journal.recent_costs(RECENT), maxlen=RECENT)
        return self._recent
