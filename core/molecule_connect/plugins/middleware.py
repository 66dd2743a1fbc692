"""Wrap the handlers of backends and middleware so that results, exceptions and progress are safe to use."""

import asyncio
import contextlib
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import attrs

from molecule_connect.errors import BackendError
from molecule_connect.models import DataPart, FilePart, Progress, Request, Response, TextPart, Usage
from molecule_connect.plugins.wording import first_line, kind

_LOG = logging.getLogger(__name__)


@attrs.frozen(eq=False)
class Layer:
    """The handler of a plugin, with safe results, exceptions and progress."""

    handler: Callable[[Request, Progress], Any]
    label: str

    async def handle(self, request: Request, progress: Progress) -> Response:
        """Call the handler. Progress may be called from any thread, and awaited or not.

        Raises:
            BackendError: The response is invalid, or the plugin cancelled itself or raised SystemExit or another
                exception that isn't an ``Exception``.
        """
        reporter = progress if isinstance(progress, Reporter) else Reporter(progress, self.label)
        try:
            response = self.handler(request, reporter)
            if inspect.isawaitable(response):
                response = await response
        except SystemExit as exc:
            raise BackendError(f"{self.label} tried to end the program with exit status {exc.code}") from exc
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise BackendError(f"{self.label} cancelled itself") from exc
        except (Exception, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as exc:  # PanicException of Rust libraries
            raise BackendError(f"{self.label} failed: {first_line(exc)}") from exc
        finally:
            if reporter is not progress:
                reporter.is_finished = True
                if reporter.pending:
                    await reporter.finish()
        return _checked(response, self.label)


def _checked(response: object, label: str) -> Response:
    """Return *response* if it can be sent or is silent; raise a BackendError that isn't retryable otherwise."""
    if not isinstance(response, Response):
        problem = f"it returned {kind(response)}"
    elif response.is_silent:
        return response
    elif not response.final:
        problem = "it returned a Response with final=False"
    elif wrong := next(filter(None, map(_problem, response.parts)), ""):
        problem = wrong
    elif response.is_blank:
        problem = "its Response has no content"
    elif _is_usage(response.usage):
        return response
    else:  # invalid usage must not fail the delivery
        _LOG.warning("ignored the usage of a Response of %s: it is %s", label, kind(response.usage))
        return attrs.evolve(response, usage=None)
    raise BackendError(f"no answer from {label}: {problem}", retryable=False)


@attrs.define(eq=False, repr=False)
class Reporter:
    """Passes progress to *report*, from any thread. Exceptions of *report* are logged and don't fail the message.

    Attributes:
        pending: Reports that aren't delivered yet.
        is_finished: Drop further reports.
    """

    report: Progress
    label: str
    pending: set[asyncio.Task[None]] = attrs.field(factory=set)
    is_finished: bool = False
    _loop: asyncio.AbstractEventLoop = attrs.field(factory=asyncio.get_running_loop)
    _thread: int = attrs.field(factory=threading.get_ident)

    def __call__(self, update: str | Response, /) -> Awaitable[None]:
        if not isinstance(update, str | Response):
            raise TypeError(f"progress takes text or a Response, not {kind(update)}")
        if isinstance(update, Response) and update.final:
            raise ValueError("a Response passed to progress must have final=False")
        if threading.get_ident() == self._thread:
            return _Sent(self._relay(update))
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._relay, update)
        return _Sent(None)

    async def finish(self) -> None:
        """Wait for pending reports."""
        try:
            while self.pending:
                await asyncio.wait(self.pending)
        finally:
            for task in self.pending:
                task.cancel()

    def _relay(self, update: str | Response) -> asyncio.Task[None] | None:
        if self.is_finished:
            return None
        try:
            result: object = self.report(update)
        except Exception as exc:  # plugin code
            self._lost(exc)
            return None
        if not inspect.isawaitable(result):
            return None
        task = asyncio.ensure_future(self._wait(result))
        self.pending.add(task)
        task.add_done_callback(self.pending.discard)
        return task

    async def _wait(self, result: Awaitable[object]) -> None:
        try:
            await result
        except Exception as exc:  # plugin code
            self._lost(exc)

    def _lost(self, exc: Exception) -> None:
        _LOG.warning("dropped a progress report of %s: %s", self.label, first_line(exc))


class _Sent:
    """A progress report; awaiting it waits until it was delivered."""

    def __init__(self, task: asyncio.Task[None] | None) -> None:
        self._task = task

    def __await__(self) -> Generator[Any, None, None]:
        if self._task is not None:
            yield from asyncio.shield(self._task).__await__()


def _is_usage(usage: object) -> bool:
    return usage is None or isinstance(usage, Usage)


def _problem(part: object) -> str:
    """Why *part* can't be sent; empty if it can."""
    if isinstance(part, FilePart | DataPart):
        return ""
    if not isinstance(part, TextPart):
        return f"a part of its Response is {kind(part)}"
    text: object = part.text
    return "" if isinstance(text, str) else f"the text of a part of its Response is {kind(text)}"
