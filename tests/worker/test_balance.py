"""Members share workspaces fairly: one decision, and many members that see each other with a delay."""

import random
from collections import Counter
from collections.abc import Sequence

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from molecule_connect.mirrors import MemberInfo, MemberState
from molecule_connect.worker.balance import COLD_START_TAKE, SETTLED, Plan, balance

UNCLAIMED_AFTER = 10


def member(session: str, held: int, *, capacity: int = 1000, listing: str = "all") -> MemberState:
    info = MemberInfo(host="host", pid=1, machine="", capacity=capacity, listing=listing)
    return MemberState(session=session, info=info, held=held, since=0.0)


def leases(count: int, seconds: float = 2 * SETTLED) -> dict[str, float]:
    return {f"w{number:03}": seconds for number in range(count)}


def plan(*members: MemberState, workspaces: int, seconds: float = 2 * SETTLED, unclaimed: int = 0) -> Plan:
    """The plan of the first member, which has held all its leases for so many *seconds*."""
    me = members[0]
    held = leases(me.held, seconds)
    return balance(me.session, me.info, members, workspaces=workspaces, held=held, unclaimed=unclaimed)


@attrs.define(eq=False)
class Process:
    """A member of the simulation.

    Attributes:
        taken: When it took each of its leases.
        draining: When it releases those that it drains.
        takes: It takes free leases. A stuck member only renews its session.
    """

    session: str
    capacity: int
    listing: frozenset[str]
    taken: dict[str, int] = attrs.field(factory=dict)
    draining: dict[str, int] = attrs.field(factory=dict)
    takes: bool = True
    info: MemberInfo = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.info = member("", 0, capacity=self.capacity, listing=" ".join(sorted(self.listing))).info

    def state(self) -> MemberState:
        return MemberState(session=self.session, info=self.info, held=len(self.taken), since=0.0)


@attrs.define(eq=False)
class World:
    """Members that look once per second, in any order, and see others as they were up to a second ago."""

    random: random.Random
    processes: list[Process]
    now: int = 0
    moves: Counter[str] = attrs.field(factory=Counter)
    free_since: dict[str, int] = attrs.field(factory=dict)

    def free(self, listing: frozenset[str]) -> list[str]:
        found = sorted(listing.difference(*(process.taken for process in self.processes)))
        self.random.shuffle(found)
        return found

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1
            earlier = [process.state() for process in self.processes]
            for process in self.random.sample(self.processes, len(self.processes)):
                self._look(process, earlier)
                assert len(process.taken) <= process.capacity or process.capacity == 0

    def _look(self, process: Process, earlier: Sequence[MemberState]) -> None:
        for workspace_id in [each for each, end in process.draining.items() if end <= self.now]:
            del process.taken[workspace_id], process.draining[workspace_id]
        free = self.free(process.listing)
        for workspace_id in self.free_since.keys() - set(free):
            if workspace_id in process.listing:
                del self.free_since[workspace_id]
        since = [self.free_since.setdefault(workspace_id, self.now) for workspace_id in free]
        seen = earlier if self.random.random() < 0.5 else [each.state() for each in self.processes]
        result = balance(
            process.session,
            process.info,
            seen,
            workspaces=len(process.listing),
            held={workspace_id: float(self.now - taken) for workspace_id, taken in process.taken.items()},
            releasing=process.draining,
            unclaimed=sum(self.now - each > UNCLAIMED_AFTER for each in since),
        )
        if process.takes:
            process.taken |= dict.fromkeys(free[: result.take], self.now)
        for workspace_id in result.release:
            assert process.capacity == 0 or self.now - process.taken[workspace_id] >= SETTLED
            process.draining[workspace_id] = self.now + self.random.randrange(4)
            self.moves[workspace_id] += 1


def assert_fair(processes: Sequence[Process], workspaces: int) -> None:
    """All that capacities allow is served, and a member has two fewer than another only if it is full."""
    assert sum(len(each.taken) for each in processes) == min(workspaces, sum(each.capacity for each in processes))
    most = max(len(each.taken) for each in processes)
    assert all(len(each.taken) in (most, most - 1, each.capacity) for each in processes)


