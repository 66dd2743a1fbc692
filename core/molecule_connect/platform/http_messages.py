"""HTTP requests made from operations, and the bodies of their responses, decompressed up to a size limit."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import IO, Any, Protocol

import attrs

from molecule_connect.errors import ConfigError, PageTooLargeError, without_credentials
from molecule_connect.platform.endpoints import Operation
from molecule_connect.platform.httpx_import import httpx
from molecule_connect.platform.multipart import Multipart
from molecule_connect.platform.responses import HttpResponse

Headers = list[tuple[str, str]]
CONNECT_TIMEOUT, WRITE_TIMEOUT = 5.0, 10.0
# Most bytes that are read of the body of an error.
ERROR_CAP = 64 * 1024
PROXY_AUTHENTICATION_REQUIRED = 407
_CHUNK = 64 * 1024
_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS


@attrs.define(kw_only=True, eq=False)
class HttpRequest:
    """A request. httpx's own class takes several times the processor time.

    Attributes:
        headers: With Host and Content-Length.
        body: Files are read while they are sent.
        read_timeout: Seconds without a byte of the response; None for no limit.
        max_idle: The longest idle time, in seconds, of a connection that may be reused for it.
        check: Called right before it is written. If it raises, nothing is sent.
        is_written: Whether all of it was written.
    """

    method: str
    url: httpx.URL
    headers: Headers
    body: bytes | Multipart = b""
    connect_timeout: float = CONNECT_TIMEOUT
    read_timeout: float | None = CONNECT_TIMEOUT
    write_timeout: float = WRITE_TIMEOUT
    max_idle: float = float("inf")
    check: Callable[[], None] = lambda: None
    is_written: bool = False

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body. A connection takes the next piece only after a write."""
        if isinstance(self.body, bytes):
            if self.body:
                yield self.body
        else:
            pieces = self.body.pieces()
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                yield piece
        self.is_written = True


class Body(Protocol):
    """The body of a response, which is read while it is iterated. Close it in any case."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None: ...


@attrs.frozen
class HttpHead:
    """The head of a response.

    Attributes:
        headers: By lower-case name.
        content: The whole body, if it arrived with the head.
    """

    status: int
    headers: dict[str, str]
    body: Body
    content: bytes | None = None


class Transport(Protocol):
    """Sends one request at a time. Its errors are those of httpx."""

    async def send(self, request: HttpRequest) -> HttpHead: ...

    async def aclose(self) -> None: ...


class HttpxTransport:
    """Sends requests through a transport of httpx: to a proxy, or to a platform in this process."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def send(self, request: HttpRequest) -> HttpHead:
        """Send *request* and return the head of the response."""
        request.check()
        timeouts = {
            "connect": request.connect_timeout,
            "read": request.read_timeout,
            "write": request.write_timeout,
            "pool": request.connect_timeout,
        }
        response = await self._transport.handle_async_request(
            httpx.Request(
                request.method,
                request.url,
                headers=request.headers,
                stream=_HttpxBody(request),
                extensions={"timeout": timeouts},
            )
        )
        return HttpHead(response.status_code, dict(response.headers.items()), response.stream)  # type: ignore[arg-type]

    async def aclose(self) -> None:
        """Close the transport."""
        await self._transport.aclose()


class _HttpxBody(httpx.AsyncByteStream):
    def __init__(self, request: HttpRequest) -> None:
        self._request = request

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._request.pieces()


def make_request(operation: Operation[Any], url: httpx.URL, headers: Headers, *, endless: bool = False) -> HttpRequest:
    """Return the request for *operation*.

    Args:
        endless: The response is a stream without a read timeout.
    """
    body: bytes | Multipart = operation.body or b""
    if operation.files is not None:
        body = operation.files
        headers = [one for one in headers if one[0] != "Content-Type"]
        headers.append(("Content-Type", body.content_type))
    headers = [("Host", url.netloc.decode()), *headers]
    if body or operation.method != "GET":
        headers.append(("Content-Length", str(len(body) if isinstance(body, bytes) else body.length)))
    return HttpRequest(
        method=operation.method,
        url=url,
        headers=headers,
        body=body,
        read_timeout=None if endless else operation.timeout,
        check=operation.check,
    )


def parse_url(url: str) -> httpx.URL:
    """Parse *url*.

    Raises:
        ConfigError: It is invalid.
    """
    try:
        parsed = httpx.URL(url)
        if not parsed.host:  # raises for an invalid name, too
            raise httpx.InvalidURL("no host")
    except (httpx.InvalidURL, UnicodeError) as exc:
        raise ConfigError(f"the API address {origin_of(url)} cannot be used", hint="check its host name") from exc
    return parsed


