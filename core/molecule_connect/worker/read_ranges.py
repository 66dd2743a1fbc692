"""Where each read of a feed starts and ends: the arithmetic of every reader, without I/O.

Rows become visible up to 30 s late, behind rows that are already read, so following ``since_id`` loses some. A whole
read starts after the watermark, a row so old that nothing can still appear behind it, and known rows are left out. The
platform's time is that of its Date header, which may be ahead of the clock that dates the rows.

The algorithm was simulated over late rows, equal times, clocks apart, kills around each write, pruning and 410. Change
it only with ``tests/worker/test_feed_simulation.py`` and ``plugins/agent/tests/test_feed.py``.
"""

import attrs

from molecule_connect.journal.transitions import LATENESS
from molecule_connect.models import FeedPosition, Page, RowMark

SECOND = 1_000_000
# Rows that are asked for at once.
LIMIT = 500
# How far the platform's Date is believed to be ahead of its rows' times at most, until a fresh row says better.
MOST_AHEAD = 600 * SECOND


@attrs.define
class Span:
    """What one whole read has seen so far.

    Attributes:
        began: The platform's time when its first page was asked for, in microseconds.
        marks: The rows of all its pages.
        most_ahead: Its Date can't be further ahead of the times of its rows than this, in microseconds.
    """

    began: int | None = None
    marks: list[RowMark] = attrs.field(factory=list)
    most_ahead: int = MOST_AHEAD

    def add(self, page: Page, *, asked: int, now: int) -> None:
        """Take in a page that was asked for at *asked*, and that is here *now*, by the platform's time."""
        if self.began is None:
            self.began = page.earliest if page.earliest is not None else asked
        self.marks += page.marks
        # No row is dated later than its clock showed when the page was made, and a read of many pages may last minutes.
        made = max(now, page.earliest or 0)
        times = [mark.time for mark in page.marks if mark.time is not None]
        self.most_ahead = min([self.most_ahead, *(max(0, made - time) for time in times)])


def step_forward(page: Page, after: str) -> str | None:
    """The row to read on after; None when the page after the row *after* was the last one."""
    step = page.last_before_edge
    return None if page.count < page.limit or step == after else step


def step_back(page: Page, before: int | None, *, floor: int) -> int | None:
    """The time to read on before; None when the page before *before* was the last one down to the floor."""
    edge = page.marks[-1].time if page.marks else None
    if page.count < page.limit or edge is None or edge < floor:
        return None
    if before is not None and any(mark.time is not None and mark.time >= before for mark in page.marks):
        return None  # before_ts is ignored
    # The twins of the edge come along, unless they alone fill the page.
    return edge + 1 if before is None or edge + 1 < before else edge


def look_back(position: FeedPosition, floor: int, *, ahead: int) -> int:
    """How far back a read without a watermark goes, never below the *floor*."""
    return max(floor, (position.last_read or 0) - LATENESS - ahead)


def settled(
    position: FeedPosition, span: Span, *, began: int, ahead: int, since: int, floor: int | None
) -> FeedPosition:
    """Where reading stands after a whole read: the watermark only ever moves forward.

    Args:
        began: When the read began, by the platform's time.
        ahead: How far that may be ahead of the times of rows.
        since: How far a first read looks back.
        floor: How far the read went back; None when it went forward from the watermark.
    """
    if floor is not None and not span.marks:
        # There was nothing at all: all that arrives is new, whatever its date.
        position = attrs.evolve(position, floor=min(floor, began - since - MOST_AHEAD))
    edge = began - ahead - LATENESS
    for mark in span.marks:
        if mark.time is None or not (mark.time <= edge or mark.time < (floor or 0)):
            continue
        if position.watermark_time is None or mark.time > position.watermark_time:
            position = attrs.evolve(position, watermark=mark.row_id, watermark_time=mark.time)
    return attrs.evolve(position, last_read=max(began, position.last_read or 0))
