"""Host names: looked up in threads of their own, cached, and connected to with a head start for the first address.

The event loop resolves names in its default executor, where a resolver that hangs for one platform would delay lookups
for all others, and file writes too.
"""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs

from molecule_connect.executors import in_thread

# Seconds that a lookup stays valid, and that a new one may take while an expired one is available.
CACHE_SECONDS, PATIENCE = 30.0, 1.0
# Seconds until the next address is tried in parallel (RFC 8305).
HEAD_START = 0.25


@attrs.frozen
class Endpoint:
    """An address of a host, as sockets take it."""

    family: socket.AddressFamily
    address: tuple[Any, ...]


def system_lookup(host: str, port: int) -> list[Endpoint]:
    """Resolve *host* with this system's resolver, in its order and without duplicates. Blocks.

    Raises:
        OSError: The name has no address, or the resolver doesn't respond.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(Endpoint(family, address) for family, _, _, _, address in found))


class Resolver:
    """Resolves and caches host names. There is one lookup of a name at a time, and names don't wait for each other.

    Args:
        look_up: Resolves a name and port. Blocks; runs in a thread of its own.
    """

    def __init__(
        self,
        *,
        look_up: Callable[[str, int], list[Endpoint]] = system_lookup,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look_up, self._patience, self._clock = look_up, patience, clock
        self._cache: dict[tuple[str, int], tuple[float, list[Endpoint]]] = {}
        self._lookups: dict[tuple[str, int], asyncio.Task[list[Endpoint]]] = {}

    async def resolve(self, host: str, port: int) -> list[Endpoint]:
        """Return the endpoints of *host*. The last good result is used if the resolver fails or is slow.

        Raises:
            OSError: The name has no address.
            UnicodeError: It is not a valid name.
        """
        if (numeric := _numeric(host, port)) is not None:
            return [numeric]
        key = (host, port)
        at, cached = self._cache.get(key, (0.0, []))
        if cached and self._clock() - at < CACHE_SECONDS:
            return cached
        lookup = self._lookups.get(key)
        if lookup is None:
            lookup = self._lookups[key] = asyncio.get_running_loop().create_task(self._refresh(host, port))
            # All waiting tasks may be cancelled, and then nobody retrieves the exception.
            lookup.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            async with asyncio.timeout(self._patience if cached else None):
                return await asyncio.shield(lookup)
        except OSError:  # includes TimeoutError
            if not cached:
                raise
            return cached

    def expire(self, host: str, port: int) -> None:
        """Look *host* up again next time, because its endpoints did not respond."""
        if cached := self._cache.get((host, port)):
            self._cache[host, port] = (float("-inf"), cached[1])

    async def _refresh(self, host: str, port: int) -> list[Endpoint]:
        try:
            found = await in_thread(lambda: self._look_up(host, port))
        finally:
            del self._lookups[host, port]
        self._cache[host, port] = (self._clock(), found)
        return found


def _numeric(host: str, port: int) -> Endpoint | None:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return None
    return Endpoint(found[0][0], found[0][4])


async def connect(
    endpoints: Sequence[Endpoint],
    *,
    open_socket: "Callable[[Endpoint], Awaitable[socket.socket]] | None" = None,
    head_start: float = HEAD_START,
) -> socket.socket:
    """Return a socket connected to the first of *endpoints* that responds. Each has a head start on the next one.

    Raises:
        OSError: None of them can be reached; the error is that of the first.
    """
    opening = open_socket or _open
    waiting, tasks, errors = list(endpoints), list[asyncio.Task[socket.socket]](), list[BaseException]()
    pending: set[asyncio.Task[socket.socket]] = set()
    winner = None
    try:
        while winner is None and (waiting or pending):
            if waiting:
                task = asyncio.ensure_future(opening(waiting.pop(0)))
                tasks.append(task)
                pending.add(task)
            done, pending = await asyncio.wait(
                pending, timeout=head_start if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for one in done:
                error = one.exception()
                if error is not None:
                    errors.append(error)
                elif winner is None:
                    winner = one
        if winner is None:
            raise errors[0] if errors else OSError("the name has no address")
        return winner.result()
    finally:
        # Awaiting the others here could be cancelled, which would leak the winner's socket.
        for one in tasks:
            if one is not winner:
                one.cancel()
                one.add_done_callback(_close)


def _close(task: "asyncio.Task[socket.socket]") -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


async def _open(endpoint: Endpoint) -> socket.socket:
    opened = socket.socket(endpoint.family, socket.SOCK_STREAM)
    try:
        opened.setblocking(False)
        await asyncio.get_running_loop().sock_connect(opened, endpoint.address)
    except BaseException:
        opened.close()
        raise
    return opened
