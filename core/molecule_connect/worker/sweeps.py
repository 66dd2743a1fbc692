"""The parts of a read: sweeps over the feed, and the watermark after them. No I/O."""

from typing import Any, ClassVar, TypeAlias

import attrs

from molecule_connect.journal.transitions import LATENESS
from molecule_connect.models import FeedPosition, Inbound, Page, RowMark

SECOND = 1_000_000
# Rows per request.
LIMIT = 500
# The platform's Date header is assumed to be ahead of the times of its rows by at most this much, in microseconds. The
# newest row read lowers the bound.
MOST_AHEAD = 600 * SECOND


@attrs.define(eq=False)
class Span:
    """The rows that a whole read has seen.

    Attributes:
        began: The platform's time at the first request, in microseconds; None before that.
        marks: The rows of all pages.
        most_ahead: An upper bound for how far the Date header is ahead of the times of rows, in microseconds.
    """

    began: int | None = None
    marks: list[RowMark] = attrs.field(factory=list)
    most_ahead: int = MOST_AHEAD

    def add(self, page: Page, *, requested: int, now: int) -> None:
        """Add a page that was requested at *requested* and arrived *now*, by the platform's time."""
        if self.began is None:
            self.began = page.earliest if page.earliest is not None else requested
        self.marks += page.marks
        # Rows are never dated after the creation of their page, and a read of many pages can take minutes.
        made = max(now, page.earliest or 0)
        times = [mark.time for mark in page.marks if mark.time is not None]
        self.most_ahead = min([self.most_ahead, *(max(0, made - time) for time in times)])


@attrs.define(eq=False)
class Forward:
    """Reads the rows after one row, oldest first.

    Attributes:
        after: The row to continue after.
        span: Set in a whole read, from the watermark.
        people: Request only the rows of people.
        is_over: All pages were read.
        is_ignored: The platform ignored ``since_id``.
    """

    after: str
    span: Span | None = None
    people: bool = False
    is_over: bool = False
    is_ignored: bool = False
    floor: ClassVar[None] = None

    @property
    def query(self) -> dict[str, Any]:
        """The arguments for ``Feed.fetch``."""
        return {"since_id": self.after, "people": self.people}

    def advance(self, page: Page) -> None:
        """Continue after *page*."""
        step = page.last_before_edge
        self.is_ignored = any(mark.row_id == self.after for mark in page.marks)
        if self.is_ignored or page.count < page.limit or step is None or step == self.after:
            self.is_over = True
        else:
            self.after = step


@attrs.define(eq=False)
class Backward:
    """Reads from the newest row back to the floor, newest page first. Always a whole read.

    Attributes:
        is_first: Part of a first start: the rows below the floor are kept in ``skipped``.
        known_until: All rows up to this one were read before; None if some can be missing.
        uses_since: The platform honors ``since_id``.
        floor: Rows older than this are left out, in microseconds; None until it is committed.
        before: Request rows older than this, in microseconds; None for the newest page.
        is_over: All pages were read.
        is_cut: The last page was full: rows below the floor can follow it.
        older: The number of rows below the floor on the pages.
    """

    is_first: bool
    known_until: str | None
    uses_since: bool
    floor: int | None = None
    before: int | None = None
    is_over: bool = False
    is_cut: bool = False
    span: Span = attrs.field(factory=Span)
    older: int = 0
    skipped: list[Inbound] = attrs.field(factory=list)
    people: ClassVar[bool] = False

    @property
    def query(self) -> dict[str, Any]:
        """The arguments for ``Feed.fetch``."""
        return {"before": self.before}

    def reaches_known(self, page: Page) -> bool:
        """Whether all rows before *page* were read before."""
        return self.known_until is not None and any(mark.row_id == self.known_until for mark in page.marks)

    def advance(self, page: Page) -> tuple[Inbound, ...]:
        """Continue before *page*; its rows that are not below the floor, oldest first."""
        floor = self.floor or 0
        # Rows without a time keep the platform's order.
        items = page.items if any(item.time is None for item in page.items) else page.items[::-1]
        self.older += sum(mark.time is not None and mark.time < floor for mark in page.marks)
        if self.is_first:
            self.skipped += [item for item in items if item.time is not None and item.time < floor]
        self._step(page, floor)
        return tuple(item for item in items if item.time is None or item.time >= floor)

    def _step(self, page: Page, floor: int) -> None:
        edge, before = page.marks[-1].time if page.marks else None, self.before
        self.is_cut = page.count >= page.limit
        is_ignored = before is not None and any(mark.time is not None and mark.time >= before for mark in page.marks)
        if not self.is_cut or edge is None or edge < floor or is_ignored:
            self.is_over = True
        else:
            # Include the rows that share the time of the edge, unless they alone fill the page.
            self.before = edge + 1 if before is None or edge + 1 < before else edge


Sweep: TypeAlias = Forward | Backward


def look_back(position: FeedPosition, floor: int, *, ahead: int) -> int:
    """The oldest time that a read without a watermark must cover; not below *floor*."""
    return max(floor, (position.last_read or 0) - LATENESS - ahead)


def settled(
    position: FeedPosition, span: Span, *, began: int, ahead: int, since: int, floor: int | None
) -> FeedPosition:
    """The position after a whole read. The watermark only moves forward.

    Args:
        began: When the read started, by the platform's time.
        ahead: How far *began* can be ahead of the times of rows.
        since: How far the first start looks back.
        floor: The time that the read went back to; None after a read from the watermark.
    """
    if floor is not None and not span.marks:
        # The feed was empty, so every row that arrives is new, regardless of its date.
        position = attrs.evolve(position, floor=min(floor, began - since - MOST_AHEAD))
    edge = began - ahead - LATENESS
    for mark in span.marks:
        if mark.time is None or not (mark.time <= edge or mark.time < (floor or 0)):
            continue
        if position.watermark_time is None or mark.time > position.watermark_time:
            position = attrs.evolve(position, watermark=mark.row_id, watermark_time=mark.time)
    return attrs.evolve(position, last_read=max(began, position.last_read or 0))
