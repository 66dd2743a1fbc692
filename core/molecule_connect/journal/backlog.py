"""How many messages of each workspace are unfinished or dead, for metrics."""

import sqlite3
from collections import defaultdict
from pathlib import Path

import attrs

from molecule_connect.journal.models import State
from molecule_connect.journal.schema import open_reader

# The states of unfinished messages and of dead letters, as metrics name them.
STATES = {
    State.RECEIVED.value: "received",
    State.RUNNING.value: "running",
    State.CLAIMED.value: "claimed",
    State.ANSWERED.value: "answered",
    State.DEAD.value: "dead",
}
_UNFINISHED = (
    "SELECT workspace_id, state, count(*), min(time), min(answered_at) FROM message"
    " WHERE state NOT IN ('done', 'dead') GROUP BY workspace_id, state"
)
_DEAD = "SELECT workspace_id, count(*) FROM message INDEXED BY message_dead WHERE state='dead' GROUP BY workspace_id"


@attrs.define
class Backlog:
    """The messages of one workspace that are not done.

    Attributes:
        counts: Number of messages by state.
        waiting_since: When the oldest message was written that waits for the backend or a reader, in microseconds by
            the platform's clock; None if none waits.
        unsent_since: When the oldest reply was stored that the platform has not accepted; the same.
    """

    counts: dict[str, int] = attrs.field(factory=lambda: dict.fromkeys(STATES.values(), 0))
    waiting_since: int | None = None
    unsent_since: int | None = None


def read_backlogs(path: Path) -> dict[str, Backlog]:
    """The backlogs of all workspaces with messages in the journal at *path*. Reads the file: call it in a thread.

    Raises:
        JournalError: The journal can't be read.
    """
    db = open_reader(path)
    try:
        return _read(db)
    finally:
        db.close()


def _read(db: sqlite3.Connection) -> dict[str, Backlog]:
    found: defaultdict[str, Backlog] = defaultdict(Backlog)
    for workspace_id, state, count, time, answered_at in db.execute(_UNFINISHED).fetchall():
        backlog = found[workspace_id]
        backlog.counts[STATES[state]] = int(count)
        if state == State.RECEIVED.value:
            backlog.waiting_since = time
        elif state == State.ANSWERED.value:
            # A reader's reply has no time until the dispatcher takes it.
            backlog.unsent_since = time if answered_at is None else answered_at
    for workspace_id, count in db.execute(_DEAD).fetchall():
        found[workspace_id].counts["dead"] = int(count)
    return found
