"""A stored message, its reply, and their form in the database."""

import enum
import json
import uuid
from json.encoder import encode_basestring_ascii as _quoted
from pathlib import Path
from typing import Any, NamedTuple

import attrs

from molecule_connect.models import DataPart, FilePart, Outgoing, Part, Request, TextPart, Usage, hashed_id


class State(enum.StrEnum):
    """The state of a message. ``CLAIMED``: claimed by a reader of an inbox until a time."""

    RECEIVED = "received"
    RUNNING = "running"
    ANSWERED = "answered"
    CLAIMED = "held"
    DONE = "done"
    DEAD = "dead"


# A tuple, because each message is looked up by it many times.
class Conversation(NamedTuple):
    """One caller and context of a workspace, whose messages are answered in order."""

    caller_id: str | None
    context_id: str | None


def _usage(value: object) -> Usage | None:
    """*value* if it is a Usage. A plugin can return anything, which must not lose the reply."""
    return value if isinstance(value, Usage) else None


@attrs.frozen(kw_only=True)
class StoredReply:
    """The reply to a message.

    Attributes:
        is_notice: Whether it notifies the caller of a failure; the message is dead once it is sent.
        reason: Why the message is dead then.
    """

    parts: tuple[Part, ...]
    is_notice: bool = False
    reason: str = ""
    usage: Usage | None = attrs.field(default=None, converter=_usage)

    @property
    def has_local_files(self) -> bool:
        """Whether files must be uploaded before it is sent."""
        return any(isinstance(part, FilePart) and part.path is not None for part in self.parts)

    @property
    def then(self) -> State:
        """The state of the message after the platform accepted the reply."""
        return State.DEAD if self.is_notice else State.DONE

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


# Without slots, it is created and copied in half the time.
@attrs.frozen(kw_only=True, slots=False)
class StoredMessage:
    """One message of the journal.

    Attributes:
        attempt: The number of attempts, including the running one.
        crash_count: The number of attempts that ended because our process died.
        replay: The number of times it was replayed.
        time: When it was written, in microseconds by the platform's clock.
        changed: When its state changed last, in seconds since 1970 by our clock.
        not_before: When it is tried or sent again, in seconds since 1970 by our clock.
        first_failed: When its first attempt failed, in seconds since 1970, by the platform's clock where known.
        has_text: Whether its parts are kept; those of a finished message are deleted after a day, or to make room.
        raw: The platform's ``request_body`` as JSON text; None once it was deleted.
        answered_at: When its reply was stored, in microseconds by the platform's clock.
        in_doubt: The number of sends that may have arrived: their outcome is unknown.
        sends: The number of failed sends.
        accepted: When the platform accepted the reply, in microseconds by its clock; 0 before that.
        held_until: When the claim of an inbox's reader ends, in seconds since 1970 by our clock.
        question: The message id of the question that it answers.
        repeat_of: The row id of the message that it repeats.
    """

    workspace_id: str
    row_id: str
    kind: str
    state: State
    attempt: int
    crash_count: int
    replay: int
    time: int
    changed: float
    not_before: float | None
    first_failed: float | None
    caller_id: str | None
    context_id: str | None
    task_id: str | None
    message_id: str
    idempotency_key: str
    method: str
    fingerprint: str
    delegation_id: str | None
    parts: tuple[Part, ...]
    has_text: bool
    raw: str | None = attrs.field(repr=False)
    reply: StoredReply | None
    answered_at: int | None
    in_doubt: int
    sends: int
    accepted: int
    held_until: float | None
    error: str | None
    reason: str | None
    progress: str | None
    question: str | None
    repeat_of: str | None

    @property
    def conversation(self) -> Conversation:
        """The conversation of the message."""
        return Conversation(self.caller_id, self.context_id)

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))

    def request(self, *, trace: str = "") -> Request:
        """The request that a backend handles, as part of *trace*."""
        return Request(
            workspace_id=self.workspace_id,
            message_id=self.message_id,
            idempotency_key=self.idempotency_key,
            caller_id=self.caller_id,
            task_id=self.task_id,
            context_id=self.context_id,
            parts=self.parts,
            method=self.method,
            raw=self.raw or "{}",
            attempt=self.attempt,
            trace=trace,
        )

    def outgoing(self, parts: tuple[Part, ...], *, trace: str = "") -> Outgoing:
        """Its reply with these *parts*, as it is sent as part of *trace*."""
        return Outgoing(
            message_id=self.outgoing_id(),
            caller_id=self.caller_id,
            context_id=self.context_id,
            in_reply_to=self.message_id,
            parts=parts,
            trace=trace,
        )

    def outgoing_id(self) -> str:
        """The message id of its reply: the same for each resend, and different for everything else."""
        kind = "notice" if self.reply is not None and self.reply.is_notice else "answer"
        name = f'[{_quoted(self.workspace_id)}, {_quoted(self.row_id)}, "{kind}", {self.replay}]'
        return hashed_id(_NAMESPACE, name)


