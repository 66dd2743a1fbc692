"""The settings of the server and its workspaces, read from the environment and the command line."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from molecule_connect import ConfigError, WorkspaceSettings, load_workspaces

NO_HEARTBEAT = "MOLECULE_MCP_DISABLE_HEARTBEAT"
NO_INBOX = "MOLECULE_MCP_DISABLE_INBOX"
LEASE_SECS = "MOLECULE_INBOX_LEASE_SECS"
FILES_ROOTS = "MOLECULE_MCP_FILES_ROOTS"
DEFAULT_CLAIM_SECONDS, MAX_CLAIM_SECONDS = 300.0, 24 * 3600.0
_TRUE, _FALSE = frozenset({"1", "true", "yes", "on"}), frozenset({"", "0", "false", "no", "off"})
_PLATFORM = ("PLATFORM_URL", "MOLECULE_API_URL", "MOLECULE_PLATFORM_URL")
_REQUIRED = (_PLATFORM[:2], ("WORKSPACE_ID",), ("MOLECULE_WORKSPACE_TOKEN", "MOLECULE_WORKSPACE_TOKEN_FILE"))

_HINT = (
    f"run 'molecule init', or set {', '.join(' or '.join(names) for names in _REQUIRED)} in the host's configuration "
    "of this server; the platform shows id and token"
)


@attrs.frozen(kw_only=True)
class ServerSettings:
    """The settings of the server.

    Attributes:
        heartbeat: Register and send heartbeats. If not, another program has to keep the workspace online.
        inbox: Read messages. If not, the server only sends.
        claim_seconds: How long a message that a tool returned is hidden from other readers.
        files_roots: Folders that files may be sent from, besides the host's roots and the working directory.
    """

    heartbeat: bool = True
    inbox: bool = True
    claim_seconds: float = DEFAULT_CLAIM_SECONDS
    state_dir: Path | None = None
    files_roots: tuple[Path, ...] = ()


def read_settings(
    environ: Mapping[str, str], *, state_dir: Path | None = None, files_roots: Sequence[str] = ()
) -> ServerSettings:
    """Read the settings from *environ*. The arguments take precedence.

    Raises:
        ConfigError: A value is invalid.
    """
    return ServerSettings(
        heartbeat=not _read_flag(NO_HEARTBEAT, environ),
        inbox=not _read_flag(NO_INBOX, environ),
        claim_seconds=_read_claim_seconds(environ),
        state_dir=state_dir,
        files_roots=_read_folders(files_roots or environ.get(FILES_ROOTS, "").split(os.pathsep)),
    )


def read_workspaces(
    environ: Mapping[str, str],
    *,
    state_dir: Path | None,
    since_secs: float | None = None,
    profile: str | None = None,
) -> Sequence[WorkspaceSettings]:
    """Read the workspaces from *environ*, and from the saved settings.

    They keep trying to register while the platform can't be reached.

    Args:
        since_secs: How far the first start looks back. It overrides the workspace list; None uses the list's value,
            or 30.
        profile: The saved settings to use.

    Raises:
        ConfigError: A value is missing or invalid.
    """
    is_single = not environ.get("MOLECULE_WORKSPACES")
    try:
        workspaces = load_workspaces(environ, state_dir=state_dir, profile=profile)
    except ConfigError as error:
        if is_single and str(error).startswith("no workspace"):
            error.hint = _HINT
        raise
    if is_single and workspaces[0].settings_file is None and not any(map(environ.get, _PLATFORM)):
        raise ConfigError("the address of the platform is missing", hint=_HINT)
    patient = [attrs.evolve(one, patient=True) for one in workspaces]
    return patient if since_secs is None else [attrs.evolve(one, since_secs=since_secs) for one in patient]


def _read_flag(name: str, environ: Mapping[str, str]) -> bool:
    value = environ.get(name, "").strip().lower()
    if value in _TRUE or value in _FALSE:
        return value in _TRUE
    raise ConfigError(f"{name} must be 1 or 0", hint="set it to 1, or unset it")


def _read_claim_seconds(environ: Mapping[str, str]) -> float:
    value = environ.get(LEASE_SECS, "").strip()
    if not value:
        return DEFAULT_CLAIM_SECONDS
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds <= MAX_CLAIM_SECONDS:
        raise ConfigError(
            f"{LEASE_SECS} must be a number of seconds from 1 to {MAX_CLAIM_SECONDS:.0f}",
            hint=f"change it, or unset it to use {DEFAULT_CLAIM_SECONDS:.0f}",
        )
    return seconds


def _read_folders(values: Sequence[str]) -> tuple[Path, ...]:
    return tuple(_read_folder(value) for value in values if value.strip())


def _read_folder(value: str) -> Path:
    try:
        folder = Path(value).expanduser().absolute()
        is_folder = folder.is_dir()
    except (OSError, ValueError, RuntimeError):  # an unreadable parent, a NUL character, an unknown user's home
        is_folder = False
    if not is_folder:
        raise ConfigError(
            f"--files-root, or {FILES_ROOTS}, names {value[:200]!r}, which is not a folder",
            hint="name an existing folder; in the variable, a colon separates several",
        )
    return folder
