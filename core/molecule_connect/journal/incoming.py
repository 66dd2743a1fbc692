"""New rows of the feed, as SQL: each is stored once, in its initial state."""

import sqlite3
import traceback
from collections.abc import Iterable

import attrs

from molecule_connect.journal import delegations, incoming_files, sent
from molecule_connect.journal.models import Conversation, State, dump_parts, is_too_deep, plain, plain_or_none
from molecule_connect.journal.quotas import UNLIMITED, PeerRoom
from molecule_connect.journal.transitions import LATENESS, REPEAT_WINDOW, replay
from molecule_connect.models import Inbound, Kind

# Characters of a traceback that are kept, from its end.
LONGEST_TRACE = 20_000
# The number of equal replies that are compared with their echoes, newest first.
COMPARED = 200


@attrs.frozen(kw_only=True)
class Stored:
    """How ``add`` stored one row.

    Attributes:
        reason: Why it is dead.
        repeats: The row id of the message that it repeats.
        foreign_echo: Whether it is the echo of a reply that this journal didn't send.
        own_upload: Whether it announces only files that we uploaded.
        conversation: The conversation that has a new message because of it.
    """

    item: Inbound
    time: int
    state: State
    reason: str | None = None
    repeats: str | None = None
    foreign_echo: bool = False
    own_upload: bool = False
    conversation: Conversation | None = None


def add(
    db: sqlite3.Connection,
    workspace_id: str,
    items: Iterable[Inbound],
    now: int,
    wall: float,
    *,
    inbox: bool = False,
    quota: int = UNLIMITED,
) -> list[Stored]:
    """Store the rows that are new. *now* replaces a missing time, in the order of the rows.

    Unfinished messages of peers are kept within their shares of *quota* (bytes, see ``PeerRoom``); further ones become
    dead letters without a text.

    In an *inbox*, answers, results of our own delegations, and empty messages wait for a reader too. A row that can't
    be stored becomes an unreadable one, with the traceback as its error.
    """
    rows = [(now + number, item) for number, item in enumerate(items)]
    return _add(db, workspace_id, rows, wall, inbox, quota)


def _add(
    db: sqlite3.Connection, workspace_id: str, rows: list[tuple[int, Inbound]], wall: float, inbox: bool, quota: int
) -> list[Stored]:
    """Store *rows*, each with the time that replaces a missing one. A savepoint for each row would cost a third."""
    stored, room = [], PeerRoom(db, workspace_id, quota)
    db.execute("SAVEPOINT these")
    try:
        for fallback, item in rows:
            known = db.execute("SELECT 1 FROM message WHERE workspace_id=? AND row_id=?", (workspace_id, item.row_id))
            if known.fetchone() is None:
                time = item.time if item.time is not None else fallback
                stored.append(_add_one(db, workspace_id, item, time, wall, inbox, room))
    except sqlite3.OperationalError:
        raise
    except Exception as exc:  # any content of a row
        db.execute("ROLLBACK TO these")
        if len(rows) > 1:
            stored = [one for row in rows for one in _add(db, workspace_id, [row], wall, inbox, quota)]
        else:
            stored = [_store_unreadable(db, workspace_id, rows[0][1], rows[0][0], wall, exc)]
    db.execute("RELEASE these")
    return stored


def _store_unreadable(
    db: sqlite3.Connection, workspace_id: str, item: Inbound, time: int, wall: float, exc: Exception
) -> Stored:
    """Store only the fields of *item* that cannot fail."""
    item = Inbound(
        row_id=item.row_id,
        kind=Kind.UNREADABLE,
        caller_id=item.caller_id,
        message_id=item.row_id,
        idempotency_key=item.row_id,
        raw=item.raw,
        reason=f"it cannot be stored: {type(exc).__name__}",
    )
    stored = Stored(item=item, time=time, state=State.DEAD, reason=f"unreadable: {item.reason}")
    _insert(db, workspace_id, stored, wall, parts="[]", size=_size(item.raw, "[]"), question=None, echo=None)
    trace = plain("".join(traceback.format_exception(exc)))[-LONGEST_TRACE:]
    db.execute("UPDATE message SET error=? WHERE workspace_id=? AND row_id=?", (trace, workspace_id, item.row_id))
    return stored


def _add_one(
    db: sqlite3.Connection, workspace_id: str, item: Inbound, time: int, wall: float, inbox: bool, room: PeerRoom
) -> Stored:
    if is_too_deep(item.parts):
        kind = Kind.UNREADABLE if item.kind is Kind.MESSAGE else item.kind
        item = attrs.evolve(item, kind=kind, parts=(), reason="it is nested too deeply")
    item = incoming_files.accepted(item)
    if inbox and item.is_blank:
        item = attrs.evolve(item, kind=Kind.MESSAGE, reason="")
    question = None
    if inbox and item.kind in (Kind.ANSWER, Kind.RESULT):
        question = delegations.answered_by(db, workspace_id, item)
        item = _attributed(item, question)
    told = item.kind is Kind.ECHO and sent.echoed(db, workspace_id, item.fingerprint, item.row_id)
    foreign = item.kind is Kind.ECHO and not told and not _ours(db, workspace_id, item.fingerprint, time)
    waits = inbox and (item.kind is Kind.ANSWER or (item.kind is Kind.RESULT and question is not None))
    stored = _begun(db, workspace_id, item, time, wall, inbox, waits)
    if foreign:
        stored = attrs.evolve(stored, foreign_echo=True)
    text = dump_parts(item.parts)
    parts: str | None = text
    size = _size(item.raw, text)
    if stored.state is State.RECEIVED and item.caller_id is not None and (full := room.refuses(item.caller_id, size)):
        item = attrs.evolve(item, parts=(), raw="")
        stored, parts, size = Stored(item=item, time=time, state=State.DEAD, reason=full), None, 0
    asked = question[0] if question is not None else None
    echo = sent.TOLD if told else None
    _insert(db, workspace_id, stored, wall, parts=parts, size=size, question=asked, echo=echo)
    incoming_files.add(db, workspace_id, item, time, wall, is_repeat=stored.repeats is not None)
    if incoming_files.is_own_upload(db, workspace_id, item):
        stored = attrs.evolve(stored, own_upload=True)
    return stored


