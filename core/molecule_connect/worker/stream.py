"""The event stream of a workspace: announces rows and changes, and is trusted while it shows our own heartbeats."""

import asyncio
from collections.abc import Callable

from molecule_connect import events
from molecule_connect.backoff import Backoff
from molecule_connect.errors import PlatformError, TransientPlatformError
from molecule_connect.flag import Flag
from molecule_connect.models import Signal
from molecule_connect.worker.ports import Stream
from molecule_connect.worker.status import Status

# Seconds for which a stream is not trusted after a poll found messages that it didn't announce.
DISTRUST = 300.0
# Seconds within which a stream must show a heartbeat that the platform accepted.
ECHO_TIMEOUT = 5.0
# Seconds after which a connection counts as stable: the next attempt doesn't back off.
STABLE_LIFE = 30.0
# Seconds until a stream that the platform doesn't have is tried again.
ABSENT = 3600.0


class EventStream:
    """Keeps the event stream open, and passes on its announcements.

    Attributes:
        changed: Set when a row was announced, or the trust in the stream may have changed.
        has_news: A row was announced, and no read has taken that into account. Reset by the reader.
        has_announced: A row was announced since the last read. Reset by the reader.
        is_connected: The stream is open.
        was_trusted: The stream was trusted at least once.
    """

    def __init__(self, platform: Stream, status: Status) -> None:
        self._platform = platform
        self._status = status
        self._loop = asyncio.get_running_loop()
        self._backoff = Backoff()
        self.changed = Flag()
        self.has_news = self.has_announced = False
        self.is_connected = self.was_trusted = False
        self._reported_trust: bool | None = None
        self._echoed = False
        self._distrusted_until = float("-inf")
        # Of the open connection: it is ended by letting it expire.
        self._lifetime: asyncio.Timeout | None = None
        self._reopening = False
        self._echo_timer: asyncio.TimerHandle | None = None
        self._opened_at = self._heard_at = float("-inf")

    @property
    def trusted(self) -> bool:
        """Whether the stream announces every row."""
        return self.is_connected and self._echoed and self._loop.time() >= self._distrusted_until

    def announce(self) -> None:
        """A row may be readable."""
        self.has_news = self.has_announced = True
        self.changed.set()

    def distrust(self) -> None:
        """A poll found messages that were not announced: rely on polling for a while."""
        self._distrusted_until = self._loop.time() + DISTRUST
        self._report_trust()

    def heartbeat_accepted(self, sent: float) -> None:
        """A heartbeat sent at *sent* (loop time) was accepted: the stream must show it.

        A stream that doesn't is dead, or belongs to another replica of the platform. The echo can arrive before the
        response.
        """
        if self.is_connected and self._opened_at <= sent and self._heard_at < sent and self._echo_timer is None:
            self._echo_timer = self._loop.call_later(ECHO_TIMEOUT, self._no_echo)

    def _no_echo(self) -> None:
        self._echo_timer = None
        self._echoed = False
        self._end_connection()
        self.changed.set()

    def reopen(self) -> None:
        """Open the stream again, without reporting a problem: the connection can't be relied on any more."""
        self._reopening = self.is_connected
        self._end_connection()

    def _end_connection(self) -> None:
        if self._lifetime is not None and not self._lifetime.expired():
            self._lifetime.reschedule(self._loop.time())

    async def listen(self, notify: Callable[[Signal], None]) -> None:
        """Keep the stream open until cancelled.

        Args:
            notify: Called for signals other than new rows: the stream was opened, the workspace changed, the token was
                replaced.
        """
        failures = 0
        while True:
            opened = self._loop.time()
            absent = False
            try:
                await self._one_connection(notify)
                reason = "the event stream ended"
            except PlatformError as exc:
                reason, absent = str(exc), exc.status in (404, 405)
                if isinstance(exc, TransientPlatformError) and exc.is_reported:
                    reason = ""
            finally:
                self._lost()
            if self._reopening:
                self._reopening, reason = False, ""
            failures = 1 if self._loop.time() - opened >= STABLE_LIFE else failures + 1
            if reason and not absent:
                self._status.report("stream", reason, "messages are noticed by polling meanwhile")
            else:
                self._status.clear("stream")
            self._report_trust()
            await asyncio.sleep(ABSENT if absent else self._backoff.delay(failures))

    async def _one_connection(self, notify: Callable[[Signal], None]) -> None:
        try:
            async with asyncio.timeout(None) as self._lifetime:
                await self._read_signals(notify)
        except TimeoutError as exc:
            raise TransientPlatformError(
                "the event stream does not show our own heartbeats", operation="events", status=None
            ) from exc
        finally:
            self._lifetime = None

    async def _read_signals(self, notify: Callable[[Signal], None]) -> None:
        async for signal in self._platform.signals():
            match signal:
                case Signal.OPENED:
                    self.is_connected, self._opened_at = True, self._loop.time()
                    notify(signal)
                    self.announce()
                case Signal.ROW:
                    self.announce()
                case Signal.BEAT:
                    self._heard()
                case Signal.OTHER:
                    pass
                case _:
                    notify(signal)

    def _heard(self) -> None:
        self._heard_at = self._loop.time()
        if self._echo_timer is not None:
            self._echo_timer.cancel()
            self._echo_timer = None
        if not self._echoed:
            self._echoed = True
            self._status.clear("stream")
            self._report_trust()
            # Rows since the last poll were not announced by an event.
            self.announce()

    def _lost(self) -> None:
        self.is_connected = self._echoed = False
        if self._echo_timer is not None:
            self._echo_timer.cancel()
            self._echo_timer = None
        self.changed.set()

    def _report_trust(self) -> None:
        trusted = self.trusted
        if trusted is not self._reported_trust:
            self._reported_trust = trusted
            self.was_trusted = self.was_trusted or trusted
            by = "stream" if trusted else "polling"
            self._status.emit(events.Listening(workspace_id=self._status.workspace_id, by=by))
