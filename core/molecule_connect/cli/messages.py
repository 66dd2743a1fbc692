"""``molecule messages``: what the journal keeps, and what can be done about dead letters."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from molecule_connect.cli.options import JSON, STATE_DIR, canonical, state_dir_of
from molecule_connect.console.sanitize import count

if TYPE_CHECKING:
    from molecule_connect.journal.inspect import Inspection, Key, MessageSummary
    from molecule_connect.journal.models import State

STATES = ("received", "running", "answered", "held", "done", "dead")
WORKSPACE = click.option(
    "--workspace", metavar="ID", callback=canonical, help="Where row ids of two workspaces are alike: which one."
)
YES = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
# So many are told one by one before a question; of the others, how many.
_TOLD = 20


@click.group(short_help="List, show, replay or drop the messages in the journal.")
def messages() -> None:
    """What the journal knows of every message: where it stands, how often it was tried, and why it was given up.

    All of it works while the connector runs, which takes up what was replayed within a second. A message is named by
    its row id, of which the beginning is enough.

    \b
    molecule messages list --state dead
    molecule messages show 3f2a9c1d
    molecule messages replay 3f2a9c1d

    It exits with 0, or with 2 when there is no such message or no journal.
    """


@messages.command("list", short_help="List messages, those that came last first.")
@click.argument("workspace_id", required=False, callback=canonical)
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([*STATES, "open"]),
    help="Only in this state; repeatable. open: all that are neither done nor dead.",
)
@click.option(
    "--limit", type=click.IntRange(min=0), default=20, show_default=True, metavar="N", help="At most so many; 0: all."
)
@JSON
@STATE_DIR
def list_command(
    workspace_id: str | None, states: tuple[str, ...], limit: int, as_json: bool, state_dir: str | None
) -> None:
    """List messages, those that came last first: of WORKSPACE_ID, or of every workspace in the journal.

    \b
    molecule messages list
    molecule messages list ws_1 --state dead --state received
    molecule messages list --limit 0 --json | jq '.messages[].reason'
    """
    from molecule_connect.cli import message_format
    from molecule_connect.journal.inspect import Inspection

    folder, wanted = state_dir_of(state_dir), _states(states)
    with Inspection.open(folder) as journal:
        if workspace_id is not None:
            _check_known(workspace_id, journal.workspaces())
        found = journal.summaries(workspace_id, wanted, limit=limit or None)
        total = journal.total(workspace_id, wanted)
        if as_json:
            click.echo(message_format.list_json(found, total))
            return
        names = journal.workspaces() if workspace_id is None else []
        ids = journal.short_ids(one.key for one in found)
    for line in message_format.table(found, ids, now=time.time(), with_workspace=len(names) > 1):
        click.echo(line)
    if len(found) < total:
        click.echo(f"{len(found):,} of {count(total, 'message')}; --limit 0 lists all", err=True)
    elif not found:
        click.echo("no messages", err=True)


@messages.command("show", short_help="Show all that is known of one message.")
@click.argument("row_id")
@click.option("--raw", is_flag=True, help="Only the message as the platform gave it: JSON.")
@JSON
@WORKSPACE
@STATE_DIR
def show(row_id: str, raw: bool, as_json: bool, workspace: str | None, state_dir: str | None) -> None:
    """Show all that is known of one message: its text, tries, errors and answer.

    \b
    molecule messages show 3f2a9c1d
    molecule messages show 3f2a9c1d --raw | jq .
    """
    from molecule_connect.cli import message_format
    from molecule_connect.errors import ConfigError
    from molecule_connect.journal.inspect import Inspection

    with Inspection.open(state_dir_of(state_dir)) as journal:
        message = journal.message(journal.find(row_id, workspace))
    if raw:
        if message.raw is None:
            raise ConfigError(f"its text was deleted{message_format.why_deleted(message)}")
        click.echo(message_format.raw_text(message.raw) if sys.stdout.isatty() else message.raw)
    elif as_json:
        click.echo(message_format.message_json(message))
    else:
        click.echo("\n".join(message_format.details(message, now=time.time())))


@messages.command("replay", short_help="Take dead letters up again, and what was put off.")
@click.argument("row_ids", nargs=-1, metavar="[ROW_ID]...")
@click.option("--all-dead", is_flag=True, help="Every dead letter that can be replayed.")
@click.option("--reason", metavar="TEXT", help="With --all-dead: only those whose reason begins with TEXT.")
@YES
@WORKSPACE
@STATE_DIR
def replay(
    row_ids: tuple[str, ...],
    all_dead: bool,
    reason: str | None,
    yes: bool,
    workspace: str | None,
    state_dir: str | None,
) -> None:
    """Take dead letters up again: each goes to the end of its conversation, and has all its tries before it.

    An answer that was stored and could not be sent is sent again; without one the backend runs again. A message that
    was put off, for a usage limit or the day's budget say, is tried at once. On a terminal it asks before it changes
    anything.

    \b
    molecule messages replay 3f2a9c1d 77aa01bc
    molecule messages replay --all-dead --reason loop --yes
    """
    from molecule_connect.cli import message_format
    from molecule_connect.journal import inspect

    if all_dead == bool(row_ids):
        raise click.UsageError("name row ids, or pass --all-dead; one of the two")
    if reason is not None and not all_dead:
        raise click.UsageError("--reason goes with --all-dead")
    folder = state_dir_of(state_dir)
    with inspect.Inspection.open(folder) as journal:
        named = _chosen(journal, row_ids, workspace, _replayable)
        chosen = journal.dead(workspace, reason or "") if all_dead else named
    if not chosen:
        click.echo("no dead letter fits; nothing to do")
        return
    inboxes = {name for name in {message.workspace_id for message in chosen} if _is_inbox(folder, name)}
    effects = [message_format.effect_of_replay(one, is_inbox=one.workspace_id in inboxes) for one in chosen]
    if _may(chosen, effects, "Replay", yes):
        changed = inspect.replay(folder, [message.key for message in chosen], time.time())
        _tell(folder, chosen, changed, "replayed", takes_up=True)


@messages.command("drop", short_help="Be done with dead letters.")
@click.argument("row_ids", nargs=-1, required=True, metavar="ROW_ID...")
@YES
@WORKSPACE
@STATE_DIR
def drop(row_ids: tuple[str, ...], yes: bool, workspace: str | None, state_dir: str | None) -> None:
    """Be done with dead letters: nothing more comes of them, and their text is deleted after a day.

    \b
    molecule messages drop 3f2a9c1d
    """
    from molecule_connect.journal import inspect

    folder = state_dir_of(state_dir)
    with inspect.Inspection.open(folder) as journal:
        chosen = _chosen(journal, row_ids, workspace, _droppable)
    if _may(chosen, ["it stays unanswered"] * len(chosen), "Drop", yes):
        changed = inspect.drop(folder, [message.key for message in chosen], time.time())
        _tell(folder, chosen, changed, "dropped", takes_up=False)


def _states(names: Sequence[str]) -> "list[State]":
    from molecule_connect.journal.inspect import OPEN
    from molecule_connect.journal.models import State

    chosen = {state for name in names for state in (OPEN if name == "open" else (State(name),))}
    return sorted(chosen)


def _check_known(workspace_id: str, names: Sequence[str]) -> None:
    from molecule_connect.errors import ConfigError
    from molecule_connect.models import canonical_id

    if workspace_id not in map(canonical_id, names):
        known = f"it knows {', '.join(names)}" if names else "it is empty"
        raise ConfigError(f"the journal knows nothing of {workspace_id!r}", hint=known)


def _replayable(message: "MessageSummary") -> None:
    """ConfigError for what cannot be replayed: it is neither dead nor put off, or no message."""
    from molecule_connect.errors import ConfigError
    from molecule_connect.journal.models import State

    if message.state is not State.DEAD and not message.is_deferred(time.time()):
        raise ConfigError(
            f"{message.row_id} is {message.state.value}: only what is dead, or waits for its next try, can be replayed",
            hint="'molecule messages list' shows how each stands, and when it is tried again",
        )
    if not message.is_readable:
        raise ConfigError(
            f"{message.row_id} cannot be replayed: {message.reason}",
            hint=f"'molecule messages show {message.row_id} --raw' shows what came; 'drop' is done with it",
        )
    if not message.has_text:
        raise ConfigError(
            f"{message.row_id} cannot be replayed: its text was deleted to make room in the journal",
            hint="ask its sender to send it again; 'molecule messages drop' removes it from the list",
        )


def _droppable(message: "MessageSummary") -> None:
    """ConfigError for what is not dead."""
    from molecule_connect.errors import ConfigError
    from molecule_connect.journal.models import State

    if message.state is not State.DEAD:
        raise ConfigError(
            f"{message.row_id} is {message.state.value}: only dead letters can be dropped",
            hint="'molecule messages list --state dead' shows those",
        )


def _chosen(
    journal: "Inspection", row_ids: Sequence[str], workspace: str | None, check: "Callable[[MessageSummary], None]"
) -> "list[MessageSummary]":
    """The messages that are named, each once.

    Raises:
        ConfigError: One of them is not there, or *check* refuses it; nothing was changed.
    """
    chosen: dict[Key, MessageSummary] = {}
    for row_id in row_ids:
        message = journal.summary(journal.find(row_id, workspace))
        check(message)
        chosen[message.key] = message
    return list(chosen.values())


def _may(chosen: "Sequence[MessageSummary]", effects: Sequence[str], verb: str, yes: bool) -> bool:
    """Say what is about to happen; on a terminal, ask."""
    from molecule_connect.cli import message_format

    for message, effect in list(zip(chosen, effects, strict=True))[:_TOLD]:
        click.echo(f"{message_format.name(message)}: {effect}")
    if len(chosen) > _TOLD:
        click.echo(f"and {len(chosen) - _TOLD:,} more")
    if yes or not sys.stdin.isatty() or click.confirm(f"{verb} {count(len(chosen), 'message')}?"):
        return True
    click.echo("nothing was changed")
    return False


def _is_inbox(folder: Path, workspace_id: str) -> bool:
    from molecule_connect.worker.status_file import read_status

    status = read_status(folder, workspace_id)
    return status is not None and status.inbox


def _tell(
    folder: Path, chosen: "Sequence[MessageSummary]", changed: "Sequence[Key]", verb: str, *, takes_up: bool
) -> None:
    from molecule_connect.worker.lease import holder

    click.echo(f"{verb} {count(len(changed), 'message')}")
    if len(changed) < len(chosen):
        click.echo(f"{count(len(chosen) - len(changed), 'message')} changed meanwhile and stayed as it was")
    for workspace_id in sorted({key.workspace_id for key in changed}) if takes_up else []:
        if holder(folder, workspace_id):
            click.echo(f"{workspace_id}: the connector that runs takes it up within a second")
        else:
            click.echo(
                f"{workspace_id}: no connector runs; it begins when 'molecule connect {workspace_id}' is started"
            )
