"""Reading the feed: order, filters, cursors, and the rows that 2026-05 loses."""

import uuid
from typing import Any

import httpx
import pytest

from molecule_connect_sandbox.testing import Sandbox, Workspace


async def read(sandbox: Sandbox, workspace: Workspace, **query: Any) -> httpx.Response:
    query.setdefault("type", "a2a_receive")
    return await sandbox.client.get(
        f"/workspaces/{workspace.id}/activity", params=query, headers={"Authorization": f"Bearer {workspace.token}"}
    )


async def ids(sandbox: Sandbox, workspace: Workspace, **query: Any) -> list[str]:
    answered = await read(sandbox, workspace, **query)
    assert answered.status_code == 200, answered.text
    return [row["id"] for row in answered.json()]


async def filled(sandbox: Sandbox, count: int) -> tuple[Workspace, list[str]]:
    """A workspace, and the ids of its rows, oldest first."""
    workspace = await sandbox.workspace()
    return workspace, await sandbox.add_rows(workspace, *[{"summary": f"row {n}"} for n in range(count)])


async def test_order_depends_on_cursor(sandbox: Sandbox) -> None:
    workspace, rows = await filled(sandbox, 5)
    assert await ids(sandbox, workspace) == rows[::-1]
    assert await ids(sandbox, workspace, since_id=rows[0]) == rows[1:]
    assert await ids(sandbox, workspace, since_id=rows[0], limit=2) == rows[1:3]
    assert await ids(sandbox, workspace, limit=2) == rows[:2:-1]


async def test_before_ts_is_exclusive(sandbox: Sandbox) -> None:
    workspace, rows = await filled(sandbox, 4)
    times = {row["id"]: row["created_at"] for row in await sandbox.rows(workspace)}
    assert await ids(sandbox, workspace, before_ts=times[rows[2]]) == rows[1::-1]


async def test_row_times_are_unique(sandbox: Sandbox) -> None:
    workspace, rows = await filled(sandbox, 200)
    assert len({row["created_at"] for row in await sandbox.rows(workspace)}) == len(rows)


async def test_page_size_defaults_to_100_capped_500(august: Sandbox) -> None:
    workspace, _ = await filled(august, 510)
    assert len(await ids(august, workspace)) == 100
    assert len(await ids(august, workspace, limit=100_000)) == 500
    assert len(await ids(august, workspace, limit="junk")) == 100


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ({"since_secs": "0"}, 400, "since_secs must be a positive integer"),
        ({"since_secs": "x"}, 400, "since_secs must be a positive integer"),
        ({"before_ts": "yesterday"}, 400, "before_ts must be an RFC3339 timestamp"),
        ({"before_ts": "2026-02-31T00:00:00Z"}, 400, "before_ts must be an RFC3339 timestamp"),
        ({"source": "moon"}, 400, "source must be 'canvas' or 'agent'"),
        ({"peer_id": "x"}, 400, "peer_id must be a UUID"),
        ({"since_id": "x"}, 500, "cursor lookup failed"),
        ({"since_id": str(uuid.uuid4())}, 410, "since_id cursor not found"),
    ],
)
async def test_rejects_invalid_query_parameters(
    august: Sandbox, query: dict[str, str], status: int, words: str
) -> None:
    answered = await read(august, await august.workspace(), **query)
    assert answered.status_code == status
    assert answered.json()["error"].startswith(words)


async def test_foreign_cursor_returns_410(sandbox: Sandbox) -> None:
    _, foreign = await filled(sandbox, 1)
    assert (await read(sandbox, await sandbox.workspace(), since_id=foreign[0])).status_code == 410


async def test_pruned_cursor_returns_410(sandbox: Sandbox) -> None:
    workspace, rows = await filled(sandbox, 3)
    assert await sandbox.prune(workspace, keep=1) == 2
    assert (await read(sandbox, workspace, since_id=rows[0])).status_code == 410
    assert await ids(sandbox, workspace) == rows[2:]


