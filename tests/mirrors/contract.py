"""What every mirror does, as tests. A subclass whose name begins with ``Test`` runs them.

It provides two fixtures: ``connect``, which returns another mirror of the same database, whose tables exist; and
``lapse``, which ends the time of a session as if it had not been renewed.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

import pytest

from molecule_connect.mirrors import (
    JournalMirror,
    Lease,
    MemberInfo,
    MirrorError,
    MirrorUnreachableError,
    Row,
    SessionEndedError,
)

Connect = Callable[[], JournalMirror]
Lapse = Callable[[str], Awaitable[None]]
Part = Mapping[str, Sequence[Row]]

LONG = 3600.0
MIB = 1 << 20


def member(host: str = "host-1", *, pid: int = 1, capacity: int = 10) -> MemberInfo:
    return MemberInfo(host=host, pid=pid, machine="machine-1", capacity=capacity, listing="listing-1")


def message(key: str, *, data: bytes = b"{}", body: bytes | None = None, state: str = "received", time: int = 1) -> Row:
    return Row(table="message", key=key, data=data, body=body, state=state, time=time)


async def parts(*given: Part) -> AsyncIterator[Part]:
    for part in given:
        yield part


async def taken(mirror: JournalMirror, *names: str, host: str = "host-1") -> str:
    """A new session that has the leases of *names*."""
    session = await mirror.begin(member(host), seconds=LONG)
    await mirror.add(names)
    leases = await mirror.take(session, names)
    assert {lease.workspace_id for lease in leases} == set(names)
    return session


async def shipped(mirror: JournalMirror, session: str, epoch: int, *given: Part) -> Mapping[str, int]:
    """Ship parts, all with leases of *epoch*."""
    return await mirror.ship(session, {name: epoch for part in given for name in part}, parts(*given))


async def loaded(mirror: JournalMirror, name: str) -> list[Row]:
    return [row async for part in mirror.load(name) for row in part]


def names(leases: Sequence[Lease]) -> list[str]:
    return sorted(lease.workspace_id for lease in leases)


class MirrorContract:
    # Sessions

    async def test_member_is_listed_until_it_ends(self, connect: Connect) -> None:
        mirror = connect()
        session = await mirror.begin(member("host-1", pid=7), seconds=LONG)
        (state,) = await connect().members()
        assert (state.session, state.info, state.held) == (session, member("host-1", pid=7), 0)
        assert state.since > 0
        await mirror.end(session)
        assert await mirror.members() == []

    async def test_members_are_listed_with_their_leases(self, connect: Connect) -> None:
        mirror = connect()
        first, second = await taken(mirror, "ws_1", "ws_2"), await taken(mirror, "ws_3")
        assert [state.held for state in await mirror.members()] == [0, 0]
        for session in (first, second):
            await mirror.renew(session, member(), seconds=LONG)
        assert {state.session: state.held for state in await mirror.members()} == {first: 2, second: 1}

    async def test_lapsed_member_is_not_listed(self, connect: Connect, lapse: Lapse) -> None:
        mirror = connect()
        session = await mirror.begin(member(), seconds=LONG)
        await lapse(session)
        assert await mirror.members() == []

    async def test_renewal_updates_the_member(self, connect: Connect) -> None:
        mirror = connect()
        session = await mirror.begin(member(), seconds=LONG)
        assert await mirror.renew(session, member(capacity=0), seconds=LONG) == []
        assert [state.info.capacity for state in await mirror.members()] == [0]

    async def test_renewal_returns_leases(self, connect: Connect) -> None:
        mirror = connect()
        session = await taken(mirror, "ws_1", "ws_2")
        await shipped(mirror, session, 1, {"ws_2": [message("a")]})
        leases = await mirror.renew(session, member(), seconds=LONG)
        assert sorted(leases, key=lambda lease: lease.workspace_id) == [
            Lease(workspace_id="ws_1", epoch=1, commits=0),
            Lease(workspace_id="ws_2", epoch=1, commits=1),
        ]

    async def test_ended_session_is_not_renewed(self, connect: Connect) -> None:
        mirror = connect()
        session = await mirror.begin(member(), seconds=LONG)
        await mirror.end(session)
        with pytest.raises(SessionEndedError):
            await mirror.renew(session, member(), seconds=LONG)

    async def test_session_ends_without_renewal(self, connect: Connect) -> None:
        mirror = connect()
        await mirror.begin(member(), seconds=0)
        assert await mirror.members() == []

    # Leases

    async def test_unknown_workspaces_are_added(self, connect: Connect) -> None:
        mirror = connect()
        assert await mirror.free(near="", limit=5, expired=True) == []
        await mirror.add(["ws_2", "ws_1"])
        await connect().add(["ws_1"])
        await mirror.add([])
        assert await mirror.free(near="", limit=5, expired=False) == ["ws_1", "ws_2"]
        assert [each.workspace_id for each in await mirror.overview()] == ["ws_1", "ws_2"]

    @pytest.mark.parametrize("expired", [True, False])
    async def test_free_workspaces_begin_near_an_id(self, connect: Connect, expired: bool) -> None:
        mirror = connect()
        await mirror.add(["ws_1", "ws_2", "ws_3", "ws_4"])
        assert await mirror.free(near="ws_2x", limit=9, expired=expired) == ["ws_3", "ws_4", "ws_1", "ws_2"]
        assert await mirror.free(near="ws_4", limit=2, expired=expired) == ["ws_4", "ws_1"]
        assert await mirror.free(near="ws_9", limit=1, expired=expired) == ["ws_1"]

    async def test_held_workspace_is_not_free(self, connect: Connect, lapse: Lapse) -> None:
        mirror = connect()
        session = await taken(mirror, "ws_1")
        assert await mirror.free(near="", limit=1, expired=True) == []
        await lapse(session)
        assert await mirror.free(near="", limit=1, expired=False) == []
        assert await mirror.free(near="", limit=1, expired=True) == ["ws_1"]

    async def test_lease_is_taken_once(self, connect: Connect) -> None:
        mirror = connect()
        await taken(mirror, "ws_1")
        other = await mirror.begin(member("host-2"), seconds=LONG)
        await mirror.add(["ws_2"])
        assert await mirror.take(other, ["ws_1", "ws_2"]) == [Lease(workspace_id="ws_2", epoch=1, commits=0)]
        assert await mirror.take(other, ["ws_2"]) == []

    async def test_unknown_workspace_is_not_taken(self, connect: Connect) -> None:
        mirror = connect()
        session = await mirror.begin(member(), seconds=LONG)
        assert await mirror.take(session, ["ws_1"]) == []
        assert await mirror.take(session, []) == []

    async def test_session_that_ended_takes_nothing(self, connect: Connect, lapse: Lapse) -> None:
        mirror = connect()
        await mirror.add(["ws_1"])
        session = await mirror.begin(member(), seconds=LONG)
        await lapse(session)
        assert await mirror.take(session, ["ws_1"]) == []
        assert await mirror.take("unknown", ["ws_1"]) == []

    async def test_lapsed_lease_is_taken_with_next_epoch(self, connect: Connect, lapse: Lapse) -> None:
        mirror = connect()
        first = await taken(mirror, "ws_1", "ws_2")
        await shipped(mirror, first, 1, {"ws_1": [message("a")]})
        await lapse(first)
        second = await mirror.begin(member("host-2"), seconds=LONG)
        assert await mirror.take(second, ["ws_1"]) == [Lease(workspace_id="ws_1", epoch=2, commits=1)]
        assert names(await mirror.renew(first, member(), seconds=LONG)) == ["ws_2"]

    async def test_late_renewal_keeps_leases(self, connect: Connect, lapse: Lapse) -> None:
        mirror = connect()
        first = await taken(mirror, "ws_1")
        second = await mirror.begin(member("host-2"), seconds=LONG)
        await lapse(first)
        assert names(await mirror.renew(first, member(), seconds=LONG)) == ["ws_1"]
        assert await mirror.take(second, ["ws_1"]) == []

    async def test_released_lease_is_free(self, connect: Connect) -> None:
        mirror = connect()
        first = await taken(mirror, "ws_1", "ws_2")
        await mirror.release(first, ["ws_1", "unknown"])
        assert await mirror.free(near="", limit=2, expired=False) == ["ws_1"]
        second = await mirror.begin(member("host-2"), seconds=LONG)
        assert await mirror.take(second, ["ws_1"]) == [Lease(workspace_id="ws_1", epoch=2, commits=0)]

    async def test_lease_of_another_is_not_released(self, connect: Connect) -> None:
        mirror = connect()
        await taken(mirror, "ws_1")
        other = await mirror.begin(member("host-2"), seconds=LONG)
        await mirror.release(other, ["ws_1"])
        assert await mirror.free(near="", limit=1, expired=True) == []

    async def test_end_releases_all_leases(self, connect: Connect) -> None:
        mirror = connect()
        session = await taken(mirror, "ws_1", "ws_2")
        await mirror.end(session)
        await mirror.end(session)
        assert sorted(await mirror.free(near="", limit=2, expired=False)) == ["ws_1", "ws_2"]

    async def test_concurrent_takes_share_leases(self, connect: Connect, lapse: Lapse) -> None:
        many = [f"ws_{number}" for number in range(20)]
        mirrors = [connect() for _ in range(4)]
        await lapse(await taken(mirrors[0], *many))
        sessions = [await mirror.begin(member(), seconds=LONG) for mirror in mirrors]
        calls = (mirror.take(session, many) for mirror, session in zip(mirrors, sessions, strict=True))
        results = await asyncio.gather(*calls)
        assert sorted(lease.workspace_id for leases in results for lease in leases) == sorted(many)
        assert {lease.epoch for leases in results for lease in leases} == {2}

    # The copy

    async def test_shipped_rows_are_loaded(self, connect: Connect) -> None:
        mirror = connect()
        session = await taken(mirror, "ws_1", "ws_2")
        first = [message("a", data=b"1", body=b"text", time=2), Row(table="spend", key="day", data=b"2")]
        second = [message("a", data=b"3", state="done", time=1)]
        assert await shipped(mirror, session, 1, {"ws_1": first, "ws_2": second}) == {"ws_1": 1, "ws_2": 1}
        assert await loaded(mirror, "ws_1") == first
        assert await loaded(connect(), "ws_2") == second
        assert await loaded(mirror, "ws_3") == []

    async def test_messages_are_loaded_in_order_of_time(self, connect: Connect) -> None:
        mirror = connect()
        session = await taken(mirror, "ws_1")
        await shipped(mirror, session, 1, {"ws_1": [message(f"k{9 - time}", time=time) for time in (3, 1, 2)]})
        assert [row.time for row in await loaded(mirror, "ws_1")] == [1, 2, 3]

    async def test_changed_row_replaces_the_stored_one(self, connect: Connect) -> None:
        mirror = connect()
        session = await taken(mirror, "ws_1")
        await shipped(mirror, session, 1, {"ws_1": [message("a", body=b"first")]})
        changed = message("a", data=b"new", state="answered", time=5)
        assert await shipped(mirror, session, 1, {"ws_1": [changed]}) == {"ws_1": 2}
        assert await loaded(mirror, "ws_1") == [
            message("a", data=b"new", body=b"first", state="answered", time=5),
        ]
        await shipped(mirror, session, 1, {"ws_1": [message("a", body=b"second")]})
        assert await loaded(mirror, "ws_1") == [message("a", body=b"second")]

    async def test_deleted_row_is_gone(self, connect: Connect) -> None:
        mirror = connect()
        session = await taken(mirror, "ws_1")
        await shipped(mirror, session, 1, {"ws_1": [message("a"), message("b")]})
        gone = [Row(table="message", key="a", data=None), Row(table="message", key="unknown", data=None)]
        await shipped(mirror, session, 1, {"ws_1": gone})
        assert await loaded(mirror, "ws_1") == [message("b")]

    async def test_last_change_of_a_row_counts(self, connect: Connect) -> None:
        mirror = connect()
        session = await taken(mirror, "ws_1")
        rows = [
            message("a", body=b"text"),
            message("b"),
            message("a", data=b"last"),
            Row(table="message", key="b", data=None),
        ]
        await shipped(mirror, session, 1, {"ws_1": rows})
        assert await loaded(mirror, "ws_1") == [message("a", data=b"last", body=b"text")]

    async def test_parts_are_one_transaction(self, connect: Connect) -> None:
        mirror = connect()
        session = await taken(mirror, "ws_1", "ws_2")

        async def broken() -> AsyncIterator[Part]:
            yield {"ws_1": [message("a")]}
            raise LookupError

        with pytest.raises(LookupError):
            await mirror.ship(session, {"ws_1": 1}, broken())
        assert await loaded(mirror, "ws_1") == []
        given = ({"ws_1": [message("a")]}, {"ws_1": [message("b")], "ws_2": [message("c")]})
        assert await shipped(mirror, session, 1, *given) == {"ws_1": 1, "ws_2": 1}
        assert await loaded(mirror, "ws_1") == [message("a"), message("b")]

    async def test_rows_of_lost_leases_are_ignored(self, connect: Connect, lapse: Lapse) -> None:
        mirror = connect()
        first = await taken(mirror, "ws_1", "ws_2", "ws_3")
        await lapse(first)
        second = await mirror.begin(member("host-2"), seconds=LONG)
        await mirror.take(second, ["ws_1"])
        await mirror.release(first, ["ws_2"])
        rows = [message("a"), Row(table="message", key="b", data=None)]
        assert await shipped(mirror, first, 1, {"ws_1": rows, "ws_2": rows, "ws_3": rows}) == {"ws_3": 1}
        assert [await loaded(mirror, name) for name in ("ws_1", "ws_2", "ws_3")] == [[], [], [message("a")]]

    async def test_rows_with_an_old_epoch_are_ignored(self, connect: Connect) -> None:
        mirror = connect()
        session = await taken(mirror, "ws_1")
        await mirror.release(session, ["ws_1"])
        await mirror.take(session, ["ws_1"])
        assert await shipped(mirror, session, 1, {"ws_1": [message("a")]}) == {}
        assert await shipped(mirror, session, 2, {"ws_1": [message("b")]}) == {"ws_1": 1}
        assert await loaded(mirror, "ws_1") == [message("b")]

    async def test_odd_characters_are_kept(self, connect: Connect) -> None:
        mirror = connect()
        session = await taken(mirror, "ws_1")
        keys = ["", "\0", "a\0b", "\udc80", "\U0001f600", "'\"\\{},%s", "x" * 5000, "x" * 5000 + "y"]
        rows = [message(key, data=key.encode("utf-8", "surrogatepass"), body=bytes(range(256))) for key in keys]
        await shipped(mirror, session, 1, {"ws_1": rows})
        assert {row.key: row for row in await loaded(mirror, "ws_1")} == {row.key: row for row in rows}
        await shipped(mirror, session, 1, {"ws_1": [Row(table="message", key=key, data=None) for key in keys[1:]]})
        assert await loaded(mirror, "ws_1") == [rows[0]]

    async def test_large_rows_are_kept(self, connect: Connect) -> None:
        mirror = connect()
        session = await taken(mirror, "ws_1")
        row = message("a", body=b"\0\xff" * (32 * MIB))
        await shipped(mirror, session, 1, {"ws_1": [row]})
        assert await loaded(mirror, "ws_1") == [row]

    async def test_thousands_of_rows_are_shipped(self, connect: Connect) -> None:
        mirror = connect()
        session = await taken(mirror, "ws_1")
        rows = [message(f"{number:05}", time=number) for number in range(5000)]
        await shipped(mirror, session, 1, {"ws_1": rows})
        assert await loaded(mirror, "ws_1") == rows

    async def test_load_shows_one_moment(self, connect: Connect) -> None:
        mirror = connect()
        session = await taken(mirror, "ws_1")
        rows = [message(f"{number}", body=bytes(3 * MIB), time=number) for number in range(6)]
        await shipped(mirror, session, 1, {"ws_1": rows})
        found = mirror.load("ws_1")
        first = await anext(found)
        assert len(first) < 6
        changed = [message("5", body=b"", time=5), Row(table="message", key="4", data=None), message("6")]
        await shipped(mirror, session, 1, {"ws_1": changed})
        rest = [row async for part in found for row in part]
        assert [*first, *rest] == rows

    async def test_load_can_be_abandoned(self, connect: Connect) -> None:
        mirror = connect()
        session = await taken(mirror, "ws_1")
        await shipped(mirror, session, 1, {"ws_1": [message(f"{number}", body=bytes(3 * MIB)) for number in range(6)]})
        found = mirror.load("ws_1")
        assert await anext(found)
        await found.aclose()
        assert len(await loaded(mirror, "ws_1")) == 6

    async def test_copies_are_loaded_at_the_same_time(self, connect: Connect) -> None:
        mirror = connect()
        session = await taken(mirror, "ws_1", "ws_2")
        await shipped(mirror, session, 1, {"ws_1": [message("a")], "ws_2": [message("b")]})
        found = await asyncio.gather(*(loaded(mirror, name) for name in ("ws_1", "ws_2", "ws_1")))
        assert found == [[message("a")], [message("b")], [message("a")]]

    # The operator

    async def test_overview_shows_holder_and_messages(self, connect: Connect, lapse: Lapse) -> None:
        mirror = connect()
        session = await taken(mirror, "ws_2")
        await mirror.add(["ws_1"])
        states = ("received", "received", "dead", "done")
        rows = [message(state + str(time), state=state, time=time * 1_000_000) for time, state in enumerate(states, 5)]
        await shipped(mirror, session, 1, {"ws_2": [*rows, Row(table="spend", key="day", data=b"")]})
        first, second = await mirror.overview()
        assert (first.workspace_id, first.session, first.holder, first.is_alive) == ("ws_1", "", None, False)
        assert (first.changed, first.states, first.oldest_waiting) == (None, {}, None)
        assert (second.session, second.holder, second.is_alive) == (session, member(), True)
        assert (second.states, second.oldest_waiting) == ({"received": 2, "dead": 1, "done": 1}, 5.0)
        assert second.changed is not None
        assert second.changed >= second.since > 0

        await lapse(session)
        (second,) = await mirror.overview(["ws_2", "unknown"])
        assert (second.session, second.holder, second.is_alive) == (session, member(), False)

    async def test_deleted_workspace_is_new_again(self, connect: Connect) -> None:
        mirror = connect()
        session = await taken(mirror, "ws_1", "ws_2")
        await shipped(mirror, session, 1, {"ws_1": [message("a")], "ws_2": [message("b")]})
        await connect().delete(session, "ws_1")
        assert [each.workspace_id for each in await mirror.overview()] == ["ws_2"]
        assert names(await mirror.renew(session, member(), seconds=LONG)) == ["ws_2"]
        assert await loaded(mirror, "ws_1") == []
        await mirror.add(["ws_1"])
        assert await mirror.free(near="", limit=1, expired=False) == ["ws_1"]
        assert await loaded(mirror, "ws_2") == [message("b")]

    async def test_only_its_holder_deletes_a_workspace(self, connect: Connect, lapse: Lapse) -> None:
        mirror = connect()
        session = await taken(mirror, "ws_1")
        await shipped(mirror, session, 1, {"ws_1": [message("a")]})
        other = await mirror.begin(member("host-2"), seconds=LONG)
        await lapse(session)
        await mirror.take(other, ["ws_1"])
        for late in (session, "unknown"):
            with pytest.raises(MirrorError, match="lease of ws_1 was lost"):
                await mirror.delete(late, "ws_1")
        await mirror.release(other, ["ws_1"])
        with pytest.raises(MirrorError, match="lease of ws_1 was lost"):
            await mirror.delete(other, "ws_1")
        assert await loaded(mirror, "ws_1") == [message("a")]

    async def test_description_counts_workspaces(self, connect: Connect) -> None:
        mirror = connect()
        await mirror.add(["ws_1", "ws_2"])
        info = await mirror.describe()
        assert (info.where, info.workspaces) == (mirror.where, 2)
        assert info.schema == info.current > 0
        assert info.size > 0

    async def test_second_installation_changes_nothing(self, connect: Connect) -> None:
        assert await connect().install() == []

    async def test_closed_mirror_is_unreachable(self, connect: Connect) -> None:
        mirror = connect()
        session = await taken(mirror, "ws_1")
        await mirror.aclose()
        with pytest.raises(MirrorUnreachableError):
            await mirror.members()
        with pytest.raises(MirrorUnreachableError):
            await shipped(mirror, session, 1, {"ws_1": [message("a")]})
        with pytest.raises(MirrorUnreachableError):
            await loaded(mirror, "ws_1")
        assert MirrorUnreachableError("").may_heal
