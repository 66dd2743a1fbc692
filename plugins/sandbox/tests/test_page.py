"""The chat page: its files, its endpoints, and who may use them."""

import asyncio
import json
import os
import socket
import struct
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from molecule_connect_sandbox.app import create_app
from molecule_connect_sandbox.options import SandboxOptions
from molecule_connect_sandbox.page.dead_letters import dead_letters
from molecule_connect_sandbox.page.guard import check_program
from molecule_connect_sandbox.page.markdown import MAX_LENGTH, TAGS, to_html
from molecule_connect_sandbox.responses import Refusal
from molecule_connect_sandbox.testing import FORGERIES, Sandbox, Workspace
from molecule_connect_sandbox.transport import StreamingTransport

OWN = {"X_Sandbox_Page": "1"}
PNG = b"\x89PNG\r\n\x1a\n"


async def page_get(sandbox: Sandbox, path: str, **headers: str) -> Any:
    answered = await sandbox.call("GET", f"/_sandbox{path}", **OWN, **headers)
    assert answered.status_code == 200, answered.text
    return answered.json()


async def send(
    sandbox: Sandbox, to: Workspace, text: str, *files: tuple[str, bytes, str], voice: str = "person", **headers: str
) -> httpx.Response:
    parts: list[tuple[str, Any]] = [("text", (None, text)), ("as", (None, voice))]
    parts += [("files", file) for file in files]
    sent = {"X-Sandbox-Page": "1"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return await sandbox.client.post(f"/_sandbox/workspaces/{to.id}/messages", files=parts, headers=sent)


async def talk(sandbox: Sandbox, workspace: Workspace, voice: str = "person", query: str = "") -> list[dict[str, Any]]:
    found = await page_get(sandbox, f"/workspaces/{workspace.id}/messages?as={voice}{query}")
    messages: list[dict[str, Any]] = found["messages"]
    return messages


async def notify(sandbox: Sandbox, workspace: Workspace, text: str, **more: Any) -> None:
    body = {"message": text, **more}
    answered = await sandbox.call("POST", f"/workspaces/{workspace.id}/notify", body, token=workspace.token)
    assert answered.status_code == 200


# The files of the page


async def test_page_is_served_with_strict_policy(sandbox: Sandbox) -> None:
    answered = await sandbox.call("GET", "/")
    assert answered.status_code == 200
    assert answered.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().partition(" ")[::2] for part in answered.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["object-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert "unsafe" not in answered.headers["content-security-policy"]
    assert answered.headers["x-content-type-options"] == "nosniff"
    assert answered.headers["referrer-policy"] == "no-referrer"


async def test_page_needs_nothing_from_other_hosts(august: Sandbox) -> None:
    page = (await august.call("GET", "/")).text
    assert "<script>" not in page
    assert "style=" not in page
    for name, kind in (("page.css", "text/css"), ("page.js", "text/javascript"), ("icon.svg", "image/svg+xml")):
        answered = await august.call("GET", f"/_sandbox/assets/{name}")
        assert answered.headers["content-type"].startswith(kind)
        assert f"/_sandbox/assets/{name}" in page
        page += answered.text.replace("http://www.w3.org/2000/svg", "")
    assert "http:" not in page.replace("http://`", "")
    assert "https:" not in page
    assert "//cdn" not in page


async def test_unchanged_files_are_not_sent_again(august: Sandbox) -> None:
    tag = (await august.call("GET", "/")).headers["etag"]
    assert (await august.call("GET", "/", If_None_Match=tag)).status_code == 304


@pytest.mark.parametrize("path", ["/_sandbox/assets/../guard.py", "/_sandbox/assets/index.html", "/_sandbox/assets/x"])
async def test_serves_only_the_files_of_the_page(august: Sandbox, path: str) -> None:
    assert (await august.call("GET", path)).status_code == 404


async def test_page_is_not_part_of_the_platform(sandbox: Sandbox) -> None:
    assert (await sandbox.call("POST", "/")).text == "404 page not found"
    assert (await sandbox.call("GET", "/_sandbox")).text == "404 page not found"


# Who may use it


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {**OWN, "Origin": "https://evil.example"},
        {**OWN, "Origin": "null"},
        {**OWN, "Origin": "http://127.0.0.1:3000"},
        {**OWN, "Origin": "http://localhost:8080"},
        {**OWN, "Host": "evil.example:8080"},
        {**OWN, "Sec_Fetch_Site": "cross-site"},
        {**OWN, "Sec_Fetch_Site": "same-site"},
    ],
)
async def test_other_sites_cannot_use_the_page(sandbox: Sandbox, headers: dict[str, str]) -> None:
    workspace = await sandbox.workspace()
    one = f"/_sandbox/workspaces/{workspace.id}"
    for method, path in (
        ("GET", "/_sandbox/state"),
        ("GET", "/_sandbox/events"),
        ("GET", "/_sandbox/faults"),
        ("PUT", "/_sandbox/faults"),
        ("GET", f"{one}/messages"),
        ("POST", f"{one}/messages"),
        ("GET", f"{one}/rows"),
        ("GET", f"{one}/dead-letters"),
    ):
        answered = await sandbox.call(method, path, {"faults": ["html"]}, **headers)
        assert answered.status_code == 403, (method, path)
        assert "access-control-allow-origin" not in answered.headers
    assert await sandbox.rows(workspace) == []
    assert (await page_get(sandbox, "/faults"))["faults"] == []


