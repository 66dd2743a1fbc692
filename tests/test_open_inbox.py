"""``open_inbox`` against the sandbox: it registers, reads and sends in the background, and is shared by processes."""

import asyncio
import contextlib
import json
import os
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from molecule_connect import (
    AuthError,
    ConfigError,
    Inbox,
    InboxMessage,
    LeaseError,
    Response,
    WorkspaceDeletedError,
    WorkspaceSettings,
    connect,
    endpoints,
    open_inbox,
)
from molecule_connect.worker.lease import lease
from molecule_connect.worker.status_file import read_status
from molecule_connect_sandbox.testing import Sandbox, Workspace

GENERATIONS = ("2026-08", "2026-05")


def settings(sandbox: Sandbox, workspace: Workspace, **given: Any) -> WorkspaceSettings:
    given.setdefault("token", workspace.token)
    return WorkspaceSettings(workspace_id=workspace.id, api_url=sandbox.url, poll_interval=0.05, **given)


def opened(sandbox: Sandbox, folder: Path, *workspaces: Workspace, **given: Any) -> AbstractAsyncContextManager[Inbox]:
    listed = [settings(sandbox, one) for one in workspaces]
    return open_inbox(listed, state_dir=folder, transport=sandbox.transport, **given)


async def taken(inbox: Inbox) -> InboxMessage:
    message = await inbox.wait(10)
    assert message is not None
    return message


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - conditions are about anything
            await asyncio.sleep(0.02)


@pytest.fixture(params=GENERATIONS)
async def sandbox(request: pytest.FixtureRequest) -> AsyncIterator[Sandbox]:
    async with Sandbox.in_process(platform=request.param) as sandbox:
        yield sandbox


@pytest.fixture
async def newer() -> AsyncIterator[Sandbox]:
    async with Sandbox.in_process() as sandbox:
        yield sandbox


async def test_person_gets_the_reply(sandbox: Sandbox, tmp_path: Path) -> None:
    workspace = await sandbox.workspace()
    async with opened(sandbox, tmp_path, workspace) as inbox:
        await sandbox.say(workspace, "how are you?")
        message = await taken(inbox)
        assert (message.text, message.caller_id, message.kind) == ("how are you?", None, "message")
        assert await inbox.reply(message.activity_id, Response.from_text("well")) == "delivered"
        assert inbox.trouble(workspace.id) == ""
    (answer,) = await sandbox.answers(workspace)
    assert (answer.to, answer.text) == (None, "well")


async def test_peer_gets_reply_marked_as_answer(sandbox: Sandbox, tmp_path: Path) -> None:
    parent, child = await sandbox.pair()
    async with opened(sandbox, tmp_path, child) as inbox:
        await sandbox.say(child, "ping", sender=parent, messageId="question-1", contextId="talk")
        message = await taken(inbox)
        assert (message.caller_id, message.context_id) == (parent.id, "talk")
        assert await inbox.reply(message.activity_id, Response.from_text("pong")) == "delivered"
    (answer,) = await sandbox.answers(child)
    assert (answer.to, answer.text, answer.message["role"]) == (parent.id, "pong", "agent")
    assert answer.message["metadata"]["molecule"] == {"in_reply_to": "question-1", "auto": True}


async def test_workspaces_exchange_question_and_answer(sandbox: Sandbox, tmp_path: Path) -> None:
    parent, child = await sandbox.pair()
    async with opened(sandbox, tmp_path, parent, child) as inbox:
        await inbox.ask(parent.id, child.id, "what is 6 times 7?", timeout=10)
        question = await taken(inbox)
        assert (question.workspace_id, question.caller_id) == (child.id, parent.id)
        await inbox.reply(question.activity_id, Response.from_text("42"))
        answer = await taken(inbox)
        assert (answer.workspace_id, answer.kind, answer.text) == (parent.id, "answer", "42")
        assert answer.question == "what is 6 times 7?"
        with pytest.raises(ConfigError, match="is itself an answer"):
            await inbox.reply(answer.activity_id, Response.from_text("thanks"))
        assert await inbox.pop(answer.activity_id)


