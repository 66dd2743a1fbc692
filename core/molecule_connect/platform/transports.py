"""The connections of one process, by origin. With ``one_connection``, ``blocking`` and ``trust`` all that knows httpx.

Figures and traps: httpcore's pool looks at every connection and every waiting request for each request, which takes
minutes of processor time for 1,000 workspaces, so each transport has one connection and no pool is shared; a pool's two
limits must be equal, or it reopens connections; the default keep-alive of 5 s reopens them too.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import IO, Any, cast

from molecule_connect import open_files
from molecule_connect.config.settings import USUAL_TLS, Tls
from molecule_connect.errors import (
    ConfigError,
    Outcome,
    PageTooLargeError,
    TransientPlatformError,
    ran_out_of_files,
    without_credentials,
)
from molecule_connect.platform.address import ApiAddress
from molecule_connect.platform.call_limits import PATIENCE, Places, Senders
from molecule_connect.platform.decompression import Body, Unpacking
from molecule_connect.platform.dns import Names
from molecule_connect.platform.endpoints import Operation, Priority
from molecule_connect.platform.http1 import MAX_IDLE, OneConnection
from molecule_connect.platform.httpx_import import httpx
from molecule_connect.platform.multipart import Multipart
from molecule_connect.platform.rate_limit import RateLimiter
from molecule_connect.platform.requests import Headers
from molecule_connect.platform.responses import Answer
from molecule_connect.platform.tls import Trust, proxy_for, proxy_source

# Calls of one kind, other than sends, that may wait for their answers before the next start is put off.
CALLS = 32
# Seconds for which an idle connection may still carry a send; one that died meanwhile costs the send its timeout.
SEND_IDLE = 2.0
# A peer that answered within this many seconds answers the next message too before its connection counts as dead.
PROMPT = 1.0
_PROMPT_KEPT = 1024
CONNECT_TIMEOUT, WRITE_TIMEOUT, POOL_TIMEOUT = 5.0, 10.0, 5.0
WHOLE_ANSWER_TIMEOUT = 300.0
_URLS_KEPT = 256
_PROXY_REFUSES = 407
_UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"
_WANTS_CERTIFICATE = ("certificate required", "certificate_required", "alert handshake failure")
REFUSAL_CAP = 64 * 1024
_NOT_TAKEN = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
)

AsyncTransport = httpx.AsyncBaseTransport


class Transports:
    """The connections that all workspaces of a process share. Close it when the last of them is done.

    Args:
        transport: Stands in for the network; tests give one.
        patience: Seconds after which a call that still waits for its answer makes room for another of its kind.
        whole_answer: Seconds in which an answer that has begun has to be here, or is none: what drips in keeps
            within the timeout of each read for ever.
        say: Told what the operator should know of the rate limit.

    Attributes:
        most_streams: How many event streams may be open at once; None: as many as are asked for.
    """

    def __init__(
        self,
        *,
        transport: "httpx.AsyncBaseTransport | None" = None,
        patience: float = PATIENCE,
        whole_answer: float = WHOLE_ANSWER_TIMEOUT,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._transport, self._clock, self._sleep, self._say = transport, clock, sleep, say
        self._patience, self._whole_answer = patience, whole_answer
        self._origins: dict[tuple[str, Tls], Connections] = {}
        self.most_streams: int | None = None
        self._names = Names()
        self._trust = Trust()

    def to(self, address: ApiAddress, tls: Tls = USUAL_TLS) -> "Connections":
        """The connections to the origin of *address*, made at the first call.

        Raises:
            ConfigError: A proxy, a certificate or a key that they need cannot be used.
        """
        key = address.origin, tls
        if key not in self._origins:
            if self._transport is None:
                self._trust.check(address, tls)
            pacer = RateLimiter(clock=self._clock, sleep=self._sleep, say=self._say)
            self._origins[key] = Connections(
                lambda keeps: self._open(address, tls, keeps=keeps),
                has_room_for_stream=self._has_room_for_stream,
                patience=self._patience,
                whole_answer=self._whole_answer,
                pacer=pacer,
                clock=self._clock,
            )
        return self._origins[key]

    async def aclose(self) -> None:
        """Closes every connection."""
        for connections in self._origins.values():
            await connections.aclose()
        self._origins.clear()

    def _has_room_for_stream(self) -> bool:
        streams = sum(connections.streams for connections in self._origins.values())
        return self.most_streams is None or streams < self.most_streams

    def _open(self, address: ApiAddress, tls: Tls, *, keeps: bool) -> "httpx.AsyncBaseTransport":
        """A transport of one connection; unless it *keeps* that, each request through a proxy has a new one."""
        if self._transport is not None:
            return self._transport
        options = self._trust.options(address, 1, tls)
        if proxy_for(address) is None:
            tls_context = options["verify"] if address.origin.startswith("https:") else None
            return OneConnection(tls_context, names=self._names)
        if not keeps:
            options["limits"] = httpx.Limits(max_connections=1, max_keepalive_connections=0)
        return httpx.AsyncHTTPTransport(**options)


class Connections:
    """The connections to one origin. Each serves one request at a time, so a call that hangs blocks no other.

    Calls of different kinds don't wait for each other: heartbeats go on while any other endpoint hangs.

    Attributes:
        streams: How many event streams are open.
    """

    def __init__(
        self,
        open_transport: "Callable[[bool], httpx.AsyncBaseTransport]",
        *,
        has_room_for_stream: Callable[[], bool],
        patience: float,
        whole_answer: float,
        pacer: RateLimiter,
        clock: Callable[[], float],
    ) -> None:
        self.pacer = pacer
        self._clock, self._whole_answer = clock, whole_answer
        self._open, self._has_room_for_stream = open_transport, has_room_for_stream
        self.streams = 0
        self._urls: dict[str, httpx.URL] = {}
        # The peers whose last answer came promptly, by the path of what is sent to them.
        self._prompt: set[str] = set()
        # httpx doesn't tell a kept connection from a new one, which makes a difference to a send without an answer.
        self._senders = Senders(lambda: open_transport(False), patience=patience)
        self._callers = Senders(lambda: open_transport(True), count=CALLS, patience=patience)
        self._opening = Places(CALLS, patience=patience)

    async def exchange(
        self,
        operation: Operation[Any],
        url: str,
        headers: Headers,
        *,
        sink: IO[bytes] | None = None,
        connect_to: str | None = None,
    ) -> Answer:
        """Sends *operation* and returns whatever came back; with a *sink*, a good body goes there and not into it.

        Args:
            connect_to: The IP address to connect to, whatever the host of *url* leads to.

        Raises:
            PageTooLargeError: A page over the operation's cap.
            TransientPlatformError: Nothing came back, or not all of it; the network error is the cause.
        """
        request = self._request(operation, url, headers, connect_to=connect_to)
        places = self._senders if operation.priority is Priority.SEND else self._callers
        if operation.priority is Priority.SEND:
            request.extensions[MAX_IDLE] = 0.0 if self._may_think(operation) else SEND_IDLE
        try:
            answer = await places.run(
                lambda transport: self._answer(transport, operation, request, sink), kind=operation.name
            )
            self._learn(operation, is_prompt=answer.seconds < PROMPT and 200 <= answer.status < 300)
            return answer
        except (httpx.HTTPError, TimeoutError) as exc:
            self._learn(operation, is_prompt=False)
            raise network_error(operation, url, exc, is_written=was_written(request)) from told(exc)

    def _may_think(self, operation: Operation[Any]) -> bool:
        """Whether *operation* is for a peer that may take its time; until it answers promptly, it may.

        On a connection that was opened for the request, silence means that the peer thinks, and the message counts as
        delivered. On a kept one it could also mean that the connection has died, and the message would be sent again.
        """
        return operation.to_peer and operation.path not in self._prompt

    def _learn(self, operation: Operation[Any], *, is_prompt: bool) -> None:
        if not is_prompt:
            self._prompt.discard(operation.path)
        elif operation.to_peer:
            if len(self._prompt) >= _PROMPT_KEPT:
                self._prompt.clear()
            self._prompt.add(operation.path)

    @contextlib.asynccontextmanager
    async def stream(
        self, operation: Operation[Any], url: str, headers: Headers
    ) -> AsyncIterator[tuple[Answer, AsyncIterator[bytes]]]:
        """Opens *operation* and gives its head, then its body in pieces as they come, without an end in time."""
        if not self._has_room_for_stream():
            raise TransientPlatformError(
                f"{operation.name}: the limit of open files leaves no room for another event stream",
                operation=operation.name,
                is_reported=True,
                hint=open_files.HOW_TO_RAISE,
            )
        transport = self._open(False)
        request = self._request(operation, url, headers, endless=True)
        response = None
        self.streams += 1
        try:
            async with self._opening.of(operation.name):
                began = self._clock()
                try:
                    async with asyncio.timeout(operation.timeout):
                        response = await transport.handle_async_request(request)
                        body = b"" if response.status_code == 200 else (await _body(response, REFUSAL_CAP))[0]
                except TimeoutError as exc:
                    raise httpx.ReadTimeout("") from exc
            head = answer_of(response, body, seconds=self._clock() - began)
            yield head, _unpacked(response)
        except httpx.HTTPError as exc:
            raise network_error(operation, url, exc, is_written=True) from told(exc)
        finally:
            self.streams -= 1
            if response is not None:
                await response.aclose()
            await transport.aclose()

    async def aclose(self) -> None:
        """Closes what is idle at once, and what is busy when it ends."""
        await self._senders.aclose()
        await self._callers.aclose()

    def _request(
        self,
        operation: Operation[Any],
        url: str,
        headers: Headers,
        *,
        endless: bool = False,
        connect_to: str | None = None,
    ) -> "httpx.Request":
        if connect_to is not None:
            return make_request(operation, url, headers, connect_to=connect_to)
        request = make_request(operation, self._urls.get(url) or url, headers, endless=endless)
        if len(self._urls) >= _URLS_KEPT:
            self._urls.clear()
        self._urls[url] = request.url
        return request

    async def _answer(
        self,
        transport: "httpx.AsyncBaseTransport",
        operation: Operation[Any],
        request: "httpx.Request",
        sink: IO[bytes] | None = None,
    ) -> Answer:
        began = self._clock()
        # Files take as long to send as they take.
        async with asyncio.timeout(None if operation.files is not None else operation.timeout + self._whole_answer):
            response = await transport.handle_async_request(request)
        try:
            seconds = self._clock() - began
            good = 200 <= response.status_code < 300
            async with asyncio.timeout(self._whole_answer):
                body, whole = await _body(response, operation.cap if good else REFUSAL_CAP, sink=sink if good else None)
        except (httpx.HTTPError, TimeoutError):
            if good:
                raise
            # A refusal is one without its words too, and nothing was delivered.
            body, whole = b"", False
        finally:
            await response.aclose()
        if not whole and good:
            check_cut(operation, response.status_code)
        return answer_of(response, body, whole=whole, seconds=seconds)


def check_cut(operation: Operation[Any], status: int) -> None:
    """PageTooLargeError, unless *operation* can do with the beginning of its answer."""
    if not operation.form.may_be_cut:
        raise PageTooLargeError(
            f"{operation.name}: the answer is larger than {operation.cap >> 20} MiB",
            operation=operation.name,
            status=status,
            hint="a smaller limit gives a smaller page",
        )


def make_request(
    operation: Operation[Any],
    url: "str | httpx.URL",
    headers: Headers,
    *,
    endless: bool = False,
    connect_to: str | None = None,
) -> "httpx.Request":
    """*operation* as httpx sends it; to the IP address *connect_to* in the name of *url*'s host.

    Raises:
        ConfigError: *url* is none.
    """
    timeout = {
        "connect": CONNECT_TIMEOUT,
        "read": None if endless else operation.timeout,
        "write": WRITE_TIMEOUT,
        "pool": POOL_TIMEOUT,
    }
    stream: _Files | _Body | None = _Body(operation.body) if operation.body else None
    if operation.files is not None:
        stream = _Files(operation.files)
        headers = [one for one in headers if one[0] != "Content-Type"]
        headers.append(("Content-Type", operation.files.content_type))
    try:
        url = httpx.URL(url)
        if not url.host:  # asking for it also raises for what is no name
            raise httpx.InvalidURL("no host")
        if stream is not None:
            # httpx adds nothing to a request with a stream, which spares it going through the headers three times.
            headers = [("Host", url.netloc.decode()), *headers, ("Content-Length", str(stream.length))]
        extensions: dict[str, Any] = {"timeout": timeout}
        if connect_to is not None:
            # The certificate has to be the name's, not the address's.
            extensions["sni_hostname"] = url.raw_host.decode("ascii")
            url = url.copy_with(host=connect_to)
        return httpx.Request(operation.method, url, headers=headers, stream=stream, extensions=extensions)
    except (httpx.InvalidURL, UnicodeError) as exc:
        raise ConfigError(f"the API address {_place(str(url))} cannot be used", hint="check its host name") from exc


class _Files(httpx.AsyncByteStream, httpx.SyncByteStream):
    """Files as a request's body, read while they are sent."""

    def __init__(self, files: Multipart) -> None:
        self._files, self.length = files, files.length
        self.is_written = False

    def __iter__(self) -> Iterator[bytes]:
        yield from self._files.pieces()
        self.is_written = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces = self._files.pieces()
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece
        self.is_written = True


