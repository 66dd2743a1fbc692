"""The right of one process to serve a workspace from this machine."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from molecule_connect import files
from molecule_connect.config.state_dir import rename_legacy_files, state_file
from molecule_connect.errors import ConfigError, LeaseError, StateLostError

# Whoever asks who holds it has it for some microseconds, which must turn no process away.
TRIES, TRY_PAUSE = 5, 0.01
# What else lies in the state folder under the id of a workspace; the last one is its folder.
OTHER_SUFFIXES = (".json", ".status", ".token", "")


@attrs.frozen
class Holder:
    """The process that serves a workspace. 0 and empty: it has only begun to."""

    pid: int
    host: str


@attrs.frozen
class Lease:
    """The lease while it is held."""

    path: Path
    identity: tuple[int, int]

    def check(self) -> None:
        """Raises StateLostError when another process could take the lease, because its file was removed or replaced."""
        if not files.is_at(self.path, self.identity):
            raise StateLostError(f"the lock file {self.path} was removed or replaced while this process served with it")


@contextmanager
def lease(folder: Path, workspace_id: str) -> Iterator[Lease]:
    """Hold ``<workspace-id>.lock``. The kernel lets go of it when the process ends, however it ends.

    Raises:
        LeaseError: Another process holds it; the text says which.
        ConfigError: The file cannot be locked.
    """
    path = folder / f"{workspace_id}.lock"
    _adopt(folder, workspace_id, [".lock"])
    descriptor = _open(path)
    try:
        try:
            _lock(descriptor)
        except BlockingIOError as exc:
            raise LeaseError(
                f"{workspace_id} is already served by {_holder(descriptor)}",
                hint="stop that process, or give this one another workspace",
            ) from exc
        except OSError as exc:
            raise _unusable(path, exc) from exc
        _adopt(folder, workspace_id, OTHER_SUFFIXES)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield Lease(path, files.identity(os.fstat(descriptor)))
    finally:
        os.close(descriptor)


def holder(folder: Path, workspace_id: str) -> Holder | None:
    """Who serves the workspace from this machine, or None. Asking leaves no trace.

    Raises:
        LeaseError: The lease's file cannot be read.
    """
    path = state_file(folder, workspace_id, ".lock")
    try:
        descriptor = files.open_file(path, os.O_RDONLY, of_anyone=True)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise LeaseError(f"{path} cannot be read: {exc.strerror}", hint="ask as the user who serves it") from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _written_in(descriptor) or Holder(0, "")
    finally:
        os.close(descriptor)
    return None


def _adopt(folder: Path, workspace_id: str, suffixes: Iterable[str]) -> None:
    try:
        rename_legacy_files(folder, workspace_id, suffixes)
    except OSError as exc:
        raise ConfigError(
            f"the files of {workspace_id} in {folder} can't be renamed to its id in lower case: {exc.strerror}",
            hint="make the state folder writable for this user",
        ) from exc


def _open(path: Path) -> int:
    try:
        return files.open_file(path, os.O_RDWR | os.O_CREAT)
    except OSError as exc:
        raise _unusable(path, exc) from exc


def _unusable(path: Path, exc: OSError) -> ConfigError:
    if isinstance(exc, files.ForeignError):
        return ConfigError(
            f"the lock file {path} cannot be used: {exc.strerror}",
            hint="remove it, and find out who put it there; the state folder must be for this user alone",
        )
    return ConfigError(
        f"the lock file {path} cannot be used: {exc.strerror}",
        hint="check the state folder (not a network file system), or name another with --state-dir",
    )


def _lock(descriptor: int) -> None:
    for left in reversed(range(TRIES)):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not left:
                raise
            time.sleep(TRY_PAUSE)
        else:
            return


def _holder(descriptor: int) -> str:
    found = _written_in(descriptor)
    return f"process {found.pid} on {found.host}" if found else "another process"


def _written_in(descriptor: int) -> Holder | None:
    try:
        content = json.loads(os.pread(descriptor, 4096, 0))
        return Holder(int(content["pid"]), str(content["host"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
