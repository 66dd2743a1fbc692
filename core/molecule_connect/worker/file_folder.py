"""The folder for the files of a chat: file names are random, and only the owner can read them."""

import contextlib
import os
import re
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

import attrs

from molecule_connect import files
from molecule_connect.files import safe_name

_RANDOM_NAME = re.compile(r"[0-9a-f]{32}-")


@attrs.frozen
class FileFolder:
    """The folder at *path*, created with the first file."""

    path: Path

    @contextlib.contextmanager
    def new(self, name: str) -> Iterator[tuple[str, IO[bytes]]]:
        """Create a file for writing. Yields its name in the folder, and the open file.

        The file is removed if the block raises.

        Raises:
            OSError: It can't be created or written.
        """
        files.make_folder(self.path)
        chosen = f"{uuid.uuid4().hex}-{safe_name(name)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.path / chosen, flags, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield chosen, file
        except BaseException:
            self.remove(chosen)
            raise

    def settle(self, file: IO[bytes]) -> int:
        """Write *file* and its directory entry to the disk, which blocks. Returns its size.

        Raises:
            OSError: It can't be written.
        """
        file.flush()
        os.fsync(file.fileno())
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return os.fstat(file.fileno()).st_size

    def remove(self, name: str) -> None:
        """Remove the file *name*, if it exists."""
        with contextlib.suppress(OSError):
            (self.path / name).unlink()

    def sweep(self, known: Collection[str]) -> int:
        """Remove files of an earlier process that the journal doesn't know. Returns the number."""
        try:
            found = [entry.name for entry in os.scandir(self.path) if _RANDOM_NAME.match(entry.name)]
        except OSError:
            return 0
        lost = [name for name in found if name not in known]
        for name in lost:
            self.remove(name)
        return len(lost)
