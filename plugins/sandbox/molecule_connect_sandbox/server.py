"""The sandbox over real HTTP, on this machine's loopback address alone."""

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
    """A transport that sends the head of an answer together with what follows it: a write is what costs most."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""

    def write(self, data: bytes) -> None:
        if not self._head and data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 1"):
            self._head = data
        else:
            self.flush(data)

    def flush(self, data: bytes = b"") -> None:
        """Send what was held back, and *data*."""
        held, self._head = self._head + data, b""
        if held:
            self._transport.write(held)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Protocol(H11Protocol):
    """Lets the application cut the connection: ``scope["state"]["abort"]``."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast("asyncio.Transport", _OnePiece(transport)))
        self.app_state = {**self.app_state, "abort": transport.abort}


class Server(uvicorn.Server):
    """Serves an application. ``ready`` is called once it answers; ``stop`` may be called from any thread."""

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
            # The platform's server lets an idle connection live; closing it would look like a fault.
            timeout_keep_alive=3600,
            timeout_graceful_shutdown=2,
        )
        super().__init__(config)
        self._platform: Platform = app.state.platform
        self._ready = ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the affair of whoever runs us."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Open event streams would hold the shutdown up.
        self._platform.events.close()
        await super().shutdown(sockets)

    def stop(self) -> None:
        """End after the requests that are being answered."""
        self.should_exit = True


def listen(port: int = 0, *, hint: str = "choose another --port, or leave it out to get a free one") -> socket.socket:
    """A listening socket on loopback; port 0 takes a free one. *hint* is for a port that is in use.

    Raises:
        ConfigError: The port is in use, or may not be used.
    """
    # Named TCP, or asyncio leaves Nagle's algorithm on: 40 ms an answer.
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
    """Serve until *stop* is set; *ready* is called once requests are answered."""
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
    """A sandbox that is served by a thread of this process. ``stop`` ends it before its block does."""

    url: str
    app: Starlette
    stop: Callable[[], None]


@contextlib.contextmanager
def running_server(options: SandboxOptions, port: int = 0) -> Iterator[RunningServer]:
    """Serve a sandbox from another thread until the block ends.

    Raises:
        ConfigError: An option makes no sense, or the port cannot be had.
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
