"""Faults: syntax, conditions and effects."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from molecule_connect import ConfigError
from molecule_connect_sandbox.faults import KINDS, Faults, parse_fault
from molecule_connect_sandbox.testing import Sandbox, Workspace

IDLE = "5d3c1f6a-1111-4222-8333-944445555666"


async def notify(sandbox: Sandbox, workspace: Workspace, text: str = "done") -> httpx.Response:
    return await sandbox.call("POST", f"/workspaces/{workspace.id}/notify", {"message": text}, token=workspace.token)


async def page(sandbox: Sandbox, workspace: Workspace, query: str = "") -> list[dict[str, Any]]:
    answered = await sandbox.call("GET", f"/workspaces/{workspace.id}/activity?{query}", token=workspace.token)
    assert answered.status_code == 200, answered.text
    rows: list[dict[str, Any]] = answered.json()
    return rows


def test_parses_name_value_and_filters() -> None:
    fault = parse_fault("late-commits=2-5,path=/a2a,method=post,chance=0.3,times=4")
    assert (fault.kind.name, fault.range, fault.path, fault.method) == ("late-commits", (2.0, 5.0), "/a2a", "POST")
    assert (fault.chance, fault.times) == (0.3, 4)


def test_value_is_optional_before_filters() -> None:
    for text in ("cut-after,path=/notify", "cut-after=path=/notify"):
        fault = parse_fault(text)
        assert (fault.kind.name, fault.path, fault.chance) == ("cut-after", "/notify", 1.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("late-comits", "did you mean late-commits"),
        ("nonsense", "late-commits, equal-times"),
        ("unavailable=soon", "write unavailable=1"),
        ("html=1", "only filters"),
        ("html,colour=red", "filters are path"),
        ("html,chance=often", "chance=0.5"),
        ("html,chance=7", "chance=0.5"),
        ("html,chance=nan", "chance=0.5"),
        ("html,times=-1", "times=3"),
        ("status=x", "write status=500"),
        ("status=999", "write status=500"),
        ("bare-status=99", "write bare-status=404"),
        ("equal-times=0", "write equal-times=2"),
        ("late-commits=30-1", "write late-commits=1-30"),
        ("rate-limited=nan", "write rate-limited=1"),
        ("unavailable=inf", "write unavailable=1"),
        ("slow-answers=-1", "write slow-answers=1"),
    ],
)
def test_rejects_invalid_faults_with_hint(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_fault(text)
    assert words in caught.value.hint


def test_default_values_parse() -> None:
    assert {parse_fault(name).kind.name for name in KINDS} == set(KINDS)


def test_same_seed_gives_same_choices() -> None:
    def strikes(seed: int) -> list[bool]:
        faults = Faults(["html,chance=0.5"], seed)
        return [faults.strike("html") is not None for _ in range(50)]

    assert strikes(1) == strikes(1)
    assert strikes(1) != strikes(2)
    assert 10 < sum(strikes(1)) < 40


async def test_fault_respects_filters_and_times(august: Sandbox) -> None:
    workspace = await august.workspace()
    await august.faults("status=500,path=/notify,times=2")
    assert await page(august, workspace) == []
    assert [(await notify(august, workspace)).status_code for _ in range(3)] == [500, 500, 200]
    await august.faults("status=500,method=DELETE")
    assert (await notify(august, workspace)).status_code == 200


async def test_faults_change_at_runtime(august: Sandbox) -> None:
    admin = august.options.admin_token
    await august.faults("html", "rate-limited=7")
    assert await august.admin("GET", "/sandbox/faults") == {"faults": ["html", "rate-limited=7"]}
    wrong = await august.call("PUT", "/sandbox/faults", {"faults": ["hmtl"]}, token=admin)
    assert (wrong.status_code, wrong.json()["error"]) == (400, "no fault named 'hmtl'")
    assert await august.admin("DELETE", "/sandbox/faults") == {"faults": []}
    assert (await august.call("GET", "/health")).status_code == 200
    assert (await august.call("PUT", "/sandbox/faults", {"faults": []})).status_code == 401


@pytest.mark.parametrize("admin_token", [None, "admin"])
async def test_control_endpoints_require_control_token(generation: str, admin_token: str | None) -> None:
    async with Sandbox.in_process(platform=generation, admin_token=admin_token) as sandbox:
        made = await sandbox.call("POST", "/registry/register", {"id": IDLE, "delivery_mode": "poll", "agent_card": {}})
        one, owner = f"/sandbox/workspaces/{IDLE}", made.json()["auth_token"]
        endpoints = [(method, "/sandbox/faults") for method in ("GET", "PUT", "DELETE")]
        endpoints += [("GET", "/sandbox/requests"), ("DELETE", "/sandbox/requests"), ("POST", "/sandbox/sweep")]
        endpoints += [("GET", f"{one}/answers"), ("GET", f"{one}/rows"), ("POST", f"{one}/rows")]
        endpoints += [("DELETE", f"{one}/rows"), ("GET", f"{one}/beats"), ("GET", f"{one}/streams")]
        endpoints += [("PUT", f"{one}/secrets"), ("POST", f"{one}/forge"), ("PUT", "/sandbox/plugins/x")]
        for method, path in endpoints:
            for token in (None, "wrong", owner):
                assert (await sandbox.call(method, path, {}, token=token)).status_code == 401, (method, path)
        assert await sandbox.admin("PUT", "/sandbox/faults", {"faults": ["prune"]}) == {"faults": ["prune"]}


@pytest.mark.parametrize(
    ("fault", "status", "header", "body"),
    [
        ("rate-limited=7", 429, "7", "rate limit exceeded"),
        ("unavailable=3", 503, "3", "restarting"),
        ("status=402", 402, None, "workspace budget limit exceeded"),
        ("bare-status=404", 404, None, ""),
        ("html", 200, None, "<!doctype html>"),
        ("rpc-error", 200, None, '"error":{"code"'),
        ("origin-required", 404, None, ""),
    ],
)
async def test_fault_responses_prevent_the_effect(
    august: Sandbox, fault: str, status: int, header: str | None, body: str
) -> None:
    workspace = await august.workspace()
    await august.faults(fault)
    answered = await notify(august, workspace)
    assert (answered.status_code, answered.headers.get("retry-after")) == (status, header)
    assert body in answered.text
    assert bool(body) is bool(answered.text)
    assert await august.rows(workspace) == []


async def test_origin_header_passes_origin_required(august: Sandbox) -> None:
    workspace = await august.workspace()
    await august.faults("origin-required")
    path = f"/workspaces/{workspace.id}/state"
    assert (await august.call("GET", path, token=workspace.token, Origin=august.url)).status_code == 200


@pytest.mark.parametrize(
    ("fault", "status", "body"),
    [
        ("empty-answers", 200, ""),
        ("accepted", 202, '"queued":true'),
        ("delivery-confirmed", 502, '"delivery_confirmed":true'),
        ("slow-answers=0", 200, '"sent"'),
        ("slow-bodies=0.01", 200, '{"status":"sent"}'),
    ],
)
async def test_request_takes_effect_despite_spoiled_response(
    august: Sandbox, fault: str, status: int, body: str
) -> None:
    workspace = await august.workspace()
    await august.faults(fault)
    answered = await notify(august, workspace)
    assert answered.status_code == status
    assert body in answered.text
    assert len(await august.rows(workspace)) == 1


@pytest.mark.parametrize(("fault", "done"), [("cut-before", 0), ("cut-after", 1), ("cut-short", 1)])
async def test_cuts_connection_before_or_after_effect(august: Sandbox, fault: str, done: int) -> None:
    workspace = await august.workspace()
    await august.faults(fault)
    with pytest.raises(httpx.ReadError):
        await notify(august, workspace)
    assert len(await august.rows(workspace)) == done


async def test_late_rows_appear_late_with_their_event(august: Sandbox) -> None:
    parent, child = await august.pair()
    # It has to be late still when the page is read.
    await august.faults("late-commits=1,chance=1,times=1")
    headers = {"Authorization": f"Bearer {parent.token}"}
    async with august.client.stream("GET", f"/workspaces/{parent.id}/events/stream", headers=headers) as stream:
        await august.say(parent, "late", sender=child)
        await notify(august, parent)
        seen = await page(august, parent)
        assert [row["method"] for row in seen] == ["notify"]
        lines = stream.aiter_lines()
        async with asyncio.timeout(5):
            while "ACTIVITY_LOGGED" not in await anext(lines):
                pass
        assert [row["method"] for row in await page(august, parent)] == ["notify", "message/send"]
        assert await page(august, parent, f"since_id={seen[0]['id']}") == []


async def test_may_skips_rows_with_equal_times(sandbox: Sandbox, newer: bool) -> None:
    await sandbox.faults("equal-times=2")
    workspace = await sandbox.workspace()
    ids = await sandbox.add_rows(workspace, {}, {}, {}, {})
    rows = await sandbox.rows(workspace)
    assert len({row["created_at"] for row in rows}) < len(rows)
    twin = next(n for n in range(3) if rows[n]["created_at"] == rows[n + 1]["created_at"])
    after = [row["id"] for row in await page(sandbox, workspace, f"since_id={ids[twin]}")]
    assert (ids[twin + 1] in after) is newer


async def test_prune_fault_removes_cursor_once(august: Sandbox) -> None:
    workspace = await august.workspace()
    ids = await august.add_rows(workspace, {}, {})
    await august.faults("prune,times=1")
    path = f"/workspaces/{workspace.id}/activity?since_id={ids[0]}"
    assert (await august.call("GET", path, token=workspace.token)).status_code == 410
    assert [row["id"] for row in await page(august, workspace)] == ids[1:]


async def test_ignores_since_id_and_blanks_row_ids(august: Sandbox) -> None:
    workspace = await august.workspace()
    ids = await august.add_rows(workspace, {}, {})
    await august.faults("no-cursor")
    assert [row["id"] for row in await page(august, workspace, f"since_id={ids[1]}")] == ids[::-1]
    await august.faults("blank-ids")
    assert [row["id"] for row in await page(august, workspace)] == ["", ""]


async def test_counts_requests_by_status(august: Sandbox) -> None:
    workspace = await august.workspace()
    await august.admin("DELETE", "/sandbox/requests")
    await notify(august, workspace)
    await august.faults("cut-after,times=1")
    with pytest.raises(httpx.ReadError):
        await notify(august, workspace)
    path = "/workspaces/:id/notify"
    counts = (await august.admin("GET", "/sandbox/requests"))["requests"]
    assert counts == [["POST", path, 0, 1], ["POST", path, 200, 1]]
    assert await august.requests() == {("POST", path): 2}


def test_the_readme_names_every_fault() -> None:
    readme = Path(__file__).parents[1] / "README.md"
    table = readme.read_text().split("## Faults")[1].split("## In tests")[0]
    assert {name for name in KINDS if f"`{name}`" not in table} == set()
