"""Make a sender's text safe to include in a model's prompt.

Prompts delimit a sender's text with tags, and programs around a model mark their own instructions with tags. The text
must not be able to close the delimiter or to forge such a tag, even in disguise.
"""

import re
import unicodedata
from collections.abc import Iterator

# The angle bracket, and characters that NFKC normalizes to it.
_BRACKETS = "<\uff1c\ufe64"
# Some are quotation marks and letters, so they count only before a name that isn't an ordinary word.
_LOOKALIKES = "\u2039\u2329\u3008\u27e8\u276c\u276e\u2770\u29fc\u02c2\u1438\u16b2\u227a\u22d6\u2991"
_OPENERS = re.compile(f"([{_BRACKETS}{_LOOKALIKES}])")
_NAMES = re.compile(
    r"(molecule-|system-|local-command-|command-|bash-|task-notification|user-prompt-|user-memory-|user-message"
    r"|function-|antml|tool-use-error|tool-result|tool-call|persisted-output|pasted-content|sandbox-violations"
    r"|memory-|cross-session-|teammate-|agent-message|coordinator-|subagent-|ide-|mcp-server-|mcp-resource"
    r"|total-tokens|new-diagnostics|fork-boilerplate)"
)
_WORDS = re.compile(r"(channel|system|human|assistant|invoke)(?![a-z0-9])")
# Allowed between a bracket and the name.
_LEAD = re.compile(r"\A[\s/|!\\\u2044\u2215\u2571\u29f8\uff01\uff0f\uff3c\uff5c]*")
# The longest name, including white space.
_LONGEST_TAG = 80

# Default-ignorable code points (Unicode 15.1), other invisible characters, and the braille blank.
_INVISIBLE_RANGES = (
    (0x00, 0x08), (0x0E, 0x1F), (0x7F, 0x84), (0x86, 0x9F), (0xAD, 0xAD), (0x034F, 0x034F), (0x0600, 0x0605),
    (0x061C, 0x061C), (0x06DD, 0x06DD), (0x070F, 0x070F), (0x08E2, 0x08E2), (0x115F, 0x1160), (0x17B4, 0x17B5),
    (0x180B, 0x180F), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x2800, 0x2800), (0x3164, 0x3164),
    (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFFB), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A),
    (0xE0000, 0xE0FFF),
)  # fmt: skip
_INVISIBLE = {code: None for first, last in _INVISIBLE_RANGES for code in range(first, last + 1)}
_MARK_RANGES = (0x0300, 0x036F), (0x1AB0, 0x1AFF), (0x1DC0, 0x1DFF), (0x20D0, 0x20FF), (0xFE20, 0xFE2F)
_IGNORED = _INVISIBLE | {code: None for first, last in _MARK_RANGES for code in range(first, last + 1)}

# Lower-case letters that look like Latin ones; dashes and the underscore become hyphens.
_FOLDED = str.maketrans(
    "авекмнорстухіјѕһӏԁԛѡѵαεικνορτυχϲıɑɡոսօցհ‐‑‒–—―−_",
    "abekmhopctyxijshldqwvaeikvoptuxciagnuogh--------",
)


def disarm_tags(text: str, mark: str = "&lt;") -> str:
    """Replace the opening bracket of each reserved tag with *mark*.

    Reserved tags are those that only a host or the connector may write. The comparison ignores invisible characters,
    combining marks, white space, case, full-width forms and look-alike letters. Everything else is unchanged: other
    tags, code, and emoji with their joiners.
    """
    return "".join(_disarmed(text, mark))


def _disarmed(text: str, mark: str) -> Iterator[str]:
    before, *rest = _OPENERS.split(text)
    yield before
    for bracket, after in zip(rest[::2], rest[1::2], strict=True):
        if _is_reserved(after, is_bracket=bracket in _BRACKETS):
            # Only the tag is cleaned; the rest is the sender's text.
            tag, end, following = after.partition(">")
            yield f"{mark}{tag.translate(_IGNORED)}{end}{following}"
        else:
            yield bracket + after


def _is_reserved(after: str, *, is_bracket: bool) -> bool:
    start = _LEAD.sub("", after.translate(_IGNORED), count=1)[:_LONGEST_TAG]
    if not start:
        return False
    folded = unicodedata.normalize("NFKD", start).casefold().translate(_FOLDED)
    plain = "".join(each for each in folded if not unicodedata.category(each).startswith("M"))
    return bool(_NAMES.match("".join(plain.split())) or (is_bracket and _WORDS.match(plain)))
