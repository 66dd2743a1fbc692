"""What a day may cost, and each caller's share of it: when it is used up, messages wait for the next day."""

import time
from collections.abc import Callable

from molecule_connect.journal.journal import WorkspaceJournal
from molecule_connect.journal.transitions import DAY_SPENT
from molecule_connect.models import Usage
from molecule_connect.worker.status import Status

DAY = 24 * 3600
# Shares of the day's budget: of one peer, and of all peers together. The rest is reserved for people.
ONE_PEER, ALL_PEERS = 0.5, 0.75


class DailyBudget:
    """The cost of a day (UTC), as backends report it.

    One peer may spend half of it, peers together three quarters. People may spend all of it: what peers have spent
    beyond their share doesn't count against them. The costs of an attempt are known when it has ended, so what is
    spent exceeds a limit by the attempts that run when it is reached.

    Args:
        limit: US dollars; None is without limit.
    """

    def __init__(
        self,
        limit: float | None,
        journal: WorkspaceJournal,
        *,
        status: Status,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._limit = limit
        self._journal = journal
        self._status = status
        self._wall = wall
        self._day = -1
        self._spent: dict[str | None, float] = {}

    def spent(self, caller_id: str | None, usage: object) -> None:
        """An attempt for *caller_id* has cost this much. What a plugin gives for a ``Usage`` can be anything."""
        if isinstance(usage, Usage) and usage.cost_usd > 0:
            # The journal is behind what is counted here.
            self._look_at_the_day()
            self._spent[caller_id] = self._spent.get(caller_id, 0.0) + usage.cost_usd
            self._journal.add_spend(caller_id, usage.cost_usd)

    def wait(self, caller_id: str | None) -> tuple[float, str] | None:
        """Until when (seconds since 1970) no message of the caller may run, and why; None while there is money left."""
        if self._limit is None:
            return None
        self._look_at_the_day()
        reason = self._used_up(caller_id, self._limit)
        everybody = self._used_up(None, self._limit)
        if reason:
            hint = "messages wait for the next day (UTC), or for a start with a higher --max-cost-per-day"
            self._status.report("budget" if everybody else "peer budget", reason, hint)
        if not everybody:
            self._status.clear("budget")
        if not any(self._used_up(caller, self._limit) for caller in self._spent):
            self._status.clear("peer budget")
        return ((self._day + 1) * DAY, reason) if reason else None

    def _used_up(self, caller_id: str | None, limit: float) -> str:
        people = self._spent.get(None, 0.0)
        peers = sum(self._spent.values()) - people
        share = limit * ALL_PEERS
        if people + (min(peers, share) if caller_id is None else peers) >= limit:
            return f"{people + peers:.2f} of {limit:.2f} {DAY_SPENT}"
        if caller_id is None:
            return ""
        if peers >= share:
            return f"the share of peers: {peers:.2f} of {share:.2f} {DAY_SPENT}"
        share, own = limit * ONE_PEER, self._spent.get(caller_id, 0.0)
        return f"the share of peer {caller_id}: {own:.2f} of {share:.2f} {DAY_SPENT}" if own >= share else ""

    def _look_at_the_day(self) -> None:
        if (day := int(self._wall() // DAY)) != self._day:
            self._day, self._spent = day, self._journal.spend_by_caller()
