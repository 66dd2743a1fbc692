"""Shell completion of ``--backend-opt``: the keys of the backend's options."""

import contextlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


def complete_option_keys(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> "list[CompletionItem[str] | str]":
    """A click callback: ``KEY=`` for each option of the backend that the line, a variable or the saved settings name.

    Imports that backend and no other plugin. Without one that works, nothing is offered; errors are silent.
    """
    if "=" in incomplete:
        return []
    # A backend may print while it is imported, or exit.
    with (
        contextlib.suppress(Exception, SystemExit),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        return [item for item in _keys(_backend(ctx, os.environ)) if item.value.startswith(incomplete)]
    return []


def _keys(backend: str) -> "Iterator[CompletionItem[str]]":
    from click.shell_completion import CompletionItem

    from molecule_connect.console.sanitize import one_line
    from molecule_connect.plugins import discovery
    from molecule_connect.plugins.entry_points import BACKENDS
    from molecule_connect.plugins.options import describe

    for field in describe(discovery.load(discovery.find(BACKENDS, backend))) or ():
        yield CompletionItem(f"{field.key}=", help=one_line(field.help, 100) or None)


def _backend(ctx: click.Context, environ: Mapping[str, str]) -> str:
    """The backend that the command would use."""
    if any(isinstance(param, click.Argument) and param.name == "name" for param in ctx.command.params):
        # The parser stops at the incomplete option, before it assigns arguments.
        return str(ctx.params.get("name") or next(iter(ctx.args), ""))
    words = environ.get("COMP_WORDS", "")
    return str(ctx.params.get("backend") or _named(words) or _saved(ctx.params, environ))


def _named(line: str) -> str:
    """The value of ``--backend`` in a command line, also behind the cursor."""
    from click.shell_completion import split_arg_string

    words: Sequence[str] = split_arg_string(line)
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "--backend" or word.startswith("--backend="):
            return word.partition("=")[2] or following
    return ""


def _saved(params: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    from molecule_connect.config.load import read_variables
    from molecule_connect.config.saved import find_saved
    from molecule_connect.config.settings import DEFAULT_BACKEND

    if (backend := read_variables(environ, single=True).get("backend")) is not None:
        return str(backend)
    saved = find_saved(params.get("profile"), environ, workspace_id=params.get("workspace_id"))
    return str((saved.values if saved else {}).get("backend", DEFAULT_BACKEND))
