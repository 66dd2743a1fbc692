"""The folder for the files of a chat: names that nobody chose, and nothing in it that others can read."""

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

_OURS = re.compile(r"[0-9a-f]{32}-")


@attrs.frozen
class FileFolder:
    """The folder at *path*, made when the first file comes."""

    path: Path

    @contextlib.contextmanager
    def new(self, name: str) -> Iterator[tuple[str, IO[bytes]]]:
        """A new file, open for writing, and what it is called here; it is removed if the block raises.

        At the end of the block it and the folder are on the disk.

        Raises:
            OSError: It cannot be made or written.
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
        """Put *file* and its name on the disk; its size. Takes as long as the disk does.

        Raises:
            OSError: The disk does not take it.
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
        """Remove a file of ours; one that is gone is as good."""
        with contextlib.suppress(OSError):
            (self.path / name).unlink()

    def sweep(self, known: Collection[str]) -> int:
        """Remove what an earlier process left half done: files of ours that are not *known*. Returns how many."""
        try:
            found = [entry.name for entry in os.scandir(self.path) if _OURS.match(entry.name)]
        except OSError:
            return 0
        lost = [name for name in found if name not in known]
        for name in lost:
            self.remove(name)
        return len(lost)
