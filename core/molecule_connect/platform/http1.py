"""A transport with one HTTP/1.1 connection, for one request at a time.

httpx's own transport takes several times the processor time for each request, and can't tell what delivery needs to
know: a connection can die unnoticed while it is idle (NAT, VPN, suspend), and then takes a request without a response.
So a request that was written to a reused connection, or isn't acknowledged, counts as not written if no byte came back.

Most responses have a plain head with a Content-Length, which is read here (``plain_head``). h11 reads all others.
"""

import asyncio
import contextlib
import fcntl
import re
import ssl
import sys
import termios
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, cast

import attrs
import h11

from molecule_connect.platform.dns import Resolver, connect
from molecule_connect.platform.http_messages import HttpHead, HttpRequest
from molecule_connect.platform.httpx_import import httpx

# Shorter than the idle timeouts of NAT gateways, which start at about 30 s.
KEEPALIVE = 20.0
# Limit for the head of a response. Proxies let through more than h11's default of 16 KiB.
_HEAD_CAP = 100 * 1024
_MAX_INFORMATIONAL = 100
_READ_BUFFER_CAP = 256 * 1024
_HEAD_END = b"\r\n\r\n"
# Some servers end lines without a carriage return, which h11 accepts.
_BLANK_LINE = re.compile(rb"\n\r?\n")
_PLAIN_HEAD = re.compile(
    rb"HTTP/1\.1 (20[0-3]|[45][0-9][0-9])(?: [\x20-\x7e]*)?\r\n((?:[A-Za-z0-9-]+: [\x21-\x7e][\x20-\x7e]*\r\n)+)\r\n"
)
_PLAIN_LENGTH = re.compile(r"[0-9]{1,9}")
_UNSENDABLE = re.compile(r"[^\t\x20-\x7e]")


@attrs.frozen
class PlainHead:
    """The head of a response whose body has *length* bytes, and after which the connection can be reused."""

    status: int
    headers: dict[str, str]
    length: int


def plain_head(head: bytes) -> PlainHead | None:
    """Read *head*, which ends with an empty line. None unless it is plain, and certainly means the same to h11."""
    match = _PLAIN_HEAD.fullmatch(head)
    if match is None:
        return None
    headers = _joined(line.partition(": ")[::2] for line in match[2].decode("ascii").split("\r\n")[:-1])
    if "transfer-encoding" in headers or headers.get("connection", "keep-alive").lower() != "keep-alive":
        return None
    # Two lengths are joined by a comma.
    length = headers.get("content-length", "")
    return PlainHead(int(match[1]), headers, int(length)) if _PLAIN_LENGTH.fullmatch(length) else None


