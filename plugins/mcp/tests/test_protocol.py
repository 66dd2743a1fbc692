"""What a host sees: the handshake in both eras, the channel, the tools, and the end."""

import asyncio
import json
from typing import Any

import pytest

from molecule_connect import AuthError
from molecule_connect_mcp.catalogue import TOOLS

from .kit import ENVELOPE, MODERN, FakeInbox, Serving, message


async def test_the_handshake_declares_the_channel_and_says_how_to_use_the_inbox(serving: Serving) -> None:
    told = await serving.host.begin()

    assert told["capabilities"]["experimental"] == {"claude/channel": {}}
    assert told["serverInfo"]["name"] == "molecule"
    assert "inbox_pop" in told["instructions"]


async def test_the_era_without_a_handshake_declares_the_channel_too(serving: Serving) -> None:
    serving.host.write({"id": 1, "method": "server/discover", "params": {"_meta": ENVELOPE}})

    told = (await serving.host.answer(1))["result"]

    assert told["capabilities"]["experimental"] == {"claude/channel": {}}
    assert told["supportedVersions"] == [MODERN]


async def test_every_tool_is_listed_with_a_description_and_a_schema(serving: Serving) -> None:
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


async def test_one_line_is_answered_while_the_input_stays_open(serving: Serving) -> None:
    serving.host.write_raw(b'\n{"jsonrpc": "2.0", "id": 7, "method": "ping"}\n')
    assert (await serving.host.answer(7))["result"] == {}


async def test_the_first_answer_comes_before_the_inbox_is_opened() -> None:
    may_open = asyncio.Event()
    async with Serving(FakeInbox(), may_open=may_open) as serving:
        async with asyncio.timeout(10):
            await serving.host.begin()
        assert serving.opened == []

        may_open.set()
        assert await serving.host.call("inbox_peek") == {"messages": []}
        assert [set(options) for options in serving.opened] == [{"state_dir", "listener", "heartbeat"}]


async def test_rubbish_between_the_lines_is_passed_over(serving: Serving) -> None:
    await serving.host.begin()
    serving.host.write_raw(b'garbage\n\xff\xfe\n[1, 2]\n{"jsonrpc": "2.0"}\n"text"\n')
    assert await serving.host.call("inbox_peek") == {"messages": []}


async def test_half_an_emoji_in_a_call_does_not_leave_it_without_an_answer(serving: Serving) -> None:
    await serving.host.begin()
    said = {"name": "send_message_to_user", "arguments": {"message": "well done \ud83d"}}
    serving.host.write({"id": 1, "method": "tools/call", "params": said})
    assert "result" in await serving.host.answer(1)
    assert serving.inbox.told == [("ws-1", "well done ?", ())]


async def test_a_line_of_many_pieces_is_one_message(serving: Serving) -> None:
    await serving.host.begin()
    text = "x" * 300_000
    asked = {"jsonrpc": "2.0", "id": "big", "method": "tools/call"}
    line = json.dumps({**asked, "params": {"name": "send_message_to_user", "arguments": {"message": text}}}).encode()
    await asyncio.to_thread(serving.host.write_raw, line + b"\n")
    await serving.host.answer("big")
    assert serving.inbox.told == [("ws-1", text, ())]


async def test_an_unknown_tool_is_an_error_that_lists_the_known_ones(serving: Serving) -> None:
    await serving.host.begin()
    assert "there are wait_for_message, " in await serving.host.call("make_coffee")


@pytest.mark.parametrize("modern", [False, True])
async def test_each_message_is_pushed_once_in_both_eras(serving: Serving, modern: bool) -> None:
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


async def test_nothing_is_pushed_before_the_handshake_is_over() -> None:
    async with Serving(FakeInbox(message())) as serving:
        about = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
        serving.host.write({"id": 1, "method": "initialize", "params": about})
        await serving.host.answer(1)
        serving.host.write({"id": 2, "method": "ping"})
        await serving.host.answer(2)
        assert serving.host.notes == []

        serving.host.write({"method": "notifications/initialized"})
        assert (await serving.host.note())["params"]["meta"]["activity_id"] == "a1"


async def test_the_end_of_the_input_is_a_clean_end_and_what_was_asked_is_still_answered() -> None:
    async with Serving(FakeInbox(message())) as serving:
        await serving.host.begin()
        serving.host.write({"id": 1, "method": "tools/call", "params": {"name": "inbox_peek", "arguments": {}}})
        serving.host.close()
        assert "result" in await serving.host.answer(1)
        async with asyncio.timeout(5):
            await serving.task


async def test_a_host_that_says_nothing_and_leaves_is_a_clean_end(serving: Serving) -> None:
    serving.host.close()
    async with asyncio.timeout(5):
        await serving.task
    assert serving.opened == []


async def test_a_host_that_waits_when_it_leaves_does_not_hold_up_the_end(serving: Serving) -> None:
    await serving.host.begin()
    serving.host.write({"id": 1, "method": "tools/call", "params": {"name": "wait_for_message", "arguments": {}}})
    serving.host.close()
    async with asyncio.timeout(5):
        await serving.task


async def test_a_host_that_is_gone_is_no_error(serving: Serving) -> None:
    await serving.host.begin()
    await serving.stop_reading()
    serving.inbox.arrive(message())
    async with asyncio.timeout(5):
        await serving.task
    assert serving.inbox.peek() == [message()]


async def test_a_refused_token_ends_the_server_when_no_workspace_is_left() -> None:
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
async def test_a_request_that_cannot_be_read_is_answered(
    serving: Serving, line: bytes, request_id: Any, code: int
) -> None:
    serving.host.write_raw(line + b"\n")
    answer = await serving.host.read()
    assert (answer["id"], answer["error"]["code"]) == (request_id, code)
    assert answer["error"]["message"]
    # The session goes on.
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
async def test_a_notification_or_an_answer_that_cannot_be_read_gets_no_answer(serving: Serving, line: bytes) -> None:
    serving.host.write_raw(line + b"\n")
    serving.host.write({"id": "next", "method": "ping"})
    assert (await serving.host.read())["id"] == "next"


async def test_the_last_line_is_answered_also_when_it_is_cut(serving: Serving) -> None:
    serving.host.write_raw(b'{"jsonrpc": "2.0", "id": 3, "method": "pi')
    serving.host.close()
    assert (await serving.host.read())["id"] == 3


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 400, "NaN"])
async def test_a_number_beyond_all_bounds_is_an_argument_like_any_other(serving: Serving, number: str) -> None:
    await serving.host.begin()
    serving.host.write_raw(
        b'{"jsonrpc": "2.0", "id": 4, "method": "tools/call", "params":'
        b' {"name": "inbox_peek", "arguments": {"limit": %s}}}\n' % number.encode()
    )
    answer = await serving.host.answer(4)
    assert answer.get("error") or answer["result"]["content"][0]["text"] == '{"messages": []}'
