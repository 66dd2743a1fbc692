"""``molecule status``: show whether a connector runs, and its problems."""

import json
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from molecule_connect.cli.options import JOURNAL_CONFIG, JSON, PROFILE, STATE_DIR, canonical, journal_option, place_of
from molecule_connect.console.sanitize import ago, count, moment

if TYPE_CHECKING:
    from molecule_connect.cli.local_status import LocalStatus
    from molecule_connect.worker.status_file import Problem

NOT_WELL = 1


@click.command
@click.argument("workspace_id", required=False, callback=canonical)
@journal_option("Show which machine serves which workspace, by the database through which they share them.")
@JOURNAL_CONFIG
@JSON
@STATE_DIR
@PROFILE
@click.pass_context
def status(
    ctx: click.Context,
    workspace_id: str | None,
    journal_url: str | None,
    config: Path | None,
    as_json: bool,
    state_dir: str | None,
    profile: str | None,
) -> None:
    """Show whether a connector serves WORKSPACE_ID on this machine, and its problems.

    Without WORKSPACE_ID and --profile, all workspaces that were ever served from the state folder are shown. The
    command makes no requests and doesn't affect running connectors.

    \b
    molecule status
    molecule status ws_1 --json | jq '.workspaces[0].state'

    The exit code is 0 if a connector runs without problems that affect messages, and 1 otherwise. Without WORKSPACE_ID,
    workspaces that were stopped on purpose are ignored, and so are starts that failed before they registered, as long
    as another connector runs.

    With --journal or --config, the command shows the workspaces of all machines, on any of them: who serves each, how
    long ago its copy changed, and what waits. The exit code is then 0 if all are served.
    """
    from molecule_connect.cli.local_status import local_statuses

    if journal_url or config:
        ctx.exit(_show_shared(journal_url, config, workspace_id, as_json=as_json))
    folder, workspace_id = place_of(state_dir, profile, workspace_id)
    now = time.time()
    found = local_statuses(folder, workspace_id, now)
    if as_json:
        document = {"state_dir": str(folder), "workspaces": [_values(one) for one in found]}
        click.echo(json.dumps(document, indent=2))
    else:
        for line in _lines(found, folder, now):
            click.echo(line)
    asked = [one for one in found if workspace_id or one.is_expected]
    ctx.exit(0 if asked and all(one.is_well for one in asked) else NOT_WELL)


def _show_shared(journal_url: str | None, config: Path | None, workspace_id: str | None, *, as_json: bool) -> int:
    """Show the workspaces in the database. Returns the exit code."""
    from molecule_connect.cli import shared_status
    from molecule_connect.cli.shared import find_url

    found = shared_status.find_status(find_url(journal_url, config), workspace_id)
    for line in [shared_status.values(found)] if as_json else shared_status.lines(found, time.time()):
        click.echo(line)
    return 0 if found.is_well else NOT_WELL


def _lines(found: "Sequence[LocalStatus]", folder: Path, now: float) -> Iterator[str]:
    from molecule_connect.worker.status_file import status_path

    if not found:
        yield f"no connector runs, and none has used the state folder {folder}"
        yield "what to do: pass another folder with --state-dir, or start a connector with 'molecule connect'"
    for one in found:
        yield f"{one.workspace_id}: {_headline(one, now)}"
        if one.holder is None and one.keeper is None and one.status is not None:
            yield f"    {'forget it':10} rm {shlex.quote(str(status_path(folder, one.workspace_id)))}"
        for title, value in _facts(one, now):
            yield f"    {title:10} {value}"


def _headline(one: "LocalStatus", now: float) -> str:
    from molecule_connect.console.sanitize import span

    saved, by = one.status, one.holder
    if by is None:
        return _ending(one, now)
    process = f"process {by.pid} on {by.host}" if by.pid else "a process"
    since = f", for {span(now - saved.started)}" if saved else ""
    silence = span(now - saved.written) if saved else "a while"
    words = {
        "running": "runs well",
        "paused": "runs well, but is paused on the platform: messages are stored but not processed",
        "trouble": "runs, but has problems",
        "starting": "is starting",
        "stopping": "is stopping",
        "suspended": f"is suspended by SIGSTOP or Ctrl-Z and receives no messages -> kill -CONT {by.pid}",
        "silent": f"hangs: it has not updated its status for {silence} -> restart it",
    }
    return f"{words[one.state]} ({process}{since})"


