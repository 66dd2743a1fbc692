"""Find and kill processes that a program left behind, by a mark in their environment. Linux only."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import uuid
from collections.abc import Callable, Collection
from pathlib import Path

from molecule_connect import files

VARIABLE = "MOLECULE_RUN_ID"

_PROCESSES = Path("/proc")
_RECORD = re.compile(r"[0-9a-f]{32}\.run\Z")


class RunMarks:
    """The run marks of one plugin in one process.

    The first mark writes a record to *folder* (a path or a function that returns one) and locks it while this process
    lives. A record without a lock belongs to a process that was killed; processes with its marks are then killed, too.
    Without a folder, marks aren't recorded.

    Attributes:
        death_watch: Put in front of a command line to make the kernel kill the program when this process dies.
    """

    death_watch: tuple[str, ...] = ()

    def __init__(self, folder: Path | Callable[[], Path | None] | None = None) -> None:
        self._folder = folder
        self._session = uuid.uuid4().hex
        self._count = 0
        self._record: tuple[Path, int] | None = None

    def sweep(self) -> None:
        """Kill processes that an earlier process left behind.

        Raises:
            OSError: The folder cannot be read.
        """
        folder = self._folder() if callable(self._folder) else self._folder
        if folder is not None and os.path.lexists(folder / "runs"):
            files.check_folder(folder / "runs")
            _kill_leftovers(folder / "runs")

    def new(self) -> str:
        """A unique mark for the next run.

        Raises:
            OSError: The record cannot be written.
        """
        if self._count == 0:
            folder = self._folder() if callable(self._folder) else self._folder
            if folder is not None:
                self._keep(folder)
            self.death_watch = _death_watch()
        self._count += 1
        return f"{self._session}.{self._count}"

    def close(self) -> None:
        """Remove the record after all runs have ended."""
        if self._record is not None:
            path, descriptor = self._record
            path.unlink(missing_ok=True)
            os.close(descriptor)
            self._record = None

    def _keep(self, folder: Path) -> None:
        folder = folder / "runs"
        files.make_folder(folder)
        _kill_leftovers(folder)
        # Renamed after locking, so that visible records are always locked.
        path = folder / f"{self._session}.new"
        descriptor = files.open_file(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY)
        _lock(descriptor)
        self._record = path.rename(path.with_suffix(".run")), descriptor


def running_processes() -> frozenset[int]:
    """The ids of all visible processes; empty without ``/proc``."""
    try:
        return frozenset(int(name) for name in os.listdir(_PROCESSES) if name.isdigit())  # noqa: PTH208
    except OSError:
        return frozenset()


def kill_marked(mark: str, *, skip: Collection[int] = ()) -> list[int]:
    """Kill all processes of this user with *mark*, and return their ids. A final dot matches all marks of a session.

    Processes that cleared or overwrote their environment aren't found.
    """
    pattern = re.compile(
        rb"(?:\A|\0)" + f"{VARIABLE}={re.escape(mark)}".encode() + (b"" if mark[-1:] == "." else b"\0")
    )
    killed: list[int] = []
    # Repeat for processes that were started meanwhile.
    while found := [
        pid for pid in running_processes().difference(skip, killed, (os.getpid(),)) if pattern.search(_environment(pid))
    ]:
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        killed += found
    return killed


def _death_watch() -> tuple[str, ...]:
    # 0.8 ms per start; the same as a preexec_fn costs 17 ms in a process of 400 MB.
    setpriv = shutil.which("setpriv")
    words = (setpriv or "", "--pdeathsig", "KILL", "--")
    try:
        # Older versions and busybox don't support the flag.
        tried = setpriv and subprocess.run(  # noqa: S603
            [*words, "true"], env={"PATH": os.defpath}, capture_output=True, timeout=2, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return words if tried and tried.returncode == 0 else ()


def _kill_leftovers(folder: Path) -> None:
    for record in sorted(folder.iterdir()):
        if _RECORD.match(record.name):
            _kill_leftover(record)


def _kill_leftover(record: Path) -> None:
    with contextlib.suppress(OSError):  # locked: its process is alive
        descriptor = files.open_file(record, os.O_RDONLY)
        try:
            _lock(descriptor)
            kill_marked(f"{record.stem}.")
            record.unlink()
        finally:
            os.close(descriptor)


def _lock(descriptor: int) -> None:
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _environment(pid: int) -> bytes:
    place = _PROCESSES / str(pid)
    try:
        if place.stat().st_uid != os.geteuid():
            return b""
        return (place / "environ").read_bytes()
    except OSError:  # it ended, or belongs to another user
        return b""
