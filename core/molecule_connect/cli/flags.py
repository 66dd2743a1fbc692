"""What the flags of ``molecule connect`` and the environment ask for: one workspace, or a list of them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from molecule_connect.config import environment
from molecule_connect.config.load import Listing, WorkspacesError, plugin_check, read_config, read_variable
from molecule_connect.config.settings import DEFAULT_BACKEND, WorkspaceSettings
from molecule_connect.errors import BackendNotFoundError, ConfigError
from molecule_connect.platform.address import parse_address
from molecule_connect.platform.tls import Trust
from molecule_connect.plugins import discovery
from molecule_connect.plugins.entry_points import BACKENDS
from molecule_connect.plugins.options import parse_options

# Flags that say of every workspace of a list what its block could say, and the key of a block.
_KEYS = {
    "backend_opts": "options",
    "middleware": "use",
    "middleware_opts": "use_options",
    **{name: name for name in ("api_url", "org_id", "backend", "strict", "interval_ms", "since_secs", "concurrency")},
    **{name: name for name in environment.TLS_VARIABLES},
    **{name: name for name in ("grace", "peer_budget", "max_cost_per_day", "journal_quota", "agent_name")},
    **{name: name for name in ("unpause", "create", "insecure")},
}
_VARIABLE_HINT = f"unset {environment.WORKSPACES_VARIABLE} to serve one workspace, or leave that out to serve all"


@attrs.frozen(kw_only=True)
class Asked:
    """What is to be served.

    Attributes:
        strict: A list with a refused block is refused as a whole.
        again: Reads the list again; None where it cannot have changed.
        once: As the flag.
    """

    listing: Listing
    strict: bool = False
    again: Callable[[], Listing] | None = None
    once: bool = False

    @property
    def settings(self) -> Sequence[WorkspaceSettings]:
        """The workspaces that can be served as far as the list shows."""
        return self.listing.settings

    def retried(self, listing: Listing, entries: Collection[int]) -> Listing:
        """The blocks *entries* of *listing*, with what they refer to as it is now."""
        return listing if listing.again is None else _ready(listing.again(entries, plugin_check()), self.once)

    @property
    def grace(self) -> float:
        """The longest grace of all."""
        return max(one.grace for one in self.settings)


def ask(flags: Mapping[str, Any], given: frozenset[str], environ: Mapping[str, str], planned: Path) -> Asked:
    """What *flags* ask for, of which *given* were written on the command line.

    Args:
        planned: The state folder, which may hold tokens that the platform handed out.

    Raises:
        ConfigError: It makes no sense.
    """
    if flags["mode"] == "push" and not flags["dry_run"]:
        raise ConfigError("--mode push is not built yet", hint="use --mode poll, which needs no public address")
    config = flags["config"]
    if config is None and not environ.get(environment.WORKSPACES_VARIABLE):
        return Asked(listing=Listing(source="", settings=(_single(flags, environ, planned),)), strict=flags["strict"])
    _refuse_single(flags, "--config" if config is not None else environment.WORKSPACES_VARIABLE)
    reading: dict[str, Any] = {"state_dir": planned, "flags": _flags_for_all(flags, given)}
    kind: dict[str, Any] = {"strict": flags["strict"], "once": flags["once"]}
    if config is None:
        listing = read_variable(environ, **reading, check=plugin_check())
        return Asked(listing=_ready(listing, flags["once"]), **kind)

    def read() -> Listing:
        return _ready(read_config(config, environ, **reading, check=plugin_check()), flags["once"])

    def again() -> Listing:
        # Opening a pipe that nobody writes to would hold up everything that is served.
        if config.exists() and not config.is_file():
            raise WorkspacesError(str(config), ["it is no file, and can be read only once"])
        return read()

    return Asked(listing=read(), again=again, **kind)


def _ready(listing: Listing, once: bool) -> Listing:
    return attrs.evolve(listing, settings=tuple(attrs.evolve(one, once=once) for one in listing.settings))


def _refuse_single(flags: Mapping[str, Any], source: str) -> None:
    """A list names its ids and tokens itself."""
    single = {"workspace_id": "a workspace id", "token": "--token", "token_file": "--token-file"}
    for name, words in single.items():
        if flags[name] is not None:
            hint = "name the workspace in the file, or leave --config out" if source == "--config" else _VARIABLE_HINT
            raise ConfigError(f"{words} beside {source}, which lists the workspaces", hint=hint)


def _flags_for_all(flags: Mapping[str, Any], given: frozenset[str]) -> dict[str, Any]:
    found = {key: flags[name] for name, key in _KEYS.items() if name in given}
    # A path in the file belongs to its folder, and one on the command line to the current one.
    for name in environment.TLS_VARIABLES:
        if name in found:
            found[name] = str(environment.path_of(found[name]).absolute())
    for name in ("options", "use_options"):
        if name in found:
            found[name] = parse_options(found[name])
    return found


def _single(flags: Mapping[str, Any], environ: Mapping[str, str], planned: Path) -> WorkspaceSettings:
    workspace_id = environment.workspace_id(flags["workspace_id"], environ)
    api_url = environment.api_url(flags["api_url"], None, environ)
    tls = environment.find_tls(flags, environ)
    Trust().check(parse_address(api_url, insecure=flags["insecure"]), tls)
    found = environment.find_token(
        flags["token"], flags["token_file"], environ, workspace_id=workspace_id, state_dir=planned
    )
    _check_backend(flags["backend"])
    interval = flags["interval_ms"]
    return WorkspaceSettings(
        workspace_id=workspace_id,
        api_url=api_url,
        org_id=flags["org_id"] or environ.get(environment.ORG_VARIABLE) or None,
        **found,
        backend=flags["backend"],
        options=parse_options(flags["backend_opts"]),
        middleware=flags["middleware"],
        middleware_options=parse_options(flags["middleware_opts"]),
        strict=flags["strict"],
        poll_interval=None if interval is None else interval / 1000,
        since_secs=float(flags["since_secs"]),
        concurrency=flags["concurrency"],
        grace=flags["grace"],
        peer_budget=flags["peer_budget"],
        max_cost_per_day=flags["max_cost_per_day"],
        journal_quota=environment.journal_quota(flags["journal_quota"], environ),
        agent_name=flags["agent_name"],
        once=flags["once"],
        unpause=flags["unpause"],
        create=flags["create"] or environment.create(environ),
        insecure=flags["insecure"],
        tls=tls,
    ).check()


def _check_backend(name: str) -> None:
    try:
        discovery.find(BACKENDS, name)
    except BackendNotFoundError as error:
        if name == DEFAULT_BACKEND:
            error.hint += or_another(error.available)
        raise


def or_another(available: Sequence[str]) -> str:
    """What to add to the advice to install the default backend; an inbox answers nobody, so it is no other one."""
    answering = [name for name in available if name != "inbox"]
    return f"; or choose an installed one with --backend {answering[0]}" if answering else ""