async def test_question_confirmed_by_502_stays_open(sandbox: Sandbox, tmp_path: Path) -> None:
    parent, child = await sandbox.pair()
    async with opened(sandbox, tmp_path, parent) as inbox:
        await sandbox.faults("delivery-confirmed,path=/a2a")
        told = await inbox.ask(parent.id, child.id, "what is 6 times 7?", timeout=10)
        assert told["delivery_confirmed"] is True
        await sandbox.faults()
        await sandbox.say(parent, "42", sender=child, role="agent")
        answer = await taken(inbox)
        assert (answer.kind, answer.text, answer.question) == ("answer", "42", "what is 6 times 7?")


async def test_notification_reaches_person_and_is_recognized(newer: Sandbox, tmp_path: Path) -> None:
    workspace = await newer.workspace()
    told: list[str] = []
    async with opened(newer, tmp_path, workspace, listener=lambda event: told.append(str(event))) as inbox:
        await inbox.tell_user(workspace.id, "the build is green")
        await newer.say(workspace, "thanks")
        assert (await taken(inbox)).text == "thanks"
        assert len(inbox.peek()) == 1
    (answer,) = await newer.answers(workspace)
    assert answer.text == "the build is green"
    assert not any("somebody else" in text for text in told)


async def test_notification_without_files_skips_upload_limits(newer: Sandbox, tmp_path: Path) -> None:
    workspace = await newer.workspace()
    async with opened(newer, tmp_path, workspace) as inbox:
        await newer.faults("status=500,path=/uploads/limits")
        await inbox.tell_user(workspace.id, "the build is green")
    (answer,) = await newer.answers(workspace)
    assert answer.text == "the build is green"


async def test_notified_file_not_mistaken_for_the_persons(sandbox: Sandbox, tmp_path: Path) -> None:
    workspace, report = await sandbox.workspace(), tmp_path / "report.txt"
    report.write_text("all is well")
    async with opened(sandbox, tmp_path / "state", workspace) as inbox:
        await inbox.tell_user(workspace.id, "", [report])
        (answer,) = await sandbox.answers(workspace, 1)
        await sandbox.say(workspace, "thanks")
        assert (await taken(inbox)).text == "thanks"
        assert len(inbox.peek()) == 1
        with pytest.raises(ConfigError, match="message is empty"):
            await inbox.tell_user(workspace.id, " ")
        with pytest.raises(ConfigError, match="cannot be sent"):
            await inbox.tell_user(workspace.id, "look", [tmp_path / "missing"])
    assert "report.txt" in str(await sandbox.rows(workspace))
    assert answer.to is None


async def test_answer_of_delegated_peer_shows_the_task(sandbox: Sandbox, tmp_path: Path) -> None:
    parent, child = await sandbox.pair()
    async with opened(sandbox, tmp_path, parent, child) as inbox:
        delegation = await inbox.delegate(parent.id, child.id, "count the sheep")
        task = await taken(inbox)
        assert (task.workspace_id, task.delegation_id) == (child.id, delegation)
        await inbox.reply(task.activity_id, Response.from_text("seven"))
        answer = await taken(inbox)
        assert (answer.kind, answer.text, answer.question) == ("answer", "seven", "count the sheep")


async def test_delegation_result_shows_the_task(newer: Sandbox, tmp_path: Path) -> None:
    parent, child = await newer.pair()
    async with opened(newer, tmp_path, parent) as inbox:
        delegation = await inbox.delegate(parent.id, child.id, "count the sheep")
        assert delegation
        body = {"delegation_id": delegation, "status": "completed"}
        row = {"method": "delegate_result", "source_id": parent.id, "request_body": body}
        await newer.add_rows(parent, {**row, "response_body": {"text": "seven"}})
        result = await taken(inbox)
        assert (result.kind, result.text, result.question) == ("result", "seven", "count the sheep")
        assert (result.caller_id, result.delegation_id) == (child.id, delegation)


