"""Telling people something, and replying to whoever wrote."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from molecule_connect import ArgumentError, ConfigError, TransientPlatformError
from molecule_connect_agent import Message

from .kit import ME, PEER, Platform, Twin, said

NOTIFY = f"POST /workspaces/{ME}/notify"
UPLOAD = f"POST /workspaces/{ME}/chat/uploads"
A2A = f"POST /workspaces/{PEER}/a2a"
OK = httpx.Response(200, json={"status": "sent"})


def message(**fields: Any) -> Message:
    given = {"workspace_id": ME, "kind": "message", "activity_id": "r1", "message_id": "m1", "caller_id": PEER}
    return Message(**(given | fields))


def uploaded(*names: str) -> httpx.Response:
    return httpx.Response(
        200, json={"files": [{"uri": f"platform-pending:{ME}/{name}", "name": name} for name in names]}
    )


def test_a_person_is_told(agent: Twin, platform: Platform) -> None:
    platform.on(NOTIFY, OK)
    agent.notify("done")

    assert platform.body(NOTIFY) == {"message": "done"}


def test_files_are_uploaded_first_and_then_attached(agent: Twin, platform: Platform, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    platform.on(UPLOAD, uploaded("a.txt", "b.txt")).on(NOTIFY, OK)
    agent.notify("here", [tmp_path / "a.txt", str(tmp_path / "b.txt")])

    assert [request.url.path.rpartition("/")[2] for request in platform.requests] == ["uploads", "notify"]
    assert [one["uri"] for one in platform.body(NOTIFY)["attachments"]] == [
        f"platform-pending:{ME}/a.txt",
        f"platform-pending:{ME}/b.txt",
    ]


@pytest.mark.parametrize("answer", [uploaded(), uploaded("a.txt"), httpx.Response(200, json=None)])
def test_missing_uploads_raise_an_error(
    agent: Twin, platform: Platform, tmp_path: Path, answer: httpx.Response
) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    platform.on(UPLOAD, answer).on(NOTIFY, OK)
    with pytest.raises(TransientPlatformError, match="2 files were sent"):
        agent.notify("here", [tmp_path / "a.txt", tmp_path / "b.txt"])

    assert platform.asked(NOTIFY) == []


@pytest.mark.parametrize(
    ("text", "files", "error"),
    [
        ("", (), ArgumentError),
        (" \n", (), ArgumentError),
        ("\0 \0", (), ArgumentError),
        (None, (), ArgumentError),
        ("hi", "a.txt", ArgumentError),
        ("hi", ["no-such-file"], ConfigError),
        ("hi", ["/"], ConfigError),
    ],
)
def test_invalid_notify_sends_nothing(
    agent: Twin, platform: Platform, text: Any, files: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        agent.notify(text, files)

    assert platform.requests == []


def test_person_gets_reply_in_canvas(agent: Twin, platform: Platform) -> None:
    platform.on(NOTIFY, OK)
    agent.reply(message(caller_id=None), "well")

    assert platform.body(NOTIFY) == {"message": "well"}


def test_same_reply_has_same_message_id(agent: Twin, platform: Platform) -> None:
    platform.on(A2A, OK)
    ids = []
    for text, row in (("well", "r1"), ("well", "r1"), ("very well", "r1"), ("well", "r2")):
        agent.reply(message(activity_id=row, context_id="c1"), text)
        ids.append(platform.body(A2A)["params"]["message"]["messageId"])

    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    sent = platform.body(A2A)["params"]["message"]
    assert (sent["role"], sent["contextId"]) == ("agent", "c1")
    assert sent["metadata"]["molecule"] == {"in_reply_to": "m1", "auto": True}


@pytest.mark.parametrize(
    ("given", "text", "words"),
    [
        (message(kind="answer"), "thanks", "of kind answer"),
        (message(kind="result"), "thanks", "of kind result"),
        (message(workspace_id="other"), "well", "for workspace other"),
        (message(), "  ", "blank"),
        (message(), "\0", "blank"),
    ],
)
def test_invalid_reply_sends_nothing(agent: Twin, platform: Platform, given: Message, text: str, words: str) -> None:
    with pytest.raises(ArgumentError, match=words) as caught:
        agent.reply(given, text)

    assert caught.value.hint
    assert platform.requests == []


def test_failed_reply_states_its_outcome(agent: Twin, platform: Platform) -> None:
    platform.on(A2A, said(503, retry_after=7))
    with pytest.raises(TransientPlatformError) as caught:
        agent.reply(message(), "well")

    assert (caught.value.retry_after, caught.value.outcome.value) == (7.0, "unknown")
