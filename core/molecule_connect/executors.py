"""Threads on a system that may refuse to start more. Work that is reported as failed never runs later.

``asyncio.to_thread`` and ``ThreadPoolExecutor.submit`` raise if a thread can't be started, but leave the work queued,
so that another thread runs it later.
"""

import asyncio
import contextlib
import errno
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, ParamSpec, TypeVar

from molecule_connect.errors import ConfigError

P = ParamSpec("P")
T = TypeVar("T")
# The default executor resolves names and writes files; each may be slow.
DEFAULT_THREADS = 8
MORE_THREADS = "allow more processes and threads: ulimit -u, TasksMax= of the unit, or the container's pids limit"


async def in_thread(function: Callable[[], T]) -> T:
    """Run *function* in a new thread and return its result. If the wait is cancelled, the thread continues.

    Raises:
        OSError: The thread can't be started; *function* is not called.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if outcome.done():
            return
        if error is None:
            outcome.set_result(value)
        else:
            outcome.set_exception(error)

    def work() -> None:
        value, error = None, None
        try:
            value = function()
        except BaseException as exc:  # raised in the waiting task
            error = exc
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, value, error)

    start(threading.Thread(target=copy_context().run, args=(work,), name="work", daemon=True))
    return await outcome


def start(thread: threading.Thread) -> None:
    """Start *thread*.

    Raises:
        OSError: It can't be started, and never runs.
    """
    try:
        thread.start()
    except RuntimeError as exc:
        raise OSError(errno.EAGAIN, "no more threads can be started") from exc


class PatientExecutor(ThreadPoolExecutor):
    """A thread pool that starts its first thread at once. If no more can be started, work waits for a free thread.

    Raises:
        ConfigError: Not even one thread can be started.
    """

    def __init__(self, max_workers: int = DEFAULT_THREADS, thread_name_prefix: str = "") -> None:
        super().__init__(max_workers, thread_name_prefix=thread_name_prefix)
        self._is_shut_down = False
        try:
            super().submit(lambda: None).result()
        except RuntimeError as exc:
            raise ConfigError("no thread can be started", hint=MORE_THREADS) from exc

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        outcome: Future[T] = Future()

        def work() -> None:
            if not outcome.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as exc:  # raised by the future
                outcome.set_exception(exc)
            else:
                outcome.set_result(result)

        try:
            super().submit(work)
        except RuntimeError:
            # The work is queued anyway, and the first thread runs it.
            if self._is_shut_down:
                raise
        return outcome

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._is_shut_down = True
        super().shutdown(wait, cancel_futures=cancel_futures)
