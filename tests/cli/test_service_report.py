"""A serving process reports to its service manager."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from molecule_connect import events
from molecule_connect.cli.service_report import ServiceReport
from molecule_connect.cli.signals import StopSignals
from molecule_connect.process.notify import ServiceManager
from molecule_connect.worker.status_file import ReloadFile


@attrs.define
class Workspaces:
    names: frozenset[str] = frozenset({"ws_1"})
    unread: frozenset[str] = frozenset({"ws_1"})
    hanging: tuple[str, ...] = ()

    def stalled(self, seconds: float) -> tuple[str, ...]:
        return self.hanging


@attrs.define
class Manager:
    """A service manager: the socket that it reads."""

    socket: socket.socket
    address: str

    async def receive(self) -> list[str]:
        async with asyncio.timeout(30):
            return (await asyncio.get_running_loop().sock_recv(self.socket, 4096)).decode().split("\n")

    async def until(self, line: str) -> list[list[str]]:
        """All notifications up to the one with *line*."""
        seen = [await self.receive()]
        while line not in seen[-1]:
            seen.append(await self.receive())
        return seen


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.setblocking(False)
        yield Manager(receiver, str(tmp_path / "notify"))


def signals() -> StopSignals:
    return StopSignals(grace=20.0, spell=lambda text, code: text)


def trouble(part: str, reason: str = "503") -> events.Trouble:
    return events.Trouble(workspace_id="ws_1", part=part, reason=reason)


async def test_ready_once_the_feed_was_read(manager: Manager) -> None:
    workspaces, stop = Workspaces(), asyncio.Event()
    report = ServiceReport(ServiceManager(manager.address))
    running = asyncio.ensure_future(report.run(workspaces, stop, signals()))
    before = await manager.until("STATUS=starting: 0 of 1 workspace read")
    assert all("READY=1" not in one for one in before)
    workspaces.unread = frozenset()
    assert (await manager.until("READY=1"))[-1] == ["READY=1", "STATUS=serving ws_1"]
    stop.set()
    await running


async def test_the_start_gets_more_time_while_it_lasts(manager: Manager) -> None:
    report = ServiceReport(ServiceManager(manager.address))
    running = asyncio.ensure_future(report.run(Workspaces(), asyncio.Event(), signals()))
    await manager.until("EXTEND_TIMEOUT_USEC=120000000")
    await manager.until("EXTEND_TIMEOUT_USEC=120000000")
    running.cancel()


async def test_ready_with_a_platform_that_is_down(manager: Manager) -> None:
    report, stop = ServiceReport(ServiceManager(manager.address)), asyncio.Event()
    listener = report.following(events.ignore)
    running = asyncio.ensure_future(report.run(Workspaces(), stop, signals()))
    listener(trouble("stream"))
    listener(trouble("start", "no route\nto host"))
    (*_, last) = await manager.until("READY=1")
    assert last == ["READY=1", "STATUS=serving ws_1; start: no route to host"]
    stop.set()
    await running


async def test_outage_keeps_feeding_the_watchdog(manager: Manager) -> None:
    report, stop = ServiceReport(ServiceManager(manager.address, watchdog=0.04)), asyncio.Event()
    listener = report.following(events.ignore)
    running = asyncio.ensure_future(report.run(Workspaces(), stop, signals()))
    listener(trouble("intake"))
    await manager.until("READY=1")
    await manager.until("WATCHDOG=1")
    listener(events.Recovered(workspace_id="ws_1", part="intake"))
    await manager.until("STATUS=serving ws_1")
    stop.set()
    await running


async def test_hung_intake_starves_the_watchdog(manager: Manager) -> None:
    workspaces, stop = Workspaces(unread=frozenset(), hanging=("ws_1",)), asyncio.Event()
    report = ServiceReport(ServiceManager(manager.address, watchdog=0.04))
    listener = report.following(events.ignore)
    running = asyncio.ensure_future(report.run(workspaces, stop, signals()))
    listener(trouble("intake"))
    seen = await manager.until("READY=1")
    listener(events.Recovered(workspace_id="ws_1", part="intake"))
    seen += await manager.until("STATUS=serving ws_1")  # a later look
    stop.set()
    seen += await manager.until("STOPPING=1")
    await running
    assert not [one for one in seen if "WATCHDOG=1" in one]


async def test_refused_reload_is_shown_until_the_next(manager: Manager, tmp_path: Path) -> None:
    file, stop = ReloadFile(tmp_path, 1), asyncio.Event()
    report = ServiceReport(ServiceManager(manager.address), file=file)
    running = asyncio.ensure_future(report.run(Workspaces(unread=frozenset()), stop, signals()))
    await manager.until("READY=1")
    report.reloading()
    report.reloaded("fleet.toml was read again but not applied", ["fleet.toml: it is not TOML", "more"])
    first, second = [await manager.receive() for _ in range(2)]
    assert first[0] == "RELOADING=1"
    assert second == ["READY=1", "STATUS=reload refused: fleet.toml: it is not TOML; more; serving ws_1"]
    outcome = file.read()
    assert outcome is not None
    assert (outcome.number, outcome.faults) == (1, ("fleet.toml: it is not TOML", "more"))
    report.reloading()
    report.reloaded("fleet.toml was read again: 1 is unchanged")
    await manager.until("STATUS=serving ws_1")
    stop.set()
    await running
    assert file.read() is None


async def test_a_stop_asks_for_the_time_it_needs(manager: Manager) -> None:
    report, stop = ServiceReport(ServiceManager(manager.address)), asyncio.Event()
    running = asyncio.ensure_future(report.run(Workspaces(unread=frozenset()), stop, signals()))
    await manager.until("READY=1")
    stop.set()
    await running
    assert "EXTEND_TIMEOUT_USEC=30000000" in (await manager.until("STOPPING=1"))[-1]


async def test_an_end_by_itself_is_reported(manager: Manager) -> None:
    report = ServiceReport(ServiceManager(manager.address))
    running = asyncio.ensure_future(report.run(Workspaces(unread=frozenset()), asyncio.Event(), signals()))
    await manager.until("READY=1")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await manager.until("STOPPING=1")


async def test_nothing_is_reported_without_a_manager(tmp_path: Path) -> None:
    file = ReloadFile(tmp_path, 1)
    report = ServiceReport(ServiceManager(), file=file)
    assert report.following(events.ignore) is events.ignore
    await report.run(Workspaces(), asyncio.Event(), signals())
    report.reloading()
    report.reloaded("", ["fault"])
    assert file.read() is None
