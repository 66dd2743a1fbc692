"""Who holds a message: a process of this machine that can be seen to be gone, or one that only time tells of."""

import os
import socket
import uuid


def new_reader_id() -> str:
    """A name for one reader of this process: ``pid@host:`` and something that no other reader has."""
    return f"{os.getpid()}@{socket.gethostname()}:{uuid.uuid4().hex[:8]}"


def is_gone(reader_id: str) -> bool:
    """Whether its process is known to have ended. One of another host, or one whose number was reused, is not."""
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
