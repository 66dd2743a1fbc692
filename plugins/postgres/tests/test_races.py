"""Transactions of two members that overlap in every order that matters."""

import asyncio
import random

import attrs
import pytest
from tests.mirrors.contract import LONG, loaded, member, message, names, parts, shipped, taken

from molecule_connect.mirrors import JournalMirror, Row
from molecule_connect_postgres import statements

from .kit import Server


async def two(server: Server) -> tuple[JournalMirror, str, str]:
    """A mirror, a session that lapsed with the lease of ws_1, and another session."""
    mirror = server.mirror()
    holder = await taken(mirror, "ws_1")
    other = await mirror.begin(member("host-2"), seconds=LONG)
    await asyncio.to_thread(server.lapse, holder)
    return mirror, holder, other


def taking(session: str) -> dict[str, object]:
    return {"session": session, "ids": ["ws_1"]}


def fence(session: str) -> dict[str, object]:
    return {"session": session, "names": ["ws_1"], "epochs": [1], "turn": 1}


def renewing(session: str) -> dict[str, object]:
    return {
        "session": session,
        "seconds": LONG,
        "turn": 0,
        **attrs.asdict(member()),
    }


async def test_renewal_during_a_take_loses_the_lease(server: Server) -> None:
    mirror, holder, other = await two(server)
    take = await server.transaction()
    await take.run(statements.TAKE, taking(other))
    renewal = asyncio.create_task(mirror.renew(holder, member(), seconds=LONG))
    await server.until_waiting("%UPDATE molecule_connect.member")
    await take.commit()
    assert await renewal == []
    assert names(await mirror.renew(other, member(), seconds=LONG)) == ["ws_1"]


async def test_take_during_a_renewal_gets_nothing(server: Server) -> None:
    mirror, holder, other = await two(server)
    renewal = await server.transaction()
    await renewal.run(statements.RENEW, renewing(holder))
    assert await mirror.take(other, ["ws_1"]) == []
    await renewal.commit()
    assert await mirror.take(other, ["ws_1"]) == []
    assert names(await mirror.renew(holder, member(), seconds=LONG)) == ["ws_1"]


async def test_expiry_is_tested_again_under_the_lock(server: Server) -> None:
    _, holder, other = await two(server)
    renewal, take = await server.transaction(), await server.transaction()
    await renewal.run(statements.RENEW, renewing(holder))
    # As if the renewal were committed between the start of the statement and its lock.
    taken_late = asyncio.create_task(take.run(statements.TAKE.replace("SKIP LOCKED", ""), taking(other)))
    await server.until_waiting("WITH own")
    await renewal.commit()
    assert await taken_late == []


@pytest.mark.parametrize("is_released", [True, False])
async def test_lease_taken_meanwhile_is_not_taken_again(server: Server, is_released: bool) -> None:
    mirror, holder, other = await two(server)
    if is_released:
        await mirror.release(holder, ["ws_1"])
    third = await mirror.begin(member("host-3"), seconds=LONG)
    first, second = await server.transaction(), await server.transaction()
    assert await first.run(statements.TAKE, taking(other)) == [("ws_1", 2, 0)]
    # As if the first take were committed between the start of the second one and its lock.
    late = asyncio.create_task(second.run(statements.TAKE.replace("SKIP LOCKED", ""), taking(third)))
    await server.until_waiting("WITH own")
    await first.commit()
    assert await late == []
    await second.commit()


async def test_lease_whose_row_changed_meanwhile_is_taken_once(server: Server) -> None:
    # The holder shipped between the start of the take and its lock.
    mirror, holder, other = await two(server)
    ship, take = await server.transaction(), await server.transaction()
    await ship.run(statements.FENCE, fence(holder))
    late = asyncio.create_task(take.run(statements.TAKE.replace("SKIP LOCKED", ""), taking(other)))
    await server.until_waiting("WITH own")
    await ship.commit()
    assert await late == [("ws_1", 2, 1)]
    await take.commit()
    assert [(lease.epoch, lease.commits) for lease in await mirror.renew(other, member(), seconds=LONG)] == [(2, 1)]


