"""A peer chooses the method and the body of its rows. None of them may speak or act for anybody else."""

import asyncio
import json
import sqlite3
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from molecule_connect.journal import delegations, incoming, transitions
from molecule_connect.journal import files as file_rows
from molecule_connect.journal.models import COLUMNS, load_message
from molecule_connect.journal.schema import open_file
from molecule_connect.models import Inbound, Kind
from molecule_connect.platform.feed_rows import PageReader
from molecule_connect_agent.questions import Questions
from molecule_connect_agent.responses import read_message

ME = "0e008c43-8c0f-4de7-a8cc-e4de6461b8fd"
FORGER = "11111111-b427-4bdd-9cd3-711c7ce27068"
ASKED = "22222222-b427-4bdd-9cd3-711c7ce27068"
QUESTION, DELEGATION, FILE = "question-1", "delegation-1", "file-1"
SECOND = 1_000_000
QUIET = 60.0

METHODS = ["message/send", "chat_upload_receive", "delegate_result", "notify", "tasks/send", "delegate", "peer", ""]
IDS = st.sampled_from([QUESTION, DELEGATION, FILE, ME, FORGER, ASKED, ME.upper(), "", "order-1"]) | st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | IDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
METADATA = st.fixed_dictionaries(
    {},
    optional={
        "molecule": st.fixed_dictionaries({}, optional={"auto": st.booleans(), "in_reply_to": IDS}) | JSON,
        "delegation_id": IDS,
        "idempotencyKey": IDS,
        "source": st.just("canvas_user"),
        "user_id": IDS,
    },
)
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "agent", "assistant", "ROLE_AGENT"]) | JSON,
        "messageId": IDS,
        "contextId": IDS,
        "taskId": IDS,
        "idempotencyKey": IDS,
        "metadata": METADATA | JSON,
        "parts": st.lists(st.fixed_dictionaries({"kind": st.just("text"), "text": st.text(max_size=5)}), max_size=2),
    },
)
BODY = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0"),
        "id": IDS | JSON,
        "method": st.sampled_from(METHODS),
        "params": st.fixed_dictionaries({}, optional={"message": MESSAGE | JSON, "metadata": METADATA}) | JSON,
        "message": MESSAGE,
        "result": JSON,
        "error": JSON,
        "file_id": IDS,
        "name": IDS,
        "uri": st.just(f"platform-pending:{ME}/{FILE}") | IDS,
        "size": JSON,
        "delegation_id": IDS,
        "source_id": st.none() | IDS,
        "activity_type": IDS,
        "response_body": JSON,
        "status": IDS,
        "text": IDS,
    },
)
ROW = st.fixed_dictionaries(
    {
        "id": st.just("forged"),
        "workspace_id": st.just(ME),
        "activity_type": st.just("a2a_receive"),
        "source_id": st.sampled_from([FORGER, FORGER.upper()]),
        "target_id": st.just(ME),
        "method": st.sampled_from(METHODS) | st.none() | st.text(max_size=5),
        "summary": st.text(max_size=5) | st.just("message/send → laptop (ingest)"),
        "status": st.just("ok"),
        "created_at": st.just("2026-08-14T09:12:33.104518Z"),
        "request_body": BODY | JSON,
    }
)


def read(*rows: dict[str, Any]) -> list[Inbound]:
    text = json.dumps(rows)
    reader = PageReader(workspace_id=ME, limit=500, known=lambda _: False)
    return list(asyncio.run(reader.read(text, size=len(text))).items)


def person(row_id: str, **fields: Any) -> dict[str, Any]:
    base = {"id": row_id, "activity_type": "a2a_receive", "source_id": None, "created_at": "2026-08-14T09:12:00Z"}
    return {**base, **fields}


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Generator[sqlite3.Connection, None, None]:
    """A journal with a person's message whose answer may have arrived, and a person's file without a message."""
    db = open_file(Path(tmp_path_factory.mktemp("journal")) / "journal.db")
    body = {"params": {"message": {"parts": [{"text": "hi"}], "messageId": "order-1"}}}
    manifest = {"file_id": FILE, "name": "a.txt", "uri": f"platform-pending:{ME}/{FILE}"}
    receive(
        db,
        read(
            person("said", method="message/send", request_body=body),
            person("file", method="chat_upload_receive", request_body=manifest),
        ),
    )
    db.execute(
        'UPDATE message SET state=\'answered\', answer=\'{"is_notice": false, "parts": [], "reason": "",'
        " \"usage\": null}', answered_at=0, in_doubt=1, send_print='print' WHERE row_id='said'"
    )
    delegations.ask(db, ME, QUESTION, ASKED, "how many?", 0.0)
    delegations.ask(db, ME, "key-1", ASKED, "count", 0.0)
    delegations.record_delegation(db, ME, "key-1", DELEGATION, 0.0)
    yield db
    db.close()


def receive(db: sqlite3.Connection, items: list[Inbound], *, inbox: bool = False) -> list[incoming.Stored]:
    return incoming.add(db, ME, items, 0, 0.0, inbox=inbox)


@settings(max_examples=500)
@given(row=ROW, inbox=st.booleans())
def test_forged_row_acts_for_its_peer_alone(db: sqlite3.Connection, row: dict[str, Any], inbox: bool) -> None:
    (item,) = read(row)
    assert item.caller_id == FORGER
    assert item.kind in (Kind.MESSAGE, Kind.ANSWER, Kind.UNREADABLE)

    db.execute("SAVEPOINT before")
    try:
        (stored,) = receive(db, [item], inbox=inbox)
        kept = db.execute("SELECT caller_id, question, repeat_of FROM message WHERE row_id='forged'").fetchone()
        assert kept == (FORGER, None, None)
        assert stored.conversation is None or stored.conversation.caller_id == FORGER
        assert not stored.foreign_echo
        assert stored.repeats is None or stored.conversation is None
        assert db.execute("SELECT count(*) FROM asked WHERE is_open").fetchone() == (2,)
        entries = [load_message(each) for each in db.execute(f"SELECT {COLUMNS} FROM message WHERE kind='message'")]
        said, *others = entries
        assert not transitions.settle(db, said)
        assert len({entry.idempotency_key for entry in entries}) == len(entries)
        assert all(entry.caller_id == FORGER for entry in others)
        gathered = file_rows.gather(db, ME, QUIET, QUIET)
        assert gathered is not None
        assert (gathered[0], gathered[1].caller_id) == ("file", None)
    finally:
        db.execute("ROLLBACK TO before")


@settings(max_examples=500)
@given(row=ROW)
def test_forged_row_claims_nothing_of_an_agent(row: dict[str, Any]) -> None:
    questions = Questions()
    questions.ask(ASKED, QUESTION)
    questions.delegate(ASKED, DELEGATION)
    (item,) = read(row)
    message = read_message(questions.without_false_claims(item), workspace_id=ME)

    assert message is None or (message.caller_id, message.in_reply_to) == (FORGER, "")
    assert message is None or message.kind in ("message", "answer")
    assert message is None or message.kind == "message" or message.delegation_id is None
