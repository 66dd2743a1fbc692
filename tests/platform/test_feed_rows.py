"""The rows R1 to R12 of the platform contract, section (a), bare rows, and whatever else may come."""

import asyncio
import json
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.platform.kit import envelope, row

from molecule_connect.models import DataPart, FilePart, Inbound, Kind, Page, RowMark, TextPart
from molecule_connect.platform.feed_rows import PageReader, read_history, request_key
from molecule_connect.platform.parts import fingerprint

TEXT = {"kind": "text", "text": "hi"}
DEEP = "[" * 200_000 + "]" * 200_000


def page(text: str, *known: str, workspace_id: str = "ws-1") -> Page:
    reader = PageReader(workspace_id=workspace_id, limit=500, known=lambda row_id: row_id in known)
    return asyncio.run(reader.read(text, size=len(text)))


def read(fields: dict[str, Any]) -> Inbound:
    (item,) = page(json.dumps([fields])).items
    return item


def test_r1_text_of_a_person_may() -> None:
    history = {"history": [{"role": "agent", "parts": [{"kind": "text", "text": "earlier"}]}]}
    body = envelope(TEXT, metadata=history)
    inbound = read(row(source_id=None, seq=..., request_body=body, summary="message/send → laptop (queued for poll)"))

    assert inbound == Inbound(
        row_id="r1",
        kind=Kind.MESSAGE,
        time=1_786_698_753_104_518,
        message_id="m1",
        sender_key="m1",
        idempotency_key=request_key("ws-1", None, "r1"),
        parts=[TextPart("hi")],
        raw=json.dumps(body),
        fingerprint=fingerprint([TextPart("hi")]),
    )


def test_r2_text_of_a_person_august() -> None:
    metadata = {"source": "canvas_user", "user_identity_status": "AUTHENTICATED", "user_id": "7"}
    body = envelope(TEXT, message={"contextId": "conv-9"}, metadata=metadata)
    inbound = read(row(source_id=None, request_body=body))

    assert (inbound.kind, inbound.caller_id, inbound.context_id, inbound.seq) == (Kind.MESSAGE, None, "conv-9", 90311)


def test_r3_files_of_person() -> None:
    file = {"kind": "file", "file": {"uri": "platform-pending:ws-1/F1", "name": "a.txt", "mimeType": "text/plain"}}
    expected = FilePart(uri="platform-pending:ws-1/F1", name="a.txt", mime_type="text/plain")

    assert read(row(source_id=None, request_body=envelope(TEXT, file))).parts == (TextPart("hi"), expected)
    assert read(row(source_id=None, request_body=envelope(file))).parts == (expected,)


MANIFEST = {"file_id": "F1", "name": "a.txt", "mimeType": "text/plain", "size": 12, "uri": "platform-pending:x/F1"}


def test_r4_manifest_is_an_upload() -> None:
    inbound = read(row(source_id=None, method="chat_upload_receive", request_body=MANIFEST))

    assert inbound.kind is Kind.UPLOAD
    assert inbound.parts == (FilePart(uri="platform-pending:x/F1", name="a.txt", mime_type="text/plain", size=12),)


@pytest.mark.parametrize("source", ["peer-1", "ws-1"])
def test_manifest_with_a_source_is_no_upload(source: str) -> None:
    inbound = read(row(source_id=source, method="chat_upload_receive", request_body=MANIFEST, summary=""))

    assert (inbound.kind, inbound.parts) == (Kind.OWN if source == "ws-1" else Kind.UNREADABLE, ())
    assert inbound.caller_id == source


@pytest.mark.parametrize("source", ["peer-1", None])
def test_posted_manifest_is_no_upload(source: str | None) -> None:
    posted = {"jsonrpc": "2.0", "id": "1", "method": "chat_upload_receive", **MANIFEST}
    inbound = read(row(source_id=source, method="chat_upload_receive", request_body=posted))

    assert (inbound.kind, inbound.caller_id) == (Kind.UNREADABLE, source)


def test_forged_method_of_peer_stays_a_message() -> None:
    for method in ("chat_upload_receive", "delegate_result", "notify"):
        inbound = read(row(method=method, request_body=envelope(TEXT) | MANIFEST | {"method": method}))
        assert (inbound.kind, inbound.caller_id, inbound.parts) == (Kind.MESSAGE, "peer-1", (TextPart("hi"),))


