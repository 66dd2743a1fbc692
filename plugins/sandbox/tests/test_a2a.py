"""Messages on their way into a feed."""

import json
from typing import Any

import pytest

from molecule_connect_sandbox.testing import Sandbox, Workspace


async def message(sandbox: Sandbox, workspace: Workspace, count: int = 1) -> dict[str, Any]:
    """The newest message of a feed of *count* rows."""
    found: dict[str, Any] = (await sandbox.rows(workspace, count))[-1]["request_body"]["params"]["message"]
    return found


async def test_queues_for_poll_workspaces(sandbox: Sandbox) -> None:
    parent, child = await sandbox.pair()
    answered = await sandbox.say(parent, "hi", sender=child)
    assert answered.json() == {"delivery_mode": "poll", "method": "message/send", "status": "queued"}
    assert [row["source_id"] for row in await sandbox.rows(parent, 1)] == [child.id]


async def test_converts_content_and_bare_bodies(sandbox: Sandbox) -> None:
    parent, child = await sandbox.pair()
    body = b'{"method": "message/send", "params": {"message": {"content": "plain"}}, "extra": 1}'
    await sandbox.post(parent, body, sender=child)
    stored = (await sandbox.rows(parent, 1))[0]["request_body"]
    assert set(stored) == {"jsonrpc", "id", "method", "params"}
    assert stored["params"]["message"]["parts"] == [{"kind": "text", "text": "plain"}]
    assert stored["params"]["message"]["messageId"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"not json", "invalid JSON"),
        (b"[1]", "invalid JSON"),
        (b'{"x": NaN}', "invalid JSON"),
        (b'{"x": 1' + b"0" * 5000 + b"}", "invalid JSON"),
        (b"[" * 100_000, "invalid JSON"),
        (
            b'{"params": {"message": {}}}',
            "params.message must contain either 'parts' (v0.3) or 'content' (v0.2 compat)",
        ),
        (b'{"params": {"message": {"content": 5}}}', "invalid params.message.content type"),
    ],
    ids=["text", "list", "nan", "endless number", "deep", "no content", "number as content"],
)
async def test_rejects_invalid_messages(august: Sandbox, body: bytes, words: str) -> None:
    parent, child = await august.pair()
    answered = await august.post(parent, body, sender=child)
    assert (answered.status_code, answered.json()["error"]) == (400, words)


async def test_august_renames_part_keys_and_fills_role(sandbox: Sandbox, newer: bool) -> None:
    parent, child = await sandbox.pair()
    body = {"method": "message/send", "params": {"message": {"parts": [{"type": "text", "text": "old"}]}}}
    await sandbox.post(parent, body, sender=child)
    stored = await message(sandbox, parent)
    assert stored["parts"] == [{"kind" if newer else "type": "text", "text": "old"}]
    assert stored.get("role") == ("user" if newer else None)


async def test_august_assigns_people_a_context(sandbox: Sandbox, newer: bool) -> None:
    workspace = await sandbox.workspace()
    await sandbox.say(workspace, "one")
    await sandbox.say(workspace, "two")
    rows = await sandbox.rows(workspace, 2)
    contexts = {row["request_body"]["params"]["message"].get("contextId") for row in rows}
    assert len(contexts) == 1
    assert (contexts != {None}) is newer
    assert ("metadata" in rows[0]["request_body"]["params"]) is newer


async def test_august_absorbs_repeated_message_ids(sandbox: Sandbox, newer: bool) -> None:
    parent, child = await sandbox.pair()
    for text in ("first", "second"):
        assert (await sandbox.say(parent, text, sender=child, messageId="same")).status_code == 200
    await sandbox.say(parent, "last", sender=child)
    rows = await sandbox.rows(parent, 2 if newer else 3)
    texts = [row["request_body"]["params"]["message"]["parts"][0]["text"] for row in rows]
    assert texts == (["first", "last"] if newer else ["first", "second", "last"])


async def test_message_with_nul_is_lost(sandbox: Sandbox) -> None:
    parent, child = await sandbox.pair()
    assert (await sandbox.say(parent, "bad\x00text", sender=child)).json()["status"] == "queued"
    await sandbox.say(parent, "a backslash: \\u0000", sender=child)
    rows = await sandbox.rows(parent, 1)
    assert [row["request_body"]["params"]["message"]["parts"][0]["text"] for row in rows] == ["a backslash: \\u0000"]


async def test_replaces_lone_surrogates(august: Sandbox) -> None:
    parent, child = await august.pair()
    body = b'{"method": "message/send", "params": {"message": {"content": "a\\ud800b"}}}'
    await august.post(parent, body, sender=child)
    assert (await message(august, parent))["parts"][0]["text"] == "a\ufffdb"


async def test_large_numbers_lose_digits(august: Sandbox) -> None:
    parent, child = await august.pair()
    body = json.dumps({"method": "message/send", "params": {"message": {"content": "x", "metadata": {"n": 2**63 - 1}}}})
    await august.post(parent, body.encode(), sender=child)
    assert (await message(august, parent))["metadata"]["n"] == 2**63


async def test_oversized_body_is_cut_or_rejected(sandbox: Sandbox, newer: bool) -> None:
    parent, child = await sandbox.pair()
    assert (await sandbox.say(parent, "x" * 1_200_000, sender=child)).status_code == (200 if newer else 400)
    if newer:
        answered = await sandbox.say(parent, "x" * 17_000_000, sender=child)
        assert answered.status_code == 413
        assert answered.json()["max_bytes"] == 16 * 1024 * 1024


async def test_sender_authorization(sandbox: Sandbox, newer: bool) -> None:
    parent, child = await sandbox.pair()
    stranger = await sandbox.workspace(parent=await sandbox.workspace("elsewhere"))
    assert (await sandbox.say(parent, "x", sender=stranger)).status_code == 403
    liar = Workspace(child.id, stranger.token, "liar")
    assert (await sandbox.say(parent, "x", sender=liar)).status_code == 401
    unknown = Workspace("5d3c1f6a-1111-4222-8333-944445555666", "", "unknown")
    assert (await sandbox.say(unknown, "x", sender=child)).status_code == 403
    assert (await sandbox.say(unknown, "x")).status_code == 404
    path = f"/workspaces/{parent.id}/a2a"
    anonymous = await sandbox.call("POST", path, {"method": "x"})
    assert anonymous.status_code == (401 if newer else 200)
    system = await sandbox.call("POST", path, {"method": "x"}, token=child.token, X_Workspace_ID="system:cron")
    assert (system.status_code, system.json()["error"]) == (403, "invalid caller ID")


async def test_queues_for_paused_workspaces(sandbox: Sandbox) -> None:
    workspace = await sandbox.workspace(registered=True)
    await sandbox.pause(workspace)
    assert (await sandbox.say(workspace, "later")).json()["status"] == "queued"
    assert len(await sandbox.rows(workspace, 1)) == 1


async def test_cannot_push_to_workspace_without_url(august: Sandbox) -> None:
    made = await august.admin("POST", "/workspaces", {"name": "pushed", "external": True, "url": ""})
    answered = await august.say(Workspace(made["id"], "", "pushed"), "x")
    assert (answered.status_code, answered.json()["error"]) == (503, "workspace has no URL")
