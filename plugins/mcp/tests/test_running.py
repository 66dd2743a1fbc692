"""What a start is refused for."""

from pathlib import Path

import pytest

from molecule_connect import ConfigError, WorkspaceSettings
from molecule_connect_mcp.outbox import Outbox
from molecule_connect_mcp.running import read_workspaces

WHOLE = {"PLATFORM_URL": "http://127.0.0.1:9", "WORKSPACE_ID": "ws-1", "MOLECULE_WORKSPACE_TOKEN": "t-1"}


@pytest.mark.parametrize("missing", WHOLE)
def test_missing_settings_named_as_host_variables(tmp_path: Path, missing: str) -> None:
    environ = {name: value for name, value in WHOLE.items() if name != missing}
    with pytest.raises(ConfigError) as caught:
        read_workspaces(environ, state_dir=tmp_path)
    assert missing in caught.value.hint
    assert "host's configuration" in caught.value.hint


def test_unreachable_platform_is_retried() -> None:
    (one,) = read_workspaces(WHOLE, state_dir=None)
    assert (one.workspace_id, one.patient) == ("ws-1", True)


def test_since_secs_flag_applies_to_first_start(tmp_path: Path) -> None:
    (usual,) = read_workspaces(WHOLE, state_dir=tmp_path)
    (one,) = read_workspaces(WHOLE, state_dir=tmp_path, since_secs=3600)
    assert (usual.since_secs, one.since_secs) == (30, 3600)
    several = '[{"id": "ws-1", "token": "t-1", "since_secs": 5}, {"id": "ws-2", "token": "t-2"}]'
    listed = {"PLATFORM_URL": "http://127.0.0.1:9", "MOLECULE_WORKSPACES": several}
    assert [one.since_secs for one in read_workspaces(listed, state_dir=tmp_path)] == [5, 30]
    assert [one.since_secs for one in read_workspaces(listed, state_dir=tmp_path, since_secs=0)] == [0, 0]


async def test_token_file_is_read_without_an_inbox(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("# made in the canvas\nt-123456\n")
    file.chmod(0o600)
    settings = WorkspaceSettings(workspace_id="ws-1", api_url="http://127.0.0.1:9", token_file=file)
    async with Outbox.opened([settings]) as outbox:
        client = outbox.client("ws-1")
        assert client.credentials.current() == "t-123456"
        file.write_text("t-rotated\n")
        assert client.credentials.after_refusal("t-123456") == "t-rotated"
