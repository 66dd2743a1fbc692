"""What only real sockets show: how far a request came when its connection failed, and which connections are kept."""

import asyncio
import contextlib
import gzip
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any, TypeAlias

import attrs
import httpx
import pytest
from tests.platform.kit import http, raw_server, read_request

from molecule_connect.errors import (
    AuthError,
    ConfigError,
    Outcome,
    PageTooLargeError,
    PlatformError,
    TransientPlatformError,
)
from molecule_connect.models import Presence, Signal
from molecule_connect.platform import endpoints
from molecule_connect.platform.address import parse_address
from molecule_connect.platform.endpoints import BodyFormat, Operation, Priority
from molecule_connect.platform.tls import proxy_for
from molecule_connect.platform.transports import Transports
from molecule_connect.platform.workspace_client import WorkspaceClient

Reader: TypeAlias = asyncio.StreamReader
Writer: TypeAlias = asyncio.StreamWriter
LARGE = endpoints.notify("ws-1", "x" * 20_000_000)
SMALL = endpoints.notify("ws-1", "hi")


def client_of(api_url: str, **more: Any) -> WorkspaceClient:
    return WorkspaceClient(api_url, workspace_id="ws-1", token="token-1", **more)


async def failure(api_url: str, operation: Operation[Any]) -> TransientPlatformError:
    async with client_of(api_url) as client:
        with pytest.raises(TransientPlatformError) as caught:
            await client.call(operation)
    return caught.value


def with_timeout(seconds: float) -> Operation[None]:
    return Operation(name="a2a", method="POST", path="/x", body=b"{}", read=lambda reply: None, timeout=seconds)


async def test_refused_connection_is_not_taken() -> None:
    with socket.socket() as nobody:  # has the port for itself, and does not listen
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        error = await failure(url, SMALL)

    assert (error.outcome, error.status) == (Outcome.NOT_TAKEN, None)
    assert isinstance(error.__cause__, httpx.ConnectError)
    assert url in str(error)
    assert error.hint


async def test_unresolved_name_is_not_taken() -> None:
    error = await failure("https://nobody.invalid", SMALL)

    assert error.outcome is Outcome.NOT_TAKEN


async def test_cut_while_writing_is_unknown() -> None:
    async def talk(reader: Reader, writer: Writer) -> None:
        await reader.readexactly(100)
        writer.transport.abort()

    async with raw_server(talk) as url:
        error = await failure(url, LARGE)

    assert error.outcome is Outcome.UNKNOWN
    assert isinstance(error.__cause__, httpx.HTTPError)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Le", http(b'{"sta', length=99), b"SSH-2.0-x\r\n"])
