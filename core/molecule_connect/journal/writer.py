"""Group commits: operations that arrive during a commit form the next one."""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import attrs

from molecule_connect.errors import JournalError
from molecule_connect.journal.errors import journal_error
from molecule_connect.journal.outbox import last_number

# Seconds for which another process may lock the file before a commit fails, and between tries.
BUSY_TIMEOUT, BUSY_PAUSE = 5.0, 0.01
# Errors that an operation's values can cause; all others concern the file.
_OF_ITS_VALUES = (sqlite3.DataError, sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError)
T = TypeVar("T")


class Shipper(Protocol):
    """Copies committed changes to a mirror."""

    def wake(self) -> None:
        """The journal has changed."""

    def wake_later(self) -> None:
        """The journal has changed, in a way that may wait a moment for other changes."""

    def resolve(self, number: int, outcome: "asyncio.Future[Any]", result: Any) -> None:
        """Set *result* once the mirror has all changes up to *number*."""


Operation = Callable[[sqlite3.Connection], T]


@attrs.frozen(eq=False)
class _Waiting:
    run: Operation[Any]
    durable: bool
    lazy: bool
    large: bool
    patient: bool
    outcome: "asyncio.Future[Any]"


class Writer:
    """Runs operations in commits, each with all operations that arrived during the one before.

    Statements run on the event loop: 20 us, against 50 us and more for a thread. The executor's thread gets the
    blocking parts: the end of a commit with a durable operation, which is then on disk (``synchronous=FULL``), large
    operations, and waiting for another process's lock. A commit without a durable operation survives the death of this
    process, but not of the machine. With a mirror, a durable operation waits for the mirror instead of the disk.

    Args:
        guard: Called on the loop before each commit; if it raises, the operations fail with that error.

    Attributes:
        shipper: Gets the changes, and resolves durable operations once the mirror has them; None without a mirror.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        executor: Executor,
        *,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        self._connection = connection
        self._path = path
        self._guard = guard
        self._executor = executor
        self._waiting: list[_Waiting] = []
        self._wake = asyncio.Event()
        self._synchronous = ""
        self._task: asyncio.Task[None] | None = None
        self.shipper: Shipper | None = None
        self._number = 0

    def start(self) -> None:
        """Start the task that commits; needs a running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="journal")

    async def stop(self) -> None:
        """Commit all waiting operations, then end the task."""
        if self._task is None:
            return
        task, self._task = self._task, None
        self._wake.set()
        await task

    @property
    def closed(self) -> bool:
        """Whether no more operations are accepted."""
        return self._task is None

    def put(
        self,
        run: Operation[T],
        *,
        durable: bool = False,
        lazy: bool = False,
        large: bool = False,
        patient: bool = False,
    ) -> "asyncio.Future[T]":
        """Run *run* in the next commit. The future holds its result, or JournalError when the commit failed.

        Args:
            durable: The result is on disk when the future has it, or in the mirror if there is one.
            lazy: The mirror may get it some milliseconds later: after a loss of this machine, another one repeats it.
            large: It takes a while.
            patient: It is committed together with the next other operation.
        """
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        if self._task is None:
            _set_exception(outcome, JournalError("the journal is closed"))
            return outcome
        self._waiting.append(_Waiting(run, durable, lazy, large, patient, outcome))
        if not patient:
            self._wake.set()
        return outcome

    async def _run(self) -> None:
        while self._task is not None or self._waiting:
            await self._wake.wait()
            self._wake.clear()
            batch, self._waiting = self._waiting, []
            if not batch:
                continue
            await self._finish(batch)
            if self._waiting:
                self._wake.set()

    async def _finish(self, batch: list[_Waiting]) -> None:
        try:
            results = await self._commit_somewhere(batch)
            if self.shipper is not None and (number := last_number(self._connection)) > self._number:
                self._number = number
                if all(waiting.lazy or waiting.patient for waiting in batch):
                    self.shipper.wake_later()
                else:
                    self.shipper.wake()
        except Exception as exc:  # an operation may raise any exception, which must not fail the others of the batch
            if len(batch) > 1 and not isinstance(exc, sqlite3.OperationalError):
                for waiting in batch:
                    await self._finish([waiting])
            else:
                for waiting in batch:
                    self._fail(waiting.outcome, exc)
            return
        for waiting, result in zip(batch, results, strict=True):
            if waiting.durable and self.shipper is not None:
                self.shipper.resolve(self._number, waiting.outcome, result)
            elif not waiting.outcome.cancelled():
                waiting.outcome.set_result(result)

    async def _commit_somewhere(self, batch: list[_Waiting]) -> list[Any]:
        loop = asyncio.get_running_loop()
        self._guard()
        # What the mirror has survives a loss of power: the journal is loaded from there then.
        is_durable = self.shipper is None and any(waiting.durable for waiting in batch)
        if not any(waiting.large for waiting in batch):
            try:
                results = self._begin(batch, is_durable)
            except sqlite3.OperationalError as exc:
                if not _is_busy(exc):
                    raise
            else:
                if is_durable:
                    await loop.run_in_executor(self._executor, self._end)
                else:
                    self._end()
                return results
        return await loop.run_in_executor(self._executor, self._commit_patiently, batch, is_durable)

    def _commit_patiently(self, batch: list[_Waiting], is_durable: bool) -> list[Any]:
        deadline = time.monotonic() + BUSY_TIMEOUT
        while True:
            try:
                results = self._begin(batch, is_durable)
            except sqlite3.OperationalError as exc:
                if not _is_busy(exc) or time.monotonic() >= deadline:
                    raise
            else:
                self._end()
                return results
            time.sleep(BUSY_PAUSE)

    def _begin(self, batch: list[_Waiting], is_durable: bool) -> list[Any]:
        self._set_synchronous("FULL" if is_durable else "NORMAL")
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            return [waiting.run(self._connection) for waiting in batch]
        except BaseException:
            self._roll_back()
            raise

    def _end(self) -> None:
        try:
            self._connection.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _fail(self, outcome: "asyncio.Future[Any]", cause: Exception) -> None:
        if not outcome.cancelled():
            if isinstance(cause, sqlite3.Error) and not isinstance(cause, _OF_ITS_VALUES):
                cause = journal_error(cause, self._path, "written", is_running=True)
            _set_exception(outcome, cause)

    def _set_synchronous(self, value: str) -> None:
        if self._synchronous != value:
            self._connection.execute(f"PRAGMA synchronous={value}")
            self._synchronous = value


def _is_busy(error: sqlite3.OperationalError) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _set_exception(outcome: "asyncio.Future[Any]", exc: Exception) -> None:
    outcome.set_exception(exc)
    # Mark it as retrieved: some operations are not awaited; those that are report the errors of the journal.
    outcome.exception()
