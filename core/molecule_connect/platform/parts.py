"""The parts of a message, in every shape that is in use, and their fingerprint.

Shapes: ``kind`` (A2A 0.3), ``type`` (older clients), neither (A2A 1.0, the member says what it is); files nested
under ``file`` or flat, by address or with their bytes. A part that fits none of them is kept whole as a ``DataPart``.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from molecule_connect.files import pending_id, pending_uri
from molecule_connect.models import DataPart, FilePart, Part, TextPart

# Reading a part takes microseconds, and a megabyte can hold half a million of them.
MOST_PARTS = 5_000
_FILE_KINDS = frozenset({"file", "image", "audio", "video"})
_URI_KEYS = ("uri", "url", "fileWithUri", "file_with_uri")
_BYTES_KEYS = ("bytes", "fileWithBytes", "file_with_bytes", "raw")
_NAME_KEYS = ("name", "filename", "file_name")
_MIME_KEYS = ("mimeType", "mime_type", "mediaType", "media_type")
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def clean(text: str) -> str:
    """Replace unpaired surrogates in *text*, which can be neither stored nor sent."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def first_text(source: Mapping[str, Any], *keys: str) -> str | None:
    """Return the first value of *keys* that is a non-empty string."""
    for key in keys:
        value = source.get(key)
        if value and isinstance(value, str):
            return clean(value)
    return None


def read_parts(value: object) -> tuple[Part, ...]:
    """Return the parts in *value*: a list of parts, one part, or plain text (A2A 0.2 ``content``).

    Parts after the first 5,000 of a list become a single data part.
    """
    if isinstance(value, list):
        parts = tuple(read_part(item) for item in value[:MOST_PARTS] if item is not None)
        return parts if len(value) <= MOST_PARTS else (*parts, DataPart(value[MOST_PARTS:]))
    if value is None or value == "":
        return ()
    return (read_part(value),)


def read_part(part: object) -> Part:
    """Read a part. Never raises. An unknown part becomes a data part."""
    if isinstance(part, str):
        return TextPart(clean(part))
    if not isinstance(part, dict):
        return DataPart(part)
    kind = part.get("kind") or part.get("type")
    known = kind.lower() if isinstance(kind, str) else None
    if known == "text" or (known is None and "text" in part):
        text = part.get("text")
        return TextPart(clean(text)) if isinstance(text, str) else DataPart(part)
    if known in _FILE_KINDS or (known is None and not kind):
        file = read_file(part)
        if file is not None:
            return file
    if known == "data" or (known is None and not kind):
        return DataPart(part["data"]) if "data" in part else DataPart(part)
    return DataPart(part)


def read_file(part: Mapping[str, Any]) -> FilePart | None:
    """Return the file that *part* names, or None if it has neither an address nor bytes."""
    nested = part.get("file")
    file: Mapping[str, Any] = nested if isinstance(nested, dict) else part
    mime_type = first_text(file, *_MIME_KEYS) or first_text(part, *_MIME_KEYS) or ""
    uri = first_text(file, *_URI_KEYS) or (clean(nested) if isinstance(nested, str) and nested else None)
    if uri is None:
        encoded = first_text(file, *_BYTES_KEYS)
        if encoded is None:
            return None
        uri = f"data:{mime_type};base64,{encoded}"
    size = file.get("size")
    return FilePart(
        uri=uri,
        name=first_text(file, *_NAME_KEYS) or first_text(part, *_NAME_KEYS) or "",
        mime_type=mime_type,
        size=size if isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 2**63 else None,
    )


def read_manifest(body: Mapping[str, Any], workspace_id: str) -> tuple[FilePart, ...]:
    """Return the file that an upload row announces. If the row has no valid address, it is made from the ids."""
    file_id = first_text(body, "file_id", "fileId", "id")
    built = pending_uri(workspace_id, file_id) if file_id else ""
    file = read_file(body if first_text(body, *_URI_KEYS) or not built else {**body, "uri": built})
    if file is not None and built and pending_id(file.uri) is None:
        file = attrs.evolve(file, uri=built)
    return (file,) if file is not None else ()


def fingerprint(parts: Iterable[Part]) -> str:
    """Return a 96-bit hash of *parts*. A file counts by address, name and type."""
    digest = hashlib.blake2b(digest_size=12)
    for part in parts:
        if isinstance(part, TextPart):
            piece = b"t" + part.text.encode("utf-8", "surrogatepass")
        elif isinstance(part, FilePart):
            piece = b"f" + _canonical([part.uri, part.name, part.mime_type]).encode()
        else:
            piece = b"d" + _canonical(part.data).encode()
        digest.update(b"%d:" % len(piece))
        digest.update(piece)
    return digest.hexdigest()
