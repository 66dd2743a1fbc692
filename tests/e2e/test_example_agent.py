"""``examples/agent`` as a newcomer runs it: a process of its own, which answers and ends with Ctrl-C."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest
from tests.e2e.kit import clean_environ

from molecule_connect_sandbox.testing import Sandbox

AGENT = Path(__file__).parents[2] / "examples" / "agent" / "agent.py"
# A test that runs in the background ignores Ctrl-C, and so would its children.
RUN = (
    sys.executable,
    "-c",
    "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_path(sys.argv[1], run_name='__main__')",
    str(AGENT),
)


@pytest.mark.parametrize("platform", ["2026-05", "2026-08"])
async def test_example_answers_and_exits_cleanly(platform: str, tmp_path: Path) -> None:
    async with Sandbox.over_loopback(platform=platform) as sandbox:
        peer, me = await sandbox.pair()
        await sandbox.say(me, "one two three")
        environ = {
            **clean_environ(),
            "HOME": str(tmp_path),
            "MOLECULE_API_URL": sandbox.url,
            "WORKSPACE_ID": me.id,
            "MOLECULE_WORKSPACE_TOKEN": me.token,
        }
        process = await asyncio.create_subprocess_exec(*RUN, env=environ, stderr=asyncio.subprocess.PIPE)
        assert process.stderr is not None
        await sandbox.beats(me, 1)
        await sandbox.say(me, "four words of text", sender=peer)
        person = await sandbox.answers(me, 1)
        rows = await sandbox.rows(peer, 1)
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(20):
            said = (await process.stderr.read()).decode()
            code = await process.wait()

    assert [answer.text for answer in person if answer.to is None] == ["3 words"]
    assert rows[0]["request_body"]["params"]["message"]["parts"] == [{"kind": "text", "text": "4 words"}]
    assert code == 0
    assert "Traceback" not in said
    assert me.token not in said


@pytest.mark.parametrize("given", [{}, {"WORKSPACE_ID": "ws-1"}, {"MOLECULE_API_URL": "http://127.0.0.1:9"}])
async def test_missing_variables_are_named(given: dict[str, str], tmp_path: Path) -> None:
    environ = {**clean_environ(), "HOME": str(tmp_path), **given}
    process = await asyncio.create_subprocess_exec(*RUN, env=environ, stderr=asyncio.subprocess.PIPE)
    _, said = await process.communicate()

    assert process.returncode == 1
    assert said.decode().startswith("export WORKSPACE_ID and MOLECULE_API_URL first")
    assert said.count(b"\n") == 1


def test_its_readme_says_how_long_it_is() -> None:
    words = {30: "Thirty", 40: "Forty", 50: "Fifty", 60: "Sixty"}
    lines = len(AGENT.read_text().splitlines())

    assert f"\n{words[round(lines, -1)]} lines that" in AGENT.with_name("README.md").read_text()


async def test_unreachable_platform_has_a_hint(tmp_path: Path) -> None:
    environ = {
        **clean_environ(),
        "HOME": str(tmp_path),
        "MOLECULE_API_URL": "http://127.0.0.1:9",
        "WORKSPACE_ID": "ws-1",
        "MOLECULE_WORKSPACE_TOKEN": "a-token-of-ws-1",
    }
    process = await asyncio.create_subprocess_exec(*RUN, env=environ, stderr=asyncio.subprocess.PIPE)
    _, said = await process.communicate()

    assert process.returncode == 1
    assert "register: http://127.0.0.1:9 cannot be reached" in said.decode()
    assert "what to do: check the network" in said.decode()
