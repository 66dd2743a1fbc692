"""Limits for all workspaces of a process together: messages handled at once, and the cost of a day."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping
from typing import Protocol

from molecule_connect.config.workspaces import NO_LIMITS, FleetLimits
from molecule_connect.worker.ledger import Ledger


class Queue(Protocol):
    """The messages of one workspace that wait for a slot."""

    def reconsider(self) -> None:
        """Grant the free slots."""
        ...


class Fleet:
    """Shared by the workers of a process. Without limits, it never holds a message back.

    A flood of one caller leaves room for others, as in one workspace: with a concurrency of 3 or more, one slot is
    reserved for people, and the last slot that peers can use goes only to a peer that holds none.

    Args:
        spent: What was spent today: workspace -> caller -> US dollars, people under None.

    Attributes:
        ledger: The costs of all workspaces.
    """

    def __init__(
        self, spent: Callable[[], Mapping[str, Mapping[str | None, float]]], limits: FleetLimits = NO_LIMITS
    ) -> None:
        self._spent = spent
        self.ledger = Ledger(None, self._load, "all workspaces: ")
        self._holding: Counter[tuple[str, str | None]] = Counter()
        self._held_by_peers = 0
        self._waiting: dict[Queue, None] = {}
        self._concurrency: int | None = None
        self.set_limits(limits)

    def set_limits(self, limits: FleetLimits) -> None:
        """Change the limits. Messages that run are not affected."""
        self._concurrency, self.ledger.limit = limits.concurrency, limits.max_cost_per_day
        self._wake()

    @staticmethod
    def key(workspace_id: str, caller_id: str | None) -> Hashable:
        """The caller in ``ledger``."""
        return None if caller_id is None else f"{caller_id} of {workspace_id}"

    def fits(self, workspace_id: str, caller_id: str | None) -> bool:
        """Whether a message of this caller may start now."""
        if self._concurrency is None:
            return True
        free = self._concurrency - self._holding.total()
        if caller_id is None or self._concurrency <= 2:
            return free > 0
        left = min(free, self._concurrency - 1 - self._held_by_peers)
        return left > 1 or (left == 1 and not self._holding[workspace_id, caller_id])

    def take(self, workspace_id: str, caller_id: str | None) -> None:
        """A message starts."""
        self._holding[workspace_id, caller_id] += 1
        self._held_by_peers += caller_id is not None

    def release(self, workspace_id: str, caller_id: str | None) -> None:
        """A message ended: the workspaces that wait for a slot take turns."""
        self._holding[workspace_id, caller_id] -= 1
        if not self._holding[workspace_id, caller_id]:
            del self._holding[workspace_id, caller_id]
        self._held_by_peers -= caller_id is not None
        self._wake()

    def wait(self, queue: Queue) -> None:
        """Reconsider *queue* when a slot is free."""
        if self._concurrency is not None:
            self._waiting.setdefault(queue)

    def forget(self, queue: Queue) -> None:
        """*queue* waits no more."""
        self._waiting.pop(queue, None)

    def _load(self) -> dict[Hashable, float]:
        """What was spent today, by the keys of the ledger."""
        total: defaultdict[Hashable, float] = defaultdict(float)
        for workspace_id, costs in self._spent().items():
            for caller_id, cost in costs.items():
                total[self.key(workspace_id, caller_id)] += cost
        return total

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, {}
        # A workspace that still waits registers again, behind the others.
        for queue in waiting:
            queue.reconsider()
