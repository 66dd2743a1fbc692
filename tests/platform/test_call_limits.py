"""How many calls wait at once, and which transports they use."""

import asyncio

import pytest

from molecule_connect.platform.call_limits import CallLimit
from molecule_connect.platform.transports import TransportPool


class Transport:
    is_closed = False

    async def aclose(self) -> None:
        self.is_closed = True


class Factory:
    def __init__(self) -> None:
        self.opened: list[Transport] = []

    def open(self) -> Transport:
        self.opened.append(Transport())
        return self.opened[-1]


class Call:
    """Holds a transport, or a place under a limit, until it is released."""

    def __init__(self, owner: TransportPool[Transport] | CallLimit, kind: str = "") -> None:
        self.started, self.release = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._run(owner, kind))

    async def _run(self, owner: TransportPool[Transport] | CallLimit, kind: str) -> None:
        async with owner.use(kind) if isinstance(owner, TransportPool) else owner.of(kind):
            self.started.set()
            await self.release.wait()

    async def end(self) -> None:
        self.release.set()
        await self.task

    async def cancel(self) -> None:
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task


async def until_idle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_calls_over_the_limit_wait_in_order() -> None:
    limit = CallLimit(1, patience=600)
    first, second, third = Call(limit), Call(limit), Call(limit)
    await until_idle()
    assert not second.started.is_set()

    await first.end()
    await until_idle()
    assert second.started.is_set()
    assert not third.started.is_set()
    await second.end()
    await third.end()


async def test_kinds_do_not_wait_for_each_other() -> None:
    limit = CallLimit(1, patience=600)
    first, other = Call(limit, "notify"), Call(limit, "heartbeat")
    async with asyncio.timeout(30):
        await other.started.wait()
    await first.end()
    await other.end()


async def test_slow_call_stops_counting_after_its_patience() -> None:
    limit = CallLimit(1, patience=0.01)
    slow, waiting = Call(limit), Call(limit)
    async with asyncio.timeout(30):
        await waiting.started.wait()
    await waiting.end()
    await slow.end()


async def test_cancelled_calls_pass_their_turn_on() -> None:
    limit = CallLimit(1, patience=600)
    first, waiting, granted, last = (Call(limit) for _ in range(4))
    await until_idle()
    await waiting.cancel()
    first.release.set()
    await first.task
    granted.task.cancel()
    async with asyncio.timeout(30):
        await last.started.wait()
    await last.end()


async def test_slow_send_leaves_its_transport_to_nobody() -> None:
    factory = Factory()
    pool = TransportPool(factory, count=1, patience=0.0)
    calls = [Call(pool) for _ in range(3)]
    async with asyncio.timeout(30):
        for call in calls:
            await call.started.wait()
    for call in calls:
        await call.end()

    assert sorted(transport.is_closed for transport in factory.opened) == [False, True, True]


async def test_transport_is_reused_after_failure_and_cancellation() -> None:
    factory = Factory()
    pool = TransportPool(factory, count=1, patience=600)
    call = Call(pool)
    await call.started.wait()
    await call.cancel()

    with pytest.raises(ConnectionError):
        async with pool.use():
            raise ConnectionError
    async with asyncio.timeout(30), pool.use() as transport:
        assert [transport] == factory.opened


async def test_closing_waits_for_busy_transports() -> None:
    factory = Factory()
    pool = TransportPool(factory, count=2)
    idle, busy = Call(pool), Call(pool)
    await until_idle()
    await idle.end()
    await pool.aclose()
    assert [transport.is_closed for transport in factory.opened] == [True, False]

    await busy.end()
    assert all(transport.is_closed for transport in factory.opened)
