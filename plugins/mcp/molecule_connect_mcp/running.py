"""From the environment to a session: what can be refused is refused before anything heavy is loaded."""

import asyncio
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from molecule_connect import ConfigError, WorkspaceSettings, load_workspaces
from molecule_connect_mcp.flags import read_flags
from molecule_connect_mcp.stdio import claimed

_PLATFORM = ("PLATFORM_URL", "MOLECULE_API_URL", "MOLECULE_PLATFORM_URL")
_NEEDED = (_PLATFORM[:2], ("WORKSPACE_ID",), ("MOLECULE_WORKSPACE_TOKEN", "MOLECULE_WORKSPACE_TOKEN_FILE"))


def run(
    environ: Mapping[str, str],
    *,
    state_dir: Path | None,
    files_roots: Sequence[str] = (),
    since_secs: float | None = None,
) -> None:
    """Serve what *environ* names until the host is done.

    Raises:
        MoleculeError: Something is missing, or serving ended with it.
    """
    flags = read_flags(environ, state_dir=state_dir, files_roots=files_roots)
    workspaces = read_workspaces(environ, state_dir=state_dir, since_secs=since_secs)
    with claimed() as descriptors:
        _log_to_stderr()
        from molecule_connect_mcp.serving import serve

        asyncio.run(serve(workspaces, flags, descriptors))


def read_workspaces(
    environ: Mapping[str, str], *, state_dir: Path | None, since_secs: float | None = None
) -> Sequence[WorkspaceSettings]:
    """The workspaces that *environ* names. A platform that is out of reach does not end a host's session.

    Args:
        since_secs: How far a first start looks back, whatever a list says; None: as the list says, else 30.

    Raises:
        ConfigError: Something is missing or wrong.
    """
    is_single = not environ.get("MOLECULE_WORKSPACES")
    try:
        if is_single and not any(map(environ.get, _PLATFORM)):
            raise ConfigError("no address of the platform was given")
        workspaces = load_workspaces(environ, state_dir=state_dir)
    except ConfigError as error:
        if is_single and not all(any(map(environ.get, names)) for names in _NEEDED):
            needed = ", ".join(" or ".join(names) for names in _NEEDED)
            error.hint = f"set {needed} in the host's configuration of this server; the platform shows id and token"
        raise
    patient = [attrs.evolve(one, patient=True) for one in workspaces]
    return patient if since_secs is None else [attrs.evolve(one, since_secs=since_secs) for one in patient]


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("molecule-mcp: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("molecule_connect_mcp").setLevel(logging.INFO)
