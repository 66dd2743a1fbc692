"""Limits of the space that a caller's messages take in the journal, as SQL."""

import sqlite3
from collections import Counter
from typing import Any

import attrs

UNLIMITED = 1 << 62
# Deletes the texts of a row. ``kept`` is their size in bytes; the rest of the row stays, so that repeats are known.
NO_TEXT = "parts=NULL, raw=NULL, answer=NULL, kept=0"
# Texts are deleted until this share of the quota is used.
TARGET = 0.9
# Shares of the quota for unfinished messages: of one peer, and of all peers together.
ONE_PEER, ALL_PEERS = 0.5, 0.75
PEER_FULL = "unfinished messages of this peer fill its half of the journal's quota"
PEERS_FULL = "unfinished messages of peers fill their three quarters of the journal's quota"
UNFINISHED = "state NOT IN ('done', 'dead')"
# Callers of about the same size lose texts in turns of this size, in bytes.
STEP = 1 << 20


@attrs.frozen
class Pool:
    """Limits for the dead letters of one caller: their number, and the bytes of their texts."""

    letters: int
    size: int


PEER_POOL = Pool(letters=1000, size=16 << 20)
PEOPLE_POOL = Pool(letters=4000, size=64 << 20)


@attrs.frozen
class Caller:
    """A caller of a workspace; ``caller_id`` is None for people."""

    workspace_id: str
    caller_id: str | None


class PeerRoom:
    """The room for unfinished messages of peers, while the rows of one read are stored.

    Messages of one peer may take half of *quota*, and those of all peers in the file three quarters. The rest is
    reserved for people.
    """

    def __init__(self, db: sqlite3.Connection, workspace_id: str, quota: int) -> None:
        self._db = db
        self._workspace_id = workspace_id
        self._quota = quota
        self._sizes: dict[str, int] = {}
        self._all: int | None = None

    def refuses(self, peer_id: str, size: int) -> str:
        """Why there is no room for another *size* bytes; empty if there is room, which is then taken."""
        if self._all is None:
            self._all = self._sum("caller_id IS NOT NULL")
        if peer_id not in self._sizes:
            self._sizes[peer_id] = self._sum("workspace_id=? AND caller_id=?", self._workspace_id, peer_id)
        if self._sizes[peer_id] + size > self._quota * ONE_PEER:
            return PEER_FULL
        if self._all + size > self._quota * ALL_PEERS:
            return PEERS_FULL
        self._sizes[peer_id] += size
        self._all += size
        return ""

    def _sum(self, whose: str, *values: str) -> int:
        sql = f"SELECT coalesce(sum(kept), 0) FROM message INDEXED BY message_waiting WHERE {whose} AND {UNFINISHED}"  # noqa: S608
        return int(self._db.execute(sql, values).fetchone()[0])


def used(db: sqlite3.Connection) -> int:
    """The used bytes of the journal's file. Freed ones are reused before the file grows."""
    pages, free, size = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def trim_dead(db: sqlite3.Connection, caller: Caller, wall: float) -> int:
    """Keep the newest dead letters of the caller that fit its pool. Returns how many lost their text.

    Letters beyond the number are dropped.
    """
    pool = PEOPLE_POOL if caller.caller_id is None else PEER_POOL
    rows = db.execute(
        "SELECT arrival, kept FROM message INDEXED BY message_dead WHERE workspace_id=? AND caller_id IS ?"
        " AND state='dead' ORDER BY arrival DESC",
        (caller.workspace_id, caller.caller_id),
    )
    size, trimmed, dropped = 0, [], []
    for number, (arrival, kept) in enumerate(rows, 1):
        size += kept
        if number > pool.letters:
            dropped.append((wall, arrival))
        elif kept and size > pool.size:
            trimmed.append((arrival,))
    db.executemany(f"UPDATE message SET {NO_TEXT} WHERE arrival=?", trimmed)  # noqa: S608
    db.executemany(f"UPDATE message SET state='done', changed=?, {NO_TEXT} WHERE arrival=?", dropped)  # noqa: S608
    return len(trimmed) + len(dropped)


def make_room(db: sqlite3.Connection, quota: int) -> "Counter[Caller]":
    """Delete texts of dead letters, then of finished messages, the oldest of the biggest caller first.

    Stops when nine tenths of *quota* are used. Texts of unfinished messages stay. Returns the number of deleted texts
    of each caller.
    """
    lost: Counter[Caller] = Counter()
    while (surplus := used(db) - int(quota * TARGET)) > 0:
        sizes = Counter[Caller]()
        for table in ("message_dead", "message_finished"):
            for *who, size in db.execute(_SIZES[table]):
                sizes[Caller(*who)] += size
        (biggest, size), (_, next_size) = [*sizes.most_common(2), (None, 0), (None, 0)][:2]
        if biggest is None:
            break
        lost[biggest] += _delete(db, biggest, min(surplus, max(size - next_size, STEP)))
    return lost


def _delete(db: sqlite3.Connection, caller: Caller, size: int) -> int:
    gone: list[tuple[int]] = []
    for index in ("message_dead", "message_finished"):
        rows: Any = db.execute(_OLDEST[index], (caller.workspace_id, caller.caller_id))
        for arrival, kept in rows:
            if size <= 0:
                break
            gone.append((arrival,))
            size -= kept
    db.executemany(f"UPDATE message SET {NO_TEXT} WHERE arrival=?", gone)  # noqa: S608
    return len(gone)


_STATES = {"message_dead": "state='dead'", "message_finished": "state='done'"}
_SIZES = {
    index: f"SELECT workspace_id, caller_id, sum(kept) FROM message INDEXED BY {index} WHERE {state} AND kept>0"  # noqa: S608
    " GROUP BY workspace_id, caller_id"
    for index, state in _STATES.items()
}
_OLDEST = {
    index: f"SELECT arrival, kept FROM message INDEXED BY {index} WHERE workspace_id=? AND caller_id IS ? AND {state}"  # noqa: S608
    " AND kept>0 ORDER BY arrival"
    for index, state in _STATES.items()
}