@pytest.mark.parametrize("uri", [{}, {"uri": ""}, {"uri": "somewhere"}])
def test_missing_upload_address_is_made_from_ids(uri: dict[str, str]) -> None:
    manifest = {"file_id": "F1", "name": "a.txt", **uri}

    (part,) = read(row(source_id=None, method="chat_upload_receive", request_body=manifest)).parts

    assert part == FilePart(uri="platform-pending:ws-1/F1", name="a.txt")


@pytest.mark.parametrize("role", ["agent", "assistant", "ROLE_AGENT", "Agent"])
def test_r5_agent_role_is_an_answer(role: str) -> None:
    assert read(row(request_body=envelope(TEXT, message={"role": role}))).kind is Kind.ANSWER


@pytest.mark.parametrize("role", ["user", "ROLE_USER", None, "", 5, "system"])
def test_any_other_role_is_a_message(role: object) -> None:
    assert read(row(request_body=envelope(TEXT, message={"role": role}))).kind is Kind.MESSAGE


def test_automatic_mark_is_an_answer() -> None:
    mark = {"metadata": {"molecule": {"auto": True, "in_reply_to": "q7"}}}
    inbound = read(row(request_body=envelope(TEXT, message=mark)))

    assert (inbound.kind, inbound.reason, inbound.parts) == (Kind.ANSWER, "q7", (TextPart("hi"),))


def test_similar_marks_are_ignored() -> None:
    for mark in ({"auto": "true"}, {"auto": 1}, "auto", {}):
        assert read(row(request_body=envelope(TEXT, message={"metadata": {"molecule": mark}}))).kind is Kind.MESSAGE


@pytest.mark.parametrize("key", ["type", "kind"])
def test_r6_delegated_task_is_a_message(key: str) -> None:
    message = {"messageId": "D1", "metadata": {"delegation_id": "D1"}}
    inbound = read(row(request_body=envelope({key: "text", "text": "do X"}, message=message)))

    assert (inbound.kind, inbound.delegation_id, inbound.parts) == (Kind.MESSAGE, "D1", (TextPart("do X"),))


def test_r7_echo_has_a_fingerprint() -> None:
    file = {"kind": "file", "file": {"uri": "platform-pending:ws-1/F1", "name": "a.txt"}}
    base: dict[str, Any] = {"source_id": None, "target_id": None, "method": "notify", "summary": "Agent message: done"}
    bare = read(row(**base, response_body={"result": "done"}))
    full = read(row(**base, response_body={"result": "done", "parts": [file]}))

    assert (bare.kind, full.kind) == (Kind.ECHO, Kind.ECHO)
    assert bare.fingerprint == fingerprint([TextPart("done")])
    assert full.parts == (TextPart("done"), FilePart(uri="platform-pending:ws-1/F1", name="a.txt"))


def test_echo_needs_a_response_and_no_request() -> None:
    base: dict[str, Any] = {"source_id": None, "method": "notify", "summary": "Agent message: done"}

    assert read(row(**base)).kind is Kind.HISTORY
    assert read(row(**base, response_body={"result": "x"}, request_body=envelope(TEXT))).kind is Kind.HISTORY
    assert read(row(**base, request_body=envelope(TEXT))).kind is Kind.MESSAGE
    assert read(row(**{**base, "source_id": "peer-1"}, response_body={"result": "done"})).kind is Kind.HISTORY
    assert read(row(**{**base, "source_id": "ws-1"}, response_body={"result": "done"})).kind is Kind.OWN


RESULT: dict[str, Any] = {
    "method": "delegate_result",
    "request_body": {"delegation_id": "D2"},
    "response_body": {"text": "result", "delegation_id": "D2"},
}


@pytest.mark.parametrize(("target", "callee"), [("peer-2", "peer-2"), ("ws-1", None), (None, None)])
def test_r8_delegation_result_names_the_callee(target: str | None, callee: str | None) -> None:
    inbound = read(row(source_id="ws-1", target_id=target, **RESULT))

    assert (inbound.kind, inbound.parts, inbound.delegation_id) == (Kind.RESULT, (TextPart("result"),), "D2")
    assert inbound.caller_id == callee


