"""Threads for plain functions of plugins. The default executor is left to name resolution."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import attrs

from molecule_connect.errors import BackendError
from molecule_connect.executors import start
from molecule_connect.process.program import SHORTAGE_WAIT


@attrs.define(eq=False)
class _Call:
    ended: asyncio.Future[None]
    cancelled: bool = False
    value: Any = None
    error: BaseException | None = None


class PluginThreads:
    """Runs each call in its own daemon thread, so that neither other calls nor the program's exit wait for it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: set[_Call] = set()
        self._abandoned = False

    async def run(self, function: Callable[[], Any]) -> Any:
        """Call *function* in a thread.

        A thread cannot be interrupted: a cancelled task waits until the thread ends or ``abandon`` is called, and
        only then raises CancelledError.

        Raises:
            BackendError: The call was abandoned, it raised an exception that a task must not raise (StopIteration,
                SystemExit), or no thread could be started and *function* was not called.
        """
        if self._abandoned:
            raise BackendError(f"{self._name} is closed")
        loop = asyncio.get_running_loop()
        call = _Call(loop.create_future())

        def work() -> None:
            try:
                call.value = function()
            except BaseException as exc:  # re-raised in the waiting task
                call.error = exc
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._ended, call)

        thread = threading.Thread(target=copy_context().run, args=(work,), name=self._name, daemon=True)
        try:
            start(thread)
        except OSError as exc:
            # The function was not called, so this doesn't count as an attempt.
            raise BackendError(f"{self._name}: {exc.strerror}", retry_after=SHORTAGE_WAIT) from exc
        self._calls.add(call)
        return await self._result(call)

    def abandon(self) -> None:
        """Stop waiting for all calls. Their threads continue, and their results are dropped."""
        self._abandoned = True
        for call in self._calls:
            if not call.ended.done():
                call.ended.set_result(None)

    async def _result(self, call: _Call) -> Any:
        while not call.ended.done():
            try:
                await asyncio.wait((call.ended,))
            except asyncio.CancelledError:
                call.cancelled = True
        if call.cancelled:
            raise asyncio.CancelledError
        if call in self._calls:
            raise BackendError(f"{self._name} was closed before it answered")
        if call.error is None:
            return call.value
        if isinstance(call.error, StopIteration) or not isinstance(call.error, Exception):
            raise BackendError(f"{self._name} raised {type(call.error).__name__}") from call.error
        raise call.error

    def _ended(self, call: _Call) -> None:
        self._calls.discard(call)
        if not call.ended.done():
            call.ended.set_result(None)