def _joined(lines: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return headers by lower-case name. Values of the same name are joined."""
    headers: dict[str, str] = {}
    for name, value in lines:
        name, value = name.lower(), value.rstrip(" ")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


class HttpConnection:
    """Connects for the first request, and again after the server closed the connection or it was idle for too long.

    Args:
        tls: For https; None for plain http.
        keepalive: Seconds after which an idle connection is not reused. The ``max_idle`` of a request can lower it; 0
            always opens a new connection.
        resolver: Looks up host names; connections may share one.
        wall: Returns seconds since 1970. The loop's clock stands still while the machine is suspended.
    """

    def __init__(
        self,
        tls: ssl.SSLContext | None,
        *,
        keepalive: float = KEEPALIVE,
        resolver: Resolver | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._tls, self._keepalive, self._wall = tls, keepalive, wall
        self._resolver = resolver or Resolver()
        self._socket: _Socket | None = None
        self._idle_since = (0.0, 0.0)

    async def send(self, request: HttpRequest) -> HttpHead:
        """Send *request* and read the head of the response. The body is read while it is iterated.

        Raises:
            httpx.TransportError: As a transport of httpx does. ``ReadError`` instead of ``ReadTimeout`` if the
                connection may have died before the request arrived.
        """
        try:
            is_reused = self._is_reusable(min(self._keepalive, request.max_idle))
            socket = self._socket or await self._connect(request.url, request.connect_timeout)
            socket.has_received = False
            request.check()
            is_sent = await _send(socket, request)
            try:
                head = await self._read_head(socket, request.method, request.read_timeout)
            except httpx.ReadTimeout as exc:
                if not socket.has_received and (is_reused or socket.has_unacknowledged_bytes):
                    raise httpx.ReadError("no response, and the request may not have arrived") from exc
                raise
        except BaseException:
            self._close()
            raise
        socket.is_reusable = is_sent
        return head

    async def aclose(self) -> None:
        """Close the connection."""
        self._close()

    def _is_reusable(self, max_idle: float) -> bool:
        """Whether there is a connection to reuse; one that isn't is closed."""
        if self._socket is None:
            return False
        idle = max(at - since for at, since in zip(self._now(), self._idle_since, strict=True))
        if self._socket.is_quiet and idle < max_idle:
            return True
        self._close()
        return False

    def _now(self) -> tuple[float, float]:
        return asyncio.get_running_loop().time(), self._wall()

    async def _connect(self, url: httpx.URL, timeout: float) -> "_Socket":
        loop = asyncio.get_running_loop()
        host, port = url.raw_host.decode("ascii"), url.port or (443 if self._tls else 80)
        reason = f"the name server gives no address of {host}"
        try:
            async with asyncio.timeout(timeout):
                endpoints = await self._resolver.resolve(host, port)
                reason = "connecting timed out"
                connected = await connect(endpoints)
                try:
                    _, socket = await loop.create_connection(
                        _Socket,
                        sock=connected,
                        ssl=self._tls,
                        server_hostname=host if self._tls else None,
                    )
                except BaseException:
                    connected.close()
                    raise
        except TimeoutError as exc:
            self._resolver.expire(host, port)
            raise httpx.ConnectTimeout(reason) from exc
        except (OSError, UnicodeError) as exc:  # UnicodeError: not a valid host name
            self._resolver.expire(host, port)
            raise httpx.ConnectError(str(exc)) from exc
        self._socket = socket
        return socket

    async def _read_head(self, socket: "_Socket", method: str, timeout: float | None) -> HttpHead:
        """Read the head of a response; its body is read while it is iterated."""
        received = b""
        while not _BLANK_LINE.search(received) and len(received) < _HEAD_CAP and (data := await socket.read(timeout)):
            received += data
        head, end, rest = received.partition(_HEAD_END)
        plain = plain_head(head + end) if method != "HEAD" else None
        if plain is not None:
            body = _CountedBody(self, socket, timeout, rest, plain.length)
            return HttpHead(plain.status, plain.headers, body, rest if len(rest) == plain.length else None)
        other = _H11Body(self, socket, timeout)
        final = await other.read_head(method, received)
        lines = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in final.headers)
        return HttpHead(final.status_code, _joined(lines), other)

    def end_response(self, socket: "_Socket", *, is_whole: bool) -> None:
        """Keep the connection for the next request if the response *is_whole*; close it otherwise."""
        if is_whole and socket.is_reusable:
            self._idle_since = self._now()
        else:
            self._close()

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


async def _send(socket: "_Socket", request: HttpRequest) -> bool:
    """Write *request*. False if the server stopped reading it: it may respond before it has read all of it."""
    lines = [f"{request.method} {request.url.raw_path.decode('ascii')} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in request.headers]
    if _UNSENDABLE.search("".join(lines)):
        raise httpx.LocalProtocolError("a header has a control character, or one outside of ASCII")
    # Head and body of a small request are sent in one write.
    head = "\r\n".join(lines).encode("ascii") + _HEAD_END
    try:
        if isinstance(request.body, bytes):
            await socket.write(head + request.body, request.write_timeout)
            request.is_written = True
            return True
        async for piece in request.pieces():
            await socket.write(head + piece, request.write_timeout)
            head = b""
    except httpx.WriteError:
        return False
    return True


class _CountedBody:
    """A body of *length* bytes, of which *received* arrived with the head."""

    def __init__(
        self, connection: HttpConnection, socket: "_Socket", timeout: float | None, received: bytes, length: int
    ) -> None:
        self._connection, self._socket, self._timeout = connection, socket, timeout
        self._received, self._missing = received, length - len(received)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._received:
            # Without the bytes beyond the response.
            yield self._received[: min(0, self._missing) or None]
        while self._missing > 0:
            if not (data := await self._socket.read(self._timeout)):
                raise httpx.RemoteProtocolError("the server closed the connection before the end of its response")
            self._missing -= len(data)
            yield data[: min(0, self._missing) or None]

    async def aclose(self) -> None:
        # After bytes beyond the response (a negative count), the connection isn't reused.
        self._connection.end_response(self._socket, is_whole=self._missing == 0)


class _H11Body:
    """The body of a response that h11 reads."""

    def __init__(self, connection: HttpConnection, socket: "_Socket", timeout: float | None) -> None:
        self._connection, self._socket, self._timeout = connection, socket, timeout
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_CAP)

    async def read_head(self, method: str, received: bytes) -> h11.Response:
        """Return the head of the final response, which began with *received*, after informational ones."""
        # The method is all that h11 needs to know about the request.
        self._http.send(h11.Request(method=method, target="/", headers=[("Host", "")]))
        self._http.send(h11.EndOfMessage())
        if received:
            self._http.receive_data(received)
        for _ in range(_MAX_INFORMATIONAL + 1):
            head = await self._next_event()
            if not isinstance(head, h11.InformationalResponse):
                return cast("h11.Response", head)
        raise httpx.RemoteProtocolError("the server sends informational responses only")

    async def _next_event(self) -> Any:
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as exc:
                raise httpx.RemoteProtocolError(str(exc)) from exc
            if event is not h11.NEED_DATA:
                return event
            data = await self._socket.read(self._timeout)
            if not data and self._http.their_state is h11.SEND_RESPONSE:
                raise httpx.RemoteProtocolError("the server closed the connection without a response")
            self._http.receive_data(data)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while isinstance(event := await self._next_event(), h11.Data):
            yield bytes(event.data)

    async def aclose(self) -> None:
        http = self._http
        is_whole = http.our_state is http.their_state is h11.DONE and not http.trailing_data[0]
        self._connection.end_response(self._socket, is_whole=is_whole)


