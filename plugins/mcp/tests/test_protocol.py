"""The protocol: the handshake in both eras, the channel, the tools, and the end of a session."""

import asyncio
import json
from typing import Any

import pytest

from molecule_connect import AuthError
from molecule_connect_mcp.catalogue import TOOLS

from .kit import ENVELOPE, MODERN, FakeInbox, Serving, message


async def test_handshake_declares_channel_and_instructions(serving: Serving) -> None:
    result = await serving.host.begin()

    assert result["capabilities"]["experimental"] == {"claude/channel": {}}
    assert result["serverInfo"]["name"] == "molecule"
    assert "inbox_pop" in result["instructions"]


async def test_modern_discovery_declares_the_channel(serving: Serving) -> None:
    serving.host.write({"id": 1, "method": "server/discover", "params": {"_meta": ENVELOPE}})

    result = (await serving.host.answer(1))["result"]

    assert result["capabilities"]["experimental"] == {"claude/channel": {}}
    assert result["supportedVersions"] == [MODERN]


async def test_every_tool_has_description_and_schema(serving: Serving) -> None:
    await serving.host.begin()
    serving.host.write({"id": 1, "method": "tools/list", "params": {}})

    tools = (await serving.host.answer(1))["result"]["tools"]

    assert [tool["name"] for tool in tools] == [tool.name for tool in TOOLS]
    assert all(tool["description"] and tool["inputSchema"]["type"] == "object" for tool in tools)
    assert {tool["name"] for tool in tools} == {
        "wait_for_message",
        "inbox_peek",
        "inbox_pop",
        "send_message_to_user",
        "reply",
        "list_peers",
        "delegate_task",
        "delegate_task_async",
        "check_task_status",
        "get_workspace_info",
        "chat_history",
    }


async def test_one_line_answered_while_input_stays_open(serving: Serving) -> None:
    serving.host.write_raw(b'\n{"jsonrpc": "2.0", "id": 7, "method": "ping"}\n')
    assert (await serving.host.answer(7))["result"] == {}


async def test_first_response_precedes_opening_the_inbox() -> None:
    may_open = asyncio.Event()
    async with Serving(FakeInbox(), may_open=may_open) as serving:
        async with asyncio.timeout(10):
            await serving.host.begin()
        assert serving.opened == []

        may_open.set()
        assert await serving.host.call("inbox_peek") == {"messages": []}
        assert [set(options) for options in serving.opened] == [{"state_dir", "listener", "heartbeat"}]


async def test_invalid_lines_are_skipped(serving: Serving) -> None:
    await serving.host.begin()
    serving.host.write_raw(b'garbage\n\xff\xfe\n[1, 2]\n{"jsonrpc": "2.0"}\n"text"\n')
    assert await serving.host.call("inbox_peek") == {"messages": []}


async def test_lone_surrogate_in_a_call_is_answered(serving: Serving) -> None:
    await serving.host.begin()
    params = {"name": "send_message_to_user", "arguments": {"message": "well done \ud83d"}}
    serving.host.write({"id": 1, "method": "tools/call", "params": params})
    assert "result" in await serving.host.answer(1)
    assert serving.inbox.notifications == [("ws-1", "well done ?", ())]


async def test_line_read_in_pieces_is_one_message(serving: Serving) -> None:
    await serving.host.begin()
    text = "x" * 300_000
    asked = {"jsonrpc": "2.0", "id": "big", "method": "tools/call"}
    line = json.dumps({**asked, "params": {"name": "send_message_to_user", "arguments": {"message": text}}}).encode()
    await asyncio.to_thread(serving.host.write_raw, line + b"\n")
    await serving.host.answer("big")
    assert serving.inbox.notifications == [("ws-1", text, ())]


async def test_unknown_tool_error_lists_known_tools(serving: Serving) -> None:
    await serving.host.begin()
    assert "there are wait_for_message, " in await serving.host.call("make_coffee")


@pytest.mark.parametrize("modern", [False, True])
async def test_each_message_pushed_once_in_both_eras(serving: Serving, modern: bool) -> None:
    if modern:
        serving.host.write({"id": 1, "method": "server/discover", "params": {"_meta": ENVELOPE}})
        await serving.host.answer(1)
    else:
        await serving.host.begin()

    serving.inbox.arrive(message("a1", "one"))
    serving.inbox.arrive(message("a2", "two"))

    notes = [await serving.host.note(), await serving.host.note()]
    assert [note["method"] for note in notes] == ["notifications/claude/channel"] * 2
    assert [note["params"]["content"] for note in notes] == ["one", "two"]


async def test_nothing_pushed_before_the_handshake_ends() -> None:
    async with Serving(FakeInbox(message())) as serving:
        about = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
        serving.host.write({"id": 1, "method": "initialize", "params": about})
        await serving.host.answer(1)
        serving.host.write({"id": 2, "method": "ping"})
        await serving.host.answer(2)
        assert serving.host.notes == []

        serving.host.write({"method": "notifications/initialized"})
        assert (await serving.host.note())["params"]["meta"]["activity_id"] == "a1"


async def test_end_of_input_exits_after_pending_answers() -> None:
    async with Serving(FakeInbox(message())) as serving:
        await serving.host.begin()
        serving.host.write({"id": 1, "method": "tools/call", "params": {"name": "inbox_peek", "arguments": {}}})
        serving.host.close()
        assert "result" in await serving.host.answer(1)
        async with asyncio.timeout(5):
            await serving.task


async def test_silent_host_that_leaves_ends_cleanly(serving: Serving) -> None:
    serving.host.close()
    async with asyncio.timeout(5):
        await serving.task
    assert serving.opened == []


