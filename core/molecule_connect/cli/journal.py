"""``molecule journal``: back up and restore the journal, and hand workspaces to another machine."""

import datetime
import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from molecule_connect.cli.options import JSON, PROFILE, STATE_DIR, canonical, new_place_of, place_of
from molecule_connect.console.sanitize import count

if TYPE_CHECKING:
    from molecule_connect.journal.copies import JournalInfo
    from molecule_connect.worker.handover import Handover

FILE = click.Path(path_type=Path, dir_okay=False)


@click.group
def journal() -> None:
    """Back up and restore the journal, or hand a workspace to another machine.

    \b
    molecule journal status
    molecule journal backup journal.backup
    molecule journal export ws_1 ws_1.tar.gz
    molecule journal import ws_1.tar.gz
    """


@journal.command(short_help="Show the journal's file, schema and workspaces.")
@JSON
@STATE_DIR
@PROFILE
def status(as_json: bool, state_dir: str | None, profile: str | None) -> None:
    """Show where the journal is, its size and schema, and the workspaces in it."""
    import json

    from molecule_connect.journal.copies import describe

    info = describe(_journal(place_of(state_dir, profile)[0]))
    if as_json:
        click.echo(json.dumps(_values(info)))
        return
    click.echo(f"{info.path}: {_size(info.size)}, schema {info.schema}{_schema_note(info)}")
    for one in info.workspaces:
        click.echo(f"  {one.workspace_id}: {count(one.messages, 'message')}, {one.unfinished} unfinished")
        if one.export:
            click.echo(
                f"    exported to {one.export.target} on {_moment(one.export.time)}: it can't be served from here"
            )


@journal.command(short_help="Copy the journal to a file, also while a connector runs.")
@click.argument("file", type=FILE, required=False)
@STATE_DIR
@PROFILE
def backup(file: Path | None, state_dir: str | None, profile: str | None) -> None:
    """Write a consistent copy of the journal to FILE, which must not exist. Connectors may run meanwhile.

    The default is journal-DATE-TIME.backup in the state folder. The copy contains the texts of messages, and only you
    can read it. It doesn't contain received files and tokens: copy the state folder for those.
    """
    from molecule_connect.journal.copies import back_up

    folder, _ = place_of(state_dir, profile)
    target = file or folder / f"journal-{_stamp()}.backup"
    back_up(_journal(folder), target)
    click.echo(f"wrote {target} ({_size(target.stat().st_size)})")


@journal.command(short_help="Replace the journal by a backup.")
@click.argument("file", type=FILE)
@click.option("--yes", "-y", is_flag=True, help="Don't ask for confirmation.")
@STATE_DIR
@PROFILE
def restore(file: Path, yes: bool, state_dir: str | None, profile: str | None) -> None:
    """Replace the journal by the backup FILE. Stop all connectors that use the state folder first.

    Messages that were answered after the backup was made are answered again. The replaced journal is kept beside
    the new one.
    """
    from molecule_connect.journal.copies import restore as restore_journal
    from molecule_connect.journal.journal import FILE_NAME
    from molecule_connect.worker.lease import lease

    folder = new_place_of(state_dir, profile)
    path, aside = folder / FILE_NAME, folder / f"{FILE_NAME}.replaced-{_stamp()}"
    with ExitStack() as stack:
        for lock in sorted(folder.glob("*.lock")):
            stack.enter_context(lease(folder, lock.stem))
        if path.exists() and not yes:
            click.confirm(
                "Messages that were answered after the backup was made will be answered again. Replace the journal?",
                abort=True,
                err=True,
            )
        restore_journal(file, path, aside)
    click.echo(f"restored {path}" + (f"; the earlier one is {aside}" if aside.exists() else ""))


@journal.command("export", short_help="Write a workspace to an archive, to serve it from another machine.")
@click.argument("workspace_id", callback=canonical)
@click.argument("archive", type=FILE, required=False)
@STATE_DIR
@PROFILE
def export_command(workspace_id: str, archive: Path | None, state_dir: str | None, profile: str | None) -> None:
    """Write everything that the state folder has of WORKSPACE_ID to ARCHIVE, which must not exist.

    Stop the connector that serves it first. Afterwards the workspace can't be served from here, so that no message is
    answered twice: import the archive on the other machine, or here to undo the export. The default is
    WORKSPACE_ID.tar.gz in the current folder. It contains messages, received files and the token of a registration;
    only you can read it.
    """
    from molecule_connect.worker.handover import export_workspace

    target = (archive or Path(f"{workspace_id}.tar.gz")).absolute()
    folder, _ = place_of(state_dir, profile, workspace_id)
    found = export_workspace(folder, workspace_id, target)
    click.echo(f"wrote {target} ({_size(target.stat().st_size)}, {count(found.files, 'file')})")
    if found.has_token:
        click.echo("It contains the workspace's token: remove it when it is imported.")
    click.echo(f"On the other machine: molecule journal import {target.name}")


@journal.command("import", short_help="Add the workspace in an archive to the state folder.")
@click.argument("archive", type=FILE)
@STATE_DIR
@PROFILE
def import_command(archive: Path, state_dir: str | None, profile: str | None) -> None:
    """Add the workspace in ARCHIVE, which 'molecule journal export' wrote, to the state folder.

    Other workspaces can be served meanwhile. Import an archive once: a workspace that is served from two machines
    answers messages twice.
    """
    from molecule_connect.worker.handover import import_workspace

    folder = new_place_of(state_dir, profile)
    _done("imported", import_workspace(folder, archive), folder)


@journal.command(short_help="Move a workspace to another state folder on this machine.")
@click.argument("workspace_id", callback=canonical)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@STATE_DIR
@PROFILE
def move(workspace_id: str, folder: Path, state_dir: str | None, profile: str | None) -> None:
    """Move everything that the state folder has of WORKSPACE_ID to the state folder FOLDER.

    Stop the connector that serves it first. To move it to another machine, use 'molecule journal export' and 'import'.
    """
    from molecule_connect.config.state_dir import resolve_state_dir
    from molecule_connect.worker.handover import move_workspace

    target = resolve_state_dir(folder, os.environ)
    source, _ = place_of(state_dir, profile, workspace_id)
    _done("moved", move_workspace(source, workspace_id, target), target)


def _done(verb: str, found: "Handover", folder: Path) -> None:
    click.echo(f"{verb} {found.workspace_id} to {folder} ({count(found.files, 'file')})")
    click.echo(f"Serve it: molecule connect {found.workspace_id} --state-dir {folder}")


def _journal(folder: Path) -> Path:
    from molecule_connect.errors import ConfigError
    from molecule_connect.journal.journal import FILE_NAME

    path = folder / FILE_NAME
    if not path.exists():
        raise ConfigError(
            f"there is no journal in {folder}: no connector has used this folder",
            hint="pass the state folder that 'molecule connect' prints at its start with --state-dir",
        )
    return path


def _values(info: "JournalInfo") -> dict[str, object]:
    return {
        "path": str(info.path),
        "bytes": info.size,
        "schema": info.schema,
        "workspaces": [
            {
                "id": one.workspace_id,
                "messages": one.messages,
                "unfinished": one.unfinished,
                "exported_to": one.export.target if one.export else None,
                "exported_at": _moment(one.export.time) if one.export else None,
            }
            for one in info.workspaces
        ],
    }


def _schema_note(info: "JournalInfo") -> str:
    return "" if info.is_current else ", which is upgraded at the next start"


def _moment(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def _stamp() -> str:
    return time.strftime("%Y%m%d-%H%M%S")


def _size(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
