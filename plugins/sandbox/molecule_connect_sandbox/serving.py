"""``molecule sandbox --serve``."""

import asyncio
import socket

import click

from molecule_connect_sandbox.app import create_app
from molecule_connect_sandbox.browser import open_page
from molecule_connect_sandbox.default_workspace import default_workspace
from molecule_connect_sandbox.options import SandboxOptions
from molecule_connect_sandbox.platform import Platform
from molecule_connect_sandbox.running import registered
from molecule_connect_sandbox.server import address, listen, serve
from molecule_connect_sandbox.signals import stop_on_signal
from molecule_connect_sandbox.store import Store


def announce(platform: Platform, url: str) -> str:
    """The text printed at the start: the address, variables to export, commands to try."""
    workspace = default_workspace(platform)
    admin, control = platform.options.admin_token, platform.options.control_token
    header = f"-H 'Authorization: Bearer {admin}' " if admin else ""
    faults = '{"faults":["unavailable=3,times=2"]}'
    message = '{"method":"message/send","params":{"message":{"content":"hello"}}}'
    return "\n".join(
        (
            url,
            f"export MOLECULE_API_URL={url}",
            f"export WORKSPACE_ID={workspace.id}",
            f"export MOLECULE_WORKSPACE_TOKEN={workspace.token}",
            "# In another terminal, paste these lines and answer its messages:",
            "#   molecule connect --backend mock",
            "# Open the first address in a browser to chat with it, or send it one message:",
            "#   molecule sandbox say hello",
            "# Change faults while it runs:",
            f"#   curl -s -w '\\n' -X PUT -H 'Authorization: Bearer {control}' {url}/sandbox/faults -d '{faults}'",
            "# Write to it as a person:",
            f"#   curl -s -w '\\n' {header}{url}/workspaces/{workspace.id}/a2a -d '{message}'",
        )
    )


def _listen(store: Store, port: int) -> socket.socket:
    """Listen on *port*, or if it is 0, on the port of the last run with this store, so that connectors find it."""
    remembered = None if port else store.remembered("port")
    if remembered is None:
        listening = listen(port)
    else:
        listening = listen(
            int(remembered),
            hint="the last run with this --store used this port: stop what uses it now, or choose another --port",
        )
    store.remember("port", str(listening.getsockname()[1]))
    return listening


async def run_server(options: SandboxOptions, port: int, *, open_browser: bool = False) -> None:
    """Serve until SIGTERM or Ctrl-C. *open_browser* opens the page once it is served.

    Raises:
        ConfigError: An option is invalid, or the port isn't available.
    """
    app = create_app(options)
    listening, stop = _listen(app.state.platform.store, port), asyncio.Event()

    url = address(listening)

    def ready() -> None:
        click.echo(announce(app.state.platform, url))
        if open_browser:
            open_page(f"{url}/")

    with registered(url, app.state.platform.boot), stop_on_signal(stop.set):
        await serve(app, listening, ready=ready, stop=stop)
