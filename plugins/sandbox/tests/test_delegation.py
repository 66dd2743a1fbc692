"""Delegations."""

import asyncio
import uuid
from typing import Any

import pytest

from molecule_connect_sandbox.testing import Sandbox, Workspace


async def delegate(sandbox: Sandbox, source: Workspace, **body: Any) -> Any:
    return await sandbox.call("POST", f"/workspaces/{source.id}/delegate", body, token=source.token)


async def listed(sandbox: Sandbox, source: Workspace) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (
        await sandbox.call("GET", f"/workspaces/{source.id}/delegations", token=source.token)
    ).json()
    return found


async def test_poll_mode_target_completes_delegation_as_queued(sandbox: Sandbox, newer: bool) -> None:
    parent, child = await sandbox.pair()
    answered = await delegate(sandbox, parent, target_id=child.id, task="summarise")
    delegation_id = answered.json()["delegation_id"]
    assert (answered.status_code, answered.json()["status"]) == (202, "delegated")
    (row,) = await sandbox.rows(child, 1)
    message = row["request_body"]["params"]["message"]
    assert message["messageId"] == message["metadata"]["delegation_id"] == delegation_id
    assert message["parts"] == [{"kind" if newer else "type": "text", "text": "summarise"}]
    (entry,) = await listed(sandbox, parent)
    assert (entry["status"], entry["delegation_id"]) == ("completed", delegation_id)
    assert '"status":"queued"' in entry["response_preview"]


async def test_same_idempotency_key_is_one_delegation(august: Sandbox) -> None:
    parent, child = await august.pair()
    first = await delegate(august, parent, target_id=child.id, task="t", idempotency_key="k")
    again = await delegate(august, parent, target_id=child.id, task="t", idempotency_key="k")
    assert (again.status_code, again.json()["idempotent_hit"]) == (200, True)
    assert again.json()["delegation_id"] == first.json()["delegation_id"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"task": "t"}, "invalid delegation request"),
        ({"target_id": "x", "task": "t"}, "target_id must be a valid UUID"),
        ({"target_id": "self", "task": "t"}, "self-delegation not permitted"),
    ],
)
async def test_rejects_invalid_delegations(august: Sandbox, body: dict[str, str], words: str) -> None:
    parent = await august.workspace()
    if body.get("target_id") == "self":
        body = {**body, "target_id": parent.id}
    answered = await delegate(august, parent, **body)
    assert (answered.status_code, answered.json()["error"]) == (400, words)


async def test_unreachable_target_fails_delegation() -> None:
    async with Sandbox.in_process(retry_delegation_after=0.0) as sandbox:
        one, other = await sandbox.workspace("one"), await sandbox.workspace("other")
        await delegate(sandbox, one, target_id=other.id, task="t")
        async with asyncio.timeout(5):
            while (await listed(sandbox, one))[0]["status"] == "pending":
                pass
        (entry,) = await listed(sandbox, one)
        assert (entry["status"], entry["error"]) == ("failed", "access denied")


async def test_lists_and_updates_recorded_delegations(august: Sandbox) -> None:
    one = await august.workspace()
    base = f"/workspaces/{one.id}/delegations"
    body = {"target_id": str(uuid.uuid4()), "task": "t", "delegation_id": "d-1"}
    assert (await august.call("POST", f"{base}/record", body, token=one.token)).status_code == 202
    update = {"status": "completed", "response_preview": "x" * 400}
    assert (await august.call("POST", f"{base}/d-1/update", update, token=one.token)).status_code == 200
    (entry,) = await listed(august, one)
    assert (entry["status"], len(entry["response_preview"])) == ("completed", 300)
    assert (await august.call("POST", f"{base}/d-1/update", {"status": "odd"}, token=one.token)).status_code == 400
    assert (await august.call("POST", f"{base}/unknown/update", update, token=one.token)).status_code == 200
