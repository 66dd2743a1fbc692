"""Reading the feed into the journal so that no row is lost, by the algorithm of ``reading``."""

import time
from collections.abc import Awaitable, Callable, Sequence

import attrs

from molecule_connect.errors import CursorExpiredError, PageTooLargeError, PermanentPlatformError
from molecule_connect.journal.first_start import Look
from molecule_connect.journal.incoming import Stored
from molecule_connect.journal.journal import Position, WorkspaceJournal
from molecule_connect.journal.models import State
from molecule_connect.models import Inbound, Page, RowMark
from molecule_connect.worker.ports import Feed
from molecule_connect.worker.read_ranges import (
    LIMIT,
    MOST_AHEAD,
    SECOND,
    Span,
    look_back,
    settled,
    step_back,
    step_forward,
)

# A wake-up that would read more than this again reads from the tip instead.
REREAD_ROWS = 100
REREAD_SIZE = 1 << 20
# After a page larger than this, fewer rows are asked for: nothing newer is read until a page is here. Not too few,
# because rows that share their time may be lost if they fill a page of an older platform.
GOOD_SIZE, FEWEST_ROWS = 4 << 20, 20
# While pages are larger than this, rows of people are read first: peers' large rows would delay them.
LARGE = 256 << 10
# Where only a cursor of another program is known, and the platform has deleted its row; as that inbox promised.
LEAST_AFTER_CURSOR = 600 * SECOND


@attrs.frozen(kw_only=True)
class Read:
    """What a read brought: how many new messages, how many new rows, and whether it was a whole one."""

    messages: int
    whole: bool
    rows: int = 0


async def _no_look(skipped: Sequence[Inbound]) -> Look:
    return Look()