async def test_host_leaving_during_wait_delays_no_exit(serving: Serving) -> None:
    await serving.host.begin()
    serving.host.write({"id": 1, "method": "tools/call", "params": {"name": "wait_for_message", "arguments": {}}})
    serving.host.close()
    async with asyncio.timeout(5):
        await serving.task


async def test_disconnected_host_is_not_an_error(serving: Serving) -> None:
    await serving.host.begin()
    await serving.stop_reading()
    serving.inbox.arrive(message())
    async with asyncio.timeout(5):
        await serving.task
    assert serving.inbox.peek() == [message()]


async def test_refused_token_of_last_workspace_ends_server() -> None:
    inbox = FakeInbox(workspace_ids=("ws-1", "ws-2"))
    refused = AuthError("refused", operation="register", status=401, body="")
    async with Serving(inbox) as serving:
        await serving.host.begin()
        inbox.ended["ws-1"] = refused
        peeked: Any = await serving.host.call("inbox_peek")
        assert peeked == {"messages": []}
        inbox.ended["ws-2"] = refused
        with pytest.raises(AuthError):
            async with asyncio.timeout(5):
                await serving.task


DEEP = b"[" * 5000 + b"]" * 5000


@pytest.mark.parametrize(
    ("line", "request_id", "code"),
    [
        (b'{"jsonrpc": "2.0", "id": 5, "method": "ping", "params": {"x": ' + DEEP + b"}}", 5, -32700),
        (
            b'{"jsonrpc": "2.0", "method": "ping", "params": {"id": 1, "x": ' + DEEP + b'}, "id": "late"}',
            "late",
            -32700,
        ),
        (b'{"jsonrpc": "2.0", "id": "cut", "method": "tools/call", "params": {"name": "re', "cut", -32700),
        (b'{"jsonrpc": "2.0", "id": 6, "method": "ping", "params": [1]}', 6, -32602),
        (b'{"jsonrpc": "2.0", "id": 6, "method": "ping", "params": "x"}', 6, -32602),
        (b'{"jsonrpc": "2.0", "id": 7, "method": 5}', 7, -32600),
        (b'{"jsonrpc": "2.0", "id": 7}', 7, -32600),
        (b'{"jsonrpc": "1.0", "id": 8, "method": "ping"}', 8, -32600),
        (b'{"id": 8, "method": "ping"}', 8, -32600),
        (b'{"jsonrpc": "2.0", "id": 1.5, "method": "ping"}', 1.5, -32600),
        (b'{"jsonrpc": "2.0", "id": null, "method": "ping"}', None, -32600),
        (b'{"jsonrpc": "2.0", "id": true, "method": "ping"}', None, -32600),
        (b'{"jsonrpc": "2.0", "id": [1], "method": "ping"}', None, -32600),
        (b'{"jsonrpc": "2.0", "id": 1e999, "method": "ping"}', None, -32600),
        (b'{"jsonrpc": "2.0", "id": ' + b"9" * 5000 + b', "method": "ping"}', None, -32700),
        (b'{"jsonrpc": "2.0", "id": 9, "method": "ping", "params": {"x": ' + b"9" * 5000 + b"x}}", 9, -32700),
        (b"not JSON", None, -32700),
        (b'{"jsonrpc": "2.0", "method": "ping", "id": 12', None, -32700),
        (b'{"jsonrpc": "2.0", "method": "ping", "id": 12,', 12, -32700),
        (b'{"jsonrpc": "2.0", "id": 5, "met\xff', 5, -32700),
        (b"\xff\xfe", None, -32700),
        (b"[]", None, -32600),
        (b'[{"jsonrpc": "2.0", "id": 1, "method": "ping"}]', None, -32600),
        (b"5", None, -32600),
        (b"{}", None, -32600),
        (DEEP, None, -32700),
    ],
)
async def test_unreadable_request_is_answered(serving: Serving, line: bytes, request_id: Any, code: int) -> None:
    serving.host.write_raw(line + b"\n")
    answer = await serving.host.read()
    assert (answer["id"], answer["error"]["code"]) == (request_id, code)
    assert answer["error"]["message"]
    # The session continues.
    serving.host.write({"id": "next", "method": "ping"})
    assert (await serving.host.answer("next"))["result"] == {}


@pytest.mark.parametrize(
    "line",
    [
        b'{"jsonrpc": "2.0", "method": "notifications/initialized", "params": 5}',
        b'{"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": [1]}}',
        b'{"jsonrpc": "2.0", "id": 1, "result": 5}',
        b'{"jsonrpc": "2.0", "id": 1, "error": "x"}',
    ],
)
async def test_unreadable_notification_or_response_gets_no_answer(serving: Serving, line: bytes) -> None:
    serving.host.write_raw(line + b"\n")
    serving.host.write({"id": "next", "method": "ping"})
    assert (await serving.host.read())["id"] == "next"


async def test_truncated_last_line_is_answered(serving: Serving) -> None:
    serving.host.write_raw(b'{"jsonrpc": "2.0", "id": 3, "method": "pi')
    serving.host.close()
    assert (await serving.host.read())["id"] == 3


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 400, "NaN"])
async def test_out_of_range_number_is_accepted(serving: Serving, number: str) -> None:
    await serving.host.begin()
    serving.host.write_raw(
        b'{"jsonrpc": "2.0", "id": 4, "method": "tools/call", "params":'
        b' {"name": "inbox_peek", "arguments": {"limit": %s}}}\n' % number.encode()
    )
    answer = await serving.host.answer(4)
    assert answer.get("error") or answer["result"]["content"][0]["text"] == '{"messages": []}'
