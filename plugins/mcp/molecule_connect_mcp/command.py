"""The commands ``molecule mcp`` and ``molecule-mcp``."""

import os
import sys
from pathlib import Path

import click

EPILOG = """\b
The settings that 'molecule init' saved configure it, and the environment, which wins:
  PLATFORM_URL                   the platform (also MOLECULE_API_URL)
  WORKSPACE_ID                   the workspace
  MOLECULE_WORKSPACE_TOKEN       its token, or MOLECULE_WORKSPACE_TOKEN_FILE
  MOLECULE_WORKSPACES            several: [{"id": ..., "token": ...}, ...], instead of the two above
  MOLECULE_ORG_ID                the organization on a hosted platform
  MOLECULE_STATE_DIR             the folder of the journal; --state-dir wins
  MOLECULE_AGENT_NAME, MOLECULE_AGENT_DESCRIPTION, MOLECULE_AGENT_SKILLS (a,b): the agent card
  MOLECULE_INBOX_LEASE_SECS      how long a returned message is hidden from other readers [300]
  MOLECULE_MCP_DISABLE_HEARTBEAT 1: send no heartbeats; another program does
  MOLECULE_MCP_DISABLE_INBOX     1: only send, don't read
  MOLECULE_MCP_FILES_ROOTS       folders that files may be sent from, separated by colons; --files-root wins

\b
Examples:
  claude mcp add molecule -e PLATFORM_URL=... -e WORKSPACE_ID=... \\
      -e MOLECULE_WORKSPACE_TOKEN_FILE=... -- molecule mcp
  molecule mcp --check
"""


@click.command(
    help="Serve the inbox of workspaces to an MCP host over standard input and output.",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option("--check", is_flag=True, help="Check the settings, test the token with the platform, and exit.")
@click.option("--state-dir", type=click.Path(file_okay=False, path_type=Path), help="The folder of the journal.")
@click.option(
    "--files-root",
    "files_roots",
    multiple=True,
    metavar="DIR",
    help="A folder that files may be sent from, besides the host's roots and the working directory; repeatable. "
    "[MOLECULE_MCP_FILES_ROOTS]",
)
@click.option(
    "--since-secs",
    type=click.IntRange(0, 30 * 24 * 3600),
    metavar="SECONDS",
    help="How far the first start looks back; 0: only new messages; at most 30 days. Applies to every workspace of "
    "a list. [default: 30]",
)
@click.option(
    "--profile",
    metavar="NAME",
    help="The saved settings to use; 'molecule init --profile NAME' saves them. [MOLECULE_PROFILE]",
)
def mcp(
    check: bool, state_dir: Path | None, files_roots: tuple[str, ...], since_secs: int | None, profile: str | None
) -> None:
    """Serve, or check the settings. Imports are local because ``molecule --help`` loads this module."""
    from molecule_connect import saved_state_dir

    if state_dir is None:
        state_dir = saved_state_dir(os.environ, profile=profile)
    if check:
        from molecule_connect_mcp.check import run_check

        raise SystemExit(run_check(os.environ, state_dir=state_dir, files_roots=files_roots, profile=profile))
    if sys.stdin is not None and sys.stdin.isatty():
        click.echo(
            "molecule mcp speaks MCP on standard input and output, and is started by an MCP host; "
            "use 'molecule mcp --check' to check the settings",
            err=True,
        )
    import asyncio

    from molecule_connect_mcp.settings import read_settings, read_workspaces
    from molecule_connect_mcp.stdio import redirected

    settings = read_settings(os.environ, state_dir=state_dir, files_roots=files_roots)
    workspaces = read_workspaces(os.environ, state_dir=state_dir, since_secs=since_secs, profile=profile)
    with redirected() as descriptors:
        _log_to_stderr()
        from molecule_connect_mcp.serving import serve

        asyncio.run(serve(workspaces, settings, descriptors))


def main() -> None:
    """Run ``molecule mcp`` as ``molecule-mcp``."""
    import runpy

    sys.argv = ["molecule", "mcp", *sys.argv[1:]]
    runpy.run_module("molecule_connect", run_name="__main__")


def _log_to_stderr() -> None:
    import logging

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("molecule-mcp: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("molecule_connect_mcp").setLevel(logging.INFO)
