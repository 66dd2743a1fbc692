"""Read a list of workspaces: ``MOLECULE_WORKSPACES``, or a file of ``[[workspace]]``.

A faulty workspace of a list doesn't affect the others. All faults of a list are reported at once.
"""

import contextlib
import json
import os
import string
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from molecule_connect import files
from molecule_connect.config import values
from molecule_connect.config.settings import KEYS, SCHEMA, WorkspaceSettings
from molecule_connect.config.tokens import (
    STATE_DIR_SOURCE,
    TOKEN_FIELDS,
    check_token,
    has_kept_token,
    read_token_file,
)
from molecule_connect.config.values import InvalidValueError, parse_path
from molecule_connect.errors import ConfigError, MoleculeError, did_you_mean

WORKSPACES_VARIABLE = "MOLECULE_WORKSPACES"
_FILE_KEYS = ("workspace", "defaults", "state_dir")
# Each options field, and the field with its plugin.
_PLUGINS = {"options": "backend", "middleware_options": "middleware"}


class WorkspacesError(ConfigError):
    """A list of workspaces can't be served. ``faults`` lists all errors in it, one line each."""

    def __init__(self, source: str, faults: Iterable[str]) -> None:
        self.source = source
        self.faults = tuple(faults)
        super().__init__(f"{source}: {'; '.join(self.faults)}", hint="fix the errors above; nothing was started")


@attrs.frozen(kw_only=True)
class Block:
    """A workspace of a list as it was read.

    Attributes:
        entry: Its number in the list, from 1.
        workspace_id: None if it has no valid id.
        settings: None if the block isn't a table.
        faults: All errors in it, one line each.
    """

    entry: int
    workspace_id: str | None = None
    settings: WorkspaceSettings | None = None
    faults: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Refused:
    """A workspace of a list that can't be served.

    Attributes:
        entry: Its number in the list, from 1; 0 if there is no list.
        workspace_id: None if it has no valid id.
        faults: All errors in it, one line each, with a hint.
    """

    entry: int
    workspace_id: str | None
    faults: tuple[str, ...]

    @property
    def label(self) -> str:
        """Identifies the block in messages about the list."""
        if not self.entry:
            return f"workspace {self.workspace_id}"
        return f"workspace {self.entry}" + (f" ({self.workspace_id})" if self.workspace_id else "")

    @property
    def name(self) -> str:
        """The id of the workspace, or the label if it has none."""
        return self.workspace_id or self.label

    @property
    def lines(self) -> list[str]:
        """The faults, each with the label."""
        return [f"{self.label}: {fault}" for fault in self.faults]


def lines_of(refused: Iterable[Refused]) -> list[str]:
    """The lines of all *refused*, in the order of the list."""
    return [line for one in sorted(refused, key=lambda one: one.entry) for line in one.lines]


@attrs.frozen(kw_only=True)
class Listing:
    """The workspaces to serve, and those of the list that can't be served.

    Attributes:
        source: The file or the variable; empty for a single workspace.
    """

    source: str = ""
    settings: tuple[WorkspaceSettings, ...] = ()
    refused: tuple[Refused, ...] = ()

    @classmethod
    def of(cls, source: str, blocks: Iterable[Block]) -> "Listing":
        """*blocks*, divided by whether they have faults."""
        settings: list[WorkspaceSettings] = []
        refused: list[Refused] = []
        for block in blocks:
            if block.faults or block.settings is None:
                refused.append(Refused(entry=block.entry, workspace_id=block.workspace_id, faults=block.faults))
            else:
                settings.append(block.settings)
        return cls(source=source, settings=tuple(settings), refused=tuple(refused))

    def whole(self) -> list[WorkspaceSettings]:
        """All workspaces of the list.

        Raises:
            WorkspacesError: One of them can't be served.
        """
        if self.refused:
            raise WorkspacesError(self.source, lines_of(self.refused))
        return list(self.settings)


