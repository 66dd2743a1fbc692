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


def test_peer_envelope_has_the_contract_shape() -> None:
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


def test_own_reply_is_read_as_answer() -> None:
    inline = FilePart(uri="data:text/plain;base64,aGk=", name="b.txt", mime_type="text/plain")
    sent = peer_envelope(outgoing(TextPart("hi"), FILE, inline, DataPart([1])))
    inbound = classify({"source_id": "peer-1", "request_body": sent}, row_id="r", workspace_id="ws-1")

    assert inbound.kind is Kind.ANSWER
    assert inbound.parts == (TextPart("hi"), FILE, inline, DataPart([1]))


def test_peer_gets_inline_files_as_bytes() -> None:
    inline = FilePart(uri="data:text/plain;base64,aGk=", name="b.txt", path=Path("/secret/place/b.txt"))
    (part,) = peer_envelope(outgoing(inline))["params"]["message"]["parts"]
    assert part == {"kind": "file", "file": {"bytes": "aGk=", "name": "b.txt"}}


def test_notify_text_has_all_parts() -> None:
    local = FilePart(uri="", path=Path("/secret/place/report.pdf"))
    parts: list[Part] = [TextPart("Done."), DataPart({"a": "é"}), FILE, local]
    text = notify_text(parts)

    data = '```json\n{\n  "a": "é"\n}\n```'
    assert text == f"Done.\n\n{data}\n\nFile: a.txt (text/plain, 12 bytes) https://x/a.txt\n\nFile: report.pdf"


def test_fence_is_longer_than_its_content() -> None:
    assert notify_text([DataPart("```` x")]).splitlines()[0] == "`````json"


def test_notify_fingerprint_matches_the_echo() -> None:
    parts: list[Part] = [TextPart("a\0b"), DataPart({"x": 1})]
    row = {"method": "notify", "source_id": None, "response_body": {"result": notify_text(parts)}}

    echo = classify(row, row_id="r", workspace_id="ws-1")

    assert echo.kind is Kind.ECHO
    assert echo.fingerprint == notify_fingerprint(parts)


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), float("inf"), object(), b"bytes"])
def test_data_without_json_form_is_rejected(value: Any) -> None:
    for write in (lambda: to_json({"a": value}, operation="a2a"), lambda: notify_text([DataPart(value)])):
        with pytest.raises(PermanentPlatformError, match="JSON"):
            write()


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6))
def test_nul_and_surrogates_are_removed(value: Any) -> None:
    sent = to_json(value, operation="a2a").decode()

    assert "\0" not in sent
    assert "\\u0000" not in sent.replace("\\\\", "")
    json.loads(sent)


def test_nul_is_removed_from_strings_only() -> None:
    assert json.loads(to_json({"a\0": ["b\0c", "\\u0000"]}, operation="a2a")) == {"a": ["bc", "\\u0000"]}
    assert json.loads(to_json("x\ud800y", operation="a2a")) == "x\ufffdy"


UPLOADED = FilePart(uri="platform-pending:ws-1/f1", name="a.txt", mime_type="text/plain", size=3)


def test_uploaded_file_is_attached() -> None:
    parts = (TextPart("see here"), UPLOADED)

    assert notify_text(parts) == "see here"
    assert attachments(parts) == (UPLOADED,)


def test_notify_of_files_only_names_them() -> None:
    assert notify_text((UPLOADED,)) == "File: a.txt (text/plain, 3 bytes)"


def test_local_file_is_only_named() -> None:
    local = FilePart(uri="platform-pending:ws-1/f1", name="a.txt", path=Path("/somewhere/a.txt"))

    assert attachments((local,)) == ()
    assert notify_text((TextPart("x"), local)) == "x\n\nFile: a.txt"


@pytest.mark.parametrize(
    "file", [UPLOADED, FilePart(uri="file:///home/me/a.txt", name="a.txt", path=Path("/home/me/a.txt"))]
)
def test_peer_sees_name_of_unreadable_file(file: FilePart) -> None:
    (part,) = peer_envelope(outgoing(file))["params"]["message"]["parts"]

    assert part["kind"] == "text"
    assert part["text"].startswith("File: a.txt")
    assert "/home" not in part["text"]


def test_file_names_have_lines_of_their_own() -> None:
    parts = peer_envelope(outgoing(TextPart("see here"), UPLOADED))["params"]["message"]["parts"]

    assert "".join(part["text"] for part in parts) == "see here\nFile: a.txt (text/plain, 3 bytes)"


def test_echo_of_files_has_their_fingerprint() -> None:
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
