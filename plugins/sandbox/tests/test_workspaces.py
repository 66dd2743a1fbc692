"""Making, moving, pausing and deleting workspaces; their tokens and secrets."""

from molecule_connect_sandbox.testing import Sandbox


async def test_new_workspace_includes_connection_details(sandbox: Sandbox) -> None:
    body = {"name": "laptop", "runtime": "external", "external": True, "delivery_mode": "poll"}
    made = await sandbox.admin("POST", "/workspaces", body)
    assert (made["external"], made["status"]) == (True, "awaiting_agent")
    connection = made["connection"]
    assert connection["workspace_id"] == made["id"]
    assert connection["platform_url"] == sandbox.url
    assert connection["registry_endpoint"] == f"{sandbox.url}/registry/register"
    assert len(connection["auth_token"]) == 43


async def test_workspace_with_url_gets_no_token(august: Sandbox) -> None:
    made = await august.admin("POST", "/workspaces", {"name": "pushed", "external": True, "url": "https://x.example"})
    assert made == {"id": made["id"], "external": True, "status": "online"}


async def test_only_admin_creates_workspaces(sandbox: Sandbox) -> None:
    anonymous = await sandbox.call("POST", "/workspaces", {"name": "x"})
    assert (anonymous.status_code, anonymous.json()["error"]) == (401, "admin auth required")
    wrong = await sandbox.call("POST", "/workspaces", {"name": "x"}, token="wrong")
    assert (wrong.status_code, wrong.json()["error"]) == (401, "invalid admin auth token")


async def test_may_without_admin_token_is_open() -> None:
    async with Sandbox.in_process(platform="2026-05", admin_token=None) as open_to_all:
        workspace = await open_to_all.workspace()
        assert (await open_to_all.say(workspace, "hello")).status_code == 200
        assert [row["source_id"] for row in await open_to_all.rows(workspace, 1)] == [None]


async def test_august_makes_names_unique(sandbox: Sandbox, newer: bool) -> None:
    await sandbox.workspace("twin")
    second = await sandbox.workspace("twin")
    name = (await sandbox.call("GET", f"/workspaces/{second.id}")).json()["name"]
    assert name == ("twin (2)" if newer else "twin")


async def test_moves_workspace_below_another(sandbox: Sandbox) -> None:
    one, other = await sandbox.workspace("one"), await sandbox.workspace("other")
    body = {"parent_id": one.id}
    assert await sandbox.admin("PATCH", f"/workspaces/{other.id}", body) == {"status": "updated"}
    assert (await sandbox.say(one, "hi", sender=other)).status_code == 200


async def test_state_reports_status_and_pause(sandbox: Sandbox) -> None:
    workspace = await sandbox.workspace(registered=True)
    path = f"/workspaces/{workspace.id}/state"
    expected = {"workspace_id": workspace.id, "status": "online", "paused": False, "deleted": False}
    assert (await sandbox.call("GET", path, token=workspace.token)).json() == expected
    await sandbox.pause(workspace)
    paused = {**expected, "status": "paused", "paused": True}
    assert (await sandbox.call("GET", path, token=workspace.token)).json() == paused
    assert (await sandbox.call("GET", path, token=sandbox.options.admin_token)).status_code == 401


async def test_deleted_workspace_returns_410_and_401(sandbox: Sandbox) -> None:
    parent, child = await sandbox.pair()
    await sandbox.delete(parent)
    for removed in (parent, child):
        answered = await sandbox.call("GET", f"/workspaces/{removed.id}")
        assert (answered.status_code, answered.json()["error"]) == (410, "workspace removed")
        assert answered.json()["hint"]
        assert (await sandbox.call("GET", f"/workspaces/{removed.id}/activity", token=removed.token)).status_code == 401


async def test_registering_deleted_workspace_returns_dead_token(sandbox: Sandbox) -> None:
    workspace = await sandbox.workspace(registered=True)
    await sandbox.delete(workspace)
    body = {"id": workspace.id, "delivery_mode": "poll", "agent_card": {"name": "x"}}
    answered = await sandbox.call("POST", "/registry/register", body, token=workspace.token)
    token = answered.json()["auth_token"]
    assert (await sandbox.call("GET", f"/workspaces/{workspace.id}/state", token=token)).status_code == 401
    beat = await sandbox.call("POST", "/registry/heartbeat", {"workspace_id": workspace.id}, token=token)
    assert beat.status_code == 401


