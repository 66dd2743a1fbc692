"""Files of the chat over real HTTP: a real connector, a real command, both generations of the platform."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from molecule_connect_sandbox.testing import Sandbox, Workspace

from .kit import Connector, exec_options, registered, until

# Turns the picture that it is given round, and sends it back.
TURN = """
import json, pathlib, sys
request = json.load(sys.stdin)
files = [part for part in request["parts"] if part["type"] == "file"]
turned = pathlib.Path("turned.png")
turned.write_bytes(pathlib.Path(files[0]["path"]).read_bytes()[::-1])
said = {"type": "text", "text": "turned " + files[0]["name"]}
print(json.dumps({"parts": [said, {"type": "file", "path": str(turned)}]}))
"""
PICTURE = bytes(range(256)) * 4096


async def upload(sandbox: Sandbox, workspace: Workspace, *files: tuple[str, bytes]) -> list[dict[str, Any]]:
    """A person puts files into the chat; what the platform calls them."""
    answered = await sandbox.client.post(
        f"/workspaces/{workspace.id}/chat/uploads",
        files=[("files", (name, content, "image/png")) for name, content in files],
        headers={"Authorization": f"Bearer {sandbox.options.admin_token}"},
    )
    assert answered.status_code == 200, answered.text
    taken: list[dict[str, Any]] = answered.json()["files"]
    return taken


async def say_with(sandbox: Sandbox, workspace: Workspace, text: str, *files: dict[str, Any]) -> None:
    parts = [{"kind": "text", "text": text}, *({"kind": "file", "file": file} for file in files)]
    await sandbox.say(workspace, text, parts=parts)


async def content(sandbox: Sandbox, workspace: Workspace, uri: str) -> bytes | None:
    """What the platform keeps under *uri*."""
    path = f"/workspaces/{workspace.id}/pending-uploads/{uri.rpartition('/')[2]}/content"
    answered = await sandbox.call("GET", path, token=workspace.token)
    return answered.content if answered.status_code == 200 else None


async def shown(sandbox: Sandbox, workspace: Workspace) -> list[dict[str, Any]]:
    """What the person sees of answers."""
    rows = await sandbox.rows(workspace)
    return [row["response_body"] for row in rows if row["method"] == "notify"]


@pytest.fixture(params=["2026-05", "2026-08"])
def generation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_command_receives_and_returns_a_picture(generation: str, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(TURN)}"
    options = exec_options(command, format="json", cwd=str(work))
    async with Sandbox.over_loopback(platform=generation) as sandbox:
        workspace = await sandbox.workspace()
        async with Connector(sandbox, workspace, tmp_path / "state", *options) as connector:
            await registered(sandbox, workspace)
            (picture,) = await upload(sandbox, workspace, ("a picture.png", PICTURE))
            await say_with(sandbox, workspace, "turn it", picture)
            await sandbox.answers(workspace, 1)
            (answer,) = await shown(sandbox, workspace)

            assert answer["result"] == "turned a_picture.png"
            (part,) = answer["parts"]
            assert part["file"]["name"] == "turned.png"
            assert await content(sandbox, workspace, part["file"]["uri"]) == PICTURE[::-1]
            # Ours is neither fetched nor acknowledged; theirs is here.
            (kept,) = (tmp_path / "state" / workspace.id / "files").iterdir()
            assert kept.read_bytes() == PICTURE
            assert kept.stat().st_mode & 0o777 == 0o600
            assert "somebody else" not in connector.output


async def test_files_survive_a_kill_before_their_message(generation: str, tmp_path: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(SIZES)}"
    async with Sandbox.over_loopback(platform=generation) as sandbox:
        workspace = await sandbox.workspace()
        async with Connector(sandbox, workspace, tmp_path, *exec_options(command, format="json")) as connector:
            await registered(sandbox, workspace)
            files = await upload(sandbox, workspace, ("a.png", b"1"), ("../../b.png", b"22"))
            folder = tmp_path / workspace.id / "files"
            await until(lambda: folder.exists() and len(list(folder.iterdir())) == 2)
            assert connector.process is not None
            connector.process.kill()
            await connector.process.wait()
        await say_with(sandbox, workspace, "how long?", *files)
        async with Connector(sandbox, workspace, tmp_path, *exec_options(command, format="json")):
            (answer,) = await sandbox.answers(workspace, 1)
    assert json.loads(answer.text) == {"a.png": 1, "b.png": 2}
    assert not (tmp_path / "b.png").exists()


SIZES = """
import json, pathlib, sys
request = json.load(sys.stdin)
files = [part for part in request["parts"] if part["type"] == "file"]
sizes = {part["name"]: len(pathlib.Path(part["path"]).read_bytes()) for part in files}
print(json.dumps({"text": json.dumps(sizes)}))
"""
