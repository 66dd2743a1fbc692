"""What the environment asks of this server beside the workspaces."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from molecule_connect import ConfigError

NO_HEARTBEAT = "MOLECULE_MCP_DISABLE_HEARTBEAT"
NO_INBOX = "MOLECULE_MCP_DISABLE_INBOX"
LEASE_SECS = "MOLECULE_INBOX_LEASE_SECS"
FILES_ROOTS = "MOLECULE_MCP_FILES_ROOTS"
HOLD, LONGEST_HOLD = 300.0, 24 * 3600.0
_YES, _NO = frozenset({"1", "true", "yes", "on"}), frozenset({"", "0", "false", "no", "off"})


@attrs.frozen(kw_only=True)
class Flags:
    """How to serve.

    Attributes:
        heartbeat: Register and beat; another program keeps the workspace online otherwise.
        reads: There is an inbox.
        hold: Seconds for which a message that was waited for is kept from other readers.
        files_roots: Folders that files may be sent from, beside the host's roots and the working directory.
    """

    heartbeat: bool = True
    reads: bool = True
    hold: float = HOLD
    state_dir: Path | None = None
    files_roots: tuple[Path, ...] = ()


def read_flags(environ: Mapping[str, str], *, state_dir: Path | None = None, files_roots: Sequence[str] = ()) -> Flags:
    """The flags in *environ*, and those of the command line, which win.

    Raises:
        ConfigError: One cannot be read.
    """
    return Flags(
        heartbeat=not _is_set(NO_HEARTBEAT, environ),
        reads=not _is_set(NO_INBOX, environ),
        hold=_seconds(LEASE_SECS, environ),
        state_dir=state_dir,
        files_roots=_folders(files_roots or environ.get(FILES_ROOTS, "").split(os.pathsep)),
    )


def _is_set(name: str, environ: Mapping[str, str]) -> bool:
    said = environ.get(name, "").strip().lower()
    if said in _YES or said in _NO:
        return said in _YES
    raise ConfigError(f"{name} is neither yes nor no", hint="set it to 1, or unset it")


def _seconds(name: str, environ: Mapping[str, str]) -> float:
    said = environ.get(name, "").strip()
    if not said:
        return HOLD
    try:
        seconds = float(said)
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds <= LONGEST_HOLD:
        raise ConfigError(f"{name} is no number of seconds from 1 to {LONGEST_HOLD:.0f}", hint="leave it out for 300")
    return seconds


def _folders(given: Sequence[str]) -> tuple[Path, ...]:
    return tuple(_folder(text) for text in given if text.strip())


def _folder(text: str) -> Path:
    try:
        folder = Path(text).expanduser().absolute()
        is_one = folder.is_dir()
    except (OSError, ValueError, RuntimeError):  # a folder that can't be looked into, a NUL, an unknown user's home
        is_one = False
    if not is_one:
        raise ConfigError(
            f"--files-root, or {FILES_ROOTS}, names {text[:200]!r}, which is not a folder",
            hint="name an existing folder; the variable separates several with a colon",
        )
    return folder
