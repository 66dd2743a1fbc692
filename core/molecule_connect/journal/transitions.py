"""Changes of messages' states, as SQL. Each is a compare-and-set: False means that the state changed before."""

import sqlite3

from molecule_connect.journal import sent
from molecule_connect.journal.models import (
    State,
    StoredMessage,
    StoredReply,
    dump_reply,
    load_reply,
    plain,
)

# A message with the same id counts as a repeat for this long (microseconds): some senders use a constant id.
REPEAT_WINDOW = 3600 * 1_000_000
# An echo may be older than its reply by the delay of a row (microseconds).
LATENESS = 45 * 1_000_000
# Seconds until the echo of a reply to a person is expected.
ECHO_DELAY = 5.0
# Seconds by which a clock may be set back as a usual correction.
SET_BACK = 5.0
# The longest waits, in seconds: a backend may wait for the next month's budget, a send for a peer's.
LONGEST_WAITS = {State.RECEIVED: 31 * 24 * 3600.0, State.ANSWERED: 600.0}
# The end of the error of a message that is deferred to the next day.
DAY_SPENT = "US dollars a day are spent"
_NEVER = 1 << 62
# The newest attempts of a message are kept, with the two ends of a long error.
MAX_ATTEMPTS = 20
_ERROR_HEAD, _ERROR_TAIL = 300, 700
# Errors of attempts that didn't end by themselves.
CUT_SHORT = "cut short: the connector ended unexpectedly"
STOPPED = "stopped with the connector"
# Takes when the running attempt ended, and its error.
_END_ATTEMPT = (
    "attempts=json_insert(CASE WHEN json_array_length(attempts) >="
    f" {MAX_ATTEMPTS} THEN json_remove(attempts, '$[0]')"
    " ELSE coalesce(attempts, '[]') END, '$[#]', json_array(started, ?, nullif(?, '')))"
)


def move(
    db: sqlite3.Connection,
    message: StoredMessage,
    frm: State,
    wall: float,
    *,
    reply: StoredReply | None = None,
    ended: str | None = None,
    **changes: object,
) -> bool:
    """Change the columns *changes* of *message* if it is still in the state *frm* of the same attempt and replay.

    Args:
        reply: Replaces the stored reply.
        ended: The error with which the running attempt ended, empty if it succeeded; None if no attempt ended.
    """
    assignments = "".join(f"{column}=?, " for column in changes)
    values = list(changes.values())
    if ended is not None:
        assignments += f"{_END_ATTEMPT}, "
        values += [wall, _both_ends(ended)]
    if reply is not None:
        text = dump_reply(reply)
        assignments += "answer=?, kept=kept - coalesce(length(answer), 0) + ?, "
        values += [text, len(text)]
    cursor = db.execute(
        # The columns are literals of the callers; every value is bound.
        f"UPDATE message SET {assignments}changed=? WHERE workspace_id=? AND row_id=? AND state=? AND attempt=?"  # noqa: S608
        " AND replay=?",
        (
            *(*values, wall, message.workspace_id, message.row_id, frm.value),
            *(message.attempt, message.replay),
        ),
    )
    return cursor.rowcount == 1


def mark_dead_by_id(
    db: sqlite3.Connection, workspace_id: str, row_id: str, reason: str, error: str, wall: float
) -> bool:
    """Any open state -> dead, after an unexpected error with the traceback *error*."""
    place = (workspace_id, row_id)
    db.execute(
        f"UPDATE message SET {_END_ATTEMPT} WHERE workspace_id=? AND row_id=? AND state='running'",  # noqa: S608
        (wall, _both_ends(reason), *place),
    )
    cursor = db.execute(
        "UPDATE message SET state='dead', reason=?, error=?, not_before=NULL, progress=NULL, changed=?"
        " WHERE workspace_id=? AND row_id=? AND state IN ('received', 'running', 'answered')",
        (plain(reason), plain(error), wall, *place),
    )
    return cursor.rowcount == 1


