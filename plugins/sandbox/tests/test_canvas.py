"""Notify and uploads."""

import asyncio
from typing import Any

import httpx
import pytest

from molecule_connect_sandbox.canvas import safe_name
from molecule_connect_sandbox.testing import Sandbox, Workspace


async def notify(sandbox: Sandbox, workspace: Workspace, **body: Any) -> httpx.Response:
    return await sandbox.call("POST", f"/workspaces/{workspace.id}/notify", body, token=workspace.token)


async def upload(sandbox: Sandbox, workspace: Workspace, *files: tuple[str, bytes]) -> httpx.Response:
    return await sandbox.client.post(
        f"/workspaces/{workspace.id}/chat/uploads",
        files=[("files", (name, content, "text/plain")) for name, content in files],
        headers={"Authorization": f"Bearer {workspace.token}"},
    )


async def test_notify_appears_in_own_feed(sandbox: Sandbox) -> None:
    workspace = await sandbox.workspace()
    assert (await notify(sandbox, workspace, message="done")).json() == {"status": "sent"}
    (row,) = await sandbox.rows(workspace)
    assert (row["method"], row["source_id"], row["target_id"]) == ("notify", None, None)
    assert row["response_body"] == {"result": "done"}
    assert row["summary"] == "Agent message: done"
    assert "request_body" not in row


async def test_notify_stores_attachments_as_parts(sandbox: Sandbox) -> None:
    workspace = await sandbox.workspace()
    file = {"uri": "platform-pending:x/y", "name": "a.txt", "mimeType": "text/plain", "size": 3}
    await notify(sandbox, workspace, message="see", attachments=[file])
    (row,) = await sandbox.rows(workspace)
    assert row["response_body"]["parts"] == [{"kind": "file", "file": file}]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "message is required"),
        ({"message": ""}, "message is required"),
        ({"message": "x", "attachments": [{"uri": "u", "name": "a"}, {"uri": ""}]}, "attachment[1]: uri and name are"),
    ],
)
async def test_rejects_invalid_notify(august: Sandbox, body: dict[str, Any], words: str) -> None:
    answered = await notify(august, await august.workspace(), **body)
    assert answered.status_code == 400
    assert answered.json()["error"].startswith(words)


async def test_notify_with_nul_is_lost(sandbox: Sandbox) -> None:
    workspace = await sandbox.workspace()
    assert (await notify(sandbox, workspace, message="a\x00b")).status_code == 200
    assert await sandbox.rows(workspace) == []


async def test_upload_writes_row_per_file_same_time(sandbox: Sandbox) -> None:
    workspace = await sandbox.workspace()
    files = (await upload(sandbox, workspace, ("alpha.txt", b"alpha"), ("my file;1.txt", b"beta"))).json()["files"]
    assert [(file["name"], file["size"]) for file in files] == [("alpha.txt", 5), ("my_file_1.txt", 4)]
    rows = await sandbox.rows(workspace, 2)
    assert {row["method"] for row in rows} == {"chat_upload_receive"}
    assert [row["request_body"]["uri"] for row in rows] == [file["uri"] for file in files]
    assert len({row["created_at"] for row in rows}) == 1


async def test_upload_is_readable_until_acknowledged(sandbox: Sandbox, newer: bool) -> None:
    workspace = await sandbox.workspace()
    uri = (await upload(sandbox, workspace, ("a.txt", b"alpha"))).json()["files"][0]["uri"]
    base = f"/workspaces/{workspace.id}/pending-uploads/{uri.rsplit('/', 1)[1]}"
    content = await sandbox.call("GET", f"{base}/content", token=workspace.token)
    assert (content.content, content.headers["content-type"]) == (b"alpha", "text/plain")
    assert 'filename="a.txt"' in content.headers["content-disposition"]
    assert (await sandbox.call("POST", f"{base}/ack", {}, token=workspace.token)).json() == {"acked": True}
    again = await sandbox.call("GET", f"{base}/content", token=workspace.token)
    assert again.status_code == (200 if newer else 404)


async def test_upload_of_another_workspace_is_not_found(august: Sandbox) -> None:
    owner, other = await august.workspace(), await august.workspace()
    file_id = (await upload(august, owner, ("a.txt", b"a"))).json()["files"][0]["uri"].rsplit("/", 1)[1]
    path = f"/workspaces/{other.id}/pending-uploads/{file_id}/content"
    assert (await august.call("GET", path, token=other.token)).json() == {"error": "pending upload not found"}
    bad = await august.call("GET", path.replace(file_id, "nonsense"), token=other.token)
    assert (bad.status_code, bad.json()["error"]) == (400, "invalid file_id")


async def test_rejects_malformed_uploads(august: Sandbox) -> None:
    workspace = await august.workspace()
    path = f"/workspaces/{workspace.id}/chat/uploads"
    plain = await august.call("POST", path, b"x", token=workspace.token)
    assert (plain.status_code, plain.json()["error"]) == (400, "malformed multipart body")
    broken = await august.call(
        "POST", path, b"--b\r\nnothing", token=workspace.token, Content_Type="multipart/form-data; boundary=b"
    )
    assert broken.status_code == 400
    assert (await upload(august, workspace, ("empty.txt", b""))).status_code == 500
    many = await upload(august, workspace, *[(f"{n}.txt", b"x") for n in range(65)])
    assert (many.status_code, many.json()["error"]) == (400, "too many files (limit 64)")


async def test_rejects_oversized_file_with_its_size(may: Sandbox) -> None:
    workspace = await may.workspace()
    answered = await upload(may, workspace, ("big.bin", b"x" * (25 * 1024 * 1024 + 1)))
    assert answered.status_code == 413
    assert answered.json()["max"] == 25 * 1024 * 1024


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("a b.txt", "a_b.txt"),
        ("a\\b.txt", "a_b.txt"),
        ("", "file"),
        (None, "file"),
        ("..", "file"),
        ("é" * 300, "_" * 100),
        ("x" * 300 + ".jpeg", "x" * 95 + ".jpeg"),
        ("x" * 90 + "." + "y" * 16, "x" * 90 + "." + "y" * 9),
    ],
)
def test_sanitizes_file_names(name: str | None, kept: str) -> None:
    assert safe_name(name) == kept


async def test_august_serves_upload_limits(sandbox: Sandbox, newer: bool) -> None:
    answered = await sandbox.call("GET", "/uploads/limits")
    assert answered.status_code == (200 if newer else 404)


async def test_answers_waits_for_replies(sandbox: Sandbox) -> None:
    parent, child = await sandbox.pair()
    waiting = asyncio.create_task(sandbox.answers(child, 2))
    await notify(sandbox, child, message="to a person")
    await sandbox.say(parent, "to a peer", sender=child, messageId="m-1")
    assert [(said.to, said.text, said.message_id) for said in await waiting] == [
        (None, "to a person", None),
        (parent.id, "to a peer", "m-1"),
    ]
