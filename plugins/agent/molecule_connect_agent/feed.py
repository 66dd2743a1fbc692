"""Reads the messages of an agent with the algorithm of the connector and an in-memory store."""

import contextlib
import logging
from collections.abc import AsyncGenerator, Iterable, Sequence

from molecule_connect import AuthError, FeedPosition, FeedReader, Inbound, Kind, TransientPlatformError
from molecule_connect_agent.peers import Peers
from molecule_connect_agent.presence import Registrar
from molecule_connect_agent.requests import Requests, retry_delay
from molecule_connect_agent.responses import KINDS, deleted_error, read_message
from molecule_connect_agent.values import Message

ROWS_PER_REQUEST = 500
# A row can be read again until it is older than this, and than the watermark.
READ_AGAIN_SECONDS = 900
# The number of rows without a time to remember.
TIMELESS_ROWS = 10_000
# A 401 may be a database that is unavailable for a moment (contract 1.3). It is final after a minute.
REFUSED_WAITS = (5.0, 10.0, 20.0, 30.0)
_log = logging.getLogger(__name__)


class KnownRows:
    """The store of a ``FeedReader``: the ids of rows, and the position that reading has reached."""

    def __init__(self) -> None:
        self._position = FeedPosition()
        self._times: dict[str, int | None] = {}

    def add(self, rows: Iterable[Inbound]) -> None:
        """Remember the ids of *rows*."""
        self._times |= {row.row_id: row.time for row in rows}

    def position(self) -> FeedPosition:
        """The position of the last ``set_position``."""
        return self._position

    async def set_position(self, position: FeedPosition) -> None:
        """Remember the position, and forget the rows that can't be read again."""
        self._position = position
        if position.last_read is None:
            return
        oldest = position.last_read - READ_AGAIN_SECONDS * 1_000_000
        if position.watermark_time is not None:
            oldest = min(oldest, position.watermark_time)
        timeless = [row_id for row_id, time in self._times.items() if time is None][-TIMELESS_ROWS:]
        kept = {row_id: time for row_id, time in self._times.items() if time is not None and time >= oldest}
        self._times = kept | dict.fromkeys(timeless)

    def is_known(self, row_id: str) -> bool:
        """Whether the row was read before."""
        return row_id in self._times

    def is_awaited(self, item: Inbound) -> bool:
        """Whether the row is a message to the agent."""
        return item.kind in KINDS

    def rows_after(self, time: int, most: int) -> tuple[int, int]:
        """No rows: only reads after a wake-up ask for their number."""
        return 0, 0

    async def close_answered(self, older: Sequence[Inbound]) -> None:
        """Do nothing: rows older than the first read are skipped."""


class _Notices:
    def notice(self, text: str, hint: str = "") -> None:
        _log.info("%s", text)


class ActivityFeed:
    """One iteration over the messages of a workspace.

    Args:
        since_secs: How far the first read looks back, in seconds.
        limit: Rows per request.
    """

    def __init__(
        self,
        requests: Requests,
        registrar: Registrar,
        peers: Peers,
        *,
        since_secs: float,
        limit: int = ROWS_PER_REQUEST,
    ) -> None:
        self._requests, self._registrar, self._peers = requests, registrar, peers
        self._known = KnownRows()
        self._reader = FeedReader(requests.platform, self._known, _Notices(), since_secs=since_secs, limit=limit)
        # Of reads that did not end.
        self._unread: list[Inbound] = []

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
                messages = await self._requests.retried(self._read)
            except TransientPlatformError as exc:
                if poll_interval is None:
                    raise
                failures += 1
                wait = retry_delay(failures, exc)
                _log.warning("%s; reading again in %.0f s", exc, wait)
            except AuthError as exc:
                if await self._registrar.is_removed():
                    raise deleted_error(self._requests.workspace_id) from exc
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
        """The messages that arrived since the last read, oldest first."""
        async with contextlib.aclosing(self._reader.read()) as pages:
            async for page in pages:
                self._requests.check_open()
                # A row is known once it is attributed: if the platform can't be asked about one, it is read again.
                rows = [row for row in [await self._peers.attributed(item) for item in page.items] if row is not None]
                self._known.add(page.items)
                self._unread += rows
        rows, self._unread = self._unread, []
        if all(row.time is not None for row in rows):
            # Reads without a watermark begin with the newest page.
            rows.sort(key=lambda row: (row.time or 0, row.seq or 0))
        for row in rows:
            if row.kind is Kind.UNREADABLE:
                _log.warning("skipped row %s, which can't be read: %s", row.row_id, row.reason)
        messages = [read_message(row, workspace_id=self._requests.workspace_id) for row in rows]
        return [message for message in messages if message is not None]
