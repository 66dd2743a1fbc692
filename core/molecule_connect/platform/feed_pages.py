"""Split the text of a feed page into rows, keeping the exact text of each.

Peers choose the content of rows, so no row may make its page unreadable: neither by deep nesting nor by a number with
10,000 digits, which ``json.loads`` rejects. Numbers keep all digits in the text.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import attrs

_WHITESPACE = re.compile(r"[ \t\n\r]*")
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_WHOLE_STRING = re.compile(_STRING, re.DOTALL)
_BRACKETS = re.compile(_STRING + r"|[\[\]{}]", re.DOTALL)
_WHITESPACE_CHARACTERS = " \t\n\r"
_MAX_DIGITS = 4_000


class MalformedPageError(ValueError):
    """The text is not a JSON array, or ends before the end of the array (``cut``)."""

    def __init__(self, message: str, *, cut: bool = False) -> None:
        super().__init__(message)
        self.cut = cut


def _integer(digits: str) -> int | float:
    # int() raises for more than 4,300 digits.
    return int(digits) if len(digits) <= _MAX_DIGITS else float(digits)


_decoder = json.JSONDecoder(parse_int=_integer)


@attrs.frozen
class RawRow:
    """A row, and its position in the text of the page.

    Attributes:
        deep: A value is nested too deeply to be decoded, and is missing from ``fields``.
    """

    page: str = attrs.field(repr=False)
    start: int
    end: int
    fields: dict[str, Any]
    deep: bool = False

    @property
    def text(self) -> str:
        """The row's JSON text, unchanged."""
        return self.page[self.start : self.end]

    def text_of(self, name: str) -> str | None:
        """Return the unchanged JSON text of a member, or None if the row doesn't have it."""
        quoted = f'"{name}":'
        at = self.page.find(quoted, self.start, self.end)
        if at > 0 and name in self.fields and self.page.find(quoted, at + 1, self.end) < 0:
            start = _skip(self.page, at + len(quoted))
            return self.page[start : _end_of_value(self.page, start)]
        for key, start, end in _members(self.page, self.start):
            if key == name:
                return self.page[start:end]
        return None


def read_rows(page: str) -> Iterator[RawRow | None]:
    """Yield the elements of a JSON array, and None for each that isn't an object.

    Raises:
        MalformedPageError: Raised after the rows before the error.
    """
    at = _skip(page, 0)
    if page.startswith("null", at):  # a nil slice in Go
        return
    if not page.startswith("[", at):
        raise MalformedPageError("the answer is not a list of rows", cut=at == len(page))
    at = _skip(page, at + 1)
    if page.startswith("]", at):
        return
    while True:
        row, at = _read_row(page, at)
        yield row
        at = _skip(page, at)
        if page.startswith("]", at):
            return
        if not page.startswith(",", at):
            raise _malformed(page, at)
        at = _skip(page, at + 1)


def read_head(page: str) -> RawRow | None:
    """Return the first row of a page that is cut off in this row, with its complete members; None if there is none."""
    start = _skip(page, _skip(page, 0) + 1)
    if not page.lstrip().startswith("[") or not page.startswith("{", start):
        return None
    fields = {}
    try:
        for key, value_start, _ in _members(page, start):
            fields[key], _ = _decoder.raw_decode(page, value_start)
    except (MalformedPageError, RecursionError):
        pass
    return RawRow(page, start, len(page), fields)


def _read_row(page: str, start: int) -> tuple[RawRow | None, int]:
    try:
        fields, end = _decoder.raw_decode(page, start)
    except RecursionError:
        return _read_deep_row(page, start)
    except json.JSONDecodeError as exc:
        raise _malformed(page, exc.pos) from exc
    return (RawRow(page, start, end, fields) if isinstance(fields, dict) else None), end


def _read_deep_row(page: str, start: int) -> tuple[RawRow | None, int]:
    end = _end_of_nested(page, start)
    if not page.startswith("{", start):
        return None, end
    fields = {}
    for key, value_start, value_end in _members(page, start):
        try:
            fields[key], _ = _decoder.raw_decode(page, value_start)
        except RecursionError:
            fields.pop(key, None)
        if value_end > end:
            raise _malformed(page, end)
    return RawRow(page, start, end, fields, deep=True), end


def _members(page: str, start: int) -> Iterator[tuple[str, int, int]]:
    """Yield the name of each member of the object at *start*, and start and end of its value."""
    at = _skip(page, start + 1)
    while not page.startswith("}", at):
        try:
            key, at = _decoder.raw_decode(page, at)
        except json.JSONDecodeError as exc:
            raise _malformed(page, exc.pos) from exc
        at = _skip(page, at)
        if not isinstance(key, str) or not page.startswith(":", at):
            raise _malformed(page, at)
        value_start = _skip(page, at + 1)
        end = _end_of_value(page, value_start)
        yield key, value_start, end
        at = _skip(page, end)
        if page.startswith(",", at):
            at = _skip(page, at + 1)
        elif not page.startswith("}", at):
            raise _malformed(page, at)


def _end_of_value(page: str, start: int) -> int:
    try:
        return _decoder.raw_decode(page, start)[1]
    except RecursionError:
        return _end_of_nested(page, start)
    except json.JSONDecodeError as exc:
        raise _malformed(page, exc.pos) from exc


def _end_of_nested(page: str, start: int) -> int:
    depth = 0
    for token in _BRACKETS.finditer(page, start):
        first = token.group()[0]
        if first in "[{":
            depth += 1
        elif first in "]}":
            depth -= 1
            if depth == 0:
                return token.end()
    raise _malformed(page, len(page))


def _skip(page: str, at: int) -> int:
    if page[at : at + 1] not in _WHITESPACE_CHARACTERS:
        return at
    match = _WHITESPACE.match(page, at)
    return match.end() if match else at


def _malformed(page: str, at: int) -> MalformedPageError:
    # For an unterminated string, the decoder reports the position of its start.
    if at >= len(page) or (page.startswith('"', at) and not _WHOLE_STRING.match(page, at)):
        return MalformedPageError(f"the answer ends in the middle, after {len(page)} characters", cut=True)
    return MalformedPageError(f"the answer is not JSON at character {at}")
