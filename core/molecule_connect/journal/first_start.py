"""Messages of people that were answered before a journal existed, as far as the feed shows it."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence

import attrs

from molecule_connect.files import pending_id
from molecule_connect.models import FilePart, Inbound, Kind

_KINDS = (Kind.MESSAGE, Kind.ECHO, Kind.UPLOAD)


@attrs.frozen(kw_only=True)
class Seen:
    """A row of a person, or an echo. An upload that no message names counts as a message."""

    row_id: str
    kind: Kind
    time: int
    seq: int
    context_id: str | None


@attrs.frozen(kw_only=True)
class Look:
    """The result of the first read.

    Attributes:
        answered: Messages of people that were certainly answered; they are done.
        skipped_people: Messages of people before the first read that have no answer.
        skipped_peers: Messages of peers before the first read.
    """

    answered: int = 0
    skipped_people: int = 0
    skipped_peers: int = 0


def pair(rows: Iterable[Seen]) -> tuple[set[str], set[str]]:
    """Pair each echo with the oldest earlier message that has none yet.

    An echo doesn't say which message it answers. Pairs are certain within a run of messages that all got an echo, and
    within one conversation, which is answered in order.

    Returns:
        The messages that were certainly answered, and those without an echo.
    """
    certain: set[str] = set()
    waiting: list[Seen] = []
    paired: list[Seen] = []
    for row in sorted(rows, key=lambda row: (row.time, row.seq)):
        if row.kind is not Kind.ECHO:
            waiting.append(row)
        elif waiting:
            paired.append(waiting.pop(0))
            if not waiting:
                certain.update(each.row_id for each in paired)
                paired = []
    last = [*paired, *waiting]
    if len({row.context_id for row in last}) == 1 and all(row.kind is Kind.MESSAGE for row in last):
        certain.update(row.row_id for row in paired)
    return certain, {row.row_id for row in waiting}


def close_answered(db: sqlite3.Connection, workspace_id: str, older: Sequence[Inbound], wall: float) -> Look:
    """received -> done, for messages of people that were answered before this journal existed.

    Args:
        older: Rows from before the first read, which are not in the journal.
    """
    skipped = [item for item in older if item.caller_id is None and item.kind in _KINDS]
    certain, unanswered = pair([*_seen(db, workspace_id, skipped), *_stored(db, workspace_id)])
    answered = [
        db.execute(
            "UPDATE message SET state='done', changed=? WHERE workspace_id=? AND row_id=? AND state='received'"
            " AND attempt=0 AND kind='message'",
            (wall, workspace_id, row_id),
        ).rowcount
        for row_id in certain
    ]
    return Look(
        answered=sum(answered),
        skipped_people=sum(item.row_id in unanswered for item in skipped),
        skipped_peers=sum(item.caller_id is not None and item.kind is Kind.MESSAGE for item in older),
    )


def _seen(db: sqlite3.Connection, workspace_id: str, skipped: Sequence[Inbound]) -> Iterator[Seen]:
    named = {uri for item in skipped if item.kind is Kind.MESSAGE for uri in _uris(item)}
    for item in skipped:
        if item.kind is not Kind.UPLOAD or not any(
            uri in named or _is_used(db, workspace_id, uri) for uri in _uris(item)
        ):
            time, seq = item.time or 0, item.seq or 0
            yield Seen(row_id=item.row_id, kind=item.kind, time=time, seq=seq, context_id=item.context_id)


def _uris(item: Inbound) -> list[str]:
    return [part.uri for part in item.parts if isinstance(part, FilePart)]


def _is_used(db: sqlite3.Connection, workspace_id: str, uri: str) -> bool:
    sql = "SELECT 1 FROM file_use WHERE workspace_id=? AND file_id=?"
    return db.execute(sql, (workspace_id, pending_id(uri))).fetchone() is not None


def _stored(db: sqlite3.Connection, workspace_id: str) -> list[Seen]:
    rows = db.execute(
        "SELECT row_id, kind, time, seq, context_id FROM message WHERE workspace_id=? AND caller_id IS NULL"
        " AND repeat_of IS NULL AND (kind IN ('message', 'echo') OR (kind='upload' AND EXISTS (SELECT 1 FROM file"
        " WHERE file.workspace_id=message.workspace_id AND file.row_id=message.row_id AND file.named=0"
        " AND file.state <> 'ours')))",
        (workspace_id,),
    )
    return [Seen(row_id=row[0], kind=Kind(row[1]), time=row[2], seq=row[3], context_id=row[4]) for row in rows]
