"""Register, heartbeat, the card, and who may talk to whom."""

import uuid
from typing import Any

import pytest

from molecule_connect_sandbox.testing import Sandbox, Workspace


async def beat(sandbox: Sandbox, workspace: Workspace, **fields: Any) -> str:
    """One heartbeat; the status after it."""
    body = {"workspace_id": workspace.id, **fields}
    answered = await sandbox.call("POST", "/registry/heartbeat", body, token=workspace.token)
    assert answered.status_code == 200, answered.text
    return await sandbox.status(workspace)


async def register(sandbox: Sandbox, workspace_id: str, token: str | None = None, **fields: Any) -> Any:
    body = {"id": workspace_id, "delivery_mode": "poll", "agent_card": {"name": "new"}, **fields}
    return await sandbox.call("POST", "/registry/register", body, token=token)


async def test_registering_unknown_id_creates_it_with_token(sandbox: Sandbox) -> None:
    workspace_id = str(uuid.uuid4())
    first = (await register(sandbox, workspace_id)).json()
    assert len(first["auth_token"]) == 43
    assert (await register(sandbox, workspace_id)).json() == {"error": "missing workspace auth token"}
    assert (await register(sandbox, workspace_id, "wrong")).json() == {"error": "invalid workspace auth token"}
    again = (await register(sandbox, workspace_id, first["auth_token"])).json()
    assert again == {
        "delivery_mode": "poll",
        "platform_inbound_secret": first["platform_inbound_secret"],
        "status": "registered",
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"delivery_mode": "pigeon"}, "delivery_mode must be 'push' or 'poll'"),
        ({"delivery_mode": "push"}, "url is required for push-mode workspaces"),
        ({"delivery_mode": None}, "url is required for push-mode workspaces"),
        ({"agent_card": None}, "invalid request body"),
        ({"id": ""}, "invalid request body"),
    ],
)
async def test_rejects_invalid_registrations(august: Sandbox, change: dict[str, Any], words: str) -> None:
    answered = await register(august, **{"workspace_id": change.pop("id", str(uuid.uuid4())), **change})
    assert (answered.status_code, answered.json()) == (400, {"error": words})


async def test_degradation_ends_without_state_and_errors(sandbox: Sandbox) -> None:
    workspace = await sandbox.workspace(registered=True)
    seen = [
        await beat(sandbox, workspace),
        await beat(sandbox, workspace, runtime_state="wedged"),
        await beat(sandbox, workspace, runtime_state="ok"),
        await beat(sandbox, workspace),
        await beat(sandbox, workspace, error_rate=0.5),
        await beat(sandbox, workspace, error_rate=0.2),
        await beat(sandbox, workspace, error_rate=0.05),
    ]
    assert seen == ["online", "degraded", "degraded", "online", "degraded", "degraded", "online"]


async def test_heartbeat_puts_new_workspace_online(sandbox: Sandbox) -> None:
    workspace = await sandbox.workspace()
    assert await sandbox.status(workspace) == "awaiting_agent"
    assert await beat(sandbox, workspace) == "online"


async def test_pause_survives_heartbeats_and_on_august_registration(sandbox: Sandbox, newer: bool) -> None:
    workspace = await sandbox.workspace(registered=True)
    await sandbox.pause(workspace)
    assert await beat(sandbox, workspace) == "paused"
    await register(sandbox, workspace.id, workspace.token)
    assert await sandbox.status(workspace) == ("paused" if newer else "online")


async def test_resumed_workspace_is_online_after_heartbeat(sandbox: Sandbox) -> None:
    workspace = await sandbox.workspace(registered=True)
    await sandbox.pause(workspace)
    await sandbox.resume(workspace)
    assert await beat(sandbox, workspace) == "online"


async def test_beats_returns_heartbeats_unchanged(august: Sandbox) -> None:
    workspace = await august.workspace(registered=True)
    await beat(august, workspace, active_tasks=2, current_task="reading")
    assert await august.beats(workspace, 1) == [
        {"workspace_id": workspace.id, "active_tasks": 2, "current_task": "reading"}
    ]


async def test_roots_are_peers_only_on_may(sandbox: Sandbox, newer: bool) -> None:
    parent, child = await sandbox.pair()
    other = await sandbox.workspace("other")

    async def neighbours(of: Workspace) -> set[str]:
        return {peer["id"] for peer in (await sandbox.call("GET", f"/registry/{of.id}/peers", token=of.token)).json()}

    assert await neighbours(child) == {parent.id}
    assert await neighbours(parent) == ({child.id} if newer else {child.id, other.id})


async def test_access_follows_hierarchy(sandbox: Sandbox, newer: bool) -> None:
    parent, child = await sandbox.pair()
    grandchild, sibling = await sandbox.workspace(parent=child), await sandbox.workspace(parent=parent)
    other = await sandbox.workspace("other")

    async def allowed(caller: Workspace, target: Workspace) -> bool:
        body = {"caller_id": caller.id, "target_id": target.id}
        return bool((await sandbox.call("POST", "/registry/check-access", body)).json()["allowed"])

    assert await allowed(child, sibling)
    assert await allowed(grandchild, parent)
    assert await allowed(parent, grandchild)
    assert not await allowed(grandchild, sibling)
    assert not await allowed(child, other)
    assert await allowed(parent, other) is not newer


async def test_discover_requires_caller(august: Sandbox) -> None:
    parent, child = await august.pair()
    path = f"/registry/discover/{child.id}"
    nameless = await august.call("GET", path, token=parent.token)
    assert (nameless.status_code, nameless.json()["error"]) == (400, "X-Workspace-ID header is required")
    known = await august.call("GET", path, token=parent.token, X_Workspace_ID=parent.id)
    assert (known.status_code, known.json()) == (503, {"error": "workspace not available", "status": "awaiting_agent"})


async def test_update_card_replaces_only_the_card(august: Sandbox) -> None:
    workspace = await august.workspace(registered=True)
    body = {"workspace_id": workspace.id, "agent_card": {"name": "newer"}}
    answered = await august.call("POST", "/registry/update-card", body, token=workspace.token)
    assert answered.json() == {"status": "updated"}
    assert (await august.call("GET", f"/workspaces/{workspace.id}")).json()["agent_card"] == {"name": "newer"}


async def test_database_rejection_is_internal_error(august: Sandbox) -> None:
    workspace = await august.workspace()
    answered = await august.call(
        "PATCH", f"/workspaces/{workspace.id}", {"role": {"no": "text"}}, token=august.options.admin_token
    )
    assert (answered.status_code, answered.json()) == (500, {"error": "internal error"})


async def test_heartbeat_stores_replacement_for_lone_surrogate(august: Sandbox) -> None:
    workspace = await august.workspace()
    body = b'{"workspace_id": "%s", "current_task": "a\\ud800"}' % workspace.id.encode()
    await august.call("POST", "/registry/heartbeat", body, token=workspace.token)
    card = (await august.call("GET", f"/workspaces/{workspace.id}")).json()
    assert card["current_task"] == "a\ufffd"
