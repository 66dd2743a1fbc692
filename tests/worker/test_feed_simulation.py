"""No message is lost: the reading algorithm against late rows, equal times, pruning and wrong clocks."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.worker.kit import rows_after

from molecule_connect.errors import PlatformError
from molecule_connect.journal.first_start import Look
from molecule_connect.models import FeedPosition, Inbound, Kind, Page, RowMark
from molecule_connect.worker.clock import Clock
from molecule_connect.worker.feed import FeedPage, FeedReader

SECOND = 1_000_000
START = 1_800_000_000 * SECOND
LATEST = 30
FIRST_LOOK = 30


class Killed(BaseException):
    """The process died at a write."""


@attrs.define
class World:
    """A feed and the clock that it lives by, in microseconds. Its Date is *ahead* of that clock.

    Attributes:
        row_size: Bytes of each row; pages of large rows get smaller.
        busy: A wake-up has always come since the last read began.
    """

    newer: bool
    obeys_since: bool
    now: int = START
    rows: list[tuple[int, Inbound]] = attrs.field(factory=list)
    page_time: int = SECOND // 10
    forgets: bool = False
    pruned: set[str] = attrs.field(factory=set)
    ahead: int = 0
    row_size: int = 0
    busy: bool = False

    def write(self, back: int, late: int) -> None:
        time = self.now - back
        number = len(self.rows)
        item = Inbound(
            row_id=f"r{number:04}",
            kind=Kind.MESSAGE,
            time=time,
            seq=number if self.newer else None,
            caller_id=None if number % 3 == 0 else "peer",
            message_id=f"r{number:04}",
            idempotency_key=f"r{number:04}",
        )
        self.rows.append((time + late, item))

    def prune(self, age: int) -> None:
        self.pruned |= {item.row_id for _, item in self.rows if (item.time or 0) < self.now - age}

    async def fetch(
        self,
        *,
        since_id: str | None = None,
        before: int | None = None,
        limit: int,
        known: Callable[[str], bool],
        people: bool = False,
    ) -> Page:
        began = self.now
        visible = [item for when, item in self.rows if when <= self.now and item.row_id not in self.pruned]
        visible.sort(key=lambda item: (item.time, item.seq or 0))
        if since_id is not None and self.obeys_since:
            visible = rows_after(visible, since_id, newer=self.newer, expired=self.forgets)
        else:
            visible = [item for item in reversed(visible) if before is None or (item.time or 0) < before]
        page = [item for item in visible if not people or item.caller_id is None][:limit]
        self.now += self.page_time
        return Page(
            marks=tuple(RowMark(item.row_id, item.time) for item in page),
            items=tuple(item for item in page if not known(item.row_id)),
            count=len(page),
            limit=limit,
            size=len(page) * self.row_size,
            earliest=began + self.ahead,
        )

    def platform_now(self) -> int | None:
        return self.now + self.ahead


@attrs.define
class Memory:
    """What the journal would hold; it survives a kill. ``writes_left`` is when the next one comes."""

    where: FeedPosition = attrs.field(factory=FeedPosition)
    rows: dict[str, Inbound] = attrs.field(factory=dict)
    received: list[str] = attrs.field(factory=list)
    writes_left: int | None = None
    after_the_write: bool = False

    def position(self) -> FeedPosition:
        return self.where

    async def set_position(self, position: FeedPosition) -> None:
        def act() -> None:
            self.where = position

        self._write(act)

    def is_known(self, row_id: str) -> bool:
        return row_id in self.rows

    def rows_after(self, time: int, most: int) -> tuple[int, int]:
        return sum((item.time or 0) > time for item in self.rows.values()), 0

    def is_awaited(self, item: Inbound) -> bool:
        return True

    async def close_answered(self, older: Sequence[Inbound]) -> Look:
        return Look()

    def add(self, page: FeedPage) -> None:
        def act() -> None:
            for item in page.items:
                if item.row_id not in self.rows:
                    self.rows[item.row_id] = item
                    self.received.append(item.row_id)

        if page.items:
            self._write(act)

    def _write(self, act: Callable[[], None]) -> None:
        if self.writes_left is not None:
            self.writes_left -= 1
            if self.writes_left < 0:
                self.writes_left = None
                if self.after_the_write:
                    act()
                raise Killed
        act()


@attrs.frozen
class Reading:
    """A reader whose pages are stored in memory."""

    world: World
    memory: Memory
    reader: FeedReader

    def read(self, *, woken: bool = False) -> None:
        """Read once, without a loop: nothing here waits."""
        work = self._read(woken)
        try:
            work.send(None)
        except StopIteration:
            return
        raise AssertionError("the reader waited")

    async def _read(self, woken: bool) -> None:
        async with contextlib.aclosing(self.reader.read(woken=woken, wakeups=self)) as pages:
            async for page in pages:
                self.memory.add(page)

    def take(self) -> bool:
        return self.world.busy


def new_reader(world: World, memory: Memory, limit: int) -> Reading:
    feed = _Feed(world)
    clock = Clock(feed, lambda: world.now / SECOND, monotonic=lambda: 0.0)
    return Reading(world, memory, FeedReader(feed, memory, _Status(), clock, since_secs=FIRST_LOOK, limit=limit))


class _Status:
    def notice(self, text: str, hint: str = "") -> None:
        pass


@attrs.frozen
class _Feed:
    world: World

    def now(self) -> int | None:
        return self.world.platform_now()

    async def fetch(self, **query: Any) -> Page:
        return await self.world.fetch(**query)


waits = st.sampled_from([SECOND // 2, SECOND, 10 * SECOND, 22 * SECOND, 46 * SECOND])
lates = st.sampled_from([0, 0, SECOND, 29 * SECOND, LATEST * SECOND])
actions = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.sampled_from([0, 1, SECOND]), lates),
        st.tuples(st.just("burst"), st.integers(2, 12), st.sampled_from([0, 0, SECOND])),
        st.tuples(st.just("wait"), waits, st.just(0)),
        st.tuples(st.just("read"), st.booleans(), st.just(0)),
        st.tuples(st.just("kill"), st.integers(0, 5), st.booleans()),
        st.tuples(st.just("restart"), st.just(0), st.just(0)),
        st.tuples(st.just("prune"), st.sampled_from([120 * SECOND, 300 * SECOND]), st.just(0)),
        st.tuples(st.just("forget"), st.booleans(), st.just(0)),
        st.tuples(st.just("slow pages"), st.sampled_from([0, SECOND, 22 * SECOND]), st.just(0)),
        st.tuples(st.just("large rows"), st.sampled_from([0, 1000, 1 << 20]), st.just(0)),
        st.tuples(st.just("busy"), st.booleans(), st.just(0)),
    ),
    max_size=60,
)
# Each of these loses a row when one rule of the algorithm is taken away.
# The first read shows that the clocks agree, the second one has a watermark.
OLD = [("write", 0, 0), ("read", False, 0), ("wait", 46 * SECOND, 0), ("read", False, 0)]
BEHIND_A_READ_ROW = [*OLD, ("write", 0, LATEST * SECOND), ("write", 0, 0), ("wait", 22 * SECOND, 0), ("read", False, 0)]
TWINS_AT_THE_EDGE = [*OLD, ("burst", 12, 0), ("burst", 5, 0), ("wait", 46 * SECOND, 0), ("read", False, 0)]
LATE_DURING_A_SLOW_READ = [
    *(*OLD, ("write", 0, LATEST * SECOND), ("write", 0, 0), *[("burst", 12, 0)] * 5),
    *(("slow pages", 22 * SECOND, 0), ("read", False, 0), ("slow pages", 0, 0)),
]
# A read that lasts 100 s, of rows that are written meanwhile, while Date is a minute ahead.
WRITTEN_DURING_A_SLOW_READ = [
    *(("write", 0, 0), ("read", False, 0), ("wait", 46 * SECOND, 0), ("read", False, 0)),
    *[("write", -second * SECOND, 0) for second in (0, 14, 40, 60) for _ in range(14)],
    *(("write", -10 * SECOND, LATEST * SECOND), ("write", -85 * SECOND, 0)),
    *(("slow pages", 22 * SECOND, 0), ("read", False, 0), ("slow pages", 0, 0)),
]


@settings(max_examples=400)
@given(
    script=actions,
    newer=st.booleans(),
    obeys_since=st.sampled_from([True, True, True, False]),
    limit=st.sampled_from([14, 14, 500]),
    ahead=st.sampled_from([0, 0, 20 * SECOND, 60 * SECOND, 570 * SECOND]),
)
@example(script=BEHIND_A_READ_ROW, newer=True, obeys_since=True, limit=14, ahead=0)
@example(script=BEHIND_A_READ_ROW, newer=True, obeys_since=True, limit=14, ahead=60 * SECOND)
@example(script=TWINS_AT_THE_EDGE, newer=False, obeys_since=True, limit=14, ahead=0)
@example(script=LATE_DURING_A_SLOW_READ, newer=True, obeys_since=True, limit=14, ahead=0)
@example(script=WRITTEN_DURING_A_SLOW_READ, newer=True, obeys_since=True, limit=14, ahead=60 * SECOND)
@example(script=[("write", 0, 0)], newer=True, obeys_since=True, limit=14, ahead=570 * SECOND)
def test_every_row_is_received_exactly_once(
    script: list[tuple[Any, ...]], newer: bool, obeys_since: bool, limit: int, ahead: int
) -> None:
    world, memory = World(newer=newer, obeys_since=obeys_since, ahead=ahead), Memory()
    reader = new_reader(world, memory, limit)
    floor = START - FIRST_LOOK * SECOND
    reader.read()
    for kind, value, extra in script:
        # Twins come in bursts; more of them than fit on a page cannot be told apart on older platforms.
        world.now += SECOND // 1000
        if kind == "write":
            world.write(value, extra)
        elif kind == "burst":
            for _ in range(value):
                world.write(0, extra)
        elif kind == "wait":
            world.now += value
        elif kind == "read":
            reader.read(woken=value)
        elif kind == "kill":
            memory.writes_left, memory.after_the_write = value, extra
            try:
                reader.read()
            except Killed:
                reader = new_reader(world, memory, limit)
            memory.writes_left = None
        elif kind == "restart":
            reader = new_reader(world, memory, limit)
        elif kind == "prune":
            # The platform keeps rows for days: nothing goes before a reader that is there could have read it.
            reader.read()
            world.prune(value)
        elif kind == "forget":
            world.forgets = value
        elif kind == "slow pages":
            world.page_time = value
        elif kind == "large rows":
            world.row_size = value
        elif kind == "busy":
            world.busy = value
    world.now += LATEST * SECOND
    reader.read()
    expected = {item.row_id for _, item in world.rows if (item.time or 0) >= floor and item.row_id not in world.pruned}
    assert expected <= set(memory.rows)
    assert len(memory.received) == len(set(memory.received))


def test_an_endless_410_does_not_spin() -> None:
    world, memory = World(newer=True, obeys_since=True), Memory()
    reader = new_reader(world, memory, 20)
    for _ in range(3):
        world.write(0, 0)
        reader.read()
        world.now += 100 * SECOND
    world.forgets = True
    for _ in range(4):
        before = world.now
        reader.read()
        assert world.now - before <= 3 * world.page_time
    assert reader.reader.expired_in_a_row == 4


def test_failed_read_raises_and_can_be_repeated() -> None:
    world, memory = World(newer=True, obeys_since=True), Memory()
    reader = new_reader(world, memory, 20)
    world.write(0, 0)
    world.page_time = 0
    original, calls = World.fetch, []

    class Failing(World):
        async def fetch(self, **query: Any) -> Page:
            calls.append(query)
            if len(calls) == 1:
                raise PlatformError("activity: 503", operation="activity", status=503)
            return await original(self, **query)

    failing = Failing(newer=True, obeys_since=True, rows=world.rows)
    reader = new_reader(failing, memory, 20)
    try:
        reader.read()
    except PlatformError:
        pass
    else:
        raise AssertionError("the failure was swallowed")
    reader.read()
    assert memory.received == ["r0000"]
