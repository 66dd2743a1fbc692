"""No more threads: what could not be begun is never done, and what was begun before goes on."""

import asyncio
import threading

import pytest

from molecule_connect.errors import BackendError
from molecule_connect.executors import PatientExecutor, in_thread
from molecule_connect.plugins.threads import PluginThreads


def refuse(thread: threading.Thread) -> None:
    """As under ulimit -u: the system refuses each new thread."""
    raise RuntimeError("can't start new thread")


async def test_work_runs_in_threads_and_raises() -> None:
    assert await in_thread(threading.current_thread) is not threading.current_thread()
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0)


async def test_work_that_was_refused_never_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refuse)
        with pytest.raises(OSError, match="no more threads"):
            await in_thread(lambda: ran.append("refused"))
    await in_thread(lambda: ran.append("later"))
    assert ran == ["later"]


async def test_refused_plugin_calls_cost_no_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[str] = []
    threads = PluginThreads("backend shout")
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refuse)
        with pytest.raises(BackendError, match="no more threads") as caught:
            await threads.run(lambda: ran.append("refused"))
    assert caught.value.retryable
    assert caught.value.retry_after
    await threads.run(lambda: ran.append("later"))
    assert ran == ["later"]


async def test_full_executors_let_work_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    executor, release, ran = PatientExecutor(4), threading.Event(), list[str]()
    loop = asyncio.get_running_loop()
    try:
        holding = loop.run_in_executor(executor, release.wait)
        monkeypatch.setattr(threading.Thread, "start", refuse)
        waiting = loop.run_in_executor(executor, ran.append, "done once")
        failing = loop.run_in_executor(executor, lambda: 1 // 0)
        release.set()
        async with asyncio.timeout(30):
            await asyncio.gather(holding, waiting)
            with pytest.raises(ZeroDivisionError):
                await failing
    finally:
        executor.shutdown()
    assert ran == ["done once"]
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(ran.append, "too late")
