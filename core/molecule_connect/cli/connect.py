"""``molecule connect``: serve workspaces."""

import io
import sys
from pathlib import Path
from typing import Any

import click

from molecule_connect.cli.options import PROFILE, given_settings, journal_option, setting_options
from molecule_connect.config.settings import DEFAULT_BACKEND
from molecule_connect.console.log_options import LEVELS, TEXTS, LogOptions
from molecule_connect.console.select import LOG_FORMATS, choose
from molecule_connect.plugins.entry_points import BACKENDS, scan_names

HELP = """Serve a workspace: keep it online, receive its messages, answer them with a backend and send the replies.

It runs until Ctrl-C or SIGTERM, finishes the messages in progress and exits; a second signal exits at once.
WORKSPACE_ID can also be set with the variable WORKSPACE_ID. The token is read from --token, --token-file,
MOLECULE_WORKSPACE_TOKEN or MOLECULE_WORKSPACE_TOKEN_FILE, in this order. Missing settings are taken from those that
'molecule init' or --save has saved, if they are for this workspace.

\b
Serve the workspace that 'molecule init' has saved:
    molecule connect
Answer with Claude Code, the default backend:
    molecule connect ws_1
Try it without an agent; the mock backend repeats each message:
    molecule connect ws_1 --backend mock --backend-opt reply="echo: %s"
Answer with your own program, which reads stdin and writes stdout:
    molecule connect ws_1 --backend exec --backend-opt cmd="python myhandler.py"
Serve all workspaces of a file, and read it again on SIGHUP:
    molecule connect --config fleet.toml
"""


class ConnectCommand(click.Command):
    """Lists the installed backends at the end of its help. Their names are read only then."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        names = scan_names(BACKENDS)
        formatter.write_paragraph()
        formatter.write_text(f"Installed backends: {', '.join(names) or 'none'}. See 'molecule backends NAME'.")
        if DEFAULT_BACKEND not in names:
            formatter.write_text(f"The default, {DEFAULT_BACKEND}, is not installed: choose another with --backend.")


@click.command(cls=ConnectCommand, help=HELP)
@click.argument("workspace_id", required=False)
@setting_options()
@click.option(
    "--mode",
    type=click.Choice(["poll", "push"]),
    default="poll",
    show_default=True,
    help="How messages arrive. poll needs no public address; push is not available yet.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Serve the workspaces in the [[workspace]] tables of a TOML file; SIGHUP reads it again. Other flags apply to "
    "all of them.",
)
@click.option(
    "--state-dir",
    metavar="FOLDER",
    help="Where to keep the journal and received files. [MOLECULE_STATE_DIR; default: ~/.config/molecule/state]",
)
@journal_option(
    "Share the journal with other machines through a database, so that each serves its share of the workspaces "
    "and takes over from the others: postgresql://user@host/database. Needs the extra 'postgres'.",
    implied=True,
)
@PROFILE
@click.option(
    "--save",
    is_flag=True,
    help="Check these settings and save them like 'molecule init', with a copy of the token; then serve. --once, "
    "--create and --unpause are not saved.",
)
@click.option("--dry-run", is_flag=True, help="Check everything that can be checked without a request, and exit.")
@click.option(
    "--log-format",
    type=click.Choice(LOG_FORMATS),
    default="auto",
    show_default=True,
    help="auto is a live view on a terminal, and lines otherwise. All output goes to stderr.",
)
@click.option(
    "--log-level",
    type=click.Choice(LEVELS),
    default="info",
    show_default=True,
    envvar="MOLECULE_LOG_LEVEL",
    show_envvar=True,
    help="The lowest level in the log. debug includes heartbeats.",
)
@click.option(
    "--log-events",
    multiple=True,
    metavar="NAMES",
    envvar="MOLECULE_LOG_EVENTS",
    show_envvar=True,
    help="Only these events, such as answered,dead, or with a minus all but these: -progressed.",
)
@click.option(
    "--log-text",
    type=click.Choice(TEXTS),
    default="full",
    show_default=True,
    envvar="MOLECULE_LOG_TEXT",
    show_envvar=True,
    help="Whether the log contains the texts of messages, their hashes, or none.",
)
@click.option(
    "--http",
    metavar="ADDR:PORT",
    envvar="MOLECULE_HTTP",
    show_envvar=True,
    help="Serve /healthz, /readyz and /metrics there, without a password; :PORT is for this machine only. Needs the "
    "extra 'observe'.",
)
@click.option(
    "--no-workspace-labels",
    is_flag=True,
    help="Add up the metrics of all workspaces, so that their number doesn't grow with the workspaces.",
)
@click.pass_context
def connect(ctx: click.Context, /, **_: Any) -> None:
    from molecule_connect.cli import serving
    from molecule_connect.cli.errors import reported

    options = LogOptions.of(ctx.params["log_level"], ctx.params["log_events"], ctx.params["log_text"])
    # sys.stderr is None in a process that was started without one.
    screen = choose(sys.stderr or io.StringIO(), ctx.params["log_format"], options)
    try:
        with reported(screen.fail):
            serving.run(ctx.params, given_settings(ctx), screen=screen)
    finally:
        screen.close()
