"""The state of the platform, shared by its endpoints."""

import asyncio
import secrets
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

from molecule_connect import ConfigError
from molecule_connect_sandbox.clock import Timestamps
from molecule_connect_sandbox.event_stream import Broadcaster
from molecule_connect_sandbox.faults import Faults
from molecule_connect_sandbox.options import SandboxOptions
from molecule_connect_sandbox.responses import Refusal, to_json
from molecule_connect_sandbox.rows import Row, Rows
from molecule_connect_sandbox.store import Store, Workspace

# Rows that get the same time from the fault equal-times are at most this far apart, in microseconds.
TWIN_SPAN = 1_000_000
HEARTBEATS_KEPT = 1000


class ChangeSignal:
    """Wakes all tasks that wait for a change."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Wake all waiting tasks."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self) -> None:
        """Wait for the next change."""
        await self._event.wait()


class Platform:
    """The state of a sandbox. Everything here runs on one event loop.

    Attributes:
        heartbeats: The newest heartbeats of each workspace, as received.
        boot: Identifies this run of the sandbox; only programs of the same user get to know it.
        requests: The number of requests by method, path without ids, and status.
        is_stopping: Whether ``end_streams`` was called.
    """

    def __init__(self, options: SandboxOptions) -> None:
        self.options = options
        self.generation = options.generation
        self.faults = Faults(options.faults, options.seed)
        self.store = Store(options.store)
        self.rows = Rows(self.store.db, seq=self.generation.seq)
        self.timestamps = Timestamps(options.now, self.rows.newest)
        self.events = Broadcaster(options.now)
        self.changes = ChangeSignal()
        self.heartbeats: dict[str, deque[dict[str, Any]]] = {}
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.boot = secrets.token_hex(16)
        self.is_stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._twins = 0

    def now(self) -> int:
        """Microseconds since 1970."""
        return self.timestamps.now()

    def stamp(self) -> int:
        """A time for the rows of a transaction."""
        fault = self.faults.is_on("equal-times")
        if fault and self.now() - self.timestamps.last < TWIN_SPAN:
            self._twins = (self._twins + 1) % max(fault.number, 1)
            if self._twins:
                return self.timestamps.last
        return self.timestamps.next()

    def log(self, *rows: Row, then: Callable[[Row], None] | None = None) -> None:
        """Write the rows of a transaction, and call *then* for each when it becomes visible."""
        created = self.stamp()
        for row in rows:
            fault = self.faults.strike("late-commits") if row.late else None
            delay = self.faults.random.uniform(*fault.range) if fault else 0.0
            self.rows.add(row, created, self.now() + int(delay * 1_000_000) if fault else 0)
            if fault:
                asyncio.get_running_loop().call_later(delay, self._show, row, then)
            else:
                self._visible(row, then)

    def _show(self, row: Row, then: Callable[[Row], None] | None) -> None:
        self.rows.show(row.id)
        self._visible(row, then)

    def _visible(self, row: Row, then: Callable[[Row], None] | None) -> None:
        self.changes.notify()
        if then is not None:
            then(row)

    def publish_activity(self, row: Row) -> None:
        """Send the event of a logged row. It has no row id, so it only wakes readers."""
        data = {
            "activity_type": row.activity_type,
            "method": row.method,
            "summary": row.summary,
            "status": row.status,
            "source_id": row.source_id,
            "target_id": row.target_id,
            "duration_ms": row.duration_ms,
        }
        if not self.events.count(row.workspace_id):
            return
        if self.generation.seq:
            data |= {"error_detail": row.error_detail, "message_id": row.message_id}
        text = to_json(data)[:-1] + row.bodies() + "}"
        for _ in range(self.generation.activity_events):
            self.events.publish(row.workspace_id, "ACTIVITY_LOGGED", text)

    def set_status(self, workspace: Workspace, status: str, event: str, **data: Any) -> None:
        """Change a workspace's status and send the event."""
        self.store.change(workspace.id, status=status)
        self.events.publish(workspace.id, event, {"name": workspace.name, **data})
        self.changes.notify()

    def set_faults(self, texts: Iterable[str]) -> None:
        """Replace the active faults, for open streams too.

        Raises:
            Refusal: A fault is invalid; nothing has changed.
        """
        try:
            self.faults.set(texts)
        except ConfigError as exc:
            raise Refusal(400, str(exc), hint=exc.hint) from exc
        self.events.recheck_faults()
        self.changes.notify()

    def end_streams(self) -> None:
        """End the event streams of connectors and pages, which would delay the shutdown."""
        self.is_stopping = True
        self.events.close()
        self.changes.notify()

    def spawn(self, work: Any) -> None:
        """Run a coroutine in the background until the platform stops."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """End streams and background tasks, and close the database."""
        self.end_streams()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.store.close()