async def test_no_preflight_permits_other_origins(august: Sandbox) -> None:
    headers = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "x-sandbox-page"}
    answered = await august.call("OPTIONS", "/_sandbox/state", Origin="http://127.0.0.1:3000", **headers)
    assert not [name for name in answered.headers if name.startswith("access-control")]


async def test_page_may_use_itself(sandbox: Sandbox) -> None:
    state = await page_get(sandbox, "/state", Origin=sandbox.url, Sec_Fetch_Site="same-origin")
    assert state["workspaces"] == []


def _connection(port: int, peer: int) -> Request:
    return Request({"type": "http", "headers": [], "client": ("127.0.0.1", port), "server": ("127.0.0.1", peer)})


def _table(folder: Path, port: int, peer: int, user: int) -> Path:
    (address,) = struct.unpack("=I", socket.inet_aton("127.0.0.1"))
    line = (
        f"   1: {address:08X}:{port:04X} {address:08X}:{peer:04X} 01 00000000:00000000 00:00000000 00000000 {user} 0 99"
    )
    table = folder / "tcp"
    table.write_text(f"  sl  local_address rem_address   st\n{line}\n")
    return table


def test_programs_of_other_users_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="another user"):
        check_program(_connection(40000, 8080), _table(tmp_path, 40000, 8080, os.geteuid() + 1))


@pytest.mark.parametrize("user", [0, os.geteuid()])
def test_own_programs_and_root_are_accepted(tmp_path: Path, user: int) -> None:
    check_program(_connection(40000, 8080), _table(tmp_path, 40000, 8080, user))


def test_systems_without_the_table_are_not_checked(tmp_path: Path) -> None:
    check_program(_connection(40000, 8080), tmp_path / "missing")


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the system has no /proc/net/tcp")
async def test_real_connection_is_found_in_the_table() -> None:
    async with Sandbox.over_loopback() as sandbox:
        assert (await sandbox.call("GET", "/")).status_code == 200


# Conversations


