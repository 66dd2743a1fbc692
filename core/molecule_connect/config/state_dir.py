"""Where this machine keeps what it knows of the workspaces it serves: one resolver for all commands."""

import errno
import grp
import os
import pwd
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from molecule_connect.errors import ConfigError
from molecule_connect.files import (
    FOLDER_MODE,
    ForeignError,
    check_folder,
    is_trusted,
    make_folder,
    user_name,
)
from molecule_connect.models import canonical_id

CONFIGS_DIR = Path("/configs")
_VARIABLES = ("MOLECULE_STATE_DIR", "CONFIGS_DIR")


def home_dir() -> Path:
    """The user's home directory; the root for a user id without an account, as in some containers."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")


def resolve_state_dir(
    named: str | Path | None, environ: Mapping[str, str], *, home: Path | None = None, configs: Path = CONFIGS_DIR
) -> Path:
    """The state folder, existing, proved by writing, readable by its owner alone.

    The order is that of the neighbouring clients: *named* (``--state-dir``), ``MOLECULE_STATE_DIR``, ``CONFIGS_DIR``,
    *configs* where it exists and can be written, ``.config/molecule/state`` and ``.molecule-workspace`` in *home*.

    Raises:
        ConfigError: A folder that was named cannot be used (it is never passed over), it belongs to another user, or
            none of the others can be used.
    """
    return _choose(named, environ, _prove, home=home, configs=configs)


def preview_state_dir(
    named: str | Path | None, environ: Mapping[str, str], *, home: Path | None = None, configs: Path = CONFIGS_DIR
) -> Path:
    """The folder that ``resolve_state_dir`` would give, proved as far as that is possible without making it.

    Raises:
        ConfigError: As ``resolve_state_dir`` does.
    """
    return _choose(named, environ, _try, home=home, configs=configs)


def _choose(
    named: str | Path | None,
    environ: Mapping[str, str],
    prove: Callable[[Path], None],
    *,
    home: Path | None,
    configs: Path,
) -> Path:
    chosen = named_state_dir(named, environ)
    if chosen is not None:
        source, folder = chosen
        try:
            prove(folder)
        except OSError as error:
            raise ConfigError(
                f"the state folder {folder} ({source}) cannot be used: {_reason(error)}",
                hint=f"{_remedy(error, folder)}, or point {source} to another folder",
            ) from error
        return folder
    tried = []
    for folder in _unnamed(home, configs):
        try:
            prove(folder)
        except ForeignError as error:
            # Another one would be empty, and what is in this one would be answered again.
            raise ConfigError(
                f"the state folder {folder} cannot be used: {_reason(error)}",
                hint=f"{_remedy(error, folder)}, or name another folder with --state-dir",
            ) from error
        except OSError as error:
            tried.append(f"{folder} ({_reason(error)})")
        else:
            return folder
    raise ConfigError(
        f"no state folder can be written; tried {', '.join(tried)}",
        hint="name a writable folder with --state-dir or MOLECULE_STATE_DIR",
    )


def state_dir_problems(folder: Path) -> Iterator[tuple[str, str]]:
    """What lets other users replace *folder* or what is in it, and what to do about each.

    That is a folder on the way to it that others can write, unless the sticky bit keeps them from renaming what isn't
    theirs. Volumes of Kubernetes look like this, so it is no more than a warning.
    """
    for each in dict.fromkeys((folder, *folder.parents, *folder.resolve().parents)):
        try:
            status = each.stat()
        except OSError:
            continue
        mode = status.st_mode
        if not is_trusted(status.st_uid):
            yield (
                f"{each} belongs to {user_name(status.st_uid)}, who could replace the state folder {folder}",
                "choose a folder below one of your own with --state-dir, or run as its owner",
            )
        elif not mode & stat.S_ISVTX and (
            mode & stat.S_IWOTH or (mode & stat.S_IWGRP and not _is_own_group(status.st_gid))
        ):
            yield (
                f"others can write to {each} (mode {stat.S_IMODE(mode):04o}), and so replace the state folder {folder}"
                + (" or what is in it" if each == folder else ""),
                f"run: chmod go-w {each}; or choose another folder with --state-dir",
            )


def existing_state_dir(
    named: str | Path | None, environ: Mapping[str, str], *, home: Path | None = None, configs: Path = CONFIGS_DIR
) -> Path:
    """The folder to look into, without touching it: the named one, else the first that holds a journal, else the first.

    Raises:
        ConfigError: ``--state-dir`` is empty.
    """
    chosen = named_state_dir(named, environ)
    if chosen is not None:
        return chosen[1]
    folders = list(_unnamed(home, configs))
    return next((folder for folder in folders if any(folder.glob("journal*"))), folders[0])


def all_state_dirs(
    named: str | Path | None, environ: Mapping[str, str], *, home: Path | None = None, configs: Path = CONFIGS_DIR
) -> list[Path]:
    """The state folder, as ``resolve_state_dir`` finds it, then every other folder where this user's state may be.

    Raises:
        ConfigError: As ``resolve_state_dir`` does.
    """
    others = [Path(environ[name]).expanduser().absolute() for name in _VARIABLES if environ.get(name)]
    folders = [resolve_state_dir(named, environ, home=home, configs=configs), *others, *_unnamed(home, configs)]
    return list(dict.fromkeys(folders))


def named_state_dir(named: str | Path | None, environ: Mapping[str, str]) -> tuple[str, Path] | None:
    """What the operator chose and with what words, or None. An empty variable counts as unset."""
    if named is not None:
        if not str(named).strip():
            raise ConfigError("--state-dir is empty", hint="name a folder, or leave --state-dir out")
        return "--state-dir", Path(named).expanduser().absolute()
    for variable in _VARIABLES:
        if environ.get(variable):
            return variable, Path(environ[variable]).expanduser().absolute()
    return None


def state_file(folder: Path, workspace_id: str, suffix: str) -> Path:
    """``<workspace-id><suffix>`` in *folder*; an earlier release's where that alone exists.

    Earlier releases spelled an id as it was given, so a UUID may stand in capitals there.
    """
    path = folder / f"{workspace_id}{suffix}"
    if os.path.lexists(path):
        return path
    length = len(workspace_id)
    others = (name for name in _otherwise_spelled(folder, workspace_id) if name[length:] == suffix)
    return folder / next(others, path.name)


def rename_legacy_files(folder: Path, workspace_id: str, suffixes: Iterable[str]) -> None:
    """Give the files of an earlier release the canonical spelling of *workspace_id*; one that is taken is left alone.

    Raises:
        OSError: One can't be renamed.
    """
    length, known = len(workspace_id), set(suffixes)
    for name in _otherwise_spelled(folder, workspace_id):
        if name[length:] in known:
            other, path = folder / name, folder / f"{workspace_id}{name[length:]}"
            # On a file system that ignores case both names are one file.
            if not os.path.lexists(path) or path.samefile(other):
                other.rename(path)


def _otherwise_spelled(folder: Path, workspace_id: str) -> list[str]:
    """The names in *folder* that begin with *workspace_id* in another spelling.

    Every start of a workspace asks, and a folder of 1,000 workspaces holds thousands of names: strings are enough.
    """
    if canonical_id(workspace_id.upper()) != workspace_id:
        return []
    try:
        names = os.listdir(folder)  # noqa: PTH208 - a path for each name costs ten times as much
    except (FileNotFoundError, NotADirectoryError):
        return []
    length = len(workspace_id)
    return [name for name in names if name[:length].lower() == workspace_id and not name.startswith(workspace_id)]


def _unnamed(home: Path | None, configs: Path) -> Iterator[Path]:
    home = home or home_dir()
    if configs.is_dir() and os.access(configs, os.W_OK | os.X_OK):
        yield configs
    yield home / ".config" / "molecule" / "state"
    yield home / ".molecule-workspace"


def _prove(folder: Path) -> None:
    make_folder(folder)
    _write(folder)
    _close_to_others(folder)


def _try(folder: Path) -> None:
    """As ``_prove``, without leaving a trace: where the folder is missing, in what would hold it."""
    ground = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if ground == folder:
        check_folder(folder)
    elif not ground.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{ground} is not a folder")
    try:
        _write(ground)
    except OSError as error:
        error.strerror = f"{_reason(error)} ({ground})"
        raise


def _write(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as proof:
        # A full disk takes the name of a file, but not its contents.
        proof.write(b"molecule-connect\n" * 256)
        proof.flush()
        os.fsync(proof.fileno())


def _close_to_others(folder: Path) -> None:
    status = folder.stat()
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077 == 0 or mode & stat.S_ISVTX or status.st_uid != os.geteuid():
        return
    # What others read in a folder that other programs use too is theirs to read: our files in it are 0600 anyway.
    is_ours = not any(folder.iterdir()) or any(folder.glob("journal*"))
    wanted = FOLDER_MODE if is_ours else mode & ~0o022
    if mode != wanted:
        folder.chmod(wanted)


def _is_own_group(group: int) -> bool:
    """Whether nobody else is in *group*: it is root's, or has our name, as the private groups of users have."""
    if group == 0:
        return True
    try:
        name, found = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(group)
    except KeyError:
        return False
    return found.gr_name == name and set(found.gr_mem) <= {name}


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _remedy(error: OSError, folder: Path) -> str:
    if isinstance(error, ForeignError):
        return f"give it to this user (chown -R {user_name(os.geteuid()).removeprefix('user ')} {folder})"
    return "free disk space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it writable for this user"
