"""One connection, over real sockets: when it is used again, and that no answer goes to another request."""

import asyncio
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import h11
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.platform.kit import CERTIFICATES, http, raw_server, read_request

from molecule_connect.platform.http1 import HttpConnection, plain_head
from molecule_connect.platform.http_messages import HttpRequest, read_body


def post(url: str, body: bytes = b"{}", headers: dict[str, str] | None = None, **timeouts: Any) -> HttpRequest:
    parsed = httpx.URL(f"{url}/x")
    given = {"Host": parsed.netloc.decode(), **(headers or {}), "Content-Length": str(len(body))}
    return HttpRequest(method="POST", url=parsed, headers=list(given.items()), body=body, **timeouts)


async def read(connection: HttpConnection, request: HttpRequest) -> tuple[int, bytes]:
    head = await connection.send(request)
    try:
        return head.status, (await read_body(head, 1 << 24))[0]
    finally:
        await head.body.aclose()


class Server:
    """Answers each request by its number; counts the connections that it was asked on."""

    def __init__(self, answers: Callable[[int], bytes], *, close_after: int = 0) -> None:
        self._answers, self._close_after = answers, close_after
        self.connections = self.requests = 0
        self.closed = asyncio.Event()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while True:
            await read_request(reader)
            self.requests += 1
            writer.write(self._answers(self.requests))
            await writer.drain()
            if self.requests == self._close_after:
                writer.close()
                await writer.wait_closed()
                self.closed.set()
                return


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[tuple[HttpConnection, str]]:
    connection = HttpConnection(None)
    async with asyncio.timeout(30), raw_server(server.talk) as url:
        try:
            yield connection, url
        finally:
            await connection.aclose()


@pytest.mark.parametrize(
    "answer",
    [
        http(b"abc"),
        b"HTTP/1.1 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 100 Continue\r\n\r\n" + http(b"abc"),
        b"HTTP/1.1 200 OK\nContent-Length: 3\n\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
    ],
)
async def test_requests_follow_each_other_on_one_connection(answer: bytes) -> None:
    server = Server(lambda number: answer)
    async with connected(server) as (connection, url):
        assert [await read(connection, post(url)) for _ in range(3)] == [(200, b"abc")] * 3
    assert server.connections == 1


PIECES = st.sampled_from(
    [
        *(
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.0 200 OK\r\n",
            b"HTTP/1.1 204 \r\n",
            b"HTTP/1.1 404\r\n",
            b"HTTP/1.1 100 a\r\n",
        ),
        *(b"Content-Length: 3\r\n", b"content-length:3\r\n", b"Content-Length: 3, 3\r\n", b"Content-Length: +3\r\n"),
        *(b"Content-Length: 4 \r\n", b"Content-Length : 3\r\n", b" Content-Length: 3\r\n", b"Content-Length: 0x3\n"),
        *(b"Transfer-Encoding: chunked\r\n", b"transfer-encoding:identity\r\n", b"Connection: close\r\n"),
        *(
            b"Connection: keep-alive\r\n",
            b"Connection: keep-alive, close\r\n",
            b"Upgrade: h2c\r\n",
            b"X:\r\n",
            b"X: y\r\n",
        ),
        *(
            b"X: a  b \r\n",
            b"X: \xff\r\n",
            b"X: a\rb\r\n",
            b"X: a\nb\r\n",
            b"X: a\0b\r\n",
            b"\tfolded\r\n",
            b"X\r\n",
            b": y\r\n",
        ),
        *(
            b"\r\n",
            b"\n",
            b"\r",
            b" ",
            b":",
            b"abc",
            b"3\r\nabc\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n",
        ),
    ]
)


