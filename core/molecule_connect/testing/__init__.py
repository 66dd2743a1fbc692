"""Test kit for plugin authors. pytest isn't required; its fixtures are in ``molecule_connect.testing.fixtures``."""

from molecule_connect.testing.checks import check_backend
from molecule_connect.testing.children import is_running, pids_in, until_gone
from molecule_connect.testing.requests import make_request
from molecule_connect.testing.running import Running, running
from molecule_connect.testing.serving import serving

__all__ = [
    "Running",
    "check_backend",
    "is_running",
    "make_request",
    "pids_in",
    "running",
    "serving",
    "until_gone",
]
