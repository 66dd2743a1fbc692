"""Settings of the server and its workspaces, from the environment."""

from pathlib import Path

import pytest

from molecule_connect import ConfigError, WorkspaceSettings
from molecule_connect_mcp.sender import DirectSender
from molecule_connect_mcp.settings import ServerSettings, read_settings, read_workspaces

COMPLETE = {"PLATFORM_URL": "http://127.0.0.1:9", "WORKSPACE_ID": "ws-1", "MOLECULE_WORKSPACE_TOKEN": "t-1"}


def test_defaults_enable_inbox_and_heartbeat() -> None:
    assert read_settings({}) == ServerSettings(heartbeat=True, inbox=True, claim_seconds=300.0)


def test_every_variable_is_read() -> None:
    environ = {
        "MOLECULE_MCP_DISABLE_HEARTBEAT": "1",
        "MOLECULE_MCP_DISABLE_INBOX": "True",
        "MOLECULE_INBOX_LEASE_SECS": "30",
    }
    assert read_settings(environ) == ServerSettings(heartbeat=False, inbox=False, claim_seconds=30.0)
    assert read_settings({"MOLECULE_MCP_DISABLE_INBOX": "0"}).inbox


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MOLECULE_MCP_DISABLE_INBOX", "maybe"),
        ("MOLECULE_INBOX_LEASE_SECS", "soon"),
        ("MOLECULE_INBOX_LEASE_SECS", "0"),
        ("MOLECULE_INBOX_LEASE_SECS", "nan"),
    ],
)
def test_invalid_values_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        read_settings({name: value})


@pytest.mark.parametrize("missing", COMPLETE)
def test_missing_settings_named_as_host_variables(tmp_path: Path, missing: str) -> None:
    environ = {name: value for name, value in COMPLETE.items() if name != missing}
    with pytest.raises(ConfigError) as caught:
        read_workspaces(environ, state_dir=tmp_path)
    assert missing in caught.value.hint
    assert "host's configuration" in caught.value.hint


def test_unreachable_platform_is_retried() -> None:
    (one,) = read_workspaces(COMPLETE, state_dir=None)
    assert (one.workspace_id, one.patient) == ("ws-1", True)


def test_since_secs_flag_applies_to_first_start(tmp_path: Path) -> None:
    (usual,) = read_workspaces(COMPLETE, state_dir=tmp_path)
    (one,) = read_workspaces(COMPLETE, state_dir=tmp_path, since_secs=3600)
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
    async with DirectSender.open([settings]) as sender:
        client = sender.client("ws-1")
        assert client.credentials.current() == "t-123456"
        file.write_text("t-rotated\n")
        assert client.credentials.after_refusal("t-123456") == "t-rotated"


def test_saved_settings_complete_the_environment(tmp_path: Path) -> None:
    for folder, name in ((tmp_path, "ws-1"), (tmp_path / "profiles" / "work", "ws-2")):
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "config.toml"
        config.write_text(f'[[workspace]]\nid = "{name}"\napi_url = "http://127.0.0.1:9"\ntoken_file = "token"\n')
        (folder / "token").write_text("t-123456\n")
        for file in (config, folder / "token"):
            file.chmod(0o600)
    environ = {"MOLECULE_STATE_DIR": str(tmp_path)}

    (default,) = read_workspaces(environ, state_dir=None)
    (work,) = read_workspaces(environ, state_dir=None, profile="work")
    (other,) = read_workspaces({**environ, **COMPLETE, "WORKSPACE_ID": "ws-3"}, state_dir=None)

    assert (default.workspace_id, default.api_url, default.patient) == ("ws-1", "http://127.0.0.1:9", True)
    assert default.token_file == tmp_path / "token"
    assert (work.workspace_id, other.workspace_id) == ("ws-2", "ws-3")
    with pytest.raises(ConfigError, match="saved token is for"):
        read_workspaces({**environ, "PLATFORM_URL": "http://127.0.0.1:10"}, state_dir=None)