async def test_lease_is_not_taken_while_its_holder_ships(server: Server) -> None:
    mirror, holder, other = await two(server)
    ship = await server.transaction()
    assert await ship.run(statements.FENCE, fence(holder)) == [("ws_1", 1)]
    assert await mirror.take(other, ["ws_1"]) == []
    await ship.commit()
    assert [lease.commits for lease in await mirror.take(other, ["ws_1"])] == [1]
    assert await shipped(mirror, holder, 1, {"ws_1": [message("a")]}) == {}


async def test_rows_shipped_during_a_take_are_ignored(server: Server) -> None:
    mirror, holder, other = await two(server)
    take = await server.transaction()
    await take.run(statements.TAKE, taking(other))
    ship = asyncio.create_task(shipped(mirror, holder, 1, {"ws_1": [message("a")]}))
    await server.until_waiting("%UPDATE molecule_connect.lease")
    await take.commit()
    assert await ship == {}
    assert await loaded(mirror, "ws_1") == []


async def test_changes_see_rows_of_a_late_transaction(server: Server) -> None:
    # A connection was cut during a ship, and its transaction is committed after the next one began.
    mirror = server.mirror()
    session = await taken(mirror, "ws_1")
    earlier = await server.transaction()
    await earlier.run(statements.FENCE, fence(session))
    columns = "(workspace_id, tbl, key, data, body, state, time)"
    rows = "('ws_1', 'message', 'a', '', 'text', '', 0), ('ws_1', 'message', 'b', '', 'text', '', 0)"
    await earlier.run(f"INSERT INTO molecule_connect.row {columns} VALUES {rows}", {})
    changed = Row(table="message", key="a", data=b"new", state="done", time=1)
    gone = Row(table="message", key="b", data=None)
    ship = asyncio.create_task(shipped(mirror, session, 1, {"ws_1": [changed, gone]}))
    await server.until_waiting("%UPDATE molecule_connect.lease")
    await earlier.commit()
    assert await ship == {"ws_1": 2}
    assert await loaded(mirror, "ws_1") == [attrs.evolve(changed, body=b"text")]


async def test_members_that_add_the_same_workspaces_agree(server: Server) -> None:
    many = [f"ws_{number}" for number in range(3000)]
    mirrors = [server.mirror() for _ in range(4)]
    shuffled = [random.sample(many, len(many)) for _ in mirrors]
    await asyncio.gather(*(mirror.add(ids) for mirror, ids in zip(mirrors, shuffled, strict=True)))
    assert len(await mirrors[0].overview()) == 3000


async def test_no_epoch_is_granted_twice_under_load(server: Server) -> None:
    many = ["ws_1", "ws_2", "ws_3", "ws_4"]
    granted: list[tuple[str, int]] = []
    await server.mirror().add(many)

    async def serve(number: int) -> None:
        chance, mirror = random.Random(number), server.mirror()
        session = await mirror.begin(member(f"host-{number}"), seconds=LONG)
        for step in range(60):
            some = chance.sample(many, 3)
            granted.extend((lease.workspace_id, lease.epoch) for lease in await mirror.take(session, some))
            held = await mirror.renew(session, member(), seconds=LONG)
            epochs = {lease.workspace_id: lease.epoch for lease in held}
            # Nobody else can take them before the session lapses.
            rows = {name: [message(f"{number}-{step}")] for name in epochs}
            assert set(await mirror.ship(session, epochs, parts(rows))) == set(epochs)
            if chance.random() < 0.5:
                await mirror.release(session, some)
            else:
                await asyncio.to_thread(server.lapse, session)
            await mirror.renew(session, member(), seconds=LONG)

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(serve(number))
    assert len(granted) == len(set(granted)) > 20
