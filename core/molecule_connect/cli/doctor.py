"""``molecule doctor``: a table of checks that show whether a workspace can be served."""

import time
from pathlib import Path
from typing import Any

import click

from molecule_connect.cli.options import PROFILE, given_settings, journal_option, setting_options


@click.command
@click.argument("workspace_id", required=False)
@setting_options("api_url", "org_id", "token", "token_file", "backend", "options")
@click.option("--state-dir", metavar="FOLDER", help="The state folder. [MOLECULE_STATE_DIR]")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Check the workspaces of this file, or only WORKSPACE_ID.",
)
@journal_option("Also check the database through which machines share workspaces.", implied=True)
@PROFILE
@setting_options("ca_file", "client_cert", "client_key", "insecure")
@click.pass_context
def doctor(ctx: click.Context, /, **_: Any) -> None:
    """Check whether WORKSPACE_ID can be served, and show how to fix problems.

    It accepts the same settings as 'molecule connect', from the same sources. It doesn't register and reads no
    messages, so it can run beside a connector.

    \b
    molecule doctor ws_1
    molecule doctor ws_1 --backend exec --backend-opt cmd="python myhandler.py"

    The exit code is 1 if a check failed. Warnings don't count.
    """
    from molecule_connect.cli import diagnostics

    findings = diagnostics.run(ctx.params, given_settings(ctx), time.time())
    for line in diagnostics.lines(findings):
        click.echo(line)
    ctx.exit(diagnostics.NOT_WELL if any(finding.level == diagnostics.FAIL for finding in findings) else 0)
