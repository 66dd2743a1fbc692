"""The circuit breaker: whose messages wait while the backend fails, and which are tried meanwhile.

Two senders that fail are a failing backend; one that fails while others are answered has messages that fail. So there
is a circuit for the backend and one for each caller, where each conversation of people counts as a caller.

The backend's circuit opens after three failures in a row, over at least two messages of at least two callers, with no
success in between. While it is open:

- One message is tried after 5 s, the next ones after twice the time, 60 s at most. Callers take turns, people first.
- A caller in good standing, whose last attempt succeeded within the last hour, gets its messages tried at once, one at
  a time. People are one group here. A failure ends the good standing, until the next success.
- Failures don't count as attempts.

Any success closes it. A caller's circuit opens after three failures in a row over at least two messages of that caller,
and closes with that caller's next success. While it is open, that caller's messages alone are tried one at a time, at
the same intervals. Their failures count as attempts once another caller has had a success since; until then it may be
the backend that fails, and the heartbeat says so.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from molecule_connect.journal.models import Conversation, StoredMessage

FIRST_PROBE, LAST_PROBE = 5.0, 60.0
FAILURES, MESSAGES, CALLERS = 3, 2, 2
GOOD_STANDING = 3600.0
# Callers whose failures are remembered. The oldest are forgotten: people can open any number of conversations.
MOST_CALLERS = 1000


def party_of(entry: StoredMessage) -> Conversation:
    """Whose message it is, where conversations of people count separately: a peer, or one such conversation."""
    return Conversation(entry.caller_id, entry.context_id if entry.caller_id is None else None)


class Circuit:
    """Open after three failures in a row over at least two messages of at least *callers* callers."""

    def __init__(self, *, callers: int) -> None:
        self._callers = callers
        self._failures = 0
        self._messages: set[str] = set()
        self._parties: set[Conversation] = set()
        self._delay = FIRST_PROBE
        self.is_open = False
        self.next_probe = 0.0
        self.others_succeeded = False

    def failed(self, entry: StoredMessage) -> None:
        """Count a failure."""
        if self.is_open:
            return
        self._failures += 1
        self._messages.add(entry.row_id)
        self._parties.add(party_of(entry))
        enough = self._failures >= FAILURES and len(self._messages) >= MESSAGES and len(self._parties) >= self._callers
        if enough:
            self.is_open, self._delay = True, FIRST_PROBE
            self.next_probe = _now() + self._delay

    def probe(self) -> None:
        """One message is tried; the next one after twice the time."""
        self._delay = min(LAST_PROBE, self._delay * 2)
        self.next_probe = _now() + self._delay


class CircuitBreaker:
    """The circuits of one workspace's backend.

    Args:
        changed: Called with the reason when the backend starts to look broken, and with "" when it no longer does.
    """

    def __init__(self, changed: Callable[[str], None] = lambda reason: None) -> None:
        self._changed = changed
        self._backend = Circuit(callers=CALLERS)
        self._callers: OrderedDict[Conversation, Circuit] = OrderedDict()
        self._succeeded_at: dict[str | None, float] = {}
        self._probes = 0
        self._probed: dict[str | None, int] = {}
        self._is_broken = False

    @property
    def is_open(self) -> bool:
        """Whether the backend's circuit is open."""
        return self._backend.is_open

    @property
    def next_probe(self) -> float:
        """When the next message may be tried while the backend's circuit is open, by the loop's clock."""
        return self._backend.next_probe

    @property
    def holds_callers(self) -> bool:
        """Whether the circuit of any caller may be open."""
        return bool(self._callers)

    def failed(self, entry: StoredMessage, reason: str) -> None:
        """An attempt failed, and not because of its message."""
        self._succeeded_at.pop(entry.caller_id, None)
        if not self._backend.is_open:
            self._circuit(entry).failed(entry)
            self._backend.failed(entry)
        self._report(reason)

    def succeeded(self, entry: StoredMessage) -> None:
        """The backend answered."""
        self._succeeded_at[entry.caller_id] = _now()
        self._callers.pop(party_of(entry), None)
        for circuit in self._callers.values():
            circuit.others_succeeded = True
        self._backend = Circuit(callers=CALLERS)
        self._probed.clear()
        self._report("")

    def counts(self, entry: StoredMessage) -> bool:
        """Whether a failure of *entry* is an attempt: not while it may be the backend that fails."""
        circuit = self._callers.get(party_of(entry))
        may_be_backend = circuit is not None and circuit.is_open and not circuit.others_succeeded
        return not (self._backend.is_open or may_be_backend)

    def trusts(self, caller_id: str | None) -> bool:
        """Whether the caller is in good standing."""
        succeeded_at = self._succeeded_at.get(caller_id)
        return succeeded_at is not None and _now() - succeeded_at <= GOOD_STANDING

    def held_until(self, entry: StoredMessage) -> float:
        """When *entry* may be tried as far as its caller's circuit goes, by the loop's clock."""
        circuit = self._callers.get(party_of(entry))
        return circuit.next_probe if circuit is not None and circuit.is_open else 0.0

    def turn(self, caller_id: str | None) -> tuple[int, bool]:
        """The place in the order of probes: who was tried longest ago is first, people before peers."""
        return self._probed.get(caller_id, 0), caller_id is not None

    def tries(self, entry: StoredMessage) -> None:
        """The message is about to be tried."""
        circuit = self._callers.get(party_of(entry))
        if circuit is not None and circuit.is_open:
            circuit.probe()
        if self._backend.is_open and not self.trusts(entry.caller_id):
            self._probes += 1
            self._probed[entry.caller_id] = self._probes
            self._backend.probe()

    def _circuit(self, entry: StoredMessage) -> Circuit:
        circuit = self._callers.setdefault(party_of(entry), Circuit(callers=1))
        self._callers.move_to_end(party_of(entry))
        if len(self._callers) > MOST_CALLERS:
            self._callers.popitem(last=False)
        return circuit

    def _report(self, reason: str) -> None:
        is_broken = self._backend.is_open or any(
            circuit.is_open and not circuit.others_succeeded for circuit in self._callers.values()
        )
        if is_broken != self._is_broken:
            self._is_broken = is_broken
            self._changed(reason if is_broken else "")


def _now() -> float:
    return asyncio.get_running_loop().time()
