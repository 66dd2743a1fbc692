"""A transport of one HTTP/1.1 connection, for one request at a time. The wire format is h11's affair.

Sends are most of a busy connection's work, and httpcore does much for each that one connection has no use for: a pool,
locks, traces, a second event library, separate writes for head and body.

A connection can die without a sign while it is idle (NAT, VPN, suspend): it still takes bytes, and gives none. So a
request that was written to a kept connection and got no byte back counts as not written.
"""

import asyncio
import contextlib
import fcntl
import ssl
import sys
import termios
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, cast

import h11

from molecule_connect.platform.dns import Names, dial
from molecule_connect.platform.httpx_import import httpx

# Shorter than the idle timeouts of NAT gateways, the shortest of which are about 30 s.
KEEPALIVE = 20.0
# The request extension that names the longest idle time, in seconds, of a connection that may carry the request.
MAX_IDLE = "max_idle"
# What the head of an answer may take; h11's own cap of 16 KiB is less than proxies let through.
_HEAD_CAP = 100 * 1024
_HEADS_BEFORE = 100
_WAITING_CAP = 256 * 1024


class OneConnection(httpx.AsyncBaseTransport):
    """Connects at the first request, and again when the server closed the connection or it was idle too long.

    Args:
        tls: For https; None for plain http.
        keepalive: Seconds without a request after which the connection is not used again; the ``max_idle`` extension
            of a request can make it fewer, and 0 opens a new connection.
        names: Looks hosts up; connections may share one.
        wall: Seconds since 1970. The loop's clock stands still while the machine is suspended.
    """

    def __init__(
        self,
        tls: ssl.SSLContext | None,
        *,
        keepalive: float = KEEPALIVE,
        names: Names | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._tls, self._keepalive, self._wall = tls, keepalive, wall
        self._names = names or Names()
        self._socket: _Socket | None = None
        self._http = h11.Connection(h11.CLIENT)
        self._idle_since = (0.0, 0.0)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends *request*, and reads the head of its answer; the body is read as it is iterated.

        Raises:
            httpx.TransportError: As httpx's own transport does; ``ReadError`` also when no byte came back in time and
                the connection may have died before the request arrived.
        """
        timeouts = request.extensions["timeout"]
        max_idle = min(self._keepalive, request.extensions.get(MAX_IDLE, self._keepalive))
        try:
            is_kept = self._may_reuse(max_idle)
            socket = await self._connected(request, timeouts["connect"])
            socket.is_answered = False
            await self._send(socket, request, timeouts["write"])
            try:
                head = await self._head(socket, timeouts["read"])
            except httpx.ReadTimeout as exc:
                if not socket.is_answered and (is_kept or socket.has_unacknowledged):
                    raise httpx.ReadError("nothing came back, and the request may not have arrived") from exc
                raise
        except BaseException:
            self._close()
            raise
        body = _Body(lambda: self._next(socket, timeouts["read"]), self._ended)
        return httpx.Response(head.status_code, headers=head.headers.raw_items(), stream=body)

    async def aclose(self) -> None:
        """Closes the connection."""
        self._close()

    def _may_reuse(self, max_idle: float) -> bool:
        """Whether the connection is used again; closes it if not."""
        if self._socket is None:
            return False
        idle = max(at - since for at, since in zip(self._now(), self._idle_since, strict=True))
        if self._socket.is_quiet and idle < max_idle:
            return True
        self._close()
        return False

    def _now(self) -> tuple[float, float]:
        return asyncio.get_running_loop().time(), self._wall()

    async def _connected(self, request: httpx.Request, timeout: float) -> "_Socket":
        if self._socket is not None:
            return self._socket
        url, loop = request.url, asyncio.get_running_loop()
        host, port = url.raw_host.decode("ascii"), url.port or (443 if self._tls else 80)
        reason = f"the resolver gives no address of {host}"
        try:
            async with asyncio.timeout(timeout):
                endpoints = await self._names.of(host, port)
                reason = "nobody answers"
                connected = await dial(endpoints)
                try:
                    _, self._socket = await loop.create_connection(
                        _Socket,
                        sock=connected,
                        ssl=self._tls,
                        server_hostname=request.extensions.get("sni_hostname", host) if self._tls else None,
                    )
                except BaseException:
                    connected.close()
                    raise
        except TimeoutError as exc:
            self._names.doubt(host, port)
            raise httpx.ConnectTimeout(reason) from exc
        except (OSError, UnicodeError) as exc:  # the latter for what can be no name
            self._names.doubt(host, port)
            raise httpx.ConnectError(str(exc)) from exc
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_CAP)
        return self._socket

    async def _send(self, socket: "_Socket", request: httpx.Request, timeout: float) -> None:
        send, body = self._http.send, cast("httpx.AsyncByteStream", request.stream)
        try:
            waiting = send(h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw))
            async for piece in body:
                await socket.write((waiting or b"") + (send(h11.Data(data=piece)) or b""), timeout)
                waiting = b""
            await socket.write((waiting or b"") + (send(h11.EndOfMessage()) or b""), timeout)
        except h11.LocalProtocolError as exc:
            raise httpx.LocalProtocolError(str(exc)) from exc
        except httpx.WriteError:
            # A server may refuse a request that it has not read to its end, and close or read no further.
            pass

    async def _head(self, socket: "_Socket", timeout: float) -> Any:
        """The head of the answer itself; a server may send others before it, such as 100 Continue."""
        for _ in range(_HEADS_BEFORE + 1):
            head = await self._next(socket, timeout)
            if not isinstance(head, h11.InformationalResponse):
                return head
        raise httpx.RemoteProtocolError("the server goes on to announce an answer, and gives none")

    async def _next(self, socket: "_Socket", timeout: float) -> Any:
        """The next event of the answer."""
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as exc:
                raise httpx.RemoteProtocolError(str(exc)) from exc
            if event is not h11.NEED_DATA:
                return event
            data = await socket.read(timeout)
            if not data and self._http.their_state is h11.SEND_RESPONSE:
                raise httpx.RemoteProtocolError("the server disconnected without an answer")
            self._http.receive_data(data)

    def _ended(self) -> None:
        http = self._http
        if http.our_state is http.their_state is h11.DONE and not http.trailing_data[0]:
            http.start_next_cycle()
            self._idle_since = self._now()
        else:
            self._close()

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class _Body(httpx.AsyncByteStream):
    def __init__(self, next_event: Callable[[], Coroutine[Any, Any, Any]], ended: Callable[[], None]) -> None:
        self._next_event, self._ended = next_event, ended

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while isinstance(event := await self._next_event(), h11.Data):
            yield bytes(event.data)

    async def aclose(self) -> None:
        self._ended()


class _Socket(asyncio.Protocol):
    """What came and was not taken yet, and whether more can come. One task waits at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._is_over = False
        self._error: Exception | None = None
        self._is_full = False
        self._waiter: asyncio.Future[None] | None = None
        # Whether a byte came since the owner last set it to False.
        self.is_answered = False

    @property
    def has_unacknowledged(self) -> bool:
        """Whether the kernel waits for the other side to acknowledge bytes; False where it doesn't tell (not Linux)."""
        found = self._transport.get_extra_info("socket") if self._transport is not None else None
        return found is not None and _unacknowledged(found.fileno()) > 0

    @property
    def is_quiet(self) -> bool:
        """Whether it can be written to, and nothing came that nobody asked for."""
        return not self._is_over and not self._received

    async def write(self, data: bytes, timeout: float) -> None:
        """Returns when *data* was handed to the system."""
        if self._transport is None or self._is_over:
            raise httpx.WriteError(str(self._error or "the connection is closed"))
        if data:
            self._transport.write(data)
        while self._is_full:
            if self._is_over:
                raise httpx.WriteError(str(self._error or "the connection was closed"))
            try:
                await self._change(timeout)
            except TimeoutError as exc:
                if self._received:
                    raise httpx.WriteError("it was answered before it was taken") from exc
                raise httpx.WriteTimeout("nobody takes it") from exc

    async def read(self, timeout: float) -> bytes:
        """What came; empty at the end."""
        while not self._received:
            if self._error is not None:
                raise httpx.ReadError(str(self._error)) from self._error
            if self._is_over:
                return b""
            try:
                await self._change(timeout)
            except TimeoutError as exc:
                raise httpx.ReadTimeout("nothing comes") from exc
        data = bytes(self._received)
        self._received.clear()
        if self._transport is not None:
            self._transport.resume_reading()
        return data

    def close(self) -> None:
        """Close it, whatever still waits to be written."""
        if self._transport is not None:
            self._transport.close()
            self._transport.abort()

    async def _change(self, timeout: float) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(timeout):
            await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # What is in the buffer of this process was not sent.
        self._transport.set_write_buffer_limits(0)

    def data_received(self, data: bytes) -> None:
        self._received += data
        self.is_answered = True
        if len(self._received) > _WAITING_CAP and self._transport is not None:
            # What nobody asked for may have no end.
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self._is_over = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_over, self._error = True, exc
        self._wake()

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._wake()


def _unacknowledged(descriptor: int) -> int:
    """Bytes of a TCP socket that the other side has not acknowledged; 0 where the system doesn't tell."""
    with contextlib.suppress(OSError):
        return int.from_bytes(fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    return 0
