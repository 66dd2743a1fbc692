"""Whether replies get through, to people and to peers."""

import asyncio
from collections.abc import Callable

import attrs

from molecule_connect.backoff import Backoff
from molecule_connect.errors import PlatformError

# Sends that fail for this long, in seconds, with no success in between are no blip.
MUTE_AFTER = 60.0
# When a send finds out whether answers are accepted again.
PROBES = Backoff(first=10.0, cap=300.0, random=lambda: 1.0)


@attrs.frozen(kw_only=True)
class _Failure:
    caller_id: str | None
    since: float
    reason: str
    hint: str


class SendHealth:
    """Whether answers get through, to people and to peers. Times are the loop's.

    People, or more than one peer, whose answers have all failed for a minute mean that this connection is mute. One
    peer alone may be down.

    Args:
        report: Called with reason and hint when the connection becomes mute, and with empty ones when it no longer is.
        probe: Makes one of the waiting answers due.
        resend: Makes all of the waiting answers due.
    """

    def __init__(
        self, *, report: Callable[[str, str], None], probe: Callable[[], None], resend: Callable[[], None]
    ) -> None:
        self._report, self._probe, self._resend = report, probe, resend
        self._failures: dict[str, _Failure] = {}
        # Whom no answer gets through to.
        self._mute_to: frozenset[str] = frozenset()
        self._probes = 0
        self._timer: asyncio.TimerHandle | None = None

    def failed(self, row_id: str, caller_id: str | None, error: PlatformError) -> None:
        """The answer to the message *row_id* was not accepted, and will be sent again."""
        known = self._failures.get(row_id)
        since = _now() if known is None else known.since
        self._failures[row_id] = _Failure(caller_id=caller_id, since=since, reason=str(error), hint=error.hint)
        self._look()

    def succeeded(self, caller_id: str | None) -> None:
        """An answer was accepted: those to people (*caller_id* is None) get through, or those to peers."""
        self._failures = {
            row: one for row, one in self._failures.items() if (one.caller_id is None) != (caller_id is None)
        }
        self._look()

    def over(self, row_id: str) -> None:
        """The answer to *row_id* is not sent again."""
        if self._failures.pop(row_id, None) is not None:
            self._look()

    def stop(self) -> None:
        """Report and probe no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._failures.clear()

    def _look(self) -> None:
        lasting = self._lasting()
        before, self._mute_to = self._mute_to, frozenset(lasting)
        if lasting and not before:
            to, failure = next(iter(lasting.items()))
            self._report(
                f"no answer to {to} was accepted for {MUTE_AFTER:g} s: {failure.reason}",
                failure.hint or "answers wait on this machine, and are sent when the platform accepts one",
            )
        elif before and not lasting:
            self._probes = 0
            self._report("", "")
        if before - self._mute_to:
            self._resend()
        if self._failures and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._wait(), self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._mute_to:
            self._probes += 1
            self._probe()
        self._look()

    def _wait(self) -> float:
        if self._mute_to:
            return PROBES.delay(self._probes + 1)
        now = _now()
        becoming = (one.since + MUTE_AFTER - now for one in self._failures.values())
        return min((wait for wait in becoming if wait > 0), default=MUTE_AFTER)

    def _lasting(self) -> dict[str, _Failure]:
        """To whom nothing gets through, with a failure for each."""
        since = _now() - MUTE_AFTER
        old = [one for one in self._failures.values() if one.since <= since]
        people = [one for one in old if one.caller_id is None]
        peers = [one for one in old if one.caller_id is not None]
        found = {"people": people[0]} if people else {}
        if len({one.caller_id for one in peers}) > 1:
            found["peers"] = peers[0]
        return found


def _now() -> float:
    return asyncio.get_running_loop().time()
