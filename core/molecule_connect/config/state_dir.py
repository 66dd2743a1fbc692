"""The state folder: the journal, tokens and received files of the workspaces that this machine serves."""

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
# The subfolders with the folders of plugins: <kind>/<plugin>/<workspace id>.
PLUGIN_KINDS = ("backends", "middleware")
STATE_DIR_VARIABLES = ("MOLECULE_STATE_DIR", "CONFIGS_DIR")


def home_dir() -> Path:
    """The user's home directory; the root for a user id without an account, as in some containers."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")


def resolve_state_dir(
    named: str | Path | None,
    environ: Mapping[str, str],
    *,
    saved: Path | None = None,
    home: Path | None = None,
    configs: Path = CONFIGS_DIR,
) -> Path:
    """The state folder. It is created if necessary, tested by writing, and made accessible only to its owner.

    The first of these is used, in the same order as in related clients: *named* (``--state-dir``),
    ``MOLECULE_STATE_DIR``, ``CONFIGS_DIR``, *saved* (``state_dir`` in the saved settings or in a file of workspaces),
    *configs* if it exists and is writable, ``.config/molecule/state`` and ``.molecule-workspace`` in *home*.

    Raises:
        ConfigError: A named folder can't be used, which is never skipped; a folder belongs to another user; or none of
            the default folders can be used.
    """
    return _choose(named_state_dir(named, environ, saved), _prepare, home=home, configs=configs)


def preview_state_dir(
    named: str | Path | None,
    environ: Mapping[str, str],
    *,
    saved: Path | None = None,
    home: Path | None = None,
    configs: Path = CONFIGS_DIR,
) -> Path:
    """The folder that ``resolve_state_dir`` would return, checked as far as possible without creating it.

    Raises:
        ConfigError: See ``resolve_state_dir``.
    """
    return _choose(named_state_dir(named, environ, saved), _test, home=home, configs=configs)


def _choose(
    chosen: tuple[str, Path] | None,
    prepare: Callable[[Path], None],
    *,
    home: Path | None,
    configs: Path,
) -> Path:
    if chosen is not None:
        source, folder = chosen
        try:
            prepare(folder)
        except OSError as error:
            raise ConfigError(
                f"the state folder {folder} ({source}) cannot be used: {_reason(error)}",
                hint=f"{_remedy(error, folder)}, or set {source} to another folder",
            ) from error
        return folder
    tried = []
    for folder in _defaults(home, configs):
        try:
            prepare(folder)
        except ForeignError as error:
            # Don't try the next folder: without this folder's journal, messages would be answered again.
            raise ConfigError(
                f"the state folder {folder} cannot be used: {_reason(error)}",
                hint=f"{_remedy(error, folder)}, or pass another folder with --state-dir",
            ) from error
        except OSError as error:
            tried.append(f"{folder} ({_reason(error)})")
        else:
            return folder
    raise ConfigError(
        f"no state folder can be written; tried {', '.join(tried)}",
        hint="set a writable folder with --state-dir or MOLECULE_STATE_DIR",
    )


def state_dir_problems(folder: Path) -> Iterator[tuple[str, str]]:
    """The ways in which other users could replace *folder* or its content, each with a hint.

    A parent folder is a problem if other users can write to it and it has no sticky bit. This is only a warning,
    because Kubernetes volumes look like this.
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
                "choose a folder inside one of your own with --state-dir, or run as its owner",
            )
        elif not mode & stat.S_ISVTX and (
            mode & stat.S_IWOTH or (mode & stat.S_IWGRP and not _is_own_group(status.st_gid))
        ):
            yield (
                f"others can write to {each} (mode {stat.S_IMODE(mode):04o}) and replace the state folder {folder}"
                + (" or its content" if each == folder else ""),
                f"run: chmod go-w {each}; or choose another folder with --state-dir",
            )


def existing_state_dir(
    named: str | Path | None,
    environ: Mapping[str, str],
    *,
    saved: Path | None = None,
    home: Path | None = None,
    configs: Path = CONFIGS_DIR,
) -> Path:
    """The folder to read: the named one, else the first default folder with a journal, else the first default folder.

    Raises:
        ConfigError: ``--state-dir`` is empty.
    """
    chosen = named_state_dir(named, environ, saved)
    if chosen is not None:
        return chosen[1]
    folders = list(_defaults(home, configs))
    return next((folder for folder in folders if any(folder.glob("journal*"))), folders[0])


