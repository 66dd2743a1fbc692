"""Files to send with a reply: Claude writes them into a folder that is created for the message."""

import mimetypes
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from molecule_connect import FilePart, Request

MAX_FILES = 64
# A reply that can't be sent is given up after a day.
RETENTION_SECONDS = 2 * 24 * 3600.0


class Outbox:
    """Creates the outbox of each message and collects the files in it.

    Args:
        folder: Returns the folder for outboxes, or None to send no files.
    """

    def __init__(self, folder: Callable[[], Path | None]) -> None:
        self._folder = folder

    def open(self, request: Request) -> Path | None:
        """Create the outbox of *request*. None if the caller is a peer, because peers can't receive files."""
        state = self._folder() if request.caller_id is None else None
        if state is None:
            return None
        parent = state / "outbox"
        try:
            _remove_old(parent, before=time.time() - RETENTION_SECONDS)
            outbox = parent / uuid.uuid4().hex
            # With parents=True, the mode of the parent would depend on the umask.
            parent.mkdir(mode=0o700, exist_ok=True)
            outbox.mkdir(mode=0o700)
        except OSError:
            return None
        return outbox

    def collect(self, outbox: Path | None) -> tuple[FilePart, ...]:
        """Return the files in *outbox*, sorted by name, without links, folders, hidden files and empty files.

        The files are moved to a folder that Claude doesn't know, because a process that it left running could
        replace a file before it is sent.
        """
        if outbox is None:
            return ()
        try:
            folder = os.open(outbox, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return ()
        target = outbox.with_name(uuid.uuid4().hex)
        try:
            names = sorted(entry.name for entry in os.scandir(folder))
            found = [part for name in names if (part := _move(folder, name, target)) is not None]
        finally:
            os.close(folder)
        shutil.rmtree(outbox, ignore_errors=True)
        return tuple(found[:MAX_FILES])


def _move(folder: int, name: str, target: Path) -> FilePart | None:
    if name.startswith("."):
        return None
    path = target / name
    try:
        target.mkdir(mode=0o700, exist_ok=True)
        os.rename(name, path, src_dir_fd=folder)
        status = path.lstat()
    except OSError:
        # A process that Claude left running removed it.
        return None
    # A second hard link may be outside the outbox.
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_size == 0:
        return None
    kind = mimetypes.guess_type(name)[0] or ""
    return FilePart(uri="", name=name, mime_type=kind, size=status.st_size, path=path)


def _remove_old(parent: Path, *, before: float) -> None:
    if not parent.is_dir():
        return
    for entry in os.scandir(parent):
        if entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_mtime < before:
            shutil.rmtree(entry.path, ignore_errors=True)
