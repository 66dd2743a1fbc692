"""Whether the platform accepts replies, and when to send the waiting ones again."""

import asyncio
import enum

import attrs

from molecule_connect.backoff import Backoff
from molecule_connect.errors import PlatformError
from molecule_connect.flag import Flag
from molecule_connect.worker.status import Status

# Seconds for which sends must fail, without a success in between, to be a problem of this workspace.
MUTE_AFTER = 60.0
PROBES = Backoff(first=10.0, cap=300.0, random=lambda: 1.0)


class Resend(enum.Enum):
    """Which of the waiting replies to send now."""

    ONE = "one"
    ALL = "all"


@attrs.frozen(kw_only=True)
class _Failure:
    """A reply that hasn't been accepted since *since* (loop time)."""

    caller_id: str | None
    since: float
    reason: str
    hint: str


class SendHealth:
    """Collects the outcomes of sends.

    If for a minute no reply to people was accepted, or none to several peers, the workspace is mute: that is reported,
    and one reply at a time is sent as a probe. A single peer may be down.
    """

    def __init__(self, status: Status) -> None:
        self._status = status
        self._loop = asyncio.get_running_loop()
        self._failures: dict[str, _Failure] = {}
        self._mute_to: frozenset[str] = frozenset()
        self._probes = 0
        self._probe_at = 0.0
        self._changed = Flag()

    def failed(self, row_id: str, caller_id: str | None, error: PlatformError) -> None:
        """The reply to the message *row_id* was not accepted, and will be sent again."""
        known = self._failures.get(row_id)
        since = self._loop.time() if known is None else known.since
        self._failures[row_id] = _Failure(caller_id=caller_id, since=since, reason=str(error), hint=error.hint)
        self._changed.set()

    def succeeded(self, caller_id: str | None) -> None:
        """A reply was accepted: replies to people (*caller_id* is None), or to peers, get through."""
        if self._failures:
            self._failures = {
                row_id: failure
                for row_id, failure in self._failures.items()
                if (failure.caller_id is None) != (caller_id is None)
            }
            self._changed.set()

    def ended(self, row_id: str) -> None:
        """The reply to *row_id* is not sent again."""
        if self._failures.pop(row_id, None) is not None:
            self._changed.set()

    async def next_resend(self) -> Resend:
        """Wait until replies should be sent again: one as a probe, or all after one was accepted."""
        while True:
            self._changed.clear()
            was_mute_to, self._mute_to = self._mute_to, self._report()
            if was_mute_to - self._mute_to:
                return Resend.ALL
            if self._mute_to and self._loop.time() >= self._probe_at:
                self._probes += 1
                self._probe_at = self._loop.time() + PROBES.delay(self._probes + 1)
                return Resend.ONE
            await self._changed.wait(self._seconds_to_wait())

    def _report(self) -> frozenset[str]:
        """Report when the workspace becomes mute, and when it no longer is. Returns the receivers concerned."""
        failures = self._lasting_failures()
        if failures and not self._mute_to:
            to, failure = next(iter(failures.items()))
            reason = f"no reply to {to} was accepted for {MUTE_AFTER:g} s: {failure.reason}"
            hint = failure.hint or "replies wait on this machine until the platform accepts one"
            self._status.report("sending", reason, hint, lasting=True)
            self._probes, self._probe_at = 0, self._loop.time() + PROBES.delay(1)
        elif self._mute_to and not failures:
            self._status.clear("sending")
        return frozenset(failures)

    def _lasting_failures(self) -> dict[str, _Failure]:
        """The receivers that no reply reaches, with a failure for each."""
        since = self._loop.time() - MUTE_AFTER
        old = [failure for failure in self._failures.values() if failure.since <= since]
        people = [failure for failure in old if failure.caller_id is None]
        peers = [failure for failure in old if failure.caller_id is not None]
        found = {"people": people[0]} if people else {}
        if len({failure.caller_id for failure in peers}) > 1:
            found["peers"] = peers[0]
        return found

    def _seconds_to_wait(self) -> float | None:
        if self._mute_to:
            return self._probe_at - self._loop.time()
        ages = [failure.since + MUTE_AFTER - self._loop.time() for failure in self._failures.values()]
        return min((age for age in ages if age > 0), default=None)
