"""The circuit breaker: decides which messages wait while the backend fails, and which are tried meanwhile.

If two callers fail, the backend is failing; if one fails while others are answered, that caller's messages are at
fault. So there is a circuit for the backend and one for each caller; each conversation of people counts as a caller.

The backend's circuit opens after three failures in a row, over at least two messages of at least two callers, with no
success in between. While it is open:

- One message is tried after 5 s, the next ones after twice the time, 60 s at most. Callers take turns, people first.
- A caller in good standing, whose last attempt succeeded within the last hour, has its messages tried at once, one at
  a time. All people count as one caller here. A failure ends the good standing, until the next success.
- Failures don't count as attempts.

Any success closes it. A caller's circuit opens after three failures in a row over at least two of its messages, and
closes with that caller's next success. While it is open, that caller's messages are tried one at a time, at the same
intervals. Their failures count as attempts once another caller has had a success since; until then the backend may be
failing, and the heartbeat reports it.
"""

import asyncio
from collections import OrderedDict

from molecule_connect.journal.models import Conversation, StoredMessage
from molecule_connect.worker.status import Status

# Seconds before a probe: the first, and the longest wait.
FIRST_PROBE, LAST_PROBE = 5.0, 60.0
FAILURES, MESSAGES, CALLERS = 3, 2, 2
GOOD_STANDING = 3600.0
# Callers whose failures are remembered; the oldest are dropped. People can open any number of conversations.
MAX_CALLERS = 1000
HINT = "one message at a time is tried until the backend answers"


def party_of(message: StoredMessage) -> Conversation:
    """The peer that wrote *message*, or the conversation of people that it belongs to."""
    return Conversation(message.caller_id, message.context_id if message.caller_id is None else None)


class Circuit:
    """Open after three failures in a row over at least two messages of at least *callers* callers."""

    def __init__(self, *, callers: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._callers = callers
        self.failures = 0
        # The party of each message.
        self._failed: dict[str, Conversation] = {}
        self._delay = FIRST_PROBE
        self.is_open = False
        self.next_probe = 0.0
        self.others_succeeded = False

    def failed(self, message: StoredMessage) -> None:
        """Count a failure."""
        if self.is_open:
            return
        self.failures += 1
        self._failed[message.row_id] = party_of(message)
        parties = set(self._failed.values())
        enough = self.failures >= FAILURES and len(self._failed) >= MESSAGES and len(parties) >= self._callers
        if enough:
            self.is_open, self._delay = True, FIRST_PROBE
            self.next_probe = self._loop.time() + self._delay

    def probe(self) -> None:
        """A message is tried; the next probe is due after twice the time."""
        self._delay = min(LAST_PROBE, self._delay * 2)
        self.next_probe = self._loop.time() + self._delay


class CircuitBreaker:
    """The circuits of one workspace's backend. Times are the event loop's.

    Attributes:
        backend: The backend's own circuit. While it is open, the next message may be tried at its ``next_probe``.
        callers: The circuits of callers whose last attempt failed.
        hint: How to find out why the backend fails.
    """

    def __init__(self, status: Status, hint: str = "") -> None:
        self.hint = hint
        self._status = status
        self._loop = asyncio.get_running_loop()
        self.backend = Circuit(callers=CALLERS)
        self.callers: OrderedDict[Conversation, Circuit] = OrderedDict()
        self._succeeded_at: dict[str | None, float] = {}
        self._probes = 0
        self._probed: dict[str | None, int] = {}
        self._is_broken = False

    def failed(self, message: StoredMessage, reason: str) -> None:
        """An attempt at *message* failed, and another one may help."""
        self._succeeded_at.pop(message.caller_id, None)
        if not self.backend.is_open:
            self._circuit(message).failed(message)
            self.backend.failed(message)
        self._report(reason)

    def succeeded(self, message: StoredMessage) -> None:
        """The backend answered."""
        self._succeeded_at[message.caller_id] = self._loop.time()
        if self.callers:
            self.callers.pop(party_of(message), None)
            for circuit in self.callers.values():
                circuit.others_succeeded = True
        if self.backend.failures:
            self.backend = Circuit(callers=CALLERS)
            self._probed.clear()
        if self._is_broken:
            self._report("")

    def counts(self, message: StoredMessage) -> bool:
        """Whether a failed attempt at *message* counts: not while the backend may be failing."""
        circuit = self.callers.get(party_of(message))
        may_be_backend = circuit is not None and circuit.is_open and not circuit.others_succeeded
        return not (self.backend.is_open or may_be_backend)

    def trusts(self, caller_id: str | None) -> bool:
        """Whether the caller is in good standing."""
        succeeded_at = self._succeeded_at.get(caller_id)
        return succeeded_at is not None and self._loop.time() - succeeded_at <= GOOD_STANDING

    def held_until(self, party: Conversation) -> float:
        """When the circuit of *party* lets a message be tried."""
        circuit = self.callers.get(party)
        return circuit.next_probe if circuit is not None and circuit.is_open else 0.0

    def turn(self, caller_id: str | None) -> tuple[int, bool]:
        """Sort key for probes: the caller that was tried longest ago is first, people before peers."""
        return self._probed.get(caller_id, 0), caller_id is not None

    def attempt_started(self, party: Conversation) -> None:
        """An attempt at a message of *party* starts."""
        circuit = self.callers.get(party)
        if circuit is not None and circuit.is_open:
            circuit.probe()
        if self.backend.is_open and not self.trusts(party.caller_id):
            self._probes += 1
            self._probed[party.caller_id] = self._probes
            self.backend.probe()

    def _circuit(self, message: StoredMessage) -> Circuit:
        circuit = self.callers.setdefault(party_of(message), Circuit(callers=1))
        self.callers.move_to_end(party_of(message))
        if len(self.callers) > MAX_CALLERS:
            self.callers.popitem(last=False)
        return circuit

    def _report(self, reason: str) -> None:
        is_broken = self.backend.is_open or any(
            circuit.is_open and not circuit.others_succeeded for circuit in self.callers.values()
        )
        if is_broken and not self._is_broken:
            self._status.report("backend", reason, "; ".join(filter(None, (HINT, self.hint))), lasting=True)
        elif self._is_broken and not is_broken:
            self._status.clear("backend")
        self._is_broken = is_broken
