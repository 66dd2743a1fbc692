"""An event loop in a thread of its own, for callers that have none."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar

from molecule_connect_agent.requests import ClosedError

P = ParamSpec("P")
T = TypeVar("T")


class Portal:
    """Runs coroutines for callers in any thread. The thread starts with the first call.

    After ``close``, it ends when the last call has returned.

    Args:
        aclose: Closes what the coroutines use, when the portal is closed.
    """

    def __init__(self, aclose: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._aclose = aclose
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._calls = 0
        self._is_closed = False

    def run(self, function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of the coroutine *function*. It is cancelled if this thread is interrupted, by Ctrl-C for example.

        Raises:
            ClosedError: The portal is closed.
        """
        loop = self._enter()
        try:
            future = asyncio.run_coroutine_threadsafe(function(*args, **kwargs), loop)
            try:
                return future.result()
            finally:
                future.cancel()
        finally:
            self._leave()

    def close(self) -> None:
        """End the thread. Calls of other threads return first, without this one waiting for them."""
        with self._lock:
            is_first, self._is_closed = not self._is_closed, True
            loop, is_idle = self._loop, not self._calls
        if is_first and loop is not None:
            if is_idle:
                self._end(loop)
            else:
                asyncio.run_coroutine_threadsafe(self._aclose(), loop)

    def _enter(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._is_closed:
                raise ClosedError
            if self._loop is None:
                self._loop = self._start()
            self._calls += 1
            return self._loop

    def _leave(self) -> None:
        with self._lock:
            self._calls -= 1
            loop, is_last = self._loop, self._is_closed and not self._calls
        if is_last and loop is not None:
            self._end(loop)

    def _start(self) -> asyncio.AbstractEventLoop:
        started: Future[asyncio.AbstractEventLoop] = Future()
        # A program that forgets to close its client can still end.
        self._thread = threading.Thread(
            target=asyncio.run, args=[self._serve(started)], name="molecule-connect-agent", daemon=True
        )
        self._thread.start()
        return started.result()

    async def _serve(self, started: "Future[asyncio.AbstractEventLoop]") -> None:
        started.set_result(asyncio.get_running_loop())
        await self._stop.wait()
        await self._aclose()

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None:
            self._thread.join()
