"""``molecule init``: save the settings of a workspace, so that the other commands need no flags."""

from typing import Any

import click

from molecule_connect.cli.options import PROFILE, given_settings, setting_options

SETTINGS = (
    "api_url", "org_id", "token", "token_file", "backend", "options", "middleware", "middleware_options",
    "poll_interval", "since_secs", "concurrency", "grace", "peer_budget", "max_cost_per_day", "journal_quota",
    "agent_name", "ca_file", "client_cert", "client_key", "strict", "insecure",
)  # fmt: skip


@click.command
@click.argument("workspace_id", required=False)
@setting_options(*SETTINGS)
@click.option(
    "--state-dir",
    metavar="FOLDER",
    help="Where to keep the journal and received files; saved, too. [default: as for 'molecule connect']",
)
@PROFILE
@click.option("--force", is_flag=True, help="Replace saved settings without asking.")
@click.option("--no-check", is_flag=True, help="Save the settings without checking them.")
@click.pass_context
def init(ctx: click.Context, /, **_: Any) -> None:
    """Save the settings of a workspace, so that connect, status, doctor and messages need no flags.

    It asks for the address of the platform, the workspace id, the token and the backend, unless flags or environment
    variables give them. It checks them like 'molecule doctor', and writes config.toml and the file token, which only
    you can read, to ~/.config/molecule. Run it again to change the settings.

    \b
    molecule init
    molecule init --profile work
    molecule init ws_1 --api-url https://platform.example --token-file ws.token --backend exec \\
        --backend-opt cmd="python myhandler.py"

    Flags and environment variables win over saved settings. If a check fails, nothing is saved, and the exit code
    is not 0.
    """
    from molecule_connect.cli import initializing

    initializing.run(ctx.params, given_settings(ctx))
