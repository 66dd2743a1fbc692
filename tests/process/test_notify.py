"""Notifications to the service manager."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from molecule_connect.process.notify import ServiceManager


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "path" else f"@molecule-test-{os.getpid()}"


@pytest.fixture
def receiver(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + address[1:] if address.startswith("@") else address)
        receiver.settimeout(30)
        yield receiver


def lines(receiver: socket.socket) -> list[str]:
    return receiver.recv(4096).decode().split("\n")


def test_sends_each_notification_in_one_datagram(address: str, receiver: socket.socket) -> None:
    manager = ServiceManager(address)
    manager.ready("serving ws_1")
    manager.status("two\nlines")
    manager.alive()
    manager.extend(90)
    manager.stopping("stopping", seconds=30)
    assert lines(receiver) == ["READY=1", "STATUS=serving ws_1"]
    assert lines(receiver) == ["STATUS=two lines"]
    assert lines(receiver) == ["WATCHDOG=1"]
    assert lines(receiver) == ["EXTEND_TIMEOUT_USEC=90000000"]
    assert lines(receiver) == ["STOPPING=1", "STATUS=stopping", "EXTEND_TIMEOUT_USEC=30000000"]


def test_a_reload_carries_its_time(address: str, receiver: socket.socket) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    ServiceManager(address).reloading()
    first, second = lines(receiver)
    assert first == "RELOADING=1"
    name, _, usec = second.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(usec) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_children_do_not_inherit_the_variables() -> None:
    environ = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "120000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/h"}
    manager = ServiceManager.take_from(environ)
    assert environ == {"HOME": "/h"}
    assert (manager.is_present, manager.watchdog) == (True, 120.0)


@pytest.mark.parametrize(
    "environ",
    [
        {"NOTIFY_SOCKET": "/run/x"},
        {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "120000000", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "0"},
        {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "", "WATCHDOG_USEC": "120000000"},
        {"NOTIFY_SOCKET": "vsock:2:1234", "WATCHDOG_USEC": "120000000"},
    ],
)
def test_no_watchdog_for_this_process(environ: dict[str, str]) -> None:
    assert ServiceManager.take_from(environ).watchdog is None


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "relative", "/nowhere/notify"])
def test_silent_without_a_manager(address: str) -> None:
    manager = ServiceManager(address)
    manager.ready()
    manager.alive()
    manager.stopping("", seconds=1)


def test_a_manager_that_does_not_read_blocks_nothing(address: str, receiver: socket.socket) -> None:
    manager = ServiceManager(address)
    for _ in range(1000):
        manager.alive()
    manager.ready("serving ws_1")
    receiver.setblocking(False)
    queued: list[list[str]] = []
    with contextlib.suppress(BlockingIOError):
        queued += iter(lambda: lines(receiver), ["READY=1"])
    assert all(one == ["WATCHDOG=1"] for one in queued)
    manager.alive()
    assert [lines(receiver), lines(receiver)] == [["READY=1", "STATUS=serving ws_1"], ["WATCHDOG=1"]]
