"""Cut connections, stopped servers, and calls that are cancelled."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import attrs
import pytest
from tests.mirrors.contract import LONG, Part, loaded, member, message, names, parts, shipped, taken

from molecule_connect.mirrors import MirrorUnreachableError, Row
from molecule_connect_postgres import PostgresMirror
from molecule_connect_postgres.connections import Limits
from molecule_connect_postgres.mirror import AllLimits
from molecule_connect_postgres.testing import Cluster, Proxy

from .kit import SHORT, Server


@attrs.define
class HeldParts:
    """Parts of which the second is held back."""

    is_asked: asyncio.Event = attrs.field(factory=asyncio.Event)
    go: asyncio.Event = attrs.field(factory=asyncio.Event)

    async def __call__(self) -> AsyncIterator[Part]:
        yield {"ws_1": [message("a")]}
        yield {"ws_1": [message("c")]}
        self.is_asked.set()
        await self.go.wait()
        yield {"ws_1": [message("b")]}


@pytest.fixture
async def proxy(cluster: Cluster) -> AsyncIterator[Proxy]:
    async with Proxy.to(cluster.port) as proxy:
        yield proxy


Call = Callable[[PostgresMirror, str], Awaitable[object]]
CALLS: dict[str, Call] = {
    "begin": lambda mirror, session: mirror.begin(member(), seconds=LONG),
    "renew": lambda mirror, session: mirror.renew(session, member(), seconds=LONG),
    "members": lambda mirror, session: mirror.members(),
    "free": lambda mirror, session: mirror.free(near="", limit=1, expired=True),
    "add": lambda mirror, session: mirror.add(["ws_1"]),
    "take": lambda mirror, session: mirror.take(session, ["ws_1"]),
    "release": lambda mirror, session: mirror.release(session, ["ws_1"]),
    "end": lambda mirror, session: mirror.end(session),
    "ship": lambda mirror, session: shipped(mirror, session, 1, {"ws_1": [message("a")]}),
    "load": lambda mirror, session: loaded(mirror, "ws_1"),
}


@pytest.mark.parametrize("name", CALLS)
async def test_silent_network_is_noticed_and_healed(server: Server, proxy: Proxy, name: str) -> None:
    mirror = server.mirror(proxy.via(server.url), limits=SHORT)
    session = await taken(mirror, "ws_1")
    await shipped(mirror, session, 1, {"ws_1": [message("a")]})
    proxy.cut()
    with pytest.raises(MirrorUnreachableError, match=f"{mirror.where} doesn't respond"):
        await CALLS[name](mirror, session)
    with pytest.raises(MirrorUnreachableError):
        await CALLS[name](mirror, session)
    proxy.heal()
    mirror_of_others = server.mirror()
    await CALLS[name](server.mirror(proxy.via(server.url)), session)
    await mirror_of_others.members()


@pytest.mark.parametrize("name", CALLS)
async def test_cancelled_call_leaves_a_usable_mirror(
    server: Server, proxy: Proxy, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = server.mirror(proxy.via(server.url))
    session = await taken(mirror, "ws_1")
    proxy.answers.clear()
    call = asyncio.ensure_future(CALLS[name](mirror, session))
    done, _ = await asyncio.wait([call], timeout=0.05)
    assert not done
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    proxy.heal()
    assert isinstance(await mirror.members(), list)
    await CALLS["ship"](mirror, session)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("name", CALLS)
async def test_aclose_ends_running_calls(server: Server, proxy: Proxy, name: str) -> None:
    mirror = server.mirror(proxy.via(server.url))
    session = await taken(mirror, "ws_1")
    proxy.answers.clear()
    call = asyncio.ensure_future(CALLS[name](mirror, session))
    await asyncio.wait([call], timeout=0.05)
    await mirror.aclose()
    with pytest.raises(MirrorUnreachableError):
        await call
    proxy.heal()
    await server.until_connections(0)


async def test_lost_acknowledgement_is_an_unknown_outcome(server: Server, proxy: Proxy) -> None:
    mirror = server.mirror(proxy.via(server.url), limits=SHORT)
    session = await taken(mirror, "ws_1")
    await shipped(mirror, session, 1, {"ws_1": [message("a")]})
    proxy.answers.clear()
    with pytest.raises(MirrorUnreachableError):
        await shipped(mirror, session, 1, {"ws_1": [message("b")]})
    assert await loaded(server.mirror(), "ws_1") == [message("a"), message("b")]
    proxy.heal()
    assert await shipped(mirror, session, 1, {"ws_1": [message("b")]}) == {"ws_1": 3}


async def test_late_ship_changes_nothing(server: Server, proxy: Proxy) -> None:
    session = await taken(server.mirror(), "ws_1")
    delayed = server.mirror(proxy.via(server.url), limits=SHORT)
    await shipped(delayed, session, 1, {"ws_1": [message("a", state="received")]})
    proxy.requests.clear()
    with pytest.raises(MirrorUnreachableError):
        await shipped(delayed, session, 1, {"ws_1": [message("a", state="running")]})
    assert await shipped(server.mirror(), session, 1, {"ws_1": [message("a", state="done")]}) == {"ws_1": 2}
    proxy.heal()
    # Its connection ends after the request.
    await server.until_connections(2)
    assert await loaded(server.mirror(), "ws_1") == [message("a", state="done")]


async def test_late_release_changes_nothing(server: Server, proxy: Proxy) -> None:
    mirror = server.mirror()
    session = await taken(mirror, "ws_1")
    delayed = server.mirror(proxy.via(server.url), limits=SHORT)
    await delayed.members()
    proxy.requests.clear()
    with pytest.raises(MirrorUnreachableError):
        await delayed.release(session, ["ws_1"])
    assert names(await mirror.renew(session, member(), seconds=LONG)) == ["ws_1"]
    proxy.heal()
    await server.until_connections(1)
    assert names(await mirror.renew(session, member(), seconds=LONG)) == ["ws_1"]


async def test_cut_during_a_ship_changes_nothing(server: Server, proxy: Proxy) -> None:
    mirror, held = server.mirror(proxy.via(server.url)), HeldParts()
    session = await taken(mirror, "ws_1")
    ship = asyncio.create_task(mirror.ship(session, {"ws_1": 1}, held()))
    await held.is_asked.wait()
    proxy.reset()
    held.go.set()
    with pytest.raises(MirrorUnreachableError):
        await ship
    assert await loaded(mirror, "ws_1") == []
    assert await shipped(mirror, session, 1, {"ws_1": [message("a")]}) == {"ws_1": 1}


async def test_cut_during_a_load_is_an_error(server: Server, proxy: Proxy) -> None:
    mirror = server.mirror(proxy.via(server.url), limits=SHORT)
    session = await taken(mirror, "ws_1")
    await shipped(
        server.mirror(), session, 1, {"ws_1": [message(f"{number}", body=bytes(1 << 22)) for number in range(8)]}
    )
    found = mirror.load("ws_1")
    await anext(found)
    proxy.cut()
    with pytest.raises(MirrorUnreachableError):
        [part async for part in found]
    proxy.heal()
    assert len(await loaded(mirror, "ws_1")) == 8


@pytest.mark.parametrize("how", ["restart", "crash"])
async def test_server_restart_is_survived(server: Server, how: str) -> None:
    mirror = server.mirror()
    session = await taken(mirror, "ws_1")
    await shipped(mirror, session, 1, {"ws_1": [message("a")]})
    server.cluster.stop() if how == "restart" else server.cluster.kill()
    try:
        for name in ("renew", "ship", "load", "begin"):
            with pytest.raises(MirrorUnreachableError, match="can't be reached") as caught:
                await CALLS[name](mirror, session)
            assert caught.value.may_heal
    finally:
        server.cluster.start()
    assert names(await mirror.renew(session, member(), seconds=LONG)) == ["ws_1"]
    assert await shipped(mirror, session, 1, {"ws_1": [message("b")]}) == {"ws_1": 2}
    assert await loaded(mirror, "ws_1") == [message("a"), message("b")]


async def test_transaction_of_a_silent_client_is_ended(server: Server) -> None:
    limits = AllLimits(ship=Limits(answer=LONG, idle=0.3))
    mirror, held = server.mirror(limits=limits), HeldParts()
    session = await taken(mirror, "ws_1")
    other = await mirror.begin(member("host-2"), seconds=LONG)
    # The rows can't be read, as in a process that is stopped in the middle.
    ship = asyncio.create_task(mirror.ship(session, {"ws_1": 1}, held()))
    await held.is_asked.wait()
    await asyncio.to_thread(server.lapse, session)
    # The first connection is for sessions, the second one ended with its transaction.
    await server.until_connections(1)
    assert names(await mirror.take(other, ["ws_1"])) == ["ws_1"]
    held.go.set()
    with pytest.raises(MirrorUnreachableError):
        await ship
    assert await loaded(mirror, "ws_1") == []


async def test_wait_for_a_lock_is_bounded(server: Server) -> None:
    limits = AllLimits(ship=Limits(answer=LONG, lock=0.2))
    mirror = server.mirror(limits=limits)
    session = await taken(mirror, "ws_1")
    blocker = await server.transaction()
    await blocker.run("SELECT FROM molecule_connect.lease FOR UPDATE", {})
    with pytest.raises(MirrorUnreachableError, match="lock timeout"):
        await shipped(mirror, session, 1, {"ws_1": [message("a")]})
    await blocker.commit()
    assert await shipped(mirror, session, 1, {"ws_1": [message("a")]}) == {"ws_1": 1}


async def test_slow_parts_extend_the_time_limit(server: Server) -> None:
    limits = AllLimits(ship=Limits(answer=0.5, idle=LONG))
    mirror = server.mirror(limits=limits)
    session = await taken(mirror, "ws_1")

    async def slow() -> AsyncIterator[Part]:
        for number in range(4):
            await asyncio.sleep(0.2)
            yield {"ws_1": [message(f"{number}")]}

    assert await mirror.ship(session, {"ws_1": 1}, slow()) == {"ws_1": 1}


async def test_error_of_the_rows_is_passed_on(server: Server) -> None:
    mirror = server.mirror()
    session = await taken(mirror, "ws_1")

    async def broken() -> AsyncIterator[Part]:
        yield {"ws_1": [message("a")]}
        raise TimeoutError("of the disk")

    with pytest.raises(TimeoutError, match="of the disk"):
        await mirror.ship(session, {"ws_1": 1}, broken())
    assert await loaded(mirror, "ws_1") == []


async def test_finished_and_abandoned_loads_leave_no_connection(server: Server) -> None:
    mirror = server.mirror()
    session = await taken(mirror, "ws_1")
    await shipped(mirror, session, 1, {"ws_1": [message(f"{number}", body=bytes(1 << 22)) for number in range(8)]})
    await asyncio.gather(*(loaded(mirror, "ws_1") for _ in range(6)))
    found = mirror.load("ws_1")
    await anext(found)
    await found.aclose()
    await mirror.overview()
    await mirror.renew(session, member(), seconds=LONG)
    # Of sessions, and of ships.
    await server.until_connections(2)


async def test_loads_share_a_connection(server: Server) -> None:
    mirror = server.mirror()
    session = await taken(mirror, "ws_1", "ws_2")
    await shipped(mirror, session, 1, {"ws_1": [message("a")], "ws_2": [message("b")]})
    assert [await loaded(mirror, name) for name in ("ws_1", "ws_2", "ws_1")] == [
        [message("a")],
        [message("b")],
        [message("a")],
    ]
    await server.until_connections(3)


async def test_members_that_are_long_gone_are_removed(server: Server) -> None:
    mirror = server.mirror()
    with_lease, without = await taken(mirror, "ws_1"), await mirror.begin(member(), seconds=LONG)
    recent = await mirror.begin(member(), seconds=0)
    server.execute(
        "UPDATE molecule_connect.member SET expires_at=clock_timestamp() - interval '2 h' WHERE session = ANY(%s)",
        [[with_lease, without]],
    )
    latest = await mirror.begin(member(), seconds=LONG)
    left = {session for (session,) in server.execute("SELECT session FROM molecule_connect.member")}
    assert left == {with_lease, recent, latest}


async def test_rows_of_other_kinds_are_untouched_by_removal(server: Server) -> None:
    mirror = server.mirror()
    session = await taken(mirror, "ws_1", "ws_2")
    rows = [message("a"), Row(table="spend", key="a", data=b"")]
    await shipped(mirror, session, 1, {"ws_1": rows, "ws_2": rows})
    gone = {"ws_1": [Row(table="spend", key="a", data=None)]}
    await mirror.ship(session, {"ws_1": 1}, parts(gone))
    assert await loaded(mirror, "ws_1") == [message("a")]
    assert len(await loaded(mirror, "ws_2")) == 2
