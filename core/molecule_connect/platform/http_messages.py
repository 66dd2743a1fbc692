"""HTTP requests made from operations, and the bodies of their responses, decompressed up to a size limit."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import IO, Any, cast

from molecule_connect.errors import ConfigError, PageTooLargeError, without_credentials
from molecule_connect.platform.endpoints import Operation
from molecule_connect.platform.httpx_import import httpx
from molecule_connect.platform.multipart import Multipart
from molecule_connect.platform.responses import HttpResponse

Headers = list[tuple[str, str]]
CONNECT_TIMEOUT, WRITE_TIMEOUT, POOL_TIMEOUT = 5.0, 10.0, 5.0
# Most bytes that are read of the body of an error.
ERROR_CAP = 64 * 1024
PROXY_AUTHENTICATION_REQUIRED = 407
_CHUNK = 64 * 1024
_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS


def make_request(
    operation: Operation[Any],
    url: "str | httpx.URL",
    headers: Headers,
    *,
    endless: bool = False,
) -> "httpx.Request":
    """Return the request for *operation*.

    Args:
        endless: The response is a stream without a read timeout.

    Raises:
        ConfigError: *url* is invalid.
    """
    timeout = {
        "connect": CONNECT_TIMEOUT,
        "read": None if endless else operation.timeout,
        "write": WRITE_TIMEOUT,
        "pool": POOL_TIMEOUT,
    }
    stream: _FilesBody | _BytesBody | None = _BytesBody(operation.body) if operation.body else None
    if operation.files is not None:
        stream = _FilesBody(operation.files)
        headers = [one for one in headers if one[0] != "Content-Type"]
        headers.append(("Content-Type", operation.files.content_type))
    try:
        url = httpx.URL(url)
        if not url.host:  # raises for an invalid name, too
            raise httpx.InvalidURL("no host")
        if stream is not None:
            # httpx adds no headers to a request with a stream, which avoids three passes over them.
            headers = [("Host", url.netloc.decode()), *headers, ("Content-Length", str(stream.length))]
        extensions: dict[str, Any] = {"timeout": timeout}
        return httpx.Request(operation.method, url, headers=headers, stream=stream, extensions=extensions)
    except (httpx.InvalidURL, UnicodeError) as exc:
        raise ConfigError(f"the API address {origin_of(str(url))} cannot be used", hint="check its host name") from exc


def origin_of(url: str) -> str:
    """Return scheme, host and port of *url*, for error messages."""
    return without_credentials("/".join(url.split("/")[:3]))


class _BytesBody(httpx.AsyncByteStream):
    """A request body that knows whether it was written: a connection asks for the next piece only after a write."""

    def __init__(self, content: bytes) -> None:
        self._content, self.length = content, len(content)
        self.is_written = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._content
        self.is_written = True


class _FilesBody(httpx.AsyncByteStream):
    """Files as a request body, read while they are sent."""

    def __init__(self, files: Multipart) -> None:
        self._files, self.length = files, files.length
        self.is_written = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces = self._files.pieces()
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece
        self.is_written = True


def was_written(request: "httpx.Request") -> bool:
    """Whether the whole of *request* was written."""
    return request.stream.is_written if isinstance(request.stream, _BytesBody | _FilesBody) else True


def http_response(
    response: "httpx.Response", body: bytes, *, is_whole: bool = True, seconds: float = 0.0
) -> HttpResponse:
    """Return *response* as a value without httpx.

    Raises:
        httpx.ProxyError: It is from a proxy that wants other credentials, and the platform never saw the request.
    """
    if response.status_code == PROXY_AUTHENTICATION_REQUIRED:
        raise httpx.ProxyError(f"{PROXY_AUTHENTICATION_REQUIRED} Proxy Authentication Required")
    headers = dict(response.headers.items())
    return HttpResponse(status=response.status_code, headers=headers, body=body, is_whole=is_whole, seconds=seconds)


async def read_body(response: "httpx.Response", cap: int, *, sink: IO[bytes] | None = None) -> tuple[bytes, bool]:
    """Return the body up to *cap* bytes, and whether that is all of it. With a *sink*, write it there instead."""
    body = BodyReader(response.headers.get("content-encoding", ""), cap, sink)
    async for data in cast("httpx.AsyncByteStream", response.stream):
        if not body.feed(data):
            break
    return body.content, body.is_whole


async def read_stream(response: "httpx.Response") -> AsyncIterator[bytes]:
    """Yield the body of *response* as it arrives."""
    decompressor = Decompressor(response.headers.get("content-encoding", ""))
    async for data in cast("httpx.AsyncByteStream", response.stream):
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

    def chunks(self, data: bytes) -> Iterator[bytes]:
        """Yield the decompressed *data*.

        Raises:
            httpx.DecodingError: It is damaged.
        """
        if self._encoding in ("", "identity"):
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
