"""The rate limit, the periodic cleanup, and times."""

from collections.abc import Callable
from typing import Any

import pytest

from molecule_connect_sandbox.clock import from_rfc3339, to_rfc3339
from molecule_connect_sandbox.testing import Sandbox, Workspace


async def test_headers_say_unlimited(sandbox: Sandbox) -> None:
    answered = await sandbox.call("GET", "/health")
    assert answered.headers["x-ratelimit-limit"] == "unlimited"
    assert answered.headers["date"].endswith("GMT")


async def test_limits_by_address_or_on_august_token(generation: str, newer: bool, clock: Any) -> None:
    async with Sandbox.in_process(platform=generation, rate_limit=4, now=clock) as sandbox:
        one, other = await sandbox.workspace("one"), await sandbox.workspace("other")

        async def ask(workspace: Workspace) -> Any:
            return await sandbox.call("GET", f"/workspaces/{workspace.id}/state", token=workspace.token)

        first = await ask(one)
        assert first.headers["x-ratelimit-remaining"] == ("3" if newer else "1")
        assert first.headers["x-ratelimit-reset"] == "60"
        while (over := await ask(one)).status_code == 200:
            pass
        assert (over.status_code, over.json()) == (429, {"error": "rate limit exceeded", "retry_after": 60})
        assert over.headers["retry-after"] == "60"
        assert (await ask(other)).status_code == (200 if newer else 429)
        clock.seconds += 60
        assert (await ask(one)).status_code == 200


async def test_silent_external_workspace_becomes_awaiting_agent(generation: str, newer: bool, clock: Any) -> None:
    async with Sandbox.in_process(platform=generation, now=clock) as sandbox:
        workspace = await sandbox.workspace(registered=True)
        clock.seconds += 100
        await sandbox.admin("POST", "/sandbox/sweep")
        assert await sandbox.status(workspace) == ("online" if newer else "awaiting_agent")
        clock.seconds += 100
        await sandbox.admin("POST", "/sandbox/sweep")
        assert await sandbox.status(workspace) == "awaiting_agent"


async def test_prunes_old_rows(generation: str, newer: bool, clock: Any) -> None:
    async with Sandbox.in_process(platform=generation, now=clock) as sandbox:
        workspace = await sandbox.workspace()
        await sandbox.add_rows(workspace, {}, {})
        if newer:
            acknowledged = (await sandbox.rows(workspace))[0]["seq"]
            path = f"/workspaces/{workspace.id}/activity/ack"
            await sandbox.call("POST", path, {"acked_seq": acknowledged}, token=workspace.token)
        clock.seconds += 8 * 24 * 3600
        await sandbox.admin("POST", "/sandbox/sweep")
        assert len(await sandbox.rows(workspace)) == (1 if newer else 0)


async def test_since_secs_limits_rows(clock: Any) -> None:
    async with Sandbox.in_process(now=clock) as sandbox:
        workspace = await sandbox.workspace()
        await sandbox.add_rows(workspace, {"summary": "old"})
        clock.seconds += 10
        await sandbox.add_rows(workspace, {"summary": "new"})
        path = f"/workspaces/{workspace.id}/activity?since_secs=5"
        rows = (await sandbox.call("GET", path, token=workspace.token)).json()
        assert [row["summary"] for row in rows] == ["new"]


async def test_store_survives_restart(tmp_path: Any, clock: Callable[[], float]) -> None:
    options: dict[str, Any] = {"store": str(tmp_path / "sandbox.db"), "now": clock}
    async with Sandbox.in_process(**options) as sandbox:
        workspace = await sandbox.workspace()
        first = await sandbox.add_rows(workspace, {})
    async with Sandbox.in_process(**options) as sandbox:
        second = await sandbox.add_rows(workspace, {})
        rows = await sandbox.rows(workspace)
        assert [row["id"] for row in rows] == first + second
        assert rows[0]["seq"] < rows[1]["seq"]
        assert from_rfc3339(rows[0]["created_at"]) < from_rfc3339(rows[1]["created_at"])


@pytest.mark.parametrize(
    ("text", "again"),
    [
        ("2026-08-14T09:12:33.104518Z", "2026-08-14T09:12:33.104518Z"),
        ("2026-08-14T09:12:33.19846Z", "2026-08-14T09:12:33.19846Z"),
        ("2026-08-14T09:12:33.000Z", "2026-08-14T09:12:33Z"),
        ("2026-08-14T11:12:33+02:00", "2026-08-14T09:12:33Z"),
        ("2026-08-14T09:12:33.1045189Z", "2026-08-14T09:12:33.104519Z"),
    ],
)
def test_formats_and_parses_platform_times(text: str, again: str) -> None:
    assert to_rfc3339(from_rfc3339(text)) == again


@pytest.mark.parametrize(
    "text", ["", "2026-08-14", "2026-08-14 09:12:33Z", "2026-08-14T09:12:33", "2026-13-14T09:12:33Z"]
)
def test_rejects_invalid_times(text: str) -> None:
    with pytest.raises(ValueError, match=r"RFC 3339|month"):
        from_rfc3339(text)
