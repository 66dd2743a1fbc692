"""Files and folders that only we may write; a reader finds a file whole: the old content or the new.

Another user who can put a link, a folder or a journal of his own in our place would have us overwrite other files, or
run what he wrote. So everything belongs to us (the effective user) or to root, and files are opened without following
links.
"""

import contextlib
import errno
import os
import pwd
import stat
import tempfile
from pathlib import Path

FOLDER_MODE, FILE_MODE = 0o700, 0o600


class ForeignError(PermissionError):
    """Something belongs to another user, or is a link where a file of ours should be. ``strerror`` says what."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(errno.EPERM, reason, str(path))


def replace(path: Path, data: bytes) -> None:
    """Put *data* in *path*, readable by its owner alone, on the disk before the old content goes.

    Raises:
        OSError: It could not be written; the old content is untouched, and nothing is left beside it.
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


def make_folder(path: Path) -> None:
    """Make *path* and what is missing above it, each for its owner alone whatever the umask; check who owns it.

    Raises:
        ForeignError: It belongs to another user, or leads through a link of another user.
        OSError: It can't be made.
    """
    missing = [each for each in (path, *path.parents) if not os.path.lexists(each)]
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):
            each.mkdir(mode=FOLDER_MODE)
            if each.lstat().st_mode & 0o777 != FOLDER_MODE:
                each.chmod(FOLDER_MODE)
    check_folder(path)


def check_folder(path: Path) -> os.stat_result:
    """What is known of the folder *path*, which belongs to us or to root, as does every link on the way to it.

    Raises:
        ForeignError: It doesn't.
        OSError: It isn't a folder, or can't be looked at.
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
    """What is known of the file *path*, which belongs to us or to root; None when it isn't there. Opens nothing.

    Raises:
        ForeignError: It belongs to another user, or isn't a plain file.
        OSError: It can't be looked at.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    _check(path, status)
    return status


def open_file(path: Path, flags: int, *, of_anyone: bool = False) -> int:
    """A descriptor of the file *path*, opened without following a link; created with mode 0600 if *flags* say so.

    Args:
        of_anyone: It may belong to another user: root looks into the folder of a service.

    Raises:
        ForeignError: It belongs to another user, or isn't a plain file.
        OSError: It can't be opened.
    """
    try:
        # A pipe in its place would hold us up.
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
    """The content of a file of ours; see ``open_file``.

    Raises:
        ForeignError: It belongs to another user, or isn't a plain file.
        OSError: It can't be read.
    """
    with os.fdopen(open_file(path, os.O_RDONLY, of_anyone=of_anyone), "rb") as file:
        return file.read()


def exposure(status: os.stat_result, path: Path, *, group_may_write: bool = False) -> tuple[str, str] | None:
    """How a file that holds a secret, or names commands, is open to others, and what to do about it; None: it isn't.

    Its group may read it: that is how Kubernetes and systemd hand out secrets. A pipe has no contents to protect.

    Args:
        group_may_write: For what we wrote ourselves: Kubernetes lets the group of a volume write everything in it.
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
    """What tells one file from all others of this machine, whatever its name."""
    return status.st_dev, status.st_ino


def is_at(path: Path, identity_: tuple[int, int]) -> bool:
    """Whether *path* still names the file; where that can't be found out, it does."""
    try:
        return identity(path.lstat()) == identity_
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def is_trusted(user: int) -> bool:
    """Whether what belongs to *user* is ours, or root's, who could do anything anyway."""
    return user in (0, os.geteuid())


def user_name(user: int) -> str:
    """``user alice``, or by number where the machine doesn't know a name."""
    try:
        return f"user {pwd.getpwuid(user).pw_name}"
    except KeyError:
        return f"user {user}"


def _check(path: Path, status: os.stat_result, *, of_anyone: bool = False) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ForeignError(path, "it is not a plain file")
    if not of_anyone and not is_trusted(status.st_uid):
        raise ForeignError(path, f"it belongs to {user_name(status.st_uid)}")
