"""Read a list of workspaces: ``MOLECULE_WORKSPACES``, or a file of ``[[workspace]]``.

A faulty workspace of a list doesn't affect the others. All faults of a list are reported at once.
"""

import contextlib
import glob
import json
import os
import re
import string
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from molecule_connect import files
from molecule_connect.config import values
from molecule_connect.config.secrets import SecretReader
from molecule_connect.config.settings import KEYS, SCHEMA, WorkspaceSettings
from molecule_connect.config.tokens import (
    STATE_DIR_SOURCE,
    TOKEN_FIELDS,
    check_token,
    has_kept_token,
    read_token_file,
)
from molecule_connect.config.toml_lines import TomlLines
from molecule_connect.config.values import InvalidValueError, Secret, parse_path
from molecule_connect.config.workspaces import (
    NO_LIMITS,
    Block,
    Fault,
    FleetLimits,
    JournalSettings,
    Listing,
    WorkspacesError,
    lines_of,
)
from molecule_connect.errors import ConfigError, did_you_mean

WORKSPACES_VARIABLE = "MOLECULE_WORKSPACES"
_FILE_KEYS = ("workspace", "defaults", "fleet", "journal", "include", "state_dir")
# Each options field, and the field with its plugin.
_LINE = re.compile(r"line ([0-9]+)")
_PLUGINS = {"options": "backend", "middleware_options": "middleware"}


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