def replay(db: sqlite3.Connection, workspace_id: str, row_id: str, wall: float) -> bool:
    """dead -> received, at the end of its conversation. An unsent reply is kept; a notice is not.

    Also False for a message whose text was deleted.
    """
    row = db.execute(
        "SELECT caller_id, context_id, answer FROM message WHERE workspace_id=? AND row_id=? AND state='dead'"
        " AND kind='message' AND parts IS NOT NULL",
        (workspace_id, row_id),
    ).fetchone()
    if row is None:
        return False
    last = db.execute(
        "SELECT max(place) FROM message WHERE workspace_id=? AND caller_id IS ? AND context_id IS ?"
        " AND state IN ('received', 'running', 'answered')",
        (workspace_id, row[0], row[1]),
    ).fetchone()[0]
    notice = row[2] is not None and load_reply(row[2]).is_notice
    if notice:
        sent.outlive(db, workspace_id, row_id, wall, lateness=LATENESS)
    db.execute(
        "UPDATE message SET state='received', place=max(place, ?), attempt=0, interruptions=0, replay=replay+1,"
        " not_before=NULL, first_failed=NULL, reason=NULL, answer=?, kept=kept-?, changed=?"
        " WHERE workspace_id=? AND row_id=?",
        (
            *((last or 0) + 1, None if notice else row[2], len(row[2]) if notice else 0),
            *(wall, workspace_id, row_id),
        ),
    )
    return True


def retry_now(db: sqlite3.Connection, workspace_id: str, row_id: str, wall: float) -> bool:
    """Make a deferred message due now. A reply keeps its time: its echo may still arrive."""
    cursor = db.execute(
        "UPDATE message SET not_before=NULL, changed=? WHERE workspace_id=? AND row_id=? AND state='received'"
        " AND kind='message' AND not_before>?",
        (wall, workspace_id, row_id, wall),
    )
    return cursor.rowcount == 1


def retry_sends_now(db: sqlite3.Connection, workspace_id: str, wall: float) -> None:
    """Make deferred replies due now; those that a person may have, once their echo had time to arrive."""
    waiting = "workspace_id=? AND state='answered' AND not_before>?"
    db.execute(f"UPDATE message SET {_DUE_NOW} WHERE {waiting}", (ECHO_DELAY, wall, workspace_id, wall))  # noqa: S608


def retry_one_send_now(db: sqlite3.Connection, workspace_id: str, wall: float, *, most_in_doubt: int) -> None:
    """Make one deferred reply due now: the one sent least often with unknown outcome, and among those the oldest.

    Replies sent more than *most_in_doubt* times with unknown outcome keep their time.
    """
    db.execute(
        f"UPDATE message SET {_DUE_NOW} WHERE arrival=(SELECT arrival FROM message WHERE workspace_id=?"  # noqa: S608
        " AND state='answered' AND not_before>? AND in_doubt<=? ORDER BY in_doubt, changed, arrival LIMIT 1)",
        (ECHO_DELAY, wall, workspace_id, wall, most_in_doubt),
    )


# Takes ECHO_DELAY and the time.
_DUE_NOW = "not_before=CASE WHEN caller_id IS NULL AND in_doubt>0 THEN min(not_before, max(changed+?, ?)) ELSE NULL END"


def recover(db: sqlite3.Connection, workspace_id: str, wall: float, *, inbox: bool = False) -> int:
    """Undo unfinished work at the start of a process: runs that were cut short are requeued, sends may have arrived.

    An earlier process may have served in the other mode: no message runs in an *inbox*, and none is claimed outside of
    one, where answers and results don't wait either.

    Returns the number of runs that were cut short.
    """
    bound_waits(db, workspace_id, wall)
    cursor = db.execute(
        f"UPDATE message SET {_END_ATTEMPT}, state='received', attempt=attempt-1,"  # noqa: S608
        " interruptions=interruptions+?, changed=? WHERE workspace_id=? AND state='running'",
        (None, CUT_SHORT, 0 if inbox else 1, wall, workspace_id),
    )
    db.execute(
        "UPDATE message SET in_doubt=max(in_doubt, 1)"
        " WHERE workspace_id=? AND state='answered' AND answered_at IS NOT NULL",
        (workspace_id,),
    )
    # A notify that may have arrived has an echo, which takes a moment from now on, whatever makes sends due.
    db.execute(
        "UPDATE message SET not_before=max(coalesce(not_before, 0), ?), changed=?"
        " WHERE workspace_id=? AND state='answered' AND answered_at IS NOT NULL AND caller_id IS NULL",
        (wall + ECHO_DELAY, wall, workspace_id),
    )
    if not inbox:
        release_claims(db, workspace_id, wall)
    return cursor.rowcount