async def test_shows_both_sides_of_a_conversation(sandbox: Sandbox) -> None:
    workspace = await sandbox.workspace(registered=True)
    assert (await send(sandbox, workspace, "hello *you*")).status_code == 201
    (question,) = await sandbox.rows(workspace, 1)
    assert question["source_id"] is None
    await notify(sandbox, workspace, "hi *there*")
    person, agent = await talk(sandbox, workspace)
    assert (person["from"], person["text"], person["html"]) == ("person", "hello *you*", None)
    assert (agent["from"], agent["html"]) == ("agent", "<p>hi <em>there</em></p>\n")
    assert await talk(sandbox, workspace, query=f"&after={person['seq']}") == [agent]
    assert await talk(sandbox, workspace, query=f"&before={agent['seq']}") == [person]


async def test_speaks_as_a_peer(sandbox: Sandbox) -> None:
    workspace = await sandbox.workspace(registered=True)
    peer = (await send(sandbox, workspace, "status?", voice="peer")).json()["as"]
    (question,) = await sandbox.rows(workspace, 1)
    assert question["source_id"] == peer
    body = {"method": "message/send", "params": {"message": {"parts": [{"kind": "text", "text": "all green"}]}}}
    answered = await sandbox.call("POST", f"/workspaces/{peer}/a2a", body, token=workspace.token)
    assert answered.status_code == 200
    await sandbox.answers(workspace, 1)
    assert [one["from"] for one in await talk(sandbox, workspace, "peer")] == ["peer", "agent"]
    assert await talk(sandbox, workspace) == []
    assert (await send(sandbox, workspace, "again", voice="peer")).json()["as"] == peer


async def test_own_peers_are_not_listed_as_workspaces(august: Sandbox) -> None:
    workspace = await august.workspace()
    await send(august, workspace, "hello", voice="peer")
    assert [one["id"] for one in (await page_get(august, "/state"))["workspaces"]] == [workspace.id]


async def test_speaks_as_another_workspace_if_it_may(august: Sandbox) -> None:
    parent, child = await august.pair()
    stranger = await august.workspace("stranger")
    assert (await send(august, child, "hello", voice=parent.id)).status_code == 201
    (row,) = await august.rows(child, 1)
    assert row["source_id"] == parent.id
    assert (await send(august, child, "hello", voice=stranger.id)).status_code == 403
    voices = (await page_get(august, f"/workspaces/{child.id}/messages"))["voices"]
    assert [one["id"] for one in voices] == ["person", "peer", parent.id]


async def test_rejects_empty_and_oversized_messages(sandbox: Sandbox) -> None:
    workspace = await sandbox.workspace()
    assert (await send(sandbox, workspace, "  \n\x00")).status_code == 400
    cap = sandbox.options.generation.a2a_cap
    answered = await send(sandbox, workspace, "x" * (cap - 100))
    assert (answered.status_code, answered.json()["hint"]) == (413, "shorten it, or send a file as a person")
    assert (await send(sandbox, workspace, "", ("f", b"", "text/plain"))).status_code == 500
    assert await sandbox.rows(workspace) == []


async def test_line_endings_of_forms_are_restored(august: Sandbox) -> None:
    workspace = await august.workspace()
    await send(august, workspace, "one\r\ntwo\x00")
    assert [one["text"] for one in await talk(august, workspace)] == ["one\ntwo"]


async def test_person_uploads_files_with_a_message(sandbox: Sandbox) -> None:
    workspace = await sandbox.workspace()
    assert (await send(sandbox, workspace, "look", ("a b.txt", b"text", "text/plain"))).status_code == 201
    upload, message = await sandbox.rows(workspace, 2)
    assert upload["method"] == "chat_upload_receive"
    file = message["request_body"]["params"]["message"]["parts"][1]["file"]
    assert (file["uri"], file["name"]) == (upload["request_body"]["uri"], "a_b.txt")
    (shown,) = await talk(sandbox, workspace)
    assert (await august_download(sandbox, shown)).content == b"text"


async def test_peer_sends_files_inside_the_message(sandbox: Sandbox) -> None:
    workspace = await sandbox.workspace()
    await send(sandbox, workspace, "", ("a.bin", b"\x00\x01", "application/x"), voice="peer")
    (shown,) = await talk(sandbox, workspace, "peer")
    assert (shown["files"][0]["source"], (await august_download(sandbox, shown)).content) == ("inline", b"\x00\x01")


