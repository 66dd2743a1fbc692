"""Messages, rows of the feed and workspaces. No I/O, no JSON."""

import enum
import hashlib
import re
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, SupportsFloat

import attrs

# One letter is a drive.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_NO_ADDRESS = frozenset({"data", "file"})
_UUID = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


def is_uuid(text: str) -> bool:
    """Whether *text* is a UUID, in either case."""
    return _UUID.fullmatch(text) is not None


def hashed_id(namespace: bytes, name: str) -> str:
    """The UUID of version 5 for *name*. ``uuid.uuid5`` takes three times as long."""
    digest = bytearray(hashlib.sha1(namespace + name.encode(), usedforsecurity=False).digest())
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:32]}"


def canonical_id(text: str) -> str:
    """*text* as ids are compared, stored and shown: without surrounding white space, and a UUID in lower case.

    The platform stores ids as UUIDs, so both spellings name the same workspace. Other ids keep their case.
    """
    text = text.strip()
    return text.lower() if is_uuid(text) else text


@attrs.frozen
class TextPart:
    """A piece of text."""

    text: str


@attrs.frozen(kw_only=True)
class FilePart:
    """A file in a message.

    Attributes:
        uri: The location set by the sender: an upload of the platform, a ``data:`` URI for bytes in the message
            (they are at ``path`` too), or anything else. Never open it as a file of this machine; see ``address``.
        name: The name set by the sender. Never use it as a path.
        size: Bytes, if known.
        path: The copy on this machine, once it is downloaded. Senders can't set it.
        unavailable: The reason why it could not be downloaded, for people; empty without a failed download.
    """

    uri: str
    name: str = ""
    mime_type: str = ""
    size: int | None = None
    path: Path | None = None
    unavailable: str = ""

    @property
    def address(self) -> str:
        """``uri`` if it is an address on another machine; empty for inline bytes and for paths."""
        scheme = _SCHEME.match(self.uri)
        return self.uri if scheme and scheme[1].lower() not in _NO_ADDRESS else ""


@attrs.frozen
class DataPart:
    """A JSON value. A part of unknown kind becomes a DataPart as a whole."""

    data: Any


Part = TextPart | FilePart | DataPart


def _as_tuple(parts: Iterable[Part]) -> tuple[Part, ...]:
    return tuple(parts)