class _Socket(asyncio.Protocol):
    """A TCP or TLS connection. One task reads or writes at a time.

    Attributes:
        has_received: Whether a byte arrived since the owner last set it to False.
        is_reusable: Whether the last request was written to its end.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._is_over = False
        self._error: Exception | None = None
        self._is_full = False
        self._waiter: asyncio.Future[None] | None = None
        self.has_received = False
        self.is_reusable = False

    @property
    def has_unacknowledged_bytes(self) -> bool:
        """Whether sent bytes are not acknowledged by the other side. Always False except on Linux."""
        found = self._transport.get_extra_info("socket") if self._transport is not None else None
        return found is not None and _unacknowledged(found.fileno()) > 0

    @property
    def is_quiet(self) -> bool:
        """Whether the connection is open, and has received nothing beyond the last response."""
        return not self._is_over and not self._received

    async def write(self, data: bytes, timeout: float) -> None:
        """Write *data*; return when the kernel has taken it."""
        if self._transport is None or self._is_over:
            raise httpx.WriteError(str(self._error or "the connection is closed"))
        if data:
            self._transport.write(data)
        while self._is_full:
            if self._is_over:
                raise httpx.WriteError(str(self._error or "the connection was closed"))
            try:
                await self._wait(timeout)
            except TimeoutError as exc:
                if self._received:
                    raise httpx.WriteError("the response arrived before the request was sent") from exc
                raise httpx.WriteTimeout("the server reads no more") from exc

    async def read(self, timeout: float | None) -> bytes:
        """Return the bytes that arrived, or b"" at the end of the stream."""
        while not self._received:
            if self._error is not None:
                raise httpx.ReadError(str(self._error)) from self._error
            if self._is_over:
                return b""
            try:
                await self._wait(timeout)
            except TimeoutError as exc:
                raise httpx.ReadTimeout("no data") from exc
        data = bytes(self._received)
        self._received.clear()
        if self._transport is not None:
            self._transport.resume_reading()
        return data

    def close(self) -> None:
        """Close the connection and discard unsent bytes."""
        if self._transport is not None:
            self._transport.close()
            self._transport.abort()

    async def _wait(self, timeout: float | None) -> None:
        """Wait for a change. A timer is cheaper here than ``asyncio.timeout``."""
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(timeout, self._time_out, self._waiter) if timeout is not None else None
        try:
            await self._waiter
        finally:
            if timer is not None:
                timer.cancel()

    @staticmethod
    def _time_out(waiter: "asyncio.Future[None]") -> None:
        if not waiter.done():
            waiter.set_exception(TimeoutError())

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # Bytes in the buffer of this process were not sent.
        self._transport.set_write_buffer_limits(0)

    def data_received(self, data: bytes) -> None:
        self._received += data
        self.has_received = True
        if len(self._received) > _READ_BUFFER_CAP and self._transport is not None:
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
    """Return how many bytes of a TCP socket the other side has not acknowledged; 0 if the system doesn't know."""
    with contextlib.suppress(OSError):
        return int.from_bytes(fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    return 0