def _attributed(item: Inbound, question: tuple[str, str] | None) -> Inbound:
    """*item* with the peer that was asked, and without a delegation that an answer claims but that isn't ours."""
    if question is not None:
        return attrs.evolve(item, caller_id=question[1])
    return item if item.kind is Kind.RESULT else attrs.evolve(item, delegation_id=None)


def _begun(
    db: sqlite3.Connection, workspace_id: str, item: Inbound, time: int, wall: float, inbox: bool, waits: bool
) -> Stored:
    """How *item* is stored. An answer or a result that doesn't *wait* for a reader is done."""
    if item.kind is Kind.UNREADABLE:
        return Stored(item=item, time=time, state=State.DEAD, reason=f"unreadable: {item.reason}")
    if item.kind is not Kind.MESSAGE:
        return Stored(item=item, time=time, state=State.RECEIVED if waits else State.DONE)
    conversation = Conversation(plain_or_none(item.caller_id), plain_or_none(item.context_id))
    original = _original(db, workspace_id, item, time)
    if original is None:
        return Stored(item=item, time=time, state=State.RECEIVED, conversation=None if inbox else conversation)
    row_id, state, context_id = original
    revived = state == State.DEAD and replay(db, workspace_id, row_id, wall)
    conversation = Conversation(conversation.caller_id, context_id)
    return Stored(
        item=item,
        time=time,
        state=State.DONE,
        repeats=row_id,
        conversation=conversation if revived else None,
    )


def _insert(
    db: sqlite3.Connection,
    workspace_id: str,
    stored: Stored,
    wall: float,
    *,
    parts: str | None,
    size: int,
    question: str | None,
    echo: str | None,
) -> None:
    """Insert the row. *parts*: its parts as JSON, or None to store neither them nor the raw text; *size*: of both."""
    item, time = stored.item, stored.time
    db.execute(
        "INSERT INTO message (workspace_id, row_id, kind, state, time, seq, place, caller_id, context_id, task_id,"
        " message_id, sender_key, idempotency_key, method, fingerprint, delegation_id, parts, raw, size, reason,"
        " repeat_of, question, echo, changed, kept) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        (
            *(workspace_id, item.row_id, item.kind.value, stored.state.value, time, item.seq or 0, time),
            *map(plain_or_none, (item.caller_id, item.context_id, item.task_id, item.message_id)),
            *map(plain_or_none, (item.sender_key, item.idempotency_key, item.method)),
            *(item.fingerprint, plain_or_none(item.delegation_id), parts),
            *(None if parts is None else plain(item.raw), len(item.raw), plain_or_none(stored.reason)),
            *(stored.repeats, question, echo, wall, size),
        ),
    )


def _size(raw: str, parts: str) -> int:
    """The bytes of both texts; *parts* is ASCII."""
    return (len(raw) if raw.isascii() else len(raw.encode(errors="replace"))) + len(parts)


def _original(
    db: sqlite3.Connection, workspace_id: str, item: Inbound, time: int
) -> tuple[str, str, str | None] | None:
    """Row id, state and context of the message that *item* repeats."""
    if item.sender_key is None:
        return None
    # Without INDEXED BY, SQLite scans all rows of the two hours.
    found: tuple[str, str, str | None] | None = db.execute(
        "SELECT row_id, state, context_id FROM message INDEXED BY message_sender"
        " WHERE workspace_id=? AND sender_key=? AND fingerprint=?"
        " AND caller_id IS ? AND kind='message' AND repeat_of IS NULL AND time > ? AND time < ?"
        # A dead letter whose text was deleted cannot be replayed: the repeat takes its place.
        " AND (state<>'dead' OR parts IS NOT NULL)"
        " ORDER BY arrival LIMIT 1",
        (
            *(workspace_id, plain_or_none(item.sender_key), item.fingerprint, plain_or_none(item.caller_id)),
            *(time - REPEAT_WINDOW, time + REPEAT_WINDOW),
        ),
    ).fetchone()
    return found


def _ours(db: sqlite3.Connection, workspace_id: str, fingerprint: str, time: int) -> bool:
    """Whether an echo shows a reply that we sent: there are fewer echoes with its text and files than sends.

    Another connector may send equal replies, so one equal send is not enough. Each send can have an echo.
    """
    tries, since = db.execute(
        "SELECT coalesce(sum(sends + 1), 0), min(answered_at) FROM (SELECT sends, answered_at FROM message"
        " WHERE workspace_id=? AND send_print=? AND answered_at < ? ORDER BY answered_at DESC LIMIT ?)",
        (workspace_id, fingerprint, time + LATENESS, COMPARED),
    ).fetchone()
    if not tries:
        return False
    (echoes,) = db.execute(
        "SELECT count(*) FROM (SELECT 1 FROM message WHERE workspace_id=? AND kind='echo' AND fingerprint=?"
        " AND time >= ? LIMIT ?)",
        (workspace_id, fingerprint, since, tries),
    ).fetchone()
    return int(echoes) < int(tries)
