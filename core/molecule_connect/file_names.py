"""What files are called: on this machine, whatever somebody else named them, and where the platform keeps uploads."""

import base64
import hashlib
import re
from urllib.parse import unquote_to_bytes

LONGEST = 100
_LONGEST_EXTENSION = 16
_ODD = re.compile(r"[^A-Za-z0-9._-]")
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
PENDING = "platform-pending:"
# How bytes that came in the message itself begin, and what they are called in the journal: no upload has such an id.
INLINE, INLINE_ID = "data:", "inline:"


def safe_name(name: str) -> str:
    """*name* as the platform would write it: base name, plain characters, at most 100 of them.

    A long one keeps an extension of at most 16 characters with its dot. The rule is the platform's (contract 2.12).
    """
    plain = _ODD.sub("_", name.rpartition("/")[2])
    if len(plain) > LONGEST:
        _, dot, extension = plain.rpartition(".")
        kept = dot + extension if dot and len(dot + extension) <= _LONGEST_EXTENSION else ""
        plain = plain[: LONGEST - len(kept)] + kept
    return plain if plain.strip(".") or len(plain) > 2 else "file"


def pending_uri(workspace_id: str, file_id: str) -> str:
    """How the platform names an upload in messages."""
    return f"{PENDING}{workspace_id}/{file_id}"


def pending_id(uri: str) -> str | None:
    """The id of the upload that *uri* names, or None. Another workspace's is not found when it is asked for."""
    workspace_id, slash, file_id = uri.removeprefix(PENDING).partition("/")
    is_one = uri.startswith(PENDING) and bool(workspace_id and slash and _ID.fullmatch(file_id))
    return file_id if is_one and file_id.strip(".") else None


def file_key(uri: str, name: str) -> str | None:
    """What the journal calls a message's file at *uri*: an upload's id, or one made of its bytes; else None."""
    if not uri.startswith(INLINE):
        return pending_id(uri)
    told = f"{uri}\0{name}".encode("utf-8", "replace")
    return INLINE_ID + hashlib.blake2b(told, digest_size=16).hexdigest()


def inline_bytes(uri: str) -> bytes:
    """What a ``data:`` URI holds.

    Raises:
        ValueError: It is not what it says.
    """
    head, comma, body = uri.partition(",")
    if not comma:
        raise ValueError("there is nothing in it")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(body)
    plain = "".join(body.split()).translate(_STANDARD).rstrip("=")
    return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)


_STANDARD = str.maketrans("-_", "+/")
