"""What a model gave a tool, read with patience: a number may come as text, an empty text counts as missing."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from molecule_connect import ArgumentError
from molecule_connect_mcp import harmless

DEFAULT_WAIT, LONGEST_WAIT = 60.0, 300.0


class Arguments:
    """The arguments of one call, and the host's roots at that time."""

    def __init__(self, given: Mapping[str, Any], roots: Sequence[Path] = ()) -> None:
        self._given = given
        self.roots = tuple(roots)

    def text(self, name: str) -> str:
        """A text that has to be there.

        Raises:
            ArgumentError: It is not.
        """
        value = self._given.get(name)
        if not isinstance(value, str) or not value.strip():
            raise ArgumentError(
                f"{name} is missing", hint=f"call the tool again with {name} as a text that is not empty"
            )
        return value

    def optional(self, name: str) -> str:
        """A short text, or "" where there is none."""
        value = self._given.get(name)
        return value.strip() if isinstance(value, str) else ""

    def identifier(self, name: str) -> str:
        """An id of the platform's; it becomes part of a path.

        Raises:
            ArgumentError: It is missing, or cannot be one.
        """
        value = self.text(name).strip()
        if not harmless.identifier(value):
            raise ArgumentError(
                f"{name} cannot be an id", hint="an id is 1 to 128 of A-Z a-z 0-9 . _ -; copy it from a tool's result"
            )
        return value

    def seconds(self, name: str) -> float:
        """How long to wait: 0 to 300; 60 where that cannot be read."""
        value = self._number(name)
        return DEFAULT_WAIT if value is None else min(max(value, 0.0), LONGEST_WAIT)

    def count(self, name: str, default: int, most: int) -> int:
        """A whole number from 1 to *most*; *default* where it cannot be read."""
        value = self._number(name)
        return default if value is None else int(min(max(value, 1), most))

    def paths(self, name: str) -> list[str]:
        """Paths of files, as they were given.

        Raises:
            ArgumentError: It is no list of them.
        """
        value = self._given.get(name) or []
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ArgumentError(f"{name} is no list of paths", hint=f'give it like {name}: ["/path/to/file"]')
        return value

    def _number(self, name: str) -> float | None:
        value = self._given.get(name)
        if isinstance(value, bool):
            return None
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            return None
        return number if math.isfinite(number) else None