def read_variables(environ: Mapping[str, str], *, single: bool) -> dict[str, Any]:
    """The settings in environment variables, except for the token. An empty variable counts as unset.

    Args:
        single: For a single workspace, and not for those of a list.

    Raises:
        ConfigError: A value is invalid.
    """
    found = {}
    for name, setting in SCHEMA.items():
        variable = next((variable for variable in setting.variables if environ.get(variable)), None)
        if variable is None or name in TOKEN_FIELDS or (setting.single and not single):
            continue
        try:
            found[name] = setting.kind.from_text(environ[variable])
        except (InvalidValueError, ConfigError) as exc:
            hint = getattr(exc, "hint", "") or f"correct it, or unset {variable}"
            raise ConfigError(f"{variable}: {exc}", hint=hint) from None
    return found


def read_table(table: Mapping[str, Any], *, forbidden: Collection[str] = ()) -> tuple[dict[str, Any], list[str]]:
    """The settings in a table of keys, and all errors in it. No text contains a value.

    Args:
        forbidden: Fields that are only allowed in the block of a workspace.
    """
    found, faults = {}, []
    for key, value in table.items():
        if key not in KEYS:
            faults.append(f"unknown key {key!r}{did_you_mean(key, tuple(KEYS))}")
        elif KEYS[key] in forbidden:
            faults.append(f"{key} belongs to one workspace")
        else:
            try:
                found[KEYS[key]] = SCHEMA[KEYS[key]].kind.from_document(value)
            except (InvalidValueError, ConfigError) as exc:
                faults.append(f"{key}: {exc}")
    return found, faults


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both layers of settings; *above* wins. Options are merged unless *above* names another plugin."""
    whole = {**below, **above}
    for options, plugin in _PLUGINS.items():
        is_same = plugin not in above or above[plugin] == below.get(plugin, SCHEMA[plugin].default)
        if options in below or options in above:
            whole[options] = {**(below.get(options, {}) if is_same else {}), **above.get(options, {})}
    return whole


@attrs.frozen(kw_only=True)
class WorkspaceList:
    """A list of workspaces, read but not yet checked.

    Attributes:
        source: The file or the variable.
        folder: Paths in the list are relative to it.
        entries: The tables of the workspaces.
        defaults: The table of the settings that they share.
        faults: Errors in the list outside of the workspaces.
        environ: Variables give defaults, and are expanded in paths.
        flags: Field name -> value for every workspace; wins over the list.
        state_dir: May contain tokens that registrations returned.
        own_state_dir: The state folder that the file names.
    """

    source: str
    folder: Path
    entries: Sequence[Any]
    defaults: Mapping[str, Any]
    faults: Sequence[str] = ()
    environ: Mapping[str, str] = attrs.field(repr=False)
    flags: Mapping[str, Any] = attrs.field(repr=False)
    state_dir: Path | None
    own_state_dir: Path | None = None

    def blocks(self, numbers: Collection[int] | None = None) -> list[Block]:
        """The workspaces with these *numbers*, or all. Files that they name are read again.

        Raises:
            ConfigError: A variable has an invalid value.
        """
        defaults, _ = read_table(self.defaults)
        below = merge(read_variables(self.environ, single=False), defaults)
        first: dict[str, int] = {}
        found = []
        for number, entry in enumerate(self.entries, 1):
            own, faults = read_table(entry) if isinstance(entry, dict) else ({}, ["it is not a table of keys"])
            name = own.get("workspace_id")
            is_repeated = name is not None and first.setdefault(name, number) != number
            if numbers is not None and number not in numbers:
                continue
            if not isinstance(entry, dict):
                found.append(Block(entry=number, faults=tuple(faults)))
                continue
            settings, more = self._settings(number, entry, merge(merge(below, own), self.flags))
            faults += [*_repeated_keys(entry), *more]
            if is_repeated:
                faults.append(f"it has the same id as workspace {first[str(name)]}")
            found.append(Block(entry=number, workspace_id=name, settings=settings, faults=tuple(faults)))
        return found

    def check(self, listing: Listing) -> Listing:
        """Check that *listing*, which was read from this list, can be served at all.

        Raises:
            WorkspacesError: The list can't be used as a whole, or none of its workspaces can be served.
        """
        if self.faults or not listing.settings:
            raise WorkspacesError(self.source, [*self.faults, *lines_of(listing.refused)])
        return listing

    def _settings(
        self, number: int, entry: Mapping[str, Any], found: dict[str, Any]
    ) -> tuple[WorkspaceSettings, list[str]]:
        """*found* as settings, and all errors in them."""
        faults = [] if "id" in entry else ["it has no id"]
        name = found.get("workspace_id")
        token: dict[str, Any] = {}
        try:
            token = self._token(entry, found, name)
        except ConfigError as exc:
            faults.append(with_hint(exc))
        for field in SCHEMA:
            if SCHEMA[field].kind is values.PATH and isinstance(found.get(field), str) and field not in TOKEN_FIELDS:
                try:
                    found[field] = self._path(found[field], field)
                except ConfigError as exc:
                    faults.append(with_hint(exc))
                    found[field] = None
        rest = {field: value for field, value in found.items() if field not in ("workspace_id", *TOKEN_FIELDS)}
        settings = WorkspaceSettings(workspace_id=name or "unknown", entry=number, patient=True, **rest, **token)
        return settings, faults + [with_hint(fault) for fault in settings.faults()]

    def _token(self, entry: Mapping[str, Any], found: Mapping[str, Any], name: str | None) -> dict[str, Any]:
        if "token" in entry and "token_file" in entry:
            raise ConfigError("it has both token and token_file", hint="remove one of them")
        if "token" in found:
            return {"token": check_token(found["token"], source=self.source), "token_source": self.source}
        if found.get("token_file"):
            return {"token_file": self._token_file(found["token_file"])}
        # A value that can't be read was reported already.
        if "token" not in entry and "token_file" not in entry and not has_kept_token(self.state_dir, name or ""):
            raise ConfigError("it has neither token nor token_file", hint="create a token on the platform")
        return {"token_source": STATE_DIR_SOURCE}

    def _path(self, text: str, key: str) -> Path:
        return read_path(text, key, self.folder, self.environ)

    def _token_file(self, text: str) -> Path:
        path = self._path(text, "token_file")
        with contextlib.suppress(OSError):  # read_token_file reports it
            # A pipe can be read once, and later reads would block.
            if path.exists() and not path.is_file():
                raise ConfigError(f"the token file {path} is not a regular file", hint="use a file with the token")
        read_token_file(path)
        return path


def parse_variable(
    environ: Mapping[str, str], *, flags: Mapping[str, Any] | None = None, state_dir: Path | None = None
) -> WorkspaceList:
    """The list in ``MOLECULE_WORKSPACES``, a JSON array.

    Raises:
        WorkspacesError: It isn't one.
    """
    try:
        entries = json.loads(environ[WORKSPACES_VARIABLE], object_pairs_hook=_object)
    except (ValueError, RecursionError) as exc:
        where = f" (line {exc.lineno}, column {exc.colno})" if isinstance(exc, json.JSONDecodeError) else ""
        raise WorkspacesError(WORKSPACES_VARIABLE, [f"it is not JSON{where}"]) from None
    if not isinstance(entries, list):
        raise WorkspacesError(WORKSPACES_VARIABLE, ["it is not a JSON array"])
    return WorkspaceList(
        source=WORKSPACES_VARIABLE,
        folder=Path.cwd(),
        entries=entries,
        defaults={},
        faults=[] if entries else ["it names no workspace"],
        environ=environ,
        flags=flags or {},
        state_dir=state_dir,
    )


def parse_file(
    path: Path,
    environ: Mapping[str, str],
    *,
    flags: Mapping[str, Any] | None = None,
    state_dir: Path | None = None,
) -> WorkspaceList:
    """The list in the TOML file *path*: ``[[workspace]]`` tables, and ``[defaults]`` for all of them.

    Raises:
        WorkspacesError: The file can't be read, or isn't TOML.
    """
    path = parse_path(str(path)).absolute()
    status, document = _read_toml(path)
    own_state_dir = None
    faults = [f"unknown key {key!r}{did_you_mean(key, _FILE_KEYS)}" for key in document if key not in _FILE_KEYS]
    if (folder := document.get("state_dir", "")) != "":
        try:
            own_state_dir = read_path(values.TEXT.from_document(folder), "state_dir", path.parent, environ)
        except InvalidValueError as exc:
            faults.append(f"state_dir {exc}")
        except ConfigError as exc:
            faults.append(str(exc))
    entries, defaults = document.get("workspace", []), document.get("defaults", {})
    if not isinstance(entries, list):
        faults.append("write each workspace under [[workspace]], in two brackets")
        entries = []
    elif not entries:
        faults.append("it names no workspace")
    if not isinstance(defaults, dict):
        faults.append("defaults must be a table: [defaults]")
        defaults = {}
    # Even without a token: the list contains commands that run as this user.
    if exposed := files.exposure(status, path):
        faults.append(f"it {exposed[0]}: {exposed[1].replace('run: ', 'run ', 1)}")
    # These errors affect every workspace.
    own = [name for name, setting in SCHEMA.items() if setting.own]
    faults += [f"[defaults]: {fault}" for fault in read_table(defaults, forbidden=own)[1]]
    return WorkspaceList(
        source=str(path),
        folder=path.parent,
        entries=entries,
        defaults={key: value for key, value in defaults.items() if KEYS.get(key) not in own},
        faults=faults,
        environ=environ,
        flags=flags or {},
        state_dir=state_dir,
        own_state_dir=own_state_dir,
    )


def read_path(text: str, key: str, folder: Path, environ: Mapping[str, str]) -> Path:
    """The path *text* of a document in *folder*. Variables in it are expanded; ``$$`` is a dollar sign.

    Raises:
        ConfigError: A variable isn't set, or it can't be a path.
    """
    try:
        named = string.Template(text).substitute(environ)
    except (KeyError, ValueError):
        raise ConfigError(f"{key} contains a variable that is not set", hint="write it like $NAME/file") from None
    return folder / parse_path(named)


def with_hint(error: MoleculeError) -> str:
    """The error and what to do about it, on one line."""
    return f"{error} -> {error.hint}" if error.hint else str(error)


class _RepeatedKeys(dict[str, Any]):
    """A JSON object has a key twice. The json module would silently keep the last value."""

    repeated: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) == len(keys):
        return dict(pairs)
    table = _RepeatedKeys(pairs)
    table.repeated = tuple(key for key in table if keys.count(key) > 1)
    return table


def _repeated_keys(entry: Mapping[str, Any]) -> list[str]:
    tables = [entry, *entry.values()]
    repeated = [key for table in tables if isinstance(table, _RepeatedKeys) for key in table.repeated]
    return [f"the key {key!r} twice" for key in repeated]


def _read_toml(path: Path) -> tuple[os.stat_result, dict[str, Any]]:
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()), parse_toml(file.read(), str(path))
    except OSError as exc:
        raise WorkspacesError(str(path), [f"it cannot be read: {exc.strerror or type(exc).__name__}"]) from exc


def parse_toml(content: bytes, source: str) -> dict[str, Any]:
    """The TOML document *content*.

    Raises:
        WorkspacesError: It isn't TOML.
    """
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise WorkspacesError(source, ["it is not text"]) from None
    except tomllib.TOMLDecodeError as exc:
        raise WorkspacesError(source, [f"it is not TOML: {exc}"]) from None
    except (ValueError, RecursionError):  # an endless number or nesting
        raise WorkspacesError(source, ["it is not TOML"]) from None
