"""Writing profiles: what the files contain, and that a killed or failed write leaves no mixture of two profiles."""

import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from molecule_connect.config.load import parse_file
from molecule_connect.config.saved import SavedToken, find_saved, profile_folder
from molecule_connect.config.saving import check_state_dir, format_settings, write_profile
from molecule_connect.config.settings import SCHEMA, PeerBudget, WorkspaceSettings
from molecule_connect.config.single import read_single
from molecule_connect.errors import ConfigError

TOKEN = "tok-of-the-saved-one"
URL = "https://platform.example"
# A value other than the default for each setting that is saved.
EXAMPLES: dict[str, Any] = {
    "workspace_id": "ws_1",
    "api_url": "https://platform.example/api",
    "org_id": 'an "org"',
    "backend": "exec",
    "options": {
        "cmd": "printf '%s\\n' \"$1\"\n# \x1b[31m \U0001f469\u200d\U0001f4bb \x7f",
        "env": ["A", "B"],
        "a.b": "",
    },
    "middleware": ("redact", "log"),
    "middleware_options": {"redact.pattern": "tok_.*"},
    "poll_interval": 0.25,
    "since_secs": 3600.0,
    "concurrency": 3,
    "grace": 1.5,
    "peer_budget": PeerBudget(per_minute=0, per_hour=0),
    "max_cost_per_day": 0.1,
    "journal_quota": 1 << 21,
    "agent_name": "Zoë",
    "agent_description": "two\nlines",
    "agent_skills": ("sums", "more sums"),
    "ca_file": Path("/a $HOME folder/ca.pem"),
    "client_cert": Path("/c.pem"),
    "client_key": Path("/k.pem"),
    "strict": True,
    "insecure": True,
    "labels": {"team": "blue"},
    "standby": True,
}


def settings(**values: Any) -> WorkspaceSettings:
    return WorkspaceSettings(**{"workspace_id": "ws_1", "api_url": URL, "token": TOKEN, "backend": "mock", **values})


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"MOLECULE_STATE_DIR": str(tmp_path / "home")}


def read_back(environ: dict[str, str]) -> WorkspaceSettings:
    return read_single({}, environ, None, find_saved(None, environ))


def without_token(one: WorkspaceSettings) -> dict[str, Any]:
    return {name: getattr(one, name) for name in SCHEMA if name not in ("token", "token_file")}


def test_examples_cover_every_setting_that_is_saved() -> None:
    keyed = {name for name, setting in SCHEMA.items() if setting.key}

    assert set(EXAMPLES) == keyed - {"token", "token_file", "create", "unpause", "enabled"}


def test_every_setting_is_read_back(environ: dict[str, str], tmp_path: Path) -> None:
    original = settings(**EXAMPLES)
    folder = profile_folder("", environ)

    path = write_profile(folder, format_settings(original, state_dir=tmp_path / "$HOME"), TOKEN)

    assert without_token(read_back(environ)) == without_token(original)
    saved = find_saved(None, environ)
    assert saved is not None
    assert saved.state_dir == tmp_path / "$HOME"
    (block,) = parse_file(path, environ).blocks()
    listed = block.settings
    assert block.faults == ()
    assert listed is not None
    assert without_token(listed) == without_token(original), "as with --config"
    assert listed.token_file == folder / "token"
    assert parse_file(path, environ).own_state_dir == tmp_path / "$HOME"


@given(st.dictionaries(st.text(), st.text(alphabet=st.characters(exclude_categories=["Cs"])), max_size=3))
def test_any_text_survives_as_toml(options: dict[str, str]) -> None:
    try:
        text = format_settings(settings(options=options))
    except ConfigError:
        assert any("\ud800" <= char <= "\udfff" for key in options for char in key)
        return
    (entry,) = tomllib.loads(text)["workspace"]
    assert entry.get("options", {}) == options


def test_bytes_that_are_not_text_are_refused() -> None:
    with pytest.raises(ConfigError, match="can't be saved"):
        format_settings(settings(options={"cmd": "a\udcffb"}))


