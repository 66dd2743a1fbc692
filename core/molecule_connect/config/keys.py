"""What one workspace of a list may say: its keys, what each must be, and how several layers of them make one."""

from collections.abc import Callable, Mapping
from typing import Any

from molecule_connect.config.settings import DEFAULT_BACKEND, PeerBudget, check_workspace_id, parse_size
from molecule_connect.errors import ConfigError
from molecule_connect.plugins.wording import nearest

# What only a workspace of its own can have.
OWN = ("id", "token", "token_file")
# Which key chooses a plugin, and which holds its options.
_CHOICES = (("backend", "options", DEFAULT_BACKEND), ("use", "use_options", ()))


class WrongValueError(ValueError):
    """A value that its key cannot have. The text says what it must be, never what it is."""


def read_keys(given: Mapping[str, Any], *, forbidden: tuple[str, ...] = ()) -> tuple[dict[str, Any], list[str]]:
    """The values of *given* as settings have them, and everything that is wrong with it. No text holds a value."""
    values, faults = {}, []
    for key, value in given.items():
        if key not in KEYS:
            faults.append(f"unknown key {key!r}{nearest(key, tuple(KEYS))}")
        elif key in forbidden:
            faults.append(f"{key} belongs to one workspace")
        else:
            try:
                values[key] = KEYS[key](value)
            except (WrongValueError, ConfigError) as exc:
                faults.append(f"{key}: {exc}")
    return values, faults


def stack(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both layers as one: *above* wins. Options are joined, unless *above* chooses another plugin than they are for."""
    whole = {**below, **above}
    for choice, options, default in _CHOICES:
        is_same = choice not in above or above[choice] == below.get(choice, default)
        if options in below or options in above:
            whole[options] = {**(below.get(options, {}) if is_same else {}), **above.get(options, {})}
    return whole


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise WrongValueError("must be text in quotes")
    return value


def _optional_text(value: Any) -> str | None:
    return _text(value) or None


def _id(value: Any) -> str:
    return check_workspace_id(_text(value))


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise WrongValueError("must be true or false")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WrongValueError("must be a number")
    try:
        return float(value)
    except OverflowError:
        raise WrongValueError("is too large a number") from None


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise WrongValueError("must be a whole number")
    return value


def _size(value: Any) -> int:
    try:
        return parse_size(value) if isinstance(value, str) else _count(value)
    except ConfigError:
        raise WrongValueError("must be a size, such as 500M or 1GiB") from None


def _names(value: Any) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(name, str) and name for name in listed):
        raise WrongValueError("must be a name, or a list of names")
    return tuple(listed)


def _peer_budget(value: Any) -> PeerBudget:
    return (
        PeerBudget.parse(str(value)) if value == 0 and not isinstance(value, bool) else PeerBudget.parse(_text(value))
    )


def _options(value: Any) -> dict[str, str | list[str]]:
    if not isinstance(value, dict):
        raise WrongValueError("must be a table of options")
    return {key: _option(key, one) for key, one in value.items()}


def _option(key: str, value: Any) -> str | list[str]:
    if isinstance(value, list):
        return [_one_option(key, one) for one in value]
    return _one_option(key, value)


def _one_option(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int | float):
        raise WrongValueError(f"the option {key!r} must be text, a number, true, false, or a list of them")
    return str(value)


def _use_options(value: Any) -> dict[str, str | list[str]]:
    """``{redact = {pattern = "x"}}`` and ``{"redact.pattern" = "x"}`` are the same."""
    if not isinstance(value, dict):
        raise WrongValueError("must be a table of options")
    found = {}
    for name, one in value.items():
        inner = {f"{name}.{key}": option for key, option in one.items()} if isinstance(one, dict) else {name: one}
        found.update(_options(inner))
    return found


KEYS: dict[str, Callable[[Any], Any]] = {
    "id": _id,
    "token": _text,
    "token_file": _text,
    "api_url": _text,
    "org_id": _optional_text,
    "ca_file": _optional_text,
    "client_cert": _optional_text,
    "client_key": _optional_text,
    "backend": _text,
    "options": _options,
    "use": _names,
    "use_options": _use_options,
    "strict": _flag,
    "interval_ms": _number,
    "since_secs": _number,
    "concurrency": _count,
    "grace": _number,
    "peer_budget": _peer_budget,
    "max_cost_per_day": _number,
    "journal_quota": _size,
    "agent_name": _optional_text,
    "agent_description": _optional_text,
    "agent_skills": _names,
    "unpause": _flag,
    "create": _flag,
    "insecure": _flag,
}
