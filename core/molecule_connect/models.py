"""What a backend is handed, what it gives back, and what the journal keeps. No I/O and no JSON: see ``wire``."""

import enum
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
    """A file that a message names.

    Attributes:
        uri: Where the sender says that it is: an upload of the platform, a ``data:`` URI when the bytes came inline
            (they lie at ``path`` too then), or anything else. Never open it as a file of this machine; see ``address``.
        name: As the sender gave it. Never use it as a path.
        size: Bytes, where it is known.
        path: Where this machine keeps it, once it is here. Set by us alone: no sender can.
        unavailable: Why it is not here, for people; empty when it is, or when nobody tried to fetch it.
    """

    uri: str
    name: str = ""
    mime_type: str = ""
    size: int | None = None
    path: Path | None = None
    unavailable: str = ""

    @property
    def address(self) -> str:
        """``uri`` where it is an address on another machine; empty for inline bytes, and for what looks like a path."""
        scheme = _SCHEME.match(self.uri)
        return self.uri if scheme and scheme[1].lower() not in _NO_ADDRESS else ""


@attrs.frozen
class DataPart:
    """A JSON value. A part of a kind that nobody here knows is kept whole as one of these."""

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
        caller_id: The peer workspace, or None when a person wrote it.
        method: The JSON-RPC method, usually ``message/send``.
        raw: The platform's ``request_body`` as JSON text, as it came.
        attempt: 1 for the first try at this message.
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

    @property
    def text(self) -> str:
        """The text parts, joined in order without a separator."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


# More than any answer can cost, and what 64 bits and a float hold exactly: beyond it lies a mistake.
_MOST_USD, _MOST_TOKENS = 1e6, 2.0**53


def _number(value: SupportsFloat | str | None, most: float) -> float:
    try:
        number = 0.0 if value is None else float(value)
    except Exception:  # accounting must not cost the answer, whatever a plugin puts there
        return 0.0
    return number if 0.0 <= number <= most else 0.0


def _amount(value: SupportsFloat | str | None) -> float:
    return _number(value, _MOST_USD)


def _tokens(value: SupportsFloat | str | None) -> int:
    return int(_number(value, _MOST_TOKENS))


@attrs.frozen(kw_only=True)
class Usage:
    """What one answer cost, as far as the backend knows.

    Anything that is no sensible number counts as nothing: None, NaN, text, less than 0, more than 1,000,000 dollars.
    """

    input_tokens: int = attrs.field(default=0, converter=_tokens)
    output_tokens: int = attrs.field(default=0, converter=_tokens)
    cost_usd: float = attrs.field(default=0.0, converter=_amount)


@attrs.frozen(kw_only=True)
class Response:
    """What a backend answers.

    Attributes:
        final: False only for what is given to ``progress``.
        is_silent: The backend decided to send nothing. Made by ``silent()``.
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
        """The message is dealt with, and nothing is sent: the only way to say so."""
        return cls(is_silent=True, usage=usage)

    @property
    def text(self) -> str:
        """The text parts, joined in order without a separator."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def is_blank(self) -> bool:
        """True when there is nothing in it that anybody could read."""
        # U+0000 is taken out of what is sent.
        return not any(not isinstance(part, TextPart) or part.text.replace("\0", "").strip() for part in self.parts)


class Progress(Protocol):
    """How a backend tells what it is doing: ``progress("reading the log")``. Awaiting it is optional."""

    def __call__(self, update: str | Response, /) -> Awaitable[None]: ...


Handler = Callable[[Request, Progress], Awaitable[Response]]


class Kind(enum.StrEnum):
    """What a row of the feed is to us. Only a message wakes a backend."""

    MESSAGE = "message"
    ANSWER = "answer"
    RESULT = "result"
    UPLOAD = "upload"
    ECHO = "echo"
    OWN = "own"
    HISTORY = "history"
    UNREADABLE = "unreadable"


BLANK = "there is no text, file or data in it"


@attrs.frozen(kw_only=True)
class Inbound:
    """One classified row of the feed: all that the journal keeps of it.

    Attributes:
        row_id: The platform's id of the row; opaque.
        time: Microseconds since 1970 by the platform's clock, or None when the row has no time.
        seq: The platform's tie-break of equal times, where it has one.
        caller_id: The attested sender; None for a person. For a result, the peer that has the delegation, where the
            platform names it.
        sender_key: The sender's idempotency key, else its message id, else None. A retry repeats it.
        idempotency_key: What ``Request.idempotency_key`` will be; see ``wire.request_key``.
        fingerprint: The same for two rows exactly when their parts are the same.
        delegation_id: Set when the platform's delegation sent it.
        reason: Why the row is unreadable, or what it answers; for people.
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
        """Whether it would be a message if it said anything."""
        return self.kind is Kind.UNREADABLE and self.reason == BLANK


