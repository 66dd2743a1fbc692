"""Checks of arguments, before any request."""

import math
import re
from collections.abc import Mapping
from typing import Any

from molecule_connect import ArgumentError, PermanentPlatformError, canonical_id, endpoints

# Longer durations are mistakes.
MAX_SECONDS = 24 * 3600
MAX_SINCE_SECS = 30 * 24 * 3600
_ID = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,128}\Z")


def check_peer_id(peer_id: Any) -> str:
    """*peer_id* in its canonical form; ArgumentError if it can't be a workspace id."""
    if not isinstance(peer_id, str) or not _ID.match(canonical_id(peer_id)):
        raise ArgumentError(f"{peer_id!r} can't be a peer's id", hint="get_peers() lists the ids")
    return canonical_id(peer_id)


def check_text(text: Any, what: str) -> None:
    """ArgumentError if *text* is blank."""
    # U+0000 is removed before sending.
    if not isinstance(text, str) or not text.replace("\0", "").strip():
        raise ArgumentError(f"the {what} is blank", hint="pass a text")


def check_rate(name: str, rate: Any) -> None:
    """ArgumentError if *rate* is not from 0 to 1."""
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 <= rate <= 1:
        raise ArgumentError(
            f"{name} must be from 0 to 1, not {rate!r}",
            hint="pass failed tasks divided by all tasks",
        )


def check_card(workspace_id: str, card: Mapping[str, object] | None) -> Mapping[str, object]:
    """*card*, or a default one; ArgumentError if it can't be sent as JSON."""
    if card is None:
        return {"name": f"remote-agent-{workspace_id[:8]}"}
    try:
        endpoints.register(workspace_id, card)
    except PermanentPlatformError as exc:
        raise ArgumentError(
            f"the agent_card is not JSON ({exc.__cause__})",
            hint="it may hold dicts, lists, text, finite numbers, True, False and None",
        ) from exc
    return card


def check_seconds(name: str, seconds: Any, *, zero: bool = False, most: float = MAX_SECONDS) -> None:
    """ArgumentError if *seconds* is not a duration of at most *most* seconds."""
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool) and math.isfinite(seconds)
    if not is_number or not (0 < seconds <= most or (zero and seconds == 0)):
        raise ArgumentError(
            f"{name} must be {'at least' if zero else 'more than'} 0 and at most {most:g} seconds, not {seconds!r}",
            hint="pass a number of seconds, or omit it for the default",
        )