@st.composite
def worlds(draw: st.DrawFn, *, listings: int = 1, stopping: bool = True) -> World:
    """Members of some listings that share no workspace, in any state."""
    chance = random.Random(draw(st.integers(0, 2**32)))
    capacities = st.integers(0 if stopping else 1, 60)
    processes = []
    for number in range(draw(st.integers(1, listings))):
        listing = frozenset(f"{number}-{each:03}" for each in range(draw(st.integers(0, 120))))
        left = sorted(listing)
        chance.shuffle(left)
        for index, capacity in enumerate(draw(st.lists(capacities, min_size=1, max_size=8))):
            count = min(len(left), draw(st.integers(0, capacity)))
            taken = {left.pop(): -chance.randrange(100) for _ in range(count)}
            processes.append(Process(f"s{chance.randrange(10)}{number}{index}", capacity, listing, taken))
    return World(chance, processes)


@given(worlds(listings=3))
@settings(max_examples=60, deadline=None)
def test_any_state_becomes_fair(world: World) -> None:
    before = [len(process.taken) for process in world.processes]
    world.run(90)
    groups: dict[frozenset[str], list[Process]] = {}
    for process in world.processes:
        groups.setdefault(process.listing, []).append(process)
    for listing, group in groups.items():
        assert_fair(group, len(listing))
    needed = sum(max(0, count - len(process.taken)) for count, process in zip(before, world.processes, strict=True))
    assert world.moves.total() <= needed + len(world.processes)
    assert not any(process.taken and process.capacity == 0 for process in world.processes)
    world.moves.clear()
    world.run(90)
    assert not world.moves


@given(worlds(stopping=False), st.lists(st.integers(0, 9), max_size=6))
@settings(max_examples=40, deadline=None)
def test_becomes_fair_after_members_change(world: World, changes: list[int]) -> None:
    listing = world.processes[0].listing
    for number, change in enumerate(changes):
        world.run(change)
        if change % 2 and len(world.processes) > 1:
            world.processes.pop(world.random.randrange(len(world.processes)))
        else:
            world.processes.append(Process(f"n{number}", 1 + 10 * change, listing))
    world.run(150)
    assert_fair(world.processes, len(listing))
    assert max(world.moves.values(), default=0) <= 3
    world.moves.clear()
    world.run(90)
    assert not world.moves


