"""``molecule status``: is a connector running, and is it well?"""

import json
import shlex
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from molecule_connect.cli.options import JSON, STATE_DIR, canonical, state_dir_of
from molecule_connect.console.sanitize import ago, count, moment

if TYPE_CHECKING:
    from pathlib import Path

    from molecule_connect.cli.local_status import LocalStatus
    from molecule_connect.worker.status_file import Problem

NOT_WELL = 1


@click.command
@click.argument("workspace_id", required=False, callback=canonical)
@JSON
@STATE_DIR
@click.pass_context
def status(ctx: click.Context, workspace_id: str | None, as_json: bool, state_dir: str | None) -> None:
    """Tell whether a connector runs for WORKSPACE_ID on this machine, and whether it is well.

    Without WORKSPACE_ID it tells of every workspace that was ever served from the state folder. It asks no platform
    and disturbs no connector.

    \b
    molecule status
    molecule status ws_1 --json | jq '.workspaces[0].state'

    It exits with 0 when a connector runs and is well, and with 1 when it is in trouble, has died, or when none runs.
    Without WORKSPACE_ID, what was stopped on purpose does not count, nor a try that failed before it served, as long
    as another runs.
    """
    from molecule_connect.cli.local_status import local_statuses

    folder, now = state_dir_of(state_dir), time.time()
    found = local_statuses(folder, workspace_id, now)
    if as_json:
        document = {"state_dir": str(folder), "workspaces": [_values(one) for one in found]}
        click.echo(json.dumps(document, indent=2))
    else:
        for line in _lines(found, folder, now):
            click.echo(line)
    asked = [one for one in found if workspace_id or one.is_expected]
    ctx.exit(0 if asked and all(one.is_well for one in asked) else NOT_WELL)


def _lines(found: "Sequence[LocalStatus]", folder: "Path", now: float) -> Iterator[str]:
    from molecule_connect.worker.status_file import status_path

    if not found:
        yield f"no connector runs: nothing was served from {folder} yet"
        yield "what to do: name another folder with --state-dir, or start one with 'molecule connect'"
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
        "paused": "runs well, and is paused on the platform: messages are kept, none is run",
        "trouble": "runs, and is in trouble",
        "starting": "is starting",
        "stopping": "is stopping",
        "suspended": f"is suspended: it was stopped with SIGSTOP or Ctrl-Z, and does nothing -> kill -CONT {by.pid}",
        "silent": f"hangs: it has reported nothing for {silence} -> restart it",
    }
    return f"{words[one.state]} ({process}{since})"


def _ending(one: "LocalStatus", now: float) -> str:
    from molecule_connect.console.sanitize import one_line

    saved = one.status
    if one.state == "refused":
        return f"is not served: process {one.keeper}, which serves others, refuses its block of the list"
    if saved is None:
        return "no connector runs"
    if saved.ended is None:
        last = f"it last reported {ago(saved.written, now)}"
        return f"no connector runs; process {saved.pid} was killed or crashed ({last}) -> start it again"
    end = one_line(saved.ended.reason, 400) + (f" -> {one_line(saved.ended.hint, 400)}" if saved.ended.hint else "")
    if one.keeper is not None:
        return f"given up {ago(saved.ended.since, now)} by process {one.keeper}, which serves others: {end}"
    last = "the last one ended" if one.is_expected else "the last try failed"
    return f"no connector runs; {last} {ago(saved.ended.since, now)}: {end}"


def _facts(one: "LocalStatus", now: float) -> Iterator[tuple[str, str]]:
    saved = one.status
    if saved is not None and one.holder is not None:
        yield "platform", f"{saved.api_url}, backend {saved.backend}"
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
        interrupted = "" if one.holder else ": cut short, begins again at the next start"
        yield "running", count(running, "message") + interrupted
        for message in one.running:
            doing = f": {one_line(message.progress)}" if message.progress else ""
            lasting = span(max(0.0, now - message.changed))
            run = f"try {message.attempt}, for {lasting}{doing}" if one.holder else ""
            yield (
                "",
                f'  {one_line(message.row_id[:8])} of {who(message.caller_id)}, "{one_line(message.text, 40)}" {run}',
            )
    if waiting := one.counts[State.RECEIVED]:
        oldest = f", the oldest for {span(max(0.0, now - one.oldest))}" if one.oldest else ""
        yield "waiting", count(waiting, "message") + oldest
    if held := one.counts[State.CLAIMED]:
        yield "held", f"{count(held, 'message')}, taken by readers of the inbox"
    if answers := one.counts[State.ANSWERED]:
        yield "to send", count(answers, "answer")
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
