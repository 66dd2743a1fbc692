"""The hooks that a plugin can implement. ``docs/hooks.md`` is their reference."""

from collections.abc import Awaitable, Iterable

import pluggy

from molecule_connect.models import Handler, Progress, Request, Response

PROJECT = "molecule_connect"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a method as the implementation of the hook that it is named after."""


@hookspec(firstresult=True)
def handle_a2a(request: Request, progress: Progress) -> Response | Awaitable[Response]:  # type: ignore[empty-body]
    """Answer one A2A message. A backend, and nothing else, implements it.

    Write it as ``async def`` if you can. A plain function works too: it runs in
    a thread of its own, where shutdown cannot interrupt it, and its conversation stays
    busy until it returns. Leave out ``progress`` if you have none to tell.

    Delivery is at least once. After a crash the same ``request.idempotency_key``
    arrives again.

    Return one ``Response`` with something to read in it, or ``Response.silent()``
    to send nothing. Anything else counts as no answer, and is not tried again.

    Raises:
        BackendError: The message could not be answered; ``retryable`` says
            whether another attempt can help. Any other exception counts as
            retryable.
    """


@hookspec
def wrap_handler(handler: Handler) -> Handler:  # type: ignore[empty-body]
    """Put something around the answering of every message. Middleware implements it.

    Called once, before the first message, as a plain function. What it returns
    is called with each request and its progress; it may change the request on
    the way in, the progress and the response on the way out, or answer by itself.
    """


@hookspec
def check() -> Iterable[str] | str | Awaitable[Iterable[str] | str | None] | None:
    """Say what stands in the way of serving: a missing program, no login.

    Called at the start, by ``--dry-run``, and by ``molecule backends --check``,
    before any message. Return the problems, one line each, or nothing. Plain or
    ``async``; 30 seconds at most. Raising is a problem too.
    """


@hookspec
def describe() -> Iterable[str] | str | Awaitable[Iterable[str] | str | None] | None:
    """Say what the plugin may do on this machine: tools, folders, settings.

    Called at the start, by ``--dry-run``, and by ``molecule doctor``, after the
    plugin was made. Return complete lines for the operator to read, or nothing.
    Plain or ``async``; 30 seconds at most. Don't put secrets into them.
    """


@hookspec
def close() -> Awaitable[None] | None:
    """Let go of what the plugin holds: connections, processes, temporary files.

    Called exactly once for every plugin that was made, also when the start
    failed, after the last message was answered or given up. Plain or ``async``;
    5 seconds at most.
    """