@given(st.lists(PIECES, max_size=6), st.booleans())
def test_plain_head_means_the_same_to_h11(pieces: list[bytes], begins_well: bool) -> None:
    start = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n" if begins_well else b""
    head, end, _ = (start + b"".join(pieces) + b"\r\n").partition(b"\r\n\r\n")
    plain = plain_head(head + end)
    if plain is None:
        return
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="POST", target="/", headers=[("Host", "")]))
    parser.send(h11.EndOfMessage())
    parser.receive_data(head + end + b"x" * plain.length)
    response = parser.next_event()
    assert isinstance(response, h11.Response)
    headers: dict[str, str] = {}
    for name, value in response.headers:
        known = headers.get(name.decode())
        headers[name.decode()] = value.decode() if known is None else f"{known}, {value.decode()}"
    assert (response.status_code, headers) == (plain.status, plain.headers)
    body = b""
    while isinstance(event := parser.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert len(body) == plain.length
    assert parser.their_state is h11.DONE


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 3",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 3",
        b"HTTP/1.0 200 OK\r\nContent-Length: 3",
        b"HTTP/1.1 200 OK\r\nContent-Length: -3",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 3",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX: a\nb",
        b"HTTP/1.1 200 OK\r\nDate: today",
    ],
)
def test_other_heads_are_left_to_h11(head: bytes) -> None:
    assert plain_head(head + b"\r\n\r\n") is None


async def test_head_and_body_may_arrive_in_pieces() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            for byte in http(b"abc"):
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0)

    connection = HttpConnection(None)
    async with asyncio.timeout(10), raw_server(talk) as url:
        assert [await read(connection, post(url)) for _ in range(2)] == [(200, b"abc")] * 2
        await connection.aclose()


async def test_incomplete_body_raises() -> None:
    server = Server(lambda number: http(b"abc")[:-1], close_after=1)
    async with connected(server) as (connection, url):
        with pytest.raises(httpx.RemoteProtocolError, match="before the end"):
            await read(connection, post(url))


async def test_endless_informational_responses_raise() -> None:
    server = Server(lambda number: b"HTTP/1.1 100 Continue\r\n\r\n" * 200 if number == 1 else http(b"abc"))
    async with connected(server) as (connection, url):
        with pytest.raises(httpx.RemoteProtocolError, match="informational"):
            await read(connection, post(url))
        assert await read(connection, post(url)) == (200, b"abc")


async def test_response_may_end_with_its_connection() -> None:
    server = Server(lambda number: b"HTTP/1.1 200 OK\r\n\r\nabc", close_after=1)
    async with connected(server) as (connection, url):
        assert await read(connection, post(url)) == (200, b"abc")


async def test_reconnects_after_server_closed() -> None:
    server = Server(lambda number: http(b"abc"), close_after=1)
    async with connected(server) as (connection, url):
        await read(connection, post(url))
        await server.closed.wait()
        await asyncio.sleep(0.01)
        assert await read(connection, post(url)) == (200, b"abc")
    assert server.connections == 2


async def test_reconnects_after_idle_time() -> None:
    server = Server(lambda number: http(b"abc"))
    connection = HttpConnection(None, keepalive=0.0)
    async with raw_server(server.talk) as url:
        assert [await read(connection, post(url)) for _ in range(2)] == [(200, b"abc")] * 2
        await connection.aclose()
    assert server.connections == 2


@pytest.mark.parametrize("headers", [{}, {"Connection": "close"}])
async def test_unsolicited_response_is_never_used(headers: dict[str, str]) -> None:
    server = Server(lambda number: http(b"%d" % number) + http(b"stale"))
    async with connected(server) as (connection, url):
        assert [await read(connection, post(url, headers=headers)) for _ in range(2)] == [(200, b"1"), (200, b"2")]
    assert server.connections == 2


async def test_response_to_cancelled_request_is_dropped() -> None:
    arrived, release = asyncio.Event(), asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await read_request(reader)
        if request.endswith(b"first"):
            arrived.set()
            await release.wait()
        writer.write(http(request[-5:]))
        await writer.drain()

    connection = HttpConnection(None)
    async with asyncio.timeout(30), raw_server(talk) as url:
        task = asyncio.create_task(read(connection, post(url, b"first")))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()
        assert await read(connection, post(url, b"later")) == (200, b"later")
        await connection.aclose()


async def test_unread_body_closes_the_connection() -> None:
    server = Server(lambda number: http(b"%d" % number + b"x" * 300_000))
    async with connected(server) as (connection, url):
        head = await connection.send(post(url))
        await head.body.aclose()
        assert (await read(connection, post(url)))[1].startswith(b"2")
    assert server.connections == 2