async def test_source_filter_separates_people_from_peers(sandbox: Sandbox) -> None:
    parent, child = await sandbox.pair()
    await sandbox.say(parent, "from a peer", sender=child)
    await sandbox.say(parent, "from a person")
    await sandbox.rows(parent, 2)
    assert [row["source_id"] for row in (await read(sandbox, parent, source="agent")).json()] == [child.id]
    assert [row["source_id"] for row in (await read(sandbox, parent, source="canvas")).json()] == [None]
    assert [row["source_id"] for row in (await read(sandbox, parent, peer_id=child.id)).json()] == [child.id]


async def test_feed_requires_workspace_token(sandbox: Sandbox) -> None:
    workspace, other = await sandbox.workspace(), await sandbox.workspace()
    path = f"/workspaces/{workspace.id}/activity"
    assert (await sandbox.call("GET", path, token=other.token)).json() == {"error": "invalid workspace auth token"}
    assert (await sandbox.call("GET", path)).json() == {"error": "missing workspace auth token"}


async def test_bearer_scheme_is_case_sensitive(august: Sandbox) -> None:
    workspace = await august.workspace()
    answered = await august.call("GET", f"/workspaces/{workspace.id}/state", Authorization=f"bearer {workspace.token}")
    assert answered.status_code == 401


async def test_rows_have_documented_fields(sandbox: Sandbox, newer: bool) -> None:
    parent, child = await sandbox.pair()
    await sandbox.say(parent, "hi", sender=child, messageId="m-1")
    await sandbox.rows(parent, 1)
    row = (await read(sandbox, parent)).json()[0]
    assert set(row) == {
        *("id", "workspace_id", "activity_type", "source_id", "target_id", "method", "summary", "duration_ms"),
        *("status", "error_detail", "created_at", "request_body"),
        *(("seq",) if newer else ()),
    }
    assert row["request_body"]["params"]["message"]["messageId"] == "m-1"
    assert row["summary"] == f"message/send → parent ({'ingest' if newer else 'queued for poll'})"


async def test_adds_known_peer_info(sandbox: Sandbox, newer: bool) -> None:
    parent, child = await sandbox.pair()
    file = {"kind": "file", "file": {"uri": "platform-pending:x/y", "name": "a.txt", "mimeType": "text/plain"}}
    await sandbox.say(parent, "", sender=child, parts=[file])
    await sandbox.rows(parent, 1)
    row = (await read(sandbox, parent, include="peer_info")).json()[0]
    assert row.get("peer_name") == ("child" if newer else None)
    assert row.get("attachments") == (
        [{"kind": "file", "uri": "platform-pending:x/y", "name": "a.txt"}] if newer else None
    )


async def test_acknowledged_seq_never_decreases(august: Sandbox) -> None:
    workspace = await august.workspace()

    async def acknowledge(body: Any) -> httpx.Response:
        return await august.call("POST", f"/workspaces/{workspace.id}/activity/ack", body, token=workspace.token)

    assert (await acknowledge({"acked_seq": 5})).json() == {"last_acked_seq": 5}
    assert (await acknowledge({"acked_seq": 3})).json() == {"last_acked_seq": 5}
    assert (await acknowledge({"acked_seq": -1})).status_code == 400
    assert (await acknowledge({"seq": 5})).status_code == 400


async def test_may_has_no_acknowledgement(may: Sandbox) -> None:
    workspace = await may.workspace()
    answered = await may.call(
        "POST", f"/workspaces/{workspace.id}/activity/ack", {"acked_seq": 1}, token=workspace.token
    )
    assert (answered.status_code, answered.text) == (404, "404 page not found")


async def test_report_writes_row_to_own_feed(sandbox: Sandbox) -> None:
    workspace = await sandbox.workspace()
    path = f"/workspaces/{workspace.id}/activity"
    body = {"activity_type": "a2a_receive", "summary": "me"}
    assert (await sandbox.call("POST", path, body, token=workspace.token)).json() == {"status": "logged"}
    assert [row["source_id"] for row in (await read(sandbox, workspace)).json()] == [workspace.id]
    foreign = await sandbox.call("POST", path, {**body, "source_id": str(uuid.uuid4())}, token=workspace.token)
    assert foreign.status_code == 403
    assert (await sandbox.call("POST", path, {"activity_type": "x"}, token=workspace.token)).status_code == 400
