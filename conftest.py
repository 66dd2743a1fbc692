"""What all tests rely on, whatever started them."""

import os
import shutil
import signal
import tempfile

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says something of the machine, and nothing of what it is about.
settings.register_profile("unhurried", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def pytest_configure(config: pytest.Config) -> None:
    # Settings that the developer saved must not reach the tests.
    home = tempfile.mkdtemp(prefix="molecule-home-")
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    os.environ["HOME"] = home
    for variable in ("MOLECULE_STATE_DIR", "CONFIGS_DIR", "MOLECULE_PROFILE"):
        os.environ.pop(variable, None)
    # Under nohup, and in some CI, a hang-up is ignored, and the programs under test rightly keep to that.
    for name in ("SIGHUP", "SIGINT", "SIGTERM", "SIGQUIT"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)
