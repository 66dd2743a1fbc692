"""Admission: the limits that a message must meet before the backend runs it."""

from molecule_connect.journal.models import StoredMessage
from molecule_connect.worker.budget import DailyBudget
from molecule_connect.worker.downloads import ChatFiles
from molecule_connect.worker.limits import ConcurrencyLimit
from molecule_connect.worker.loop_guard import LoopGuard
from molecule_connect.worker.outcomes import Deferred, Refusal, Rejected

# A message is a dead letter after the process died this often while the backend ran it.
MAX_CRASHES = 8


class Admission:
    """Decides whether and when a message may run. A new limit per caller is one more line in ``check``.

    Attributes:
        loop_guard: Also counts the replies that peers accepted.
        files: Waits for the files of a message.
        limit: Its slots are taken by admitted messages.
    """

    def __init__(self, budget: DailyBudget, loop_guard: LoopGuard, files: ChatFiles, limit: ConcurrencyLimit) -> None:
        self._budget = budget
        self.loop_guard = loop_guard
        self.files = files
        self.limit = limit

    def check(self, message: StoredMessage) -> Refusal | None:
        """Why *message* may not run now; None if it may."""
        if message.crash_count >= MAX_CRASHES:
            reason = f"the process died {message.crash_count} times while the backend had it"
            return Rejected(reason=reason, category="crashes")
        return self._budget.check(message.caller_id) or self.loop_guard.check(message)

    def recheck(self, message: StoredMessage) -> Deferred | None:
        """Repeat the checks whose result changes while *message* waits for a slot."""
        return self._budget.check(message.caller_id)

    def remark(self) -> str:
        """A remark on the queue for the heartbeat; empty if there is none."""
        return self.limit.remark()
