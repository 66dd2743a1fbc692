"""The event stream: server-sent events become signals for reading the feed.

The stream has no rows, no ids and no keep-alive, and drops events when it is slow (contract 2.17). So an event is only
a reason to read the feed.
"""

import json
from collections.abc import AsyncIterator
from typing import Final

from molecule_connect.models import Signal
from molecule_connect.platform.feed_rows import FEED_TYPE

_LARGE_EVENT = 256 * 1024
# Enough to recognize a large event.
_MAX_KEPT = _LARGE_EVENT + 64
_SIGNALS: Final = {
    "WORKSPACE_HEARTBEAT": Signal.BEAT,
    "EXTERNAL_CREDENTIALS_ROTATED": Signal.ROTATED,
    # The possible results of pausing, resuming and deleting.
    "WORKSPACE_PAUSED": Signal.STATUS,
    "WORKSPACE_ONLINE": Signal.STATUS,
    "WORKSPACE_PROVISIONING": Signal.STATUS,
    "WORKSPACE_AWAITING_AGENT": Signal.STATUS,
    "WORKSPACE_REMOVED": Signal.STATUS,
}
# Events that announce no row.
_OTHERS: Final = frozenset((
    "WORKSPACE_OFFLINE", "WORKSPACE_DEGRADED", "WORKSPACE_HIBERNATED", "AGENT_MESSAGE", "AGENT_CARD_UPDATED",
    "TASK_UPDATED", "A2A_RESPONSE", "CHANNEL_MESSAGE", "DELEGATION_SENT", "DELEGATION_STATUS", "DELEGATION_COMPLETE",
    "DELEGATION_FAILED", "SESSION_RESET", "BOOT_STEP",
))  # fmt: skip


async def read_events(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the ``data`` of each complete event, its lines joined by line feeds.

    Only the beginning of a large event is kept.
    """
    data, line = bytearray(), bytearray()
    async for piece in pieces:
        *ends, rest = piece.split(b"\n")
        for end in ends:
            line += end[: _MAX_KEPT - len(line)]
            whole = bytes(line).removesuffix(b"\r")
            line.clear()
            if whole.startswith(b"data:"):
                more = (b"\n" if data else b"") + whole[5:].removeprefix(b" ")
                data += more[: _MAX_KEPT - len(data)]
            elif not whole and data:
                yield bytes(data)
                data.clear()
        line += rest[: _MAX_KEPT - len(line)]


def signal_of(data: bytes) -> Signal:
    """Return the signal for an event. An unknown event may announce a row."""
    if len(data) > _LARGE_EVENT:
        return Signal.ROW  # only messages are that large
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        return Signal.OTHER
    if not isinstance(event, dict) or not event:
        return Signal.OTHER
    kind = event.get("type")
    if not isinstance(kind, str):
        return Signal.ROW
    if kind == "ACTIVITY_LOGGED":
        details = event.get("data")
        activity = details.get("activity_type") if isinstance(details, dict) else None
        return Signal.ROW if not activity or activity == FEED_TYPE or not isinstance(activity, str) else Signal.OTHER
    return Signal.OTHER if kind in _OTHERS else _SIGNALS.get(kind, Signal.ROW)