@attrs.frozen(kw_only=True)
class Request:
    """One A2A message addressed to this workspace.

    Attributes:
        message_id: Chosen by the sender, at most 1,024 characters; not always unique.
        idempotency_key: Unique per message and stable across redeliveries. Made from the platform's id of the row, the
            workspace and the caller, so that a sender can't choose it.
        caller_id: The peer workspace, or None for a person.
        method: The JSON-RPC method, usually ``message/send``.
        raw: The platform's ``request_body`` as JSON text.
        attempt: 1 for the first attempt at this message.
        trace: The W3C ``traceparent`` of the attempt, to continue its trace; without traces, that of the sender, which
            can be any valid one. Empty if there is neither.
    """

    workspace_id: str
    message_id: str
    idempotency_key: str
    caller_id: str | None = None
    task_id: str | None = None
    context_id: str | None = None
    parts: tuple[Part, ...] = attrs.field(default=(), converter=_as_tuple)
    method: str = "message/send"
    raw: str = attrs.field(default="{}", repr=False)
    attempt: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    trace: str = ""

    @property
    def text(self) -> str:
        """The text parts, joined in order without a separator."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


# Higher costs and token counts are mistakes. 64-bit integers and floats hold these exactly.
_MOST_USD, _MOST_TOKENS = 1e6, 2.0**53


def _number(value: SupportsFloat | str | None, most: float) -> float:
    try:
        number = 0.0 if value is None else float(value)
    except Exception:  # an invalid value from a plugin must not lose the reply
        return 0.0
    return number if 0.0 <= number <= most else 0.0


def _amount(value: SupportsFloat | str | None) -> float:
    return _number(value, _MOST_USD)


def _tokens(value: SupportsFloat | str | None) -> int:
    return int(_number(value, _MOST_TOKENS))


@attrs.frozen(kw_only=True)
class Usage:
    """The cost of one reply, as far as the backend knows.

    Invalid values count as 0: None, NaN, text, less than 0, more than 1,000,000 dollars.
    """

    input_tokens: int = attrs.field(default=0, converter=_tokens)
    output_tokens: int = attrs.field(default=0, converter=_tokens)
    cost_usd: float = attrs.field(default=0.0, converter=_amount)


@attrs.frozen(kw_only=True)
class Response:
    """The reply of a backend.

    Attributes:
        final: False only for updates passed to ``progress``.
        is_silent: Whether the backend chose to send nothing. Set by ``silent()``.
    """

    parts: tuple[Part, ...] = attrs.field(default=(), converter=_as_tuple)
    final: bool = True
    usage: Usage | None = None
    is_silent: bool = False

    @classmethod
    def from_text(cls, text: str, *, usage: Usage | None = None) -> "Response":
        """A response of one text part."""
        return cls(parts=(TextPart(text),), usage=usage)

    @classmethod
    def silent(cls, *, usage: Usage | None = None) -> "Response":
        """A response that finishes the message without a reply. An empty response is an error instead."""
        return cls(is_silent=True, usage=usage)

    @property
    def text(self) -> str:
        """The text parts, joined in order without a separator."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def is_blank(self) -> bool:
        """Whether it has no text, file or data."""
        # U+0000 is removed before sending.
        return not any(not isinstance(part, TextPart) or part.text.replace("\0", "").strip() for part in self.parts)


class Progress(Protocol):
    """Reports a backend's progress: ``progress("reading the log")``. Awaiting it is optional."""

    def __call__(self, update: str | Response, /) -> Awaitable[None]: ...


Handler = Callable[[Request, Progress], Awaitable[Response]]


class Kind(enum.StrEnum):
    """The kind of a row of the feed. A backend handles only messages."""

    MESSAGE = "message"
    ANSWER = "answer"
    RESULT = "result"
    UPLOAD = "upload"
    ECHO = "echo"
    OWN = "own"
    HISTORY = "history"
    UNREADABLE = "unreadable"


BLANK = "it has no text, file or data"


# Without slots, the generated __init__ takes half the time.
@attrs.frozen(kw_only=True, slots=False)
class Inbound:
    """One classified row of the feed.

    Attributes:
        row_id: The platform's id of the row; opaque.
        time: Microseconds since 1970 by the platform's clock, or None if the row has no time.
        seq: The platform's order of rows with equal times, if it has one.
        caller_id: The attested sender; None for a person. For a result, the peer that has the delegation, if the
            platform names it.
        sender_key: The sender's idempotency key, else its message id, else None. A retry repeats it.
        idempotency_key: The ``Request.idempotency_key``.
        fingerprint: Equal for two rows if and only if their parts are equal.
        delegation_id: Set when the platform's delegation sent it.
        reason: Why the row is unreadable, or the message that it answers; for people.
    """

    row_id: str
    kind: Kind
    time: int | None = None
    seq: int | None = None
    caller_id: str | None = None
    context_id: str | None = None
    task_id: str | None = None
    message_id: str
    sender_key: str | None = None
    idempotency_key: str
    method: str = "message/send"
    parts: tuple[Part, ...] = attrs.field(default=(), converter=_as_tuple)
    raw: str = attrs.field(default="{}", repr=False)
    fingerprint: str = ""
    delegation_id: str | None = None
    reason: str = ""

    @property
    def is_blank(self) -> bool:
        """Whether it is a message without any content."""
        return self.kind is Kind.UNREADABLE and self.reason == BLANK