async def august_download(sandbox: Sandbox, message: dict[str, Any], **headers: str) -> httpx.Response:
    return await sandbox.call("GET", message["files"][0]["address"], **headers)


@pytest.mark.parametrize("kind", ["text/html", "image/svg+xml", "application/xhtml+xml", "text/xml", "text/javascript"])
async def test_active_files_are_only_saved(august: Sandbox, kind: str) -> None:
    workspace = await august.workspace()
    content = b"<script>alert(1)</script>"
    await send(august, workspace, "", ("x.html", content, kind))
    await send(august, workspace, "", ("x.html", content, kind), voice="peer")
    for voice in ("person", "peer"):
        (shown,) = await talk(august, workspace, voice)
        saved = await august_download(august, shown)
        assert saved.content == content
        assert saved.headers["content-type"] == "application/octet-stream"
        assert saved.headers["content-disposition"] == 'attachment; filename="x.html"'
        assert saved.headers["x-content-type-options"] == "nosniff"
        assert saved.headers["content-security-policy"] == "default-src 'none'; sandbox"
        assert saved.headers["cross-origin-resource-policy"] == "same-origin"


async def test_images_keep_their_type(august: Sandbox) -> None:
    workspace = await august.workspace()
    await send(august, workspace, "", ("x.png", PNG, "image/png"))
    (shown,) = await talk(august, workspace)
    saved = await august_download(august, shown)
    assert saved.headers["content-type"] == "image/png"
    assert saved.headers["content-disposition"].startswith("attachment")


async def test_other_sites_cannot_load_files(august: Sandbox) -> None:
    workspace = await august.workspace()
    await send(august, workspace, "", ("x.png", PNG, "image/png"))
    (shown,) = await talk(august, workspace)
    assert (await august_download(august, shown, Sec_Fetch_Site="cross-site")).status_code == 403
    assert (await august_download(august, shown, Sec_Fetch_Site="none")).status_code == 200


async def test_deleted_file_is_reported(august: Sandbox) -> None:
    workspace = await august.workspace()
    for path in ("files/5d3c1f6a-1111-4222-8333-944445555666", "files/x", "rows/none/files/0"):
        answered = await august.call("GET", f"/_sandbox/workspaces/{workspace.id}/{path}")
        assert answered.status_code == 404
        assert "file" in answered.json()["error"]


async def test_agent_attachments_are_offered(sandbox: Sandbox) -> None:
    workspace = await sandbox.workspace(registered=True)
    made = await sandbox.client.post(
        f"/workspaces/{workspace.id}/chat/uploads",
        files=[("files", ("report.csv", b"a,b", "text/csv"))],
        headers={"Authorization": f"Bearer {workspace.token}"},
    )
    await notify(sandbox, workspace, "done", attachments=made.json()["files"])
    (shown,) = await talk(sandbox, workspace)
    assert (shown["text"], shown["files"][0]["name"]) == ("done", "report.csv")
    assert (await august_download(sandbox, shown)).content == b"a,b"


async def test_late_messages_are_shown_and_marked(august: Sandbox) -> None:
    workspace = await august.workspace()
    await august.faults("late-commits=20-30,chance=1")
    await send(august, workspace, "hello")
    (shown,) = await talk(august, workspace)
    assert (shown["text"], shown["late"]) == ("hello", True)


async def test_failure_notices_are_marked(august: Sandbox) -> None:
    workspace = await august.workspace(registered=True)
    await notify(august, workspace, "This message could not be answered (reference 3f2a9c1d).")
    await notify(august, workspace, "This message could not be answered because I like prose.")
    await send(august, workspace, "This message could not be answered (reference 3f2a9c1d).")
    assert [one["notice"] for one in await talk(august, workspace)] == [True, False, False]


