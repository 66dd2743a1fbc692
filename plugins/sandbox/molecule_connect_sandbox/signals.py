"""SIGTERM, Ctrl-C and a closed terminal."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def stop_on_signal(stop: Callable[[], object]) -> Iterator[None]:
    """Call *stop* on the first signal; a second one ends the program by default."""
    loop = asyncio.get_running_loop()
    # nohup ignores the hangup of a closed terminal.
    numbers = NUMBERS if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (*NUMBERS, signal.SIGHUP)

    def restore() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)

    def first() -> None:
        restore()
        stop()

    # Handlers can be installed only in the main thread.
    with contextlib.suppress(ValueError, RuntimeError):
        for number in numbers:
            loop.add_signal_handler(number, first)
    try:
        yield
    finally:
        restore()
