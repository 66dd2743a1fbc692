"""Reads a workspace's feed so that no row is lost: decides which pages to request, and moves the watermark."""

import time
from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

import attrs

from molecule_connect.errors import CursorExpiredError, PageTooLargeError, PermanentPlatformError
from molecule_connect.journal.first_start import Look
from molecule_connect.models import FeedPosition, Inbound, Page, RowMark
from molecule_connect.worker.clock import Clock
from molecule_connect.worker.ports import Feed
from molecule_connect.worker.sweeps import (
    LIMIT,
    MOST_AHEAD,
    SECOND,
    Backward,
    Forward,
    Span,
    Sweep,
    look_back,
    settled,
)

# A wake-up reads from the newest known row instead of the watermark if more than this lies between them.
REREAD_ROWS = 100
REREAD_SIZE = 1 << 20
# Request fewer rows after a page larger than this, so that newer rows don't wait for it. Not too few: rows that share
# their time can be lost if they fill a page of an older platform.
GOOD_SIZE, FEWEST_ROWS = 4 << 20, 20
# While pages are larger than this, read rows of people first: large rows of peers would delay them.
LARGE = 256 << 10
# The minimum look back when the platform has deleted the row in another program's cursor file.
LEAST_AFTER_CURSOR = 600 * SECOND


class FeedStore(Protocol):
    """Stores the rows of a reader, and its position."""

    def position(self) -> FeedPosition:
        """The position passed to the last ``set_position``."""
        ...

    async def set_position(self, position: FeedPosition) -> None:
        """Store the position."""
        ...

    def is_known(self, row_id: str) -> bool:
        """Whether the row was stored before."""
        ...

    def is_awaited(self, item: Inbound) -> bool:
        """Whether a backend or a reader handles rows of this kind."""
        ...

    def rows_after(self, time: int, most: int) -> tuple[int, int]:
        """The number of stored rows newer than *time* (µs), counted up to *most*, and their characters."""
        ...

    async def close_answered(self, older: Sequence[Inbound]) -> Look | None:
        """At the end of a first start: finish the messages that were answered before it.

        Args:
            older: The rows that the first start skips.

        Returns:
            The counts to report; None if the store has no replies.
        """
        ...


class Notices(Protocol):
    """Receives notices for the operator."""

    def notice(self, text: str, hint: str = "") -> None:
        """Show *text* and *hint*."""
        ...


class Wakeups(Protocol):
    """Knows whether a new row was announced."""

    def take(self) -> bool:
        """Whether a wake-up arrived since the last call."""
        ...


@attrs.frozen(kw_only=True)
class FeedPage:
    """Rows to store, in one commit, before the next page is requested.

    Attributes:
        items: Rows that were not known, oldest first.
        now: The platform's time in microseconds, for rows without a time.
        messages: How many of the items a backend or a reader handles.
        complete: False while rows older than these can follow in the same read.
        caught_up: The last page of a whole read: all rows that were visible when it began are stored.
        recovered: A read succeeded after a lasting problem.
    """

    items: tuple[Inbound, ...] = ()
    now: int
    messages: int = 0
    complete: bool = True
    caught_up: bool = False
    recovered: bool = False


