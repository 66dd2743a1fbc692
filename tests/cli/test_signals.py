"""The first signal stops, a second one ends at once."""

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import attrs
import pytest

from molecule_connect.cli.signals import StopSignals


@attrs.define
class Ends:
    """What was said at the end, and with which codes the program would have ended."""

    reading: int
    writing: int
    codes: list[int] = attrs.field(factory=list)
    left: threading.Event = attrs.field(factory=threading.Event)

    def leave(self, code: int) -> None:
        self.codes.append(code)
        self.left.set()

    def said(self) -> str:
        return os.read(self.reading, 4096).decode()

    def signals(self, grace: float = 1000.0, **more: Any) -> StopSignals:
        return StopSignals(
            grace=grace, spell=lambda text, code: f"{code}: {text}", leave=self.leave, stderr=self.writing, **more
        )


@pytest.fixture
def ends() -> Iterator[Ends]:
    reading, writing = os.pipe()
    yield Ends(reading, writing)
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_the_first_signal_sets_the_stop(ends: Ends, number: signal.Signals) -> None:
    stop = asyncio.Event()
    with ends.signals() as signals:
        signals.bind(stop)
        os.kill(os.getpid(), number)
        async with asyncio.timeout(5):
            await stop.wait()

    assert ends.codes == []


async def test_signal_before_the_loop_stops(ends: Ends) -> None:
    stop = asyncio.Event()
    with ends.signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        signals.bind(stop)

    assert stop.is_set()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_second_signal_exits_at_once(ends: Ends, number: signal.Signals, code: int) -> None:
    with ends.signals():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), number)

    assert ends.codes == [code]
    assert ends.said().startswith(f"{code}: stopped at once")


def test_repeated_sighup_is_one_stop(ends: Ends) -> None:
    with ends.signals():
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)

    assert ends.codes == []


def test_ignored_sighup_stays_ignored(ends: Ends) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ends.signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not signals.received
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_sighup_reloads_a_list(ends: Ends) -> None:
    stop, reload = asyncio.Event(), asyncio.Event()
    with ends.signals(reloads=True, has_terminal=lambda: False) as signals:
        os.kill(os.getpid(), signal.SIGHUP)
        signals.bind(stop, reload)
        assert reload.is_set()
        reload.clear()
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(5):
            await reload.wait()

    assert not stop.is_set()
    assert not signals.received


async def test_sighup_of_closed_terminal_stops(ends: Ends) -> None:
    stop, reload, terminal = asyncio.Event(), asyncio.Event(), [True]
    with ends.signals(reloads=True, has_terminal=lambda: terminal[0]) as signals:
        signals.bind(stop, reload)
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(5):
            await reload.wait()
        assert not stop.is_set()
        terminal[0] = False
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(5):
            await stop.wait()


def test_sighup_reloads_under_nohup(ends: Ends) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    terminal = [True]
    try:
        with ends.signals(reloads=True, has_terminal=lambda: terminal[0]) as signals:
            terminal[0] = False
            os.kill(os.getpid(), signal.SIGHUP)
            assert not signals.received
    finally:
        signal.signal(signal.SIGHUP, before)


def test_hanging_stop_is_ended(ends: Ends) -> None:
    with ends.signals(grace=-8.0):
        os.kill(os.getpid(), signal.SIGTERM)
        assert ends.left.wait(5)

    assert ends.codes == [1]
    assert "abandoned" in ends.said()


def test_hang_after_clean_stop_exits_0(ends: Ends) -> None:
    with ends.signals(grace=-8.0) as signals:
        signals.outcome = 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert ends.left.wait(5)

    assert ends.codes == [0]


def test_afterwards_the_handlers_are_as_they_were(ends: Ends) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

    with ends.signals():
        pass

    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
