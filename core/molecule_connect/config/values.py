"""How the values of settings are written: as text in flags and variables, as TOML or JSON values in lists."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from molecule_connect.errors import ConfigError

_MAX_QUOTED = 40
_SIZE = re.compile(r"([0-9]{1,15})\s*(?:([KMGT])(?:i?B)?|B)?", re.IGNORECASE)
_UNITS = "KMGT"
# Names that Prometheus accepts, too.
LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
LONGEST_LABEL = 128


class InvalidValueError(ValueError):
    """A value that doesn't fit its setting. The text describes a valid value and never quotes the invalid one."""


@attrs.frozen
class Secret:
    """Where a token is: ``env``, a variable; ``file``; or ``command``, a program and its arguments that prints it."""

    way: str
    value: tuple[str, ...]

    @property
    def source(self) -> str:
        """For messages to the operator."""
        return {"env": "the variable", "file": "the file", "command": "the command"}[self.way] + f" {self.value[0]}"


@attrs.frozen(kw_only=True)
class ValueType:
    """How one type of value is written.

    Attributes:
        placeholder: Stands for a value in help texts.
        from_text: Reads a flag or a variable; None if the value is empty.
        from_document: Reads a value of a TOML or JSON document.
        to_text: Formats a default for help texts and documentation.
        to_document: The reverse of ``from_document``: text, a number, a boolean, or a list or table of them.

    Both readers raise ``InvalidValueError`` or ``ConfigError``.
    """

    placeholder: str
    from_text: Callable[[str], Any]
    from_document: Callable[[Any], Any]
    to_text: Callable[[Any], str] = str
    to_document: Callable[[Any], Any] = lambda value: value


@attrs.frozen(kw_only=True)
class Bounds:
    """The range of a number.

    Attributes:
        minimum: The lowest value; ``exclusive`` excludes it.
        maximum: The highest value; None for no limit.
        unit: Follows the numbers in texts.
    """

    minimum: float
    maximum: float | None = None
    exclusive: bool = False
    unit: str = ""

    def fault(self, value: float) -> str | None:
        """The reason if *value* is out of range, else None. NaN is out of every range."""
        is_enough = value > self.minimum if self.exclusive else value >= self.minimum
        if is_enough and (self.maximum is None or value <= self.maximum):
            return None
        return f"must be {self}, not {value:g}"

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        if self.maximum is None:
            return f"at least {self.minimum:.0f}{unit}"
        if self.exclusive:
            return f"more than {self.minimum:.0f} and at most {self.maximum:.0f}{unit}"
        return f"between {self.minimum:.0f} and {self.maximum:.0f}{unit}"


def parse_size(text: str) -> int:
    """The number of bytes in ``1GiB``, ``500M`` or ``1073741824``. Units are powers of 1024.

    Raises:
        ConfigError: *text* isn't a size.
    """
    if (found := _SIZE.fullmatch(text.strip())) is None:
        raise ConfigError(
            f"{text[:_MAX_QUOTED]!r} is not a size", hint="write it like 500M, 1GiB or 1073741824 (bytes)"
        )
    return int(found[1]) << (10 * (_UNITS.index(found[2].upper()) + 1) if found[2] else 0)


def parse_path(text: str) -> Path:
    """The path *text*, with ``~`` and ``~user`` expanded.

    Raises:
        ConfigError: No file can have this name, or there is no such user.
    """
    if "\0" in text:
        raise ConfigError("a path contains a NUL character", hint="enter the path again")
    try:
        return Path(text).expanduser()
    except RuntimeError as exc:
        raise ConfigError(
            f"{text} refers to a user that doesn't exist on this machine", hint="write the absolute path"
        ) from exc


def _size_text(size: int) -> str:
    for power, unit in reversed(list(enumerate(_UNITS, 1))):
        if size % (1 << 10 * power) == 0:
            return f"{size >> 10 * power}{unit}iB"
    return str(size)


def _absolute_path(text: str) -> Path | None:
    return parse_path(text).absolute() if text.strip() else None


def _document_text(value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidValueError("must be text in quotes")
    return value


def _document_optional_text(value: Any) -> str | None:
    return _document_text(value) or None


def _text_switch(text: str) -> bool:
    word = text.strip().lower()
    if word not in ("0", "1", "false", "true", "no", "yes", "off", "on"):
        raise InvalidValueError("must be 1 (yes) or 0 (no)")
    return word in ("1", "true", "yes", "on")


def _document_switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidValueError("must be true or false")
    return value


def _text_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidValueError("must be a number") from None


def _document_number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidValueError("must be a number")
    try:
        return float(value)
    except OverflowError:
        raise InvalidValueError("is too large a number") from None


def _text_whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidValueError("must be a whole number") from None


def _document_whole_number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidValueError("must be a whole number")
    return value


def _document_size(value: Any) -> int:
    try:
        return parse_size(value) if isinstance(value, str) else _document_whole_number(value)
    except (ConfigError, InvalidValueError):
        raise InvalidValueError("must be a size, such as 500M or 1GiB") from None


def _text_names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for piece in text.split(",") if (name := " ".join(piece.split()))))


