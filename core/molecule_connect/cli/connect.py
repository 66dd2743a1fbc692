"""``molecule connect``: its flags, and what they ask for."""

import io
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from molecule_connect.config import environment
from molecule_connect.config.settings import (
    DEFAULT_BACKEND,
    MAX_COST,
    MAX_SECONDS,
    MAX_SINCE_SECS,
    PeerBudget,
    parse_size,
)
from molecule_connect.console.select import LOG_FORMATS, choose
from molecule_connect.errors import ConfigError
from molecule_connect.plugins.entry_points import BACKENDS, MIDDLEWARE, scan_names

F = TypeVar("F", bound=Callable[..., Any])

HELP = f"""Serve a workspace: keep it online, fetch its messages, let a backend answer each, send the answers.

It runs until Ctrl-C or SIGTERM, which lets what is running finish; a second one ends at once. WORKSPACE_ID may also
come from the variable {environment.WORKSPACE_VARIABLE}. The token comes from --token, --token-file,
{environment.TOKEN_VARIABLE} or {environment.TOKEN_FILE_VARIABLE}, in this order.

\b
Hand every message to Claude Code, the default backend:
    molecule connect ws_1
Try it without any agent; the mock backend repeats what it hears:
    molecule connect ws_1 --backend mock --backend-opt reply="echo: %s"
Let a program of yours answer, text on stdin, the answer on stdout:
    molecule connect ws_1 --backend exec --backend-opt cmd="python myhandler.py"
Serve all the workspaces that a file lists, and read it again at SIGHUP:
    molecule connect --config fleet.toml
"""


class BoundedFloat(click.FloatRange):
    """A number within bounds; click lets nan pass every bound."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


class PeerBudgetType(click.ParamType[PeerBudget]):
    """``60/600`` (true turns a minute and an hour), or ``0`` for no limit."""

    name = "N/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> PeerBudget:
        try:
            return PeerBudget.parse(str(value))
        except ConfigError as exc:
            self.fail(str(exc), param, ctx)


class SizeType(click.ParamType[int]):
    """Bytes, as ``500M`` or ``1GiB``."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_size(str(value))
        except ConfigError as exc:
            self.fail(str(exc), param, ctx)