def read_table(table: Mapping[str, Any], *, forbidden: Collection[str] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings in a table of keys, and the errors in it by key. No text contains a value.

    Args:
        forbidden: Fields that are only allowed in the block of a workspace.
    """
    found, faults = {}, {}
    for key, value in table.items():
        if key not in KEYS:
            faults[key] = f"unknown key {key!r}{did_you_mean(key, tuple(KEYS))}"
        elif KEYS[key] in forbidden:
            faults[key] = f"{key} belongs to one workspace"
        else:
            try:
                found[KEYS[key]] = SCHEMA[KEYS[key]].kind.from_document(value)
            except (InvalidValueError, ConfigError) as exc:
                faults[key] = f"{key}: {exc}"
    return found, faults


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both layers of settings; *above* wins. Options are merged unless *above* names another plugin."""
    whole = {**below, **above}
    for options, plugin in _PLUGINS.items():
        is_same = plugin not in above or above[plugin] == below.get(plugin, SCHEMA[plugin].default)
        if options in below or options in above:
            whole[options] = {**(below.get(options, {}) if is_same else {}), **above.get(options, {})}
    if "labels" in below and "labels" in above:
        whole["labels"] = {**below["labels"], **above["labels"]}
    return whole


@attrs.frozen(kw_only=True)
class Entry:
    """One table of a list, or an included file that can't be read.

    Attributes:
        table: The table as parsed.
        place: How messages name it: ``workspace 2``, or the file.
        file: The included file; empty for the list itself.
        folder: Paths in the table are relative to it.
        index: Its number in its file, from 0.
        lines: Finds the lines of its keys.
        faults: Why the file can't be read.
    """

    table: Any = None
    place: str
    file: str = ""
    folder: Path
    index: int = 0
    lines: TomlLines | None = None
    faults: tuple[Fault, ...] = ()

    def line(self, *path: str) -> int | None:
        """The line of the key at *path*, or else of the table; None if unknown."""
        return self.lines.workspace(self.index, *path) if self.lines is not None else None


@attrs.frozen(kw_only=True)
class WorkspaceList:
    """A list of workspaces, read but not yet checked.

    Attributes:
        source: The file or the variable.
        entries: The tables of the workspaces.
        defaults: The table of the settings that they share.
        fleet: The limits for all workspaces together.
        journal: Where the journal is shared with other machines.
        faults: Errors in the list outside of the workspaces.
        environ: Variables give defaults, and are expanded in paths.
        flags: Field name -> value for every workspace; wins over the list.
        state_dir: May contain tokens that registrations returned.
        own_state_dir: The state folder that the file names.
    """

    source: str
    entries: Sequence[Entry]
    defaults: Mapping[str, Any]
    fleet: FleetLimits = NO_LIMITS
    journal: JournalSettings = attrs.field(factory=JournalSettings)
    faults: Sequence[Fault] = ()
    environ: Mapping[str, str] = attrs.field(repr=False)
    flags: Mapping[str, Any] = attrs.field(repr=False)
    state_dir: Path | None
    own_state_dir: Path | None = None

    def blocks(self, numbers: Collection[int] | None = None, *, secrets: bool = True) -> list[Block]:
        """The workspaces with these *numbers*, or all. Files that they name are read again.

        Args:
            secrets: Read the tokens, too. Otherwise a block is only checked for naming one.

        Raises:
            ConfigError: A variable has an invalid value.
        """
        defaults, _ = read_table(self.defaults)
        below = merge(read_variables(self.environ, single=False), defaults)
        first: dict[str, Entry] = {}
        chosen: list[tuple[int, Entry, dict[str, Any], list[Fault]]] = []
        for number, entry in enumerate(self.entries, 1):
            own, faults = self._read(entry)
            name = own.get("workspace_id") if own.get("enabled", True) else None
            if name is not None and (other := first.setdefault(name, entry)) is not entry:
                faults.append(Fault(f"it has the same id as {other.place}", line=entry.line("id")))
            if numbers is None or number in numbers:
                chosen.append((number, entry, own, faults))
        tokens = _Tokens(self, secrets)
        tokens.prepare((entry, own) for _, entry, own, _ in chosen)
        return [
            self._block(number, entry, merge(merge(below, own), self.flags), faults, tokens)
            for number, entry, own, faults in chosen
        ]

    def line(self, block: Block, *path: str) -> int | None:
        """The line of the key at *path* in *block*, or else of the block; None if unknown."""
        return self.entries[block.entry - 1].line(*path)

    def check(self, listing: Listing) -> Listing:
        """Check that *listing*, which was read from this list, can be served at all.

        Raises:
            WorkspacesError: The list can't be used as a whole, or none of its workspaces can be served.
        """
        if self.faults or not listing.settings:
            faults = [*map(str, self.faults), *lines_of(listing.refused)]
            raise WorkspacesError(self.source, faults or ["each of its workspaces has enabled = false"])
        return listing

    @staticmethod
    def _read(entry: Entry) -> tuple[dict[str, Any], list[Fault]]:
        """The settings in an entry, and the faults of its keys."""
        if entry.faults:
            return {}, list(entry.faults)
        if not isinstance(entry.table, dict):
            return {}, [Fault("it is not a table of keys", line=entry.line())]
        own, faults = read_table(entry.table)
        found = [Fault(text, line=entry.line(key)) for key, text in faults.items()]
        return own, found + [Fault(text) for text in _repeated_keys(entry.table)]

    def _block(self, number: int, entry: Entry, found: dict[str, Any], faults: list[Fault], tokens: "_Tokens") -> Block:
        name = found.get("workspace_id")
        if not isinstance(entry.table, dict):
            return Block(entry=number, place=entry.place, file=entry.file, faults=tuple(faults))
        faults = list(faults)
        if "id" not in entry.table:
            faults.append(Fault("it has no id", line=entry.line()))
        token: dict[str, Any] = {}
        try:
            token = tokens.of(entry, found, name)
        except ConfigError as exc:
            faults.append(Fault.of(exc, entry.line("token_file" if "token_file" in entry.table else "token")))
        for field in SCHEMA:
            if SCHEMA[field].kind is values.PATH and isinstance(found.get(field), str) and field not in TOKEN_FIELDS:
                try:
                    found[field] = self.path(entry, found[field], field)
                except ConfigError as exc:
                    faults.append(Fault.of(exc, entry.line(SCHEMA[field].key)))
                    found[field] = None
        rest = {field: value for field, value in found.items() if field not in ("workspace_id", *TOKEN_FIELDS)}
        settings = WorkspaceSettings(
            workspace_id=name or "unknown", entry=number, place=entry.place, patient=True, **rest, **token
        )
        faults += [Fault.of(fault, entry.line(SCHEMA[field].key)) for field, fault in settings.faults()]
        return Block(
            entry=number,
            place=entry.place,
            file=entry.file,
            workspace_id=name,
            settings=settings,
            faults=tuple(faults),
        )

    def path(self, entry: Entry, text: str, key: str) -> Path:
        """The path *text* of an entry, with variables and ``~`` expanded.

        Raises:
            ConfigError: A variable in it isn't set, or no file can have this name.
        """
        return read_path(text, key, entry.folder, self.environ)


class _Tokens:
    """Finds the tokens of blocks."""

    def __init__(self, workspaces: WorkspaceList, secrets: bool) -> None:
        self._list, self._reads = workspaces, secrets
        self._readers: dict[Path, SecretReader] = {}

    def prepare(self, found: Iterable[tuple[Entry, Mapping[str, Any]]]) -> None:
        """Run the programs that print tokens."""
        wanted: dict[Path, list[Secret]] = {}
        for entry, own in found:
            if isinstance(secret := own.get("token"), Secret):
                wanted.setdefault(entry.folder, []).append(secret)
        for folder, secrets in wanted.items():
            self._readers[folder] = SecretReader(self._list.environ, folder)
            if self._reads:
                self._readers[folder].run(secrets)

    def of(self, entry: Entry, found: Mapping[str, Any], name: str | None) -> dict[str, Any]:
        """The settings for the token of one block.

        Raises:
            ConfigError: There is none, or it can't be read.
        """
        if "token" in entry.table and "token_file" in entry.table:
            raise ConfigError("it has both token and token_file", hint="remove one of them")
        token = found.get("token")
        if isinstance(token, str):
            source = self._list.source
            return {"token": check_token(token, source=source), "token_source": source}
        if isinstance(token, Secret) and token.way == "file":
            return {"token_file": self._file(entry, token.value[0])}
        if isinstance(token, Secret):
            value = {"token": self._readers[entry.folder].token(token)} if self._reads else {}
            return {**value, "token_source": token.source}
        if found.get("token_file"):
            return {"token_file": self._file(entry, found["token_file"])}
        # A value that can't be read was reported already.
        is_named = "token" in entry.table or "token_file" in entry.table
        if not is_named and self._reads and not has_kept_token(self._list.state_dir, name or ""):
            raise ConfigError("it has neither token nor token_file", hint="create a token on the platform")
        return {"token_source": STATE_DIR_SOURCE}

    def _file(self, entry: Entry, text: str) -> Path:
        path = self._list.path(entry, text, "token_file")
        if not self._reads:
            return path
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
    folder = Path.cwd()
    return WorkspaceList(
        source=WORKSPACES_VARIABLE,
        entries=[Entry(table=each, place=f"workspace {n}", folder=folder) for n, each in enumerate(entries, 1)],
        defaults={},
        faults=[] if entries else [Fault("it names no workspace")],
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
    """The list in the TOML file *path*.

    It has ``[[workspace]]`` tables, and may have ``[defaults]``, ``[fleet]`` and ``[journal]`` for all of them, and
    ``include``, which names files with more ``[[workspace]]`` tables.

    Raises:
        WorkspacesError: The file can't be read, or isn't TOML.
    """
    path = parse_path(str(path)).absolute()
    document, text, exposed = _read_toml(path)
    tables = document.get("workspace", [])
    lines = TomlLines(text, len(tables) if isinstance(tables, list) else 0)
    faults = _unknown_keys(document, lines, _FILE_KEYS)
    own_state_dir = None
    if (folder := document.get("state_dir", "")) != "":
        try:
            own_state_dir = read_path(values.TEXT.from_document(folder), "state_dir", path.parent, environ)
        except InvalidValueError as exc:
            faults.append(Fault(f"state_dir {exc}", line=lines.top("state_dir")))
        except ConfigError as exc:
            faults.append(Fault.of(exc, lines.top("state_dir")))
    defaults, fleet = document.get("defaults", {}), document.get("fleet", {})
    entries, misplaced = _entries(tables, path.parent, lines)
    faults += misplaced
    try:
        for included in _included(document.get("include", []), path, environ):
            entries += _read_included(included, path)
    except ConfigError as exc:
        faults.append(Fault.of(exc, lines.top("include")))
    if not entries and not faults:
        faults.append(Fault("it names no workspace"))
    if not isinstance(defaults, dict):
        faults.append(Fault("defaults must be a table: [defaults]", line=lines.top("defaults")))
        defaults = {}
    # Even without a token: the list contains commands that run as this user.
    if exposed:
        faults.append(Fault(exposed))
    # These errors affect every workspace.
    own = [name for name, setting in SCHEMA.items() if setting.own]
    for key, fault in read_table(defaults, forbidden=own)[1].items():
        faults.append(Fault(f"[defaults]: {fault}", line=lines.top("defaults", key)))
    limits, wrong = _read_fleet(fleet)
    faults += [Fault(f"[fleet]: {fault}", line=lines.top("fleet", *key)) for key, fault in wrong]
    journal, wrong = _read_journal(document.get("journal", {}), environ)
    faults += [Fault(f"[journal]: {fault}", line=lines.top("journal", *key)) for key, fault in wrong]
    return WorkspaceList(
        source=str(path),
        entries=entries,
        defaults={key: value for key, value in defaults.items() if KEYS.get(key) not in own},
        fleet=limits,
        journal=journal,
        faults=faults,
        environ=environ,
        flags=flags or {},
        state_dir=state_dir,
        own_state_dir=own_state_dir,
    )


def _entries(tables: Any, folder: Path, lines: TomlLines, file: str = "") -> tuple[list[Entry], list[Fault]]:
    if not isinstance(tables, list):
        fault = Fault("write each workspace under [[workspace]], in two brackets", line=lines.top("workspace"))
        return [], [fault]
    where = f" of {file}" if file else ""
    return [
        Entry(table=table, place=f"workspace {n}{where}", file=file, folder=folder, index=n - 1, lines=lines)
        for n, table in enumerate(tables, 1)
    ], []


def _unknown_keys(document: Mapping[str, Any], lines: TomlLines, known: Sequence[str]) -> list[Fault]:
    return [
        Fault(f"unknown key {key!r}{did_you_mean(key, known)}", line=lines.top(key))
        for key in document
        if key not in known
    ]


def _included(value: Any, path: Path, environ: Mapping[str, str]) -> list[Path]:
    """The files that ``include`` names: each pattern's files, sorted, and each file once.

    Raises:
        ConfigError: It isn't text or a list of texts.
    """
    patterns = [value] if isinstance(value, str) else value
    if not isinstance(patterns, list) or not all(isinstance(each, str) and each for each in patterns):
        raise ConfigError('include must be a file or a pattern like "conf.d/*.toml", or a list of them')
    found: dict[Path, None] = {}
    for pattern in patterns:
        full = str(read_path(pattern, "include", path.parent, environ))
        # A pattern may match nothing, but a file that is named must exist.
        matches = sorted(glob.glob(full)) if glob.has_magic(full) else [full]  # noqa: PTH207 - an absolute pattern
        found.update((Path(each), None) for each in matches if Path(each) != path)
    return list(found)


def _read_included(path: Path, main: Path) -> list[Entry]:
    """The workspaces of an included file, or one entry with the reason why it can't be used."""
    name = str(path.relative_to(main.parent)) if path.is_relative_to(main.parent) else str(path)
    try:
        document, text, exposed = _read_toml(path)
    except WorkspacesError as exc:
        faults = [Fault(text, line=line) for text, line in zip(exc.faults, exc.lines, strict=True)]
        return [Entry(place=name, file=name, folder=path.parent, faults=tuple(faults))]
    tables = document.get("workspace", [])
    lines = TomlLines(text, len(tables) if isinstance(tables, list) else 0)
    entries, faults = _entries(tables, path.parent, lines, name)
    faults += _unknown_keys(document, lines, ["workspace"])
    if exposed:
        faults.append(Fault(exposed))
    if faults:
        return [Entry(place=name, file=name, folder=path.parent, faults=tuple(faults))]
    return entries


def _read_fleet(table: Any) -> tuple[FleetLimits, list[tuple[tuple[str, ...], str]]]:
    """The limits in ``[fleet]``, and the errors in it, each with its key."""
    if not isinstance(table, dict):
        return FleetLimits(), [((), "it must be a table")]
    known = tuple(field.name for field in attrs.fields(FleetLimits))
    found: dict[str, Any] = {}
    faults: list[tuple[tuple[str, ...], str]] = []
    for key, value in table.items():
        if key not in known:
            faults.append(((key,), f"unknown key {key!r}{did_you_mean(key, known)}"))
            continue
        setting = SCHEMA[key]
        try:
            found[key] = setting.kind.from_document(value)
        except (InvalidValueError, ConfigError) as exc:
            faults.append(((key,), f"{key}: {exc}"))
            continue
        if setting.bounds is not None and (fault := setting.bounds.fault(found[key])):
            faults.append(((key,), f"{key} {fault}"))
    return FleetLimits(**found), faults


def _read_journal(table: Any, environ: Mapping[str, str]) -> tuple[JournalSettings, list[tuple[tuple[str, ...], str]]]:
    """The settings in ``[journal]``, and the errors in it, each with its key."""
    if not isinstance(table, dict):
        return JournalSettings(), [((), "it must be a table")]
    known = tuple(field.name for field in attrs.fields(JournalSettings))
    faults: list[tuple[tuple[str, ...], str]] = [
        ((key,), f"unknown key {key!r}{did_you_mean(key, known)}") for key in table if key not in known
    ]
    url, capacity = table.get("url", ""), table.get("capacity", 0)
    try:
        url = string.Template(values.TEXT.from_document(url)).substitute(environ)
    except InvalidValueError as exc:
        faults.append((("url",), f"url {exc}"))
    except (KeyError, ValueError):
        faults.append((("url",), "url contains a variable that is not set"))
    if not isinstance(capacity, int) or isinstance(capacity, bool) or capacity < 0:
        faults.append((("capacity",), "capacity must be a number of workspaces, or 0 for all"))
    return JournalSettings() if faults else JournalSettings(url=url, capacity=capacity), faults


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


def _read_toml(path: Path) -> tuple[dict[str, Any], str, str]:
    """The document in *path*, its text, and why others could read or change it, if they could."""
    try:
        with path.open("rb") as file:
            status, content = os.fstat(file.fileno()), file.read()
    except OSError as exc:
        raise WorkspacesError(str(path), [f"it cannot be read: {exc.strerror or type(exc).__name__}"]) from exc
    document = parse_toml(content, str(path))
    exposed = files.exposure(status, path)
    reason = f"it {exposed[0]}: {exposed[1].replace('run: ', 'run ', 1)}" if exposed else ""
    return document, content.decode("utf-8-sig").replace("\r\n", "\n"), reason


def parse_toml(content: bytes, source: str) -> dict[str, Any]:
    """The TOML document in *content*, which was read from *source*.

    Raises:
        WorkspacesError: It isn't one.
    """
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise WorkspacesError(source, ["it is not text"]) from None
    except tomllib.TOMLDecodeError as exc:
        found = _LINE.search(str(exc))
        raise WorkspacesError(
            source, [Fault(f"it is not TOML: {exc}", line=int(found[1]) if found else None)]
        ) from None
    except (ValueError, RecursionError):  # an endless number or nesting
        raise WorkspacesError(source, ["it is not TOML"]) from None