@pytest.mark.parametrize("source", ["peer-1", None])
def test_result_of_another_source_is_none(source: str | None) -> None:
    posted = envelope(TEXT) | {"method": "delegate_result", "delegation_id": "D2"}

    assert read(row(source_id=source, **RESULT)).kind is Kind.HISTORY
    inbound = read(row(source_id=source, method="delegate_result", request_body=posted))
    assert (inbound.kind, inbound.caller_id) == (Kind.UNREADABLE if source is None else Kind.MESSAGE, source)


def test_posted_result_is_an_own_row() -> None:
    posted = envelope(TEXT) | {"method": "delegate_result", "delegation_id": "D2"}

    assert read(row(source_id="ws-1", method="delegate_result", request_body=posted)).kind is Kind.OWN


@pytest.mark.parametrize("source", ["x" * 129, "x" * 70_000, "a b", "../x", "..", {"a": 1}, ["ws-1"], True, 1.5])
def test_invalid_source_is_never_a_person(source: Any) -> None:
    inbound = read(row(source_id=source, request_body=envelope(TEXT)))

    assert inbound.kind is Kind.UNREADABLE
    assert inbound.caller_id is not None
    assert len(inbound.caller_id) <= 1024


def test_uuid_in_capitals_is_same_workspace() -> None:
    peer = "056d2365-b427-4bdd-9cd3-711c7ce27068"

    assert read(row(source_id=peer.upper(), request_body=envelope(TEXT))).caller_id == peer
    own = page(json.dumps([row(source_id=peer.upper(), request_body=envelope(TEXT))]), workspace_id=peer)
    assert own.items[0].kind is Kind.OWN


def test_long_ids_are_cut_and_stay_distinct(caplog: pytest.LogCaptureFixture) -> None:
    ids = [f"{'x' * 200_000}{number}" for number in range(2)]
    keys = ("messageId", "contextId", "taskId", "idempotencyKey")
    first, second = (read(row(request_body=envelope(TEXT, message=dict.fromkeys(keys, one)))) for one in ids)

    for inbound in (first, second):
        found = (inbound.message_id, inbound.context_id, inbound.task_id, inbound.sender_key)
        assert {len(one or "") for one in found} == {1024}
    assert first.message_id != second.message_id
    assert "from 200001 to 1024 characters" in caplog.text


def test_row_by_this_workspace_is_own() -> None:
    assert read(row(source_id="ws-1", request_body=envelope(TEXT))).kind is Kind.OWN


@pytest.mark.parametrize("summary", [" → laptop (queued for poll)", "message/send → laptop (ingest)", "", " ", None])
def test_r9_lost_text_is_unreadable(summary: str | None) -> None:
    body = {"jsonrpc": "2.0", "id": "u9", "method": None, "params": None}
    fields = row(method="", summary=summary, request_body=body)
    inbound = read(fields)

    assert inbound.kind is Kind.UNREADABLE
    assert inbound.reason
    assert json.loads(inbound.raw) == fields


def test_r9_custom_summary_is_the_text() -> None:
    inbound = read(row(method="", summary="please look", request_body=None))

    assert (inbound.kind, inbound.parts) == (Kind.MESSAGE, (TextPart("please look"),))


@pytest.mark.parametrize(
    "body",
    [
        {"params": {"parts": [{"type": "text", "text": "hi"}]}},
        {"parts": [{"text": "hi"}]},
        {"params": {"message": {"content": "hi"}}},
        {"params": {"message": {"content": [{"kind": "text", "text": "hi"}]}}},
        {"message": {"parts": ["hi"]}},
        {"role": "user", "parts": ["hi"]},
        {"message": "hi"},
        {"params": {"message": "hi"}},
        [{"kind": "text", "text": "hi"}],
        "hi",
        json.dumps({"params": {"message": {"parts": [{"text": "hi"}]}}}),
    ],
)
def test_r10_text_is_found_in_all_places(body: Any) -> None:
    inbound = read(row(request_body=body))

    assert (inbound.kind, inbound.parts, inbound.message_id) == (Kind.MESSAGE, (TextPart("hi"),), "r1")


def test_r11_other_method_is_a_message() -> None:
    inbound = read(row(method="tasks/send", request_body={"method": "tasks/send", "params": {"parts": [TEXT]}}))

    assert (inbound.kind, inbound.method) == (Kind.MESSAGE, "tasks/send")