async def test_second_reader_takes_over_from_the_first(newer: Sandbox, tmp_path: Path) -> None:
    workspace = await newer.workspace()
    async with contextlib.AsyncExitStack() as later:
        async with opened(newer, tmp_path, workspace) as first:
            await newer.say(workspace, "one")
            assert (await taken(first)).text == "one"
            second = await later.enter_async_context(opened(newer, tmp_path, workspace))
            assert await second.wait(0) is None
            await newer.say(workspace, "two")
            message = await taken(second)
            assert message.text == "two"
            assert await second.reply(message.activity_id, Response.from_text("2")) == "delivered"
            assert second.trouble(workspace.id) == ""
        # The claim of the first reader is released, and the second reader serves the workspace.
        assert (await taken(second)).text == "one"
        await newer.say(workspace, "three")
        assert (await taken(second)).text == "three"
    assert [answer.text for answer in await newer.answers(workspace)] == ["2"]


async def test_workspace_served_by_a_backend_is_refused(newer: Sandbox, tmp_path: Path) -> None:
    workspace = await newer.workspace()
    serving = asyncio.ensure_future(
        connect(settings(newer, workspace, backend="mock"), state_dir=tmp_path, transport=newer.transport)
    )
    await until(lambda: read_status(tmp_path, workspace.id) is not None)
    with pytest.raises(LeaseError, match="with the backend mock") as refused:
        async with opened(newer, tmp_path, workspace):
            pass
    assert "--backend inbox" in refused.value.hint
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving


def tell(folder: Path, **said: Any) -> None:
    """Write the status file of the process that serves the workspace."""
    facts = {"workspace_id": "ws-1", "pid": os.getpid(), "host": socket.gethostname(), "written": time.time(), **said}
    (folder / "ws-1.status").write_text(json.dumps(facts))


async def test_second_reader_sees_troubles_of_serving_process(tmp_path: Path) -> None:
    one = WorkspaceSettings(workspace_id="ws-1", api_url="http://127.0.0.1:9", token="t-1")
    deaf = {"part": "intake", "reason": "no route to the platform"}
    slow = {"part": "stream", "reason": "cut"}
    with lease(tmp_path, "ws-1"):
        tell(tmp_path, inbox=True)
        async with open_inbox([one], state_dir=tmp_path) as inbox:
            assert inbox.trouble("ws-1") == ""
            tell(tmp_path, inbox=True, ailments=[deaf, slow])
            assert inbox.trouble("ws-1") == "intake: no route to the platform"
            tell(tmp_path, inbox=True, written=time.time() - 600)
            assert "does not respond" in inbox.trouble("ws-1")
            tell(tmp_path, inbox=False, backend="exec")
            assert "with the backend exec" in inbox.trouble("ws-1")
            assert not inbox.ended


async def test_reads_alongside_a_connector_in_inbox_mode(newer: Sandbox, tmp_path: Path) -> None:
    workspace = await newer.workspace()
    serving = asyncio.ensure_future(
        connect(settings(newer, workspace, backend="inbox"), state_dir=tmp_path, transport=newer.transport)
    )
    await until(lambda: read_status(tmp_path, workspace.id) is not None)
    async with opened(newer, tmp_path, workspace) as inbox:
        await newer.say(workspace, "hello")
        message = await taken(inbox)
        assert await inbox.reply(message.activity_id, Response.from_text("hi")) == "delivered"
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving
    assert [answer.text for answer in await newer.answers(workspace)] == ["hi"]


async def test_refused_token_ends_only_its_workspace(newer: Sandbox, tmp_path: Path) -> None:
    good, bad = await newer.workspace("good"), await newer.workspace("bad")
    listed = [settings(newer, good), settings(newer, bad, token="wrong")]
    async with open_inbox(listed, state_dir=tmp_path, transport=newer.transport) as inbox:
        await until(lambda: bad.id in inbox.ended)
        error = inbox.ended[bad.id]
        assert isinstance(error, AuthError)
        assert bad.id in error.hint
        assert inbox.trouble(bad.id)
        await newer.say(good, "still there?")
        assert (await taken(inbox)).workspace_id == good.id


async def test_deleted_workspace_reported_and_messages_still_readable(newer: Sandbox, tmp_path: Path) -> None:
    workspace = await newer.workspace()
    async with opened(newer, tmp_path, workspace) as inbox:
        await newer.say(workspace, "one")
        await until(lambda: len(inbox.peek()) == 1)
        await newer.delete(workspace)
        await until(lambda: workspace.id in inbox.ended)
        assert isinstance(inbox.ended[workspace.id], WorkspaceDeletedError)
        assert (await taken(inbox)).text == "one"


