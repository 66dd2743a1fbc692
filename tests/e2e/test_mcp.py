"""``molecule mcp`` as a separate process, driven by the SDK's client, against a sandbox over loopback."""

import asyncio
import contextlib
import json
import signal
from pathlib import Path

import pytest
from mcp.shared.exceptions import MCPError

from molecule_connect_sandbox.testing import Sandbox

from .kit import Connector, message_row, registered
from .mcp_host import PROGRAM, environ_for, host


@pytest.mark.parametrize(("mode", "platform"), [("legacy", "2026-05"), ("auto", "2026-08")])
async def test_host_receives_and_answers_messages(tmp_path: Path, mode: str, platform: str) -> None:
    async with Sandbox.over_loopback(platform=platform) as sandbox:
        workspace, peer = await sandbox.pair()
        async with host(sandbox, workspace, tmp_path, mode=mode) as session:
            await registered(sandbox, workspace)
            waiting = asyncio.create_task(session.wait())
            await sandbox.say(workspace, "from a person")
            person = await waiting
            assert (person["text"], person["kind"], person["peer_id"]) == ("from a person", "canvas_user", "")
            assert (await session.pushed())["meta"]["activity_id"] == person["activity_id"]
            assert await session.call("reply", activity_id=person["activity_id"], text="to the person") == {
                "status": "delivered",
                "activity_id": person["activity_id"],
            }

            await sandbox.say(workspace, "from a peer", sender=peer)
            asked = await session.wait()
            assert (asked["text"], asked["kind"], asked["peer_id"]) == ("from a peer", "peer_agent", peer.id)
            assert [one["activity_id"] for one in (await session.call("inbox_peek"))["messages"]] == [
                asked["activity_id"]
            ]
            await session.call("reply", activity_id=asked["activity_id"], text="to the peer")
            assert "replied to already" in await session.call(
                "reply", activity_id=asked["activity_id"], text="once more"
            )

            await sandbox.say(workspace, "no answer needed")
            popped = (await session.wait())["activity_id"]
            assert (await session.call("inbox_pop", activity_id=popped))["removed"] is True
            assert (await session.call("inbox_pop", activity_id=popped))["removed"] is False
            assert await session.call("wait_for_message", timeout_secs=0) == {"timeout": True, "timeout_secs": 0}

            assert (await session.call("list_peers"))["peers"][0]["name"] == "child"
            assert (await session.call("delegate_task", peer_id=peer.id, task="count"))["status"] == "queued"
            assert "your own workspace" in await session.call("delegate_task", peer_id=workspace.id, task="count")
            texts = [one["text"] for one in (await session.call("chat_history"))["messages"]]
            assert texts == ["from a person", "to the person", "no answer needed"]
            info = await session.call("get_workspace_info")
            assert (info["workspace_id"], info["inbox"]) == (workspace.id, "well")
        answers = await sandbox.answers(workspace, 3)
        assert [(one.to, one.text) for one in answers] == [
            (None, "to the person"),
            (peer.id, "to the peer"),
            (peer.id, "count"),
        ]
        assert (await sandbox.beats(workspace))[-1]["sample_error"] == "stopped"
        assert workspace.token not in session.errors.read_text()


