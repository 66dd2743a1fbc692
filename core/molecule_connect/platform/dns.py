"""Names of hosts: looked up in threads of their own, kept for a while, and dialled with a head start for the first.

The event loop looks names up in its few default threads, where a resolver that hangs for one platform makes all others
wait, and the writing of files too.
"""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs

from molecule_connect.executors import in_thread

# Seconds that an answer is used without another look-up, and that a look-up may take where there is an earlier answer.
KEPT_FOR, PATIENCE = 30.0, 1.0
# Seconds until the next address is tried beside the one before (RFC 8305).
HEAD_START = 0.25


@attrs.frozen
class Endpoint:
    """An address that a name stands for, as sockets take it."""

    family: socket.AddressFamily
    address: tuple[Any, ...]


def system_lookup(host: str, port: int) -> list[Endpoint]:
    """What *host* resolves to on this system, in its order, and without doubles. Blocks.

    Raises:
        OSError: It has no address, or the resolver doesn't answer.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(Endpoint(family, address) for family, _, _, _, address in found))


class Names:
    """The endpoints of hosts. There is one look-up of a host at a time, and hosts don't wait for each other.

    Args:
        look_up: Blocks; runs in a thread of its own.
    """

    def __init__(
        self,
        *,
        look_up: Callable[[str, int], list[Endpoint]] = system_lookup,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look_up, self._patience, self._clock = look_up, patience, clock
        self._kept: dict[tuple[str, int], tuple[float, list[Endpoint]]] = {}
        self._looking: dict[tuple[str, int], asyncio.Task[list[Endpoint]]] = {}

    async def of(self, host: str, port: int) -> list[Endpoint]:
        """Where *host* can be reached. The last good answer stands in for a resolver that fails or takes its time.

        Raises:
            OSError: It has no address.
            UnicodeError: It can be no name.
        """
        if (numeric := _numeric(host, port)) is not None:
            return [numeric]
        key = (host, port)
        at, kept = self._kept.get(key, (0.0, []))
        if kept and self._clock() - at < KEPT_FOR:
            return kept
        looking = self._looking.get(key)
        if looking is None:
            looking = self._looking[key] = asyncio.get_running_loop().create_task(self._look(host, port))
            # Those who wait for it may all have given up.
            looking.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            async with asyncio.timeout(self._patience if kept else None):
                return await asyncio.shield(looking)
        except OSError:  # a TimeoutError is one
            if not kept:
                raise
            return kept

    def doubt(self, host: str, port: int) -> None:
        """The endpoints of *host* did not answer: look it up again at the next call."""
        if kept := self._kept.get((host, port)):
            self._kept[host, port] = (float("-inf"), kept[1])

    async def _look(self, host: str, port: int) -> list[Endpoint]:
        try:
            found = await in_thread(lambda: self._look_up(host, port))
        finally:
            del self._looking[host, port]
        self._kept[host, port] = (self._clock(), found)
        return found


def _numeric(host: str, port: int) -> Endpoint | None:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return None
    return Endpoint(found[0][0], found[0][4])


async def dial(
    endpoints: Sequence[Endpoint],
    *,
    open_socket: "Callable[[Endpoint], Awaitable[socket.socket]] | None" = None,
    head_start: float = HEAD_START,
) -> socket.socket:
    """A connected socket to the first of *endpoints* that answers. Each has a head start on the next one.

    Raises:
        OSError: None can be reached; it says why the first can't.
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
        # Nothing is awaited here: a cancellation would leave the winner's socket open.
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
