"""Marks in the environment of programs that we start, by which what they leave behind is found. Linux alone."""

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
    """The marks of one plugin in one process.

    The first mark writes a record into *folder* (or what it returns), locked as long as this process lives. A record
    that is there and not locked belongs to a process that was killed: what still runs under its marks is killed then.
    Without a folder nothing outlives the process.

    Attributes:
        death_watch: What to put in front of a command line to have the kernel kill the program when we die.
    """

    death_watch: tuple[str, ...] = ()

    def __init__(self, folder: Path | Callable[[], Path | None] | None = None) -> None:
        self._folder = folder
        self._session = uuid.uuid4().hex
        self._count = 0
        self._record: tuple[Path, int] | None = None

    def sweep(self) -> None:
        """Kill what an earlier process left behind, at the start and not only before the first run.

        Raises:
            OSError: The folder cannot be read.
        """
        folder = self._folder() if callable(self._folder) else self._folder
        if folder is not None and os.path.lexists(folder / "runs"):
            files.check_folder(folder / "runs")
            _bury_all(folder / "runs")

    def new(self) -> str:
        """The mark of the next run, unlike any other.

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
        """Forget the record; every run has ended."""
        if self._record is not None:
            path, descriptor = self._record
            path.unlink(missing_ok=True)
            os.close(descriptor)
            self._record = None

    def _keep(self, folder: Path) -> None:
        folder = folder / "runs"
        files.make_folder(folder)
        _bury_all(folder)
        # Named last: a record that can be seen is locked already.
        path = folder / f"{self._session}.new"
        descriptor = files.open_file(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY)
        _lock(descriptor)
        self._record = path.rename(path.with_suffix(".run")), descriptor


def running_processes() -> frozenset[int]:
    """The ids of all processes that can be seen; none where there is no ``/proc``."""
    try:
        return frozenset(int(name) for name in os.listdir(_PROCESSES) if name.isdigit())  # noqa: PTH208
    except OSError:
        return frozenset()


def kill_marked(mark: str, *, passing_over: Collection[int] = ()) -> list[int]:
    """Kill every process of this user under *mark*, or under any of a session's if it ends in a dot; their ids.

    A process that cleared or overwrote its environment is not found.
    """
    pattern = re.compile(
        rb"(?:\A|\0)" + f"{VARIABLE}={re.escape(mark)}".encode() + (b"" if mark[-1:] == "." else b"\0")
    )
    killed: list[int] = []
    # Each round finds what was started while the one before it went on.
    while found := [
        pid
        for pid in running_processes().difference(passing_over, killed, (os.getpid(),))
        if pattern.search(_environment(pid))
    ]:
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        killed += found
    return killed


def _death_watch() -> tuple[str, ...]:
    # 0.8 ms a start; a preexec_fn that does the same costs 17 ms in a process of 400 MB.
    setpriv = shutil.which("setpriv")
    words = (setpriv or "", "--pdeathsig", "KILL", "--")
    try:
        # Older ones, and busybox's, do not know the flag.
        tried = setpriv and subprocess.run(  # noqa: S603
            [*words, "true"], env={"PATH": os.defpath}, capture_output=True, timeout=2, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return words if tried and tried.returncode == 0 else ()


def _bury_all(folder: Path) -> None:
    for record in sorted(folder.iterdir()):
        if _RECORD.match(record.name):
            _bury(record)


def _bury(record: Path) -> None:
    with contextlib.suppress(OSError):  # locked: its owner lives
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
    except OSError:  # it ended meanwhile, or belongs to somebody else
        return b""
