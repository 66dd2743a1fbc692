"""Outgoing messages as JSON: the A2A envelope for a peer, and the text for a person.

U+0000 and unpaired surrogates are removed, because the platform answers 200 and then fails to store them.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

import attrs

from molecule_connect.errors import PermanentPlatformError
from molecule_connect.files import INLINE, PENDING
from molecule_connect.models import DataPart, FilePart, Outgoing, Part, TextPart
from molecule_connect.platform.parts import clean, fingerprint

_DATA_URI = re.compile(r"data:[^,]*;base64,")
_BACKTICKS = re.compile(r"`+")
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
# The platform rejects an attachment without a name.
UNNAMED = "file"


def to_json(value: Any, *, operation: str) -> bytes:
    """Encode *value* as JSON that every platform can store.

    Raises:
        PermanentPlatformError: JSON can't represent it.
    """
    try:
        text = _ENCODER.encode(value)
        if "\\u0000" not in text:
            return text.encode()
    except UnicodeEncodeError:
        pass
    except (TypeError, ValueError, RecursionError) as exc:
        raise PermanentPlatformError(
            f"{operation}: the message can't be encoded as JSON ({exc})",
            operation=operation,
            status=None,
            body="",
            hint="a data part may contain objects, lists, text, finite numbers, booleans and null",
        ) from exc
    return _ENCODER.encode(_storable(value)).encode()


def peer_envelope(outgoing: Outgoing) -> dict[str, Any]:
    """Return a ``message/send`` for *outgoing*, marked as an automatic reply."""
    message: dict[str, Any] = {
        "role": "agent",
        "messageId": outgoing.message_id,
        "parts": [_peer_part(part, is_first=not number) for number, part in enumerate(outgoing.parts)],
        "metadata": {"molecule": {"in_reply_to": outgoing.in_reply_to, "auto": True}},
    }
    if outgoing.context_id:
        message["contextId"] = outgoing.context_id
    return {"jsonrpc": "2.0", "id": outgoing.message_id, "method": "message/send", "params": {"message": message}}


def question_envelope(message_id: str, text: str, *, context_id: str | None = None) -> dict[str, Any]:
    """Return a ``message/send`` with role ``user`` and without the mark, which every client answers."""
    message: dict[str, Any] = {"role": "user", "messageId": message_id, "parts": [{"kind": "text", "text": text}]}
    message |= {"contextId": context_id} if context_id else {}
    return {"jsonrpc": "2.0", "id": message_id, "method": "message/send", "params": {"message": message}}


def notify_text(parts: Iterable[Part]) -> str:
    """Return *parts* as a text: joined by blank lines, data as fenced JSON, and one line for each file.

    Attached files have a line only if there is no other text.
    """
    parts = tuple(parts)
    shown = [part for part in parts if not is_attached(part)]
    text = "\n\n".join(_person_part(part) for part in shown)
    text = text if text.strip() else "\n".join(_person_part(part) for part in parts)
    return clean(text.replace("\0", ""))


def is_attached(part: Part) -> bool:
    """Whether *part* is an uploaded file, which is attached to a ``notify``."""
    return isinstance(part, FilePart) and part.path is None and part.uri.startswith(PENDING)


def attachments(parts: Iterable[Part]) -> tuple[FilePart, ...]:
    """Return the files of *parts* to attach to a ``notify``."""
    return tuple(part for part in parts if isinstance(part, FilePart) and is_attached(part))


def attachment(file: FilePart) -> dict[str, Any]:
    """Return an uploaded file as ``notify`` takes it."""
    fields: dict[str, Any] = {"uri": file.uri, "name": file.name or UNNAMED}
    fields |= {"mimeType": file.mime_type} if file.mime_type else {}
    fields |= {"size": file.size} if file.size is not None else {}
    return fields


def notify_fingerprint(parts: Iterable[Part]) -> str:
    """Return the fingerprint that the feed's echo of *parts* will have."""
    parts = tuple(parts)
    shown = (attrs.evolve(file, name=file.name or UNNAMED) for file in attachments(parts))
    return fingerprint((TextPart(notify_text(parts)), *shown))


def _peer_part(part: Part, *, is_first: bool) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"kind": "text", "text": part.text}
    if isinstance(part, DataPart):
        return {"kind": "data", "data": part.data}
    is_inline = part.uri.startswith(INLINE)
    if not is_inline and (not part.uri or part.path is not None or part.uri.startswith((PENDING, "file:"))):
        # Peers can't read local files and uploads. They join text parts without a separator.
        return {"kind": "text", "text": _file_line(part) if is_first else f"\n{_file_line(part)}"}
    match = _DATA_URI.match(part.uri)
    file: dict[str, Any] = {"bytes": part.uri[match.end() :]} if match else {"uri": part.uri}
    file |= {"name": part.name} if part.name else {}
    file |= {"mimeType": part.mime_type} if part.mime_type else {}
    file |= {"size": part.size} if part.size is not None else {}
    return {"kind": "file", "file": file}


def _person_part(part: Part) -> str:
    if isinstance(part, TextPart):
        return part.text
    if isinstance(part, FilePart):
        return _file_line(part)
    try:
        text = json.dumps(part.data, ensure_ascii=False, allow_nan=False, indent=2)
    except (TypeError, ValueError, RecursionError) as exc:
        raise PermanentPlatformError(
            f"notify: a data part is not JSON ({exc})", operation="notify", status=None, body=""
        ) from exc
    fence = "`" * max(3, 1 + max((len(run) for run in _BACKTICKS.findall(text)), default=0))
    return f"{fence}json\n{text}\n{fence}"


def _file_line(part: FilePart) -> str:
    address = part.uri if part.uri.startswith(("http://", "https://")) else ""
    name = part.name or (part.path.name if part.path else "") or "without a name"
    size = f"{part.size} bytes" if part.size is not None else ""
    facts = ", ".join(fact for fact in (part.mime_type, size, part.unavailable) if fact)
    line = f"File: {name}" + (f" ({facts})" if facts else "") + (f" {address}" if address else "")
    return " ".join(line.split())


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value.replace("\0", ""))
    if isinstance(value, dict):
        return {_storable(key): _storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(item) for item in value]
    return value
