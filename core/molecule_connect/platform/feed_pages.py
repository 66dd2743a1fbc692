"""From the text of a feed page to its rows, without losing a digit of what they hold.

One row must never spoil the page that it is on: a peer chooses what stands in it.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import attrs

_WHITESPACE = re.compile(r"[ \t\n\r]*")
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_WHOLE_STRING = re.compile(_STRING, re.DOTALL)
_NESTING = re.compile(_STRING + r"|[\[\]{}]", re.DOTALL)
_BLANK = " \t\n\r"
_MAX_DIGITS = 4_000


class MalformedPageError(ValueError):
    """The text is not a JSON array, or ends before the array does (``cut``)."""

    def __init__(self, message: str, *, cut: bool = False) -> None:
        super().__init__(message)
        self.cut = cut


def _integer(digits: str) -> int | float:
    # int() refuses more than 4,300 digits, which would take the whole page with it.
    return int(digits) if len(digits) <= _MAX_DIGITS else float(digits)


_decoder = json.JSONDecoder(parse_int=_integer)


@attrs.frozen
class RawRow:
    """One element of the page: ``fields`` by name, and where it stands in the page's text.

    Attributes:
        deep: A value in it was nested too deeply to be read, and is missing from ``fields``.
    """

    page: str = attrs.field(repr=False)
    start: int
    end: int
    fields: dict[str, Any]
    deep: bool = False

    @property
    def text(self) -> str:
        """The row as JSON text, as it came."""
        return self.page[self.start : self.end]

    def text_of(self, name: str) -> str | None:
        """The JSON text of one member, as it came; None when the row does not have it."""
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
    """The elements of a JSON array, None for one that is not an object.

    Raises:
        MalformedPageError: When it is noticed; the rows before have been given by then.
    """
    at = _skip(page, 0)
    if page.startswith("null", at):  # an empty Go slice that was never made
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
    """The first row of a page that was cut within it, with the members that came whole; None where there is none."""
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
    """Name, start and end of each member's value of the object at *start*."""
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
    for token in _NESTING.finditer(page, start):
        first = token.group()[0]
        if first in "[{":
            depth += 1
        elif first in "]}":
            depth -= 1
            if depth == 0:
                return token.end()
    raise _malformed(page, len(page))


def _skip(page: str, at: int) -> int:
    if page[at : at + 1] not in _BLANK:
        return at
    match = _WHITESPACE.match(page, at)
    return match.end() if match else at


def _malformed(page: str, at: int) -> MalformedPageError:
    # The decoder points at the beginning of a string that does not end.
    if at >= len(page) or (page.startswith('"', at) and not _WHOLE_STRING.match(page, at)):
        return MalformedPageError(f"the answer ends in the middle, after {len(page)} characters", cut=True)
    return MalformedPageError(f"the answer is not JSON at character {at}")
