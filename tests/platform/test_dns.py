"""Looking resolver up and dialling what they stand for: nothing waits for a resolver or an address that hangs."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator

import httpx
import pytest

from molecule_connect.platform.dns import CACHE_SECONDS, Endpoint, Resolver, connect
from molecule_connect.platform.http1 import HttpConnection
from molecule_connect.platform.http_messages import HttpRequest

FIRST = Endpoint(socket.AF_INET, ("192.0.2.1", 80))
SECOND = Endpoint(socket.AF_INET, ("192.0.2.2", 80))


class Lookup:
    """Answers at once, fails, or hangs until it is released."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fails = False
        self.hangs = {"hangs.example"}
        self.release = threading.Event()

    def __call__(self, host: str, port: int) -> list[Endpoint]:
        self.asked.append(host)
        if host in self.hangs:
            self.release.wait(30)
        if self.fails:
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return [FIRST]


@pytest.fixture
def lookup() -> Iterator[Lookup]:
    lookup = Lookup()
    yield lookup
    lookup.release.set()


async def test_hanging_lookup_delays_no_other_host(lookup: Lookup) -> None:
    resolver = Resolver(look_up=lookup)
    hanging = [asyncio.create_task(resolver.resolve("hangs.example", 80)) for _ in range(50)]
    async with asyncio.timeout(30):
        assert await resolver.resolve("good.example", 80) == [FIRST]
        # The loop's own threads are free.
        await asyncio.gather(*(asyncio.to_thread(int) for _ in range(20)))
    assert lookup.asked.count("hangs.example") == 1
    for task in hanging:
        task.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)


async def test_cancelled_wait_keeps_lookup_for_others(lookup: Lookup) -> None:
    resolver = Resolver(look_up=lookup)
    first, second = (asyncio.create_task(resolver.resolve("hangs.example", 80)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    lookup.release.set()
    assert await second == [FIRST]


async def test_cached_result_outlasts_failing_lookups(lookup: Lookup) -> None:
    now = 0.0
    resolver = Resolver(look_up=lookup, clock=lambda: now, patience=0.01)
    for _ in range(3):
        await resolver.resolve("good.example", 80)
    assert lookup.asked == ["good.example"]

    now, lookup.fails = CACHE_SECONDS, True
    assert await resolver.resolve("good.example", 80) == [FIRST]
    lookup.hangs.add("good.example")
    assert await resolver.resolve("good.example", 80) == [FIRST]
    assert len(lookup.asked) == 3


async def test_unreachable_host_is_looked_up_again(lookup: Lookup) -> None:
    resolver = Resolver(look_up=lookup)
    await resolver.resolve("good.example", 80)
    resolver.expire("good.example", 80)
    await resolver.resolve("good.example", 80)
    assert lookup.asked == ["good.example"] * 2


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_an_address_needs_no_resolver(lookup: Lookup, host: str) -> None:
    (found,) = await Resolver(look_up=lookup).resolve(host, 80)
    assert found.address[:2] == (host, 80)
    assert lookup.asked == []


async def test_name_without_address_raises(lookup: Lookup) -> None:
    lookup.fails = True
    with pytest.raises(OSError, match="no answer"):
        await Resolver(look_up=lookup).resolve("good.example", 80)


async def test_hanging_lookup_is_named_in_the_error(lookup: Lookup) -> None:
    connection = HttpConnection(None, resolver=Resolver(look_up=lookup))
    url = httpx.URL("http://hangs.example/")
    request = HttpRequest(method="GET", url=url, headers=[], connect_timeout=0.05)
    with pytest.raises(httpx.ConnectTimeout, match=r"the name server gives no address of hangs\.example"):
        await connection.send(request)


class Network:
    """Opens sockets: at once, never, or not at all."""

    def __init__(self, **outcomes: str) -> None:
        self.outcomes = outcomes
        self.opened: list[socket.socket] = []

    async def __call__(self, endpoint: Endpoint) -> socket.socket:
        match self.outcomes[str(endpoint.address[0])[-1:].replace("1", "first").replace("2", "second")]:
            case "hangs":
                await asyncio.Event().wait()
            case "fails":
                raise ConnectionRefusedError(f"refused by {endpoint.address[0]}")
        self.opened.append(socket.socket())
        return self.opened[-1]


@pytest.mark.parametrize("first", ["hangs", "fails"])
async def test_second_address_is_tried_after_head_start(first: str) -> None:
    network = Network(first=first, second="opens")
    async with asyncio.timeout(30):
        with contextlib.closing(await connect([FIRST, SECOND], open_socket=network, head_start=0.01)) as found:
            assert [found] == network.opened


async def test_first_address_wins_if_it_responds() -> None:
    network = Network(first="opens", second="fails")
    with contextlib.closing(await connect([FIRST, SECOND], open_socket=network, head_start=5)) as found:
        assert [found] == network.opened


async def test_error_is_that_of_first_address() -> None:
    with pytest.raises(ConnectionRefusedError, match=r"192\.0\.2\.1"):
        await connect([FIRST, SECOND], open_socket=Network(first="fails", second="fails"), head_start=0.01)


async def test_a_cancelled_race_leaves_no_socket_open() -> None:
    opened = asyncio.Event()
    sockets: list[socket.socket] = []

    async def open_late(endpoint: Endpoint) -> socket.socket:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            sockets.append(socket.socket())
        opened.set()
        return sockets[-1]

    dialling = asyncio.create_task(connect([FIRST, SECOND], open_socket=open_late, head_start=0.0))
    await asyncio.sleep(0.01)
    dialling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dialling
    await opened.wait()
    for _ in range(3):  # the outcome of a task reaches its callbacks in the next turn of the loop
        await asyncio.sleep(0)
    assert sockets
    assert {one.fileno() for one in sockets} == {-1}
