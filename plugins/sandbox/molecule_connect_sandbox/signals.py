"""SIGTERM, Ctrl-C and a closed terminal, for a program of one event loop."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def stopping(stop: Callable[[], object]) -> Iterator[None]:
    """The first signal calls *stop*; a second one ends the program as usual."""
    loop = asyncio.get_running_loop()
    # Under nohup a closed terminal means nothing.
    numbers = NUMBERS if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (*NUMBERS, signal.SIGHUP)

    def restore() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)

    def first() -> None:
        restore()
        stop()

    # Only the main thread can have handlers; elsewhere signals are somebody else's affair.
    with contextlib.suppress(ValueError, RuntimeError):
        for number in numbers:
            loop.add_signal_handler(number, first)
    try:
        yield
    finally:
        restore()
