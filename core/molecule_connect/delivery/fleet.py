"""Many connections over one journal in one process: one that breaks disturbs no other."""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Sequence

from molecule_connect import events
from molecule_connect.delivery.connection import Connection
from molecule_connect.delivery.journal import Journal
from molecule_connect.errors import JournalError

TICK = 1.0
STARTS_A_SECOND = 50
# The clocks drift apart by more than this only when the machine slept, or somebody set the clock.
SLEPT = 5.0


class Fleet:
    """Runs connections side by side."""

    def __init__(
        self,
        connections: Sequence[Connection],
        journal: Journal,
        *,
        listener: events.Listener = events.ignore,
        wall: Callable[[], float] = time.time,
        random: Callable[[], float] = random.random,
    ) -> None:
        self._connections = tuple(connections)
        self._journal = journal
        self._listener = listener
        self._wall = wall
        self._random = random

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until *stop* is set and all have drained, or none is left.

        Raises:
            MoleculeError: What ended the first connection that failed, once none is left.
        """
        watching = asyncio.get_running_loop().create_task(self._watch(), name="fleet")
        try:
            outcomes = await asyncio.gather(
                *(self._run(connection, stop) for connection in self._connections), return_exceptions=True
            )
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _run(self, connection: Connection, stop: asyncio.Event) -> None:
        if len(self._connections) > 1:
            await self._wait_for_its_turn(stop)
        try:
            await connection.run(stop)
        except Exception as exc:  # it ends this connection alone, and is raised when all have ended
            if len(self._connections) > 1:
                hint = getattr(exc, "hint", "")
                self._listener(
                    events.Trouble(workspace_id=connection.workspace_id, part="connection", reason=str(exc), hint=hint)
                )
            raise

    async def _wait_for_its_turn(self, stop: asyncio.Event) -> None:
        """Workspaces that start together must not register together."""
        wait = self._random() * len(self._connections) / STARTS_A_SECOND
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await stop.wait()

    async def _watch(self) -> None:
        """Once a second: did the machine sleep, and did another program change the journal?"""
        loop = asyncio.get_running_loop()
        drift, version = self._wall() - loop.time(), await self._data_version()
        while True:
            await asyncio.sleep(TICK)
            previous, drift = drift, self._wall() - loop.time()
            if abs(drift - previous) > SLEPT:
                for connection in self._connections:
                    connection.slept()
            before, version = version, await self._data_version()
            if version != before:
                for connection in self._connections:
                    connection.changed_elsewhere()

    async def _data_version(self) -> int | None:
        try:
            return await self._journal.data_version()
        except JournalError:
            return None