def bound_waits(db: sqlite3.Connection, workspace_id: str, wall: float) -> None:
    """Shorten waits after our clock was set back.

    ``not_before`` was stored together with ``changed``, by the same clock. If ``changed`` is in the future, the clock
    was wrong, and only the length of the wait is certain.
    """
    for table in ("message", "file"):
        db.execute(
            f"UPDATE {table} SET not_before=max(not_before - changed, 0) + ?, changed=?"  # noqa: S608
            " WHERE workspace_id=? AND not_before > ? AND changed > ?",
            (wall, wall, workspace_id, wall, wall + SET_BACK),
        )
    for state, longest in LONGEST_WAITS.items():
        db.execute(
            "UPDATE message SET not_before=? WHERE workspace_id=? AND state=? AND not_before>?",
            (wall + longest, workspace_id, state.value, wall + longest),
        )
    # The day or the limit may have changed; if the budget is still used up, they are deferred again.
    db.execute(
        "UPDATE message SET not_before=NULL WHERE workspace_id=? AND state='received' AND error LIKE ?",
        (workspace_id, f"%{DAY_SPENT}"),
    )


def release_claims(db: sqlite3.Connection, workspace_id: str, wall: float) -> None:
    """held -> received, for a workspace with a backend. Answers and results are done."""
    db.execute(
        "UPDATE message SET state=CASE WHEN kind='message' THEN 'received' ELSE 'done' END, holder=NULL,"
        " held_until=NULL, changed=? WHERE workspace_id=? AND state NOT IN ('done', 'dead')"
        " AND (state='held' OR (state='received' AND kind IN ('answer', 'result')))",
        (wall, workspace_id),
    )


def requeue_running(db: sqlite3.Connection, workspace_id: str, wall: float) -> int:
    """running -> received, for all: a requested stop is neither an attempt nor a crash."""
    return db.execute(
        f"UPDATE message SET {_END_ATTEMPT}, state='received', attempt=attempt-1, progress=NULL, changed=?"  # noqa: S608
        " WHERE workspace_id=? AND state='running'",
        (wall, STOPPED, wall, workspace_id),
    ).rowcount


def settle(db: sqlite3.Connection, message: StoredMessage) -> bool:
    """Whether the feed's echoes show that *message*'s reply, sent to a person with unknown outcome, arrived.

    Each accepted reply with the same text and files takes one echo; another one settles the oldest reply in doubt.
    Both pairs are stored.
    """
    send_print, answered_at, shown_by = db.execute(
        "SELECT send_print, answered_at, echo FROM message WHERE workspace_id=? AND row_id=?",
        (message.workspace_id, message.row_id),
    ).fetchone()
    if send_print is None or shown_by is not None:
        return shown_by is not None
    oldest = answered_at - REPEAT_WINDOW
    echoes = db.execute(
        "SELECT row_id, time FROM message WHERE workspace_id=? AND kind='echo' AND fingerprint=? AND echo IS NULL"
        " AND time >= ? ORDER BY time, arrival",
        (message.workspace_id, send_print, oldest),
    ).fetchall()
    sends = db.execute(
        "SELECT row_id, answered_at, accepted FROM message WHERE workspace_id=? AND send_print=? AND echo IS NULL"
        " AND (accepted >= ? OR (state='answered' AND in_doubt>0))"
        " ORDER BY accepted=0, answered_at, arrival",
        (message.workspace_id, send_print, oldest),
    ).fetchall()
    settled = False
    for row_id, since, accepted in sends:
        until = accepted + LATENESS if accepted else _NEVER
        match = next((echo for echo in echoes if since - LATENESS <= echo[1] <= until), None)
        if match is None:
            continue
        echoes.remove(match)
        pairs = ((row_id, message.workspace_id, match[0]), (match[0], message.workspace_id, row_id))
        db.executemany("UPDATE message SET echo=? WHERE workspace_id=? AND row_id=?", pairs)
        settled = settled or row_id == message.row_id
    return settled


def _both_ends(error: str) -> str:
    error = plain(error)
    if len(error) <= _ERROR_HEAD + _ERROR_TAIL:
        return error
    return f"{error[:_ERROR_HEAD]} [...] {error[-_ERROR_TAIL:]}"