@pytest.mark.drill
async def test_peer_answer_arrives_with_its_question(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace, peer = await sandbox.pair()
        async with (
            Connector(sandbox, peer, tmp_path / "peer", "--backend", "mock"),
            host(sandbox, workspace, tmp_path) as session,
        ):
            await registered(sandbox, peer)
            await session.call("delegate_task", peer_id=peer.id, task="what is up?")
            answer = await session.wait()
    assert (answer["kind"], answer["text"]) == ("peer_agent", "echo: what is up?")
    assert answer["in_answer_to"] == "what is up?"


async def test_message_survives_kill_between_wait_and_pop(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        await sandbox.say(workspace, "still there?")
        with contextlib.suppress(MCPError, ExceptionGroup):
            async with host(sandbox, workspace, tmp_path) as first:
                taken = await first.wait()
                first.kill()
                await first.call("inbox_peek")
        async with host(sandbox, workspace, tmp_path) as second:
            again = await second.wait()
            assert again["activity_id"] == taken["activity_id"]
            await second.call("reply", activity_id=again["activity_id"], text="yes")
        assert [one.text for one in await sandbox.answers(workspace, 1)] == ["yes"]


@pytest.mark.drill
async def test_second_host_takes_over_the_shared_inbox(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        with contextlib.suppress(MCPError, ExceptionGroup):
            async with host(sandbox, workspace, tmp_path) as first:
                await registered(sandbox, workspace)
                async with host(sandbox, workspace, tmp_path) as second:
                    await sandbox.say(workspace, "one")
                    await sandbox.say(workspace, "two")
                    taken = [await first.wait(), await second.wait()]
                    assert [one["text"] for one in taken] == ["one", "two"]
                    assert (await second.call("reply", activity_id=taken[1]["activity_id"], text="2"))["status"] in (
                        "delivered",
                        "stored",
                    )
                    await sandbox.answers(workspace, 1)
                    await first.call("inbox_pop", activity_id=taken[0]["activity_id"])

                    first.kill()
                    await sandbox.say(workspace, "three")
                    assert (await second.wait())["text"] == "three"


@pytest.mark.drill
async def test_workspace_served_by_a_backend_is_refused(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        async with Connector(sandbox, workspace, tmp_path / "state", "--backend", "mock") as connector:
            await registered(sandbox, workspace)
            code, errors = await run(environ_for(sandbox, workspace, tmp_path / "state"))
            assert connector.process is not None
            assert code == 5
            assert str(connector.process.pid) in errors
            code, report = await run(environ_for(sandbox, workspace, tmp_path / "state"), "--check")
            assert code == 5
            assert "backend mock" in report


@pytest.mark.drill
async def test_reads_through_a_connector_in_inbox_mode(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        async with Connector(sandbox, workspace, tmp_path / "state", "--backend", "inbox"):
            await registered(sandbox, workspace)
            async with host(sandbox, workspace, tmp_path) as session:
                await sandbox.say(workspace, "hello")
                message = await session.wait()
                await session.call("reply", activity_id=message["activity_id"], text="through it")
            assert [one.text for one in await sandbox.answers(workspace, 1)] == ["through it"]


@pytest.mark.drill
async def test_two_workspaces_use_their_own_tokens(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        one, two = await sandbox.workspace("one"), await sandbox.workspace("two")
        several = json.dumps([{"id": each.id, "token": each.token} for each in (one, two)])
        async with host(sandbox, one, tmp_path, MOLECULE_WORKSPACES=several) as session:
            await registered(sandbox, two)
            await sandbox.say(two, "to the second")
            message = await session.wait()
            assert message["arrival_workspace_id"] == two.id
            await session.call("reply", activity_id=message["activity_id"], text="from the second")
        assert [answer.text for answer in await sandbox.answers(two, 1)] == ["from the second"]
        assert await sandbox.answers(one) == []


async def run(environ: dict[str, str], *arguments: str, given: bytes = b"") -> tuple[int, str]:
    """Run a server whose host writes *given* and closes. Returns the exit code and all output."""
    process = await asyncio.create_subprocess_exec(
        *PROGRAM,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environ,
    )
    async with asyncio.timeout(30):
        if given or arguments:
            output, _ = await process.communicate(given)
        else:
            assert process.stdout is not None
            output = await process.stdout.read()
            await process.wait()
    assert process.stdin is not None
    process.stdin.close()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_missing_setting_is_named_with_exit_2(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        environ = environ_for(sandbox, await sandbox.workspace(), tmp_path / "state")
        del environ["MOLECULE_WORKSPACE_TOKEN"]
        code, output = await run(environ)
    assert (code, "MOLECULE_WORKSPACE_TOKEN" in output, "what to do: " in output) == (2, True, True)
    assert "Traceback" not in output


async def test_refused_token_exits_3(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        environ = environ_for(sandbox, workspace, tmp_path / "state", MOLECULE_WORKSPACE_TOKEN="not-the-one")
        code, output = await run(environ)
        checked, report = await run(environ, "--check")
    assert (code, "not-the-one" in output, "Traceback" in output) == (3, False, False)
    assert (checked, "not-the-one" in report) == (3, False)


async def test_end_of_input_exits_0(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        ping = b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n'
        code, output = await run(environ_for(sandbox, workspace, tmp_path / "state"), given=ping)
    assert code == 0
    assert '"id":1,"result":{}' in output


@pytest.mark.drill
async def test_output_may_be_a_file(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        given, output = tmp_path / "given", tmp_path / "output"
        given.write_text('{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n')
        with given.open() as stdin, output.open("w") as stdout:
            process = await asyncio.create_subprocess_exec(
                *PROGRAM,
                stdin=stdin,
                stdout=stdout,
                stderr=asyncio.subprocess.PIPE,
                env=environ_for(sandbox, workspace, tmp_path / "state"),
            )
            _, errors = await process.communicate()
    assert process.returncode == 0
    assert json.loads(output.read_text())["result"] == {}
    assert b"Traceback" not in errors


async def test_signal_ends_server_despite_open_input(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        process = await asyncio.create_subprocess_exec(
            *PROGRAM,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environ_for(sandbox, workspace, tmp_path / "state"),
        )
        await registered(sandbox, workspace)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        async with asyncio.timeout(20):
            errors = await process.stderr.read()
            await process.wait()
        assert process.stdin is not None
        process.stdin.close()
        assert (process.returncode, b"Traceback" in errors) == (0, False)
        assert (await sandbox.beats(workspace))[-1]["sample_error"] == "stopped"


async def test_check_reports_settings_and_status(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace("laptop")
        code, report = await run(environ_for(sandbox, workspace, tmp_path / "state"), "--check")
    assert code == 0
    assert "(laptop)" in report
    assert "token accepted" in report
    assert "no process on this machine serves it" in report
    assert "--dangerously-load-development-channels server:" in report
    assert workspace.token not in report


@pytest.mark.drill
@pytest.mark.timeout(300)
async def test_five_thousand_messages_are_pushed_once(tmp_path: Path) -> None:
    count = 5000
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        for start in range(0, count, 250):
            rows = [message_row(f"message {number}") for number in range(start, start + 250)]
            await sandbox.add_rows(workspace, *rows)
        async with host(sandbox, workspace, tmp_path) as session:
            pushed = [(await session.pushed())["content"] for _ in range(count)]
            assert sorted(pushed) == sorted(f"message {number}" for number in range(count))
            assert await session.asleep()
            seen = set()
            while messages := (await session.call("inbox_peek", limit=100))["messages"]:
                for message in messages:
                    seen.add(message["text"])
                    assert (await session.call("inbox_pop", activity_id=message["activity_id"]))["removed"]
        assert len(seen) == count