def origin_of(url: str) -> str:
    """Return scheme, host and port of *url*, for error messages."""
    return without_credentials("/".join(url.split("/")[:3]))


def http_response(head: HttpHead, body: bytes, *, is_whole: bool = True, seconds: float = 0.0) -> HttpResponse:
    """Return a response with *head* and *body*.

    Raises:
        httpx.ProxyError: It is from a proxy that wants other credentials, and the platform never saw the request.
    """
    if head.status == PROXY_AUTHENTICATION_REQUIRED:
        raise httpx.ProxyError(f"{PROXY_AUTHENTICATION_REQUIRED} Proxy Authentication Required")
    return HttpResponse(status=head.status, headers=head.headers, body=body, is_whole=is_whole, seconds=seconds)


async def read_body(head: HttpHead, cap: int, *, sink: IO[bytes] | None = None) -> tuple[bytes, bool]:
    """Return the body up to *cap* bytes, and whether that is all of it. With a *sink*, write it there instead."""
    encoding = head.headers.get("content-encoding", "")
    if head.content is not None and len(head.content) <= cap and not encoding and sink is None:
        return head.content, True
    body = BodyReader(encoding, cap, sink)
    async for data in head.body:
        if not body.feed(data):
            break
    return body.content, body.is_whole


def read_stream(head: HttpHead) -> AsyncIterator[bytes]:
    """Return the pieces of the body as they arrive."""
    decompressor = Decompressor(head.headers.get("content-encoding", ""))
    return _decompressed(head.body, decompressor) if decompressor.is_needed else aiter(head.body)


async def _decompressed(body: Body, decompressor: "Decompressor") -> AsyncIterator[bytes]:
    async for data in body:
        for chunk in decompressor.chunks(data):
            yield chunk


def check_whole(operation: Operation[Any], status: int) -> None:
    """Raise PageTooLargeError unless the beginning of the response is enough for *operation*."""
    if not operation.body_format.may_be_cut:
        raise PageTooLargeError(
            f"{operation.name}: the answer is larger than {operation.cap >> 20} MiB",
            operation=operation.name,
            status=status,
            hint="a smaller limit gives a smaller page",
        )


class BodyReader:
    """Collects the body of a response while it arrives.

    Args:
        encoding: The ``Content-Encoding`` of the response.
        cap: Most bytes to take.
        sink: A file for the body; None keeps it in memory.

    Raises:
        httpx.DecodingError: As ``Decompressor`` does.
    """

    def __init__(self, encoding: str, cap: int, sink: IO[bytes] | None) -> None:
        self._decompressor = Decompressor(encoding)
        self._cap, self._sink = cap, sink
        self._chunks: list[bytes] = []
        self._size = 0
        self.is_whole = True

    @property
    def content(self) -> bytes:
        """The bytes that were not written to the sink."""
        return b"".join(self._chunks)[: self._cap]

    def feed(self, data: bytes) -> bool:
        """Take received bytes. False if they exceed the cap, and nothing more should be read."""
        for chunk in self._decompressor.chunks(data):
            self._size += len(chunk)
            self.is_whole = self._size <= self._cap
            if self._sink is None or not self.is_whole:
                self._chunks.append(chunk)
            else:
                self._sink.write(chunk)
            if not self.is_whole:
                return False
        return True


class Decompressor:
    """Decompresses a body in chunks of limited size.

    httpx decompresses each received piece at once, and 256 KiB of gzip can expand to 256 MiB.

    Args:
        encoding: The ``Content-Encoding`` of the response.

    Raises:
        httpx.DecodingError: The encoding was not asked for.
    """

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding.strip().lower()
        if self._encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise httpx.DecodingError("the response has a content encoding that was not asked for")
        self._zlib: zlib._Decompress | None = None

    @property
    def is_needed(self) -> bool:
        """Whether the body is compressed."""
        return self._encoding not in ("", "identity")

    def chunks(self, data: bytes) -> Iterator[bytes]:
        """Yield the decompressed *data*.

        Raises:
            httpx.DecodingError: It is damaged.
        """
        if not self.is_needed:
            yield data
            return
        try:
            while data:
                if self._zlib is None:
                    self._zlib = zlib.decompressobj(self._window_bits(data))
                chunk = self._zlib.decompress(data, _CHUNK)
                data = self._zlib.unconsumed_tail
                if chunk:
                    yield chunk
                if self._zlib.eof:
                    return
        except zlib.error as exc:
            raise httpx.DecodingError(f"the response can't be decompressed: {exc}") from exc

    def _window_bits(self, data: bytes) -> int:
        if self._encoding != "deflate":
            return _GZIP
        # The standard requires a zlib header; some servers leave it out.
        return _ZLIB if data[0] & 0x0F == 8 else _RAW
