"""What a heartbeat says of a connection: what it is doing, and what is wrong with it."""

import asyncio

from molecule_connect.journal.journal import WorkspaceJournal
from molecule_connect.models import Presence
from molecule_connect.worker.attempt import Attempts
from molecule_connect.worker.health import Health
from molecule_connect.worker.inbox_stats import Attendance
from molecule_connect.worker.limits import ConcurrencyLimit

# With every slot taken for so long, and messages waiting, the operator should look.
CROWDED = 300.0
# The platform clamps there (contract 2.2).
MOST_CENTS = 10**12


class Vitals:
    """Gathers the presence of one connection. Uptime counts from when it was made.

    Args:
        attendance: Of an inbox, which has no backend that could be busy.
    """

    def __init__(
        self,
        *,
        slots: ConcurrencyLimit,
        attempts: Attempts,
        health: Health,
        journal: WorkspaceJournal,
        attendance: Attendance | None = None,
    ) -> None:
        self._slots = slots
        self._attempts = attempts
        self._health = health
        self._journal = journal
        self._attendance = attendance
        self._began = asyncio.get_running_loop().time()

    def presence(self) -> Presence:
        """What is true now."""
        return Presence(
            active_tasks=self._attendance.held if self._attendance else self._slots.busy,
            current_task=self._attendance.current_task if self._attendance else self._attempts.current_task,
            uptime_seconds=self._uptime(),
            error_rate=self._health.error_rate(),
            sample_error=self._remark() or self._health.sample_error(),
            wedged=self._health.wedged,
            monthly_spend_cents=round(min(self._journal.month_spend() * 100, MOST_CENTS)),
        )

    def farewell(self) -> Presence:
        """What the last beat says."""
        return Presence(wedged="stopped", uptime_seconds=self._uptime())

    def _remark(self) -> str:
        if self._slots.full_for() >= CROWDED and self._slots.waiting:
            minutes = int(self._slots.full_for() // 60)
            return f"all slots busy for {minutes} minutes, {self._slots.waiting} conversations wait"
        if self._attempts.stuck:
            return f"{self._attempts.stuck} calls of the backend do not return"
        waiting, reason = self._attempts.parked()
        return f"{waiting} messages wait for the backend: {reason}" if waiting else ""

    def _uptime(self) -> int:
        return int(asyncio.get_running_loop().time() - self._began)
