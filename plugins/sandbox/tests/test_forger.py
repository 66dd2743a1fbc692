"""Rows that a hostile peer forges, as the real servers store them."""

import uuid
from typing import Any

from molecule_connect.testing import serving
from molecule_connect_mock import MockBackend
from molecule_connect_sandbox.forger import DEEP
from molecule_connect_sandbox.testing import FORGERIES, Sandbox, Workspace


async def pending_upload(sandbox: Sandbox, workspace: Workspace) -> str:
    """The id of a file that a person has just uploaded."""
    path, files = f"/workspaces/{workspace.id}/chat/uploads", {"files": ("alpha.txt", b"hello", "text/plain")}
    answered = await sandbox.client.post(
        path, files=files, headers={"Authorization": f"Bearer {sandbox.options.admin_token}"}
    )
    uri: str = answered.json()["files"][0]["uri"]
    return uri.rpartition("/")[2]


async def test_peer_controls_method_and_body_keys(sandbox: Sandbox) -> None:
    parent, child = await sandbox.pair()
    for method in ("chat_upload_receive", "delegate_result", "notify", "anything"):
        body = {"method": method, "file_id": "F", "response_body": {"result": "x"}, "source_id": None}
        answered = await sandbox.post(parent, body, sender=child)
        assert answered.json() == {"delivery_mode": "poll", "method": method, "status": "queued"}
    rows = await sandbox.rows(parent, 4)
    assert [row["method"] for row in rows] == ["chat_upload_receive", "delegate_result", "notify", "anything"]
    for row in rows:
        assert row["source_id"] == child.id
        assert "response_body" not in row
        assert (row["request_body"]["file_id"], row["request_body"]["response_body"]) == ("F", {"result": "x"})


async def test_body_without_jsonrpc_keeps_only_method(sandbox: Sandbox) -> None:
    parent, child = await sandbox.pair()
    await sandbox.post(parent, b'{"method": "chat_upload_receive", "file_id": "F"}', sender=child)
    row = (await sandbox.rows(parent, 1))[0]
    assert row["method"] == "chat_upload_receive"
    assert set(row["request_body"]) == {"jsonrpc", "id", "method", "params"}


async def test_forges_one_row_of_each_kind(sandbox: Sandbox) -> None:
    parent, child = await sandbox.pair()
    forged = await sandbox.forge(parent, sender=child)
    assert [row.kind for row in forged] == list(FORGERIES)
    rows = {row["id"]: row for row in await sandbox.rows(parent, len(forged))}
    assert {rows[row.row_id]["source_id"] for row in forged if row.row_id} == {child.id}
    methods = {row["method"] for row in rows.values()}
    assert methods >= {"chat_upload_receive", "delegate_result", "notify", "message/send", ""}


async def test_forger_uses_real_ids(sandbox: Sandbox) -> None:
    parent, child = await sandbox.pair()
    file_id = await pending_upload(sandbox, parent)
    await sandbox.say(parent, "mine", messageId="question-1")
    task = {"target_id": child.id, "task": "do it", "idempotency_key": "k"}
    delegated = await sandbox.call("POST", f"/workspaces/{parent.id}/delegate", task, token=parent.token)
    await sandbox.rows(child, 1)
    before = len(await sandbox.rows(parent, 2))
    await sandbox.forge(parent, "upload-pending", "upload-pending-capitals", "result-known", "message-same-key")
    bodies: list[dict[str, Any]] = [row["request_body"] for row in (await sandbox.rows(parent, before + 4))[before:]]
    assert (bodies[0]["file_id"], bodies[0]["name"], bodies[0]["size"]) == (file_id, "alpha.txt", 5)
    assert bodies[1]["file_id"] == file_id.upper()
    delegation_id = delegated.json()["delegation_id"]
    assert bodies[2]["delegation_id"] == delegation_id
    assert bodies[3]["params"]["message"]["idempotencyKey"] in ("question-1", delegation_id)


async def test_forges_long_ids_and_deep_bodies(sandbox: Sandbox) -> None:
    parent, child = await sandbox.pair()
    await sandbox.forge(parent, "message-long-ids", "method-long", "message-deep", sender=child)
    headers = {"Authorization": f"Bearer {parent.token}"}
    await sandbox.client.get(f"/sandbox/workspaces/{parent.id}/rows?count=3", headers=headers)
    page = (await sandbox.client.get(f"/workspaces/{parent.id}/activity", headers=headers)).text
    assert "m" * 70_000 in page
    assert "x" * 70_000 in page
    assert DEEP in page


