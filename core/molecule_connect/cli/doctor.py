"""``molecule doctor``: one table of what could keep a workspace from being served."""

import os
import time
from pathlib import Path
from typing import Any

import click

from molecule_connect.cli.connect import PluginName, tls_options
from molecule_connect.config import environment
from molecule_connect.config.settings import DEFAULT_BACKEND
from molecule_connect.plugins.entry_points import BACKENDS

NOT_WELL = 1


@click.command(short_help="Look for what could keep a workspace from being served.")
@click.argument("workspace_id", required=False)
@click.option("--api-url", metavar="URL", help="The platform; as in 'molecule connect'.")
@click.option("--org-id", metavar="ID", help="The organisation, on platforms that have several. [MOLECULE_ORG_ID]")
@click.option(
    "--token",
    metavar="TOKEN",
    help="The workspace token. Others can see it in the list of processes; --token-file keeps it to yourself.",
)
@click.option("--token-file", type=click.Path(), metavar="FILE", help="A file that holds the token.")
@click.option(
    "--backend",
    type=PluginName(BACKENDS),
    default=DEFAULT_BACKEND,
    show_default=True,
    help="The backend to look at too.",
)
@click.option("--backend-opt", "backend_opts", multiple=True, metavar="KEY=VALUE", help="An option of the backend.")
@click.option("--state-dir", metavar="FOLDER", help="The state folder. [MOLECULE_STATE_DIR]")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Look at the workspaces of this file, or at WORKSPACE_ID of it.",
)
@tls_options
@click.option("--insecure", is_flag=True, help="Allow plain http to another machine.")
@click.pass_context
def doctor(ctx: click.Context, /, **flags: Any) -> None:
    """Look for what could keep WORKSPACE_ID from being served, and say what to do about each.

    It takes what 'molecule connect' takes, from the same places. It registers nothing and reads no message, so it may
    run beside a connector.

    \b
    molecule doctor ws_1
    molecule doctor ws_1 --backend exec --backend-opt cmd="python myhandler.py"

    It exits with 0 when nothing failed, and with 1 when something did; a warning is no failure.
    """
    from molecule_connect.cli import diagnostics

    group = ctx.obj if isinstance(ctx.obj, dict) else {}
    api_url = environment.api_url(flags["api_url"], group.get("api_url"), os.environ)
    findings = diagnostics.run(flags, api_url=api_url, now=time.time())
    for line in diagnostics.lines(findings):
        click.echo(line)
    ctx.exit(NOT_WELL if any(finding.level == diagnostics.FAIL for finding in findings) else 0)
