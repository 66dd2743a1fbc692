"""W3C trace contexts, which the sender of a message may put into its metadata as ``traceparent``."""

import json
import re
from typing import Any

_KEY = "traceparent"
_VERSION_00 = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def sent_trace(raw: str | None) -> str:
    """The ``traceparent`` in the metadata of a message; empty without a valid one of version 00.

    Args:
        raw: The platform's ``request_body`` as JSON text.
    """
    # Few messages have one, and decoding a long message takes time.
    if raw is None or f'"{_KEY}"' not in raw:
        return ""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return ""
    message = _member(_member(body, "params"), "message") or _member(body, "message") or body
    value = _member(_member(message, "metadata"), _KEY)
    return value if isinstance(value, str) and _VERSION_00.fullmatch(value) else ""


def _member(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None
