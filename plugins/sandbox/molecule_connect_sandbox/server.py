"""Serves the sandbox over HTTP, on the loopback address only."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import attrs
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from molecule_connect import ConfigError
from molecule_connect_sandbox.app import create_app
from molecule_connect_sandbox.options import SandboxOptions
from molecule_connect_sandbox.platform import Platform

HOST = "127.0.0.1"


class _OnePiece:
    """A transport that writes the head of a response together with its body, because each write is expensive."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""

    def write(self, data: bytes) -> None:
        if not self._head and data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 1"):
            self._head = data
        else:
            self.flush(data)

    def flush(self, data: bytes = b"") -> None:
        """Write the buffered head and *data*."""
        held, self._head = self._head + data, b""
        if held:
            self._transport.write(held)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Protocol(H11Protocol):
    """Lets the application cut the connection with ``scope["state"]["abort"]``."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast("asyncio.Transport", _OnePiece(transport)))
        self.app_state = {**self.app_state, "abort": transport.abort}


class Server(uvicorn.Server):
    """Serves an application. Calls ``ready`` when it accepts requests; ``stop`` is thread-safe."""

    def __init__(self, app: Starlette, ready: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="critical",
            access_log=False,
            date_header=False,
            server_header=False,
            # The platform keeps idle connections open; closing them would look like a fault.
            timeout_keep_alive=3600,
            timeout_graceful_shutdown=2,
        )
        super().__init__(config)
        self._platform: Platform = app.state.platform
        self._ready = ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signal handling to the caller."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._platform.end_streams()
        await super().shutdown(sockets)

    def stop(self) -> None:
        """Stop after the current requests."""
        self.should_exit = True


def listen(port: int = 0, *, hint: str = "choose another --port, or leave it out to get a free one") -> socket.socket:
    """Listen on loopback; port 0 picks a free port. *hint* is for a port that is in use.

    Raises:
        ConfigError: The port is in use or not permitted.
    """
    # asyncio disables Nagle's algorithm, which adds 40 ms per response, only if the protocol is TCP explicitly.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen()
    except (OSError, OverflowError) as exc:
        listening.close()
        raise ConfigError(
            f"cannot listen on {HOST}:{port}: {getattr(exc, 'strerror', None) or exc}",
            hint=hint,
        ) from exc
    return listening


def address(listening: socket.socket) -> str:
    """The URL of a listening socket."""
    return f"http://{HOST}:{listening.getsockname()[1]}"


async def serve(app: Starlette, listening: socket.socket, *, ready: Callable[[], None], stop: asyncio.Event) -> None:
    """Serve until *stop* is set. Calls *ready* when it accepts requests."""
    server = Server(app, ready)
    task, waiting = asyncio.create_task(server.serve([listening])), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        server.stop()
        waiting.cancel()
        await task


@attrs.frozen
class RunningServer:
    """A sandbox in a thread of this process. ``stop`` ends it before the block ends."""

    url: str
    app: Starlette
    stop: Callable[[], None]


@contextlib.contextmanager
def running_server(options: SandboxOptions, port: int = 0) -> Iterator[RunningServer]:
    """Serve a sandbox from another thread until the block ends.

    Raises:
        ConfigError: An option is invalid, or the port isn't available.
    """
    app = create_app(options)
    listening, started = listen(port), threading.Event()
    url = address(listening)
    server = Server(app, started.set)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])), name="sandbox", daemon=True)
    thread.start()
    started.wait(10)
    try:
        yield RunningServer(url, app, server.stop)
    finally:
        server.stop()
        thread.join(10)
