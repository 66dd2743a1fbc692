"""``molecule connect`` as a process: how it ends, its exit codes, and what it prints."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import attrs
import pytest
from tests.e2e.kit import PROGRAM, Connector
from tests.plugins.distributions import backends, write_distribution

from molecule_connect_sandbox.testing import Sandbox, Workspace

SLOW = """
import sys, time
from molecule_connect import Response, hookimpl

class Backend:
    @hookimpl
    async def handle_a2a(self, request):
        if request.text == "block":
            print("blocking", file=sys.stderr, flush=True)
            time.sleep(60)
        return Response.from_text(request.text.upper())

def make(config):
    return Backend()
"""


@attrs.frozen
class Served:
    """A workspace of a sandbox, and a peer that may write to it."""

    sandbox: Sandbox
    workspace: Workspace
    peer: Workspace

    async def say(self, *texts: str) -> None:
        for text in texts:
            await self.sandbox.say(self.workspace, text, sender=self.peer)

    async def replies(self, count: int) -> list[str]:
        return [answer.text for answer in await self.sandbox.answers(self.workspace, count)]


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with Sandbox.over_loopback() as sandbox:
        workspace, peer = await sandbox.pair()
        yield Served(sandbox, workspace, peer)


Connect = Callable[..., Connector]


@pytest.fixture
async def connect(environ: dict[str, str], plugins: Path, served: Served, tmp_path: Path) -> AsyncIterator[Connect]:
    write_distribution(plugins, "fake-slow", entry_points=backends(slow="fake_slow:make"), fake_slow=SLOW)
    connectors: list[Connector] = []

    def make(*flags: str, **more: str) -> Connector:
        given = ("--backend", "slow", "--interval-ms", "50", *flags)
        made = Connector(served.sandbox, served.workspace, tmp_path / "state", *given, **environ, **more)
        connectors.append(made)
        return made

    yield make
    assert not any(served.workspace.token in each.output for each in connectors)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_stops_it_cleanly(connect: Connect, served: Served, number: signal.Signals) -> None:
    await served.say("hello")
    async with connect() as run:
        await run.says("delivered")

        assert await run.stop(number) == 0
    assert await served.replies(0) == ["HELLO"]
    assert "stopped" in run.output


async def test_second_signal_exits_despite_blocked_loop(connect: Connect, served: Served) -> None:
    await served.say("block")
    async with connect() as run:
        await run.says("blocking")
        run.send(signal.SIGTERM)
        # The kernel may hand a signal that comes at the same moment to another thread: press Ctrl-C as a person would.
        ending = asyncio.create_task(run.ended())
        while not (await asyncio.wait({ending}, timeout=0.2))[0]:
            run.send(signal.SIGINT)

        assert await ending in (-signal.SIGINT, -signal.SIGTERM, 130, 143), "whichever was delivered second"
    assert "stopped at once" in run.output


async def test_a_closed_stderr_does_not_stop_it(connect: Connect, served: Served, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "stderr")
    run = connect()
    run.program = ["sh", "-c", f'exec "$@" 2>{tmp_path}/stderr', "sh", *PROGRAM]
    async with run:
        with (tmp_path / "stderr").open() as stderr:
            assert any("registered" in line for line in stderr)
        await served.say("unseen")
        assert await served.replies(1) == ["UNSEEN"]
        assert await run.stop() == 0


async def test_serves_without_stderr(connect: Connect, served: Served) -> None:
    await served.say("unseen")
    run = connect("--once")
    run.program = ["sh", "-c", 'exec "$@" 2>&-', "sh", *PROGRAM]
    async with run:
        assert await run.ended() == 0
    assert await served.replies(0) == ["UNSEEN"]


async def test_once_answers_what_waits_and_ends(connect: Connect, served: Served) -> None:
    await served.say("one", "two")
    async with connect("--once") as run:
        assert await run.ended() == 0
    assert await served.replies(0) == ["ONE", "TWO"]


async def test_refused_token_exits_3(connect: Connect, served: Served) -> None:
    async with connect(MOLECULE_WORKSPACE_TOKEN="not-the-token") as run:
        assert await run.ended() == 3
    assert "error: register: 401" in run.output
    assert f"what to do: workspace {served.workspace.id}, token from MOLECULE_WORKSPACE_TOKEN: " in run.output
    assert "not-the-token" not in run.output


async def test_refused_registration_exits_7(connect: Connect, served: Served) -> None:
    await served.sandbox.faults("status=400,path=/registry/register")
    async with connect() as run:
        assert await run.ended() == 7
    assert "invalid request body" in run.output


async def test_a_deleted_workspace_ends_it_with_4(connect: Connect, served: Served) -> None:
    await served.sandbox.delete(served.workspace)
    async with connect() as run:
        assert await run.ended() == 4
    assert "error: " in run.output
    assert "what to do: " in run.output


async def test_second_process_exits_5(connect: Connect) -> None:
    async with connect() as first:
        await first.says("registered")
        second = await connect().start()
        assert await second.ended() == 5
        assert first.process is not None
        assert str(first.process.pid) in second.output


async def test_signal_before_registration_exits_0(connect: Connect, served: Served) -> None:
    await served.sandbox.faults("unavailable=1,path=/registry/register")
    async with connect() as run:
        await run.says("register")
        assert await run.stop() == 0
