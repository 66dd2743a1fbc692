"""Where tokens are read from."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from molecule_connect import events
from molecule_connect.app import load_workspaces, serve
from molecule_connect.config.tokens import find_legacy_file, find_token
from molecule_connect.errors import ConfigError, MoleculeError


def test_token_sources_have_an_order(tmp_path: Path) -> None:
    for name in ("flag", "variable"):
        (tmp_path / name).write_text("t0k3n\n")
        (tmp_path / name).chmod(0o600)
    environ = {"MOLECULE_WORKSPACE_TOKEN": "direct", "MOLECULE_WORKSPACE_TOKEN_FILE": str(tmp_path / "variable")}

    def found(flags: dict[str, Any], environ: dict[str, str]) -> tuple[Any, ...]:
        token = find_token(flags, environ, workspace_id="ws_1", state_dir=tmp_path)
        return token["token_source"], token.get("token"), token.get("token_file")

    file = tmp_path / "flag"
    assert found({"token": "given", "token_file": file}, environ) == ("--token", "given", None)
    assert found({"token_file": file}, environ) == ("--token-file", None, file)
    assert found({}, environ) == ("MOLECULE_WORKSPACE_TOKEN", "direct", None)
    assert found({}, {**environ, "MOLECULE_WORKSPACE_TOKEN": ""}) == (
        "MOLECULE_WORKSPACE_TOKEN_FILE",
        None,
        tmp_path / "variable",
    )


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """The folder of another client, which keeps a token there."""
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / ".auth_token").write_text("older-token")
    (folder / ".auth_token").chmod(0o600)
    return folder


def test_token_of_other_client_comes_last(tmp_path: Path, configs: Path) -> None:
    environ = {"CONFIGS_DIR": str(configs)}
    (tmp_path / "ws_1.token").write_text("kept")

    def found(environ: dict[str, str], workspace_id: str) -> object:
        return find_token({}, environ, workspace_id=workspace_id, state_dir=tmp_path)["token_source"]

    assert found({**environ, "MOLECULE_WORKSPACE_TOKEN": "direct"}, "ws_1") == "MOLECULE_WORKSPACE_TOKEN"
    assert found(environ, "ws_1") == "the state folder"
    assert found(environ, "ws_2") == str(configs / ".auth_token")
    with pytest.raises(ConfigError, match="no workspace token"):
        found({"CONFIGS_DIR": str(tmp_path)}, "ws_2")


def test_finds_files_of_other_clients(tmp_path: Path, configs: Path) -> None:
    file, home = configs / ".auth_token", tmp_path / "home"
    (home / ".molecule-workspace").mkdir(parents=True)
    at_home = home / ".molecule-workspace" / ".auth_token"
    at_home.touch()

    assert find_legacy_file({"CONFIGS_DIR": str(configs)}, home=home, configs=tmp_path / "none") == file
    assert find_legacy_file({"CONFIGS_DIR": str(tmp_path)}, home=home, configs=configs) is None
    assert find_legacy_file({}, home=home, configs=configs) == file
    assert find_legacy_file({}, home=home, configs=tmp_path / "none") == at_home


def test_refuses_an_exposed_token_file(configs: Path) -> None:
    (configs / ".auth_token").chmod(0o644)
    with pytest.raises(ConfigError, match=r"\.auth_token is open to others"):
        find_token({}, {"CONFIGS_DIR": str(configs)}, workspace_id="ws_1", state_dir=configs)


def test_adopts_token_of_other_client_once(tmp_path: Path, configs: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    environ = {
        "CONFIGS_DIR": str(configs),
        "WORKSPACE_ID": "ws_1",
        "MOLECULE_API_URL": "http://127.0.0.1:1",
    }

    def start() -> None:
        settings = load_workspaces(environ, state_dir=state)
        stopped = asyncio.Event()
        stopped.set()
        with contextlib.suppress(MoleculeError):
            asyncio.run(serve(settings, state_dir=state, listener=events.ignore, stop=stopped))

    load_workspaces(environ, state_dir=state)
    assert not list(state.iterdir()), "to look at it keeps nothing"
    start()
    kept = state / "ws_1.token"
    assert kept.read_text() == "# http://127.0.0.1:1\nolder-token\n"
    assert kept.stat().st_mode & 0o777 == 0o600
    (configs / ".auth_token").write_text("changed-since")
    start()
    assert "older-token" in kept.read_text()
    (one,) = load_workspaces(environ, state_dir=state)
    assert (one.token, one.token_source) == (None, "the state folder")
