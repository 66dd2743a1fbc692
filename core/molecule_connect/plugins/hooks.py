"""Asking a plugin for its problems, and closing it: bounded in time, whatever the plugin does."""

import asyncio
import inspect
from collections.abc import Coroutine, Iterable
from typing import Any

import attrs

from molecule_connect.errors import CloseError, MoleculeError
from molecule_connect.plugins.implementations import Impl
from molecule_connect.plugins.threads import WorkerThreads
from molecule_connect.plugins.wording import first_line, kind

CHECK_SECONDS = 30.0
CLOSE_SECONDS = 5.0
# What a cancelled coroutine gets for its own clearing up.
LAST_SECONDS = 1.0


async def run_check(impl: Impl, threads: WorkerThreads, *, seconds: float = CHECK_SECONDS) -> list[str]:
    """The problems that a ``check`` tells; raising and taking longer than *seconds* are problems too."""
    if not inspect.iscoroutinefunction(impl.function):
        # A generator runs while it is iterated, and that belongs into the thread too.
        impl = attrs.evolve(impl, function=_listing(impl.function))
    try:
        ended, found = await _within(seconds, impl.run(threads))
        problems = _as_list(found)
    except MoleculeError as exc:
        return [f"{exc}; {exc.hint}" if exc.hint else str(exc)]
    except (Exception, SystemExit) as exc:  # plugin code
        return [f"check failed: {first_line(exc)}"]
    return problems if ended else [f"check did not return within {seconds:g} s"]


async def run_describe(impl: Impl, threads: WorkerThreads, *, seconds: float = CHECK_SECONDS) -> list[str]:
    """The lines that a ``describe`` returns. One that raises or takes longer than *seconds* is a line too."""
    if not inspect.iscoroutinefunction(impl.function):
        impl = attrs.evolve(impl, function=_listing(impl.function))
    try:
        ended, found = await _within(seconds, impl.run(threads))
        return _as_list(found) if ended else [f"{impl.label}: describe did not return within {seconds:g} s"]
    except (Exception, SystemExit) as exc:  # plugin code
        return [f"{impl.label}: describe failed: {first_line(exc)}"]


async def run_close(impl: Impl, threads: WorkerThreads, *, seconds: float = CLOSE_SECONDS) -> CloseError | None:
    """Close; what went wrong, or None."""
    try:
        ended, _ = await _within(seconds, impl.run(threads))
    except (Exception, SystemExit) as exc:  # plugin code
        error = CloseError(f"{impl.label} could not be closed: {first_line(exc)}", hint="tell its author")
        error.__cause__ = exc
        return error
    return None if ended else CloseError(f"{impl.label} did not close within {seconds:g} s", hint="tell its author")


async def _within(seconds: float, work: Coroutine[Any, Any, Any]) -> tuple[bool, Any]:
    """Whether *work* ended in time, and its result. It is cancelled when it did not, and left alone after that."""

    async def guarded() -> Any:
        # A SystemExit that leaves a task ends the loop.
        try:
            return await work
        except SystemExit as exc:
            return exc

    task = asyncio.ensure_future(guarded())
    try:
        ended, _ = await asyncio.wait((task,), timeout=seconds)
        if not ended:
            task.cancel()
            await asyncio.wait((task,), timeout=LAST_SECONDS)
            return False, None
    except asyncio.CancelledError:
        task.cancel()
        raise
    if task.cancelled():
        raise RuntimeError("cancelled from inside")
    result = task.result()
    if isinstance(result, SystemExit):
        raise result
    return True, result


def _as_list(found: object) -> list[str]:
    if found is None or isinstance(found, str):
        return [found] if found else []
    if not isinstance(found, Iterable):
        raise TypeError(f"it returned {kind(found)}")
    return [str(problem) for problem in found]


def _listing(function: Any) -> Any:
    def call(**arguments: Any) -> Any:
        found = function(**arguments)
        return list(found) if inspect.isgenerator(found) else found

    return call
