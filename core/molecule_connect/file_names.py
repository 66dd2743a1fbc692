"""What files are called: on this machine, whatever somebody else named them, and where the platform keeps uploads."""

import base64
import mimetypes
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes

LONGEST = 100
_LONGEST_EXTENSION = 16
_ODD = re.compile(r"[^A-Za-z0-9._-]")
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
PENDING = "platform-pending:"
# How the address of bytes in the message itself begins, and the journal's id of them: no upload has such an id.
INLINE, INLINE_ID = "data:", "inline:"


def files_folder(state_folder: Path, workspace_id: str) -> Path:
    """The folder for the files of one workspace's chat."""
    return state_folder / workspace_id / "files"


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


def inline_id(row_id: str, number: int) -> str:
    """The journal's id of the file whose bytes are in part *number* of the row *row_id*."""
    return f"{INLINE_ID}{number}:{row_id}"


def is_file(path: Path) -> bool:
    """Whether an ordinary file is at *path*; False for a path that the system refuses, such as one that is too long."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def type_by_name(name: str) -> str:
    """The MIME type that the extension of *name* stands for, or ""."""
    # Given the name itself, mimetypes reads it as a URL, and raises ValueError for some since Python 3.13.
    return mimetypes.guess_type(safe_name(name))[0] or ""


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
