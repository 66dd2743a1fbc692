"""Saved settings: which profile is read, who may have written it, and where its token may go."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from molecule_connect.config.saved import (
    SavedToken,
    check_profile,
    chosen_profile,
    config_home,
    find_saved,
    is_same_address,
    profiles,
    read_saved,
)
from molecule_connect.config.single import read_single
from molecule_connect.errors import ConfigError

TOKEN = "tok-of-the-saved-one"
URL = "https://platform.example"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment whose config home is ``tmp_path / "home"``."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    return {"MOLECULE_STATE_DIR": str(home)}


def save(environ: Mapping[str, str], *lines: str, profile: str = "", workspace: str = "ws_1", top: str = "") -> Path:
    """Write a profile by hand, with these further lines of its workspace."""
    folder = config_home(environ) / "profiles" / profile if profile else config_home(environ)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.toml"
    head = [top, "[[workspace]]", f'id = "{workspace}"', f'api_url = "{URL}"', 'token_file = "token"']
    for file, text in ((path, "\n".join([*head, *lines]) + "\n"), (folder / "token", f"{TOKEN}\n")):
        file.write_text(text)
        file.chmod(0o600)
    return path


def test_config_home_follows_state_folder(tmp_path: Path) -> None:
    home, configs = tmp_path / "home", tmp_path / "configs"

    def find(**environ: str) -> Path:
        return config_home(environ, home=home, configs=configs)

    assert find() == home / ".config" / "molecule"
    assert find(MOLECULE_STATE_DIR="/a", CONFIGS_DIR="/b") == Path("/a")
    assert find(MOLECULE_STATE_DIR="", CONFIGS_DIR="/b") == Path("/b")
    configs.mkdir()
    assert find() == configs


@pytest.mark.parametrize("variable", ["MOLECULE_STATE_DIR", "CONFIGS_DIR"])
def test_project_folder_brings_no_settings(tmp_path: Path, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    for folder in (tmp_path, tmp_path / "state"):
        save({"MOLECULE_STATE_DIR": str(folder)})

    for value in (".", "state", "./state"):
        assert read_saved(None, {variable: value}) is None
    assert read_saved(None, {}) is None


@pytest.mark.parametrize("name", ["../x", "", ".", "a/b", "A", "-a", "_a", "a b", "a\n", "ä", "a" * 65, "\x1b[31m"])
def test_rejects_unsafe_profile_names(name: str) -> None:
    with pytest.raises(ConfigError, match="can't be the name of a profile") as error:
        check_profile(name)
    assert "\x1b" not in str(error.value)


def test_profile_comes_from_flag_then_variable(environ: dict[str, str]) -> None:
    assert chosen_profile(None, {}) == ""
    assert chosen_profile(None, {"MOLECULE_PROFILE": ""}) == ""
    assert chosen_profile(None, {"MOLECULE_PROFILE": "b"}) == "b"
    assert chosen_profile("a", {"MOLECULE_PROFILE": "b"}) == "a"
    assert chosen_profile("default", {"MOLECULE_PROFILE": "b"}) == ""
    with pytest.raises(ConfigError, match="MOLECULE_PROFILE"):
        chosen_profile(None, {"MOLECULE_PROFILE": "../b"})


def test_reads_each_profile(environ: dict[str, str]) -> None:
    save(environ)
    save(environ, profile="work", workspace="ws_2")

    default, work = read_saved(None, environ), read_saved("work", environ)

    assert default is not None
    assert work is not None
    assert (default.workspace_id, work.workspace_id) == ("ws_1", "ws_2")
    assert profiles(environ) == ["work"]
    with pytest.raises(ConfigError, match=r"no profile 'play' .*saved: work") as error:
        read_saved("play", environ)
    assert "molecule init --profile play" in error.value.hint


def test_flags_and_variables_win_over_saved_settings(environ: dict[str, str], tmp_path: Path) -> None:
    path = save(environ, 'backend = "exec"', "concurrency = 3", "grace = 7", "[workspace.options]", 'cmd = "cat"')
    saved = find_saved(None, environ)
    environ["MOLECULE_AGENT_NAME"] = "of the variable"

    settings = read_single({"grace": 9.0, "options": {"timeout": "5"}}, environ, tmp_path, saved)

    assert (settings.workspace_id, settings.api_url, settings.backend) == ("ws_1", URL, "exec")
    assert (settings.concurrency, settings.grace, settings.agent_name) == (3, 9.0, "of the variable")
    assert settings.options == {"cmd": "cat", "timeout": "5"}
    assert settings.token_file == path.parent / "token"
    assert settings.settings_file == path
    other = read_single({"backend": "mock"}, environ, tmp_path, saved)
    assert other.options == {}, "the options belong to the saved backend"


@pytest.mark.parametrize("given", ["flag", "file flag", "variable", "file variable"])
def test_token_of_flag_or_variable_wins(environ: dict[str, str], tmp_path: Path, given: str) -> None:
    save(environ)
    file = tmp_path / "other"
    file.write_text("another-token-1\n")
    file.chmod(0o600)
    by_flag: dict[str, dict[str, object]] = {
        "flag": {"token": "another-token-1"},
        "file flag": {"token_file": file},
    }
    environ |= {
        "variable": {"MOLECULE_WORKSPACE_TOKEN": "another-token-1"},
        "file variable": {"MOLECULE_WORKSPACE_TOKEN_FILE": str(file)},
    }.get(given, {})

    settings = read_single(by_flag.get(given, {}), environ, tmp_path, find_saved(None, environ))

    assert "another-token-1" in (settings.token, settings.token_file and settings.token_file.read_text().strip())


def test_other_workspace_ignores_saved_settings(environ: dict[str, str]) -> None:
    save(environ)

    assert find_saved(None, environ, workspace_id="ws_1") is not None
    assert find_saved(None, {**environ, "WORKSPACE_ID": "ws_1"}) is not None
    assert find_saved(None, {**environ, "WORKSPACE_ID": ""}) is not None
    assert find_saved(None, environ, workspace_id="ws_2") is None
    assert find_saved(None, environ, workspace_id="") is None
    assert find_saved(None, {**environ, "WORKSPACE_ID": "ws_2"}) is None
    assert find_saved(None, {**environ, "MOLECULE_WORKSPACES": "[]"}) is None


def test_named_profile_of_other_workspace_is_an_error(environ: dict[str, str]) -> None:
    save(environ, profile="work")

    for given in ({"workspace_id": "ws_2"}, {"environ": {**environ, "WORKSPACE_ID": "ws_2"}}):
        with pytest.raises(ConfigError, match="profile work is for workspace ws_1, not ws_2"):
            find_saved("work", **{"environ": environ, **given})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="MOLECULE_WORKSPACES"):
        find_saved("work", {**environ, "MOLECULE_WORKSPACES": "[]"})
    assert find_saved(None, {**environ, "MOLECULE_PROFILE": "work"}, workspace_id="ws_2") is None


@pytest.mark.parametrize("by", ["flag", "variable"])
def test_saved_token_stays_with_its_platform(environ: dict[str, str], tmp_path: Path, by: str) -> None:
    save(environ, "insecure = true", 'org_id = "org"', "grace = 7")
    saved = find_saved(None, environ)
    flags = {"api_url": "http://other.example"} if by == "flag" else {}
    if by == "variable":
        environ["PLATFORM_URL"] = "http://other.example"

    with pytest.raises(ConfigError, match=r"saved token is for https://platform.example, .*http://other.example"):
        read_single(flags, environ, tmp_path, saved)

    settings = read_single({**flags, "token": "its-own-token-1"}, environ, tmp_path, saved)
    assert (settings.api_url, settings.grace) == ("http://other.example", 7)
    assert (settings.insecure, settings.org_id) == (False, None), "they are for the saved platform"


@pytest.mark.parametrize(
    ("address", "is_same"),
    [
        (URL, True),
        (f"{URL}/", True),
        (f" {URL.upper().replace('HTTPS', 'https')}:443/ ", True),
        (f"{URL}:8443", False),
        (f"{URL}/api", False),
        ("http://platform.example", False),
        ("https://platform.example.evil.example", False),
        ("https://platform.example@evil.example", False),
        ("https://evil.example#platform.example", False),
        ("https://[", False),
        ("", False),
    ],
)
def test_compares_addresses_strictly(address: str, is_same: bool) -> None:
    assert is_same_address(URL, address) is is_same
    assert is_same_address(address, URL) is is_same


@pytest.mark.parametrize("mode", [0o644, 0o666, 0o660, 0o602])
def test_refuses_settings_open_to_others(environ: dict[str, str], mode: int) -> None:
    path = save(environ)
    path.chmod(mode)

    with pytest.raises(ConfigError, match="open to others") as error:
        read_saved(None, environ)
    assert error.value.hint == f"run: chmod 600 {path}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("what", ["file", "link", "folder", "token"])
def test_refuses_files_of_other_users(environ: dict[str, str], tmp_path: Path, what: str) -> None:
    path = save(environ)
    if what == "link":
        real = path.rename(tmp_path / "real.toml")
        path.symlink_to(real)
    place = {"file": path, "link": path, "folder": path.parent, "token": path.parent / "token"}[what]
    os.chown(place, 12345, -1, follow_symlinks=False)

    with pytest.raises(ConfigError, match="user 12345"):
        read_single({}, environ, tmp_path, find_saved(None, environ))


def test_follows_links_of_this_user(environ: dict[str, str], tmp_path: Path) -> None:
    path = save(environ)
    path.symlink_to(path.rename(tmp_path / "real.toml"))

    found = read_saved(None, environ)

    assert found is not None
    assert found.token_file == path.parent / "token"


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_refuses_what_is_not_a_file(environ: dict[str, str], kind: str) -> None:
    path = config_home(environ) / "config.toml"
    os.mkfifo(path, 0o600) if kind == "pipe" else path.mkdir()

    with pytest.raises(ConfigError, match="can't be read"):
        read_saved(None, environ)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "exactly one [[workspace]]"),
        ("[[workspace]]\nid = 'a'\n[[workspace]]\nid = 'b'\n", "exactly one [[workspace]]"),
        ("workspace = 1\n", "exactly one [[workspace]]"),
        ("[[workspace]]\n", "it has no id"),
        ("[[workspace]]\nid = 'a/b'\n", "id: "),
        ("[[workspace]]\nid = 'a'\ntoken = 'tok-of-the-saved-one'\n", "write that to a file"),
        ("[[workspace]]\nid = 'a'\nbakend = 'mock'\n", "did you mean 'backend'"),
        ("[[workspace]]\nid = 'a'\ntoken_file = '$NO_SUCH_VARIABLE'\n", "token_file contains a variable"),
        ("state_dir = 1\n[[workspace]]\nid = 'a'\n", "state_dir must be text"),
        ("[defaults]\n[[workspace]]\nid = 'a'\n", "unknown key 'defaults'"),
        ("[[workspace]\n", "not TOML"),
        ("\x00", "not TOML"),
    ],
)
def test_errors_of_a_file_are_named(environ: dict[str, str], content: str, words: str) -> None:
    path = save(environ)
    path.write_text(content)

    with pytest.raises(ConfigError) as error:
        read_saved(None, environ)
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert TOKEN not in str(error.value) + error.value.hint
    assert "molecule init" in error.value.hint


def test_unreadable_token_is_an_error(environ: dict[str, str], tmp_path: Path) -> None:
    token = save(environ).parent / "token"
    token.chmod(0o644)
    with pytest.raises(ConfigError, match="open to others"):
        read_single({}, environ, tmp_path, find_saved(None, environ))
    token.unlink()
    with pytest.raises(ConfigError, match="does not exist"):
        read_single({}, environ, tmp_path, find_saved(None, environ))


@pytest.mark.parametrize("change", ["workspace", "address", "removed"])
def test_token_of_a_replaced_profile_is_not_used(environ: dict[str, str], change: str) -> None:
    path = save(environ)
    token = SavedToken(path.parent / "token", path, "ws_1", URL)
    assert token.read() == TOKEN

    if change == "removed":
        path.unlink()
    else:
        before, after = {"workspace": ("ws_1", "ws_2"), "address": (URL, "https://other.example")}[change]
        path.write_text(path.read_text().replace(before, after))
    with pytest.raises(ConfigError, match="no longer those of workspace ws_1"):
        token.read()


def test_repr_shows_no_option_values(environ: dict[str, str]) -> None:
    save(environ, "[workspace.options]", 'api_key = "s3cret"')

    assert "s3cret" not in repr(read_saved(None, environ))