async def test_inbox_opens_while_the_platform_is_down(tmp_path: Path) -> None:
    one = WorkspaceSettings(workspace_id="ws-1", api_url="http://127.0.0.1:9", token="t-1")
    async with open_inbox([one], state_dir=tmp_path) as inbox:
        assert await inbox.wait(0) is None
        await until(lambda: inbox.trouble("ws-1") != "")
        assert not inbox.ended


async def test_temporary_journal_failure_ends_nothing(newer: Sandbox, tmp_path: Path) -> None:
    workspace = await newer.workspace()
    async with opened(newer, tmp_path, workspace):
        pass
    with contextlib.closing(sqlite3.connect(tmp_path / "journal.sqlite3")) as db:
        db.execute("ALTER TABLE message RENAME TO away")
        async with opened(newer, tmp_path, workspace) as inbox:
            await until(lambda: "journal" in inbox.trouble(workspace.id))
            assert not inbox.ended
            db.execute("ALTER TABLE away RENAME TO message")


async def test_each_workspace_uses_its_own_client(newer: Sandbox, tmp_path: Path) -> None:
    one, other = await newer.workspace("one"), await newer.workspace("other")
    async with opened(newer, tmp_path, one, other) as inbox:
        assert inbox.workspace_ids == (one.id, other.id)
        for workspace in (one, other):
            client = inbox.client(workspace.id)
            assert client.workspace_id == workspace.id
            assert (await client.call(endpoints.workspace(workspace.id))).name == workspace.name
        with pytest.raises(ConfigError, match="not served here"):
            inbox.client("ws-unknown")


async def test_without_heartbeat_only_reads(newer: Sandbox, tmp_path: Path) -> None:
    workspace = await newer.workspace(registered=True)
    async with opened(newer, tmp_path, workspace, heartbeat=False) as inbox:
        await newer.say(workspace, "hello")
        assert (await taken(inbox)).text == "hello"
    assert await newer.beats(workspace) == []


async def test_workspaces_default_to_the_environment(newer: Sandbox, tmp_path: Path) -> None:
    workspace = await newer.workspace()
    environ = {
        "PLATFORM_URL": newer.url,
        "WORKSPACE_ID": workspace.id,
        "MOLECULE_WORKSPACE_TOKEN": workspace.token,
        "MOLECULE_STATE_DIR": str(tmp_path),
        "HOME": str(tmp_path),
    }
    async with open_inbox(environ=environ, transport=newer.transport) as inbox:
        assert inbox.workspace_ids == (workspace.id,)


@pytest.mark.parametrize("twice", [True, False])
async def test_invalid_workspace_lists_refused(tmp_path: Path, twice: bool) -> None:
    one = WorkspaceSettings(workspace_id="ws-1", token="t-1")
    with pytest.raises(ConfigError, match="ws-1 is given twice" if twice else "no workspace"):
        async with open_inbox([one, one] if twice else [], state_dir=tmp_path):
            pass


# The older inbox program


async def write(sandbox: Sandbox, workspace: Workspace, *texts: str) -> list[str]:
    for text in texts:
        await sandbox.say(workspace, text)
    return [str(row["id"]) for row in await sandbox.rows(workspace, len(texts))]


@pytest.mark.parametrize("name", [".mcp_inbox_cursor", ".mcp_inbox_cursor_{id}", ".mcp_inbox_cursor_{id:.8}"])
async def test_legacy_position_migrated_once(newer: Sandbox, tmp_path: Path, name: str) -> None:
    workspace = await newer.workspace()
    first, _ = await write(newer, workspace, "read long ago", "new")
    configs, state = tmp_path / "configs", tmp_path / "state"
    configs.mkdir()
    state.mkdir()
    (configs / name.format(id=workspace.id)).write_text(f"{first}\n")
    given = {"environ": {"CONFIGS_DIR": str(configs), "HOME": str(tmp_path)}}
    async with opened(newer, state, workspace, **given) as inbox:
        message = await taken(inbox)
        assert message.text == "new"
        await inbox.pop(message.activity_id)
        assert inbox.peek() == []
    async with opened(newer, state, workspace, **given) as inbox:
        await asyncio.sleep(0.3)
        assert inbox.peek() == []
