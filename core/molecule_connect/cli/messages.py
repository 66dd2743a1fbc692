"""``molecule messages``: show the messages in the journal, and replay or drop dead letters."""

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from molecule_connect.cli.options import JOURNAL_CONFIG, JSON, PROFILE, STATE_DIR, canonical, journal_option, place_of
from molecule_connect.console.sanitize import count, failure

if TYPE_CHECKING:
    from molecule_connect.cli.message_format import Table
    from molecule_connect.cli.message_query import Entry, Query
    from molecule_connect.errors import ConfigError
    from molecule_connect.journal.inspect import Inspection, Key, MessageSummary
    from molecule_connect.journal.models import State

STATES = ("received", "running", "answered", "held", "done", "dead")
WORKSPACE = click.option(
    "--workspace", metavar="ID", callback=canonical, help="The workspace, if two have messages with the same row id."
)
YES = click.option("--yes", "-y", is_flag=True, help="Don't ask for confirmation.")
SHARED = journal_option("Read the copies of the database through which machines share workspaces, on any machine.")
ELSEWHERE = journal_option(
    "Show on which machine to run this command instead: messages can't be changed through the database."
)
# Workspaces that a hint names.
_MOST_NAMED = 3
# Messages listed before a confirmation; for the others, only their number is shown.
_MAX_LISTED = 20
# Seconds between looks for changes.
_POLL_INTERVAL = 0.25
# A century, in seconds.
_LONGEST_SINCE = 100 * 366 * 86400


@click.group
def messages() -> None:
    """Show the state, attempts and errors of the messages in the journal, and replay or drop dead letters.

    All commands work while the connector runs; it processes replayed messages within a second. Messages are named by
    their row id, or a unique prefix of it.

    \b
    molecule messages list --state dead
    molecule messages show 3f2a9c1d
    molecule messages replay 3f2a9c1d

    The exit code is 2 if there is no such message or no journal.
    """


def _since(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """A click callback: the time that was *value* ago, in seconds since 1970."""
    from molecule_connect.plugins.option_types import seconds

    if value is None:
        return None
    if (length := seconds(value.strip())) is None or length > _LONGEST_SINCE:
        raise click.BadParameter(f"{value!r} is not a duration such as 90s, 30m, 2h or 1d12h", ctx, param)
    return time.time() - length


@messages.command("list", short_help="List messages with their answers, newest last; --follow waits for more.")
@click.argument("workspace_id", required=False, callback=canonical)
@click.option("--follow", "-f", is_flag=True, help="Then print new messages and changes of state, until Ctrl-C.")
@click.option(
    "--from",
    "sender",
    metavar="people|peer:ID|NAME",
    default="",
    help="Only messages from people, or from one peer, by its id (or the beginning of it) or its name.",
)
@click.option(
    "--since", callback=_since, metavar="DURATION", help="Only messages of the last 90s, 30m, 2h, 1d12h or the like."
)
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([*STATES, "open"]),
    help="Only messages in this state; open means neither done nor dead. Repeatable.",
)
@click.option(
    "--search", metavar="TEXT", default="", help="Only messages whose text, files, answer or error contain TEXT."
)
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    metavar="N",
    help="The maximum number of messages, the newest ones; 0 for all.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON document, newest first; with --follow one object per line, newest last.",
)
@SHARED
@JOURNAL_CONFIG
@STATE_DIR
@PROFILE
def list_command(
    workspace_id: str | None,
    follow: bool,
    sender: str,
    since: float | None,
    states: tuple[str, ...],
    search: str,
    limit: int,
    as_json: bool,
    journal_url: str | None,
    config: Path | None,
    state_dir: str | None,
    profile: str | None,
) -> None:
    """List the messages of WORKSPACE_ID, or of all workspaces in the journal, newest last.

    DURATION is how long the backend worked on the message, in all attempts; COST is what it reported.

    \b
    molecule messages list
    molecule messages list --follow --from people
    molecule messages list ws_1 --since 2h --state dead --state received
    molecule messages list --from reviewer --search invoice
    molecule messages list --limit 0 --json | jq '.messages[].reason'
    """
    from molecule_connect.cli.message_query import Query
    from molecule_connect.errors import ConfigError

    if follow and (journal_url or config):
        raise ConfigError(
            "--follow can't be combined with --journal",
            hint="follow the messages on the machine that serves the workspace: see 'molecule status --journal URL'",
        )
    with _journal(journal_url, config, state_dir, profile, workspace_id) as (folder, workspace_id):
        query = Query(
            workspace_id=workspace_id, states=tuple(_states(states)), sender=sender, since=since, search=search.strip()
        )
        if follow:
            _follow(folder, query, limit or None, as_json=as_json)
        else:
            _list(folder, query, limit or None, as_json=as_json)