@given(
    st.integers(0, 2**32),
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 40)), min_size=1, max_size=8),
)
@settings(max_examples=40, deadline=None)
def test_overlapping_listings_are_served_completely(seed: int, members: list[tuple[int, int]]) -> None:
    """During the roll-out of a list, most of its workspaces are in the earlier one, too."""
    processes = [
        Process(f"s{index}", capacity, frozenset(f"w{each:03}" for each in range(first // 20 * 20, 80)))
        for index, (capacity, first) in enumerate(members)
    ]
    world = World(random.Random(seed), processes)
    world.run(150)
    for process in processes:
        assert len(process.taken) == process.capacity or not world.free(process.listing)
    held = [dict(process.taken) for process in processes]
    world.run(90)
    assert [process.taken for process in processes] == held


def test_serves_workspaces_that_nobody_takes() -> None:
    listing = frozenset(f"w{each:03}" for each in range(100))
    stuck = Process("a", 100, listing, takes=False)
    world = World(random.Random(1), [stuck, Process("b", 60, listing), Process("c", 100, listing)])
    world.run(30)
    assert not world.free(listing)
    assert not stuck.taken


@pytest.mark.parametrize(
    ("held", "expected"),
    [((4, 3, 3), 0), ((3, 4, 3), 0), ((3, 3, 4), 0), ((3, 3, 3), 1), ((2, 4, 3), 1), ((0, 4, 3), 3), ((5, 3, 2), 0)],
)
def test_takes_up_to_its_share(held: tuple[int, ...], expected: int) -> None:
    assert plan(*(member(f"s{index}", each) for index, each in enumerate(held)), workspaces=10).take == expected


@pytest.mark.parametrize(
    ("held", "expected"),
    [((4, 3, 3), 0), ((6, 4, 0), 2), ((6, 3, 1), 2), ((10, 0, 0), 6), ((5, 4, 0), 1), ((4, 4, 2), 0)],
)
def test_releases_above_its_share(held: tuple[int, ...], expected: int) -> None:
    result = plan(*(member(f"s{index}", each) for index, each in enumerate(held)), workspaces=10)
    assert len(result.release) == expected


def test_keeps_surplus_that_nobody_misses() -> None:
    assert plan(member("a", 6, capacity=4), member("b", 4, capacity=4), workspaces=10) == Plan()


def test_small_members_are_full_first() -> None:
    assert plan(member("a", 0), member("b", 0, capacity=2), member("c", 0), workspaces=20).take == 9
    assert plan(member("b", 0, capacity=2), member("a", 0), member("c", 0), workspaces=20).take == 2
    assert plan(member("b", 2), member("a", 2, capacity=2), workspaces=5).take == 1


def test_keeps_new_leases() -> None:
    both = member("a", 10), member("b", 0)
    assert plan(*both, workspaces=10, seconds=SETTLED - 1) == Plan()
    assert len(plan(*both, workspaces=10, seconds=SETTLED).release) == 5


def test_releases_latest_of_settled_leases() -> None:
    me = member("a", 4)
    held = {"oldest": 900.0, "older": 300.0, "settled": 61.0, "new": 5.0}
    assert balance("a", me.info, [me, member("b", 0)], workspaces=4, held=held).release == ("settled", "older")
    result = balance("a", me.info, [me, member("b", 0)], workspaces=4, held=held, releasing=["settled", "older"])
    assert result == Plan()


def test_releases_no_more_than_others_miss() -> None:
    others = member("b", 2, capacity=3), member("c", 0, capacity=0)
    assert len(plan(member("a", 10, capacity=4), *others, workspaces=20).release) == 1


def test_stopping_member_gives_all_away() -> None:
    stopping = member("a", 3, capacity=0)
    assert plan(stopping, member("b", 0), workspaces=10, seconds=1.0) == Plan(release=("w000", "w001", "w002"))
    assert plan(member("b", 0), stopping, workspaces=10).take == 10


def test_drained_leases_count_toward_capacity() -> None:
    me = member("a", 5, capacity=6)
    result = balance("a", me.info, [me], workspaces=10, held=leases(5), releasing=["w000", "w001"])
    assert result == Plan(take=1)


def test_draining_changes_no_shares() -> None:
    me, others = member("a", 12), (member("b", 11), member("c", 7))
    result = balance("a", me.info, [me, *others], workspaces=31, held=leases(12), releasing=["w000", "w001"])
    assert result == Plan()
    assert plan(member("a", 11), member("b", 20), member("c", 0), workspaces=31) == Plan()


def test_missing_in_the_snapshot_counts() -> None:
    info = member("a", 0).info
    assert balance("a", info, [member("b", 5)], workspaces=10, held={}).take == 5


def test_takes_limited_number_in_cold_start() -> None:
    assert plan(member("a", 0), member("b", 499), workspaces=1000) == Plan(take=COLD_START_TAKE)
    assert plan(member("a", 0), member("b", 500), workspaces=1000) == Plan(take=500)
    assert plan(member("a", 300), member("b", 200), workspaces=1000) == Plan(take=200)


def test_other_listings_are_balanced_separately() -> None:
    assert plan(member("a", 10), member("b", 0, listing="new"), workspaces=10) == Plan()


def test_unclaimed_workspaces_are_divided() -> None:
    others = member("b", 0), member("c", 3, capacity=3)
    assert plan(member("a", 4), *others, workspaces=10, unclaimed=3).take == 2
    assert plan(member("a", 4, capacity=4), *others, workspaces=10, unclaimed=3) == Plan()


def test_releases_nothing_while_workspaces_are_unclaimed() -> None:
    assert plan(member("a", 8), member("b", 0), workspaces=10, unclaimed=2) == Plan(take=1)