def _document_names(value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise InvalidValueError("must be a name, or a list of names")
    return tuple(names)


def _document_options(value: Any) -> dict[str, str | list[str]]:
    if not isinstance(value, dict):
        raise InvalidValueError("must be a table of options")
    return {
        key: [_option(key, item) for item in one] if isinstance(one, list) else _option(key, one)
        for key, one in value.items()
    }


def _option(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int | float):
        raise InvalidValueError(f"the option {key!r} must be text, a number, true, false, or a list of them")
    return str(value)


def _document_plugin_options(value: Any) -> dict[str, str | list[str]]:
    """``{redact = {pattern = "x"}}`` and ``{"redact.pattern" = "x"}`` are equivalent."""
    if not isinstance(value, dict):
        raise InvalidValueError("must be a table of options")
    found = {}
    for name, one in value.items():
        inner = {f"{name}.{key}": option for key, option in one.items()} if isinstance(one, dict) else {name: one}
        found.update(_document_options(inner))
    return found


def _document_secret(value: Any) -> str | Secret:
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and len(value) == 1:
        ((way, where),) = value.items()
        words = where if isinstance(where, list) else [where]
        if (
            ((way in ("env", "file") and isinstance(where, str)) or (way == "command" and isinstance(where, list)))
            and words
            and all(isinstance(word, str) and word and "\0" not in word for word in words)
        ):
            return Secret(way, tuple(words))
    raise InvalidValueError('must be text, {env = "NAME"}, {file = "PATH"}, or {command = ["PROGRAM", "ARGUMENT"]}')


def _document_labels(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise InvalidValueError("must be a table of texts")
    for name, text in value.items():
        if not LABEL.fullmatch(name):
            raise InvalidValueError(f"{name[:_MAX_QUOTED]!r} can't be a label: use letters, digits and _")
        if not isinstance(text, str) or not text.isprintable() or len(text) > LONGEST_LABEL:
            raise InvalidValueError(f"the label {name!r} must be text of at most {LONGEST_LABEL} printable characters")
    return dict(value)


TEXT = ValueType(placeholder="TEXT", from_text=str, from_document=_document_text)
OPTIONAL_TEXT = ValueType(
    placeholder="TEXT", from_text=lambda text: text or None, from_document=_document_optional_text
)
# Relative to the working directory; a path in a document stays text until the folder of the document is known.
# There, a dollar sign starts a variable.
PATH = ValueType(
    placeholder="FILE",
    from_text=_absolute_path,
    from_document=_document_optional_text,
    to_document=lambda path: str(path).replace("$", "$$"),
)
SECRET = ValueType(placeholder="TOKEN", from_text=str, from_document=_document_secret)
LABELS = ValueType(placeholder="NAME=TEXT", from_text=str, from_document=_document_labels)
SWITCH = ValueType(placeholder="", from_text=_text_switch, from_document=_document_switch)
NUMBER = ValueType(
    placeholder="NUMBER", from_text=_text_number, from_document=_document_number, to_text=lambda value: f"{value:g}"
)
SECONDS = attrs.evolve(NUMBER, placeholder="SECONDS")
# Written in milliseconds, kept in seconds.
MILLISECONDS = ValueType(
    placeholder="MS",
    from_text=lambda text: _text_number(text) / 1000,
    from_document=lambda value: _document_number(value) / 1000,
    to_document=lambda value: round(value * 1000, 6),
)
WHOLE_NUMBER = ValueType(placeholder="N", from_text=_text_whole_number, from_document=_document_whole_number)
SIZE = ValueType(placeholder="SIZE", from_text=parse_size, from_document=_document_size, to_text=_size_text)
NAMES = ValueType(placeholder="NAME", from_text=_text_names, from_document=_document_names)
# As flags: repeated, and read by the plugins' own parser.
OPTIONS = ValueType(placeholder="KEY=VALUE", from_text=str, from_document=_document_options)
PLUGIN_OPTIONS = ValueType(placeholder="NAME.KEY=VALUE", from_text=str, from_document=_document_plugin_options)