@contextlib.contextmanager
def _journal(
    journal_url: str | None, config: Path | None, state_dir: str | None, profile: str | None, workspace_id: str | None
) -> Iterator[tuple[Path, str | None]]:
    """The folder of the journal to read, and the workspace. See ``place_of``."""
    if not (journal_url or config):
        yield place_of(state_dir, profile, workspace_id)
        return
    from molecule_connect.cli.shared import find_url, loaded_journal

    with loaded_journal(find_url(journal_url, config), workspace_id) as folder:
        yield folder, workspace_id


def _list(folder: Path, query: "Query", limit: int | None, *, as_json: bool) -> None:
    from molecule_connect.cli import message_format, message_query
    from molecule_connect.journal.inspect import Inspection

    now = time.time()
    with Inspection.open(folder) as journal:
        names = journal.workspaces()
        if query.workspace_id is not None:
            _check_known(query.workspace_id, names)
        filters = (query.workspace_id, query.states, query.only(journal))
        found = message_query.entries(journal, journal.summaries(*filters, limit=limit))
        total = journal.total(*filters)
    if as_json:
        click.echo(message_format.list_json(found, total, now))
        return
    if not found:
        click.echo("no messages", err=True)
        return
    table = _table(found[::-1], now, with_workspace=query.workspace_id is None and len(names) > 1)
    click.echo(table.titles)
    for entry in found[::-1]:
        click.echo(table.line(entry, now))
    if len(found) < total:
        click.echo(f"{len(found):,} of {count(total, 'message')}; --limit 0 lists all", err=True)


def _follow(folder: Path, query: "Query", limit: int | None, *, as_json: bool) -> None:
    from molecule_connect.cli import message_format
    from molecule_connect.cli.message_query import Follower
    from molecule_connect.errors import MoleculeError

    table, problem = None, ""
    try:
        follower = Follower(folder, query, limit)
        for found in follower:
            if isinstance(found, MoleculeError):
                if str(found) != problem:
                    click.echo(failure(f"{found}; waiting for it", found.hint), err=True)
                problem = str(found)
                found = []
            else:
                problem = ""
            now = time.time()
            if found and not as_json and table is None:
                table = _table(None, now, with_workspace=follower.has_several)
                click.echo(table.titles)
            for entry in found:
                click.echo(message_format.entry_json(entry, now) if table is None else table.line(entry, now))
            time.sleep(_POLL_INTERVAL)
    except KeyboardInterrupt:
        # The usual way to end it.
        return


def _table(found: "Sequence[Entry] | None", now: float, *, with_workspace: bool) -> "Table":
    from molecule_connect.cli.message_format import Table, line_width

    is_terminal = sys.stdout.isatty()
    width = line_width(is_terminal=is_terminal, environ=os.environ)
    is_colored = is_terminal and not os.environ.get("NO_COLOR")
    return Table(found, now=now, width=width, is_colored=is_colored, with_workspace=with_workspace)


@messages.command("show", short_help="Show a message with its files, attempts and reply.")
@click.argument("row_id")
@click.option("--raw", is_flag=True, help="Print only the message as the platform sent it, as JSON.")
@JSON
@WORKSPACE
@SHARED
@JOURNAL_CONFIG
@STATE_DIR
@PROFILE
def show(
    row_id: str,
    raw: bool,
    as_json: bool,
    workspace: str | None,
    journal_url: str | None,
    config: Path | None,
    state_dir: str | None,
    profile: str | None,
) -> None:
    """Show a message: its text, its files, each attempt with its error, the reply with its files, and the cost.

    \b
    molecule messages show 3f2a9c1d
    molecule messages show 3f2a9c1d --raw | jq .
    """
    from molecule_connect.cli import message_format, message_query
    from molecule_connect.errors import ConfigError
    from molecule_connect.journal.inspect import Inspection

    with (
        _journal(journal_url, config, state_dir, profile, workspace) as (folder, workspace),
        Inspection.open(folder) as journal,
    ):
        key = journal.find(row_id, workspace)
        message = journal.message(key)
        (entry,) = message_query.entries(journal, [journal.summary(key)])
    if raw:
        if message.raw is None:
            raise ConfigError(f"its text was deleted{message_format.why_deleted(message)}")
        click.echo(message_format.raw_text(message.raw) if sys.stdout.isatty() else message.raw)
    elif as_json:
        click.echo(message_format.message_json(entry, message, time.time()))
    else:
        click.echo("\n".join(message_format.details(entry, message, now=time.time())))


