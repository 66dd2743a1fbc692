"""The connections of one process, by origin.

httpcore's pool visits every connection and every waiting request for each request, which takes minutes of processor
time for 1,000 workspaces. So a transport has one connection, and the pools here are plain lists of idle transports.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import IO, Any, Generic, Protocol, TypeVar

import attrs

from molecule_connect import open_files
from molecule_connect.config.settings import USUAL_TLS, Tls
from molecule_connect.errors import TransientPlatformError
from molecule_connect.platform.address import ApiAddress
from molecule_connect.platform.call_limits import PATIENCE, Call, CallLimit
from molecule_connect.platform.dns import Resolver
from molecule_connect.platform.endpoints import Operation, Priority
from molecule_connect.platform.http1 import HttpConnection
from molecule_connect.platform.http_messages import (
    ERROR_CAP,
    Headers,
    HttpHead,
    HttpRequest,
    HttpxTransport,
    Transport,
    check_whole,
    http_response,
    make_request,
    parse_url,
    read_body,
    read_stream,
)
from molecule_connect.platform.httpx_import import httpx
from molecule_connect.platform.network_errors import network_error, safe_cause
from molecule_connect.platform.rate_limit import RateLimiter
from molecule_connect.platform.responses import HttpResponse
from molecule_connect.platform.tls import Trust, proxy_for

# Sends, and other calls, of one kind that may wait for their response.
MAX_SENDS, MAX_CALLS = 8, 32
# Longest idle time, in seconds, of a connection that may carry a send. If it died meanwhile, the send has to time out.
SEND_IDLE = 2.0
# Responses within this many seconds are prompt: the next message to the same peer may reuse a connection.
PROMPT_SECONDS = 1.0
_MAX_PROMPT_PEERS = 1024
WHOLE_RESPONSE_TIMEOUT = 300.0
_MAX_CACHED_URLS = 256

AsyncTransport = httpx.AsyncBaseTransport


class Closable(Protocol):
    async def aclose(self) -> None: ...


C = TypeVar("C", bound=Closable)
C_co = TypeVar("C_co", bound=Closable, covariant=True)


class Factory(Protocol[C_co]):
    def open(self) -> C_co: ...


class TransportPool(Generic[C]):
    """Keeps idle transports. A transport serves one call at a time.

    Args:
        factory: Opens a transport when none is idle.
        count: Calls of one kind that may wait for their response, and idle transports that are kept.
        patience: As in ``CallLimit``.
    """

    def __init__(self, factory: Factory[C], *, count: int = MAX_SENDS, patience: float = PATIENCE) -> None:
        self._factory, self._count = factory, count
        self._limit = CallLimit(count, patience=patience)
        self._idle: list[C] = []
        self._is_closed = False

    def use(self, kind: str = "") -> "_Use[C]":
        """Wait for the limit of *kind* on entry of the block, and return a transport that no other call uses."""
        return _Use(self, self._limit.of(kind))

    def take(self) -> C:
        """Return an idle transport, or open one."""
        return self._idle.pop() if self._idle else self._factory.open()

    async def give_back(self, transport: C) -> None:
        """Keep *transport* for other calls, or close it if there are enough."""
        if len(self._idle) < self._count and not self._is_closed:
            self._idle.append(transport)
        else:
            await transport.aclose()

    async def aclose(self) -> None:
        """Close the idle transports now, and the others when their calls end."""
        self._is_closed = True
        while self._idle:
            await self._idle.pop().aclose()


class _Use(Generic[C]):
    """A transport in use. A class, because a generator takes three times the time."""

    def __init__(self, pool: TransportPool[C], call: Call) -> None:
        self._pool, self._call = pool, call

    async def __aenter__(self) -> C:
        await self._call.__aenter__()
        try:
            self._transport = self._pool.take()
        except BaseException:
            await self._call.__aexit__()
            raise
        return self._transport

    async def __aexit__(self, *exc: object) -> None:
        try:
            await self._pool.give_back(self._transport)
        finally:
            await self._call.__aexit__()


@attrs.define
class StreamLimit:
    """How many event streams this process has open, and how many it may have (``most``; None: no limit)."""

    most: int | None = None
    count: int = 0

    @property
    def has_room(self) -> bool:
        return self.most is None or self.count < self.most


@attrs.frozen(kw_only=True)
class _TransportFactory:
    """Opens transports to one origin.

    Attributes:
        network: Replaces the network in tests.
        reuses_proxy_connections: If False, each request through a proxy has a connection of its own.
    """

    address: ApiAddress
    tls: Tls
    trust: Trust
    resolver: Resolver
    network: "httpx.AsyncBaseTransport | None"
    reuses_proxy_connections: bool = False

    def open(self) -> Transport:
        """Return a transport with one connection."""
        if self.network is not None:
            return HttpxTransport(self.network)
        options = self.trust.options(self.address, 1, self.tls)
        if proxy_for(self.address) is None:
            context = options["verify"] if self.address.origin.startswith("https:") else None
            return HttpConnection(context, resolver=self.resolver)
        if not self.reuses_proxy_connections:
            options["limits"] = httpx.Limits(max_connections=1, max_keepalive_connections=0)
        return HttpxTransport(httpx.AsyncHTTPTransport(**options))


class Transports:
    """The connections that all workspaces of a process share. Close it after the last of them has stopped.

    Args:
        transport: Replaces the network in tests.
        patience: As in ``CallLimit``.
        whole_response: Seconds for a whole response. The timeout of each read doesn't end a response that trickles in.
        say: Receives notices about the rate limit for the operator.

    Attributes:
        streams: Limits the event streams of the process.
    """

    def __init__(
        self,
        *,
        transport: "httpx.AsyncBaseTransport | None" = None,
        patience: float = PATIENCE,
        whole_response: float = WHOLE_RESPONSE_TIMEOUT,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._transport, self._clock, self._sleep, self._say = transport, clock, sleep, say
        self._patience, self._whole_response = patience, whole_response
        self._origins: dict[tuple[str, Tls], Connections] = {}
        self.streams = StreamLimit()
        self._resolver = Resolver()
        self._trust = Trust()

    def to(self, address: ApiAddress, tls: Tls = USUAL_TLS) -> "Connections":
        """Return the connections to the origin of *address*. None is opened before the first call.

        Raises:
            ConfigError: A proxy, a certificate or a key can't be used.
        """
        key = address.origin, tls
        if key not in self._origins:
            if self._transport is None:
                self._trust.check(address, tls)
            self._origins[key] = Connections(
                _TransportFactory(
                    address=address, tls=tls, trust=self._trust, resolver=self._resolver, network=self._transport
                ),
                rate_limiter=RateLimiter(clock=self._clock, sleep=self._sleep, say=self._say),
                streams=self.streams,
                patience=self._patience,
                whole_response=self._whole_response,
                clock=self._clock,
            )
        return self._origins[key]

    async def aclose(self) -> None:
        """Close every connection."""
        for connections in self._origins.values():
            await connections.aclose()
        self._origins.clear()


class Connections:
    """The connections to one origin. Each serves one request at a time, so a call that hangs blocks no other.

    Calls of different kinds don't wait for each other: heartbeats continue while any other endpoint hangs.
    """

    def __init__(
        self,
        factory: _TransportFactory,
        *,
        rate_limiter: RateLimiter,
        streams: StreamLimit,
        patience: float,
        whole_response: float,
        clock: Callable[[], float],
    ) -> None:
        self.rate_limiter = rate_limiter
        self._streams, self._clock, self._whole_response = streams, clock, whole_response
        self._urls: dict[str, httpx.URL] = {}
        # The peers whose last response was prompt, by the path of their messages.
        self._prompt_peers: set[str] = set()
        # Through a proxy, a send can't know whether its connection was reused, which matters if there is no response.
        self._factory = factory
        self._senders = TransportPool(factory, patience=patience)
        self._callers = TransportPool(
            attrs.evolve(factory, reuses_proxy_connections=True), count=MAX_CALLS, patience=patience
        )
        self._opening_streams = CallLimit(MAX_CALLS, patience=patience)

    async def exchange(
        self,
        operation: Operation[Any],
        url: str,
        headers: Headers,
        *,
        sink: IO[bytes] | None = None,
    ) -> HttpResponse:
        """Send *operation* and return the response of any status.

        Args:
            sink: Receives the body of a 2xx response, which is then not in the result.

        Raises:
            PageTooLargeError: The response is larger than the operation's cap.
            TransientPlatformError: There was no response, or not all of it. The network error is the cause.
        """
        request = self._request(operation, url, headers)
        pool = self._callers
        if operation.priority is Priority.SEND:
            pool = self._senders
            request.max_idle = 0.0 if self._may_be_slow(operation) else SEND_IDLE
        try:
            async with pool.use(operation.name) as transport:
                response = await self._response(transport, operation, request, sink)
        except (httpx.HTTPError, TimeoutError) as exc:
            self._remember_pace(operation, is_prompt=False)
            raise network_error(operation, url, exc, is_written=request.is_written) from safe_cause(exc)
        self._remember_pace(operation, is_prompt=response.seconds < PROMPT_SECONDS and 200 <= response.status < 300)
        return response

    def _may_be_slow(self, operation: Operation[Any]) -> bool:
        """Whether *operation* is for a peer that has not answered promptly.

        On a new connection, no response means that the peer is still working, and the message counts as delivered. On a
        reused one it could also mean that the connection is dead, and the message would be sent again.
        """
        return operation.to_peer and operation.path not in self._prompt_peers

    def _remember_pace(self, operation: Operation[Any], *, is_prompt: bool) -> None:
        if not is_prompt:
            self._prompt_peers.discard(operation.path)
        elif operation.to_peer:
            if len(self._prompt_peers) >= _MAX_PROMPT_PEERS:
                self._prompt_peers.clear()
            self._prompt_peers.add(operation.path)

    @contextlib.asynccontextmanager
    async def stream(
        self, operation: Operation[Any], url: str, headers: Headers
    ) -> AsyncIterator[tuple[HttpResponse, AsyncIterator[bytes]]]:
        """Open an event stream and yield its head and the pieces of its body, which have no read timeout."""
        if not self._streams.has_room:
            raise TransientPlatformError(
                f"{operation.name}: the limit of open files leaves no room for another event stream",
                operation=operation.name,
                is_reported=True,
                hint=open_files.HOW_TO_RAISE,
            )
        transport = self._factory.open()
        head = None
        self._streams.count += 1
        try:
            async with self._opening_streams.of(operation.name):
                started = self._clock()
                try:
                    async with asyncio.timeout(operation.timeout):
                        # Not kept in a variable: it would live as long as the stream.
                        head = await transport.send(self._request(operation, url, headers, endless=True))
                        body = b"" if head.status == 200 else (await read_body(head, ERROR_CAP))[0]
                except TimeoutError as exc:
                    raise httpx.ReadTimeout("") from exc
            yield http_response(head, body, seconds=self._clock() - started), read_stream(head)
        except httpx.HTTPError as exc:
            raise network_error(operation, url, exc, is_written=True) from safe_cause(exc)
        finally:
            self._streams.count -= 1
            if head is not None:
                await head.body.aclose()
            await transport.aclose()

    async def aclose(self) -> None:
        """Close idle connections now, and busy ones when their calls end."""
        await self._senders.aclose()
        await self._callers.aclose()

    def _request(
        self,
        operation: Operation[Any],
        url: str,
        headers: Headers,
        *,
        endless: bool = False,
    ) -> HttpRequest:
        if (parsed := self._urls.get(url)) is None:
            if len(self._urls) >= _MAX_CACHED_URLS:
                self._urls.clear()
            parsed = self._urls[url] = parse_url(url)
        return make_request(operation, parsed, headers, endless=endless)

    async def _response(
        self,
        transport: Transport,
        operation: Operation[Any],
        request: HttpRequest,
        sink: IO[bytes] | None,
    ) -> HttpResponse:
        started, is_good = self._clock(), False
        head: HttpHead | None = None
        body, is_whole, seconds = b"", False, 0.0
        try:
            # Sending files has no time limit.
            limit = None if operation.files is not None else operation.timeout + self._whole_response
            async with asyncio.timeout(limit) as deadline:
                head = await transport.send(request)
                seconds = self._clock() - started
                if limit is None:
                    deadline.reschedule(asyncio.get_running_loop().time() + self._whole_response)
                is_good = 200 <= head.status < 300
                cap = operation.cap if is_good else ERROR_CAP
                body, is_whole = await read_body(head, cap, sink=sink if is_good else None)
        except (httpx.HTTPError, TimeoutError):
            # The status of an error is enough.
            if head is None or is_good:
                raise
        finally:
            if head is not None:
                await head.body.aclose()
        if not is_whole and is_good:
            check_whole(operation, head.status)
        return http_response(head, body, is_whole=is_whole, seconds=seconds)