async def test_forged_rows_do_not_break_the_page(sandbox: Sandbox) -> None:
    workspace = await sandbox.workspace(registered=True)
    await send(sandbox, workspace, "hello", ("a", b"a", "text/plain"))
    forged = await sandbox.forge(workspace)
    sender = forged[0].sender_id
    shown = await talk(sandbox, workspace, sender, "&limit=200")
    assert len(shown) == len([one for one in forged if one.row_id])
    assert {one["from"] for one in shown} == {"peer"}
    assert [one["text"] for one in await talk(sandbox, workspace)] == ["hello"]
    rows = await page_get(sandbox, f"/workspaces/{workspace.id}/rows?limit=200")
    assert len(rows["rows"]) == len(shown) + 2
    assert len(forged) == len(FORGERIES)


async def test_deeply_nested_message_is_marked_unreadable(august: Sandbox) -> None:
    workspace = await august.workspace(registered=True)
    deep = "[" * 60_000 + "]" * 60_000
    text = f'{{"method":"message/send","params":{{"message":{{"parts":[{{"text":"x","deep":{deep}}}]}}}}}}'
    await august.call("POST", f"/workspaces/{workspace.id}/a2a", text.encode(), token=august.options.admin_token)
    await send(august, workspace, "after it")
    assert [one["text"] for one in await talk(august, workspace)][-1] == "after it"


async def test_deleted_workspace_is_reported(sandbox: Sandbox) -> None:
    workspace = await sandbox.workspace()
    await sandbox.delete(workspace)
    assert (await send(sandbox, workspace, "hello")).status_code == 404
    assert (await page_get(sandbox, "/state"))["workspaces"] == []


async def test_long_text_is_cut_and_plain(august: Sandbox) -> None:
    workspace = await august.workspace(registered=True)
    await notify(august, workspace, "x" * 300_000)
    (shown,) = await talk(august, workspace)
    assert (len(shown["text"]), shown["cut"], shown["html"]) == (200_000, 100_000, None)


# Markdown


def test_markdown_becomes_html() -> None:
    html = to_html("# T\n\n**b** `c` ~~d~~ [l](https://x.example)\n\n| a |\n| - |\n| 1 |\n\n```py\n1 < 2\n```")
    assert html is not None
    link = '<a href="https://x.example" target="_blank" rel="noopener noreferrer nofollow">l</a>'
    for piece in ("<h1>T</h1>", "<strong>b</strong>", "<code>c</code>", "<s>d</s>", link, "<td>1</td>", "1 &lt; 2"):
        assert piece in html


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "![x](https://evil.example/x.png)",
        "[x](javascript:alert(1))",
        "[x](data:text/html,x)",
        "<javascript:alert(1)>",
        "[x](/_sandbox/state)",
        "[x](//evil.example)",
        '```a" onclick=alert(1)\nx\n```',
        "<style>*{display:none}</style>",
        '<a href="https://x" style="position:fixed" id="text">x</a>',
        "[x](https://x 'a\" onclick=\"alert(1)')",
    ],
)
def test_hostile_markdown_stays_harmless(text: str) -> None:
    html = to_html(text)
    assert html is not None
    parser = Tags()
    parser.feed(html)
    assert parser.tags <= TAGS
    assert parser.attributes <= {("a", "href"), ("a", "target"), ("a", "rel")}
    assert all(address.startswith(("https://", "http://", "mailto:")) for address in parser.addresses)