class _Body(httpx.AsyncByteStream, httpx.SyncByteStream):
    """A request's body that knows whether it was written: the connection asks for more only after a write."""

    def __init__(self, content: bytes) -> None:
        self._content, self.length = content, len(content)
        self.is_written = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._content
        self.is_written = True

    def __iter__(self) -> Iterator[bytes]:
        yield self._content
        self.is_written = True


def was_written(request: "httpx.Request") -> bool:
    """Whether the whole of *request* is known to have been sent."""
    return request.stream.is_written if isinstance(request.stream, _Body | _Files) else True


async def _body(response: "httpx.Response", cap: int, *, sink: IO[bytes] | None = None) -> tuple[bytes, bool]:
    """The body up to *cap* bytes, unless it went to the *sink*, and whether that is all of it."""
    body = Body(response.headers.get("content-encoding", ""), cap, sink)
    async for packed in cast("httpx.AsyncByteStream", response.stream):
        if not body.take(packed):
            break
    return body.kept, body.is_whole


async def _unpacked(response: "httpx.Response") -> AsyncIterator[bytes]:
    unpacking = Unpacking(response.headers.get("content-encoding", ""))
    async for packed in cast("httpx.AsyncByteStream", response.stream):
        for piece in unpacking.pieces(packed):
            yield piece


