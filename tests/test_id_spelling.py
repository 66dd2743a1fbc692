"""A UUID in capitals, or with white space around it, is the id of the same workspace wherever it is given."""

import json
from pathlib import Path

import pytest

from molecule_connect import WorkspaceSettings, open_inbox
from molecule_connect.app import load_list, load_workspaces
from molecule_connect.config.load import parse_file
from molecule_connect.config.workspaces import WorkspacesError
from molecule_connect.errors import ArgumentError, ConfigError
from molecule_connect_agent import RemoteAgentClient

ID = "dc98486f-8e1e-44fc-94c0-ba89c005241b"
GIVEN = f" {ID.upper()}\n"
TOKEN = "t0k3n-of-nobody"


@pytest.mark.parametrize("given", [GIVEN, ID, ID.upper()])
def test_variables_name_it(given: str) -> None:
    (one,) = load_workspaces({"WORKSPACE_ID": given, "MOLECULE_WORKSPACE_TOKEN": TOKEN})
    assert one.workspace_id == ID


def test_id_listed_in_two_spellings_appears_twice() -> None:
    entries = json.dumps([{"id": ID, "token": TOKEN}, {"id": GIVEN, "token": TOKEN}])
    with pytest.raises(WorkspacesError, match="the same id as workspace 1"):
        load_workspaces({"MOLECULE_WORKSPACES": entries})


def test_a_config_file_names_it(tmp_path: Path) -> None:
    config = tmp_path / "list.toml"
    config.write_text(f'[[workspace]]\nid = "{ID.upper()} "\ntoken = "{TOKEN}"\n')
    config.chmod(0o600)
    (one,) = load_list(parse_file(config, {})).whole()
    assert one.workspace_id == ID


async def test_an_inbox_refuses_both_spellings_together(tmp_path: Path) -> None:
    both = [WorkspaceSettings(workspace_id=one, token=TOKEN) for one in (ID, GIVEN)]
    with pytest.raises(ConfigError, match="given twice"):
        async with open_inbox(both, state_dir=tmp_path):
            pass


def test_an_agent_takes_it(tmp_path: Path) -> None:
    agent = RemoteAgentClient(GIVEN, "https://platform.example", token_dir=tmp_path)
    assert agent.workspace_id == ID
    with pytest.raises(ArgumentError, match="itself"):
        agent.call_peer(GIVEN, "hello")
    agent.close()


def test_agent_keeps_a_token_folder_in_capitals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".molecule" / ID.upper()
    folder.mkdir(parents=True, mode=0o700)
    (folder / ".auth_token").write_text(TOKEN)
    (folder / ".auth_token").chmod(0o600)
    for given in (ID, GIVEN):
        agent = RemoteAgentClient(given, "https://platform.example")
        assert agent.load_token() == TOKEN
        agent.close()
