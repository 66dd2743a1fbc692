"""Several workspaces in one real process: one platform down, one token refused, and lists that change under load."""

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from molecule_connect_sandbox.testing import Sandbox, Workspace

from .kit import PROGRAM, Connector, clean_environ, registered

MOCK = '[defaults]\nbackend = "mock"\noptions.reply = "%s!"\n'


def block(workspace: Workspace, url: str, *more: str, token: str = "") -> str:
    lines = (f'id = "{workspace.id}"', f'token = "{token or workspace.token}"', f'api_url = "{url}"', *more)
    return "\n".join(("[[workspace]]", *lines, ""))


def write(config: Path, *blocks: str) -> None:
    config.touch(mode=0o600)
    config.write_text(MOCK + "".join(blocks))


@pytest.fixture
def down() -> Iterator[str]:
    """An address where nobody listens. Its port stays taken, so that no other test is given it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


async def texts(sandbox: Sandbox, workspace: Workspace, count: int) -> list[str]:
    return [answer.text for answer in await sandbox.answers(workspace, count)]


async def test_failing_workspaces_do_not_affect_the_others(down: str, tmp_path: Path) -> None:
    config = tmp_path / "fleet.toml"
    async with Sandbox.over_loopback() as sandbox:
        good, refused, away = [await sandbox.workspace(name) for name in ("good", "refused", "away")]
        write(
            config,
            block(refused, sandbox.url, token="not-the-token-1234"),
            block(away, down),
            block(good, sandbox.url),
        )
        async with Connector.of_a_list(config, tmp_path / "state") as connector:
            await connector.says(f"[{refused.id}] register: 401")
            await connector.says(f"workspace {refused.id}, token from {config}: ")
            await connector.says(f"[{away.id}] register: {down} cannot be reached")
            for number in range(20):
                await sandbox.say(good, f"{number}")
            assert await texts(sandbox, good, 20) == [f"{number}!" for number in range(20)]

            # What is mended is taken up: the list itself did not change for the one that goes on trying.
            write(config, block(refused, sandbox.url), block(away, down), block(good, sandbox.url))
            connector.send(signal.SIGHUP)
            await registered(sandbox, refused)
            await sandbox.say(refused, "late")
            assert await texts(sandbox, refused, 1) == ["late!"]
            assert await connector.stop() == 0
    starts = [line for line in connector.output.splitlines() if "molecule connect: workspace " in line]
    assert len(starts) == 4
    assert not any(one.token in connector.output for one in (good, refused, away))


async def test_new_tokens_are_used_without_restart(tmp_path: Path) -> None:
    config = tmp_path / "fleet.toml"
    async with Sandbox.over_loopback() as sandbox:
        refused = [await sandbox.workspace(f"refused {number}") for number in range(2)]
        for one in refused:
            (tmp_path / one.id).touch(mode=0o600)
            (tmp_path / one.id).write_text("not-the-token-1234")
        blocks = [f'[[workspace]]\nid = "{one.id}"\ntoken_file = "{one.id}"\n' for one in refused]
        write(config, f'api_url = "{sandbox.url}"\n', *blocks)
        async with Connector.of_a_list(config, tmp_path / "state") as connector:
            for one in refused:
                await connector.says(f"[{one.id}] register: 401")
                (tmp_path / one.id).write_text(one.token)
            for one in refused:
                await registered(sandbox, one)
            assert await connector.stop() == 0


async def test_list_outlasts_refusals_at_the_start(tmp_path: Path) -> None:
    # Side by side: each waits for most of its time.
    async with asyncio.TaskGroup() as group:
        for status in (400, 401, 403, 404, 410, 503):
            folder = tmp_path / str(status)
            folder.mkdir()
            group.create_task(outlasts_refusals(status, folder))


async def outlasts_refusals(status: int, folder: Path) -> None:
    config = folder / "fleet.toml"
    async with Sandbox.over_loopback() as sandbox:
        workspaces = [await sandbox.workspace(f"{number}") for number in range(3)]
        write(config, *(block(one, sandbox.url) for one in workspaces))
        await sandbox.faults(f"status={status}")
        async with Connector.of_a_list(config, folder / "state") as connector:
            for one in workspaces:
                await connector.says(f"[{one.id}] register: ")
            await sandbox.faults()
            for one in workspaces:
                await registered(sandbox, one)
            assert await connector.stop() == 0


async def test_list_of_deleted_workspaces_exits_with_4(tmp_path: Path) -> None:
    config = tmp_path / "fleet.toml"
    async with Sandbox.over_loopback() as sandbox:
        deleted = [await sandbox.workspace(f"deleted {number}") for number in range(2)]
        for one in deleted:
            await sandbox.delete(one)
        write(config, *(block(one, sandbox.url) for one in deleted))
        async with Connector.of_a_list(config, tmp_path / "state") as connector:
            assert await connector.ended() == 4
    assert "error: 2 of 2 workspaces ended with an error: " in connector.output
    assert all(f"{one.id}: the workspace was deleted" in connector.output for one in deleted)


async def test_once_answers_the_backlog_and_exits(tmp_path: Path) -> None:
    config = tmp_path / "fleet.toml"
    async with Sandbox.over_loopback() as sandbox:
        workspaces = [await sandbox.workspace(name) for name in ("one", "two")]
        for workspace in workspaces:
            await sandbox.say(workspace, f"for {workspace.name}")
        write(config, *(block(workspace, sandbox.url) for workspace in workspaces))
        async with Connector.of_a_list(config, tmp_path / "state", "--once") as connector:
            assert await connector.ended() == 0
        for workspace in workspaces:
            assert await texts(sandbox, workspace, 1) == [f"for {workspace.name}!"]


async def test_list_changes_under_load_lose_nothing(tmp_path: Path) -> None:
    config = tmp_path / "fleet.toml"
    async with Sandbox.over_loopback() as sandbox:
        stays, changes, comes_and_goes = [await sandbox.workspace(name) for name in ("stays", "changes", "comes")]

        async def write_all(workspace: Workspace) -> None:
            for number in range(30):
                await sandbox.say(workspace, f"{number}", contextId=f"c{number % 3}")
                await asyncio.sleep(0.02)

        def lists(number: int, *, with_third: bool) -> None:
            more = [block(comes_and_goes, sandbox.url)] if with_third else []
            changed = block(changes, sandbox.url, f"concurrency = {number}")
            write(config, block(stays, sandbox.url), changed, *more)

        lists(1, with_third=False)
        async with Connector.of_a_list(config, tmp_path / "state") as connector:
            await registered(sandbox, stays)
            await registered(sandbox, changes)
            async with asyncio.TaskGroup() as group:
                for workspace in (stays, changes, comes_and_goes):
                    group.create_task(write_all(workspace))
                for number in range(2, 6):
                    before = len(connector.output)
                    lists(number, with_third=number % 2 == 0)
                    connector.send(signal.SIGHUP)
                    await connector.says(f"{config} was read again: ", since=before)
                    await asyncio.sleep(0.2)
            lists(6, with_third=True)
            connector.send(signal.SIGHUP)
            for workspace in (stays, changes, comes_and_goes):
                found = await texts(sandbox, workspace, 30)
                assert sorted(found) == sorted(f"{number}!" for number in range(30))
            assert await connector.stop() == 0
        registrations = connector.output.count(f"[{stays.id}] registered")
    assert registrations == 1


BAD = {
    "ws-backend": 'token = "t0k3n-1234"\nbackend = "mokc"',
    "ws-option": 'token = "t0k3n-1234"\nbackend = "exec"',
    "ws-file": 'token_file = "later"',
    "ws-key": 'token = "t0k3n-1234"\ntokn = 1',
    "a b": 'token = "t0k3n-1234"',
}


def bad_blocks(*names: str) -> list[str]:
    return [f'[[workspace]]\nid = "{name}"\n{BAD[name]}\n' for name in names or BAD]


async def status(state: Path, *arguments: str) -> tuple[int, str]:
    """The exit code of ``molecule status``, and what it prints."""
    program = await asyncio.create_subprocess_exec(
        *PROGRAM, "status", *arguments, "--state-dir", str(state), stdout=asyncio.subprocess.PIPE, env=clean_environ()
    )
    output, _ = await program.communicate()
    assert program.returncode is not None
    return program.returncode, output.decode()


async def until_status(state: Path, code: int, *words: str) -> str:
    """Wait until ``molecule status`` ends with *code* and prints *words*. A status is written once a second."""
    found: tuple[int, str] = (-1, "")
    try:
        async with asyncio.timeout(30):
            while found[0] != code or any(each not in found[1] for each in words):
                found = await status(state)
    except TimeoutError:
        raise AssertionError(f"expected {code} and {words}, found {found}") from None
    return found[1]


async def test_good_blocks_are_served_despite_bad_ones(tmp_path: Path) -> None:
    config, state = tmp_path / "fleet.toml", tmp_path / "state"
    async with Sandbox.over_loopback() as sandbox:
        good, late = await sandbox.workspace("good"), await sandbox.workspace("late")
        mended = block(late, sandbox.url)
        broken = mended.replace("token =", "tokn =")
        write(config, *bad_blocks(), block(good, sandbox.url), broken)
        async with Connector.of_a_list(config, state) as connector:
            await registered(sandbox, good)
            await sandbox.say(good, "hi")
            assert await texts(sandbox, good, 1) == ["hi!"]
            # Lines are written a moment later, which may be after the reply.
            await connector.says(f"[{good.id}] registered")
            errors = [line for line in connector.output.splitlines() if " ERROR " in line]
            assert len(errors) == 6
            for number, name in enumerate(BAD, 1):
                label = f"workspace {number}" + (f" ({name})" if " " not in name else "")
                (line,) = [line for line in errors if f"list: {label}: " in line]
                assert " -> " in line
                assert line.endswith(
                    "; then send SIGHUP to process " + str(connector.process and connector.process.pid)
                )
            output = await until_status(state, 1, f"{good.id}: runs well")
            for name in ("ws-backend", "ws-option", "ws-file", "ws-key", "workspace 5", late.id):
                assert f"{name}: is not served: " in output
            assert (await status(state, "ws-file"))[0] == 1

            write(config, block(good, sandbox.url), mended)
            connector.send(signal.SIGHUP)
            await connector.says(f"[{late.id}] list: recovered")
            await registered(sandbox, late)
            assert await connector.stop() == 0
        assert connector.output.count(f"[{good.id}] registered") == 1
    assert list(state.glob("*.refused")) == []


async def test_strict_list_with_bad_block_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "fleet.toml"
    async with Sandbox.over_loopback() as sandbox:
        write(config, block(await sandbox.workspace(), sandbox.url), *bad_blocks())
        async with Connector.of_a_list(config, tmp_path / "state", "--strict") as connector:
            assert await connector.ended() == 2
        assert ("POST", "/registry/register") not in await sandbox.requests()
    assert "error: the list has 5 errors, listed above\n" in connector.output


async def test_once_with_a_bad_block_exits_2(tmp_path: Path) -> None:
    config = tmp_path / "fleet.toml"
    async with Sandbox.over_loopback() as sandbox:
        good = await sandbox.workspace()
        await sandbox.say(good, "hi")
        write(config, block(good, sandbox.url), *bad_blocks("ws-file"))
        async with Connector.of_a_list(config, tmp_path / "state", "--once") as connector:
            assert await connector.ended() == 2
        assert await texts(sandbox, good, 1) == ["hi!"]
    assert "error: 1 of 2 workspaces ended with an error: ws-file: workspace 2 (ws-file): " in connector.output


async def test_reload_applies_the_good_blocks(tmp_path: Path) -> None:
    config, state = tmp_path / "fleet.toml", tmp_path / "state"
    async with Sandbox.over_loopback() as sandbox:
        old, changed, new = [await sandbox.workspace(name) for name in ("old", "changed", "new")]
        write(config, block(old, sandbox.url), block(changed, sandbox.url))
        async with Connector.of_a_list(config, state) as connector:
            await registered(sandbox, old)
            await registered(sandbox, changed)
            before = len(connector.output)
            write(config, block(old, sandbox.url, 'backend = "mokc"'), block(new, sandbox.url), *bad_blocks("a b"))
            connector.send(signal.SIGHUP)
            await registered(sandbox, new)
            await connector.says("; it continues with its earlier settings -> ", since=before)
            assert "gone, drain" not in connector.output
            for workspace in (old, changed):
                await sandbox.say(workspace, "still here")
                assert await texts(sandbox, workspace, 1) == ["still here!"]
            await until_status(state, 1, f"{old.id}: runs, but has problems")

            write(config, block(old, sandbox.url), block(new, sandbox.url))
            connector.send(signal.SIGHUP)
            await connector.says(f"gone, drain: {changed.id}; 2 are unchanged", since=before)
            await connector.says(f"[{changed.id}] stopped", since=before)
            await until_status(state, 0)
            assert await connector.stop() == 0
    assert connector.output.count(f"[{old.id}] registered") == 1


async def test_reload_of_a_faulty_list_changes_nothing(tmp_path: Path) -> None:
    config = tmp_path / "fleet.toml"
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        write(config, block(workspace, sandbox.url))
        async with Connector.of_a_list(config, tmp_path / "state") as connector:
            await registered(sandbox, workspace)
            write(config, block(workspace, sandbox.url, 'backnd = "mock"', "concurrency = 0"), "[[workspace]]\n")
            connector.send(signal.SIGHUP)
            await connector.says("was read again but not applied")
            await connector.says(f"workspace 1 ({workspace.id}): unknown key 'backnd', did you mean 'backend'?")
            await connector.says(f"workspace 1 ({workspace.id}): concurrency must be at least 1")
            await connector.says("workspace 2: it has no id")
            config.unlink()
            os.mkfifo(config)
            connector.send(signal.SIGHUP)
            await connector.says(f"{config}: it is not a regular file, so it can be read only once")
            await sandbox.say(workspace, "still here")
            assert await texts(sandbox, workspace, 1) == ["still here!"]
            assert await connector.stop() == 0
    assert connector.output.count("registered") == 1