class Tags(HTMLParser):
    """Collects what a browser would make of HTML."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str]] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {(tag, name) for name, _ in attrs}
        self.addresses += [value or "" for name, value in attrs if name == "href"]


def test_huge_tables_are_not_expanded() -> None:
    text = "|" + "a|" * 500 + "\n|" + "-|" * 500 + "\n" + "|x\n" * 5000
    html = to_html(text[:MAX_LENGTH])
    assert html is not None
    assert len(html) < 3 * MAX_LENGTH


def test_too_long_text_is_not_rendered() -> None:
    assert to_html("x" * (MAX_LENGTH + 1)) is None


# The state, live


async def test_state_tells_how_workspaces_do(sandbox: Sandbox) -> None:
    online, wedged = await sandbox.workspace("a", registered=True), await sandbox.workspace("b", registered=True)
    paused, waiting = await sandbox.workspace("c", registered=True), await sandbox.workspace("d")
    beat = {"workspace_id": online.id, "active_tasks": 1, "current_task": "reading", "error_rate": 0.0}
    await sandbox.call("POST", "/registry/heartbeat", beat, token=online.token)
    stuck = {"workspace_id": wedged.id, "runtime_state": "wedged", "sample_error": "hangs"}
    await sandbox.call("POST", "/registry/heartbeat", stuck, token=wedged.token)
    await sandbox.pause(paused)
    found = {one["id"]: one for one in (await page_get(sandbox, "/state"))["workspaces"]}
    assert (found[online.id]["status"], found[online.id]["tasks"], found[online.id]["task"]) == ("online", 1, "reading")
    assert (found[wedged.id]["status"], found[wedged.id]["wedged"]) == ("degraded", True)
    assert found[wedged.id]["error"] == "hangs"
    assert found[paused.id]["status"] == "paused"
    assert (found[waiting.id]["status"], found[waiting.id]["beat"]) == ("awaiting_agent", None)


async def test_stream_reports_changes_at_once(sandbox: Sandbox) -> None:
    workspace = await sandbox.workspace(registered=True)
    async with sandbox.client.stream("GET", "/_sandbox/events", headers={"X-Sandbox-Page": "1"}) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        states = (json.loads(line[6:]) async for line in stream.aiter_lines() if line.startswith("data: "))
        first = await anext(states)
        await notify(sandbox, workspace, "hello")
        second = await anext(states)
        assert second["top"] > first["top"]
        assert second["workspaces"][0]["heard"] == second["top"]
        await page_put(sandbox, "html,times=1")
        assert (await anext(states))["faults"] == ["html,times=1"]


async def page_put(sandbox: Sandbox, *faults: str) -> httpx.Response:
    return await sandbox.call("PUT", "/_sandbox/faults", {"faults": list(faults)}, **OWN)


async def test_stream_ends_when_the_sandbox_stops() -> None:
    app = create_app(SandboxOptions(admin_token="admin"))
    transport = StreamingTransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:1") as client,
        client.stream("GET", "/_sandbox/events", headers={"X-Sandbox-Page": "1"}) as stream,
    ):
        lines = stream.aiter_lines()
        assert await anext(lines) == "event: state"
        app.state.platform.end_streams()
        async with asyncio.timeout(30):
            assert [line async for line in lines if line.startswith("event")] == []


async def test_each_run_has_its_own_mark() -> None:
    marks = []
    for _ in range(2):
        async with Sandbox.in_process() as sandbox:
            marks.append((await page_get(sandbox, "/state"))["boot"])
    assert marks[0] != marks[1]


async def test_history_survives_a_restart_with_a_store(tmp_path: Path) -> None:
    store = str(tmp_path / "store.db")
    async with Sandbox.in_process(store=store) as sandbox:
        workspace = await sandbox.workspace()
        await send(sandbox, workspace, "hello", voice="peer")
    async with Sandbox.in_process(store=store) as sandbox:
        (shown,) = await talk(sandbox, workspace, "peer")
        assert shown["text"] == "hello"
        assert [one["id"] for one in (await page_get(sandbox, "/state"))["workspaces"]] == [workspace.id]


# The panel


async def test_faults_are_listed_and_switched(sandbox: Sandbox) -> None:
    known = await page_get(sandbox, "/faults")
    assert {"name", "argument", "default", "help"} == set(known["kinds"][0])
    assert (await page_put(sandbox, "unavailable=3,times=2")).json()["faults"] == ["unavailable=3,times=2"]
    refused = await page_put(sandbox, "unavailable=soon")
    assert (refused.status_code, refused.json()["hint"]) == (400, "write unavailable=1 (SECONDS)")
    assert (await page_get(sandbox, "/state"))["faults"] == ["unavailable=3,times=2"]


@pytest.mark.parametrize(
    "fault", ["html", "cut-before", "unavailable", "rate-limited", "origin-required", "bare-status"]
)
async def test_page_works_under_faults(august: Sandbox, fault: str) -> None:
    workspace = await august.workspace()
    await august.faults(fault)
    assert (await august.call("GET", "/")).headers["content-type"] == "text/html; charset=utf-8"
    assert (await send(august, workspace, "hello")).status_code == 201
    assert (await page_put(august)).status_code == 200


async def test_page_does_not_use_up_the_rate_limit() -> None:
    async with Sandbox.in_process(rate_limit=5) as sandbox:
        for _ in range(10):
            await page_get(sandbox, "/state")
        assert (await sandbox.call("GET", "/workspaces/x")).status_code == 400
        assert [path for _, path in await sandbox.requests() if "_sandbox" in path] == []


async def test_raw_rows_are_complete_and_newest_first(sandbox: Sandbox) -> None:
    workspace = await sandbox.workspace(registered=True)
    for number in range(3):
        await notify(sandbox, workspace, f"m{number}")
    path = f"/workspaces/{workspace.id}/rows?limit=2"
    found = await page_get(sandbox, path)
    assert [json.loads(row["wire"])["response_body"]["result"] for row in found["rows"]] == ["m2", "m1"]
    assert found["more"]
    older = await page_get(sandbox, f"{path}&before={found['rows'][-1]['seq']}")
    assert [json.loads(row["wire"]) for row in older["rows"]] == (await sandbox.rows(workspace))[:1]


async def test_dead_letters_come_from_the_journal(august: Sandbox, tmp_path: Path) -> None:
    workspace = await august.workspace()
    program = tmp_path / "list"
    program.write_text(
        "#!/bin/sh\n"
        'echo "{\\"messages\\": [{\\"row_id\\": \\"r1\\", \\"time\\": \\"2026-01-01T00:00:00Z\\", \\"text\\": \\"$1\\",'
        ' \\"reason\\": \\"$2 $3\\", \\"attempts\\": 4}]}"\n'
    )
    program.chmod(0o755)
    app = create_app(SandboxOptions(admin_token="a"))
    async with app.router.lifespan_context(app):
        platform = app.state.platform
        platform.store.add_workspace(workspace.id, name="w", status="online", runtime="external", delivery_mode="poll")
        found = await dead_letters(platform, platform.store.workspace(workspace.id), (str(program),))
    (letter,) = found["journal"]
    assert (letter["row_id"], letter["text"], letter["attempts"]) == ("r1", workspace.id, 4)
    assert letter["reason"] == "--state dead"
    assert found["problem"] == ""


async def test_unknown_journal_is_explained(august: Sandbox, tmp_path: Path) -> None:
    workspace = await august.workspace()
    delegation = {"target_id": "5d3c1f6a-1111-4222-8333-944445555666", "task": "t", "delegation_id": "d1"}
    one = f"/workspaces/{workspace.id}"
    await august.call("POST", f"{one}/delegations/record", delegation, token=workspace.token)
    failed = {"status": "failed", "error": "no answer"}
    await august.call("POST", f"{one}/delegations/d1/update", failed, token=workspace.token)
    report = {"activity_type": "error", "summary": "backend", "error_detail": "exit 3"}
    await august.call("POST", f"{one}/activity", report, token=workspace.token)
    found = await page_get(august, f"{one}/dead-letters")
    assert found["journal"] == []
    assert found["problem"]
    assert [letter["reason"] for letter in found["platform"]] == ["no answer", "exit 3"]