@attrs.frozen(kw_only=True)
class UploadLimits:
    """How many bytes a chat upload may have. As given here: platforms of 2026-05, which do not tell."""

    per_file: int = 25 << 20
    per_request: int = 50 << 20


@attrs.frozen
class RowMark:
    """Where a row stands in the feed: enough to page by."""

    row_id: str
    time: int | None


@attrs.frozen(kw_only=True)
class Page:
    """One page of the feed, in the order in which the platform gave it.

    Attributes:
        marks: Every row with an id, known ones too.
        items: The rows that ``known`` did not know, classified.
        count: Rows on the page, those without an id too; less than the limit means the end.
        limit: The limit that the platform was asked for.
        size: Bytes of the answer.
        earliest: A lower bound of the platform's clock when the request was made, in
            microseconds, or None when the answer did not tell.
    """

    marks: tuple[RowMark, ...]
    items: tuple[Inbound, ...]
    count: int
    limit: int
    size: int = 0
    earliest: int | None = None

    @property
    def last_before_edge(self) -> str | None:
        """The row to read on after: older platforms skip the twins of the row that they are given, so not the last."""
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
        last_read: When the last whole read began.
        ignores_since: The platform ignores ``since_id``.
    """

    watermark: str | None = None
    watermark_time: int | None = None
    floor: int | None = None
    last_read: int | None = None
    ignores_since: bool = False


@attrs.frozen(kw_only=True)
class Outgoing:
    """An answer on its way out.

    Attributes:
        message_id: The same for every resend of this answer, and for nothing else.
        caller_id: The peer that gets it, or None for the person in the canvas.
        in_reply_to: The inbound message's id, as its sender gave it.
    """

    message_id: str
    caller_id: str | None
    context_id: str | None
    in_reply_to: str
    parts: tuple[Part, ...]


@attrs.frozen(kw_only=True)
class Presence:
    """What one heartbeat says. ``wedged`` is empty while all is well."""

    active_tasks: int = 0
    current_task: str = ""
    uptime_seconds: int = 0
    error_rate: float = 0.0
    sample_error: str = ""
    wedged: str = ""
    monthly_spend_cents: int = 0


class WorkspaceStatus(enum.StrEnum):
    """What the platform says of a workspace, as far as we act on it."""

    ACTIVE = "active"
    PAUSED = "paused"
    REMOVED = "removed"
    UNKNOWN = "unknown"


@attrs.frozen(kw_only=True)
class WorkspaceInfo:
    """The public card of a workspace.

    Attributes:
        card: The agent card that the platform shows, or None.
        hint: The platform's own words to somebody whose workspace is gone.
        is_certain: Of a removed one: whether the answer shows the platform's record of it.
        is_absent: Whether the platform says in its own words that it has no such workspace.
    """

    status: WorkspaceStatus
    name: str = ""
    card: dict[str, Any] | None = None
    hint: str = ""
    is_certain: bool = attrs.field(default=False, eq=False)
    is_absent: bool = attrs.field(default=False, eq=False)


class Signal(enum.Enum):
    """What an event of the platform's stream means to us; the stream itself carries no rows."""

    OPENED = "opened"  # the stream is there
    ROW = "row"  # a row may be readable
    BEAT = "beat"  # our own heartbeat came back
    STATUS = "status"  # the workspace was paused, resumed or removed: ask
    ROTATED = "rotated"  # the token was replaced
    OTHER = "other"  # announces no row
