"""What others wrote, made safe to show to a model and on a terminal.

A host puts names into tags and texts between them, so neither may hold what closes a tag, begins one of the host's own,
or hides something from a person who reads it.
"""

import re
import unicodedata

from molecule_connect import disarm_tags

LONGEST_NAME = 120
LONGEST_ID = 128

# Escape sequences whole, so that "[31m" does not stay behind.
_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
)
# Overrides of the writing direction, and the tag characters: what is there is not what a person sees.
_UNSEEN = re.compile("[\u202a-\u202e\u2066-\u2069\ufeff\U000e0000-\U000e007f]")
_NOT_IN_A_NAME = str.maketrans(
    {"<": "‹", ">": "›", "\uff1c": "‹", "\uff1e": "›", "\ufe64": "‹", "\ufe65": "›"}
    | {"[": "(", "]": ")", "\uff3b": "(", "\uff3d": ")", '"': "'", "\uff02": "'", "`": "'"}
)
_ID = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,128}\Z")


def text(value: str) -> str:
    """*value* line by line, without what a terminal would act on, and without tags that only a host writes."""
    plain = _SEQUENCES.sub("", value.replace("\r\n", "\n").replace("\r", "\n")).encode(errors="replace").decode()
    plain = "".join(each for each in plain if each in "\n\t" or unicodedata.category(each) != "Cc")
    return disarm_tags(_UNSEEN.sub("", plain), mark="‹")


def name(value: object, longest: int = LONGEST_NAME) -> str:
    """A name, a role or a title: one line, no tags, no brackets that would make it look like a heading."""
    if not isinstance(value, str):
        return ""
    plain = _SEQUENCES.sub("", value[: longest * 4])
    seen = (" " if each.isspace() else each for each in plain if each.isspace() or unicodedata.category(each)[0] != "C")
    line = " ".join("".join(seen).split()).translate(_NOT_IN_A_NAME)
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def identifier(value: object) -> str:
    """*value* if it can be an id of the platform's, else nothing."""
    return value if isinstance(value, str) and _ID.match(value) else ""
