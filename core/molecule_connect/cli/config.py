"""``molecule config``: check a list of workspaces, and its schema for editors."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from molecule_connect.cli.options import JSON, STATE_DIR
from molecule_connect.console.sanitize import count

if TYPE_CHECKING:
    from molecule_connect.config.load import WorkspaceList
    from molecule_connect.config.workspaces import Block, Fault


@click.group
def config() -> None:
    """Check a list of workspaces, the file of 'molecule connect --config', or print its schema for editors.

    \b
    molecule config check fleet.toml
    molecule config schema > molecule.schema.json
    """


@config.command(short_help="Check a list of workspaces, and show each error with its line.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--no-secrets", is_flag=True, help="Don't read the tokens, for a check on another machine.")
@JSON
@STATE_DIR
@click.pass_context
def check(ctx: click.Context, file: Path, no_secrets: bool, as_json: bool, state_dir: str | None) -> None:
    """Check FILE and the files that it includes, also the workspaces that aren't enabled. Makes no request.

    Backends are imported, and their options checked, but not started: 'molecule connect --config FILE --dry-run'
    asks each whether it is ready. The exit code is 0 without errors, and 2 otherwise.

    \b
    molecule config check fleet.toml
    molecule config check fleet.toml --no-secrets --json | jq '.errors[].line'
    """
    from molecule_connect.app import check_blocks
    from molecule_connect.config.load import parse_file
    from molecule_connect.config.state_dir import preview_state_dir
    from molecule_connect.config.workspaces import Fault, WorkspacesError

    blocks: list[Block] = []
    try:
        found = parse_file(file, os.environ)
        folder = preview_state_dir(state_dir, os.environ, saved=found.own_state_dir)
        found = parse_file(file, os.environ, state_dir=folder)
        blocks = check_blocks(found, secrets=not no_secrets, options=True)
        errors = list(_errors(found, blocks))
    except WorkspacesError as exc:
        errors = [(exc.source, Fault(text, line=line), "") for text, line in zip(exc.faults, exc.lines, strict=True)]
    blocks = [block for block in blocks if not block.is_file]
    disabled = sum(not block.is_enabled for block in blocks)
    faulty = sum(bool(block.faults) for block in blocks)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "file": str(file),
                    "workspaces": len(blocks),
                    "disabled": disabled,
                    "errors": [
                        {"file": where, "line": fault.line, "workspace": label, "text": fault.text, "hint": fault.hint}
                        for where, fault, label in errors
                    ],
                }
            )
        )
    else:
        for where, fault, label in errors:
            place = f"{where}:{fault.line}" if fault.line else where
            click.echo(f"{place}: {label}{': ' if label else ''}{fault}", err=True)
        of = count(len(blocks), "workspace") + (f", {disabled} of them not enabled" if disabled else "")
        served = f", {faulty} of {of} can't be served" if faulty else ""
        summary = f"{count(len(errors), 'error')}{served}" if errors else f"no errors in {of}"
        click.echo(f"{file}: {summary}", err=bool(errors))
    ctx.exit(2 if errors else 0)


@config.command
def schema() -> None:
    """Print the JSON schema of a list of workspaces.

    Editors use it to complete and check keys. With the Even Better TOML extension or taplo, the first line of the list
    names it:

    \b
    #:schema ./molecule.schema.json
    """
    from molecule_connect.config.json_schema import list_schema

    click.echo(json.dumps(list_schema(), indent=2))


def _errors(found: "WorkspaceList", blocks: "list[Block]") -> "Iterator[tuple[str, Fault, str]]":
    """All errors, each with its file and the label of its block."""
    from molecule_connect.config.workspaces import Fault
    from molecule_connect.errors import MoleculeError
    from molecule_connect.plugins.mirrors import create_mirror

    main = Path(found.source)
    for fault in found.faults:
        yield found.source, fault, ""
    if found.journal.url:
        try:
            create_mirror(found.journal.url)
        except MoleculeError as exc:
            yield found.source, Fault(f"[journal]: {exc}", exc.hint), ""
    for block in blocks:
        where = str(main.parent / block.file) if block.file else found.source
        label = "" if block.is_file else block.refused.label
        for fault in sorted(block.faults, key=lambda fault: fault.line or 0):
            yield where, fault, label
