"""A backend connected to a sandbox, and a person who can write to it."""

import asyncio
import contextlib
import re
import shlex
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import attrs
import click

import molecule_connect
from molecule_connect import MoleculeError, WorkspaceSettings, events
from molecule_connect_sandbox.browser import open_page
from molecule_connect_sandbox.default_workspace import default_workspace
from molecule_connect_sandbox.options import SandboxOptions
from molecule_connect_sandbox.person import Person
from molecule_connect_sandbox.server import running_server

Connect = Callable[..., Awaitable[None]]
# Grace period for running work when a piped chat ends, in seconds. On a terminal, the person has already waited.
GRACE = 5.0
# Names of options whose values are not shown again.
_SECRET = re.compile(r"token|key|secret|passw|auth|credential", re.IGNORECASE)


@attrs.frozen(kw_only=True)
class ChatOptions:
    """Options of the chat.

    Attributes:
        open_browser: Open the page, where the backend answers too.
        connect: Serves the workspace; a stand-in for ``molecule_connect.connect``.
        stdin: Where messages are read from.
    """

    backend: str | object
    backend_options: Mapping[str, str | list[str]] = attrs.field(factory=dict, repr=False)
    sandbox: SandboxOptions
    open_browser: bool = False
    connect: Connect | None = None
    stdin: TextIO = attrs.field(factory=lambda: sys.stdin)

    @property
    def name(self) -> str:
        """The backend's name on the screen."""
        return self.backend if isinstance(self.backend, str) else type(self.backend).__name__

    @property
    def hint(self) -> str:
        """How to fix a dead letter."""
        if not isinstance(self.backend, str):
            return "the error comes from the backend; fix it there"
        keys = "".join(f" --backend-opt {shlex.quote(key)}=..." for key in self.backend_options)
        return (
            f"fix the reported problem ('molecule backends {self.name}' lists the options); "
            f"'molecule try {self.name}{keys} TEXT' runs the backend on its own"
        )

    @property
    def next_command(self) -> str:
        """The command that serves a real workspace with this backend, for the terminal where its options were typed.

        Values of options that may be secrets are left out.
        """
        words = ["molecule connect WORKSPACE_ID --api-url https://your-platform.example"]
        words += [f"--backend {shlex.quote(self.backend)}"] if isinstance(self.backend, str) else []
        for key, value in self.backend_options.items():
            for each in [value] if isinstance(value, str) else value:
                is_shown = each.isprintable() and not _SECRET.search(key)
                words.append(f"--backend-opt {shlex.quote(key)}={shlex.quote(each) if is_shown else '...'}")
        return " ".join(words)


@attrs.frozen(kw_only=True)
class Session:
    """A connected backend. ``events`` receives the events of the connection, then None when it ends."""

    url: str
    workspace_id: str
    person: Person
    events: "asyncio.Queue[Any]"


@contextlib.asynccontextmanager
async def session(options: ChatOptions) -> AsyncIterator[Session]:
    """Start a sandbox and connect the backend to a workspace in it.

    Raises:
        MoleculeError: The backend couldn't be connected, or the connection failed.
    """
    connect = options.connect or molecule_connect.connect
    queue: asyncio.Queue[Any] = asyncio.Queue()
    with tempfile.TemporaryDirectory(prefix="molecule-sandbox-") as state, running_server(options.sandbox) as server:
        workspace = default_workspace(server.app.state.platform)
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
                listener=queue.put_nowait,
            )
        )
        serving.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            async with Person.at(server.url, workspace, options.sandbox.admin_token) as person:
                await _wait_until_registered(queue, serving)
                if options.open_browser:
                    open_page(f"{server.url}/")
                yield Session(url=server.url, workspace_id=workspace.id, person=person, events=queue)
        finally:
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving


async def _wait_until_registered(queue: "asyncio.Queue[Any]", serving: "asyncio.Future[None]") -> None:
    while (event := await queue.get()) is not None:
        if isinstance(event, events.Registered):
            return
        if isinstance(event, events.Notice):
            click.echo(clean(describe_problem(event)), err=True)
    await serving
    raise MoleculeError("the connection ended before registration", hint="run molecule connect --dry-run")


def describe_problem(event: Any) -> str:
    """The problem that an event reports, or an empty string."""
    if isinstance(event, events.Retrying):
        return f"{event.what} failed, retrying in {event.seconds:.0f} s: {event.reason}"
    if isinstance(event, events.Trouble):
        return f"{event.part}: {event.reason}"
    if isinstance(event, events.Notice):
        return f"warning: {event.text}" + (f"; {event.hint}" if event.hint else "")
    return ""


def clean(text: str) -> str:
    """*text* without control characters."""
    return "".join(char for char in text if char in "\n\t" or char.isprintable())