@messages.command("replay", short_help="Process dead letters again, and deferred messages now.")
@click.argument("row_ids", nargs=-1, metavar="[ROW_ID]...")
@click.option("--all-dead", is_flag=True, help="All dead letters that can be replayed.")
@click.option("--reason", metavar="TEXT", help="With --all-dead: only those whose reason starts with TEXT.")
@YES
@WORKSPACE
@ELSEWHERE
@STATE_DIR
@PROFILE
def replay(
    row_ids: tuple[str, ...],
    all_dead: bool,
    reason: str | None,
    yes: bool,
    workspace: str | None,
    journal_url: str | None,
    state_dir: str | None,
    profile: str | None,
) -> None:
    """Process dead letters again. Each moves to the end of its conversation, with all its attempts.

    If a reply was stored but couldn't be sent, it is sent again; otherwise the backend runs again. A message that
    waits, for example for a usage limit or the daily budget, is processed immediately. On a terminal, the command asks
    for confirmation.

    \b
    molecule messages replay 3f2a9c1d 77aa01bc
    molecule messages replay --all-dead --reason loop --yes
    """
    from molecule_connect.cli import message_format
    from molecule_connect.journal import inspect

    if all_dead == bool(row_ids):
        raise click.UsageError("pass either row ids or --all-dead")
    if reason is not None and not all_dead:
        raise click.UsageError("--reason requires --all-dead")
    with (
        _journal(journal_url, None, state_dir, profile, workspace) as (folder, workspace),
        inspect.Inspection.open(folder) as journal,
    ):
        named = _chosen(journal, row_ids, workspace, _replayable)
        chosen = journal.dead(workspace, reason or "") if all_dead else named
    if not chosen:
        click.echo("no dead letter matches; nothing to do")
        return
    if journal_url:
        flags = ["--all-dead", *(["--reason", reason] if reason is not None else [])] if all_dead else []
        raise _elsewhere(journal_url, "replay", chosen, flags)
    inboxes = {name for name in {message.workspace_id for message in chosen} if _is_inbox(folder, name)}
    effects = [message_format.effect_of_replay(one, is_inbox=one.workspace_id in inboxes) for one in chosen]
    if _confirm(chosen, effects, "Replay", yes):
        changed = inspect.replay(folder, [message.key for message in chosen], time.time())
        _report(folder, chosen, changed, "replayed", takes_up=True)


@messages.command("drop", short_help="Discard dead letters.")
@click.argument("row_ids", nargs=-1, required=True, metavar="ROW_ID...")
@YES
@WORKSPACE
@ELSEWHERE
@STATE_DIR
@PROFILE
def drop(
    row_ids: tuple[str, ...],
    yes: bool,
    workspace: str | None,
    journal_url: str | None,
    state_dir: str | None,
    profile: str | None,
) -> None:
    """Discard dead letters. They can't be replayed afterwards, and their text is deleted after a day.

    \b
    molecule messages drop 3f2a9c1d
    """
    from molecule_connect.journal import inspect

    with (
        _journal(journal_url, None, state_dir, profile, workspace) as (folder, workspace),
        inspect.Inspection.open(folder) as journal,
    ):
        chosen = _chosen(journal, row_ids, workspace, _droppable)
    if journal_url:
        raise _elsewhere(journal_url, "drop", chosen, [])
    if _confirm(chosen, ["not answered"] * len(chosen), "Drop", yes):
        changed = inspect.drop(folder, [message.key for message in chosen], time.time())
        _report(folder, chosen, changed, "dropped", takes_up=False)


def _elsewhere(url: str, verb: str, chosen: "Sequence[MessageSummary]", flags: Sequence[str]) -> "ConfigError":
    """The error that names the machines on which the messages can be changed, and the commands to run there.

    Args:
        flags: Choose the messages of a workspace; without any, their ids do.
    """
    from molecule_connect.cli.shared import use_mirror
    from molecule_connect.errors import ConfigError

    row_ids: dict[str, list[str]] = {}
    for message in chosen:
        row_ids.setdefault(message.workspace_id, []).append(message.row_id)
    found = use_mirror(url, lambda mirror: mirror.overview(row_ids))
    steps = []
    for one in found[:_MOST_NAMED]:
        words = ["molecule", "messages", verb, *(flags or row_ids[one.workspace_id]), "--workspace", one.workspace_id]
        if one.holder is not None and one.is_alive:
            steps.append(f"on {one.holder.host}, run: {shlex.join(words)}")
        else:
            steps.append(f"no machine serves {one.workspace_id} at the moment: try again later")
    if len(found) > _MOST_NAMED:
        steps.append(f"and so on for {len(found) - _MOST_NAMED:,} more workspaces")
    return ConfigError(
        f"'molecule messages {verb}' changes nothing in the database: it has to run where the workspace is served",
        hint="; ".join(steps),
    )


