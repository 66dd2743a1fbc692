"""Plugin download and its report, as the real platform answers."""

import io
import tarfile

import pytest

from molecule_connect_sandbox.tarballs import TARBALLS
from molecule_connect_sandbox.testing import Sandbox


async def test_plugin_download_is_gzip_tar_with_name() -> None:
    async with Sandbox.in_process() as sandbox:
        workspace = await sandbox.workspace()
        answer = await sandbox.call("GET", f"/workspaces/{workspace.id}/plugins/hello/download", token=workspace.token)

    assert answer.headers["content-type"] == "application/gzip"
    assert (answer.headers["x-plugin-name"], answer.headers["x-plugin-source"]) == ("hello", "local://hello")
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
        assert tar.getnames() == ["plugin.yaml", "skills", "skills/hello.md", "setup.sh"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("gone/download", 404),
        (".hidden/download", 400),
        ("hello/download?source=ftp://hello", 400),
        ("hello/download?source=local://other", 400),
        ("hello/download?source=github://acme/hello", 422),
        ("hello/download?source=github://acme/hello%23v1", 200),
    ],
)
async def test_rejects_unavailable_plugins(path: str, status: int) -> None:
    async with Sandbox.in_process() as sandbox:
        workspace = await sandbox.workspace()
        answer = await sandbox.call("GET", f"/workspaces/{workspace.id}/plugins/{path}", token=workspace.token)

    assert answer.status_code == status


async def test_plugin_download_requires_workspace_token() -> None:
    async with Sandbox.in_process() as sandbox:
        workspace = await sandbox.workspace()
        answer = await sandbox.call("GET", f"/workspaces/{workspace.id}/plugins/hello/download")

    assert answer.status_code == 401


@pytest.mark.parametrize(("platform", "status"), [("2026-05", 503), ("2026-08", 422)])
async def test_external_workspace_cannot_report_plugin(platform: str, status: int) -> None:
    async with Sandbox.in_process(platform=platform) as sandbox:
        workspace = await sandbox.workspace()
        body = {"source": "local://hello"}
        answer = await sandbox.call("POST", f"/workspaces/{workspace.id}/plugins", body, token=workspace.token)

    assert answer.status_code == status


async def test_put_plugin_replaces_archive() -> None:
    async with Sandbox.in_process() as sandbox:
        workspace = await sandbox.workspace()
        await sandbox.put_plugin("mine", b"bytes")
        answer = await sandbox.call("GET", f"/workspaces/{workspace.id}/plugins/mine/download", token=workspace.token)

    assert answer.content == b"bytes"


@pytest.mark.parametrize("name", TARBALLS)
def test_builds_every_archive(name: str) -> None:
    assert 0 < len(TARBALLS[name]()) < 3_000_000


def test_plugin_digest_is_stable_across_downloads() -> None:
    # Where gzip keeps a time.
    assert TARBALLS["hello"]()[4:8] == bytes(4)
