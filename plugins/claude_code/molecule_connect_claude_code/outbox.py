"""Files that Claude sends along with an answer: whatever it leaves in a folder of that one message."""

import mimetypes
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from molecule_connect import FilePart, Request

MOST_FILES = 64
# An answer is given up after a day; its files are not needed longer.
KEPT_SECONDS = 2 * 24 * 3600.0


class Outbox:
    """Folders for answers; *folder* returns where they lie, or None: then nothing is sent along."""

    def __init__(self, folder: Callable[[], Path | None]) -> None:
        self._folder = folder

    def open(self, request: Request) -> Path | None:
        """A new folder for the answer to *request*; None for a peer, who cannot be sent files."""
        state = self._folder() if request.caller_id is None else None
        if state is None:
            return None
        place = state / "outbox"
        try:
            _sweep(place, before=time.time() - KEPT_SECONDS)
            opened = place / uuid.uuid4().hex
            # With parents=True, the one above would be as open as the umask lets it be.
            place.mkdir(mode=0o700, exist_ok=True)
            opened.mkdir(mode=0o700)
        except OSError:
            return None
        return opened

    def take(self, opened: Path | None) -> tuple[FilePart, ...]:
        """The files that were left in *opened*, by name: no links, no folders, nothing hidden or empty.

        They are moved to a folder that Claude wasn't told: what it left running could swap a file before it is sent.
        """
        if opened is None:
            return ()
        try:
            folder = os.open(opened, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return ()
        kept = opened.with_name(uuid.uuid4().hex)
        try:
            names = sorted(entry.name for entry in os.scandir(folder))
            found = [part for name in names if (part := _moved(folder, name, kept)) is not None]
        finally:
            os.close(folder)
        shutil.rmtree(opened, ignore_errors=True)
        return tuple(found[:MOST_FILES])


def _moved(folder: int, name: str, kept: Path) -> FilePart | None:
    if name.startswith("."):
        return None
    path = kept / name
    try:
        kept.mkdir(mode=0o700, exist_ok=True)
        os.rename(name, path, src_dir_fd=folder)
        status = path.lstat()
    except OSError:
        # Something that Claude left running removed it meanwhile.
        return None
    # Of a file with two names one may be outside.
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_size == 0:
        return None
    kind = mimetypes.guess_type(name)[0] or ""
    return FilePart(uri="", name=name, mime_type=kind, size=status.st_size, path=path)


def _sweep(place: Path, *, before: float) -> None:
    if not place.is_dir():
        return
    for entry in os.scandir(place):
        if entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_mtime < before:
            shutil.rmtree(entry.path, ignore_errors=True)