def _states(names: Sequence[str]) -> "list[State]":
    from molecule_connect.journal.inspect import OPEN
    from molecule_connect.journal.models import State

    chosen = {state for name in names for state in (OPEN if name == "open" else (State(name),))}
    return sorted(chosen)


def _check_known(workspace_id: str, names: Sequence[str]) -> None:
    from molecule_connect.errors import ConfigError
    from molecule_connect.models import canonical_id

    if workspace_id not in map(canonical_id, names):
        known = f"it contains the workspaces {', '.join(names)}" if names else "it is empty"
        raise ConfigError(f"the journal has no messages of {workspace_id!r}", hint=known)


def _replayable(message: "MessageSummary") -> None:
    """Raises ConfigError if a message can't be replayed."""
    from molecule_connect.errors import ConfigError
    from molecule_connect.journal.models import State

    if message.state is not State.DEAD and not message.is_deferred(time.time()):
        raise ConfigError(
            f"{message.row_id} is {message.state.value}: only dead letters and deferred messages can be replayed",
            hint="'molecule messages list' shows the state and the next attempt of each",
        )
    if not message.is_readable:
        raise ConfigError(
            f"{message.row_id} cannot be replayed: {message.reason}",
            hint=f"'molecule messages show {message.row_id} --raw' shows it; 'molecule messages drop' discards it",
        )
    if not message.has_text:
        raise ConfigError(
            f"{message.row_id} cannot be replayed: its text was deleted to make room in the journal",
            hint="ask the sender to send it again; 'molecule messages drop' discards it",
        )


def _droppable(message: "MessageSummary") -> None:
    """Raises ConfigError unless a message is a dead letter."""
    from molecule_connect.errors import ConfigError
    from molecule_connect.journal.models import State

    if message.state is not State.DEAD:
        raise ConfigError(
            f"{message.row_id} is {message.state.value}: only dead letters can be dropped",
            hint="'molecule messages list --state dead' shows the dead letters",
        )


def _chosen(
    journal: "Inspection", row_ids: Sequence[str], workspace: str | None, check: "Callable[[MessageSummary], None]"
) -> "list[MessageSummary]":
    """The named messages, without duplicates.

    Raises:
        ConfigError: One of them doesn't exist, or *check* refuses it.
    """
    chosen: dict[Key, MessageSummary] = {}
    for row_id in row_ids:
        message = journal.summary(journal.find(row_id, workspace))
        check(message)
        chosen[message.key] = message
    return list(chosen.values())


def _confirm(chosen: "Sequence[MessageSummary]", effects: Sequence[str], verb: str, yes: bool) -> bool:
    """Show what will happen, and ask for confirmation on a terminal."""
    from molecule_connect.cli import message_format

    for message, effect in list(zip(chosen, effects, strict=True))[:_MAX_LISTED]:
        click.echo(f"{message_format.name(message)}: {effect}")
    if len(chosen) > _MAX_LISTED:
        click.echo(f"and {len(chosen) - _MAX_LISTED:,} more")
    if yes or not sys.stdin.isatty() or click.confirm(f"{verb} {count(len(chosen), 'message')}?"):
        return True
    click.echo("nothing was changed")
    return False


def _is_inbox(folder: Path, workspace_id: str) -> bool:
    from molecule_connect.worker.status_file import read_status

    status = read_status(folder, workspace_id)
    return status is not None and status.inbox


def _report(
    folder: Path, chosen: "Sequence[MessageSummary]", changed: "Sequence[Key]", verb: str, *, takes_up: bool
) -> None:
    from molecule_connect.worker.lease import holder

    click.echo(f"{verb} {count(len(changed), 'message')}")
    if len(changed) < len(chosen):
        click.echo(f"{count(len(chosen) - len(changed), 'message')} changed in the meantime, and was skipped")
    for workspace_id in sorted({key.workspace_id for key in changed}) if takes_up else []:
        if holder(folder, workspace_id):
            click.echo(f"{workspace_id}: the running connector processes it within a second")
        else:
            click.echo(f"{workspace_id}: no connector runs; start 'molecule connect {workspace_id}' to process it")
