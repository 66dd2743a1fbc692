"""The sandbox over real sockets: one server for all of this."""

import asyncio
import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from molecule_connect import ConfigError
from molecule_connect_sandbox.options import SandboxOptions
from molecule_connect_sandbox.server import listen, running_server

ADMIN = {"Authorization": "Bearer admin"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_server(SandboxOptions(admin_token="admin")) as server:
        yield server.url


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=10, trust_env=False) as connected:
        yield connected
        connected.delete("/sandbox/faults", headers=ADMIN)


@pytest.fixture
def workspace(client: httpx.Client) -> tuple[str, dict[str, str]]:
    """Its path, and the headers of its token."""
    body = {"name": "w", "external": True, "delivery_mode": "poll"}
    made = client.post("/workspaces", json=body, headers=ADMIN).json()
    return f"/workspaces/{made['id']}", {"Authorization": f"Bearer {made['connection']['auth_token']}"}


def test_listens_only_on_loopback(url: str) -> None:
    assert url.startswith("http://127.0.0.1:")
    with listen() as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


def test_port_in_use_raises(url: str) -> None:
    port = int(url.rsplit(":", 1)[1])
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}") as caught:
        listen(port)
    assert "--port" in caught.value.hint


def test_header_names_are_title_case(url: str) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    with contextlib.closing(connection):
        connection.request("GET", "/health")
        names = {name for name, _ in connection.getresponse().getheaders()}
    assert names >= {"Content-Type", "Content-Length", "Date", "X-Ratelimit-Limit"}


def test_responses_do_not_wait_for_acks(url: str) -> None:
    # With Nagle's algorithm, every second response is 40 ms late.
    with listen() as listening:
        assert listening.proto == socket.IPPROTO_TCP


@pytest.mark.parametrize(("fault", "rows"), [("cut-before", 0), ("cut-after", 1), ("cut-short", 1)])
def test_cut_closes_the_connection(
    client: httpx.Client, workspace: tuple[str, dict[str, str]], fault: str, rows: int
) -> None:
    path, token = workspace
    client.put("/sandbox/faults", json={"faults": [f"{fault},path=/notify"]}, headers=ADMIN)
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        client.post(f"{path}/notify", json={"message": "x"}, headers=token)
    assert len(client.get(f"/sandbox{path}/rows", headers=ADMIN).json()) == rows


def test_slow_bodies_arrive_in_pieces(client: httpx.Client) -> None:
    client.put("/sandbox/faults", json={"faults": ["slow-bodies=1,path=/health"]}, headers=ADMIN)
    with client.stream("GET", "/health") as answered:
        assert len(list(answered.iter_raw())) > 1


def test_stream_sends_events_until_cut(client: httpx.Client, workspace: tuple[str, dict[str, str]]) -> None:
    path, token = workspace
    with client.stream("GET", f"{path}/events/stream", headers=token) as answered:
        lines = answered.iter_lines()
        assert next(lines) == ": ping"
        client.post(f"{path}/notify", json={"message": "hello"}, headers=token)
        event = next(line for line in lines if line.startswith("data: "))
        assert json.loads(event[6:])["data"] == {"message": "hello"}
        client.put("/sandbox/faults", json={"faults": ["stream-drop"]}, headers=ADMIN)
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            next(line for line in lines if line.startswith("data: "))


def test_reads_empty_and_chunked_request_bodies(client: httpx.Client, workspace: tuple[str, dict[str, str]]) -> None:
    path, token = workspace

    def pieces() -> Iterator[bytes]:
        yield b'{"mess'
        yield b'age": "x"}'

    assert client.post(f"{path}/notify", content=pieces(), headers=token).json() == {"status": "sent"}
    assert client.post(f"{path}/notify", headers=token).json() == {"error": "invalid request body"}


async def test_stopping_ends_open_streams() -> None:
    with running_server(SandboxOptions(platform="2026-05")) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=10, trust_env=False) as client:
            made: dict[str, Any] = (
                await client.post("/workspaces", json={"name": "w", "external": True, "delivery_mode": "poll"})
            ).json()
            headers = {"Authorization": f"Bearer {made['connection']['auth_token']}"}
            async with client.stream("GET", f"/workspaces/{made['id']}/events/stream", headers=headers) as answered:
                lines = answered.aiter_lines()
                assert await anext(lines) == ": ping"
                server.stop()
                async with asyncio.timeout(5):
                    assert [line async for line in lines if line] == []
