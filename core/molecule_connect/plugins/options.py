"""Options of plugins: from ``key=value`` on a command line to the typed fields of a class."""

import os
from collections.abc import Callable, Iterable, Mapping
from inspect import isclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import attrs

from molecule_connect.errors import ConfigError, OptionError, PluginError
from molecule_connect.files import make_folder
from molecule_connect.plugins.option_types import (
    UnusableTypeError,
    WrongValueError,
    help_of,
    is_duration,
    read_value,
    spelled,
    takes_many,
    type_name,
)
from molecule_connect.plugins.raw_options import GivenOptions, Repeated, Value

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_DECLARED = "__molecule_options__"


def options(cls: type) -> Callable[[F], F]:
    """Declare that a factory's options are the init fields of the attrs class *cls*.

    It gives the factory help and a check of unknown keys; the factory itself calls ``config.structure(cls)``.
    """

    def declare(factory: F) -> F:
        setattr(factory, _DECLARED, cls)
        return factory

    return declare


def _given(value: Mapping[str, Value] | None) -> GivenOptions:
    return value if isinstance(value, GivenOptions) else GivenOptions(value)


@attrs.frozen(eq=False, kw_only=True)
class BackendConfig:
    """What a plugin is made from.

    Attributes:
        name: The name that the operator chose it by.
        workspace_id: The workspace that it will answer for; empty where there is none yet.
        options: As given; a repeated key is a list. In no repr.
        state_root: The folder that holds the journal, the tokens and the files of every workspace on this machine,
            whether it exists yet or not; None where it is not known. Keep what you start out of it.
    """

    name: str
    workspace_id: str = ""
    options: GivenOptions = attrs.field(default=None, converter=_given)
    _label: str = attrs.field(default="the backend", repr=False)
    _spelling: str = attrs.field(default="--backend-opt ", repr=False)
    state_root: Path | None = attrs.field(default=None, repr=False)
    _state_folder: Callable[[], Path] | None = attrs.field(default=None, repr=False)
    _secrets: frozenset[str] = attrs.field(default=frozenset(), repr=False)

    def get(self, key: str, default: str | None = None) -> str | None:
        """The value of *key*, the last one where it was repeated; *default* when it was not given, or is empty.

        Raises:
            OptionError: A file gives a list.
        """
        value = self.options.last(key) if key in self.options else None
        if isinstance(value, list):
            raise OptionError(f"option {key!r} of {self._label} was given more than once", hint="give it once")
        return value or default

    def require(self, key: str) -> str:
        """The value of *key*.

        Raises:
            OptionError: It was not given or is empty, or a file gives a list.
        """
        value = self.get(key)
        if value is None:
            raise self._missing([key])
        return value

    def structure(self, cls: type[T]) -> T:
        """An instance of the attrs class *cls*, its init fields filled from the options.

        A field of type ``BackendConfig`` gets this config. An empty value leaves a field at its default.

        Raises:
            OptionError: An option is missing or does not fit. The text names the key and what it must be, but
                not the value.
            PluginError: A field has a type that no option can have.
        """
        fields = option_fields(cls)
        given = {field.key: value for field in fields if (value := self._value(field)) not in (None, "")}
        if missing := [field.key for field in fields if field.required and field.key not in given]:
            raise self._missing(missing)
        values: dict[str, Any] = dict.fromkeys(_config_fields(cls), self)
        for field in fields:
            if field.key in given:
                values[field.key] = self._read(given[field.key], field)
        return cls(**values)

    @property
    def state_dir(self) -> Path:
        """A folder of this plugin's own for this workspace, made when it is first asked for (0700).

        Raises:
            ConfigError: There is no state folder here, or it cannot be made.
        """
        if self._state_folder is None:
            raise ConfigError(f"{self._label} needs a state folder, and was given none", hint="pass state_dir=")
        folder = self._state_folder()
        try:
            make_folder(folder)
            folder.chmod(0o700)
        except OSError as exc:
            raise ConfigError(
                f"{self._label} cannot have its folder {folder}: {exc.strerror}",
                hint="free the path, or choose another with --state-dir",
            ) from exc
        return folder

    def child_environment(self, environ: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment for programs that the plugin starts: *environ* (ours) without the platform's tokens.

        Left out are ``MOLECULE_WORKSPACES``, every ``MOLECULE_...TOKEN...``, and whatever has a token as its value.
        """
        everything = dict(os.environ if environ is None else environ)
        private = {name for name in everything if _is_private(name)}
        secrets = (self._secrets | {everything[name] for name in private}) - {""}
        return {name: value for name, value in everything.items() if name not in private and value not in secrets}

    def _value(self, field: "OptionField") -> Value | None:
        if field.key not in self.options:
            return None
        return self.options[field.key] if takes_many(field.annotation) else self.options.last(field.key)

    def _missing(self, keys: list[str]) -> OptionError:
        spelled = " ".join(f"{self._spelling}{key}=..." for key in keys)
        return OptionError(
            f"{self._label} needs the option {' and '.join(map(repr, keys))}", hint=f"give it: {spelled}"
        )

    def _read(self, value: Value, field: "OptionField") -> Any:
        try:
            return read_value(value, field.annotation)
        except WrongValueError as exc:
            raise OptionError(
                f"option {field.key!r} of {self._label} {exc}", hint=f"write it {self._spelling}{field.key}=..."
            ) from None
        except UnusableTypeError as exc:
            raise PluginError(f"field {field.key!r} of {self._label}: {exc}", hint="tell its author") from None


@attrs.frozen(kw_only=True)
class OptionField:
    """One option of a plugin, as ``molecule backends NAME`` shows it.

    Attributes:
        default: As text; None where there is none, or it is None.
    """

    key: str
    type: str
    required: bool
    default: str | None
    help: str
    annotation: Any = attrs.field(repr=False, eq=False)


def describe(target: Any) -> tuple[OptionField, ...] | None:
    """The options of what an entry point names, without making the plugin; None when a factory declares none."""
    cls = declared_class(target)
    return None if cls is None else option_fields(cls)


def declared_class(target: Any) -> type | None:
    """The attrs class that holds the options of *target*, or None."""
    if isclass(target) and attrs.has(target):
        return target
    declared = getattr(target, _DECLARED, None)
    return declared if isclass(declared) else None


def option_fields(cls: type) -> tuple[OptionField, ...]:
    """The options of an attrs class: its init fields but those of type ``BackendConfig``.

    Raises:
        PluginError: It is no attrs class, or an annotation names nothing.
    """
    hints = _hints(cls)
    return tuple(
        OptionField(
            key=field.alias,
            type=type_name(hints[field.name]),
            required=field.default is attrs.NOTHING,
            default=_default_text(field.default, hints[field.name]),
            help=help_of(hints[field.name]),
            annotation=hints[field.name],
        )
        for field in attrs.fields(cls)
        if field.init and not _is_config(hints[field.name])
    )


def parse_options(texts: Iterable[str]) -> dict[str, Value]:
    """``key=value`` texts as options; a repeated key is a list. The first ``=`` splits.

    Raises:
        OptionError: A text has no ``=``, or nothing before it.
    """
    found: dict[str, Value] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise OptionError(f"{text!r} is not an option", hint="write it as key=value")
        before = found.get(key)
        if before is None:
            found[key] = value
        else:
            found[key] = Repeated([*before, value] if isinstance(before, list) else [before, value])
    return found


def _hints(cls: type) -> dict[str, Any]:
    if not attrs.has(cls):
        raise PluginError(f"{cls.__qualname__} is no attrs class", hint="options are the init fields of an attrs class")
    try:
        hints = get_type_hints(cls, include_extras=True)
    except Exception as exc:  # annotations are the author's code
        raise PluginError(
            f"the annotations of {cls.__qualname__} cannot be read: {type(exc).__name__}: {exc}",
            hint="import what they name outside of TYPE_CHECKING",
        ) from exc
    return {field.name: hints.get(field.name, field.type or Any) for field in attrs.fields(cls)}


def _is_config(hint: Any) -> bool:
    return hint is BackendConfig or BackendConfig in get_args(hint)


def _config_fields(cls: type) -> list[str]:
    hints = _hints(cls)
    return [field.alias for field in attrs.fields(cls) if field.init and _is_config(hints[field.name])]


def _default_text(default: Any, hint: Any) -> str | None:
    if default is attrs.NOTHING or default is None or isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        return None
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, float):
        return spelled(default) if is_duration(hint) else f"{default:g}"
    return str(getattr(default, "value", default))


def _is_private(name: str) -> bool:
    return name == "MOLECULE_WORKSPACES" or (name.startswith("MOLECULE_") and "TOKEN" in name)
