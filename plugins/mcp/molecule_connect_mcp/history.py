"""Earlier messages, as the platform keeps them."""

from datetime import UTC, datetime
from typing import Any, Protocol

from molecule_connect import ArgumentError, FilePart, InboxMessage, Part, TextPart
from molecule_connect_mcp import harmless
from molecule_connect_mcp.shapes import NO_TEXT, attachment, timestamp

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Row(Protocol):
    """What is read of a row of the feed."""

    @property
    def row_id(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def time(self) -> int | None: ...
    @property
    def caller_id(self) -> str | None: ...
    @property
    def parts(self) -> tuple[Part, ...]: ...


def history_shape(row: Row, ours: InboxMessage | None = None) -> dict[str, Any]:
    """One message: ``from`` is "me", "person" or "peer". *ours*: the same, as this machine has it."""
    text = harmless.text("".join(part.text for part in row.parts if isinstance(part, TextPart))).strip()
    files = [attachment(part) for part in (ours or row).parts if isinstance(part, FilePart)]
    sender = "me" if row.kind in ("echo", "own") else "person" if row.caller_id is None else "peer"
    shape: dict[str, Any] = {
        "activity_id": row.row_id,
        "from": sender,
        "text": text or NO_TEXT,
        "created_at": timestamp(row.time),
    }
    if row.kind == "result":
        shape["from"] = "delegation_result"
    return shape | ({"attachments": files} if files else {})


def parse_moment(text: str) -> int | None:
    """Microseconds since 1970 of a time like ``2026-05-01T10:00:00Z``; None for no text.

    Raises:
        ArgumentError: It is no such time.
    """
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise ArgumentError(
            f"{harmless.name(text)} is no time", hint="give the created_at of a message, as 2026-05-01T10:00:00Z"
        ) from None
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
