"""The lease: the exclusive right of one process of this machine to serve a workspace."""

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

# ``holder`` locks the file for some microseconds, so a failed try to lock it is repeated.
TRIES, TRY_PAUSE = 5, 0.01
# The other files of a workspace in the state folder; the empty suffix is the folder for the files of its messages.
OTHER_SUFFIXES = (".json", ".status", ".token", "")


@attrs.frozen
class Holder:
    """The process that serves a workspace. The values are 0 and empty while it is starting."""

    pid: int
    host: str


@attrs.frozen
class Lease:
    """A lease that this process holds."""

    path: Path
    identity: tuple[int, int]
    _descriptor: int

    def check(self) -> None:
        """Raise StateLostError if the file was removed or replaced, so that another process could take the lease."""
        if not files.is_at(self.path, self.identity):
            raise StateLostError(f"the lock file {self.path} was removed or replaced while this process served with it")

    def release(self) -> None:
        """Give it up."""
        os.close(self._descriptor)


@contextmanager
def lease(folder: Path, workspace_id: str) -> Iterator[Lease]:
    """``acquire`` a lease, and release it at the end of the block."""
    held = acquire(folder, workspace_id)
    try:
        yield held
    finally:
        held.release()


def acquire(folder: Path, workspace_id: str) -> Lease:
    """Lock ``<workspace-id>.lock``. The kernel releases it when the process ends, however it ends.

    Raises:
        LeaseError: Another process holds it; the text names the process.
        ConfigError: The file can't be locked.
    """
    path = folder / f"{workspace_id}.lock"
    _rename_legacy_files(folder, workspace_id, [".lock"])
    descriptor = _open(path)
    try:
        try:
            _lock(descriptor)
        except BlockingIOError as exc:
            raise LeaseError(
                f"{workspace_id} is already served by {_holder_name(descriptor)}",
                hint="stop that process, or serve another workspace",
            ) from exc
        except OSError as exc:
            raise _unusable(path, exc) from exc
        _rename_legacy_files(folder, workspace_id, OTHER_SUFFIXES)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        return Lease(path, files.identity(os.fstat(descriptor)), descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def holder(folder: Path, workspace_id: str) -> Holder | None:
    """The process of this machine that serves the workspace, or None. Changes nothing.

    Raises:
        LeaseError: The lock file can't be read.
    """
    path = state_file(folder, workspace_id, ".lock")
    try:
        descriptor = files.open_file(path, os.O_RDONLY, of_anyone=True)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise LeaseError(
            f"{path} can't be read: {exc.strerror}", hint="run this as the user who serves the workspace"
        ) from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _read_holder(descriptor) or Holder(0, "")
    finally:
        os.close(descriptor)
    return None


def _rename_legacy_files(folder: Path, workspace_id: str, suffixes: Iterable[str]) -> None:
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
            f"the lock file {path} can't be used: {exc.strerror}",
            hint="remove it, and find out who created it; only this user may have access to the state folder",
        )
    return ConfigError(
        f"the lock file {path} can't be used: {exc.strerror}",
        hint="check the state folder (not a network file system), or choose another with --state-dir",
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


def _holder_name(descriptor: int) -> str:
    found = _read_holder(descriptor)
    return f"process {found.pid} on {found.host}" if found else "another process"


def _read_holder(descriptor: int) -> Holder | None:
    try:
        content = json.loads(os.pread(descriptor, 4096, 0))
        return Holder(int(content["pid"]), str(content["host"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
