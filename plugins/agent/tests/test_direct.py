"""A message to a peer's own address goes to the address that was checked, in the name of its host."""

import asyncio
import ssl
from pathlib import Path

import pytest

from molecule_connect import Outcome, TransientPlatformError
from molecule_connect_agent.direct import LARGEST_ANSWER, DirectMessages, NotSentError

CERTIFICATES = Path(__file__).parents[3] / "tests" / "platform" / "certificates"
ANSWER = b'{"jsonrpc": "2.0", "id": "1", "result": {}}'


class Peer:
    """Answers one request with *body*."""

    def __init__(self, body: bytes = ANSWER, *, length: int | None = None) -> None:
        self.head = b""
        self._response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (length or len(body)) + body

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.head = await reader.readuntil(b"\r\n\r\n")
        writer.write(self._response)
        await writer.drain()
        writer.close()


async def test_certificate_is_that_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(CERTIFICATES / "server.pem")
    names: list[str | None] = []
    tls.sni_callback = lambda _, name, __: names.append(name)
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATES / "ca.pem"))
    monkeypatch.setattr("molecule_connect_agent.direct.is_public", lambda address: True)
    peer, direct = Peer(), DirectMessages(lambda host, port: ["127.0.0.1"], None)
    async with asyncio.timeout(30), await asyncio.start_server(peer, "127.0.0.1", 0, ssl=tls) as server:
        port = server.sockets[0].getsockname()[1]
        response = await direct.post(f"https://localhost:{port}/a2a", b"{}", timeout=5)
        with pytest.raises(NotSentError):
            await direct.post(f"https://other.example:{port}/a2a", b"{}", timeout=5)

    assert response["jsonrpc"] == "2.0"
    assert f"Host: localhost:{port}\r\n".encode().lower() in peer.head.lower()
    assert b"authorization" not in peer.head.lower()
    assert names == ["localhost", "other.example"]


@pytest.mark.parametrize("peer", [Peer(b"x" * 100, length=200), Peer(b"<html>"), Peer(b"[]")])
async def test_broken_response_may_have_arrived(peer: Peer) -> None:
    async with asyncio.timeout(30), await asyncio.start_server(peer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        with pytest.raises(TransientPlatformError) as caught:
            await DirectMessages(None, None).post(url, b"{}", timeout=5)

    assert caught.value.outcome is Outcome.UNKNOWN


async def test_response_is_read_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("molecule_connect_agent.direct.LARGEST_ANSWER", 1 << 20)
    peer = Peer(b"x" * (2 << 20), length=LARGEST_ANSWER)
    async with asyncio.timeout(30), await asyncio.start_server(peer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        with pytest.raises(TransientPlatformError, match="larger than 1 MiB"):
            await DirectMessages(None, None).post(url, b"{}", timeout=5)


async def test_closed_port_is_not_reached() -> None:
    server = await asyncio.start_server(Peer(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    with pytest.raises(NotSentError):
        await DirectMessages(None, None).post(f"http://127.0.0.1:{port}/", b"{}", timeout=5)
