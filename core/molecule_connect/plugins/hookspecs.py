"""The hooks that a plugin can implement. ``docs/hooks.md`` is their reference."""

from collections.abc import Awaitable, Iterable

import pluggy

from molecule_connect.models import Handler, Progress, Request, Response

PROJECT = "molecule_connect"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a method as the implementation of the hook of the same name."""


@hookspec(firstresult=True)
def handle_a2a(request: Request, progress: Progress) -> Response | Awaitable[Response]:  # type: ignore[empty-body]
    """Handle an A2A message and return the reply. Only backends implement this hook.

    Prefer ``async def``. Plain functions run in a thread of their own and can't be
    interrupted on shutdown; the conversation stays busy until they return. Omit
    ``progress`` if you don't report any.

    Delivery is at least once: after a crash, a message with the same
    ``request.idempotency_key`` is delivered again.

    Return a ``Response`` that has content, or ``Response.silent()`` to send no
    reply. Any other value is an error and isn't retried.

    Raises:
        BackendError: The message could not be answered; ``retryable`` says
            whether another attempt can help. Any other exception counts as
            retryable.
    """


@hookspec
def wrap_handler(handler: Handler) -> Handler:  # type: ignore[empty-body]
    """Wrap the handler of all messages. Middleware implements this hook.

    It is a plain function that is called once, before the first message. The handler
    it returns is called with each request and its progress; it may change the
    request, the progress and the response, or return a response itself.
    """


@hookspec
def check() -> Iterable[str] | str | Awaitable[Iterable[str] | str | None] | None:
    """Report problems that prevent serving, such as a missing program or login.

    Called at the start, by ``--dry-run``, and by ``molecule backends --check``,
    before any message. Return the problems, one line each, or nothing. Plain or
    ``async``; the timeout is 30 seconds. An exception is a problem, too.
    """


@hookspec
def describe() -> Iterable[str] | str | Awaitable[Iterable[str] | str | None] | None:
    """Describe what the plugin may do on this machine: tools, folders, settings.

    Called at the start, by ``--dry-run``, and by ``molecule doctor``, after the
    plugin was created. Return complete lines for the operator, or nothing.
    Plain or ``async``; the timeout is 30 seconds. Don't include secrets.
    """


@hookspec
def close() -> Awaitable[None] | None:
    """Release resources: connections, processes, temporary files.

    Called exactly once for every plugin that was created, even if the start
    failed, after the last message was handled. Plain or ``async``; the timeout is
    5 seconds.
    """
