"""Files that only their owner can write, and the names of files from messages.

A link, folder or journal that another user planted could make this process overwrite other files or run that user's
commands. So each file and folder has to belong to the effective user or to root, and links are not followed.
"""

import base64
import contextlib
import errno
import mimetypes
import os
import pwd
import re
import stat
import tempfile
from pathlib import Path
from urllib.parse import unquote_to_bytes

FOLDER_MODE, FILE_MODE = 0o700, 0o600
MAX_NAME_LENGTH = 100
_MAX_EXTENSION_LENGTH = 16
_UNSAFE_CHARACTERS = re.compile(r"[^A-Za-z0-9._-]")
_FILE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_URL_SAFE_TO_STANDARD = str.maketrans("-_", "+/")
# Address prefix of a file that was uploaded to the platform.
PENDING = "platform-pending:"
# Address prefix of a file inside the message itself, and of its id in the journal. No upload has an id like that.
INLINE, INLINE_ID = "data:", "inline:"


class ForeignError(PermissionError):
    """A file or folder that belongs to another user, or a link in place of a file. ``strerror`` has the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(errno.EPERM, reason, str(path))


def replace(path: Path, data: bytes) -> None:
    """Replace the content of *path* atomically. Only the owner can read the file.

    Raises:
        OSError: Writing failed. The old content is unchanged and no temporary file is left.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def rename_new(path: Path, target: Path) -> None:
    """Give the complete file *path* the name *target*, which must be new.

    Raises:
        FileExistsError: *target* exists.
        OSError: It can't be created.
    """
    try:
        # A link never replaces another file.
        target.hardlink_to(path)
        path.unlink()
    except FileExistsError:
        raise
    except OSError:  # a file system without links, such as exFAT
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        path.rename(target)


def make_folder(path: Path) -> None:
    """Create *path* and its missing parents with mode 0700, regardless of the umask, and check its owner.

    Raises:
        ForeignError: *path*, or a link on the way to it, belongs to another user.
        OSError: It can't be created.
    """
    missing = [each for each in (path, *path.parents) if not os.path.lexists(each)]
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):
            each.mkdir(mode=FOLDER_MODE)
            if each.lstat().st_mode & 0o777 != FOLDER_MODE:
                each.chmod(FOLDER_MODE)
    check_folder(path)


def check_folder(path: Path) -> os.stat_result:
    """Check that the folder *path* and each link on the way to it belong to this user or to root. Return its status.

    Raises:
        ForeignError: One of them belongs to another user.
        OSError: It isn't a folder, or can't be read.
    """
    for each in (*reversed(path.parents), path):
        status = each.lstat()
        if stat.S_ISLNK(status.st_mode) and not is_trusted(status.st_uid):
            raise ForeignError(each, f"{each} is a link of {user_name(status.st_uid)}")
    status = path.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    if not is_trusted(status.st_uid):
        raise ForeignError(path, f"it belongs to {user_name(status.st_uid)}")
    return status