def _ending(one: "LocalStatus", now: float) -> str:
    from molecule_connect.console.sanitize import one_line

    saved = one.status
    if one.state == "refused":
        return f"is not served: process {one.keeper} serves other workspaces of the list, but rejected this one"
    if saved is None:
        return "no connector runs"
    if saved.ended is None:
        last = f"last status update {ago(saved.written, now)}"
        return f"no connector runs; process {saved.pid} was killed or crashed ({last}) -> start it again"
    end = one_line(saved.ended.reason, 400) + (f" -> {one_line(saved.ended.hint, 400)}" if saved.ended.hint else "")
    if one.keeper is not None:
        return f"failed {ago(saved.ended.since, now)}; process {one.keeper} still serves other workspaces: {end}"
    last = "the last one failed" if one.is_expected else "the last start failed"
    return f"no connector runs; {last} {ago(saved.ended.since, now)}: {end}"


def _facts(one: "LocalStatus", now: float) -> Iterator[tuple[str, str]]:
    from molecule_connect.console.sanitize import one_line

    saved = one.status
    if saved is not None and one.holder is not None:
        yield "platform", f"{saved.api_url}, backend {saved.backend}"
        if saved.labels:
            yield "labels", one_line(", ".join(f"{name}={text}" for name, text in saved.labels.items()), 400)
        beat = f"last heartbeat {ago(saved.last_beat, now)}" if saved.last_beat else "no heartbeat yet"
        yield "presence", f"{'registered' if saved.registered else 'not registered'}, {beat}"
        if saved.listening:
            yield "listening", f"by {saved.listening}"
    for problem in one.problems:
        yield "trouble", _problem(problem, now)
    yield from _messages(one, now)


def _problem(problem: "Problem", now: float) -> str:
    from molecule_connect.console.sanitize import one_line, span

    hint = f" -> {one_line(problem.hint, 400)}" if problem.hint else ""
    return f"{problem.part}, for {span(max(0.0, now - problem.since))}: {one_line(problem.reason, 400)}{hint}"


def _messages(one: "LocalStatus", now: float) -> Iterator[tuple[str, str]]:
    from molecule_connect.console.sanitize import one_line, span, who
    from molecule_connect.journal.models import State

    if one.counts is None:
        return
    if running := one.counts[State.RUNNING]:
        interrupted = "" if one.holder else ", interrupted; processed again at the next start"
        yield "running", count(running, "message") + interrupted
        for message in one.running:
            doing = f": {one_line(message.progress)}" if message.progress else ""
            lasting = span(max(0.0, now - message.changed))
            run = f"attempt {message.attempt}, for {lasting}{doing}" if one.holder else ""
            yield (
                "",
                f'  {one_line(message.row_id[:8])} of {who(message.caller_id)}, "{one_line(message.text, 40)}" {run}',
            )
    if waiting := one.counts[State.RECEIVED]:
        oldest = f", the oldest for {span(max(0.0, now - one.oldest))}" if one.oldest else ""
        yield "waiting", count(waiting, "message") + oldest
    if held := one.counts[State.CLAIMED]:
        yield "claimed", f"{count(held, 'message')}, claimed by readers of the inbox"
    if answers := one.counts[State.ANSWERED]:
        yield "to send", f"{answers:,} repl{'y' if answers == 1 else 'ies'}"
    if dead := one.counts[State.DEAD]:
        yield "dead", f"{count(dead, 'dead letter')} -> molecule messages list --state dead"


def _values(one: "LocalStatus") -> dict[str, Any]:
    from molecule_connect.cli.message_format import message_values

    saved, by = one.status, one.holder
    return {
        "workspace_id": one.workspace_id,
        "state": one.state,
        "well": one.is_well,
        "expected": one.is_expected,
        "pid": by.pid if by else None,
        "host": by.host if by else None,
        "since": moment(saved.started) if saved and by else None,
        "told": moment(saved.written) if saved else None,
        "api_url": saved.api_url if saved else None,
        "backend": saved.backend if saved else None,
        "labels": dict(saved.labels) if saved else {},
        "registered": bool(saved and by and saved.registered),
        "last_beat": moment(saved.last_beat) if saved else None,
        "listening": (saved.listening or None) if saved and by else None,
        "paused": bool(saved and by and saved.paused),
        "troubles": [_problem_values(problem) for problem in one.problems],
        "ended": _problem_values(saved.ended) if saved and saved.ended else None,
        "messages": {state.value: number for state, number in one.counts.items()} if one.counts else None,
        "oldest_waiting": moment(one.oldest),
        "running": [message_values(message) for message in one.running],
    }


def _problem_values(problem: "Problem") -> dict[str, Any]:
    return {
        "part": problem.part,
        "reason": problem.reason,
        "hint": problem.hint,
        "since": moment(problem.since),
    }