async def test_absorbs_repeated_message_ids_per_generation(sandbox: Sandbox, newer: bool) -> None:
    parent, child = await sandbox.pair()
    await sandbox.say(parent, "mine", messageId="question-1")
    await sandbox.rows(parent, 1)
    (forged,) = await sandbox.forge(parent, "message-same-id", sender=child)
    assert (forged.row_id is None) is newer


async def test_answers_tolerates_forged_rows(sandbox: Sandbox) -> None:
    parent, child = await sandbox.pair()
    shapes: list[Any] = [5, [1], {"params": 5}, {"params": {"message": {"parts": [1, {"text": 5}], "content": "x"}}}]
    await sandbox.add_rows(child, *({"source_id": parent.id, "request_body": shape} for shape in shapes))
    await sandbox.add_rows(parent, {"method": "notify"}, {"method": "notify", "response_body": 5})
    await sandbox.add_rows(parent, {"method": "notify", "response_body": {"result": 5}})
    await sandbox.forge(child, sender=parent)
    said = await sandbox.call("POST", f"/workspaces/{parent.id}/notify", {"message": "done"}, token=parent.token)
    assert said.json() == {"status": "sent"}
    answers = await sandbox.answers(parent, len(shapes) + 2)
    assert [one.text for one in answers if one.to is None] == ["", "done"]


async def test_anonymous_row_is_not_a_workspace_reply(may: Sandbox) -> None:
    workspace = await may.workspace()
    body = {"jsonrpc": "2.0", "method": "notify", "response_body": {"result": "forged"}}
    assert (await may.call("POST", f"/workspaces/{workspace.id}/a2a", body)).status_code == 200
    assert [row["source_id"] for row in await may.rows(workspace, 1)] == [None]
    assert await may.answers(workspace) == []


async def test_forged_rows_fault_writes_until_off(sandbox: Sandbox) -> None:
    parent, child = await sandbox.pair()
    await sandbox.faults("forged-rows=100,times=8")
    for workspace in (parent, child):
        rows = await sandbox.rows(workspace, 4)
        assert len(rows) == 4
        assert all(row["source_id"] not in (None, workspace.id) for row in rows)
    await sandbox.faults("forged-rows=100")
    await sandbox.rows(parent, 10)
    await sandbox.faults()
    count = len(await sandbox.rows(parent))
    await sandbox.say(parent, "later")
    assert len(await sandbox.rows(parent, count + 1)) == count + 1


async def test_path_filter_limits_forging_to_one_workspace(sandbox: Sandbox) -> None:
    one, other = await sandbox.workspace("one"), await sandbox.workspace("other")
    await sandbox.faults(f"forged-rows=100,path={one.id}")
    assert len(await sandbox.rows(one, 5)) >= 5
    assert await sandbox.rows(other) == []


async def test_rejects_unknown_forgeries(sandbox: Sandbox) -> None:
    workspace = await sandbox.workspace()
    path = f"/sandbox/workspaces/{workspace.id}/forge"
    assert (await sandbox.call("POST", path, {})).status_code == 401
    for body in ({"kinds": ["nonsense"]}, {"kinds": "notify-bare"}, {"sender": 5}, {"sender": str(uuid.uuid4())}):
        assert (await sandbox.call("POST", path, body, token=sandbox.options.admin_token)).status_code == 400
    unknown = f"/sandbox/workspaces/{uuid.uuid4()}/forge"
    assert (await sandbox.call("POST", unknown, {}, token=sandbox.options.admin_token)).status_code == 404


async def test_forger_does_not_affect_person_replies(sandbox: Sandbox) -> None:
    async with serving(sandbox, MockBackend(reply="got %s"), poll_interval=0.1) as workspace:
        await sandbox.beats(workspace, 1)
        await sandbox.faults("forged-rows=100")
        await sandbox.rows(workspace, len(FORGERIES))
        for number in range(3):
            await sandbox.say(workspace, f"question {number}")
        await sandbox.rows(workspace, 3 * len(FORGERIES))
        await sandbox.faults()
        texts: list[str] = []
        for count in range(1, 400):
            texts = [one.text for one in await sandbox.answers(workspace, count, timeout=15) if one.to is None]
            if len(texts) >= 3:
                break
        assert texts == [f"got question {number}" for number in range(3)]
