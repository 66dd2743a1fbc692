"""A disk that fills up under a real connector, and has room again."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from molecule_connect_sandbox.testing import Sandbox, Workspace

from .kit import Connector, exec_options, mounted, registered, until
from .test_operating import molecule


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of sixteen megabytes."""
    with mounted(tmp_path / "disk", "16m") as place:
        yield place


def fill(place: Path) -> Path:
    """Leave not a byte of room."""
    ballast = place / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    return ballast


async def wedged(sandbox: Sandbox, workspace: Workspace, *, seconds: float) -> dict[str, Any]:
    """The first beat that says so."""
    async with asyncio.timeout(seconds):
        while True:
            for beat in await sandbox.beats(workspace):
                if beat.get("runtime_state") == "wedged":
                    return beat
            await asyncio.sleep(0.1)


@pytest.mark.drill
@pytest.mark.timeout(120)
async def test_full_disk_is_reported_and_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    runs, started, go_on = tmp_path / "runs", tmp_path / "started", tmp_path / "go-on"
    # The command writes elsewhere, and answers more than the journal can have room for.
    command = f"text=$(cat); echo $text >> {runs}; touch {started}; until test -e {go_on}; do sleep 0.05; done; "
    command += "echo $text; head -c 300000 /dev/zero | tr '\\0' x"
    async with Sandbox.over_loopback() as sandbox:
        workspace, peer = await sandbox.pair()
        async with Connector(sandbox, workspace, small_disk, *exec_options(command)) as connector:
            await registered(sandbox, workspace)
            await sandbox.say(workspace, "first", sender=peer)
            await until(started.exists)
            ballast = fill(small_disk)
            go_on.touch()
            # The answer of the first cannot be stored, so it is not sent; the second cannot be taken.
            await sandbox.say(workspace, f"second {'y' * 300_000}", sender=peer, contextId="other")
            beat = await wedged(sandbox, workspace, seconds=30)
            assert "journal" in beat["sample_error"] or "full" in beat["sample_error"]
            await connector.says("full")
            assert await sandbox.answers(workspace) == []
            async with asyncio.timeout(15):
                while "journal cannot be written" not in (told := await molecule(small_disk, "status"))[1]:
                    pass
            assert told[0] == 1
            ballast.unlink()
            answers = await sandbox.answers(workspace, 2, timeout=30)
            await until(lambda: ": recovered" in connector.output)
            await asyncio.sleep(2)
            assert await connector.stop() == 0
        assert len(await sandbox.answers(workspace)) == 2
    assert sorted(answer.text.partition("\n")[0][:6] for answer in answers) == ["first", "second"]
    assert sorted(line[:6] for line in runs.read_text().splitlines()) == ["first", "second"]
