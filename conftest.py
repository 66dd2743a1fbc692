"""What all tests rely on, whatever started them."""

import signal

from hypothesis import HealthCheck, settings

# How long an example takes says something of the machine, and nothing of what it is about.
settings.register_profile("unhurried", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def pytest_configure() -> None:
    # Under nohup, and in some CI, a hang-up is ignored, and the programs under test rightly keep to that.
    for name in ("SIGHUP", "SIGINT", "SIGTERM", "SIGQUIT"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)
