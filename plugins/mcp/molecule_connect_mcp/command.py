"""``molecule mcp``, which is also the program ``molecule-mcp``."""

import os
import sys
from pathlib import Path

import click

EPILOG = """\b
It is configured by the environment, as hosts do it:
  PLATFORM_URL                   the platform (also MOLECULE_API_URL)
  WORKSPACE_ID                   the workspace
  MOLECULE_WORKSPACE_TOKEN       its token, or MOLECULE_WORKSPACE_TOKEN_FILE
  MOLECULE_WORKSPACES            several: [{"id": ..., "token": ...}, ...], and none of the two above
  MOLECULE_ORG_ID                the organisation of a hosted platform
  MOLECULE_STATE_DIR             where the journal lies, without --state-dir
  MOLECULE_AGENT_NAME, MOLECULE_AGENT_DESCRIPTION, MOLECULE_AGENT_SKILLS (a,b): what the card says
  MOLECULE_INBOX_LEASE_SECS      how long a message that was waited for is kept from other readers [300]
  MOLECULE_MCP_DISABLE_HEARTBEAT 1: another program keeps the workspace online
  MOLECULE_MCP_DISABLE_INBOX     1: only send, never read
  MOLECULE_MCP_FILES_ROOTS       folders that files may be sent from, without --files-root; a colon between two

\b
For example:
  claude mcp add molecule -e PLATFORM_URL=... -e WORKSPACE_ID=... \\
      -e MOLECULE_WORKSPACE_TOKEN_FILE=... -- molecule mcp
  molecule mcp --check
"""


@click.command(
    help="Serve the inbox of workspaces to an MCP host over standard input and output.",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option("--check", is_flag=True, help="Look whether everything is there, serve nothing. It asks the platform.")
@click.option("--state-dir", type=click.Path(file_okay=False, path_type=Path), help="Where the journal lies.")
@click.option(
    "--files-root",
    "files_roots",
    multiple=True,
    metavar="DIR",
    help="A folder that files may be sent from, beside the host's roots and the working directory; repeatable. "
    "[MOLECULE_MCP_FILES_ROOTS]",
)
@click.option(
    "--since-secs",
    type=click.IntRange(0, 30 * 24 * 3600),
    metavar="SECONDS",
    help="How far a first start looks back; 0: only new messages; at most 30 days. It holds for each workspace of "
    "a list. [default: 30]",
)
def mcp(check: bool, state_dir: Path | None, files_roots: tuple[str, ...], since_secs: int | None) -> None:
    """Serve, or check. What is heavy is imported here: ``molecule --help`` loads this module."""
    if check:
        from molecule_connect_mcp.check import run_check

        raise SystemExit(run_check(os.environ, state_dir=state_dir, files_roots=files_roots))
    if sys.stdin is not None and sys.stdin.isatty():
        click.echo(
            "molecule mcp speaks MCP on standard input and output, and is started by a host; "
            "'molecule mcp --check' looks whether it would work",
            err=True,
        )
    from molecule_connect_mcp.running import run

    run(os.environ, state_dir=state_dir, files_roots=files_roots, since_secs=since_secs)


def main() -> None:
    """``molecule-mcp``: the same as ``molecule mcp``."""
    import runpy

    sys.argv = ["molecule", "mcp", *sys.argv[1:]]
    runpy.run_module("molecule_connect", run_name="__main__")
