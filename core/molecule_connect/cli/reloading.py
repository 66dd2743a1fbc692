"""Reload the list of workspaces on SIGHUP, and check refused blocks again."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence

import attrs

from molecule_connect import events
from molecule_connect.cli.service_report import ServiceReport
from molecule_connect.cli.signals import StopSignals
from molecule_connect.cli.workspaces import WorkspaceSource
from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.config.workspaces import WorkspacesError, lines_of
from molecule_connect.console.lines import ERROR
from molecule_connect.console.screen import Screen, Summary
from molecule_connect.deployment import LIST, Deployment, Plan
from molecule_connect.errors import MoleculeError

# Workspaces named in the line about a reload. Those that start have lines of their own.
_MAX_NAMES = 3
# Seconds between checks of refused blocks: a token file may appear, or an agent may be logged in.
RETRY = 60.0
_NOTHING = "nothing was changed; correct it and send SIGHUP again"


def with_next_step(listener: events.Listener, *, reloads: bool) -> events.Listener:
    """*listener*, with hints on how to make this process retry a workspace that ended or was refused."""

    def listen(event: events.Event) -> None:
        if isinstance(event, events.Trouble) and event.hint and (reloads or event.part == LIST):
            way = f"then send SIGHUP to process {os.getpid()}" if reloads else "then restart"
            if event.part in ("connection", LIST):
                event = attrs.evolve(event, hint=f"{event.hint}; {way}")
        listener(event)

    return listen


async def follow_the_list(
    source: WorkspaceSource,
    reload: asyncio.Event,
    deployment: Deployment,
    *,
    screen: Screen,
    listener: events.Listener,
    signals: StopSignals,
    summary: Callable[[WorkspaceSettings], Summary],
    report: ServiceReport,
    retry: float = RETRY,
) -> None:
    """Read the list whenever *reload* is set, and check refused blocks every *retry* seconds, until cancelled.

    A list that can't be used as a whole changes nothing.
    """
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(retry if deployment.refused and not source.once else None):
                await reload.wait()
        is_asked = reload.is_set() and source.reloads
        reload.clear()
        try:
            if is_asked:
                report.reloading()
                listing = source.read()
                plan = await deployment.plan(listing.settings, listing.refused)
                deployment.set_fleet_limits(listing.fleet)
                outcome = f"{listing.source} was read again: {_describe(plan)}"
                listener(_reloaded(listing.source, outcome, plan))
                report.reloaded(outcome, lines_of(plan.refused))
            else:
                again = source.retry([one.entry for one in deployment.refused])
                plan = await deployment.plan_retry(again.settings, again.refused)
        except Exception as error:  # a bug in reading must not stop the workspaces
            if is_asked:
                refused = _refused(error, source.name)
                if isinstance(error, WorkspacesError):
                    for reason in refused.reasons:
                        screen.note(ERROR, f"{source.name}: {reason}")
                listener(refused)
                report.reloaded(f"{source.name} was read again but not applied", refused.reasons)
            continue
        signals.grace = max(signals.grace, *(one.grace for one in plan.wanted))
        screen.open([summary(one) for one in plan.starting])
        before = deployment.names
        deployment.report_refused(plan.refused, kept=plan.kept, repeat=is_asked)
        await deployment.apply(plan)
        for name in before.difference(deployment.names):
            screen.forget(name)


def _refused(error: Exception, source: str) -> events.ReloadRefused:
    text = f"{source} was read again but not applied"
    if isinstance(error, WorkspacesError):
        return events.ReloadRefused(workspace_id="", source=source, text=text, reasons=error.faults, hint=_NOTHING)
    reason, hint = f"{type(error).__name__}: {error}", ""
    if isinstance(error, MoleculeError):
        reason, hint = str(error), error.hint
    return events.ReloadRefused(
        workspace_id="", source=source, text=f"{text}: {reason}", reasons=(reason,), hint=hint or _NOTHING
    )


def _reloaded(source: str, text: str, plan: Plan) -> events.Reloaded:
    return events.Reloaded(
        workspace_id="",
        source=source,
        text=text,
        new=plan.new,
        changed=plan.changed,
        removed=plan.removed,
        kept=plan.kept,
        refused=tuple(one.name for one in plan.refused),
    )


def _describe(plan: Plan) -> str:
    parts = (
        ("new: ", plan.new),
        ("changed, drain and restart: ", plan.changed),
        ("gone, drain: ", plan.removed),
        ("continue with their earlier settings: ", plan.kept),
        ("refused: ", [one.name for one in plan.refused]),
    )
    changes = [words + _first_names(names) for words, names in parts if names]
    same = "1 is unchanged" if len(plan.unchanged) == 1 else f"{len(plan.unchanged)} are unchanged"
    return "; ".join([*changes, same])


def _first_names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MAX_NAMES])
    return f"{shown} and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else shown
