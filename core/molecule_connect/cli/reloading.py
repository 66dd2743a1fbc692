"""SIGHUP: the file of workspaces is read again, and what it says is followed."""

import asyncio
import os
from collections.abc import Callable, Sequence

import attrs

from molecule_connect import events
from molecule_connect.cli.asked import Asked
from molecule_connect.cli.signals import StopSignals
from molecule_connect.console.lines import ERROR, INFO
from molecule_connect.console.screen import Screen, Summary
from molecule_connect.errors import MoleculeError
from molecule_connect.serve import Plan, Served
from molecule_connect.settings import ConnectionSettings
from molecule_connect.workspaces import WorkspacesError

# So many workspaces of a change are named in its line; each that starts has a line of its own.
_SHOWN = 3
_NOTHING = "nothing was changed; mend it and send SIGHUP again"


def with_way_back(listener: events.Listener) -> events.Listener:
    """*listener*, told at the end of a workspace how to start it again."""

    def told(event: events.Event) -> None:
        if isinstance(event, events.Trouble) and event.part == "connection":
            hint = f"{event.hint}; then send SIGHUP to process {os.getpid()}" if event.hint else event.hint
            event = attrs.evolve(event, hint=hint)
        listener(event)

    return told


async def follow_the_list(
    asked: Asked,
    reload: asyncio.Event,
    served: Served,
    *,
    screen: Screen,
    signals: StopSignals,
    summary: Callable[[ConnectionSettings], Summary],
) -> None:
    """Read the list again each time that *reload* is set, until cancelled. One with a fault changes nothing."""
    if asked.again is None:
        return
    while True:
        await reload.wait()
        reload.clear()
        try:
            plan = await served.plan(asked.again())
        except WorkspacesError as error:
            for fault in error.faults:
                screen.note(ERROR, f"{asked.source}: {fault}")
            screen.note(ERROR, f"{asked.source} was read again and not followed", _NOTHING)
        except MoleculeError as error:
            screen.note(ERROR, f"{asked.source} was read again and not followed: {error}", error.hint or _NOTHING)
        except Exception as error:  # a bug in reading must not end what is served
            screen.note(ERROR, f"{asked.source} was not followed: {type(error).__name__}: {error}", _NOTHING)
        else:
            screen.note(INFO, f"{asked.source} was read again: {_story(plan)}")
            signals.grace = max(signals.grace, *(one.grace for one in plan.wanted))
            screen.open([summary(one) for one in plan.starting])
            await served.follow(plan)
            for name in plan.gone:
                screen.forget(name)


def _story(plan: Plan) -> str:
    parts = (
        ("new: ", plan.new),
        ("changed, drain and start anew: ", plan.changed),
        ("gone, drain: ", plan.gone),
    )
    told = [words + _some(names) for words, names in parts if names]
    same = "1 stays as it is" if len(plan.same) == 1 else f"{len(plan.same)} stay as they are"
    return "; ".join([*told, same])


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
