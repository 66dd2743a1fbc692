"""What a day may cost: when it is used up, messages wait for the next day."""

import time
from collections.abc import Callable

from molecule_connect.delivery.journal.journal import WorkspaceJournal
from molecule_connect.delivery.journal.transitions import DAY_SPENT
from molecule_connect.delivery.reports import Reports

DAY = 24 * 3600


class DailyBudget:
    """The cost of a day (UTC), by what the backend says of its usage.

    Args:
        limit: US dollars; None is without limit.
    """

    def __init__(
        self,
        limit: float | None,
        journal: WorkspaceJournal,
        *,
        reports: Reports,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._limit = limit
        self._journal = journal
        self._reports = reports
        self._wall = wall

    def wait(self) -> tuple[float, str] | None:
        """Until when (seconds since 1970) nothing may be run, and why; None while there is money left."""
        if self._limit is None:
            return None
        spent = self._journal.spend()
        if spent < self._limit:
            self._reports.trouble("budget", "")
            return None
        reason = f"{spent:.2f} of {self._limit:.2f} {DAY_SPENT}"
        hint = "messages wait for the next day (UTC), or for a start with a higher --max-cost-per-day"
        self._reports.trouble("budget", reason, hint)
        return (self._wall() // DAY + 1) * DAY, reason
