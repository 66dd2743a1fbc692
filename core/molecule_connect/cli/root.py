"""The group ``molecule``. Commands are listed in a table and loaded when they run, so that help starts fast."""

import importlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from molecule_connect import __version__
from molecule_connect.errors import ConfigError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# Name -> the line in help, and where the command is.
BUILT_IN = {
    "connect": ("Serve a workspace: receive its messages, answer them with a backend.", "connect:connect"),
    "init": ("Save the settings of a workspace, so that the other commands need no flags.", "init:init"),
    "backends": ("List the installed backends, or the options of one.", "backends:backends"),
    "try": ("Send one message to a backend, without a platform.", "try_:try_command"),
    "service": ("Keep 'connect' running after a logout, a crash and a reboot.", "service:service"),
    "status": ("Show whether a connector runs and works.", "status:status"),
    "messages": ("List, show, replay or drop the messages in the journal.", "messages:messages"),
    "journal": ("Back up or restore the journal, or hand a workspace to another machine.", "journal:journal"),
    "config": ("Check a list of workspaces, or print its JSON schema.", "config:config"),
    "new-backend": ("Create a distribution for a new backend.", "new_backend:new_backend"),
    "doctor": ("Check whether a workspace can be served.", "doctor:doctor"),
    "completion": ("Print the completion script of a shell.", "completion:completion"),
}

# Commands of first-party plugins. An extra of the same name installs each.
WITH_AN_EXTRA = frozenset({"mcp", "sandbox"})


class MoleculeGroup(click.Group):
    """Shows help without loading any command, and reports errors in two lines."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*BUILT_IN, *_plugin_commands()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in BUILT_IN:
            module, _, attribute = BUILT_IN[cmd_name][1].partition(":")
            command: click.Command = getattr(importlib.import_module(f"molecule_connect.cli.{module}"), attribute)
            return command
        return _load_plugin_command(cmd_name) if cmd_name in _plugin_commands() else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not ctx.resilient_parsing and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            if args[0] in WITH_AN_EXTRA:
                raise _not_installed(args[0])
            raise click.NoSuchCommand(args[0], possibilities=self.list_commands(ctx), ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (line, _) in BUILT_IN.items()])
        if plugins := _plugin_commands():
            with formatter.section("Commands of installed plugins"):
                formatter.write_dl(list(_plugin_help(plugins).items()))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Start here"):
            formatter.write_dl([(command, line) for command, line in _first_steps()])
        formatter.write_paragraph()
        formatter.write_text(f"Docs: {_docs()}")

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list["CompletionItem"]:
        from click.shell_completion import CompletionItem

        lines = {name: line for name, (line, _) in BUILT_IN.items()} | _plugin_help(_plugin_commands())
        names = [CompletionItem(name, help=lines[name]) for name in lines if name.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def invoke(self, ctx: click.Context) -> None:
        from molecule_connect.cli import errors

        try:
            super().invoke(ctx)
        except BrokenPipeError:
            # click would exit with 1.
            errors.discard_output()
            raise click.exceptions.Exit(errors.BROKEN_PIPE) from None

    def main(self, args: Sequence[str] | None = None, **extra: Any) -> None:  # type: ignore[override]
        from molecule_connect.cli import errors
        from molecule_connect.console.encoding import tolerate_encodings

        tolerate_encodings()
        extra["standalone_mode"] = False
        try:
            with errors.reported(errors.fail_on_stderr):
                raise SystemExit(super().main(args, **extra) or 0)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            raise SystemExit(error.exit_code) from None


def _not_installed(name: str) -> ConfigError:
    from molecule_connect.plugins.discovery import how_to_install

    return ConfigError(f"the command {name!r} is not installed", hint=how_to_install(name))


def _plugin_commands() -> dict[str, str]:
    """Name and distribution of each command of a plugin. Built-in commands take precedence."""
    from molecule_connect.plugins.entry_points import COMMANDS, scan_names

    return {name: origin for name, origin in scan_names(COMMANDS).items() if name not in BUILT_IN}


def _plugin_help(commands: dict[str, str]) -> dict[str, str]:
    """The line in help for each of *commands*, by the summary of its distribution if that offers one command only."""
    from molecule_connect.plugins.entry_points import scan_headers

    headers = scan_headers(commands.values())
    summaries = {origin: dict(fields).get("summary", "") for origin, fields in headers.items()}
    origins = list(commands.values())
    return {
        name: (origins.count(origin) == 1 and _one_line(summaries.get(origin, ""))) or f"from {origin}"
        for name, origin in commands.items()
    }


def _one_line(text: str) -> str:
    if text == "UNKNOWN":
        return ""
    from molecule_connect.console.sanitize import one_line

    return one_line(text, 100)


def _first_steps() -> list[tuple[str, str]]:
    has_sandbox = "sandbox" in _plugin_commands()
    sandbox = "chat with a backend on a local platform, without an account"
    return [
        ("molecule sandbox", sandbox if has_sandbox else f'{sandbox}; pip install "molecule-connect[sandbox]" first'),
        ('molecule try mock "hello"', "send one message to a backend"),
        ("molecule init", "save the address, token and backend of your workspace; then run 'molecule connect'"),
    ]


def _docs() -> str:
    """Where the documentation is: the address in our metadata, the folder in a clone, or else its name."""
    from molecule_connect.plugins.entry_points import scan_headers

    fields = scan_headers(["molecule-connect"]).get("molecule-connect", [])
    urls = {
        label.strip().lower(): url.strip()
        for name, value in fields
        if name == "project-url"
        for label, _, url in [value.partition(",")]
    }
    for label in ("documentation", "docs", "repository", "source", "homepage"):
        if urls.get(label):
            return _one_line(urls[label])
    clone = os.path.abspath(f"{__file__}/../../../../docs")  # noqa: PTH100 - pathlib takes time to import
    if os.path.isfile(f"{clone}/quickstart.md"):  # noqa: PTH113
        return f"{clone}/quickstart.md"
    return "docs/quickstart.md in the repository of molecule-connect"


def _load_plugin_command(name: str) -> click.Command:
    from molecule_connect.errors import PluginError
    from molecule_connect.plugins import discovery
    from molecule_connect.plugins.entry_points import COMMANDS

    plugin = discovery.find(COMMANDS, name)
    command = discovery.load(plugin)
    if not isinstance(command, click.Command):
        raise PluginError(
            f"{plugin.label} ({plugin.origin}) is not a click command, but {type(command).__name__}",
            hint="upgrade the distribution, or report it to its author",
        )
    return command


@click.group(
    cls=MoleculeGroup,
    help="Answer the messages of a Molecule workspace with a program on your own machine.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option("--api-url", metavar="URL", help="The address of the platform, like --api-url of a command.")
@click.version_option(__version__, prog_name="molecule-connect")
@click.pass_context
def cli(ctx: click.Context, api_url: str | None) -> None:
    ctx.obj = {"api_url": api_url}
