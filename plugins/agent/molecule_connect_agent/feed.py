"""Following the feed without a journal, by the algorithm of ``delivery.reading``: ids are kept in memory alone."""

import logging
import time
from collections.abc import Callable

import attrs

from molecule_connect.errors import AuthError, CursorExpiredError, PageTooLargeError, TransientPlatformError
from molecule_connect.models import FeedPosition, Inbound, Kind, Page
from molecule_connect.platform import endpoints
from molecule_connect.platform.clock import SECOND_US, PlatformClock
from molecule_connect.platform.endpoints import Reply
from molecule_connect.platform.feed_rows import PageReader
from molecule_connect.worker.read_ranges import LIMIT, MOST_AHEAD, Span, look_back, settled, step_back, step_forward
from molecule_connect_agent.readings import deleted_error, read_message
from molecule_connect_agent.steps import BACKOFF, Flow, Wait, ask
from molecule_connect_agent.values import Message

# Of rows without a time nothing tells when they may be forgotten.
TIMELESS_KEPT = 10_000
# A 401 may be a database that is away for a moment (contract 1.3): only what lasts for a minute is final.
REFUSED_WAITS = (5.0, 10.0, 20.0, 30.0)
_log = logging.getLogger(__name__)


class ActivityFeed:
    """One iteration over what arrives for a workspace.

    Args:
        since_secs: How far the first read looks back.
        poll_interval: Seconds between reads that bring nothing.
        follow: Wait for more when all was read.
        is_removed: Asks whether the workspace was deleted.
        attributed: Checks who a row is from; None leaves the row out.
    """

    def __init__(
        self,
        workspace_id: str,
        platform_clock: PlatformClock,
        *,
        since_secs: float,
        poll_interval: float,
        follow: bool,
        is_removed: Callable[[], Flow[bool]],
        attributed: Callable[[Inbound], Flow[Inbound | None]],
        wall: Callable[[], float] = time.time,
        limit: int = LIMIT,
    ) -> None:
        self._id, self._platform_clock, self._wall = workspace_id, platform_clock, wall
        self._since, self._interval, self._follow = round(since_secs * SECOND_US), poll_interval, follow
        self._is_removed = is_removed
        self._attributed = attributed
        self._limit = self._usual_limit = limit
        self._position = FeedPosition()
        self._ahead = MOST_AHEAD
        self._given: dict[str, int | None] = {}
        self._span = Span()

    def next(self) -> Flow[list[Message] | None]:
        """What arrived since the last time, oldest first; None when there is no more to come.

        Raises:
            WorkspaceDeletedError: The workspace is gone.
            AuthError: The token stayed refused.
            TransientPlatformError: The feed could not be read, and is not followed.
        """
        failures = refusals = 0
        while True:
            wait = self._interval
            try:
                messages = yield from self._read()
                failures = refusals = 0
                if messages or not self._follow:
                    return messages or None
            except TransientPlatformError as exc:
                if not self._follow:
                    raise
                failures += 1
                wait = BACKOFF.delay(failures, at_least=exc.retry_after)
                _log.warning("%s; reading again in %.0f s", exc, wait)
            except AuthError as exc:
                if (yield from self._is_removed()):
                    raise deleted_error(self._id) from exc
                refusals += 1
                if refusals > len(REFUSED_WAITS) or not self._follow:
                    raise
                wait = REFUSED_WAITS[refusals - 1]
                _log.warning("%s; it may pass: reading again in %.0f s", exc, wait)
            closed = yield Wait(wait)
            if closed:
                return None

    def _read(self) -> Flow[list[Message]]:
        self._span = Span()
        rows: list[Inbound] | None = None
        floor: int | None = None
        if self._position.watermark is not None and not self._position.ignores_since:
            rows = yield from self._forward(self._position.watermark)
        if rows is None:
            rows, floor = yield from self._back()
        fresh = {row.row_id: row for row in rows if row.row_id not in self._given}
        for row in fresh.values():
            if row.kind is Kind.UNREADABLE:
                _log.warning("row %s cannot be read and is left out: %s", row.row_id, row.reason)
        messages: list[Message | None] = []
        for row in fresh.values():
            attributed = yield from self._attributed(row)
            messages.append(read_message(attributed, workspace_id=self._id) if attributed is not None else None)
        # Only now: when the platform can't be asked about one of them, all are read again.
        self._settle(fresh, floor)
        return [message for message in messages if message is not None]

    def _forward(self, start: str) -> Flow[list[Inbound] | None]:
        """All rows after *start*; None when they have to be read from the other end."""
        rows: list[Inbound] = []
        after = start
        while True:
            try:
                page = yield from self._fetch(since_id=after)
            except CursorExpiredError:
                _log.warning("the platform forgot the row that reading starts after; reading back from the newest row")
                self._position = attrs.evolve(self._position, watermark=None, watermark_time=None)
                return None
            if any(mark.row_id == after for mark in page.marks):
                self._position = attrs.evolve(self._position, ignores_since=True)
                return None
            rows += page.items
            step = step_forward(page, after)
            if step is None:
                return rows
            after = step

    def _back(self) -> Flow[tuple[list[Inbound], int]]:
        """All rows from the newest back to the floor, oldest first; and that floor."""
        self._span = Span()
        rows: list[Inbound] = []
        before: int | None = None
        while True:
            page = yield from self._fetch(before=before)
            floor = self._lowest()
            # The page is newest first; rows without a time stay as they came.
            items = page.items if any(item.time is None for item in page.items) else page.items[::-1]
            rows = [*(item for item in items if item.time is None or item.time >= floor), *rows]
            before = step_back(page, before, floor=floor)
            if before is None:
                return rows, floor

    def _lowest(self) -> int:
        """What is older is not given. By the platform's clock, which the first answer tells."""
        if self._position.floor is None:
            began = self._span.began if self._span.began is not None else self._now()
            self._position = attrs.evolve(self._position, floor=began - self._since)
            return began - self._since
        return look_back(self._position, self._position.floor, ahead=self._ahead)

    def _fetch(self, *, since_id: str | None = None, before: int | None = None) -> Flow[Page]:
        while True:
            began, limit = self._now(), self._limit

            def read(reply: Reply, limit: int = limit) -> Page:
                reader = PageReader(
                    workspace_id=self._id, limit=limit, known=self._given.__contains__, earliest=reply.earliest
                )
                text = reply.body.decode("utf-8-sig", "replace")
                return reader.read(text, size=len(reply.body), is_whole=reply.is_whole)

            operation = endpoints.activity(self._id, read, since_id=since_id, before=before, limit=limit)
            try:
                page = yield from ask(operation)
            except PageTooLargeError:
                if limit == 1:
                    raise
                self._limit = limit // 2
                continue
            self._limit = min(self._usual_limit, limit * 2)
            self._span.add(page, asked=began, now=self._now())
            return page

    def _settle(self, fresh: dict[str, Inbound], floor: int | None) -> None:
        """Note what is given, move the watermark, and forget the ids that cannot come again."""
        began = self._span.began if self._span.began is not None else self._now()
        self._ahead = min(self._ahead, self._span.most_ahead)
        self._position = settled(
            self._position, self._span, began=began, ahead=self._ahead, since=self._since, floor=floor
        )
        self._given |= {row.row_id: row.time for row in fresh.values()}
        oldest = self._lowest()
        if self._position.watermark_time is not None:
            oldest = min(oldest, self._position.watermark_time)
        timeless = [row_id for row_id, when in self._given.items() if when is None][-TIMELESS_KEPT:]
        kept = {row_id: when for row_id, when in self._given.items() if when is not None and when >= oldest}
        self._given = kept | dict.fromkeys(timeless)

    def _now(self) -> int:
        told = self._platform_clock.now()
        return told if told is not None else round(self._wall() * SECOND_US)
