"""What the clients do, written once: flows yield the steps that need the outside, and a driver of each twin takes them.

A flow is a generator. It yields a step and is sent what came of it, or thrown the error.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator
from typing import IO, Any, Final, Generic, TypeAlias, TypeVar

import attrs

from molecule_connect.backoff import Backoff
from molecule_connect.errors import PermanentPlatformError, TransientPlatformError
from molecule_connect.platform.direct_messages import DirectPost
from molecule_connect.platform.endpoints import MIB, Operation

T = TypeVar("T")
REPEATS = 3
# A rate limit's window is a minute: whoever is told to wait for it waits for all of it.
BACKOFF: Final = Backoff(first=1.0, cap=60.0)
_LIMITED = 429


@attrs.frozen
class Ask(Generic[T]):
    """Send an operation to the platform; a *sink* takes the body of the answer."""

    operation: Operation[T]
    sink: IO[bytes] | None = None


@attrs.frozen
class AskPeer:
    """Post to a peer's own address."""

    post: DirectPost


@attrs.frozen
class Wait:
    """Wait for so many seconds. Gives True when the client was closed meanwhile."""

    seconds: float


@attrs.frozen
class Work:
    """Do something that blocks, with files or programs."""

    do: Callable[[], Any]


Step: TypeAlias = Ask[Any] | AskPeer | Wait | Work
Flow: TypeAlias = Generator[Step, Any, T]


def ask(
    operation: Operation[T],
    *,
    same: bool | None = None,
    repeats: int = REPEATS,
    gives_up: Callable[[TransientPlatformError], bool] = lambda error: False,
    sink: IO[bytes] | None = None,
) -> Flow[T]:
    """Sends *operation*; again, up to *repeats* times, where that cannot do harm.

    Args:
        same: Whether the platform takes a repeat for the same request; None: a GET is, a POST is not. What is not the
            same is sent again only when the rate limit turned it away.
        gives_up: Whether another try cannot change an error.
    """
    may_repeat = operation.method == "GET" if same is None else same
    failures = 0
    while True:
        try:
            answer: T = yield Ask(operation, sink)
            return answer
        except TransientPlatformError as exc:
            failures += 1
            is_worth_it = exc.status == _LIMITED or (may_repeat and (exc.status or 0) >= 500)
            if failures > repeats or not is_worth_it or gives_up(exc):
                raise
            closed = yield Wait(BACKOFF.delay(failures, at_least=exc.retry_after))
            if closed:
                raise


def ask_at_length(operation: Operation[T]) -> Flow[T]:
    """``ask`` for what a person or a program may have made too long: the platform's own words do not say so."""
    if len(operation.body or b"") <= MIB:
        return (yield from ask(operation))
    # Platforms of 2026-05 cut a body at 1 MiB, and call the rest invalid.
    hint = "it is longer than the platform takes (1 MiB on 2026-05, 16 MiB on 2026-08); send it in pieces"
    with hinting(hint, 400, 413):
        return (yield from ask(operation))


@contextlib.contextmanager
def hinting(hint: str, *statuses: int) -> Iterator[None]:
    """Adds *hint* to what the platform refuses with one of *statuses*, and no next step of its own."""
    try:
        yield
    except PermanentPlatformError as exc:
        if exc.status in statuses and not exc.hint:
            exc.hint = hint
        raise


def call(do: Callable[[], T]) -> Flow[T]:
    """Does something that blocks."""
    result: T = yield Work(do)
    return result
