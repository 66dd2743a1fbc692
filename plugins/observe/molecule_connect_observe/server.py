"""Serves an application over HTTP to clients that may be slow, or hostile."""

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from molecule_connect import ConfigError

# Seconds from the connection of a client to the end of its response, which is also the end of the connection.
DEADLINE = 10
# Connections at a time. Others are closed at once, so that they use up no descriptors.
MAX_CONNECTIONS = 32
# Bytes of the head of a request.
MAX_HEAD = 16 * 1024


class Protocol(H11Protocol):
    """Serves one request per connection, within a deadline: connections are not kept alive."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._deadline = self.loop.call_later(self.timeout_keep_alive, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)


class Server(uvicorn.Server):
    """Serves *app* on *sockets* until it is closed. A connection lasts for at most *deadline* seconds."""

    def __init__(self, app: Starlette, sockets: list[socket.socket], *, deadline: int = DEADLINE) -> None:
        config = uvicorn.Config(
            app,
            http=Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            headers=[("Connection", "close"), ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")],
            h11_max_incomplete_event_size=MAX_HEAD,
            timeout_keep_alive=deadline,
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)
        self._sockets = sockets
        self._task: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the program."""
        yield

    def start(self) -> None:
        """Serve from now on."""
        self._task = asyncio.get_running_loop().create_task(self.serve(self._sockets), name="http")

    async def close(self) -> None:
        """Stop listening, and cut the connections: a slow client must not hold up the end of the program."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        self.should_exit = True
        if self._task is not None:
            await self._task


def listen(host: str, port: int) -> list[socket.socket]:
    """Listen on all addresses of *host*.

    Raises:
        ConfigError: None is an address of this machine, or the port is in use or not permitted.
    """
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, address in _addresses(host, port):
            try:
                # A free port for the first address is the port of the others.
                chosen = sockets[0].getsockname()[1] if sockets else port
                sockets.append(_bound(family, (address[0], chosen, *address[2:])))
            except OSError as exc:
                # A name can have an IPv6 address although this machine has IPv6 disabled.
                if exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = exc
        if not sockets:
            raise missing or OSError("it has no address")
    except (OSError, UnicodeError) as exc:
        for each in sockets:
            each.close()
        where = url(host, port).removeprefix("http://")
        raise ConfigError(
            f"--http: cannot listen on {where}: {getattr(exc, 'strerror', '') or exc}",
            hint="choose a free port and an address of this machine, such as 127.0.0.1:9090",
        ) from exc
    return sockets


def _bound(family: int, address: tuple[Any, ...]) -> socket.socket:
    # asyncio disables Nagle's algorithm only if the protocol is TCP explicitly.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(address)
        listening.listen()
    except OSError:
        listening.close()
        raise
    return listening


def _addresses(host: str, port: int) -> list[tuple[int, tuple[Any, ...]]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((int(family), tuple(address)) for family, _, _, _, address in found))


def url(host: str, port: int) -> str:
    """The address of a server."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_open_to_others(sockets: Sequence[socket.socket]) -> bool:
    """Whether other machines can connect."""
    return not all(ipaddress.ip_address(each.getsockname()[0].partition("%")[0]).is_loopback for each in sockets)
