"""The list of workspaces that one process serves: ``MOLECULE_WORKSPACES``, or a file of ``[[workspace]]`` blocks.

A block with a fault is refused by itself, and everything that is wrong with the list is reported at once.
"""

import contextlib
import functools
import json
import os
import string
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from molecule_connect import files
from molecule_connect.config import environment
from molecule_connect.config.keys import OWN, read_keys, stack
from molecule_connect.config.settings import Tls, WorkspaceSettings
from molecule_connect.config.state_dir import existing_state_dir, state_file
from molecule_connect.errors import ConfigError, MoleculeError
from molecule_connect.platform.address import parse_address
from molecule_connect.platform.credentials import check_token, read_token_file
from molecule_connect.platform.tls import Trust
from molecule_connect.plugins import discovery
from molecule_connect.plugins.entry_points import BACKENDS, MIDDLEWARE
from molecule_connect.plugins.wording import nearest

Check = Callable[[WorkspaceSettings], Iterable[str]]
_UNLIKE_SETTINGS = ("use", "use_options", "interval_ms", *environment.TLS_VARIABLES)


class WorkspacesError(ConfigError):
    """A list of workspaces that cannot be served. ``faults`` is everything that is wrong with it, each one line."""

    def __init__(self, source: str, faults: Iterable[str]) -> None:
        self.source = source
        self.faults = tuple(faults)
        super().__init__(f"{source}: {'; '.join(self.faults)}", hint="mend the list; nothing of it was started")


@attrs.frozen(kw_only=True)
class Refused:
    """A block of a list that can't be served.

    Attributes:
        entry: Its number in the list, from 1; 0 where there is no list.
        workspace_id: Its id; None where it has none that can be used.
        faults: Everything that is wrong with it, each with what to do about it.
    """

    entry: int
    workspace_id: str | None
    faults: tuple[str, ...]

    @property
    def label(self) -> str:
        """Which block this is."""
        if not self.entry:
            return f"workspace {self.workspace_id}"
        return f"workspace {self.entry}" + (f" ({self.workspace_id})" if self.workspace_id else "")

    @property
    def name(self) -> str:
        """The workspace, or the block where it names none."""
        return self.workspace_id or self.label

    @property
    def lines(self) -> list[str]:
        """Each fault with the block that has it."""
        return [f"{self.label}: {fault}" for fault in self.faults]


def lines_of(refused: Iterable[Refused]) -> list[str]:
    """Every fault of *refused*, in the order of the list."""
    return [line for one in sorted(refused, key=lambda one: one.entry) for line in one.lines]


@attrs.frozen(kw_only=True)
class Listing:
    """What a list says: at least one workspace that can be served as far as the list shows, and the refused blocks.

    Attributes:
        source: The file or variable; empty for a single workspace.
        again: Looks at the blocks of these numbers again, with another check: the list isn't read again, but the
            files that it names are.
    """

    source: str
    settings: tuple[WorkspaceSettings, ...]
    refused: tuple[Refused, ...] = ()
    again: "Callable[[Collection[int], Check], Listing] | None" = attrs.field(default=None, eq=False, repr=False)

    def whole(self) -> list[WorkspaceSettings]:
        """All of the list.

        Raises:
            WorkspacesError: A block is refused.
        """
        if self.refused:
            raise WorkspacesError(self.source, lines_of(self.refused))
        return list(self.settings)


def no_faults(settings: WorkspaceSettings) -> Iterable[str]:
    """The check of a reader that cares for no plugin."""
    return ()


def plugin_check() -> Check:
    """A check that backend and middleware, each by its name, are installed. Each name is looked up once."""

    @functools.cache
    def fault(group: str, name: str) -> str:
        try:
            discovery.find(group, name)
        except MoleculeError as exc:
            return _with_hint(exc)
        return ""

    def check(settings: WorkspaceSettings) -> list[str]:
        named = [(BACKENDS, settings.backend), *((MIDDLEWARE, name) for name in settings.middleware)]
        found = [fault(group, name) for group, name in named if isinstance(name, str) and name]
        return [text for text in found if text]

    return check


def load_workspaces(
    environ: Mapping[str, str],
    *,
    state_dir: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    check: Check = no_faults,
) -> list[WorkspaceSettings]:
    """The workspaces that the environment names: those of ``MOLECULE_WORKSPACES`` alone, else ``WORKSPACE_ID``.

    Args:
        state_dir: Where a token that the platform handed out may lie, which is enough; None: where it would be kept.
        flags: Keys that hold for every workspace of a list, whatever it says.
        check: What else is wrong with one of a list.

    Raises:
        WorkspacesError: Something is wrong with the list.
        ConfigError: There is no id or no token, or they cannot be used.
    """
    if state_dir is None:
        state_dir = existing_state_dir(None, environ)
    if not environ.get(environment.WORKSPACES_VARIABLE):
        return [_single(environ, state_dir)]
    return read_variable(environ, state_dir=state_dir, flags=flags, check=check).whole()


