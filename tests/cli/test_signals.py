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


async def test_a_signal_that_came_before_the_loop_stops_at_once(ends: Ends) -> None:
    stop = asyncio.Event()
    with ends.signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        signals.bind(stop)

    assert stop.is_set()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_the_program_even_while_nothing_yields(
    ends: Ends, number: signal.Signals, code: int
) -> None:
    with ends.signals():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), number)

    assert ends.codes == [code]
    assert ends.said().startswith(f"{code}: ended at once")


def test_a_terminal_that_closes_and_says_so_twice_is_one_stop(ends: Ends) -> None:
    with ends.signals():
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)

    assert ends.codes == []


def test_a_hang_up_that_was_ignored_stays_ignored(ends: Ends) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ends.signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not signals.received
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_where_a_list_can_be_read_again_a_hang_up_asks_for_that_and_stops_nothing(ends: Ends) -> None:
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


async def test_a_hang_up_of_a_terminal_that_is_gone_stops_all_the_same(ends: Ends) -> None:
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


def test_under_nohup_a_hang_up_asks_for_a_reload_whatever_became_of_the_terminal(ends: Ends) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    terminal = [True]
    try:
        with ends.signals(reloads=True, has_terminal=lambda: terminal[0]) as signals:
            terminal[0] = False
            os.kill(os.getpid(), signal.SIGHUP)
            assert not signals.received
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_stop_that_does_not_end_is_ended(ends: Ends) -> None:
    with ends.signals(grace=-8.0):
        os.kill(os.getpid(), signal.SIGTERM)
        assert ends.left.wait(5)

    assert ends.codes == [1]
    assert "left behind" in ends.said()


def test_what_hangs_after_a_clean_stop_does_not_change_the_code(ends: Ends) -> None:
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