@pytest.mark.parametrize(
    ("result", "parts"),
    [
        ({"parts": [TEXT]}, (TextPart("hi"),)),
        ({"status": {"message": {"parts": [TEXT]}}}, (TextPart("hi"),)),
        ({"artifacts": [{"parts": [TEXT]}, {"parts": ["there"]}]}, (TextPart("hi"), TextPart("there"))),
        ({"id": "task-1"}, (DataPart({"id": "task-1"}),)),
        ("hi", (TextPart("hi"),)),
    ],
)
def test_r11_json_rpc_response_is_answer(result: Any, parts: tuple[Any, ...]) -> None:
    inbound = read(row(method="", request_body={"jsonrpc": "2.0", "id": "1", "result": result}))
    assert inbound.reason == "1"

    assert (inbound.kind, inbound.parts) == (Kind.ANSWER, parts)


def test_r12_other_activities_are_history() -> None:
    for activity in ("broadcast_receive", "task_update", "a2a_send", "delegation"):
        assert read(row(activity_type=activity, request_body=envelope(TEXT))).kind is Kind.HISTORY
    assert read(row(activity_type="agent_log", source_id="ws-1")).kind is Kind.OWN
    assert read(row(activity_type=..., type="task_update", summary="running")).kind is Kind.HISTORY


@pytest.mark.parametrize("more", [{"response_body": {"result": "x"}}, {"response_body": {}}, {"status": "error"}])
def test_answered_or_failed_row_is_history(more: dict[str, Any]) -> None:
    assert read(row(request_body=envelope(TEXT), **more)).kind is Kind.HISTORY


@pytest.mark.parametrize(
    "more", [{"method": "peer_agent"}, {"request_body": envelope(TEXT, message={"metadata": {"delegation_id": "D"}})}]
)
@pytest.mark.parametrize("source", [None, ""])
def test_unnamed_peer_is_unreadable(more: dict[str, Any], source: str | None) -> None:
    inbound = read(row(source_id=source, **({"request_body": envelope(TEXT)} | more)))

    assert inbound.kind is Kind.UNREADABLE
    assert "does not say which" in inbound.reason


@pytest.mark.parametrize("kind", ["activity_type", "type"])
def test_a_bare_row_is_a_message(kind: str) -> None:
    bare = {"id": "act-1", kind: "a2a_receive", "source_id": "ws-peer", "method": "message/send"}
    body = {"params": {"message": {"parts": [{"type": "text", "text": "ping"}]}}}
    inbound = read(bare | {"request_body": body})

    assert inbound == Inbound(
        row_id="act-1",
        kind=Kind.MESSAGE,
        caller_id="ws-peer",
        message_id="act-1",
        idempotency_key=request_key("ws-1", "ws-peer", "act-1"),
        parts=[TextPart("ping")],
        raw=json.dumps(body),
        fingerprint=fingerprint([TextPart("ping")]),
    )


@pytest.mark.parametrize(
    "message",
    [
        {"idempotencyKey": "k1"},
        {"idempotency_key": "k1"},
        {"metadata": {"idempotencyKey": "k1"}},
        {"metadata": {"idempotency_key": "k1"}},
    ],
)
def test_sender_key_marks_retries_only(message: dict[str, Any]) -> None:
    inbound = read(row(request_body=envelope(TEXT, message=message)))

    assert (inbound.sender_key, inbound.message_id) == ("k1", "m1")
    assert inbound.idempotency_key == request_key("ws-1", "peer-1", "r1")


def test_sender_key_defaults_to_message_id() -> None:
    assert read(row(request_body=envelope(TEXT))).sender_key == "m1"
    assert read(row(request_body={"parts": [TEXT]})).sender_key is None


def test_idempotency_key_is_unique_and_stable() -> None:
    body = envelope(TEXT, message={"idempotencyKey": "order-1"})
    keys = [
        read(row(row_id, source_id=source, request_body=body)).idempotency_key
        for row_id, source in (("r1", "peer-1"), ("r2", "peer-1"), ("r3", "peer-2"), ("r4", None))
    ]

    assert len({*keys, request_key("ws-2", "peer-1", "r1")}) == 5
    assert read(row("r1", request_body=body)).idempotency_key == keys[0]


def test_raw_body_is_unchanged() -> None:
    body = '{"z": 12345678901234567890, "a": 1.10, "params": {"parts": ["hi"]}}'
    text = json.dumps([row(request_body="BODY")]).replace('"BODY"', body)

    assert page(text).items[0].raw == body