async def test_deletion_requires_confirmation(sandbox: Sandbox, newer: bool) -> None:
    parent, child = await sandbox.pair()
    admin = sandbox.options.admin_token
    answered = await sandbox.call("DELETE", f"/workspaces/{parent.id}", token=admin)
    assert answered.status_code == (400 if newer else 409)
    if not newer:
        assert answered.json()["children"] == [{"id": child.id, "name": "child"}]
    assert await sandbox.status(parent) == "awaiting_agent"


async def test_august_confirms_pausing_a_parent(sandbox: Sandbox, newer: bool) -> None:
    parent, child = await sandbox.pair()
    path = f"/workspaces/{parent.id}/pause"
    answered = await sandbox.call("POST", path, token=sandbox.options.admin_token)
    assert answered.status_code == (409 if newer else 200)
    if newer:
        await sandbox.pause(parent)
    assert await sandbox.status(child) == "paused"
    assert (await sandbox.call("POST", f"{path}?cascade=true", token=sandbox.options.admin_token)).status_code == 404


async def test_rotation_revokes_old_token(sandbox: Sandbox) -> None:
    old = await sandbox.workspace(registered=True)
    new = await sandbox.rotate(old)
    path = f"/workspaces/{old.id}/activity"
    assert (await sandbox.call("GET", path, token=old.token)).status_code == 401
    assert (await sandbox.call("GET", path, token=new.token)).status_code == 200
    body = {"id": old.id, "delivery_mode": "poll", "agent_card": {"name": "x"}}
    assert (await sandbox.call("POST", "/registry/register", body, token=old.token)).status_code == 401
    shown = await sandbox.call("GET", f"/workspaces/{old.id}/external/connection", token=new.token)
    assert shown.json()["connection"]["auth_token"] == ""


async def test_creates_lists_and_revokes_tokens(sandbox: Sandbox) -> None:
    workspace = await sandbox.workspace()
    path = f"/workspaces/{workspace.id}/tokens"
    made = (await sandbox.call("POST", path, {}, token=workspace.token)).json()["auth_token"]
    listed = (await sandbox.call("GET", path, token=made)).json()["tokens"]
    assert len(listed) == 2
    newest = next(token for token in listed if made.startswith(token["prefix"]))
    ended = await sandbox.call("DELETE", f"{path}/{newest['id']}", token=workspace.token)
    assert ended.json() == {"status": "revoked"}
    assert (await sandbox.call("GET", path, token=made)).status_code == 401
    assert (await sandbox.call("DELETE", f"{path}/{newest['id']}", token=workspace.token)).status_code == 404


async def test_limits_workspace_to_50_tokens(august: Sandbox) -> None:
    workspace = await august.workspace()
    path = f"/admin/workspaces/{workspace.id}/tokens"
    codes = [(await august.call("POST", path, token=august.options.admin_token)).status_code for _ in range(50)]
    assert codes == [201] * 49 + [429]


async def test_token_endpoint_depends_on_generation(sandbox: Sandbox, newer: bool) -> None:
    workspace = await sandbox.workspace()
    admin = sandbox.options.admin_token
    older = await sandbox.call("GET", f"/admin/workspaces/{workspace.id}/test-token", token=admin)
    assert older.status_code == (404 if newer else 200)


async def test_workspace_secrets_override_global_ones(august: Sandbox) -> None:
    workspace = await august.workspace()
    await august.admin("PUT", f"/sandbox/workspaces/{workspace.id}/secrets", {"A": "own"})
    answered = await august.call("GET", f"/workspaces/{workspace.id}/secrets/values", token=workspace.token)
    assert answered.json() == {"A": "own"}


async def test_health_requires_no_token(sandbox: Sandbox) -> None:
    assert (await sandbox.call("GET", "/health")).json() == {"status": "ok"}
    assert "git_sha" in (await sandbox.call("GET", "/buildinfo")).json()
    unknown = await sandbox.call("GET", "/nothing/here")
    assert (unknown.status_code, unknown.text) == (404, "404 page not found")
    assert unknown.headers["content-type"].startswith("text/plain")


async def test_hosted_tenant_requires_org_header(generation: str, newer: bool) -> None:
    async with Sandbox.in_process(platform=generation, org_id="org-1") as hosted:
        missing = await hosted.call("GET", "/workspaces/x")
        assert missing.status_code == (400 if newer else 404)
        assert (missing.text == "") is not newer
        assert (await hosted.call("GET", "/workspaces/x", X_Molecule_Org_Id="other")).status_code == 404
        assert (await hosted.call("GET", "/health")).status_code == 200
        right = await hosted.call("GET", "/workspaces/x", X_Molecule_Org_Id="org-1")
        assert right.json() == {"error": "invalid workspace ID"}