class Reader:
    """Reads one workspace's feed into its journal. One read at a time.

    Args:
        on_stored: Told of each commit's rows; ``complete`` is False while older rows may
            still come, so that conversations must wait.
        elapsed: Seconds since the start that *since_secs* counts from. Registering may take longer than those.
        woken: Whether a wake-up came since it was last asked.
        notice: Told, in words and a hint, what the operator should know once.
        first_look: Closes what was answered before this journal began, given the rows that the first look skips.

    Attributes:
        asking: Called before each page is asked for.
    """

    def __init__(
        self,
        feed: Feed,
        journal: WorkspaceJournal,
        *,
        since_secs: float,
        wall: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = lambda: 0.0,
        on_stored: Callable[[Sequence[Stored]], None],
        conversations_may_run: Callable[[], None],
        conversations_must_wait: Callable[[], None] = lambda: None,
        woken: Callable[[], bool] = lambda: False,
        notice: Callable[[str, str], None] = lambda text, hint: None,
        first_look: Callable[[Sequence[Inbound]], Awaitable[Look]] = _no_look,
        limit: int = LIMIT,
    ) -> None:
        self._feed = feed
        self._journal = journal
        self._since = round(since_secs * SECOND)
        self._wall = wall
        self._elapsed = elapsed
        self._on_stored = on_stored
        self._conversations_may_run = conversations_may_run
        self._conversations_must_wait = conversations_must_wait
        self._woken = woken
        self._notice = notice
        self._first_look = first_look
        self._tip: RowMark | None = None
        # The newest row that was read among those of people, where that was not a read of all rows.
        self._people_tip: RowMark | None = None
        self._last_size = 0
        self._limit = self._usual_limit = limit
        self._messages = self._rows = 0
        self._saw_no_row = False
        # Whether all rows before the tip that could be read were read.
        self._has_no_gap = False
        self._ahead = MOST_AHEAD
        self.expired_in_a_row = 0
        self.asking: Callable[[], None] = lambda: None

    def now(self) -> int:
        """The platform's time in microseconds, else ours."""
        told = self._feed.now()
        return told if told is not None else round(self._wall() * SECOND)

    async def read(self, *, woken: bool = False) -> Read:
        """Bring the journal up to date.

        Raises:
            PlatformError: The feed could not be read; what was read before that is kept.
            JournalError: It could not be stored.
        """
        self._messages = self._rows = 0
        position = self._journal.position()
        if woken and self._is_long(position):
            await self._read_people()
            if await self._forward_from_tip():
                return Read(messages=self._messages, rows=self._rows, whole=False)
        if position.watermark is None or position.ignores_since:
            await self._back(position)
        else:
            await self._whole_forward(position, position.watermark)
        return Read(messages=self._messages, rows=self._rows, whole=True)

    def _is_long(self, position: Position) -> bool:
        start = position.watermark_time if position.watermark is not None else position.floor
        rows, size = self._journal.rows_after(start or 0, REREAD_ROWS + 1)
        return rows > REREAD_ROWS or size > REREAD_SIZE

    async def _whole_forward(self, position: Position, watermark: str) -> None:
        span = Span()
        try:
            obeyed = await self._forward(watermark, span)
        except CursorExpiredError:
            self.expired_in_a_row += 1
            since = attrs.evolve(position, watermark=None, watermark_time=None)
            if since.floor is None:
                # Another program's cursor is all that is known: how long ago it stood there, nobody can say.
                since = attrs.evolve(since, floor=self.now() - max(self._since, LEAST_AFTER_CURSOR))
            if self.expired_in_a_row == 1:
                self._notice(*_gap_words(self._look_back(since), self.now()))
            await self._journal.set_position(since)
            await self._back(since)
            return
        self.expired_in_a_row = 0
        if obeyed:
            await self._settle(span)
        else:
            await self._stop_using_since(position)

    async def _stop_using_since(self, position: Position) -> None:
        self._notice("the platform ignores since_id: each read starts at the newest row instead", "")
        position = attrs.evolve(position, ignores_since=True)
        await self._journal.set_position(position)
        await self._back(position)

    async def _forward(self, start: str, span: Span | None = None) -> bool:
        """Read on after *start*, oldest first. False: the platform ignored it. Only a *span* makes the read whole."""
        after = start
        while True:
            page = await self._fetch(since_id=after, span=span)
            if any(mark.row_id == after for mark in page.marks):
                await self._store(page, page.items)
                return False
            await self._store(page, page.items)
            self._conversations_may_run()
            await self._look_at_wakeup(whole=span is not None)
            step = step_forward(page, after)
            if step is None:
                return True
            after = step

    async def _look_at_wakeup(self, *, whole: bool) -> None:
        """Between two pages: read what a wake-up announced meanwhile. A read of the newest rows comes to it anyway."""
        if self._tip is None or not self._woken():
            return
        await self._read_people()
        if whole:
            await self._forward_from_tip()

    async def _read_people(self) -> None:
        """While pages are large, read rows of people newer than the newest row. Reads of all rows read them again."""
        marks = [mark for mark in (self._tip, self._people_tip) if mark is not None]
        if self._tip is None or self._last_size <= LARGE:
            return
        after: str | None = max(marks, key=lambda mark: mark.time or 0).row_id
        try:
            while after is not None:
                page = await self._fetch(since_id=after, span=None, people=True)
                await self._store(page, page.items, people=True)
                self._conversations_may_run()
                after = None if any(mark.row_id == after for mark in page.marks) else step_forward(page, after)
        except PermanentPlatformError:
            # The row is gone, or this platform can't select rows.
            self._people_tip = None

    async def _forward_from_tip(self) -> bool:
        """Read what is newer than the newest row. False: that row is not known any more."""
        if self._tip is None:
            return False
        try:
            await self._forward(self._tip.row_id)
        except CursorExpiredError:
            self._tip = None
            return False
        return True

    async def _back(self, position: Position) -> None:
        """Read from the newest row back to the floor. Dispatcher wait while rows older than new ones may still come."""
        span, older = Span(), 0
        # Of a first look, also one that was cut short: rows before it are kept in mind until it has ended.
        first, skipped = position.last_read is None, list[Inbound]()
        reached = self._tip.row_id if self._has_no_gap and self._tip is not None and not first else None
        self._has_no_gap = False
        floor = self._look_back(position)
        await self._journal.set_position(attrs.evolve(position, watermark=None, watermark_time=None, floor=floor))
        before: int | None = None
        while True:
            page = await self._fetch(before=before, span=span)
            # The page is newest first; rows without a time stay as they came.
            items = page.items if any(item.time is None for item in page.items) else page.items[::-1]
            await self._store(page, [item for item in items if item.time is None or item.time >= floor])
            older += sum(mark.time is not None and mark.time < floor for mark in page.marks)
            skipped += [item for item in items if first and item.time is not None and item.time < floor]
            before = step_back(page, before, floor=floor)
            if before is None:
                break
            if reached is not None and any(mark.row_id == reached for mark in page.marks):
                self._has_no_gap = True
            if self._has_no_gap:
                self._conversations_may_run()
                if not position.ignores_since:
                    await self._look_at_wakeup(whole=True)
            else:
                # What comes next is older than what the conversations were given.
                self._conversations_must_wait()
        if first:
            self._report(await self._first_look(skipped), older, page)
        self._has_no_gap = True
        self._conversations_may_run()
        was_empty, self._saw_no_row = self._saw_no_row, not span.marks
        if was_empty and older and not first and not position.ignores_since:
            self._notice(*_too_old_words(older, floor))
        await self._settle(span, floor=floor)

    def _report(self, look: Look, older: int, last: Page) -> None:
        """What the first look leaves alone."""
        if look.answered:
            self._notice(
                f"{_count(look.answered, 'message')} of people had an answer before this start: not answered again",
                "ask the sender to write again if one of them still needs an answer",
            )
        if not older:
            return
        count = f"{older} or more" if last.count >= last.limit else str(older)
        found = [
            f"{_count(look.skipped_people, 'message')} of people without an answer" if look.skipped_people else "",
            f"{_count(look.skipped_peers, 'message')} of peers" if look.skipped_peers else "",
        ]
        among = " and ".join(filter(None, found))
        self._notice(
            f"{count} older rows were skipped: this first start looks back {self._since / SECOND:g} s"
            + (f"; among them {among}" if among else ""),
            "later starts leave them too; to include them, start with a new state folder and a larger --since-secs"
            " (since_secs in a list)",
        )

    def _look_back(self, position: Position) -> int:
        """How far back, in microseconds, a read without a watermark goes."""
        if position.floor is None:
            return self.now() - self._since - round(self._elapsed() * SECOND)
        return look_back(position, position.floor, ahead=self._ahead)

    async def _fetch(
        self, *, span: Span | None, since_id: str | None = None, before: int | None = None, people: bool = False
    ) -> Page:
        while True:
            began = self.now()
            self.asking()
            try:
                page = await self._feed.fetch(
                    since_id=since_id, before=before, limit=self._limit, known=self._journal.is_known, people=people
                )
            except PageTooLargeError:
                if self._limit == 1:
                    raise
                self._limit //= 2
                continue
            self._limit = self._next_limit(page, whole=span is not None)
            if not people:
                self._last_size = page.size
            if span is not None:
                span.add(page, asked=began, now=self.now())
            return page

    def _next_limit(self, page: Page, *, whole: bool) -> int:
        if page.size > GOOD_SIZE:
            return min(self._limit, max(FEWEST_ROWS, page.count * GOOD_SIZE // page.size))
        # A short page of the newest rows says nothing of those before them.
        says_more_fit = page.size <= GOOD_SIZE // 2 and (whole or page.count == page.limit)
        return min(self._usual_limit, self._limit * 2) if says_more_fit else self._limit

    async def _store(self, page: Page, items: Sequence[Inbound], *, people: bool = False) -> None:
        stored = await self._journal.add(items, now=self.now())
        self._rows += len(stored)
        self._messages += sum(one.state is State.RECEIVED or one.revived for one in stored)
        tip = self._people_tip if people else self._tip
        for mark in page.marks:
            if mark.time is not None and (tip is None or mark.time >= (tip.time or 0)):
                tip = mark
        if people:
            self._people_tip = tip
        else:
            self._tip = tip
        if stored:
            self._on_stored(stored)

    async def _settle(self, span: Span, floor: int | None = None) -> None:
        """Move the watermark, forward only, to the newest row that was too old for anything to appear behind it."""
        began = span.began if span.began is not None else self.now()
        self._ahead = min(self._ahead, span.most_ahead)
        position = settled(
            self._journal.position(), span, began=began, ahead=self._ahead, since=self._since, floor=floor
        )
        await self._journal.set_position(position)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _gap_words(start: int, end: int) -> tuple[str, str]:
    return (
        "the platform no longer knows the row that reading starts after: reading again all"
        f" from {_in_words(start)} to {_in_words(end)}",
        "there is nothing to do; what the platform itself has deleted meanwhile cannot be read",
    )


def _too_old_words(count: int, floor: int) -> tuple[str, str]:
    came = "1 row came into an empty feed and was left alone: it is"
    if count > 1:
        came = f"{count} rows came into an empty feed and were left alone: they are"
    return (
        f"{came} dated before {_in_words(floor)}",
        "if that is wrong, the platform's Date header is far ahead of the times that it gives its rows, which has"
        " to be mended there; what comes after this is read all the same",
    )


def _in_words(moment: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment // SECOND))
