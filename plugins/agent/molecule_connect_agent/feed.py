"""Following the feed without a journal, by the algorithm of ``delivery.reading``: ids are kept in memory alone."""

import logging
import time
from collections.abc import AsyncGenerator

import attrs

from molecule_connect.errors import AuthError, CursorExpiredError, PageTooLargeError, TransientPlatformError
from molecule_connect.models import FeedPosition, Inbound, Kind, Page
from molecule_connect.platform import endpoints
from molecule_connect.platform.clock import SECOND_US
from molecule_connect.platform.endpoints import Reply
from molecule_connect.platform.feed_rows import PageReader
from molecule_connect.worker.read_ranges import LIMIT, MOST_AHEAD, Span, look_back, settled, step_back, step_forward
from molecule_connect_agent.peers import Peers
from molecule_connect_agent.presence import Registrar
from molecule_connect_agent.requests import Requests, retry_delay
from molecule_connect_agent.responses import deleted_error, read_message
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
    """

    def __init__(
        self, requests: Requests, registrar: Registrar, peers: Peers, *, since_secs: float, limit: int = LIMIT
    ) -> None:
        self._requests, self._registrar, self._peers = requests, registrar, peers
        self._id, self._wall = requests.workspace_id, time.time
        self._since = round(since_secs * SECOND_US)
        self._limit = self._usual_limit = limit
        self._position = FeedPosition()
        self._ahead = MOST_AHEAD
        self._given: dict[str, int | None] = {}
        self._span = Span()

    async def batches(self, poll_interval: float | None) -> AsyncGenerator[list[Message], None]:
        """The messages of each read, oldest first, until the client is closed during a wait.

        Args:
            poll_interval: Seconds between reads that find nothing. None: end with the first of those.

        Raises:
            WorkspaceDeletedError: The workspace was deleted.
            AuthError: The token stayed refused.
            TransientPlatformError: The feed can't be read, and there is no poll interval.
        """
        failures = refusals = 0
        while True:
            try:
                messages = await self._read()
            except TransientPlatformError as exc:
                if poll_interval is None:
                    raise
                failures += 1
                wait = retry_delay(failures, exc)
                _log.warning("%s; reading again in %.0f s", exc, wait)
            except AuthError as exc:
                if await self._registrar.is_removed():
                    raise deleted_error(self._id) from exc
                refusals += 1
                if refusals > len(REFUSED_WAITS) or poll_interval is None:
                    raise
                wait = REFUSED_WAITS[refusals - 1]
                _log.warning("%s; it may pass: reading again in %.0f s", exc, wait)
            else:
                failures = refusals = 0
                if messages:
                    yield messages
                    continue
                if poll_interval is None:
                    return
                wait = poll_interval
            if await self._requests.wait(wait):
                return

    async def _read(self) -> list[Message]:
        self._span = Span()
        rows: list[Inbound] | None = None
        floor: int | None = None
        if self._position.watermark is not None and not self._position.ignores_since:
            rows = await self._forward(self._position.watermark)
        if rows is None:
            rows, floor = await self._back()
        fresh = {row.row_id: row for row in rows if row.row_id not in self._given}
        for row in fresh.values():
            if row.kind is Kind.UNREADABLE:
                _log.warning("row %s cannot be read and is left out: %s", row.row_id, row.reason)
        messages: list[Message | None] = []
        for row in fresh.values():
            attributed = await self._peers.attributed(row)
            messages.append(read_message(attributed, workspace_id=self._id) if attributed is not None else None)
        # Only now: when the platform can't be asked about one of them, all are read again.
        self._settle(fresh, floor)
        return [message for message in messages if message is not None]

    async def _forward(self, start: str) -> list[Inbound] | None:
        """All rows after *start*; None when they have to be read from the other end."""
        rows: list[Inbound] = []
        after = start
        while True:
            try:
                page = await self._fetch(since_id=after)
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

    async def _back(self) -> tuple[list[Inbound], int]:
        """All rows from the newest back to the floor, oldest first; and that floor."""
        self._span = Span()
        rows: list[Inbound] = []
        before: int | None = None
        while True:
            page = await self._fetch(before=before)
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

    async def _fetch(self, *, since_id: str | None = None, before: int | None = None) -> Page:
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
                page = await self._requests.send(operation)
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
        platform_now = self._requests.platform_now()
        return round(self._wall() * SECOND_US) if platform_now is None else platform_now
