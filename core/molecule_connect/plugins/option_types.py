"""The types that options can have: how values are read from text, and how types are shown to operators."""

import enum
import math
import re
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

import attrs

if TYPE_CHECKING:
    import cattrs


@attrs.frozen
class DurationMark:
    """Marks a float annotation as a duration, which may be written ``90s``, ``5m``, ``1h30m`` or ``250ms``."""


Duration: TypeAlias = Annotated[float, DurationMark()]
"""Seconds as a float, which an operator may write as ``90s``, ``5m``, ``1h30m`` or ``250ms``."""

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_WORDS = {
    "true": True, "yes": True, "on": True, "1": True,
    "false": False, "no": False, "off": False, "0": False,
}  # fmt: skip


class WrongValueError(ValueError):
    """An invalid value. The message says what is valid; it never contains the value, which may be a secret."""

    def __init__(self, expected: str) -> None:
        super().__init__(f"must be {expected}")


class UnusableTypeError(TypeError):
    """An annotation that isn't supported for options."""


def read_value(value: Any, kind: Any) -> Any:
    """Convert *value* (text, a list of texts or a JSON value) to *kind*, the annotation of an option.

    Raises:
        WrongValueError: The value is invalid.
        UnusableTypeError: *kind* isn't supported.
    """
    # cattrs takes 2.5 MiB, and most backends are used without options.
    from cattrs.errors import StructureHandlerNotFoundError

    try:
        return _converter().structure(value, kind)
    except StructureHandlerNotFoundError:
        raise UnusableTypeError(f"an option cannot be of type {kind}") from None


def takes_many(kind: Any) -> bool:
    """Whether an option with this annotation takes a list of values."""
    if get_origin(kind) is Annotated:
        return takes_many(get_args(kind)[0])
    if _is_union(kind):
        return any(takes_many(arm) for arm in get_args(kind))
    return kind is Any or (get_origin(kind) or kind) in (list, tuple, _ABC_SEQUENCE)


def help_of(kind: Any) -> str:
    """The texts in an ``Annotated``, joined."""
    return " ".join(note for note in getattr(kind, "__metadata__", ()) if isinstance(note, str))


def type_name(kind: Any) -> str:
    """The name of an option's type, for operators."""
    if is_duration(kind):
        return "duration (90s, 5m)"
    if get_origin(kind) is Annotated:
        return type_name(get_args(kind)[0])
    if _is_union(kind):
        return " or ".join(type_name(arm) for arm in get_args(kind) if arm is not NoneType)
    if get_origin(kind) in (list, tuple, Sequence, _ABC_SEQUENCE):
        return f"{type_name(_item(kind))}, may be repeated"
    if choices := _choices(kind):
        return "one of " + ", ".join(choices)
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}
    return names.get(kind) or str(getattr(kind, "__name__", kind))


def seconds(text: str) -> float | None:
    """Parse a duration. Returns seconds, or None if *text* isn't a duration. A plain number is seconds."""
    if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        return float(text)
    pieces = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text, re.ASCII)
    if not pieces or "".join(number + unit for number, unit in pieces) != text:
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in pieces)


def spelled(amount: float) -> str:
    """Format *amount* seconds: ``90s``, ``5m``, ``1h30m``."""
    milliseconds = round(amount * 1000)
    if 0 < milliseconds < 1000 or milliseconds % 1000:
        return f"{amount:g}s" if milliseconds > 1000 else f"{milliseconds}ms"
    whole = milliseconds // 1000
    if whole < 60 or whole % 60:
        return f"{whole}s"
    hours, minutes = divmod(whole // 60, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if minutes else "")


_ABC_SEQUENCE = get_origin(Sequence[str])


def _converter() -> "cattrs.Converter":
    import cattrs

    converter = cattrs.Converter(detailed_validation=False)
    plain = ((str, _text), (int, _whole), (float, _number), (bool, _truth), (Path, _path), (enum.Enum, _choice))
    for kind, read in plain:
        converter.register_structure_hook(kind, read)
    converter.register_structure_hook_func(lambda kind: kind is Any, lambda value, _: value)
    converter.register_structure_hook_func(_is_literal, _choice)
    converter.register_structure_hook_func(
        lambda kind: get_origin(kind) in (list, tuple, _ABC_SEQUENCE),
        lambda value, kind: _many(value, kind, converter),
    )
    converter.register_structure_hook_func(
        _is_optional, lambda value, kind: None if value is None else converter.structure(value, _some(kind))
    )
    converter.register_structure_hook_func(is_duration, _duration)
    return converter


def _text(value: Any, _: Any) -> str:
    if isinstance(value, list):
        raise WrongValueError("given once")
    if not isinstance(value, str):
        raise WrongValueError("text")
    return value


def _whole(value: Any, _: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    # Beyond Python's limit on digits, int() raises an error that contains the value.
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,100}", value.strip(), re.ASCII):
        return int(value)
    raise WrongValueError("a whole number, given once")


def _number(value: Any, _: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if isinstance(value, str) and re.fullmatch(
        r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,2})?", value.strip(), re.ASCII | re.IGNORECASE
    ):
        return float(value)
    raise WrongValueError("a number, given once")


def _truth(value: Any, _: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _WORDS:
        return _WORDS[value.strip().lower()]
    raise WrongValueError("true or false, given once")


def _path(value: Any, _: Any) -> Path:
    if isinstance(value, str | Path) and "\0" not in str(value):
        return Path(value).expanduser()
    raise WrongValueError("a path, given once")


def _duration(value: Any, _: Any) -> float:
    read = seconds(value.strip()) if isinstance(value, str) else None
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0:
        read = float(value)
    if read is None:
        raise WrongValueError("a duration such as 90s, 5m, 1h30m or 250ms, given once")
    return read


def _choice(value: Any, kind: Any) -> Any:
    members = get_args(kind) or tuple(kind)
    for name, member in zip(_choices(kind), members, strict=True):
        if value == member or (isinstance(value, str) and value == name):
            return member
    raise WrongValueError("one of " + ", ".join(_choices(kind)))


def _choices(kind: Any) -> tuple[str, ...]:
    if get_origin(kind) is Literal:
        return tuple(str(choice) for choice in get_args(kind))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return tuple(str(member.value) for member in kind)
    return ()


def _many(value: Any, kind: Any, converter: "cattrs.Converter") -> Any:
    values = value if isinstance(value, list | tuple) else [value]
    read = [converter.structure(one, _item(kind)) for one in values]
    return tuple(read) if get_origin(kind) is tuple else read


def _item(kind: Any) -> Any:
    arguments = get_args(kind)
    if get_origin(kind) is tuple and (len(arguments) != 2 or arguments[1] is not Ellipsis):
        raise UnusableTypeError(f"an option cannot be of type {kind}")
    return arguments[0]


def is_duration(kind: Any) -> bool:
    """Whether an annotation is a ``Duration``."""
    return any(isinstance(note, DurationMark) for note in getattr(kind, "__metadata__", ()))


def _is_literal(kind: Any) -> bool:
    return get_origin(kind) is Literal


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType)


def _is_optional(kind: Any) -> bool:
    return _is_union(kind) and NoneType in get_args(kind)


def _some(kind: Any) -> Any:
    arms = [arm for arm in get_args(kind) if arm is not NoneType]
    if len(arms) != 1:
        raise UnusableTypeError(f"an option cannot be of type {kind}")
    return arms[0]