def answer_of(response: "httpx.Response", body: bytes, *, whole: bool = True, seconds: float = 0.0) -> Answer:
    """*response* without httpx.

    Raises:
        httpx.ProxyError: A proxy answered: it wants other credentials, and the platform never saw the request.
    """
    if response.status_code == _PROXY_REFUSES:
        raise httpx.ProxyError(f"{_PROXY_REFUSES} Proxy Authentication Required")
    headers = dict(response.headers.items())
    return Answer(status=response.status_code, headers=headers, body=body, whole=whole, seconds=seconds)


def told(exc: Exception) -> Exception | None:
    """*exc* where it may be shown as a cause."""
    # Its text quotes the header that it dislikes, and that could be the token.
    return None if isinstance(exc, httpx.LocalProtocolError) else exc


def _place(url: str) -> str:
    return without_credentials("/".join(url.split("/")[:3]))


def _way_words(place: str, proxy: str, exc: Exception) -> tuple[str, str]:
    """What it means that *place* can't be reached by the proxy that the variable *proxy* names, and what to do."""
    if not isinstance(exc, httpx.ProxyError):
        hint = f"check the network, the proxy that {proxy} names, and the API address, and that the platform runs"
        return f"{place} cannot be reached by way of the proxy", hint
    if str(_PROXY_REFUSES) in str(exc):
        return f"the proxy on the way to {place} refuses the credentials", f"correct user name and password in {proxy}"
    hint = f"check the proxy that {proxy} names, or name the platform's host in NO_PROXY"
    return f"the proxy on the way to {place} refuses the connection", hint


