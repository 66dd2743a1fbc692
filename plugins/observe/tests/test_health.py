"""``/healthz`` and ``/readyz``, to whoever asks."""

import asyncio
import json
import signal
import socket
from pathlib import Path

import pytest

from molecule_connect import ConfigError
from molecule_connect.observers import ProcessState, WorkspaceState
from molecule_connect_observe import server
from molecule_connect_sandbox.testing import Sandbox

from .kit import Connector, FakeProcess, ask, get, observing, until_ready

READY = WorkspaceState(workspace_id="ws_1", backend="mock", up=True, unready="")
DEAF = WorkspaceState(workspace_id="ws_2", backend="mock", up=True, unready="reading fails")


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def test_running_loop_is_healthy() -> None:
    async with observing(FakeProcess()) as (_, notes):
        assert await get(notes.port, "/healthz") == (200, "ok\n")
        assert (await get(notes.port, "/healthz", method="HEAD")) == (200, "")


async def test_names_workspaces_that_are_not_ready() -> None:
    process = FakeProcess(ProcessState(workspaces=(READY, DEAF), is_started=True))
    async with observing(process) as (_, notes):
        status, body = await get(notes.port, "/readyz")
        expected = {"status": "not ready", "workspaces": 2, "not_ready": {"ws_2": "reading fails"}, "refused": []}
        assert (status, json.loads(body)) == (503, expected)

        process.now = ProcessState(workspaces=(READY,), is_started=True)
        status, body = await get(notes.port, "/readyz")
        assert (status, json.loads(body)) == (200, {"status": "ready", "workspaces": 1, "not_ready": {}, "refused": []})


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (ProcessState(), "starting"),
        (ProcessState(workspaces=(READY,), is_started=True, is_stopping=True), "stopping"),
    ],
)
async def test_not_ready_at_start_and_end(state: ProcessState, status: str) -> None:
    async with observing(FakeProcess(state)) as (_, notes):
        code, body = await get(notes.port, "/readyz")
        assert (code, json.loads(body)["status"]) == (503, status)


async def test_serves_reading_methods_only() -> None:
    async with observing(FakeProcess()) as (_, notes):
        assert (await get(notes.port, "/readyz", method="POST"))[0] == 405
        assert (await get(notes.port, "/elsewhere"))[0] == 404


@pytest.mark.parametrize("request_bytes", [b"\x16\x03\x01\x02\x00\n\n", b"GET / HTTP/1.1\r\nHost: " + b"x" * 70_000])
async def test_garbage_ends_its_connection(request_bytes: bytes) -> None:
    async with observing(FakeProcess()) as (_, notes):
        head, _ = await ask(notes.port, request_bytes)
        assert head.startswith("HTTP/1.1 4")
        assert (await get(notes.port, "/healthz"))[0] == 200


async def test_silent_clients_are_cut_off() -> None:
    async with observing(FakeProcess(), deadline=1) as (_, notes):
        silent = [await asyncio.open_connection("127.0.0.1", notes.port) for _ in range(server.MAX_CONNECTIONS)]
        for reader, writer in silent:
            assert await reader.read() == b""
            writer.close()
        assert (await get(notes.port, "/healthz"))[0] == 200


async def test_excess_connections_are_closed_at_once() -> None:
    async with observing(FakeProcess()) as (_, notes):
        silent = [await asyncio.open_connection("127.0.0.1", notes.port) for _ in range(server.MAX_CONNECTIONS)]
        with pytest.raises((ConnectionResetError, IndexError)):
            await get(notes.port, "/healthz")
        for _, writer in silent:
            writer.close()


@pytest.mark.skipif(not has_ipv6(), reason="needs IPv6")
async def test_listens_on_ipv6() -> None:
    async with observing(FakeProcess(), host="::1") as (_, notes):
        assert "http://[::1]:" in notes.lines[-1][1]
        assert (await get(notes.port, "/healthz", host="::1"))[0] == 200


@pytest.mark.parametrize(("host", "warns"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)])
async def test_warns_of_an_open_address(host: str, warns: bool) -> None:
    async with observing(FakeProcess(), host=host) as (_, notes):
        assert [level for level, _, _ in notes.lines] == ["WARNING"] * warns + ["INFO"]


async def test_port_in_use_is_refused() -> None:
    async with observing(FakeProcess()) as (_, notes):
        with pytest.raises(
            ConfigError, match=f"--http: cannot listen on 127.0.0.1:{notes.port}: Address already in use"
        ):
            async with observing(FakeProcess(), port=notes.port):
                pass


async def test_foreign_address_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1:0"):
        async with observing(FakeProcess(), host="192.0.2.1"):
            pass


async def test_connector_is_ready_once_it_reads(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        async with Connector.of(sandbox, workspace, tmp_path / "state", "--backend", "mock") as connector:
            port = await connector.port()
            assert (await until_ready(port))["workspaces"] == 1

            await sandbox.faults("status=500,path=/activity")
            assert (await until_ready(port, 503))["not_ready"] == {workspace.id: "reading fails"}
            connector.process.send_signal(signal.SIGTERM)
            assert await connector.ended() == 0


async def test_port_in_use_registers_nothing(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        http = f"127.0.0.1:{taken.getsockname()[1]}"
        async with Sandbox.over_loopback() as sandbox:
            workspace = await sandbox.workspace()
            connector = Connector.of(sandbox, workspace, tmp_path / "state", "--backend", "mock", http=http)
            async with connector:
                assert await connector.ended() == 2
            assert "Address already in use" in connector.output
            assert not [path for method, path in await sandbox.requests() if "register" in path]
