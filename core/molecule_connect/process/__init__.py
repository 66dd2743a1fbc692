"""Child processes for backends: each runs in a session of its own and ends with everything it started."""

from molecule_connect.process.orphans import RunMarks
from molecule_connect.process.program import (
    Ending,
    Program,
    Stop,
    not_started,
    request_variables,
    require_posix,
)

__all__ = ["Ending", "Program", "RunMarks", "Stop", "not_started", "request_variables", "require_posix"]