class FeedReader:
    """The reading algorithm, for one workspace.

    Rows become visible up to 30 s late, behind rows that were already read, so following the newest row loses some. A
    whole read starts after the watermark, a row so old that nothing can still appear behind it, and leaves out known
    rows. It was simulated with late rows, equal times, wrong clocks, kills around each write, pruning and 410: change
    it only with ``tests/worker/test_feed_simulation.py``.

    Args:
        clock: Its start is the time that *since_secs* counts back from; by default, now.
        since_secs: How far a first start looks back, in seconds.
        limit: Rows per request.

    Attributes:
        expired_in_a_row: How many whole reads in a row found that the platform doesn't know the watermark.
    """

    def __init__(
        self,
        feed: Feed,
        store: FeedStore,
        status: Notices,
        clock: Clock | None = None,
        *,
        since_secs: float,
        limit: int = LIMIT,
    ) -> None:
        self._feed = feed
        self._store = store
        self._status = status
        self._clock = clock or Clock(feed)
        self._since = round(since_secs * SECOND)
        self._limit = self._usual_limit = limit
        # As stored; loaded when a read begins.
        self._position = FeedPosition()
        self._tip: RowMark | None = None
        # The newest row of people that was read ahead of the other rows.
        self._people_tip: RowMark | None = None
        self._last_size = 0
        self._was_empty = False
        # Whether all rows before the tip were read.
        self._has_no_gap = False
        self._ahead = MOST_AHEAD
        # Whether the platform's time was known when the floor was committed, and whether the floor is therefore this
        # reader's own guess, by this machine's clock.
        self._knew_time = True
        self._is_floor_guessed = False
        self.expired_in_a_row = 0

    async def read(self, *, woken: bool = False, wakeups: Wakeups | None = None) -> AsyncGenerator[FeedPage, None]:
        """Read once. Each page must be stored before the next one is requested.

        A read ends with a page that is ``caught_up``, except after a wake-up in a busy feed, which reads only the
        newest rows.

        Args:
            woken: A wake-up announced a row.
            wakeups: Asked between pages whether another row was announced, to read it first.

        Raises:
            PlatformError: The feed can't be read now.
            JournalError: The position can't be stored.
        """
        self._position = self._store.position()
        sweeps = self._newest_rows() if woken and self._is_far_behind() else []
        sweeps = sweeps or [self._whole_read()]
        while sweeps:
            sweep = sweeps.pop()
            if sweep.is_over:
                if sweep.span is not None:
                    await self._finish(sweep, sweep.span)
                    yield FeedPage(now=self._clock.now(), caught_up=True)
                continue
            try:
                page = await self._fetch(sweep)
            except PermanentPlatformError as exc:
                sweeps += await self._after_refusal(sweep, exc) or ([] if sweeps else [self._whole_read()])
                continue
            yield await self._rows(sweep, page)
            self._stored(sweep, page)
            sweeps += await self._continue(sweep, wakeups)

    # Choosing where to read

    def _whole_read(self) -> Sweep:
        if self._position.watermark is None or self._position.ignores_since:
            return self._back()
        return Forward(after=self._position.watermark, span=Span())

    def _back(self) -> Backward:
        # A first start can be cut short: its rows below the floor are collected until one has ended.
        is_first = self._position.last_read is None
        can_reach = self._has_no_gap and not is_first
        self._has_no_gap = False
        return Backward(
            is_first=is_first,
            known_until=self._tip.row_id if can_reach and self._tip is not None else None,
            uses_since=not self._position.ignores_since,
        )

    def _newest_rows(self, *, people_only: bool = False) -> list[Sweep]:
        """Sweeps over the rows newer than the newest known row. The last one is to be read first."""
        if self._tip is None:
            return []
        sweeps: list[Sweep] = [] if people_only else [Forward(after=self._tip.row_id)]
        if self._last_size > LARGE:
            marks = [mark for mark in (self._tip, self._people_tip) if mark is not None]
            newest = max(marks, key=lambda mark: mark.time or 0)
            sweeps.append(Forward(after=newest.row_id, people=True))
        return sweeps

    def _is_far_behind(self) -> bool:
        position = self._position
        start = position.watermark_time if position.watermark is not None else position.floor
        rows, size = self._store.rows_after(start or 0, REREAD_ROWS + 1)
        return rows > REREAD_ROWS or size > REREAD_SIZE

    async def _after_refusal(self, sweep: Sweep, exc: PermanentPlatformError) -> list[Sweep]:
        """The sweeps to read instead of *sweep*, whose page was refused."""
        if isinstance(sweep, Forward) and sweep.people:
            # The row was deleted, or the platform can't select rows. The other reads include the rows of people.
            self._people_tip = None
            return []
        if not isinstance(sweep, Forward) or not isinstance(exc, CursorExpiredError):
            raise exc
        if sweep.span is None:
            self._tip = None
            return []
        return [await self._without_watermark()]

    async def _without_watermark(self) -> Sweep:
        self.expired_in_a_row += 1
        position = attrs.evolve(self._position, watermark=None, watermark_time=None)
        if position.floor is None:
            # Only another program's cursor was known, and the time of its row is unknown.
            position = attrs.evolve(position, floor=self._clock.now() - max(self._since, LEAST_AFTER_CURSOR))
        if self.expired_in_a_row == 1:
            self._status.notice(*_gap_notice(self._floor(position), self._clock.now()))
        await self._move_to(position)
        return self._back()

    async def _stop_using_since(self) -> Sweep:
        self.expired_in_a_row = 0
        self._status.notice("the platform ignores since_id: each read starts at the newest row instead")
        await self._move_to(attrs.evolve(self._position, ignores_since=True))
        return self._back()

    async def _continue(self, sweep: Sweep, wakeups: Wakeups | None) -> list[Sweep]:
        """The sweeps to read after a page of *sweep*: itself, and before it the rows of a wake-up."""
        if isinstance(sweep, Forward) and sweep.is_ignored:
            return [await self._stop_using_since()] if sweep.span is not None else []
        if wakeups is None or not self._may_interrupt(sweep) or not wakeups.take():
            return [sweep]
        return [sweep, *self._newest_rows(people_only=sweep.span is None)]

    def _may_interrupt(self, sweep: Sweep) -> bool:
        """Whether rows newer than all of *sweep* can be read before it goes on."""
        if self._tip is None or sweep.people:
            return False
        return isinstance(sweep, Forward) or (self._has_no_gap and sweep.uses_since and not sweep.is_over)

    # Pages

    async def _fetch(self, sweep: Sweep) -> Page:
        if isinstance(sweep, Backward) and sweep.floor is None:
            # Committed before the first request, so that a start after a kill looks back as far as this one.
            await self._commit_floor(sweep)
        while True:
            requested = self._clock.now()
            try:
                page = await self._feed.fetch(**sweep.query, limit=self._limit, known=self._store.is_known)
            except PageTooLargeError:
                if self._limit == 1:
                    raise
                self._limit //= 2
                continue
            self._limit = self._next_limit(page, whole=sweep.span is not None)
            if not sweep.people:
                self._last_size = page.size
            if sweep.span is not None:
                sweep.span.add(page, requested=requested, now=self._clock.now())
            return page

    def _next_limit(self, page: Page, *, whole: bool) -> int:
        if page.size > GOOD_SIZE:
            return min(self._limit, max(FEWEST_ROWS, page.count * GOOD_SIZE // page.size))
        # A short page of the newest rows doesn't show the size of those before them.
        more_fit = page.size <= GOOD_SIZE // 2 and (whole or page.count == page.limit)
        return min(self._usual_limit, self._limit * 2) if more_fit else self._limit

    async def _rows(self, sweep: Sweep, page: Page) -> FeedPage:
        """Advance *sweep* by *page*, and select the rows to store."""
        if isinstance(sweep, Backward):
            if not self._knew_time and self._clock.platform_now() is not None:
                await self._commit_floor(sweep)
            items = sweep.advance(page)
        else:
            sweep.advance(page)
            items = self._items_if_ignored(page) if sweep.is_ignored else page.items
        messages = sum(map(self._store.is_awaited, items))
        complete = self._is_complete(sweep, page)
        return FeedPage(items=items, now=self._clock.now(), messages=messages, complete=complete)

    def _items_if_ignored(self, page: Page) -> tuple[Inbound, ...]:
        """The rows to store of a page whose ``since_id`` was ignored: it can contain rows below the floor.

        It contains the row to continue after, so all newer rows are on it.
        """
        floor = self._position.floor
        return tuple(item for item in page.items if floor is not None and item.time is not None and item.time >= floor)

    def _is_complete(self, sweep: Sweep, page: Page) -> bool:
        if isinstance(sweep, Forward):
            return True
        # A first start ends by finishing messages that were answered before it.
        return self._has_no_gap or sweep.reaches_known(page) or (sweep.is_over and not sweep.is_first)

    def _stored(self, sweep: Sweep, page: Page) -> None:
        tip = self._people_tip if sweep.people else self._tip
        for mark in page.marks:
            if mark.time is not None and (tip is None or mark.time >= (tip.time or 0)):
                tip = mark
        if sweep.people:
            self._people_tip = tip
        else:
            self._tip = tip
        if isinstance(sweep, Backward) and sweep.reaches_known(page):
            self._has_no_gap = True

    # The position

    async def _commit_floor(self, sweep: Backward) -> None:
        position = self._position
        sweep.floor = self._floor(position)
        self._knew_time = self._clock.platform_now() is not None
        self._is_floor_guessed = not self._knew_time and (position.floor is None or self._is_floor_guessed)
        await self._move_to(attrs.evolve(position, watermark=None, watermark_time=None, floor=sweep.floor))

    async def _move_to(self, position: FeedPosition) -> None:
        await self._store.set_position(position)
        self._position = position

    def _floor(self, position: FeedPosition) -> int:
        """How far back, in microseconds, a read without a watermark goes."""
        own = self._clock.now() - self._since - round(self._clock.elapsed() * SECOND)
        if position.floor is None:
            return own
        if position.last_read is None and self._clock.platform_now() is not None:
            # An earlier start that was cut short may have used this machine's clock, which can be wrong.
            return own if self._is_floor_guessed else min(position.floor, own)
        return look_back(position, position.floor, ahead=self._ahead)

    async def _finish(self, sweep: Sweep, span: Span) -> None:
        """Move the watermark, forward only, to the newest row so old that nothing can appear behind it."""
        if isinstance(sweep, Backward):
            await self._finish_back(sweep)
        else:
            self.expired_in_a_row = 0
        began = span.began if span.began is not None else self._clock.now()
        self._ahead = min(self._ahead, span.most_ahead)
        await self._move_to(
            settled(self._position, span, began=began, ahead=self._ahead, since=self._since, floor=sweep.floor)
        )

    async def _finish_back(self, sweep: Backward) -> None:
        if sweep.is_first:
            self._report_first_start(await self._store.close_answered(sweep.skipped) or Look(), sweep)
        self._has_no_gap = True
        was_empty, self._was_empty = self._was_empty, not sweep.span.marks
        if was_empty and sweep.older and not sweep.is_first and sweep.uses_since:
            self._status.notice(*_too_old_notice(sweep.older, sweep.floor or 0))

    def _report_first_start(self, look: Look, sweep: Backward) -> None:
        if look.answered:
            self._status.notice(
                f"{_count(look.answered, 'message')} of people had a reply before this start: not answered again",
                "ask the sender to write again if one of them still needs a reply",
            )
        if not sweep.older:
            return
        count = f"{sweep.older} or more" if sweep.is_cut else str(sweep.older)
        found = [
            f"{_count(look.skipped_people, 'message')} of people without a reply" if look.skipped_people else "",
            f"{_count(look.skipped_peers, 'message')} of peers" if look.skipped_peers else "",
        ]
        among = " and ".join(filter(None, found))
        self._status.notice(
            f"skipped {count} rows from more than {self._since / SECOND:g} s before this first start"
            + (f", among them {among}" if among else ""),
            "later starts skip them too; to include them, start with a new state folder and a larger --since-secs"
            " (since_secs in a list)",
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _gap_notice(start: int, end: int) -> tuple[str, str]:
    return (
        "the platform no longer knows the row that reading starts after: reading all rows"
        f" from {_utc(start)} to {_utc(end)} again",
        "no action is needed; rows that the platform has deleted since can't be read",
    )


def _too_old_notice(count: int, floor: int) -> tuple[str, str]:
    return (
        f"skipped {_count(count, 'row')} of a feed that was empty before: dated before {_utc(floor)}",
        "if the dates are wrong, the platform's Date header is far ahead of the times of its rows: correct its clocks."
        " Later rows are read in any case",
    )


def _utc(moment: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment // SECOND))
