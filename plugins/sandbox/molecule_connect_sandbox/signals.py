"""SIGTERM and Ctrl-C, for a program of one event loop."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def stopping(stop: Callable[[], object]) -> Iterator[None]:
    """The first signal calls *stop*; a second one ends the program as usual."""
    loop = asyncio.get_running_loop()

    def restore() -> None:
        for number in NUMBERS:
            loop.remove_signal_handler(number)

    def first() -> None:
        restore()
        stop()

    # Only the main thread can have handlers; elsewhere signals are somebody else's affair.
    with contextlib.suppress(ValueError, RuntimeError):
        for number in NUMBERS:
            loop.add_signal_handler(number, first)
    try:
        yield
    finally:
        restore()
