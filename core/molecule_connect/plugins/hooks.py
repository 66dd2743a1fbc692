"""Run the ``check``, ``describe`` and ``close`` hooks of a plugin, each with a timeout."""

import asyncio
import inspect
from collections.abc import Coroutine, Iterable
from typing import Any

import attrs

from molecule_connect.errors import CloseError, MoleculeError
from molecule_connect.plugins.implementations import Impl
from molecule_connect.plugins.threads import PluginThreads
from molecule_connect.plugins.wording import first_line, kind

CHECK_SECONDS = 30.0
CLOSE_SECONDS = 5.0
# Time for a cancelled coroutine to clean up.
LAST_SECONDS = 1.0


async def run_check(impl: Impl, threads: PluginThreads, *, seconds: float = CHECK_SECONDS) -> list[str]:
    """The problems that ``check`` returns. An exception or a timeout is a problem, too."""
    try:
        lines = await _lines(impl, threads, seconds)
    except MoleculeError as exc:
        return [f"{exc}; {exc.hint}" if exc.hint else str(exc)]
    except (Exception, SystemExit) as exc:  # plugin code
        return [f"check failed: {first_line(exc)}"]
    return [f"check did not return within {seconds:g} s"] if lines is None else lines


async def run_describe(impl: Impl, threads: PluginThreads, *, seconds: float = CHECK_SECONDS) -> list[str]:
    """The lines that ``describe`` returns. An exception or a timeout becomes a line, too."""
    try:
        lines = await _lines(impl, threads, seconds)
    except (Exception, SystemExit) as exc:  # plugin code
        return [f"{impl.label}: describe failed: {first_line(exc)}"]
    return [f"{impl.label}: describe did not return within {seconds:g} s"] if lines is None else lines


async def run_close(impl: Impl, threads: PluginThreads, *, seconds: float = CLOSE_SECONDS) -> CloseError | None:
    """Close the plugin. Returns the error, or None."""
    try:
        ended, _ = await _within(seconds, impl.run(threads))
    except (Exception, SystemExit) as exc:  # plugin code
        error = CloseError(f"{impl.label} could not be closed: {first_line(exc)}", hint="report it to its author")
        error.__cause__ = exc
        return error
    return (
        None
        if ended
        else CloseError(f"{impl.label} did not close within {seconds:g} s", hint="report it to its author")
    )


async def _within(seconds: float, work: Coroutine[Any, Any, Any]) -> tuple[bool, Any]:
    """Whether *work* ended in time, and its result. On a timeout it is cancelled, and abandoned a second later."""

    async def guarded() -> Any:
        # A SystemExit raised in a task would stop the event loop.
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


async def _lines(impl: Impl, threads: PluginThreads, seconds: float) -> list[str] | None:
    """The lines that a hook returns; None if it didn't return in time."""
    if not inspect.iscoroutinefunction(impl.function):
        # The body of a generator runs while it is iterated, which must happen in the thread, too.
        impl = attrs.evolve(impl, function=_listing(impl.function))
    ended, found = await _within(seconds, impl.run(threads))
    if not ended:
        return None
    if found is None or isinstance(found, str):
        return [found] if found else []
    if not isinstance(found, Iterable):
        raise TypeError(f"it returned {kind(found)}")
    return [str(line) for line in found]


def _listing(function: Any) -> Any:
    def call(**arguments: Any) -> Any:
        found = function(**arguments)
        return list(found) if inspect.isgenerator(found) else found

    return call