def test_token_and_one_time_flags_stay_out_of_toml() -> None:
    text = format_settings(settings(create=True, unpause=True, once=True))

    assert TOKEN not in text
    assert tomllib.loads(text) == {
        "workspace": [{"id": "ws_1", "api_url": URL, "backend": "mock", "token_file": "token"}]
    }


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_files_are_private_under_any_umask(environ: dict[str, str], umask: int) -> None:
    before = os.umask(umask)
    try:
        path = write_profile(profile_folder("work", environ), format_settings(settings()), TOKEN)
    finally:
        os.umask(before)

    modes = {each.name: each.stat().st_mode & 0o777 for each in (path, path.parent / "token", path.parent)}
    assert modes == {"config.toml": 0o600, "token": 0o600, "work": 0o700}
    assert (path.parent / "token").read_text() == f"{TOKEN}\n"
    assert sorted(each.name for each in path.parent.iterdir()) == ["config.toml", "token"]


@pytest.mark.parametrize("name", ["token", "config.toml", ".token.new", ".config.toml.new"])
def test_links_are_replaced_and_not_followed(environ: dict[str, str], tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = profile_folder("", environ)
    folder.mkdir()
    (folder / name).symlink_to(victim)

    write_profile(folder, format_settings(settings()), TOKEN)

    assert victim.read_text() == "precious"
    assert read_back(environ).workspace_id == "ws_1"
    assert not (folder / "token").is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_folder_of_another_user_is_refused(environ: dict[str, str]) -> None:
    folder = profile_folder("", environ)
    folder.mkdir()
    os.chown(folder, 12345, -1)

    with pytest.raises(ConfigError, match=r"can't be saved .*user 12345"):
        write_profile(folder, format_settings(settings()), TOKEN)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["token", "config.toml"])
def test_failed_write_keeps_earlier_files(environ: dict[str, str], name: str) -> None:
    folder = profile_folder("", environ)
    folder.mkdir()
    (folder / name).mkdir()

    with pytest.raises(ConfigError, match="can't be saved"):
        write_profile(folder, format_settings(settings()), TOKEN)
    assert [each.name for each in folder.iterdir()] == [name]


def test_killed_write_never_mixes_two_profiles(environ: dict[str, str]) -> None:
    """At every system call that changes a file, a reader gets both of one profile, or none."""
    folder = profile_folder("", environ)
    old, new = settings(), settings(workspace_id="ws_2", api_url="https://other.example")
    write_profile(folder, format_settings(old), TOKEN)
    seen: set[tuple[str | None, str]] = set()

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("os.remove", "os.rename", "open") and looking and str(folder) in str(arguments[0]):
            looking.clear()
            saved = find_saved(None, environ)
            token = (folder / "token").read_text().strip()
            seen.add((saved.workspace_id if saved else None, token))
            looking.append(True)

    looking = [True]
    sys.addaudithook(look)
    try:
        write_profile(folder, format_settings(new), "tok-of-the-new-one")
    finally:
        looking.clear()

    assert seen <= {("ws_1", TOKEN), (None, TOKEN), (None, "tok-of-the-new-one"), ("ws_2", "tok-of-the-new-one")}
    assert (None, "tok-of-the-new-one") in seen, "the settings come last"


def test_running_connector_gets_no_token_of_a_replacement(environ: dict[str, str]) -> None:
    folder = profile_folder("", environ)
    path = write_profile(folder, format_settings(settings()), TOKEN)
    token = SavedToken(folder / "token", path, "ws_1", URL)

    write_profile(folder, format_settings(settings()), "tok-that-is-newer")
    assert token.read() == "tok-that-is-newer"
    write_profile(folder, format_settings(settings(api_url="https://other.example")), "tok-of-another")
    with pytest.raises(ConfigError, match="no longer those of workspace ws_1"):
        token.read()


def test_state_dir_that_a_variable_overrides_is_refused(tmp_path: Path) -> None:
    named = str(tmp_path / "state")

    assert check_state_dir(None, {"CONFIGS_DIR": "/a"}) is None
    assert check_state_dir(named, {}) == Path(named)
    assert check_state_dir(named, {"CONFIGS_DIR": named}) == Path(named)
    with pytest.raises(ConfigError, match="CONFIGS_DIR is set to /a"):
        check_state_dir(named, {"CONFIGS_DIR": "/a"})
