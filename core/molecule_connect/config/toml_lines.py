"""The line numbers of tables and keys in a TOML document, which tomllib doesn't tell."""

import re
import tomllib
from collections.abc import Sequence
from typing import Any

_HEADER = r"[ \t]*\[\[?[ \t]*['\"]?{name}['\"]?[ \t]*[\].]"
_KEY = r"[ \t]*['\"]?{name}['\"]?[ \t]*[.=]"


class TomlLines:
    """Finds lines in a TOML document that tomllib can parse.

    A table is found by its header, and a key by parsing ever more lines of its table until the key appears.

    Args:
        text: The document.
        tables: How many ``[[workspace]]`` tables it has. If another number of headers is found, because a text looks
            like one or the tables are written in another way, no line in them is known.
    """

    def __init__(self, text: str, tables: int) -> None:
        self._lines = text.split("\n")
        starts = self._matches(r"[ \t]*\[\[[ \t]*['\"]?workspace['\"]?[ \t]*\]\]")
        self._starts = starts if len(starts) == tables else []

    def workspace(self, index: int, *path: str) -> int | None:
        """The line, from 1, of the *index*-th workspace (from 0), or of the key at *path* in it; None if unknown."""
        if index >= len(self._starts):
            return None
        stop = self._starts[index + 1] if index + 1 < len(self._starts) else len(self._lines)
        found = self._search(self._starts[index], stop, ("workspace", 0, *path)) if path else None
        return (found or self._starts[index]) + 1

    def top(self, name: str, *path: str) -> int | None:
        """The line of the top-level key or table *name*, or of the key at *path* in it; None if unknown."""
        pattern = re.escape(name)
        starts = self._matches(f"{_HEADER.format(name=pattern)}|{_KEY.format(name=pattern)}")
        if not starts:
            return None
        found = self._search(starts[0], len(self._lines), (name, *path)) if path else None
        return (found or starts[0]) + 1

    def _matches(self, pattern: str) -> list[int]:
        expression = re.compile(pattern)
        return [number for number, line in enumerate(self._lines) if expression.match(line)]

    def _search(self, start: int, stop: int, path: Sequence[str | int]) -> int | None:
        """The first line of the statement that adds *path*, in the lines from *start* on."""
        statement = start
        for end in range(start + 1, stop + 1):
            try:
                document = tomllib.loads("\n".join(self._lines[start:end]))
            except (tomllib.TOMLDecodeError, ValueError, RecursionError):
                continue  # in the middle of a value
            if _has(document, path):
                return statement
            statement = end
        return None


def _has(document: Any, path: Sequence[str | int]) -> bool:
    for step in path:
        if isinstance(step, int):
            document = document[step] if isinstance(document, list) and step < len(document) else None
        else:
            document = document.get(step) if isinstance(document, dict) else None
        if document is None:
            return False
    return True
