"""A backend that is connected to a sandbox, and a person who can write to it."""

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import IO, Any

import attrs
import click

import molecule_connect
from molecule_connect import MoleculeError, WorkspaceSettings, events
from molecule_connect_sandbox.options import SandboxOptions
from molecule_connect_sandbox.person import Person
from molecule_connect_sandbox.ready import ready_workspace
from molecule_connect_sandbox.server import running_server

Connect = Callable[..., Awaitable[None]]
# How long a backend may go on with what it has begun when a pipe's chat ends, in seconds. On a terminal a person has
# waited for as long as they wanted to.
GRACE = 5.0


@attrs.frozen(kw_only=True)
class ChatOptions:
    """Who is chatted with. ``connect`` serves the workspace, ``stdin`` is where messages come from."""

    backend: str | object
    backend_options: Mapping[str, str | list[str]] = attrs.field(factory=dict, repr=False)
    sandbox: SandboxOptions
    connect: Connect | None = None
    stdin: IO[str] = attrs.field(factory=lambda: sys.stdin)

    @property
    def name(self) -> str:
        """What the backend is called on the screen."""
        return self.backend if isinstance(self.backend, str) else type(self.backend).__name__

    @property
    def next_step(self) -> str:
        """What to do about a message that was given up."""
        if not isinstance(self.backend, str):
            return "the reason is the backend's own: mend it there"
        return (
            f"mend what the reason names ('molecule backends {self.name}' lists the options); "
            f"'molecule try {self.name} TEXT' asks the backend alone"
        )


@attrs.frozen(kw_only=True)
class Session:
    """A connected backend. ``told`` gives what the connection tells; it ends with None when the connection does."""

    url: str
    workspace_id: str
    person: Person
    told: "asyncio.Queue[Any]"


@contextlib.asynccontextmanager
async def session(options: ChatOptions) -> AsyncIterator[Session]:
    """A sandbox, a workspace, and the backend connected to it.

    Raises:
        MoleculeError: The backend could not be connected, or its connection broke.
    """
    connect = options.connect or molecule_connect.connect
    told: asyncio.Queue[Any] = asyncio.Queue()
    with tempfile.TemporaryDirectory(prefix="molecule-sandbox-") as state, running_server(options.sandbox) as server:
        workspace = ready_workspace(server.app.state.platform)
        serving = asyncio.ensure_future(
            connect(
                WorkspaceSettings(
                    workspace_id=workspace.id,
                    backend=options.backend,
                    options=options.backend_options,
                    api_url=server.url,
                    token=workspace.token,
                    grace=0.0 if options.stdin.isatty() else GRACE,
                ),
                state_dir=Path(state),
                listener=told.put_nowait,
            )
        )
        serving.add_done_callback(lambda _: told.put_nowait(None))
        try:
            async with Person.at(server.url, workspace, options.sandbox.admin_token) as person:
                await _registered(told, serving)
                yield Session(url=server.url, workspace_id=workspace.id, person=person, told=told)
        finally:
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving


async def _registered(told: "asyncio.Queue[Any]", serving: "asyncio.Future[None]") -> None:
    while (event := await told.get()) is not None:
        if isinstance(event, events.Registered):
            return
        if isinstance(event, events.Notice):
            click.echo(clean(trouble(event)), err=True)
    await serving
    raise MoleculeError("the connection ended before it had begun", hint="try molecule connect --dry-run")


def trouble(event: Any) -> str:
    """What an event says that a person has to know, or nothing."""
    if isinstance(event, events.Retrying):
        return f"{event.what} failed, again in {event.seconds:.0f} s: {event.reason}"
    if isinstance(event, events.Trouble):
        return f"{event.part}: {event.reason}"
    if isinstance(event, events.Notice):
        return f"warning: {event.text}" + (f"; {event.hint}" if event.hint else "")
    return ""


def clean(text: str) -> str:
    """*text* without what a terminal would act on."""
    return "".join(char for char in text if char in "\n\t" or char.isprintable())
