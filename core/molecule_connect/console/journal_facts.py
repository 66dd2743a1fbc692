"""What the live view reads from the journal, in its own thread and beside the events."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import attrs

from molecule_connect.errors import ConfigError, MoleculeError
from molecule_connect.journal.inspect import OPEN, Inspection, Key, MessageSummary
from molecule_connect.journal.models import State
from molecule_connect.journal.totals import Totals, midnight

# Messages of each kind that are shown after a start.
_MOST = 100


@attrs.frozen(kw_only=True)
class JournalFacts:
    """Facts about some workspaces.

    Attributes:
        totals: Sums of the local day, by workspace.
        names: Names of peers, by workspace and id.
        messages: Messages from before the start, the oldest first.
        gone: Dead letters (workspace and row id) that were discarded or replayed meanwhile.
    """

    totals: Mapping[str, Totals] = attrs.field(factory=dict)
    names: Mapping[str, Mapping[str, str]] = attrs.field(factory=dict)
    messages: Sequence[MessageSummary] = ()
    gone: Collection[tuple[str, str]] = ()


def read_facts(
    folder: Path, workspaces: Collection[str], *, new: Collection[str], failed: Collection[tuple[str, str]], wall: float
) -> JournalFacts | None:
    """Read the journal in *folder*; None while there is none, or if it can't be read.

    Args:
        new: The workspaces whose names and messages are read too.
        failed: The dead letters that are shown.
        wall: Seconds since 1970.
    """
    since = midnight(wall)
    try:
        with Inspection.open(folder) as journal:
            return JournalFacts(
                totals={name: journal.totals(name, since) for name in workspaces},
                names={name: journal.peer_names(name) for name in new},
                messages=[message for name in new for message in _messages(journal, name, since)],
                gone=[key for key in failed if _is_gone(journal, Key(*key))],
            )
    except MoleculeError:
        # The worker reports what is wrong with the journal.
        return None


def _messages(journal: Inspection, workspace_id: str, since: float) -> list[MessageSummary]:
    dead = journal.summaries(workspace_id, [State.DEAD], limit=_MOST)
    found = [
        *journal.summaries(workspace_id, [State.DONE], limit=_MOST),
        *(message for message in dead if message.changed >= since),
        *journal.summaries(workspace_id, OPEN, limit=_MOST),
    ]
    return sorted((message for message in found if not message.repeat_of), key=lambda message: message.time)


def _is_gone(journal: Inspection, key: Key) -> bool:
    try:
        return journal.summary(key).state is State.DONE
    except ConfigError:
        return True
