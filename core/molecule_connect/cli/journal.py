"""``molecule journal``: back up and restore the journal, hand workspaces over, and look after a shared database."""

import datetime
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from molecule_connect.cli.options import (
    JOURNAL_CONFIG,
    JSON,
    PROFILE,
    STATE_DIR,
    canonical,
    journal_option,
    new_place_of,
    place_of,
)
from molecule_connect.console.sanitize import count

if TYPE_CHECKING:
    from molecule_connect.journal.copies import JournalInfo
    from molecule_connect.mirrors import JournalMirror, MirrorInfo
    from molecule_connect.worker.handover import Handover

FILE = click.Path(path_type=Path, dir_okay=False)
DATABASE = journal_option("The database through which machines share workspaces, as for 'connect'.", implied=True)
# The tables of the database have to be created or migrated.
NOT_CURRENT = 1


@click.group
def journal() -> None:
    """Back up and restore the journal, hand a workspace to another machine, or share it through a database.

    \b
    molecule journal status
    molecule journal backup journal.backup
    molecule journal export ws_1 ws_1.tar.gz
    molecule journal import ws_1.tar.gz
    molecule journal init --journal postgresql://user@host/database
    """


@journal.command(short_help="Show the journal's file, schema and workspaces.")
@journal_option("Show the database through which machines share workspaces instead.")
@JOURNAL_CONFIG
@JSON
@STATE_DIR
@PROFILE
@click.pass_context
def status(
    ctx: click.Context,
    journal_url: str | None,
    config: Path | None,
    as_json: bool,
    state_dir: str | None,
    profile: str | None,
) -> None:
    """Show where the journal is, its size and schema, and the workspaces in it.

    With --journal or --config, it shows the shared database and its tables. The exit code is 1 if they have to be
    created or migrated.
    """
    import json

    from molecule_connect.journal.copies import describe

    if journal_url or config:
        ctx.exit(_show_database(journal_url, config, as_json=as_json))
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


@journal.command(short_help="Create the tables in a database, through which machines share workspaces.")
@DATABASE
@JOURNAL_CONFIG
@JSON
def init(journal_url: str | None, config: Path | None, as_json: bool) -> None:
    """Create the tables in the database, in a schema of their own. If they exist, nothing is changed.

    \b
    molecule journal init --journal postgresql://molecule@db.example/molecule
    """
    from molecule_connect.cli.shared import MIGRATE
    from molecule_connect.errors import ConfigError

    def check(info: "MirrorInfo") -> None:
        if 0 < info.schema < info.current:
            raise ConfigError(f"{info.where} has tables of version {info.schema} already", hint=MIGRATE)

    _install(journal_url, config, check, as_json=as_json)


@journal.command(short_help="Upgrade the tables in the database to this release.")
@DATABASE
@JOURNAL_CONFIG
@JSON
def migrate(journal_url: str | None, config: Path | None, as_json: bool) -> None:
    """Upgrade the tables in the database to the version that this release needs.

    Connectors continue meanwhile; those of the previous release, too, unless it says otherwise.
    """
    from molecule_connect.cli.shared import INIT
    from molecule_connect.errors import ConfigError

    def check(info: "MirrorInfo") -> None:
        if not info.schema:
            raise ConfigError(f"{info.where} has no tables of molecule-connect", hint=INIT)

    _install(journal_url, config, check, as_json=as_json)


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


def _install(
    journal_url: str | None, config: Path | None, check: "Callable[[MirrorInfo], None]", *, as_json: bool
) -> None:
    """Create or migrate the tables, unless *check* raises an error."""
    import json

    from molecule_connect.cli.shared import find_url, use_mirror

    async def run(mirror: "JournalMirror") -> "tuple[Sequence[str], MirrorInfo]":
        check(await mirror.describe())
        return await mirror.install(), await mirror.describe()

    done, info = use_mirror(find_url(journal_url, config), run)
    if as_json:
        click.echo(json.dumps({**_database_values(info), "done": list(done)}))
        return
    for line in done:
        click.echo(f"{info.where}: {line}")
    if not done:
        click.echo(f"{info.where}: nothing to do; the tables are of version {info.schema}")


def _show_database(journal_url: str | None, config: Path | None, *, as_json: bool) -> int:
    """Show the shared database. Returns the exit code."""
    import json

    from molecule_connect.cli.shared import fault_of, find_url, use_mirror

    info = use_mirror(find_url(journal_url, config), lambda mirror: mirror.describe())
    fault, hint = fault_of(info)
    if as_json:
        click.echo(json.dumps(_database_values(info)))
    else:
        state = f"tables of version {info.schema}, {count(info.workspaces, 'workspace')}, {_size(info.size)}"
        click.echo(f"{info.where}: {info.server}, {f'{fault} -> {hint}' if fault else state}")
    return NOT_CURRENT if fault else 0


def _database_values(info: "MirrorInfo") -> dict[str, object]:
    return {
        "database": info.where,
        "server": info.server,
        "bytes": info.size,
        "schema": info.schema,
        "current_schema": info.current,
        "workspaces": info.workspaces,
    }


@journal.command(short_help="Serve a workspace, which machines share, from this machine alone again.")
@click.argument("workspace_id", callback=canonical)
@DATABASE
@JOURNAL_CONFIG
@STATE_DIR
@PROFILE
def leave(
    workspace_id: str, journal_url: str | None, config: Path | None, state_dir: str | None, profile: str | None
) -> None:
    """Load WORKSPACE_ID into the journal of this machine, and remove it from the database.

    First remove it from the lists of all machines, so that none serves it. An interrupted command can be repeated.

    \b
    molecule journal leave ws_1 --journal postgresql://molecule@db.example/molecule
    """
    from molecule_connect.cli.shared import find_url, use_mirror
    from molecule_connect.worker.leaving import leave as leave_database

    def notice(text: str, hint: str) -> None:
        click.echo(f"{text} -> {hint}", err=True)

    url, folder = find_url(journal_url, config), new_place_of(state_dir, profile)
    left = use_mirror(url, lambda mirror: leave_database(folder, workspace_id, mirror, notice=notice))
    click.echo(f"{workspace_id} is served from {folder} alone{' from now on' if left else ' already'}")
    click.echo(f"Serve it: molecule connect {workspace_id} --state-dir {folder}")


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
