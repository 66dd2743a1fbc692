"""Ids of the readers that claim messages of an inbox."""

import os
import socket
import uuid


def new_reader_id() -> str:
    """A unique id for one reader of this process: ``pid@host:`` and a random suffix."""
    return f"{os.getpid()}@{socket.gethostname()}:{uuid.uuid4().hex[:8]}"


def is_gone(reader_id: str) -> bool:
    """Whether the reader's process is known to have ended: not for another host, or if its pid was reused."""
    pid, _, rest = reader_id.partition("@")
    if not pid.isdecimal() or rest.rpartition(":")[0] != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False
