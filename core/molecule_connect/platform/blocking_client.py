"""PlatformClient: the blocking client, for programs that run no event loop. Threads may share one."""

import threading
import time
from collections.abc import Callable
from typing import IO, Any, Self, TypeVar, cast

from molecule_connect.config.settings import USUAL_TLS, Tls
from molecule_connect.errors import AuthError, ConfigError
from molecule_connect.platform.address import ApiAddress, parse_address
from molecule_connect.platform.credentials import TokenSource
from molecule_connect.platform.endpoints import Operation
from molecule_connect.platform.http_messages import (
    ERROR_CAP,
    BodyReader,
    Headers,
    check_whole,
    http_response,
    make_request,
    was_written,
)
from molecule_connect.platform.httpx_import import httpx
from molecule_connect.platform.network_errors import network_error, safe_cause
from molecule_connect.platform.requests import RequestContext
from molecule_connect.platform.responses import HttpResponse
from molecule_connect.platform.tls import Trust
from molecule_connect.platform.transports import WHOLE_RESPONSE_TIMEOUT

BlockingTransport = httpx.BaseTransport
# As many threads of one program may wait for an answer at once. A peer may take 90 s for its own; beats must not wait.
CONNECTIONS = 100
T = TypeVar("T")


class BlockingTransports:
    """One pool of connections per origin.

    Args:
        transport: Stands in for the network; tests give one.
        tls: Whom they trust, and with which certificate they show who we are.
    """

    def __init__(
        self,
        *,
        transport: httpx.BaseTransport | None = None,
        tls: Tls = USUAL_TLS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tls = tls
        self._transport, self._clock = transport, clock
        self._pools: dict[str, httpx.BaseTransport] = {}
        self._trust = Trust()
        self._lock = threading.Lock()
        self._under_way = 0
        self._is_closed = False

    def exchange(
        self,
        address: ApiAddress,
        operation: Operation[Any],
        url: str,
        headers: Headers,
        *,
        sink: IO[bytes] | None = None,
        connect_to: str | None = None,
    ) -> HttpResponse:
        """Sends *operation* and returns whatever came back; with a *sink*, a good body goes there and not into it.

        Args:
            connect_to: The IP address to connect to, whatever the host of *url* leads to.

        Raises:
            ConfigError: It is closed.
            PageTooLargeError: An answer over the operation's cap.
            TransientPlatformError: Nothing came back, or not all of it; the network error is the cause.
        """
        request = make_request(operation, url, headers, connect_to=connect_to)
        with self._lock:
            pool = self._pool(address)
            self._under_way += 1
        try:
            return self._answer(pool, operation, request, sink)
        except (httpx.HTTPError, TimeoutError) as exc:
            raise network_error(operation, url, exc, is_written=was_written(request)) from safe_cause(exc)
        finally:
            with self._lock:
                self._under_way -= 1
                self._close_idle()

    def close(self) -> None:
        """Takes no more requests, and closes the connections; with the last answer where threads still wait for one."""
        with self._lock:
            self._is_closed = True
            self._close_idle()

    def _close_idle(self) -> None:
        # Closing a pool that is at work cuts what was sent, and leaves what is being opened.
        while self._is_closed and not self._under_way and self._pools:
            self._pools.popitem()[1].close()

    def _pool(self, address: ApiAddress) -> httpx.BaseTransport:
        if self._is_closed:
            raise ConfigError("the client is closed", hint="make a new one")
        if self._transport is not None:
            return self._transport
        if address.origin not in self._pools:
            options = self._trust.options(address, CONNECTIONS, self._tls)
            self._pools[address.origin] = httpx.HTTPTransport(**options)
        return self._pools[address.origin]

    def _answer(
        self,
        transport: httpx.BaseTransport,
        operation: Operation[Any],
        request: httpx.Request,
        sink: IO[bytes] | None,
    ) -> HttpResponse:
        began = self._clock()
        response = transport.handle_request(request)
        try:
            seconds = self._clock() - began
            good = 200 <= response.status_code < 300
            cap = operation.cap if good else ERROR_CAP
            until = began + seconds + WHOLE_RESPONSE_TIMEOUT
            body, whole = self._body(response, cap, sink if good else None, until=until)
        finally:
            response.close()
        if not whole and good:
            check_whole(operation, response.status_code)
        return http_response(response, body, is_whole=whole, seconds=seconds)

    def _body(self, response: httpx.Response, cap: int, sink: IO[bytes] | None, *, until: float) -> tuple[bytes, bool]:
        """The body up to *cap* bytes, unless it went to the *sink*, and whether that is all of it."""
        body = BodyReader(response.headers.get("content-encoding", ""), cap, sink)
        for packed in cast("httpx.SyncByteStream", response.stream):
            if not body.feed(packed):
                break
            if self._clock() > until:
                raise TimeoutError
        return body.content, body.is_whole


class PlatformClient:
    """One workspace's way to a platform, blocking. Use it as a context manager, or call ``close``.

    Args:
        credentials: Where the token comes from.
        transports: Its connections; closed together with it.

    Raises:
        ConfigError: Id, address, token or organisation cannot be used; before any request.
    """

    def __init__(
        self,
        api_url: str,
        *,
        workspace_id: str,
        credentials: TokenSource,
        org_id: str | None = None,
        insecure: bool = False,
        transports: BlockingTransports,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._caller = RequestContext(
            parse_address(api_url, insecure=insecure),
            workspace_id=workspace_id,
            credentials=credentials,
            org_id=org_id,
            clock=clock,
        )
        self.platform_clock = self._caller.platform_clock
        self._transports = transports

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes its connections."""
        self._transports.close()

    def call(self, operation: Operation[T], *, sink: IO[bytes] | None = None) -> T:
        """Sends *operation* and returns what it reads in the answer. A refused token is replaced once.

        Args:
            sink: Takes the body of a good answer, piece by piece.

        Raises:
            AuthError: No token that its sources hold is accepted.
            PermanentPlatformError: The platform itself refused, or does not have an optional endpoint.
            TransientPlatformError: Anything that may work later; ``outcome`` says how far it came.
        """
        self._caller.check_absent(operation)
        token = self._caller.token_for(operation)
        try:
            return self._once(operation, token, sink)
        except AuthError:
            other = self._caller.credentials.after_refusal(token or "")
            if other is None:
                raise
        return self._once(operation, other, sink)

    def _once(self, operation: Operation[T], token: str | None, sink: IO[bytes] | None) -> T:
        url, headers = self._caller.url(operation), self._caller.headers(token)
        answer = self._transports.exchange(self._caller.address, operation, url, headers, sink=sink)
        self._caller.update_clock(answer)
        return self._caller.read(operation, answer)