async def test_cut_after_writing_is_unknown(answer: bytes) -> None:
    async def talk(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(answer)

    async with raw_server(talk) as url:
        error = await failure(url, SMALL)

    assert error.outcome is Outcome.UNKNOWN
    assert error.__cause__ is not None


@pytest.mark.parametrize("begun", [b"", http(b'{"sta', length=99)])
async def test_written_without_response_is_written(begun: bytes) -> None:
    async def talk(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(begun)
        await asyncio.Event().wait()

    async with raw_server(talk) as url:
        error = await failure(url, with_timeout(0.05))

    assert error.outcome is Outcome.WRITTEN
    assert isinstance(error.__cause__, httpx.ReadTimeout)


@pytest.mark.parametrize("priority", [Priority.SEND, Priority.READ])
@pytest.mark.parametrize(
    ("begun", "drop"),
    [(b"HTTP/1.1 200 OK\r\n", b"X-Still: here\r\n"), (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"x")],
)
async def test_trickling_response_times_out(priority: Priority, begun: bytes, drop: bytes) -> None:
    async def talk(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(begun)
        while not writer.is_closing():
            writer.write(drop)
            await asyncio.sleep(0.005)

    operation = attrs.evolve(with_timeout(0.2), priority=priority)
    async with (
        raw_server(talk) as url,
        contextlib.aclosing(Transports(whole_response=0.05)) as transports,
        client_of(url, transports=transports) as client,
    ):
        with pytest.raises(TransientPlatformError) as caught:
            await client.call(operation)

    assert caught.value.outcome is not Outcome.NOT_TAKEN


async def test_silence_proves_delivery_on_new_connection() -> None:
    talks = 0

    async def talk(reader: Reader, writer: Writer) -> None:
        nonlocal talks
        talks += 1
        await read_request(reader)
        if talks == 1:
            writer.write(http(b'{"status":"queued"}'))
        await asyncio.Event().wait()

    message = attrs.evolve(endpoints.a2a("peer-1", {}), timeout=0.05)
    async with raw_server(talk) as url, client_of(url) as client:
        await client.call(endpoints.a2a("peer-1", {}))
        outcomes = []
        for _ in range(2):
            with pytest.raises(TransientPlatformError) as caught:
                await client.call(message)
            outcomes.append(caught.value.outcome)
    assert outcomes == [Outcome.UNKNOWN, Outcome.WRITTEN]
    assert talks == 2


async def test_slow_peer_gets_a_new_connection() -> None:
    platform = Counting()
    async with raw_server(platform.talk) as url, client_of(url) as client:
        await client.call(endpoints.notify("ws-1", "hi"))
        for peer in ("peer-1", "peer-2", "peer-1", "peer-2"):
            await client.call(endpoints.a2a(peer, {}))
    assert platform.connections == 3


@pytest.mark.parametrize(
    ("status", "kind"),
    [("401 Unauthorized", AuthError), ("503 Service Unavailable", TransientPlatformError)],
)
async def test_refusal_without_its_body_is_refusal(status: str, kind: type[PlatformError]) -> None:
    async def talk(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(http(b"{", status, length=99))
        await asyncio.Event().wait()

    async with raw_server(talk) as url, client_of(url) as client:
        with pytest.raises(kind) as caught:
            await client.call(with_timeout(0.05))
    assert caught.value.status == int(status[:3])


async def test_partly_written_body_is_not_written() -> None:
    async def talk(reader: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        await asyncio.Event().wait()

    class Stalled(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            raise httpx.ReadTimeout("the proxy did not answer CONNECT")

    async with raw_server(talk) as url, client_of(url, transport=Stalled()) as client:
        with pytest.raises(TransientPlatformError) as caught:
            await client.call(SMALL)

    assert caught.value.outcome is Outcome.UNKNOWN


async def test_early_refusal_is_reported() -> None:
    async def talk(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(http(b'{"error":"too large"}', "413 Request Entity Too Large"))
        await writer.drain()
        while await reader.read(1 << 20):
            pass

    async with raw_server(talk) as url, client_of(url) as client:
        with pytest.raises(Exception, match="413 too large"):
            await client.call(LARGE)


async def test_short_page_is_transient() -> None:
    async def talk(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(http(b"[]", length=50))

    async with raw_server(talk) as url:
        client = client_of(url)
        with pytest.raises(TransientPlatformError, match="activity"):
            await client.fetch(limit=5, known=lambda row_id: False)
        await client.aclose()


async def test_page_over_the_cap_is_abandoned() -> None:
    async def talk(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(http(b"[" + b" " * 100_000, length=1 << 40))
        await asyncio.Event().wait()

    operation: Operation[None] = Operation(
        name="activity", method="GET", path="/x", read=lambda reply: None, body_format=BodyFormat.PAGE, cap=50_000
    )
    async with raw_server(talk) as url:
        assert isinstance(await failure(url, operation), PageTooLargeError)


async def test_a_compressed_page_is_read() -> None:
    async def talk(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        body = gzip.compress(b"[]")
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)

    async with raw_server(talk) as url:
        client = client_of(url)
        assert (await client.fetch(limit=5, known=lambda row_id: False)).count == 0
        await client.aclose()


@pytest.mark.parametrize("priority", [Priority.READ, Priority.SEND])
async def test_decompression_has_a_memory_limit(priority: Priority) -> None:
    packed = gzip.compress(bytes(64 << 20))

    async def talk(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n"
        writer.write(head.encode() + packed)

    operation: Operation[None] = Operation(
        name="activity",
        method="GET",
        path="/x",
        read=lambda reply: None,
        body_format=BodyFormat.PAGE,
        priority=priority,
        cap=50_000,
    )
    async with raw_server(talk) as url:
        tracemalloc.start()
        try:
            assert isinstance(await failure(url, operation), PageTooLargeError)
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("encoding", ["gzip, gzip", "br"])
async def test_unknown_content_encoding_is_rejected(encoding: str) -> None:
    async def talk(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\nContent-Length: 2\r\n\r\n{{}}"
        writer.write(head.encode())

    async with raw_server(talk) as url:
        error = await failure(url, SMALL)
    assert "not asked for" in str(error)
    assert error.outcome is Outcome.UNKNOWN


class Counting:
    """A platform that counts its connections and what is under way, and answers when it is let."""

    def __init__(self) -> None:
        self.connections = 0
        self.under_way = 0
        self.most = 0
        self.answer = asyncio.Event()
        self.answer.set()
        self.arrived = asyncio.Condition()

    async def talk(self, reader: Reader, writer: Writer) -> None:
        self.connections += 1
        while True:
            await read_request(reader)
            async with self.arrived:
                self.under_way += 1
                self.most = max(self.most, self.under_way)
                self.arrived.notify_all()
            await self.answer.wait()
            self.under_way -= 1
            writer.write(http())

    async def until(self, number: int) -> None:
        async with self.arrived:
            await self.arrived.wait_for(lambda: self.under_way >= number)


async def test_heartbeats_do_not_wait_for_sends() -> None:
    platform = Counting()
    transports = Transports(patience=600)
    async with raw_server(platform.talk) as url, client_of(url, transports=transports) as client:
        platform.answer.clear()
        async with asyncio.TaskGroup() as group:
            for _ in range(50):
                group.create_task(client.call(SMALL))
            await platform.until(8)
            assert platform.connections == 8
            group.create_task(client.call(endpoints.heartbeat("ws-1", Presence())))
            await platform.until(9)
            platform.answer.set()
        await transports.aclose()

    assert platform.connections == 9
    assert platform.most == 9


@pytest.mark.parametrize(
    "hanging", [endpoints.peers("ws-1"), endpoints.upload_ack("ws-1", "f1"), endpoints.workspace("ws-1"), SMALL]
)
async def test_an_endpoint_that_hangs_delays_no_other(hanging: Operation[Any]) -> None:
    hung = asyncio.Event()

    async def talk(reader: Reader, writer: Writer) -> None:
        while request := await read_request(reader):
            if hanging.path.encode() + b" " in request:
                hung.set()
                await asyncio.Event().wait()
            writer.write(http(b"[]" if b"/activity" in request else b"{}"))

    beat, register = endpoints.heartbeat("ws-1", Presence()), endpoints.register("ws-1", {})
    read = endpoints.activity("ws-1", lambda reply: None, since_id=None, before=None, limit=5)
    transports = Transports(patience=600)
    async with raw_server(talk) as url, client_of(url, transports=transports) as client:
        waiting = [asyncio.create_task(client.call(hanging)) for _ in range(50)]
        await hung.wait()
        async with asyncio.timeout(30):
            await client.call(beat)
            await client.call(read)
            await client.call(register)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await transports.aclose()


async def test_hanging_peer_delays_nobody_else() -> None:
    hung = asyncio.Event()

    async def talk(reader: Reader, writer: Writer) -> None:
        while request := await read_request(reader):
            if b"/peer-1/" in request:
                hung.set()
                await asyncio.Event().wait()
            writer.write(http())

    transports = Transports(patience=600)
    async with raw_server(talk) as url, client_of(url, transports=transports) as client:
        waiting = [asyncio.create_task(client.call(endpoints.a2a("peer-1", {}))) for _ in range(64)]
        await hung.wait()
        async with asyncio.timeout(30):
            await client.call(endpoints.notify("ws-1", "hi"))
            await client.call(endpoints.a2a("peer-2", {}))
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await transports.aclose()


async def test_hanging_calls_delay_no_other_workspace() -> None:
    async def talk(reader: Reader, writer: Writer) -> None:
        while request := await read_request(reader):
            if b"/workspaces/ws-1" in request:
                await asyncio.Event().wait()
            writer.write(http())

    transports = Transports(patience=600)
    async with raw_server(talk) as url, client_of(url, transports=transports) as first:
        second = WorkspaceClient(url, workspace_id="ws-2", token="token-2", transports=transports)
        hanging: list[Operation[Any]] = [endpoints.workspace("ws-1"), endpoints.notify("ws-1", "hi")]
        waiting = [asyncio.create_task(first.call(operation)) for operation in hanging * 100]
        await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await second.call(endpoints.workspace("ws-2"))
            await second.call(endpoints.notify("ws-2", "hi"))
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await second.aclose()
        await transports.aclose()


async def test_hanging_calls_make_room() -> None:
    platform = Counting()
    platform.answer.clear()
    transports = Transports(patience=0.0)
    async with raw_server(platform.talk) as url, contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                WorkspaceClient(url, workspace_id=f"ws-{number}", token="token-1", transports=transports)
            )
            for number in range(40)
        ]
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(client.call(endpoints.heartbeat(client.workspace_id, Presence())))
            await platform.until(40)
            platform.answer.set()
        await transports.aclose()


@pytest.mark.parametrize("operation", [with_timeout(0.05), attrs.evolve(endpoints.peers("ws-1"), timeout=0.05)])
async def test_an_error_names_the_endpoint_that_hangs(operation: Operation[Any]) -> None:
    async def talk(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        await asyncio.Event().wait()

    async with raw_server(talk) as url:
        error = await failure(url, operation)

    assert str(error) == f"{operation.name}: no answer within 0.05 s from {url}"
    assert "other endpoints" in error.hint


async def test_stream_that_never_opens_times_out() -> None:
    async def talk(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        await asyncio.Event().wait()

    async with raw_server(talk) as url, client_of(url) as client:
        with pytest.raises(TransientPlatformError, match=r"events: no answer within 0\.05 s"):
            async with client.open(attrs.evolve(endpoints.events("ws-1"), timeout=0.05)):
                pass


async def test_connections_are_reused_and_shared() -> None:
    platform = Counting()
    async with raw_server(platform.talk) as url:
        transports = Transports()
        clients = [
            WorkspaceClient(url, workspace_id=f"ws-{number}", token="token-1", transports=transports)
            for number in range(5)
        ]
        for client in clients * 2:
            await client.call(endpoints.heartbeat(client.workspace_id, Presence()))
        assert platform.connections == 1
        assert clients[0].rate_limiter is clients[1].rate_limiter
        assert clients[0].rate_limiter.workspaces == 5
        for client in clients:
            await client.aclose()
        assert clients[0].rate_limiter.workspaces == 0
        await transports.aclose()


async def test_stream_yields_signals_until_cut() -> None:
    async def talk(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        event = b'data: {"type":"ACTIVITY_LOGGED","data":{}}\n\n'
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(head + b"%x\r\n" % len(event) + event + b"\r\n")
        await writer.drain()

    async with raw_server(talk) as url:
        client = client_of(url)
        stream = client.signals()
        assert [await anext(stream), await anext(stream)] == [Signal.OPENED, Signal.ROW]
        with pytest.raises(TransientPlatformError, match="events") as caught:
            await anext(stream)
        await client.aclose()

    assert isinstance(caught.value.__cause__, httpx.RemoteProtocolError)


async def test_streams_have_no_cap() -> None:
    platform = Counting()

    async def talk(reader: Reader, writer: Writer) -> None:
        platform.connections += 1
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: ping\n\n")
        await asyncio.Event().wait()

    async with raw_server(talk) as url:
        client = client_of(url)
        streams = [client.signals() for _ in range(12)]
        async with asyncio.timeout(30):
            opened = await asyncio.gather(*(anext(stream) for stream in streams))
        assert opened == [Signal.OPENED] * 12
        assert platform.connections == 12
        for stream in streams:
            await stream.aclose()
        await client.aclose()


def test_proxy_is_for_other_machines_only() -> None:
    proxies: Callable[[], dict[str, str]] = lambda: {"https": "proxy.example:3128", "http": "http://p.example"}  # noqa: E731
    bypass: Callable[[str], bool] = lambda host: host == "inside.example"  # noqa: E731

    def proxy(api_url: str) -> str | None:
        return proxy_for(parse_address(api_url, insecure=True), proxies=proxies, bypass=bypass)

    assert proxy("https://platform.example:8443") == "http://proxy.example:3128"
    assert proxy("http://platform.example") == "http://p.example"
    assert proxy("https://inside.example") is None
    assert proxy("http://localhost:8080") is None
    assert proxy("http://[::1]:8080") is None


async def test_invalid_host_fails_before_sending() -> None:
    async with client_of("https://xn--999999999.example") as client:
        with pytest.raises(ConfigError, match="xn--999999999"):
            await client.call(SMALL)


def test_import_skips_the_cli_of_httpx() -> None:
    program = (
        "import sys, molecule_connect.platform.client, httpx;"
        "print([name for name in ('rich', 'click', 'pygments', 'httpx._main') if name in sys.modules], httpx.main)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert run.stdout.startswith("[] <function")
