"""The event stream: server-sent events, each turned into what it means for reading the feed.

The stream carries no rows and no ids, drops events when it is slow, and sends nothing to keep itself alive (contract
2.17): it only ever wakes somebody up.
"""

import json
from collections.abc import AsyncIterator
from typing import Any, Final

from molecule_connect.models import Signal
from molecule_connect.platform.feed_rows import FEED_TYPE

_LARGE = 256 * 1024
# Together with the name of the field, more than is large.
_KEPT = _LARGE + 64
_MEANINGS: Final = {
    "WORKSPACE_HEARTBEAT": Signal.BEAT,
    "EXTERNAL_CREDENTIALS_ROTATED": Signal.ROTATED,
    # What pausing, resuming and deleting can end in; the others change neither.
    "WORKSPACE_PAUSED": Signal.STATUS,
    "WORKSPACE_ONLINE": Signal.STATUS,
    "WORKSPACE_PROVISIONING": Signal.STATUS,
    "WORKSPACE_AWAITING_AGENT": Signal.STATUS,
    "WORKSPACE_REMOVED": Signal.STATUS,
    "WORKSPACE_OFFLINE": Signal.OTHER,
    "WORKSPACE_DEGRADED": Signal.OTHER,
    "WORKSPACE_HIBERNATED": Signal.OTHER,
    "AGENT_MESSAGE": Signal.OTHER,
    "AGENT_CARD_UPDATED": Signal.OTHER,
    "TASK_UPDATED": Signal.OTHER,
    "A2A_RESPONSE": Signal.OTHER,
    "CHANNEL_MESSAGE": Signal.OTHER,
    "DELEGATION_SENT": Signal.OTHER,
    "DELEGATION_STATUS": Signal.OTHER,
    "DELEGATION_COMPLETE": Signal.OTHER,
    "DELEGATION_FAILED": Signal.OTHER,
    "SESSION_RESET": Signal.OTHER,
    "BOOT_STEP": Signal.OTHER,
}


async def read_events(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The ``data`` of each event, its lines joined by line feeds. An event that was cut off is not given.

    Of a large event the beginning is enough to know what it means; the rest is not kept, however much comes.
    """
    data = _Kept()
    line = _Kept()
    async for piece in pieces:
        *ends, rest = piece.split(b"\n")
        for end in ends:
            line.add(end)
            whole = line.taken().removesuffix(b"\r")
            if whole.startswith(b"data:"):
                data.add((b"\n" if data else b"") + whole[5:].removeprefix(b" "))
            elif not whole and data:
                yield data.taken()
        if rest:
            line.add(rest)


class _Kept:
    """Bytes that come in pieces, up to what ``meaning`` looks at."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def __bool__(self) -> bool:
        return bool(self._bytes)

    def add(self, piece: bytes) -> None:
        self._bytes += piece[: _KEPT - len(self._bytes)]

    def taken(self) -> bytes:
        """All of it; then there is none."""
        whole = bytes(self._bytes)
        self._bytes.clear()
        return whole


def meaning(data: bytes) -> Signal:
    """What an event means to us. One that nobody here knows may announce a row."""
    if len(data) > _LARGE:
        return Signal.ROW  # only what was written to the workspace is that large
    event = _event(data)
    kind = event.get("type")
    if not isinstance(kind, str):
        return Signal.OTHER if not event else Signal.ROW
    if kind == "ACTIVITY_LOGGED":
        details = event.get("data")
        activity = details.get("activity_type") if isinstance(details, dict) else None
        return Signal.ROW if not activity or activity == FEED_TYPE or not isinstance(activity, str) else Signal.OTHER
    return _MEANINGS.get(kind, Signal.ROW)


def _event(data: bytes) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return event if isinstance(event, dict) else {}
