"""``molecule sandbox --serve``."""

import asyncio

import click

from molecule_connect_sandbox.app import create_app
from molecule_connect_sandbox.options import SandboxOptions
from molecule_connect_sandbox.platform import Platform
from molecule_connect_sandbox.ready import ready_workspace
from molecule_connect_sandbox.server import address, listen, serve
from molecule_connect_sandbox.signals import stopping


def announce(platform: Platform, url: str) -> str:
    """What is printed once the server answers: the address, what to export, what to do."""
    workspace = ready_workspace(platform)
    admin = platform.options.admin_token
    header = f"-H 'Authorization: Bearer {admin}' " if admin else ""
    message = '{"method":"message/send","params":{"message":{"content":"hello"}}}'
    return "\n".join(
        (
            url,
            f"export MOLECULE_API_URL={url}",
            f"export WORKSPACE_ID={workspace.id}",
            f"export MOLECULE_WORKSPACE_TOKEN={workspace.token}",
            "# In another terminal, with these lines pasted, answer its messages:",
            "#   molecule connect --backend mock",
            "# Write to it as a person:",
            f"#   curl -s -w '\\n' {header}{url}/workspaces/{workspace.id}/a2a -d '{message}'",
        )
    )


async def run_server(options: SandboxOptions, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        ConfigError: An option makes no sense, or the port cannot be had.
    """
    app = create_app(options)
    listening, stop = listen(port), asyncio.Event()

    def ready() -> None:
        click.echo(announce(app.state.platform, address(listening)))

    with stopping(stop.set):
        await serve(app, listening, ready=ready, stop=stop)