def network_error(operation: Operation[Any], url: str, exc: Exception, *, is_written: bool) -> TransientPlatformError:
    """What *exc* means: how far the request came, in words and as ``outcome``."""
    place = _place(url)
    outcome = Outcome.UNKNOWN
    text, hint = f"the connection to {place} was cut", "if it goes on: look at the network, and at proxies on the way"
    reason = "" if isinstance(exc, httpx.LocalProtocolError) else " ".join(str(exc).split())[:120]
    if isinstance(exc, _NOT_TAKEN):
        outcome = Outcome.NOT_TAKEN
        text, hint = f"{place} cannot be reached", "check the network and the API address, and that the platform runs"
        if proxy := proxy_source(place):
            text, hint = _way_words(place, proxy, exc)
        if _UNTRUSTED in reason:
            text = f"the certificate of {place} is not trusted"
            hint = "where it is from a CA of your own, name that CA's certificate with --ca-file or SSL_CERT_FILE"
        if ran_out_of_files(exc):
            text, hint = f"no connection to {place} can be opened", open_files.HOW_TO_RAISE
    elif isinstance(exc, httpx.WriteTimeout):
        text, reason = f"{place} did not take the request within {WRITE_TIMEOUT:g} s", ""
    elif isinstance(exc, httpx.ReadTimeout | TimeoutError):
        # A cut after the write is less than that: the platform may have died before it looked.
        outcome = Outcome.WRITTEN if is_written else Outcome.UNKNOWN
        text, reason = f"no answer within {operation.timeout:g} s from {place}", ""
        hint = "other endpoints may still answer; if it goes on, ask the platform's operator about this one"
    elif any(words in reason.lower() for words in _WANTS_CERTIFICATE):
        hint = "the platform, or what stands before it, asks for a client certificate: name yours with --client-cert"
    if isinstance(exc, TimeoutError):
        text = f"no complete answer from {place}: it arrives too slowly"
    return TransientPlatformError(
        f"{operation.name}: {text}" + (f" ({reason})" if reason else ""),
        operation=operation.name,
        outcome=outcome,
        hint=hint,
    )
