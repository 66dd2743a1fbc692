"""The right of one process to serve a workspace from this machine."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from molecule_connect.errors import LeaseError


@contextmanager
def lease(folder: Path, workspace_id: str) -> Iterator[None]:
    """Hold ``<workspace-id>.lock``. The kernel lets go of it when the process ends, however it ends.

    Raises:
        LeaseError: Another process holds it; the text says which.
    """
    path = folder / f"{workspace_id}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise LeaseError(
                f"{workspace_id} is already served by {_holder(descriptor)}",
                hint="stop that process, or give this one another workspace",
            ) from exc
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
