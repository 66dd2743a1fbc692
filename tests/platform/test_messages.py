import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from molecule_connect.errors import PermanentPlatformError
from molecule_connect.models import DataPart, FilePart, Kind, Outgoing, Part, TextPart
from molecule_connect.platform.feed_rows import classify
from molecule_connect.platform.messages import attachments, notify_fingerprint, notify_text, peer_envelope, to_json

FILE = FilePart(uri="https://x/a.txt", name="a.txt", mime_type="text/plain", size=12)


def outgoing(*parts: Part, context_id: str | None = "c1") -> Outgoing:
    return Outgoing(message_id="out-1", caller_id="peer-1", context_id=context_id, in_reply_to="q1", parts=parts)


def test_an_answer_to_a_peer_has_the_shape_that_every_platform_takes() -> None:
    assert peer_envelope(outgoing(TextPart("hi"), FILE, DataPart({"a": 1}))) == {
        "jsonrpc": "2.0",
        "id": "out-1",
        "method": "message/send",
        "params": {
            "message": {
                "role": "agent",
                "messageId": "out-1",
                "contextId": "c1",
                "parts": [
                    {"kind": "text", "text": "hi"},
                    {
                        "kind": "file",
                        "file": {"uri": "https://x/a.txt", "name": "a.txt", "mimeType": "text/plain", "size": 12},
                    },
                    {"kind": "data", "data": {"a": 1}},
                ],
                "metadata": {"molecule": {"in_reply_to": "q1", "auto": True}},
            }
        },
    }


def test_without_a_context_none_is_sent() -> None:
    assert "contextId" not in peer_envelope(outgoing(TextPart("hi"), context_id=None))["params"]["message"]


def test_our_own_answer_is_read_as_an_answer_with_the_same_parts() -> None:
    inline = FilePart(uri="data:text/plain;base64,aGk=", name="b.txt", mime_type="text/plain")
    sent = peer_envelope(outgoing(TextPart("hi"), FILE, inline, DataPart([1])))
    inbound = classify({"source_id": "peer-1", "request_body": sent}, row_id="r", workspace_id="ws-1")

    assert inbound.kind is Kind.ANSWER
    assert inbound.parts == (TextPart("hi"), FILE, inline, DataPart([1]))


def test_a_peer_gets_inline_bytes_back_as_bytes_also_when_they_lie_here_too() -> None:
    inline = FilePart(uri="data:text/plain;base64,aGk=", name="b.txt", path=Path("/secret/place/b.txt"))
    (part,) = peer_envelope(outgoing(inline))["params"]["message"]["parts"]
    assert part == {"kind": "file", "file": {"bytes": "aGk=", "name": "b.txt"}}


def test_a_person_reads_text_data_and_the_names_of_files() -> None:
    local = FilePart(uri="", path=Path("/secret/place/report.pdf"))
    parts: list[Part] = [TextPart("Done."), DataPart({"a": "é"}), FILE, local]
    text = notify_text(parts)

    data = '```json\n{\n  "a": "é"\n}\n```'
    assert text == f"Done.\n\n{data}\n\nFile: a.txt (text/plain, 12 bytes) https://x/a.txt\n\nFile: report.pdf"


def test_a_fence_is_longer_than_what_it_holds() -> None:
    assert notify_text([DataPart("```` x")]).splitlines()[0] == "`````json"


def test_the_echo_of_a_notify_has_the_fingerprint_that_was_foretold() -> None:
    parts: list[Part] = [TextPart("a\0b"), DataPart({"x": 1})]
    row = {"method": "notify", "source_id": None, "response_body": {"result": notify_text(parts)}}

    echo = classify(row, row_id="r", workspace_id="ws-1")

    assert echo.kind is Kind.ECHO
    assert echo.fingerprint == notify_fingerprint(parts)


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), float("inf"), object(), b"bytes"])
def test_what_json_cannot_say_is_refused_before_it_is_sent(value: Any) -> None:
    for write in (lambda: to_json({"a": value}, operation="a2a"), lambda: notify_text([DataPart(value)])):
        with pytest.raises(PermanentPlatformError, match="JSON"):
            write()


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6))
def test_no_nul_and_no_half_character_ever_leaves(value: Any) -> None:
    sent = to_json(value, operation="a2a").decode()

    assert "\0" not in sent
    assert "\\u0000" not in sent.replace("\\\\", "")
    json.loads(sent)


def test_a_nul_is_taken_out_of_keys_and_values_alone() -> None:
    assert json.loads(to_json({"a\0": ["b\0c", "\\u0000"]}, operation="a2a")) == {"a": ["bc", "\\u0000"]}
    assert json.loads(to_json("x\ud800y", operation="a2a")) == "x\ufffdy"


UPLOADED = FilePart(uri="platform-pending:ws-1/f1", name="a.txt", mime_type="text/plain", size=3)


def test_an_uploaded_file_goes_beside_the_text_and_not_into_it() -> None:
    parts = (TextPart("see here"), UPLOADED)

    assert notify_text(parts) == "see here"
    assert attachments(parts) == (UPLOADED,)


def test_a_message_of_files_alone_names_them_for_a_notify_needs_a_text() -> None:
    assert notify_text((UPLOADED,)) == "File: a.txt (text/plain, 3 bytes)"


def test_a_file_that_is_not_uploaded_yet_is_only_named() -> None:
    local = FilePart(uri="platform-pending:ws-1/f1", name="a.txt", path=Path("/somewhere/a.txt"))

    assert attachments((local,)) == ()
    assert notify_text((TextPart("x"), local)) == "x\n\nFile: a.txt"


@pytest.mark.parametrize(
    "file", [UPLOADED, FilePart(uri="file:///home/me/a.txt", name="a.txt", path=Path("/home/me/a.txt"))]
)
def test_a_peer_is_told_of_a_file_that_it_cannot_read(file: FilePart) -> None:
    (part,) = peer_envelope(outgoing(file))["params"]["message"]["parts"]

    assert part["kind"] == "text"
    assert part["text"].startswith("File: a.txt")
    assert "/home" not in part["text"]


def test_what_a_peer_is_told_of_a_file_stands_on_a_line_of_its_own() -> None:
    parts = peer_envelope(outgoing(TextPart("see here"), UPLOADED))["params"]["message"]["parts"]

    assert "".join(part["text"] for part in parts) == "see here\nFile: a.txt (text/plain, 3 bytes)"


def test_the_echo_of_an_answer_with_files_is_known_by_them() -> None:
    shown = {
        "result": "see here",
        "parts": [
            {"kind": "file", "file": {"uri": UPLOADED.uri, "name": "a.txt", "mimeType": "text/plain", "size": 3}}
        ],
    }
    row = {"method": "notify", "response_body": shown}
    echo = classify(row, row_id="r", workspace_id="ws-1")

    assert notify_fingerprint((TextPart("see here"), UPLOADED)) == echo.fingerprint
    assert notify_fingerprint((TextPart("see here"),)) != echo.fingerprint
