"""Refuses arguments that cannot work, before any request."""

import math
from typing import Any

from molecule_connect.config.settings import MAX_SECONDS, WORKSPACE_ID
from molecule_connect.errors import ArgumentError, PermanentPlatformError
from molecule_connect.models import canonical_id
from molecule_connect.platform.messages import to_json


def check_peer_id(peer_id: Any) -> str:
    """*peer_id* in its canonical form; ArgumentError unless it can be a workspace's."""
    if not isinstance(peer_id, str) or not WORKSPACE_ID.match(canonical_id(peer_id)):
        raise ArgumentError(f"{peer_id!r} cannot be a peer's id", hint="get_peers() lists the ids")
    return canonical_id(peer_id)


def check_text(text: Any, what: str) -> None:
    """ArgumentError unless there is something in *text* to read."""
    # U+0000 is taken out of what is sent.
    if not isinstance(text, str) or not text.replace("\0", "").strip():
        raise ArgumentError(f"the {what} is blank", hint="pass a text")


def check_rate(name: str, rate: Any) -> None:
    """ArgumentError unless *rate* is a share of all."""
    # NaN lies between nothing.
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 <= rate <= 1:
        raise ArgumentError(f"{name} must be from 0 to 1, not {rate!r}", hint="give failed tasks divided by all tasks")


def check_json(name: str, value: Any) -> None:
    """ArgumentError unless *value* can be sent as JSON."""
    try:
        to_json(value, operation=name)
    except PermanentPlatformError as exc:
        raise ArgumentError(
            f"the {name} is not JSON ({exc.__cause__})",
            hint="it may hold dicts, lists, text, finite numbers, True, False and None",
        ) from exc


def check_seconds(name: str, seconds: Any, *, zero: bool = False, most: float = MAX_SECONDS) -> None:
    """ArgumentError unless *seconds* is a duration that can be waited for."""
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool) and math.isfinite(seconds)
    if not is_number or not (0 < seconds <= most or (zero and seconds == 0)):
        raise ArgumentError(
            f"{name} must be {'at least' if zero else 'more than'} 0 and at most {most:g} seconds, not {seconds!r}",
            hint="give a plain number of seconds, or leave it out for the default",
        )
