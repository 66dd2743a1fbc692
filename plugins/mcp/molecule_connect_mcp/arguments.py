"""Lenient parsing of tool arguments: a model may send a number as text, or an empty text for a missing one."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from molecule_connect import ArgumentError
from molecule_connect_mcp import sanitize

DEFAULT_WAIT, MAX_WAIT = 60.0, 300.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Arguments:
    """The arguments of one call, and the host's roots at that time."""

    def __init__(self, values: Mapping[str, Any], roots: Sequence[Path] = ()) -> None:
        self._values = values
        self.roots = tuple(roots)

    def text(self, name: str) -> str:
        """A required text.

        Raises:
            ArgumentError: It is missing or empty.
        """
        value = self._values.get(name)
        if not isinstance(value, str) or not value.strip():
            raise ArgumentError(f"{name} is missing", hint=f"call the tool again with a non-empty text as {name}")
        return value

    def optional(self, name: str) -> str:
        """An optional short text; "" if it is missing."""
        value = self._values.get(name)
        return value.strip() if isinstance(value, str) else ""

    def identifier(self, name: str) -> str:
        """A required platform id, safe as a segment of a URL path.

        Raises:
            ArgumentError: It is missing or invalid.
        """
        value = self.text(name).strip()
        if not sanitize.identifier(value):
            raise ArgumentError(
                f"{name} cannot be an id",
                hint="an id has 1 to 128 characters of A-Z a-z 0-9 . _ -; copy it from a tool's result",
            )
        return value

    def seconds(self, name: str) -> float:
        """A time to wait, clamped to 0 to 300 seconds; 60 if it is missing or invalid."""
        value = self._number(name)
        return DEFAULT_WAIT if value is None else min(max(value, 0.0), MAX_WAIT)

    def count(self, name: str, default: int, maximum: int) -> int:
        """A whole number, clamped to 1 to *maximum*; *default* if it is missing or invalid."""
        value = self._number(name)
        return default if value is None else int(min(max(value, 1), maximum))

    def paths(self, name: str) -> list[str]:
        """Paths of files, unchanged.

        Raises:
            ArgumentError: It isn't a list of texts.
        """
        value = self._values.get(name) or []
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ArgumentError(f"{name} is not a list of paths", hint=f'pass it as {name}: ["/path/to/file"]')
        return value

    def time(self, name: str) -> int | None:
        """A time such as ``2026-05-01T10:00:00Z`` in microseconds since 1970; None if it is missing.

        Raises:
            ArgumentError: It isn't a valid time.
        """
        value = self.optional(name)
        if not value:
            return None
        try:
            moment = datetime.fromisoformat(value)
            moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            raise ArgumentError(
                f"{sanitize.name(value)} is not a valid time",
                hint="pass the created_at of a message, such as 2026-05-01T10:00:00Z",
            ) from None
        since = moment - _EPOCH
        return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds

    def _number(self, name: str) -> float | None:
        value = self._values.get(name)
        if isinstance(value, bool):
            return None
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            return None
        return number if math.isfinite(number) else None
