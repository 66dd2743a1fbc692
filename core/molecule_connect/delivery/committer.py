"""Group commits: what waits while one commit runs is the next commit."""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

import attrs

from molecule_connect.errors import JournalError

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], T]


@attrs.frozen(eq=False)
class _Waiting:
    run: Operation[Any]
    durable: bool
    outcome: "asyncio.Future[Any]"


class Committer:
    """Runs operations in one thread, as many to a commit as came meanwhile.

    A commit that holds a durable operation is on the disk when its futures resolve
    (``synchronous=FULL``); the others survive the death of this process, not of the machine.
    """

    def __init__(self, connection: sqlite3.Connection, executor: Executor) -> None:
        self._connection = connection
        self._executor = executor
        self._waiting: list[_Waiting] = []
        self._wake = asyncio.Event()
        self._synchronous = ""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to commit; needs a running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="journal")

    async def stop(self) -> None:
        """Commit what waits, then end."""
        if self._task is None:
            return
        task, self._task = self._task, None
        self._wake.set()
        await task

    @property
    def closed(self) -> bool:
        """Whether nothing can be put any more."""
        return self._task is None

    def put(self, run: Operation[T], *, durable: bool = False) -> "asyncio.Future[T]":
        """Run *run* in the next commit. The future holds its result, or JournalError when the commit failed."""
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        outcome.add_done_callback(_seen)
        if self._task is None:
            outcome.set_exception(JournalError("the journal is closed"))
            return outcome
        self._waiting.append(_Waiting(run, durable, outcome))
        self._wake.set()
        return outcome

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._task is not None or self._waiting:
            await self._wake.wait()
            self._wake.clear()
            batch, self._waiting = self._waiting, []
            if not batch:
                continue
            try:
                results = await loop.run_in_executor(self._executor, self._commit, batch)
            except sqlite3.Error as exc:
                for waiting in batch:
                    _fail(waiting.outcome, exc)
                continue
            for waiting, result in zip(batch, results, strict=True):
                if not waiting.outcome.cancelled():
                    waiting.outcome.set_result(result)
            if self._waiting:
                self._wake.set()

    def _commit(self, batch: list[_Waiting]) -> list[Any]:
        self._set_synchronous("FULL" if any(waiting.durable for waiting in batch) else "NORMAL")
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            results = [waiting.run(self._connection) for waiting in batch]
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        return results

    def _set_synchronous(self, value: str) -> None:
        if self._synchronous != value:
            self._connection.execute(f"PRAGMA synchronous={value}")
            self._synchronous = value


def _seen(outcome: "asyncio.Future[Any]") -> None:
    # Some transitions are not awaited: the journal's trouble is told by those that are.
    if not outcome.cancelled():
        outcome.exception()


def _fail(outcome: "asyncio.Future[Any]", cause: sqlite3.Error) -> None:
    if not outcome.cancelled():
        error = JournalError(
            f"the journal cannot be written: {cause}", hint="free disk space, or check the state folder"
        )
        error.__cause__ = cause
        outcome.set_exception(error)
