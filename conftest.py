"""Settings for all tests: Hypothesis, signals, the home folder, and where temporary files are kept."""

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

MEMORY = Path("/dev/shm")  # noqa: S108 - pytest makes a folder of its own in it
# The tests use some 200 MB at a time. Docker's default for /dev/shm is 64 MB.
ENOUGH_MEMORY = 2 << 30

# The time of an example depends on the load of the machine.
settings.register_profile("unhurried", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def pytest_configure(config: pytest.Config) -> None:
    # Settings that the developer saved must not reach the tests.
    home = tempfile.mkdtemp(prefix="molecule-home-")
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    os.environ["HOME"] = home
    for variable in ("MOLECULE_STATE_DIR", "CONFIGS_DIR", "MOLECULE_PROFILE"):
        os.environ.pop(variable, None)
    # The tests sync thousands of journals and cursor files. In memory, that takes no time.
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ENOUGH_MEMORY:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
    # nohup and some CI systems ignore SIGHUP, and the programs under test would inherit that.
    for name in ("SIGHUP", "SIGINT", "SIGTERM", "SIGQUIT"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)