@attrs.frozen(kw_only=True)
class UploadLimits:
    """Size limits of chat uploads in bytes. The defaults are those of 2026-05 platforms, which don't report any."""

    per_file: int = 25 << 20
    per_request: int = 50 << 20


@attrs.frozen
class RowMark:
    """The id and time of a row, for paging."""

    row_id: str
    time: int | None


@attrs.frozen(kw_only=True)
class Page:
    """One page of the feed, in the platform's order.

    Attributes:
        marks: Every row with an id, including known ones.
        items: The classified rows that were not yet known.
        count: Rows on the page, including those without an id; fewer than the limit on the last page.
        limit: The limit of the request.
        size: Bytes of the response.
        earliest: A lower bound of the platform's clock when the request was made, in
            microseconds, or None if the response has no time.
    """

    marks: tuple[RowMark, ...]
    items: tuple[Inbound, ...]
    count: int
    limit: int
    size: int = 0
    earliest: int | None = None

    @property
    def last_before_edge(self) -> str | None:
        """The row to continue after. Not the last one, because older platforms skip other rows of the same time."""
        if not self.marks:
            return None
        edge = self.marks[-1]
        if edge.time is not None:
            for mark in reversed(self.marks):
                if mark.time is not None and mark.time < edge.time:
                    return mark.row_id
        return edge.row_id


@attrs.frozen(kw_only=True)
class FeedPosition:
    """How far a feed was read. Times are microseconds by the platform's clock.

    Attributes:
        watermark: The row that reads start after, old enough that nothing can still appear before it.
        floor: Rows older than this are never read.
        last_read: When the last whole read started.
        ignores_since: The platform ignores ``since_id``.
    """

    watermark: str | None = None
    watermark_time: int | None = None
    floor: int | None = None
    last_read: int | None = None
    ignores_since: bool = False


@attrs.frozen(kw_only=True)
class Outgoing:
    """A reply to be sent.

    Attributes:
        message_id: The same for every resend of this reply, and unique otherwise.
        caller_id: The peer that gets it, or None for the person in the canvas.
        in_reply_to: The inbound message's id, as its sender gave it.
        trace: The W3C ``traceparent`` of this send; empty without traces.
    """

    message_id: str
    caller_id: str | None
    context_id: str | None
    in_reply_to: str
    parts: tuple[Part, ...]
    trace: str = ""


@attrs.frozen(kw_only=True)
class Presence:
    """The content of a heartbeat. ``wedged`` is empty unless there is a problem."""

    active_tasks: int = 0
    current_task: str = ""
    uptime_seconds: int = 0
    error_rate: float = 0.0
    sample_error: str = ""
    wedged: str = ""
    monthly_spend_cents: int = 0


class WorkspaceStatus(enum.StrEnum):
    """The status of a workspace on the platform."""

    ACTIVE = "active"
    PAUSED = "paused"
    REMOVED = "removed"
    UNKNOWN = "unknown"


@attrs.frozen(kw_only=True)
class WorkspaceInfo:
    """The public card of a workspace.

    Attributes:
        card: The agent card that the platform shows, or None.
        hint: The platform's message for a removed workspace.
        is_certain: For a removed workspace: whether the response contains the platform's record of it.
        is_absent: Whether the platform's own error says that the workspace doesn't exist.
    """

    status: WorkspaceStatus
    name: str = ""
    card: dict[str, Any] | None = None
    hint: str = ""
    is_certain: bool = attrs.field(default=False, eq=False)
    is_absent: bool = attrs.field(default=False, eq=False)


class Signal(enum.Enum):
    """The meaning of an event of the platform's stream, which carries no rows."""

    OPENED = "opened"  # the stream is there
    ROW = "row"  # a row may be readable
    BEAT = "beat"  # our own heartbeat came back
    STATUS = "status"  # the workspace was paused, resumed or removed: check its state
    ROTATED = "rotated"  # the token was replaced
    OTHER = "other"  # announces no row
