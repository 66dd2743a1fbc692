"""Where this machine keeps what it knows of the workspaces it serves: one resolver for all commands."""

import errno
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from molecule_connect.errors import ConfigError
from molecule_connect.settings import canonical_id

CONFIGS = Path("/configs")
_VARIABLES = ("MOLECULE_STATE_DIR", "CONFIGS_DIR")


def resolve(named: str | Path | None, environ: Mapping[str, str], *, home: Path, configs: Path = CONFIGS) -> Path:
    """The state folder, existing, proved by writing, readable by its owner alone.

    The order is that of the neighbouring clients: *named* (``--state-dir``), ``MOLECULE_STATE_DIR``, ``CONFIGS_DIR``,
    *configs* where it exists and can be written, ``.config/molecule/state`` and ``.molecule-workspace`` in *home*.

    Raises:
        ConfigError: A folder that was named cannot be used (it is never passed over), or none of the others can.
    """
    chosen = named_folder(named, environ)
    if chosen is not None:
        source, folder = chosen
        try:
            return _prove(folder)
        except OSError as error:
            raise ConfigError(
                f"the state folder {folder} ({source}) cannot be used: {_reason(error)}",
                hint=f"{_remedy(error)}, or point {source} to another folder",
            ) from error
    tried = []
    for folder in _unnamed(home, configs):
        try:
            return _prove(folder)
        except OSError as error:
            tried.append(f"{folder} ({_reason(error)})")
    raise ConfigError(
        f"no state folder can be written; tried {', '.join(tried)}",
        hint="name a writable folder with --state-dir or MOLECULE_STATE_DIR",
    )


def preview(named: str | Path | None, environ: Mapping[str, str], *, home: Path, configs: Path = CONFIGS) -> Path:
    """The folder that ``resolve`` would try first, without touching it.

    Raises:
        ConfigError: A folder that was named lies where none can be made.
    """
    chosen = named_folder(named, environ)
    if chosen is None:
        return next(_unnamed(home, configs))
    source, folder = chosen
    ground = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not ground.is_dir() or not os.access(ground, os.W_OK | os.X_OK):
        raise ConfigError(
            f"the state folder {folder} ({source}) cannot be used: {ground} is not a folder that can be written",
            hint=f"make it writable for this user, or point {source} to another folder",
        )
    return folder


def existing(named: str | Path | None, environ: Mapping[str, str], *, home: Path, configs: Path = CONFIGS) -> Path:
    """The folder to look into, without touching it: the named one, else the first that holds a journal, else the first.

    Raises:
        ConfigError: ``--state-dir`` is empty.
    """
    chosen = named_folder(named, environ)
    if chosen is not None:
        return chosen[1]
    folders = list(_unnamed(home, configs))
    return next((folder for folder in folders if any(folder.glob("journal*"))), folders[0])


def everywhere(
    named: str | Path | None, environ: Mapping[str, str], *, home: Path, configs: Path = CONFIGS
) -> list[Path]:
    """The state folder, as ``resolve`` finds it, then every other folder where this user's state may be.

    Raises:
        ConfigError: As ``resolve`` does.
    """
    others = [Path(environ[name]).expanduser().absolute() for name in _VARIABLES if environ.get(name)]
    folders = [resolve(named, environ, home=home, configs=configs), *others, *_unnamed(home, configs)]
    return list(dict.fromkeys(folders))


def named_folder(named: str | Path | None, environ: Mapping[str, str]) -> tuple[str, Path] | None:
    """What the operator chose and with what words, or None. An empty variable counts as unset."""
    if named is not None:
        if not str(named).strip():
            raise ConfigError("--state-dir is empty", hint="name a folder, or leave --state-dir out")
        return "--state-dir", Path(named).expanduser().absolute()
    for variable in _VARIABLES:
        if environ.get(variable):
            return variable, Path(environ[variable]).expanduser().absolute()
    return None


def file_of(folder: Path, workspace_id: str, suffix: str) -> Path:
    """``<workspace-id><suffix>`` in *folder*; an earlier release's where that alone exists.

    Earlier releases spelled an id as it was given, so a UUID may stand in capitals there.
    """
    path = folder / f"{workspace_id}{suffix}"
    if os.path.lexists(path):
        return path
    return next(_otherwise_spelled(folder, workspace_id, suffix), path)


def adopt(folder: Path, workspace_id: str, suffixes: Iterable[str]) -> None:
    """Give the files of an earlier release the canonical spelling of *workspace_id*; one that is taken is left alone.

    Raises:
        OSError: One can't be renamed.
    """
    for suffix in suffixes:
        path = folder / f"{workspace_id}{suffix}"
        for other in list(_otherwise_spelled(folder, workspace_id, suffix)):
            # On a file system that ignores case both names are one file.
            if not os.path.lexists(path) or path.samefile(other):
                other.rename(path)


def _otherwise_spelled(folder: Path, workspace_id: str, suffix: str) -> Iterator[Path]:
    if canonical_id(workspace_id.upper()) != workspace_id or not folder.is_dir():
        return
    length = len(workspace_id)
    for entry in folder.iterdir():
        written = entry.name[:length]
        if written != workspace_id and entry.name[length:] == suffix and written.lower() == workspace_id:
            yield entry


def _unnamed(home: Path, configs: Path) -> Iterator[Path]:
    if configs.is_dir() and os.access(configs, os.W_OK | os.X_OK):
        yield configs
    yield home / ".config" / "molecule" / "state"
    yield home / ".molecule-workspace"


def _prove(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as proof:
        # A full disk takes the name of a file, but not its contents.
        proof.write(b"molecule-connect\n" * 256)
        proof.flush()
        os.fsync(proof.fileno())
    _close_to_others(folder)
    return folder


def _close_to_others(folder: Path) -> None:
    status = folder.stat()
    if stat.S_IMODE(status.st_mode) & 0o077 == 0 or status.st_uid != _user():
        return
    # Closing somebody's /tmp or a shared folder would break other programs; our files in it are 0600 anyway.
    is_ours = not any(folder.iterdir()) or any(folder.glob("journal*"))
    if is_ours and not status.st_mode & stat.S_ISVTX:
        folder.chmod(0o700)


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _remedy(error: OSError) -> str:
    return "free disk space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it writable for this user"
