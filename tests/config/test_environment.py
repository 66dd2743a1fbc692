"""Flags before the environment, and an empty variable is none."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from molecule_connect import events
from molecule_connect.app import serve
from molecule_connect.config.environment import api_url, find_token, older_token_file, token_source, workspace_id
from molecule_connect.config.load import load_workspaces
from molecule_connect.errors import ConfigError, MoleculeError


@pytest.mark.parametrize(
    ("flag", "group", "environ", "found"),
    [
        ("f", "g", {"MOLECULE_API_URL": "m"}, "f"),
        (None, "g", {"MOLECULE_API_URL": "m"}, "g"),
        (None, None, {"MOLECULE_API_URL": "m", "PLATFORM_URL": "p"}, "m"),
        (None, None, {"MOLECULE_API_URL": "", "MOLECULE_PLATFORM_URL": "mp", "PLATFORM_URL": "p"}, "mp"),
        (None, None, {"PLATFORM_URL": "p"}, "p"),
        (None, None, {}, "http://localhost:8080"),
    ],
)
def test_where_the_platform_is(flag: str | None, group: str | None, environ: dict[str, str], found: str) -> None:
    assert api_url(flag, group, environ) == found


def test_the_argument_names_the_workspace_before_the_variable() -> None:
    assert workspace_id("a", {"WORKSPACE_ID": "b"}) == "a"
    assert workspace_id(None, {"WORKSPACE_ID": "b"}) == "b"


def test_an_empty_argument_is_not_replaced_by_the_variable() -> None:
    with pytest.raises(ConfigError, match="no workspace id"):
        workspace_id("", {"WORKSPACE_ID": "b"})


def test_token_sources_come_in_their_order(tmp_path: Path) -> None:
    for name in ("flag", "variable"):
        (tmp_path / name).write_text("t0k3n\n")
        (tmp_path / name).chmod(0o600)
    environ = {"MOLECULE_WORKSPACE_TOKEN": "direct", "MOLECULE_WORKSPACE_TOKEN_FILE": str(tmp_path / "variable")}

    first = token_source("given", tmp_path / "flag", environ)
    second = token_source(None, tmp_path / "flag", environ)
    third = token_source(None, None, environ)
    fourth = token_source(None, None, {**environ, "MOLECULE_WORKSPACE_TOKEN": ""})

    found = [source and (source.name, source.token, source.file) for source in (first, second, third, fourth)]
    assert found == [
        ("--token", "given", None),
        ("--token-file", None, tmp_path / "flag"),
        ("MOLECULE_WORKSPACE_TOKEN", "direct", None),
        ("MOLECULE_WORKSPACE_TOKEN_FILE", None, tmp_path / "variable"),
    ]
    assert token_source(None, None, {}) is None


def test_no_repr_of_a_source_holds_the_token() -> None:
    assert "t0k3n" not in repr(token_source("t0k3n", None, {}))


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """The folder of another client, which keeps a token there."""
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / ".auth_token").write_text("older-token")
    (folder / ".auth_token").chmod(0o600)
    return folder


def test_the_token_of_another_client_comes_last(tmp_path: Path, configs: Path) -> None:
    environ = {"CONFIGS_DIR": str(configs)}
    (tmp_path / "ws_1.token").write_text("kept")

    def found(environ: dict[str, str], workspace_id: str) -> object:
        return find_token(None, None, environ, workspace_id=workspace_id, state_dir=tmp_path)["token_source"]

    assert found({**environ, "MOLECULE_WORKSPACE_TOKEN": "direct"}, "ws_1") == "MOLECULE_WORKSPACE_TOKEN"
    assert found(environ, "ws_1") == "the state folder"
    assert found(environ, "ws_2") == str(configs / ".auth_token")
    with pytest.raises(ConfigError, match="no workspace token"):
        found({"CONFIGS_DIR": str(tmp_path)}, "ws_2")


def test_the_token_of_another_client_is_looked_for_where_that_keeps_it(tmp_path: Path, configs: Path) -> None:
    file, home = configs / ".auth_token", tmp_path / "home"
    (home / ".molecule-workspace").mkdir(parents=True)
    at_home = home / ".molecule-workspace" / ".auth_token"
    at_home.touch()

    assert older_token_file({"CONFIGS_DIR": str(configs)}, home=home, configs=tmp_path / "none") == file
    assert older_token_file({"CONFIGS_DIR": str(tmp_path)}, home=home, configs=configs) is None
    assert older_token_file({}, home=home, configs=configs) == file
    assert older_token_file({}, home=home, configs=tmp_path / "none") == at_home


def test_a_token_of_another_client_that_is_open_to_others_is_refused(configs: Path) -> None:
    (configs / ".auth_token").chmod(0o644)
    with pytest.raises(ConfigError, match=r"\.auth_token is open to others"):
        find_token(None, None, {"CONFIGS_DIR": str(configs)}, workspace_id="ws_1", state_dir=configs)


def test_the_token_of_another_client_is_taken_over_once(tmp_path: Path, configs: Path) -> None:
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