def test_raw_body_in_a_string_is_unquoted() -> None:
    assert read(row(request_body='{"parts": ["hi"]}')).raw == '{"parts": ["hi"]}'


def test_row_without_id_is_skipped() -> None:
    found = page(json.dumps([row("a"), row(""), row(..., x=1), row(None), row(True), 5, row("b"), row(7)]))

    assert found.count == 8
    assert [mark.row_id for mark in found.marks] == ["a", "b", "7"]


def test_known_row_is_only_marked() -> None:
    found = page(json.dumps([row("new"), row("old", created_at="1970-01-01T00:00:01Z")]), "old")

    assert found.marks[1] == RowMark("old", 1_000_000)
    assert [item.row_id for item in found.items] == ["new"]


def test_row_with_invalid_time_is_read() -> None:
    for time in (..., None, "soon", 5):
        inbound = read(row(created_at=time, request_body=envelope(TEXT)))
        assert (inbound.time, inbound.kind) == (None, Kind.MESSAGE)


def test_deep_body_is_unreadable() -> None:
    deep = row("deep", source_id="peer-1", request_body="BODY")
    text = json.dumps([deep, row("next", request_body=envelope(TEXT))]).replace('"BODY"', DEEP)
    first, second = page(text).items

    assert (first.kind, first.row_id, first.caller_id) == (Kind.UNREADABLE, "deep", "peer-1")
    assert DEEP in first.raw
    assert second.kind is Kind.MESSAGE


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["kind", "text", "parts", "file", "message", "params", "metadata", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)
SHAPED = st.fixed_dictionaries(
    {},
    optional={
        "id": st.text(min_size=1, max_size=3) | JSON,
        "activity_type": st.sampled_from(["a2a_receive", "x"]) | JSON,
        "source_id": st.sampled_from(["ws-1", "p", None, ""]) | JSON,
        "method": st.sampled_from(["message/send", "notify", "delegate_result", "chat_upload_receive"]) | JSON,
        "created_at": st.just("2026-05-05T10:00:00Z") | JSON,
        "status": JSON,
        "seq": JSON,
        "summary": JSON,
        "request_body": st.fixed_dictionaries({}, optional={"params": JSON, "parts": JSON, "result": JSON}) | JSON,
        "response_body": st.none() | JSON,
    },
)


@given(st.lists(SHAPED | JSON, max_size=4))
def test_every_row_is_classified(rows: list[Any]) -> None:
    found = page(json.dumps(rows))

    assert found.count == len(rows)
    assert len(found.marks) == len(found.items)
    assert all(attrs.evolve(item) == item and item.message_id and item.idempotency_key for item in found.items)


@given(st.lists(JSON, min_size=1, max_size=4), st.text(min_size=1))
def test_no_text_of_parts_is_lost(parts: list[Any], words: str) -> None:
    place = len(parts) // 2
    inbound = read(row(request_body=envelope(*parts[:place], {"kind": "text", "text": words}, *parts[place:])))

    expected = words.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert TextPart(expected) in inbound.parts
    assert len(inbound.parts) == 1 + sum(part is not None for part in parts)


def test_history_has_messages_only() -> None:
    echo: dict[str, Any] = {"source_id": None, "method": "notify", "response_body": {"result": "done"}}
    rows = [
        row("a", request_body=envelope(TEXT)),
        row("b", **echo),
        row("c", method="chat_upload_receive", request_body={"file_id": "F", "uri": "platform-pending:ws-1/F"}),
        row("d", activity_type="agent_log", request_body=envelope(TEXT)),
        row("e", method="", summary=" (ingest)", request_body={}),
        row("f", activity_type="a2a_send", source_id="ws-1", request_body=envelope(TEXT)),
    ]
    told = [(one.row_id, one.kind) for one in read_history(rows, workspace_id="ws-1")]
    assert told == [("a", Kind.MESSAGE), ("b", Kind.ECHO), ("f", Kind.OWN)]


async def test_other_tasks_run_between_rows() -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    text = json.dumps([row(f"r{number}", request_body=envelope(*[TEXT] * 500)) for number in range(50)])
    reader = PageReader(workspace_id="ws-1", limit=500, known=lambda _: False)
    task = asyncio.create_task(count_turns())
    found = await reader.read(text, size=len(text))
    task.cancel()

    assert turns > 1
    assert [len(item.parts) for item in found.items] == [500] * 50
