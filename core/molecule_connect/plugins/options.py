"""Plugin options: from ``key=value`` texts to the typed fields of a class."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from molecule_connect.plugins.raw_options import GivenOptions, Repeated, Value, unknown_options

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_DECLARED = "__molecule_options__"


def options(cls: type) -> Callable[[F], F]:
    """Declare the init fields of the attrs class *cls* as the options of a factory.

    The factory gets help and a check for unknown keys; it calls ``config.structure(cls)`` itself.
    """

    def declare(factory: F) -> F:
        setattr(factory, _DECLARED, cls)
        return factory

    return declare


def _given(value: Mapping[str, Value] | None) -> GivenOptions:
    return value if isinstance(value, GivenOptions) else GivenOptions(value)


@attrs.frozen(eq=False, kw_only=True)
class BackendConfig:
    """The configuration that a plugin is created from.

    Attributes:
        name: The plugin's name, as chosen by the operator.
        workspace_id: The workspace to serve; empty if there is none yet.
        options: The options as text; a repeated key is a list. Not part of the repr.
        state_root: The folder with the journal, tokens and files of all workspaces on this machine, which may not exist
            yet; None if unknown. Child processes must not have access to it.
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
        """The value of *key*, the last one if it was repeated; *default* if it is missing or empty.

        Raises:
            OptionError: A file has a list for it.
        """
        value = self.options.last(key) if key in self.options else None
        if isinstance(value, list):
            raise OptionError(f"option {key!r} of {self._label} was given more than once", hint="set it once")
        return value or default

    def require(self, key: str) -> str:
        """The value of *key*.

        Raises:
            OptionError: It is missing or empty, or a file has a list for it.
        """
        value = self.get(key)
        if value is None:
            raise self._missing([key])
        return value

    def structure(self, cls: type[T]) -> T:
        """Create an instance of the attrs class *cls* from the options.

        A field of type ``BackendConfig`` is set to this config. An empty value keeps a field's default.

        Raises:
            OptionError: An option is missing or invalid. The message names the key and the expected value, but never
                the value itself.
            PluginError: A field has an unsupported type.
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

    def option_faults(self, cls: type) -> Iterator[tuple[str, OptionError]]:
        """The errors in the options of the class *cls*, each with its key, without creating an instance."""
        fields = option_fields(cls)
        given = {field.key: value for field in fields if (value := self._value(field)) not in (None, "")}
        for field in fields:
            if field.required and field.key not in given:
                yield field.key, self._missing([field.key])
            elif field.key in given:
                try:
                    self._read(given[field.key], field)
                except OptionError as exc:
                    yield field.key, exc
        names = [field.key for field in fields]
        for key in sorted(self.options.keys() - set(names)):
            yield from ((key, problem) for problem in unknown_options(GivenOptions({key: ""}), names, self._label))

    @property
    def state_dir(self) -> Path:
        """The plugin's own folder for this workspace (mode 0700), created on first access.

        Raises:
            ConfigError: There is no state folder, or it cannot be created.
        """
        if self._state_folder is None:
            raise ConfigError(f"{self._label} needs a state folder, but has none", hint="pass state_dir=")
        folder = self._state_folder()
        try:
            make_folder(folder)
            folder.chmod(0o700)
        except OSError as exc:
            raise ConfigError(
                f"{self._label} cannot create its folder {folder}: {exc.strerror}",
                hint="make the path usable, or choose another one with --state-dir",
            ) from exc
        return folder

    def child_environment(self, environ: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment for child processes: *environ* (default: this process's) without the platform's tokens.

        Removed are ``MOLECULE_WORKSPACES``, ``MOLECULE_JOURNAL_URL``, all ``MOLECULE_...TOKEN...`` variables, and any
        variable whose value is a token.
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
        return OptionError(f"{self._label} needs the option {' and '.join(map(repr, keys))}", hint=f"set it: {spelled}")

    def _read(self, value: Value, field: "OptionField") -> Any:
        try:
            return read_value(value, field.annotation)
        except WrongValueError as exc:
            raise OptionError(
                f"option {field.key!r} of {self._label} {exc}", hint=f"write it {self._spelling}{field.key}=..."
            ) from None
        except UnusableTypeError as exc:
            raise PluginError(f"field {field.key!r} of {self._label}: {exc}", hint="report it to its author") from None


@attrs.frozen(kw_only=True)
class OptionField:
    """An option of a plugin, as shown by ``molecule backends NAME``.

    Attributes:
        default: The default as text; None if there is none.
    """

    key: str
    type: str
    required: bool
    default: str | None
    help: str
    annotation: Any = attrs.field(repr=False, eq=False)


def describe(target: Any) -> tuple[OptionField, ...] | None:
    """The options of a plugin class or factory, without creating the plugin; None if a factory declares none."""
    cls = declared_class(target)
    return None if cls is None else option_fields(cls)


def declared_class(target: Any) -> type | None:
    """The attrs class that declares the options of *target*, or None."""
    if isclass(target) and attrs.has(target):
        return target
    declared = getattr(target, _DECLARED, None)
    return declared if isclass(declared) else None


def option_fields(cls: type) -> tuple[OptionField, ...]:
    """The options of an attrs class: its init fields except those of type ``BackendConfig``.

    Raises:
        PluginError: It isn't an attrs class, or an annotation cannot be resolved.
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
    """Parse ``key=value`` texts. A repeated key becomes a list.

    Raises:
        OptionError: A text has no ``=``, or no key before it.
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
        raise PluginError(
            f"{cls.__qualname__} isn't an attrs class", hint="options are the init fields of an attrs class"
        )
    try:
        hints = get_type_hints(cls, include_extras=True)
    except Exception as exc:  # annotations are plugin code
        raise PluginError(
            f"the annotations of {cls.__qualname__} cannot be read: {type(exc).__name__}: {exc}",
            hint="import the types they use outside of TYPE_CHECKING",
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
    return name in ("MOLECULE_WORKSPACES", "MOLECULE_JOURNAL_URL") or (name.startswith("MOLECULE_") and "TOKEN" in name)