class ConnectCommand(click.Command):
    """Names the installed backends under its help; their names are read only then."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        names = scan_names(BACKENDS)
        formatter.write_paragraph()
        formatter.write_text(f"Installed backends: {', '.join(names) or 'none'}. See 'molecule backends NAME'.")
        if DEFAULT_BACKEND not in names:
            formatter.write_text(f"The default, {DEFAULT_BACKEND}, is not installed: choose another with --backend.")


class PluginName(click.ParamType[str]):
    """The name of an installed plugin, for completion; anything is taken, and looked up later."""

    name = "NAME"

    def __init__(self, group: str) -> None:
        self._group = group

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        names = scan_names(self._group).items()
        return [CompletionItem(name, help=origin) for name, origin in names if name.startswith(incomplete)]


def tls_options(command: F) -> F:
    """Adds the options that say whom to trust over https, and which certificate to show."""
    options = (
        click.option(
            "--ca-file",
            type=click.Path(),
            metavar="FILE",
            help="Certificates (PEM) of the CAs to trust in place of the built-in ones. [MOLECULE_CA_FILE]",
        ),
        click.option(
            "--client-cert",
            type=click.Path(),
            metavar="FILE",
            help="The certificate (PEM) to show to a platform that asks for one, with its key. [MOLECULE_CLIENT_CERT]",
        ),
        click.option(
            "--client-key",
            type=click.Path(),
            metavar="FILE",
            help="The key (PEM), where it is not in the file of --client-cert. [MOLECULE_CLIENT_KEY]",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command(
    cls=ConnectCommand,
    short_help="Serve a workspace.",
    help=HELP,
)
@click.argument("workspace_id", required=False)
@click.option("--api-url", metavar="URL", help="The platform. [MOLECULE_API_URL; default: http://localhost:8080]")
@click.option("--org-id", metavar="ID", help="The organisation, on platforms that have several. [MOLECULE_ORG_ID]")
@click.option(
    "--token",
    metavar="TOKEN",
    help="The workspace token. Others on this machine can see it in the list of "
    "processes; --token-file keeps it to yourself.",
)
@click.option(
    "--token-file",
    type=click.Path(),
    metavar="FILE",
    help="A file of one line, readable by you alone, that holds the token.",
)
@click.option(
    "--backend",
    type=PluginName(BACKENDS),
    default=DEFAULT_BACKEND,
    show_default=True,
    help="Who answers; distribution:name where two offer one name.",
)
@click.option(
    "--backend-opt",
    "backend_opts",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the backend; repeatable. See 'molecule backends NAME'.",
)
@click.option(
    "--use",
    "middleware",
    type=PluginName(MIDDLEWARE),
    multiple=True,
    help="A middleware around the backend; repeatable, the first is outermost.",
)
@click.option(
    "--use-opt",
    "middleware_opts",
    multiple=True,
    metavar="NAME.KEY=VALUE",
    help="An option of a middleware; repeatable.",
)
@click.option(
    "--mode",
    type=click.Choice(["poll", "push"]),
    default="poll",
    show_default=True,
    help="How messages come: poll needs no public address; push is still coming.",
)
@click.option(
    "--interval-ms",
    type=click.IntRange(1, MAX_SECONDS * 1000),
    metavar="MS",
    help="Poll exactly this often. [default: 1 s after traffic, easing to 5 s]",
)
@click.option(
    "--since-secs",
    type=click.IntRange(0, MAX_SINCE_SECS),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="How far a first start looks back; 0: only what comes from now on; at most 30 days.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    metavar="N",
    help="Messages answered at a time. Each conversation is answered in order.",
)
@click.option(
    "--grace",
    type=BoundedFloat(min=0, max=MAX_SECONDS),
    default=20,
    show_default=True,
    metavar="SECONDS",
    help="How long what is running may take to finish at a stop.",
)
@click.option(
    "--peer-budget",
    type=PeerBudgetType(),
    default="60/600",
    show_default=True,
    help="Turns that one peer may have with us in a minute and in an hour; 0: no limit.",
)
@click.option(
    "--max-cost-per-day",
    type=BoundedFloat(min=0, min_open=True, max=MAX_COST),
    metavar="USD",
    help="Messages wait for the next day (UTC) when the backend says that this much is spent. One peer may spend half "
    "of it, peers together three quarters. Default: no limit.",
)
@click.option(
    "--journal-quota",
    type=SizeType(),
    metavar="SIZE",
    help="How large the journal may grow, such as 500M or 2GiB. At that size old texts of whoever fills it most are "
    "deleted. [MOLECULE_JOURNAL_QUOTA; default: 1GiB]",
)
@click.option(
    "--state-dir",
    metavar="FOLDER",
    help="Where to keep what is known of messages. [MOLECULE_STATE_DIR; default: ~/.config/molecule/state]",
)
@click.option("--agent-name", metavar="NAME", help="Name to register with, in place of the one the platform shows.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Serve the workspaces that a TOML file lists in [[workspace]] blocks; SIGHUP reads it again. The flags "
    "that are given hold for all of them.",
)
@tls_options
@click.option("--once", is_flag=True, help="Answer what is waiting, then exit.")
@click.option("--unpause", is_flag=True, help="Register even if the workspace is paused, which resumes it.")
@click.option(
    "--create",
    is_flag=True,
    help="Register the workspace even if the platform says that it has none with this id, which makes one. "
    "[MOLECULE_CREATE]",
)
@click.option("--insecure", is_flag=True, help="Allow plain http to another machine; it can be listened to.")
@click.option("--dry-run", is_flag=True, help="Check everything that can be checked without a request, and exit.")
@click.option(
    "--strict",
    is_flag=True,
    help="Refuse what is otherwise a warning: unknown options, and a state folder that others could replace. Refuse a "
    "list with any block that can't be served.",
)
@click.option(
    "--log-format",
    type=click.Choice(LOG_FORMATS),
    default="auto",
    show_default=True,
    help="auto: a live view on a terminal, else lines. All of it goes to stderr.",
)
@click.pass_context
def connect(ctx: click.Context, /, **flags: Any) -> None:
    from molecule_connect.cli import serving
    from molecule_connect.cli.errors import reported

    # Python has no sys.stderr in a process that was started without one.
    screen = choose(sys.stderr or io.StringIO(), flags["log_format"])
    try:
        with reported(screen.fail):
            group = ctx.obj if isinstance(ctx.obj, dict) else {}
            given = {name for name in flags if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
            if flags["api_url"] is None and group.get("api_url") is not None:
                flags["api_url"] = group["api_url"]
                given.add("api_url")
            serving.run(flags, frozenset(given), screen=screen)
    finally:
        screen.close()
