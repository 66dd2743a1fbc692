"""Make text from others safe to show to a model and on a terminal."""

import re
import unicodedata
from typing import Any

from molecule_connect import disarm_tags

MAX_NAME_LENGTH = 120
MAX_ID_LENGTH = 128

# Match escape sequences as a whole, so that "[31m" does not stay behind.
_ESCAPE_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
)
# Direction overrides and tag characters hide text from a person who reads it.
_INVISIBLE = re.compile("[\u202a-\u202e\u2066-\u2069\ufeff\U000e0000-\U000e007f]")
_NAME_REPLACEMENTS = str.maketrans(
    {"<": "‹", ">": "›", "\uff1c": "‹", "\uff1e": "›", "\ufe64": "‹", "\ufe65": "›"}
    | {"[": "(", "]": ")", "\uff3b": "(", "\uff3d": ")", '"': "'", "\uff02": "'", "`": "'"}
)
_ID = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,128}\Z")


def text(value: str) -> str:
    """Remove control characters and escape sequences from *value*, and disarm tags that only a host writes."""
    plain = _ESCAPE_SEQUENCES.sub("", value.replace("\r\n", "\n").replace("\r", "\n")).encode(errors="replace").decode()
    plain = "".join(char for char in plain if char in "\n\t" or unicodedata.category(char) != "Cc")
    return disarm_tags(_INVISIBLE.sub("", plain), mark="‹")


def name(value: object, max_length: int = MAX_NAME_LENGTH) -> str:
    """Return a name, a role or a title as one line without tags or square brackets.

    Square brackets would make it look like a heading. A value that isn't text becomes "".
    """
    if not isinstance(value, str):
        return ""
    plain = _ESCAPE_SEQUENCES.sub("", value[: max_length * 4])
    visible = (
        " " if char.isspace() else char for char in plain if char.isspace() or unicodedata.category(char)[0] != "C"
    )
    line = " ".join("".join(visible).split()).translate(_NAME_REPLACEMENTS)
    return line if len(line) <= max_length else f"{line[: max_length - 1]}…"


def identifier(value: object) -> str:
    """Return *value* if it is a valid platform id, else ""."""
    return value if isinstance(value, str) and _ID.match(value) else ""


def data(value: Any) -> Any:
    """Sanitize every text in a JSON value."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, dict):
        return {name(key): data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [data(item) for item in value]
    return value