_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "molecule-connect").bytes


NOTICE_BEGINS = '{"is_notice": true'


# Deeper JSON can fail to load, depending on the depth of the stack.
MAX_DEPTH = 200


def is_too_deep(parts: tuple[Part, ...]) -> bool:
    """Whether *parts* hold data that is nested too deeply to be stored."""
    level = [part.data for part in parts if isinstance(part, DataPart)]
    for _ in range(MAX_DEPTH):
        outer, level = level, []
        for value in outer:
            if isinstance(value, dict):
                level.extend(value.values())
            elif isinstance(value, list | tuple):
                level.extend(value)
        if not level:
            return False
    return True


def in_words(parts: tuple[Part, ...]) -> str:
    """The text of *parts*, or the names of their files if there is no text."""
    text = "".join(part.text for part in parts if isinstance(part, TextPart))
    names = (part.name or "a file without a name" for part in parts if isinstance(part, FilePart))
    return text if text.strip() else ", ".join(names)


def plain(text: str) -> str:
    """*text* without lone surrogates, which JSON can hold and SQLite can't."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def plain_or_none(text: str | None) -> str | None:
    """``plain``, for an optional text."""
    return None if text is None else plain(text)


def dump_parts(parts: tuple[Part, ...], *, allow_nan: bool = True) -> str:
    """*parts* as ASCII JSON, so that lone surrogates and NULs survive SQLite.

    Raises:
        ValueError: There is a NaN or an infinity, and *allow_nan* is False.
    """
    # Most replies are one text. A plugin's can be of any type.
    if len(parts) == 1 and isinstance(part := parts[0], TextPart) and isinstance(part.text, str):
        return f'[{{"text": {_quoted(part.text)}}}]'
    return json.dumps([_dump_part(part) for part in parts], allow_nan=allow_nan)


def _dump_part(part: Part) -> dict[str, Any]:
    match part:
        case TextPart(text):
            return {"text": text}
        case DataPart(data):
            return {"data": data}
        case FilePart():
            return {
                "file": {
                    "uri": part.uri,
                    "name": part.name,
                    "mime_type": part.mime_type,
                    "size": part.size,
                    "path": str(part.path) if part.path else None,
                    **({"unavailable": part.unavailable} if part.unavailable else {}),
                }
            }


def load_parts(text: str) -> tuple[Part, ...]:
    """The parts that ``dump_parts`` wrote."""
    return tuple(_load_part(value) for value in json.loads(text))


def _load_part(value: dict[str, Any]) -> Part:
    if "text" in value:
        return TextPart(value["text"])
    if "file" in value:
        file = value["file"]
        return FilePart(**{**file, "path": Path(file["path"]) if file["path"] else None})
    return DataPart(value["data"])


def dump_reply(reply: StoredReply) -> str:
    """*reply* as JSON, which begins with ``NOTICE_BEGINS`` for a notice."""
    usage = json.dumps(attrs.asdict(reply.usage)) if reply.usage else "null"
    return (
        f'{{"is_notice": {"true" if reply.is_notice else "false"}, "parts": {dump_parts(reply.parts)},'
        f' "reason": {json.dumps(reply.reason)}, "usage": {usage}}}'
    )


def load_reply(text: str) -> StoredReply:
    """The reply that ``dump_reply`` wrote."""
    value = json.loads(text)
    return StoredReply(
        parts=tuple(_load_part(part) for part in value["parts"]),
        is_notice=value["is_notice"],
        reason=value["reason"],
        usage=Usage(**value["usage"]) if value["usage"] else None,
    )


# The columns of a StoredMessage, in the order of its fields.
COLUMNS = (
    "workspace_id, row_id, kind, state, attempt, interruptions, replay, time, changed, not_before, first_failed,"
    " caller_id, context_id, task_id, message_id, idempotency_key, method, fingerprint, delegation_id, parts,"
    " parts IS NOT NULL, raw, answer, answered_at, in_doubt, sends, accepted,"
    " CASE WHEN state='held' THEN held_until END, error, reason, progress, question, repeat_of"
)
_FIELDS = tuple(field.name for field in attrs.fields(StoredMessage))


def load_message(row: tuple[Any, ...]) -> StoredMessage:
    """The message in a row of ``COLUMNS``."""
    values = dict(zip(_FIELDS, row, strict=True))
    values["state"] = State(values["state"])
    values["has_text"] = bool(values["has_text"])
    values["parts"] = load_parts(values["parts"]) if values["parts"] else ()
    values["reply"] = load_reply(values["reply"]) if values["reply"] else None
    return _message(values)


def with_changes(message: StoredMessage, changes: dict[str, Any]) -> StoredMessage:
    """*message* with other values of some fields."""
    return _message(vars(message) | changes)


def _message(values: dict[str, Any]) -> StoredMessage:
    """The message with *values* for all fields, without the ``__init__`` of attrs, which takes ten times as long."""
    message = object.__new__(StoredMessage)
    vars(message).update(values)
    return message