def all_state_dirs(named: str | Path | None, environ: Mapping[str, str]) -> list[Path]:
    """The state folder, then every other folder where this user may have state.

    Raises:
        ConfigError: See ``resolve_state_dir``.
    """
    others = [Path(environ[name]).expanduser().absolute() for name in STATE_DIR_VARIABLES if environ.get(name)]
    return list(dict.fromkeys([resolve_state_dir(named, environ), *others, *_defaults(None, CONFIGS_DIR)]))


def named_state_dir(
    named: str | Path | None, environ: Mapping[str, str], saved: Path | None = None
) -> tuple[str, Path] | None:
    """The folder that the operator chose, with its source, or None. An empty variable counts as unset."""
    if named is not None:
        if not str(named).strip():
            raise ConfigError("--state-dir is empty", hint="pass a folder, or omit --state-dir")
        return "--state-dir", Path(named).expanduser().absolute()
    for variable in STATE_DIR_VARIABLES:
        if environ.get(variable):
            return variable, Path(environ[variable]).expanduser().absolute()
    return None if saved is None else ("state_dir", saved)


def is_writable_folder(folder: Path) -> bool:
    """Whether *folder* exists, and this user can create files in it."""
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def state_file(folder: Path, workspace_id: str, suffix: str) -> Path:
    """The path of ``<workspace-id><suffix>`` in *folder*, in its legacy spelling if only that exists.

    Earlier releases didn't convert ids, so the name may contain a UUID in upper case.
    """
    path = folder / f"{workspace_id}{suffix}"
    if os.path.lexists(path):
        return path
    length = len(workspace_id)
    others = (name for name in _legacy_names(folder, workspace_id) if name[length:] == suffix)
    return folder / next(others, path.name)


def rename_legacy_files(folder: Path, workspace_id: str, suffixes: Iterable[str]) -> None:
    """Rename files of earlier releases to the canonical spelling of *workspace_id*, unless the new name exists.

    Raises:
        OSError: A file can't be renamed.
    """
    length, known = len(workspace_id), set(suffixes)
    for name in _legacy_names(folder, workspace_id):
        if name[length:] in known:
            other, path = folder / name, folder / f"{workspace_id}{name[length:]}"
            # On a case-insensitive file system, both names are the same file.
            if not os.path.lexists(path) or path.samefile(other):
                other.rename(path)


def _legacy_names(folder: Path, workspace_id: str) -> list[str]:
    """The names of files that start with *workspace_id* in another spelling.

    Called at each start of a workspace, for folders with thousands of names, so it works on plain strings.
    """
    if canonical_id(workspace_id.upper()) != workspace_id:
        return []
    try:
        names = os.listdir(folder)  # noqa: PTH208 - ten times faster than paths
    except (FileNotFoundError, NotADirectoryError):
        return []
    length = len(workspace_id)
    return [name for name in names if name[:length].lower() == workspace_id and not name.startswith(workspace_id)]


def _defaults(home: Path | None, configs: Path) -> Iterator[Path]:
    home = home or home_dir()
    if is_writable_folder(configs):
        yield configs
    yield home / ".config" / "molecule" / "state"
    yield home / ".molecule-workspace"


def _prepare(folder: Path) -> None:
    make_folder(folder)
    _write(folder)
    _close_to_others(folder)


def _test(folder: Path) -> None:
    """Like ``_prepare``, but creates nothing: a missing folder is tested in its nearest existing parent."""
    parent = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if parent == folder:
        check_folder(folder)
    elif not parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{parent} is not a folder")
    try:
        _write(parent)
    except OSError as error:
        error.strerror = f"{_reason(error)} ({parent})"
        raise


def _write(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as proof:
        # A full disk still accepts an empty file.
        proof.write(b"molecule-connect\n" * 256)
        proof.flush()
        os.fsync(proof.fileno())


def _close_to_others(folder: Path) -> None:
    status = folder.stat()
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077 == 0 or mode & stat.S_ISVTX or status.st_uid != os.geteuid():
        return
    # Other programs may rely on the mode of a shared folder; the connector's files in it are 0600 anyway.
    is_ours = not any(folder.iterdir()) or any(folder.glob("journal*"))
    wanted = FOLDER_MODE if is_ours else mode & ~0o022
    if mode != wanted:
        folder.chmod(wanted)


def _is_own_group(group: int) -> bool:
    """Whether only this user is in *group*: it is root's, or the user's private group."""
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