async def test_invalid_header_is_a_local_error() -> None:
    server = Server(lambda number: http())
    async with connected(server) as (connection, url):
        with pytest.raises(httpx.LocalProtocolError):
            await read(connection, post(url, headers={"Authorization": "a\nb"}))
        assert await read(connection, post(url)) == (200, b"{}")


async def test_invalid_host_name_is_connect_error() -> None:
    with pytest.raises(httpx.ConnectError):
        await read(HttpConnection(None), post(f"http://{'x' * 70}.example"))


async def test_server_that_reads_nothing_times_out() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    connection = HttpConnection(None)
    async with raw_server(talk) as url:
        with pytest.raises(httpx.WriteTimeout):
            await read(connection, post(url, b"x" * 20_000_000, write_timeout=0.05))


async def test_early_refusal_is_read() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await asyncio.Event().wait()

    connection = HttpConnection(None)
    async with raw_server(talk) as url:
        assert await read(connection, post(url, b"x" * 20_000_000, write_timeout=0.25)) == (413, b"no")


async def test_tls_needs_a_trusted_certificate() -> None:
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ours.load_cert_chain(CERTIFICATES / "server.pem")
    server = Server(lambda number: http(b"abc"))
    trusting = HttpConnection(ssl.create_default_context(cafile=CERTIFICATES / "ca.pem"))
    strict = HttpConnection(ssl.create_default_context())
    async with asyncio.timeout(30), raw_server(server.talk, tls=ours) as url:
        assert [await read(trusting, post(url)) for _ in range(2)] == [(200, b"abc")] * 2
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await read(strict, post(url))
        await trusting.aclose()
    assert server.connections == 1


async def test_unsolicited_data_is_read_up_to_limit() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(http(b"abc"))
        await go_on.wait()
        writer.write(b"x" * (64 << 20))
        await writer.drain()
        taken.set()

    go_on, taken = asyncio.Event(), asyncio.Event()
    connection = HttpConnection(None)
    async with raw_server(talk) as url:
        assert await read(connection, post(url)) == (200, b"abc")
        go_on.set()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(taken.wait(), 0.5)
        go_on.clear()
        assert await read(connection, post(url)) == (200, b"abc")
        await connection.aclose()


async def test_silence_on_reused_connection_is_a_cut() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(http(b"abc"))
        await asyncio.Event().wait()

    connection = HttpConnection(None)
    async with asyncio.timeout(30), raw_server(talk) as url:
        assert await read(connection, post(url)) == (200, b"abc")
        with pytest.raises(httpx.ReadError):
            await read(connection, post(url, read_timeout=0.05))
        await connection.aclose()


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\n"], ids=["new", "begun"])
async def test_silence_on_working_connection_times_out(begun: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if begun:
            await read_request(reader)
            writer.write(http(b"abc"))
        await read_request(reader)
        writer.write(begun)
        await asyncio.Event().wait()

    connection = HttpConnection(None)
    async with asyncio.timeout(30), raw_server(talk) as url:
        if begun:
            assert await read(connection, post(url)) == (200, b"abc")
        with pytest.raises(httpx.ReadTimeout):
            await read(connection, post(url, read_timeout=0.05))
        await connection.aclose()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is not acknowledged")
async def test_unacknowledged_request_is_a_cut() -> None:
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        connection = HttpConnection(None)
        with pytest.raises(httpx.ReadError):
            await read(connection, post(f"http://127.0.0.1:{deaf.getsockname()[1]}", b"x" * 200_000, read_timeout=0.05))
        await connection.aclose()


async def test_request_can_require_a_new_connection() -> None:
    server = Server(lambda number: http(b"abc"))
    async with connected(server) as (connection, url):
        for _ in range(3):
            assert await read(connection, post(url, max_idle=0.0)) == (200, b"abc")
    assert server.connections == 3


async def test_reconnects_after_suspend() -> None:
    times = iter([1000.0, 5000.0, 5000.0])
    server = Server(lambda number: http(b"abc"))
    connection = HttpConnection(None, wall=lambda: next(times))
    async with raw_server(server.talk) as url:
        assert [await read(connection, post(url)) for _ in range(2)] == [(200, b"abc")] * 2
        await connection.aclose()
    assert server.connections == 2