def read_variable(
    environ: Mapping[str, str],
    *,
    state_dir: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    check: Check = no_faults,
) -> Listing:
    """The list of ``MOLECULE_WORKSPACES``, which is set.

    Raises:
        WorkspacesError: It is no list, or no block of it can be served.
    """
    source, text = environment.WORKSPACES_VARIABLE, environ[environment.WORKSPACES_VARIABLE]
    try:
        entries = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as exc:
        where = f" (line {exc.lineno}, column {exc.colno})" if isinstance(exc, json.JSONDecodeError) else ""
        raise WorkspacesError(source, [f"it is not JSON{where}"]) from None
    if not isinstance(entries, list):
        raise WorkspacesError(source, ["it is not a JSON array"])
    reading = _Reading(source=source, environ=environ, state_dir=state_dir, above=dict(flags or {}), check=check)
    return reading.listing(entries, {})


def read_config(
    path: Path,
    environ: Mapping[str, str],
    *,
    state_dir: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    check: Check = no_faults,
) -> Listing:
    """The list of the TOML file *path*: ``[[workspace]]`` blocks, and ``[defaults]`` for all of them.

    Raises:
        WorkspacesError: The file as a whole can't be used, or no block of it can be served.
    """
    path = environment.path_of(str(path)).absolute()
    status, document = _toml(path)
    faults = [
        f"unknown key {key!r}{nearest(key, ('workspace', 'defaults'))}"
        for key in document
        if key not in ("workspace", "defaults")
    ]
    entries, defaults = document.get("workspace", []), document.get("defaults", {})
    if not isinstance(entries, list):
        faults.append("write each workspace under [[workspace]], in two brackets")
        entries = None
    if not isinstance(defaults, dict):
        faults.append("defaults must be a table: [defaults]")
        defaults = {}
    # Also without a token in it: it names commands that are run as this user.
    if exposed := files.exposure(status, path):
        faults.append(f"it {exposed[0]}: {exposed[1].replace('run: ', 'run ', 1)}")
    reading = _Reading(
        source=str(path),
        environ=environ,
        state_dir=state_dir,
        above=dict(flags or {}),
        check=check,
        folder=path.parent,
        faults=faults,
    )
    return reading.listing(entries, defaults)


@attrs.define(kw_only=True)
class _Reading:
    """One list while it is read."""

    source: str
    environ: Mapping[str, str]
    state_dir: Path | None
    above: dict[str, Any]
    check: Check
    folder: Path = attrs.field(factory=Path.cwd)
    trust: Trust = attrs.field(factory=Trust)
    faults: list[str] = attrs.field(factory=list)

    def listing(self, entries: Sequence[Any] | None, given: Mapping[str, Any]) -> Listing:
        below: dict[str, Any] = {
            "api_url": environment.api_url(None, None, self.environ),
            "org_id": _org_id(self.environ),
            "create": environment.create(self.environ),
            "journal_quota": environment.journal_quota(None, self.environ),
            **attrs.asdict(environment.find_tls({}, self.environ)),
        }
        defaults, faults = read_keys(given, forbidden=OWN)
        # They would change the meaning of every block.
        self.faults += [f"[defaults]: {fault}" for fault in faults]
        if entries is not None and not entries:
            self.faults.append("it names no workspace")
        entries = entries or []
        listing = self._taken(entries, range(1, len(entries) + 1), stack(below, defaults), {})
        if self.faults or not listing.settings:
            raise WorkspacesError(self.source, [*self.faults, *lines_of(listing.refused)])
        return listing

    def _taken(
        self, entries: Sequence[Any], numbers: Collection[int], below: Mapping[str, Any], first: dict[str, int]
    ) -> Listing:
        """The blocks of *entries* that have these *numbers*; *first* has the block in which each id stands first."""
        found, refused = [], []
        for number in sorted(numbers):
            name, settings, faults = self._entry(number, entries[number - 1], below)
            if name and first.setdefault(name, number) != number:
                faults.append(f"the id of workspace {first[name]} again")
            if faults or settings is None:
                refused.append(Refused(entry=number, workspace_id=name, faults=tuple(faults)))
            else:
                found.append(settings)

        def again(numbers: Collection[int], check: Check) -> Listing:
            fresh = attrs.evolve(self, check=check, trust=Trust())
            return fresh._taken(entries, numbers, below, first)

        return Listing(source=self.source, settings=tuple(found), refused=tuple(refused), again=again)

    def _entry(
        self, number: int, entry: Any, below: Mapping[str, Any]
    ) -> tuple[str | None, WorkspaceSettings | None, list[str]]:
        if not isinstance(entry, dict):
            return None, None, ["it is no table of keys"]
        own, faults = read_keys(entry)
        tables = [entry, *(value for value in entry.values() if isinstance(value, _Doubled))]
        faults += [f"the key {key!r} twice" for table in tables for key in getattr(table, "twice", ())]
        name = own.get("id")
        if "id" not in entry:
            faults.append("it has no id")
        values = stack(stack(below, own), self.above)
        token = {}
        try:
            token = self._token(values, entry, name)
        except ConfigError as exc:
            faults.append(_with_hint(exc))
        tls = Tls()
        try:
            tls = self._tls(values)
        except ConfigError as exc:
            faults.append(_with_hint(exc))
        settings = _settings({**values, "id": name or "unknown", "entry": number, "tls": tls}, token)
        try:
            self.trust.check(parse_address(settings.api_url, insecure=settings.insecure), tls)
        except ConfigError as exc:
            faults.append(_with_hint(exc))
        faults += [_with_hint(fault) for fault in settings.faults()]
        faults += self.check(settings)
        return name, settings, faults

    def _tls(self, values: Mapping[str, Any]) -> Tls:
        named = {field: values.get(field) for field in environment.TLS_VARIABLES}
        return Tls(**{field: self._file(str(name), field) if name else None for field, name in named.items()})

    def _token(self, values: Mapping[str, Any], entry: Mapping[str, Any], name: str | None) -> dict[str, Any]:
        if "token" in entry and "token_file" in entry:
            raise ConfigError("it has both token and token_file", hint="give one of them")
        if "token" in values:
            return {"token": check_token(values["token"], source=self.source), "token_source": self.source}
        if "token_file" in values:
            return {"token_file": self._token_file(values["token_file"])}
        if "token" not in entry and "token_file" not in entry and not _is_kept(self.state_dir, name):
            raise ConfigError("it has neither token nor token_file", hint="the platform hands the token out")
        return {"token_source": "the state folder"}

    def _file(self, text: str, key: str) -> Path:
        try:
            named = string.Template(text).substitute(self.environ)
        except (KeyError, ValueError):
            raise ConfigError(f"{key} names a variable that is not set", hint="write it like $NAME/file") from None
        return self.folder / environment.path_of(named)

    def _token_file(self, text: str) -> Path:
        path = self._file(text, "token_file")
        with contextlib.suppress(OSError):  # reading it says why
            # A pipe can be read once, and would wait for ever the next time.
            if path.exists() and not path.is_file():
                raise ConfigError(f"the token file {path} is no file", hint="name a file of one line")
        read_token_file(path)
        return path


