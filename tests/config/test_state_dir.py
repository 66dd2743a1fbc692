"""Which folder is the state folder, and errors of one that cannot be used."""

import errno
import os
import stat
import tempfile
from pathlib import Path

import pytest

from molecule_connect.config.state_dir import existing_state_dir, preview_state_dir, resolve_state_dir
from molecule_connect.errors import ConfigError


def mode(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode)


def test_the_flag_wins_over_both_variables(tmp_path: Path) -> None:
    environ = {"MOLECULE_STATE_DIR": str(tmp_path / "b"), "CONFIGS_DIR": str(tmp_path / "c")}

    assert resolve_state_dir(str(tmp_path / "a"), environ, home=tmp_path) == tmp_path / "a"


def test_own_variable_wins_over_shared_one(tmp_path: Path) -> None:
    environ = {"MOLECULE_STATE_DIR": str(tmp_path / "b"), "CONFIGS_DIR": str(tmp_path / "c")}

    assert resolve_state_dir(None, environ, home=tmp_path) == tmp_path / "b"


def test_shared_variable_is_used_alone(tmp_path: Path) -> None:
    assert resolve_state_dir(None, {"CONFIGS_DIR": str(tmp_path / "c")}, home=tmp_path) == tmp_path / "c"


def test_an_empty_variable_counts_as_unset(tmp_path: Path) -> None:
    folder = resolve_state_dir(None, {"MOLECULE_STATE_DIR": ""}, home=tmp_path, configs=tmp_path / "none")

    assert folder == tmp_path / ".config" / "molecule" / "state"


def test_existing_configs_folder_precedes_home(tmp_path: Path) -> None:
    configs = tmp_path / "configs"
    configs.mkdir()

    assert resolve_state_dir(None, {}, home=tmp_path, configs=configs) == configs


def test_a_configs_folder_is_never_made(tmp_path: Path) -> None:
    resolve_state_dir(None, {}, home=tmp_path, configs=tmp_path / "configs")

    assert not (tmp_path / "configs").exists()


def test_falls_back_to_second_home_folder(tmp_path: Path) -> None:
    (tmp_path / ".config").write_text("a file")

    assert resolve_state_dir(None, {}, home=tmp_path, configs=tmp_path / "none") == tmp_path / ".molecule-workspace"


def test_new_folder_is_private_and_empty(tmp_path: Path) -> None:
    folder = resolve_state_dir(tmp_path / "a" / "b", {}, home=tmp_path)

    assert mode(folder) == 0o700
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("content", [[], ["journal.sqlite3", "ws_1.json"]])
def test_own_folder_is_made_private(tmp_path: Path, content: list[str]) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o755)
    for name in content:
        (folder / name).touch()

    resolve_state_dir(folder, {}, home=tmp_path)

    assert mode(folder) == 0o700


def test_shared_folder_keeps_its_mode(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o755)
    (folder / "somebody.conf").touch()

    resolve_state_dir(folder, {}, home=tmp_path)

    assert mode(folder) == 0o755


def test_a_sticky_folder_keeps_its_mode(tmp_path: Path) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)

    resolve_state_dir(folder, {}, home=tmp_path)

    assert mode(folder) == 0o1777


@pytest.mark.parametrize(
    ("named", "environ", "source"),
    [
        ("file/below", {}, "--state-dir"),
        ("file", {}, "--state-dir"),
        (None, {"MOLECULE_STATE_DIR": "file/below"}, "MOLECULE_STATE_DIR"),
        (None, {"CONFIGS_DIR": "file"}, "CONFIGS_DIR"),
    ],
)
def test_refuses_an_unusable_named_folder(
    tmp_path: Path, named: str | None, environ: dict[str, str], source: str
) -> None:
    (tmp_path / "file").write_text("not a folder")
    named = named and str(tmp_path / named)
    environ = {name: str(tmp_path / value) for name, value in environ.items()}

    with pytest.raises(ConfigError, match=source) as caught:
        resolve_state_dir(named, environ, home=tmp_path)

    assert str(tmp_path / "file") in str(caught.value)
    assert source in caught.value.hint
    with pytest.raises(ConfigError, match=source):
        preview_state_dir(named, environ, home=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing else was tried"


def test_full_disk_is_not_a_permission_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "TemporaryFile", no_room)
    with pytest.raises(ConfigError, match="No space left") as caught:
        resolve_state_dir(str(tmp_path), {}, home=tmp_path)
    assert caught.value.hint.startswith("free disk space")


def test_names_all_folders_that_were_tried(tmp_path: Path) -> None:
    (tmp_path / ".config").write_text("a file")
    (tmp_path / ".molecule-workspace").write_text("a file")

    with pytest.raises(ConfigError) as caught:
        resolve_state_dir(None, {}, home=tmp_path, configs=tmp_path / "none")

    assert str(tmp_path / ".config" / "molecule" / "state") in str(caught.value)
    assert str(tmp_path / ".molecule-workspace") in str(caught.value)
    assert "--state-dir" in caught.value.hint


def test_an_empty_flag_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="empty"):
        resolve_state_dir(" ", {}, home=tmp_path)


def test_a_preview_touches_nothing(tmp_path: Path) -> None:
    folder = preview_state_dir(None, {}, home=tmp_path, configs=tmp_path / "none")

    assert folder == tmp_path / ".config" / "molecule" / "state"
    assert list(tmp_path.iterdir()) == []


def test_relative_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert resolve_state_dir("state", {}, home=tmp_path) == tmp_path / "state"


def test_reads_the_folder_with_a_journal(tmp_path: Path) -> None:
    first, second = tmp_path / ".config" / "molecule" / "state", tmp_path / ".molecule-workspace"
    assert existing_state_dir(None, {}, home=tmp_path, configs=tmp_path / "none") == first
    second.mkdir()
    (second / "journal.sqlite3").touch()
    assert existing_state_dir(None, {}, home=tmp_path, configs=tmp_path / "none") == second
    assert existing_state_dir(None, {"MOLECULE_STATE_DIR": str(tmp_path / "x")}, home=tmp_path) == tmp_path / "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".molecule-workspace"]


def test_preview_tests_by_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def read_only(**given: Path) -> None:
        tried.append(given["dir"])
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    with pytest.raises(ConfigError, match="Read-only file system"):
        preview_state_dir(tmp_path / "a" / "b", {}, home=tmp_path)
    with pytest.raises(ConfigError, match="no state folder can be written"):
        preview_state_dir(None, {}, home=tmp_path, configs=tmp_path / "none")
    assert tried == [tmp_path] * 3


def test_preview_matches_a_start(tmp_path: Path) -> None:
    (tmp_path / ".config").touch()

    assert preview_state_dir(None, {}, home=tmp_path, configs=tmp_path / "none") == tmp_path / ".molecule-workspace"
