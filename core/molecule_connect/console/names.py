"""Names of peers for operators. A peer chooses its name, so a name must not pass for a person or for another peer."""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping

import attrs

from molecule_connect.console.sanitize import one_line, who

LONGEST_NAME = 40
# Ids up to this length are shown in full, longer ones are cut to their first characters.
_SHORT_ID, _CUT_ID = 12, 8
_FEWEST_DIGITS = 4
# Words that stand for people and for this program.
_RESERVED = (
    *("admin", "human", "me", "molecule", "operator", "owner", "people", "person", "persons", "platform"),
    *("user", "users", "you", "yourself"),
)
# Names that could pass for a label with an id, or for an id.
_LOOKS_LIKE_ID = re.compile(r"[(){}\[\]…]|\.\.\.|^(?:peer\W*)?[0-9a-f][0-9a-f-]{5,}$", re.IGNORECASE)
# Letters of other scripts, and digits, that look like Latin letters: one letter for all that look alike.
_LOOKALIKES = {
    ord(char): latin
    for latin, chars in {
        "a": "\u0430\u03b1",
        "b": "\u0432\u0185",
        "c": "\u0441",
        "d": "\u0501",
        "e": "\u0435\u03b5",
        "g": "\u0261",
        "h": "\u04bb\u043d",
        "j": "\u0458",
        "k": "\u043a\u03ba",
        "l": "1i|\u0456\u03b9\u0131\u04cf",
        "m": "\u043c",
        "n": "\u03b7\u0578",
        "o": "0\u043e\u03bf\u0585",
        "p": "\u0440\u03c1",
        "q": "\u051b",
        "s": "\u0455",
        "t": "\u0442\u03c4",
        "u": "\u03c5\u057d",
        "v": "\u03bd",
        "w": "\u051d",
        "x": "\u0445\u03c7",
        "y": "\u0443",
    }.items()
    for char in chars
}


@attrs.frozen
class Label:
    """How a caller is shown: a ``name``, and the beginning of its id if the name alone could mislead."""

    name: str
    short_id: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.short_id}…)" if self.short_id else self.name


class PeerNames:
    """The labels of one workspace's callers.

    Args:
        names: The registry's names of peers, by id. Unchecked text.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        shown = {peer_id: one_line(name, LONGEST_NAME) for peer_id, name in names.items()}
        self._names = {peer_id: name for peer_id, name in shown.items() if _skeleton(name)}
        self._shared = Counter(_start(name) for name in self._names.values())

    def label(self, caller_id: str | None) -> Label:
        """The label of a caller: "person", the name of a peer, or its shortened id if the name is unknown."""
        if caller_id is None:
            return Label(who(None))
        name = self._names.get(caller_id)
        if name is None:
            return Label(short_id(caller_id))
        is_plain = self._shared[_start(name)] == 1 and not (_LOOKS_LIKE_ID.search(name) or _is_reserved(name))
        return Label(name) if is_plain else Label(name, self._digits(caller_id))

    def find(self, text: str) -> list[str]:
        """The ids of the peers of the name *text* in any case, else of those whose id starts with it."""
        wanted = one_line(text, LONGEST_NAME).casefold()
        named = [peer_id for peer_id, name in self._names.items() if name.casefold() == wanted]
        return named or [peer_id for peer_id in self._names if wanted and peer_id.casefold().startswith(wanted)]

    def _digits(self, caller_id: str) -> str:
        """The beginning of an id that no other peer's id has."""
        others = [peer_id for peer_id in self._names if peer_id != caller_id]
        length = _FEWEST_DIGITS
        while length < len(caller_id) and any(other.startswith(caller_id[:length]) for other in others):
            length += 1
        return one_line(caller_id[:length], 64)


def short_id(caller_id: str) -> str:
    """A peer's id, shortened unless it is short."""
    shown = one_line(caller_id, 64)
    return shown if len(shown) <= _SHORT_ID else f"{shown[:_CUT_ID]}…"


def _is_reserved(name: str) -> bool:
    reserved = set(map(_skeleton, _RESERVED))
    return not reserved.isdisjoint({_skeleton(name), *map(_skeleton, re.split(r"[\W_]+", name))})


def _start(name: str) -> str:
    """The part of a name that a narrow column shows, for comparison."""
    return _skeleton(name)[:10]


def _skeleton(name: str) -> str:
    """*name* without case, accents, punctuation and spaces, with one letter for all that look alike."""
    letters = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", name).casefold())
    return "".join(char for char in letters.translate(_LOOKALIKES) if char.isalnum() or ord(char) > 0x2000)