def _single(environ: Mapping[str, str], state_dir: Path | None) -> WorkspaceSettings:
    name = environment.workspace_id(None, environ)
    found = environment.find_token(None, None, environ, workspace_id=name, state_dir=state_dir)
    settings = WorkspaceSettings(
        workspace_id=name,
        api_url=environment.api_url(None, None, environ),
        org_id=_org_id(environ),
        **found,
        journal_quota=environment.journal_quota(None, environ),
        create=environment.create(environ),
        agent_name=environ.get(environment.AGENT_NAME_VARIABLE) or None,
        agent_description=environ.get(environment.AGENT_DESCRIPTION_VARIABLE) or None,
        agent_skills=_listed(environ.get(environment.AGENT_SKILLS_VARIABLE, "")),
        tls=environment.find_tls({}, environ),
    ).check()
    Trust().check(parse_address(settings.api_url), settings.tls)
    return settings


class _Doubled(dict[str, Any]):
    """A JSON object that says something twice, which JSON alone would let pass with the last word."""

    twice: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) == len(keys):
        return dict(pairs)
    table = _Doubled(pairs)
    table.twice = tuple(key for key in table if keys.count(key) > 1)
    return table


def _listed(text: str) -> tuple[str, ...]:
    """The names between the commas of *text*, each once."""
    return tuple(dict.fromkeys(name for piece in text.split(",") if (name := " ".join(piece.split()))))


def _settings(values: Mapping[str, Any], token: Mapping[str, Any]) -> WorkspaceSettings:
    given = {key: value for key, value in values.items() if key not in (*OWN, *_UNLIKE_SETTINGS)}
    interval = values.get("interval_ms")
    return WorkspaceSettings(
        workspace_id=values["id"],
        middleware=values.get("use", ()),
        middleware_options=values.get("use_options", {}),
        poll_interval=None if interval is None else interval / 1000,
        patient=True,
        **given,
        **token,
    )


def _toml(path: Path) -> tuple[os.stat_result, dict[str, Any]]:
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()), tomllib.loads(file.read().decode("utf-8-sig"))
    except OSError as exc:
        raise WorkspacesError(str(path), [f"it cannot be read: {exc.strerror or type(exc).__name__}"]) from exc
    except UnicodeDecodeError:
        raise WorkspacesError(str(path), ["it is not text"]) from None
    except tomllib.TOMLDecodeError as exc:
        raise WorkspacesError(str(path), [f"it is not TOML: {exc}"]) from None
    except (ValueError, RecursionError):  # a number without end, tables without end
        raise WorkspacesError(str(path), ["it is not TOML"]) from None


def _is_kept(state_dir: Path | None, name: str | None) -> bool:
    return bool(state_dir and name and state_file(state_dir, name, ".token").exists())


def _org_id(environ: Mapping[str, str]) -> str | None:
    return environ.get(environment.ORG_VARIABLE) or None


def _with_hint(error: MoleculeError) -> str:
    return f"{error} -> {error.hint}" if error.hint else str(error)
