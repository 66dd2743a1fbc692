"""What a workspace's messages add up to, as SQL."""

import sqlite3
import time

import attrs

QUARTER = 900.0
# Quarters of an hour for which costs are kept.
_KEPT = 40 * 96
# The condition of the index message_ended, word by word: otherwise SQLite doesn't use it.
_ENDED = (
    "(state='dead' OR (state='done' AND kind='message' AND reason IS NULL AND repeat_of IS NULL"
    " AND (attempt>0 OR accepted>0)))"
)


@attrs.frozen(kw_only=True)
class Totals:
    """The sums of one workspace.

    Attributes:
        unfinished: Messages that are not handled yet, including running ones.
        handled: Messages that were answered, or handled without a reply, since a time.
        failed: Dead letters since that time that were neither replayed nor discarded.
        cost_usd: US dollars spent since that time, as backends reported it.
    """

    unfinished: int = 0
    handled: int = 0
    failed: int = 0
    cost_usd: float = 0.0


def midnight(wall: float) -> float:
    """The beginning of the local day, in seconds since 1970."""
    now = time.localtime(wall)
    return time.mktime((now.tm_year, now.tm_mon, now.tm_mday, 0, 0, 0, 0, 0, -1))


def load(db: sqlite3.Connection, workspace_id: str, since: float) -> Totals:
    """The sums of *workspace_id*, since *since* (seconds since 1970)."""
    unfinished = db.execute(
        "SELECT count(*) FROM message WHERE workspace_id=? AND state NOT IN ('done', 'dead')", (workspace_id,)
    ).fetchone()[0]
    ended = dict(
        db.execute(
            "SELECT state, count(*) FROM message INDEXED BY message_ended"  # noqa: S608
            f" WHERE workspace_id=? AND changed>=? AND {_ENDED} GROUP BY state",
            (workspace_id, since),
        ).fetchall()
    )
    cost = db.execute(
        "SELECT coalesce(sum(cost_usd), 0) FROM cost WHERE workspace_id=? AND quarter>=?",
        (workspace_id, since // QUARTER),
    ).fetchone()[0]
    return Totals(
        unfinished=int(unfinished), handled=ended.get("done", 0), failed=ended.get("dead", 0), cost_usd=float(cost)
    )


def add_cost(db: sqlite3.Connection, workspace_id: str, cost_usd: float, wall: float) -> None:
    """Add a cost at *wall* (seconds since 1970), and forget old ones."""
    quarter = int(wall // QUARTER)
    db.execute(
        "INSERT INTO cost VALUES (?,?,?) ON CONFLICT DO UPDATE SET cost_usd=cost_usd+excluded.cost_usd",
        (workspace_id, quarter, cost_usd),
    )
    db.execute("DELETE FROM cost WHERE workspace_id=? AND quarter<?", (workspace_id, quarter - _KEPT))