def check_file(path: Path) -> os.stat_result | None:
    """Check, without opening it, that the file *path* belongs to this user or to root. Return its status.

    Returns None if the file doesn't exist.

    Raises:
        ForeignError: It belongs to another user, or isn't a plain file.
        OSError: It can't be read.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    _check(path, status)
    return status


def open_file(path: Path, flags: int, *, of_anyone: bool = False) -> int:
    """Open the file *path* without following a link and return a descriptor. ``O_CREAT`` creates it with mode 0600.

    Args:
        of_anyone: Accept a file of another user, for root reading the folder of a service.

    Raises:
        ForeignError: It belongs to another user, or isn't a plain file.
        OSError: It can't be opened.
    """
    try:
        # Without O_NONBLOCK, opening a pipe would block.
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, FILE_MODE)
    except OSError as exc:
        if exc.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO):
            raise ForeignError(path, "it is a link or a pipe, not a plain file") from exc
        raise
    try:
        _check(path, os.fstat(descriptor), of_anyone=of_anyone)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read(path: Path, *, of_anyone: bool = False) -> bytes:
    """Return the content of a file; see ``open_file``.

    Raises:
        ForeignError: It belongs to another user, or isn't a plain file.
        OSError: It can't be read.
    """
    with os.fdopen(open_file(path, os.O_RDONLY, of_anyone=of_anyone), "rb") as file:
        return file.read()


def exposure(status: os.stat_result, path: Path, *, group_may_write: bool = False) -> tuple[str, str] | None:
    """Return why other users can read or change a file with secrets or commands, and the fix; None if they can't.

    The group may read it, because Kubernetes and systemd hand out secrets that way. Only plain files are checked.

    Args:
        group_may_write: Accept group write access, which Kubernetes sets on all files of a volume.
    """
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        return None
    if mode & (stat.S_IROTH | stat.S_IWOTH | (0 if group_may_write else stat.S_IWGRP)):
        return f"is open to others (mode {mode:04o})", f"run: chmod 600 {path}"
    if not is_trusted(status.st_uid):
        owner, own = user_name(status.st_uid), user_name(os.geteuid()).removeprefix("user ")
        return f"belongs to {owner}", f"run: chown {own} {path}; or give it to root, readable by your group"
    return None


def identity(status: os.stat_result) -> tuple[int, int]:
    """Return device and inode, which identify a file under any name."""
    return status.st_dev, status.st_ino


def is_at(path: Path, identity_: tuple[int, int]) -> bool:
    """Whether *path* still names this file. True if that can't be determined."""
    try:
        return identity(os.lstat(path)) == identity_
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def is_trusted(user: int) -> bool:
    """Whether *user* is the effective user or root, who has full access in any case."""
    return user in (0, os.geteuid())


def user_name(user: int) -> str:
    """Return ``user alice``, or the user id if it has no name on this machine."""
    try:
        return f"user {pwd.getpwuid(user).pw_name}"
    except KeyError:
        return f"user {user}"


def files_folder(state_folder: Path, workspace_id: str) -> Path:
    """Return the folder for the files of one workspace's chat."""
    return state_folder / workspace_id / "files"


def safe_name(name: str) -> str:
    """Return *name* as the platform would store it (contract 2.12): base name, safe characters, at most 100 of them.

    A name that is cut keeps its extension if that has at most 16 characters including the dot.
    """
    plain = _UNSAFE_CHARACTERS.sub("_", name.rpartition("/")[2])
    if len(plain) > MAX_NAME_LENGTH:
        _, dot, extension = plain.rpartition(".")
        kept = dot + extension if dot and len(dot + extension) <= _MAX_EXTENSION_LENGTH else ""
        plain = plain[: MAX_NAME_LENGTH - len(kept)] + kept
    return plain if plain.strip(".") or len(plain) > 2 else "file"


def pending_uri(workspace_id: str, file_id: str) -> str:
    """Return the address that the platform gives to an upload in messages."""
    return f"{PENDING}{workspace_id}/{file_id}"


def pending_id(uri: str) -> str | None:
    """Return the id of the upload that *uri* names, or None. The workspace id in it is not checked."""
    workspace_id, slash, file_id = uri.removeprefix(PENDING).partition("/")
    is_one = uri.startswith(PENDING) and bool(workspace_id and slash and _FILE_ID.fullmatch(file_id))
    return file_id if is_one and file_id.strip(".") else None


def inline_id(row_id: str, number: int) -> str:
    """Return the journal's id for the inline file in part *number* of the row *row_id*."""
    return f"{INLINE_ID}{number}:{row_id}"


def is_file(path: Path) -> bool:
    """Whether *path* is a plain file. False for a path that the system rejects, such as one that is too long."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def type_by_name(name: str) -> str:
    """Return the MIME type for the extension of *name*, or ""."""
    # mimetypes parses its argument as a URL, and since Python 3.13 raises ValueError for some names.
    return mimetypes.guess_type(safe_name(name))[0] or ""


def inline_bytes(uri: str) -> bytes:
    """Return the content of a ``data:`` URI.

    Raises:
        ValueError: It is malformed.
    """
    head, comma, body = uri.partition(",")
    if not comma:
        raise ValueError("it has no data")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(body)
    plain = "".join(body.split()).translate(_URL_SAFE_TO_STANDARD).rstrip("=")
    return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)


def _check(path: Path, status: os.stat_result, *, of_anyone: bool = False) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ForeignError(path, "it is not a plain file")
    if not of_anyone and not is_trusted(status.st_uid):
        raise ForeignError(path, f"it belongs to {user_name(status.st_uid)}")
