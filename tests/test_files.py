"""Nothing of ours lies where another user put it, and nothing is written through a link."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from molecule_connect import files
from molecule_connect.config.state_dir import preview_state_dir, resolve_state_dir, state_dir_problems
from molecule_connect.errors import ConfigError, JournalError
from molecule_connect.files import pending_id, pending_uri, safe_name, type_by_name
from molecule_connect.journal.journal import FILE_NAME
from molecule_connect.journal.schema import open_file
from molecule_connect.process.orphans import RunMarks
from molecule_connect.worker.file_folder import FileFolder
from molecule_connect.worker.lease import lease
from molecule_connect.worker.status_file import SavedStatus, read_status, status_path, write_status

OTHER = 54321
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture(params=[0o000, 0o022, 0o277])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_created_folders_are_private(tmp_path: Path) -> None:
    folder = resolve_state_dir(tmp_path / "a" / "b" / "state", {}, home=tmp_path)
    with FileFolder(folder / "ws-1" / "files").new("x") as (_, file):
        file.write(b"x")
    marks = RunMarks(folder)
    marks.new()
    with lease(folder, "ws-1"):
        made = [path for path in (tmp_path / "a").rglob("*") if path.is_dir()]
        assert {mode(path) for path in (tmp_path / "a", *made)} == {0o700}
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert len(files) == 3
        assert all(mode(path) & 0o177 == 0 for path in files)
    marks.close()


@needs_root
@pytest.mark.parametrize("prove", [resolve_state_dir, preview_state_dir])
def test_a_folder_of_another_user_is_refused(tmp_path: Path, prove: object) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    os.chown(folder, OTHER, OTHER)
    for named, home in ((folder, tmp_path), (None, tmp_path / "home")):
        if named is None:
            (home / ".config" / "molecule").mkdir(parents=True)
            folder = folder.rename(home / ".config" / "molecule" / "state")
        with pytest.raises(ConfigError, match=f"it belongs to user {OTHER}") as caught:
            prove(named, {}, home=home, configs=tmp_path / "none")  # type: ignore[operator]
        assert str(folder) in str(caught.value)
        assert f"chown -R root {folder}" in caught.value.hint


@needs_root
def test_rejects_link_of_another_user(tmp_path: Path) -> None:
    (tmp_path / "real" / "state").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    assert resolve_state_dir(tmp_path / "link" / "state", {}, home=tmp_path) == tmp_path / "link" / "state"
    os.chown(tmp_path / "link", OTHER, OTHER, follow_symlinks=False)
    with pytest.raises(ConfigError, match=f"link is a link of user {OTHER}"):
        resolve_state_dir(tmp_path / "link" / "state", {}, home=tmp_path)


def test_write_access_of_others_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / "of-another-program").touch()
    folder.chmod(0o777)
    resolve_state_dir(folder, {}, home=tmp_path)
    assert mode(folder) == 0o755
    (folder / "journal.sqlite3").touch()
    resolve_state_dir(folder, {}, home=tmp_path)
    assert mode(folder) == 0o700


def test_parent_writable_by_others_is_reported(tmp_path: Path) -> None:
    folder = tmp_path / "open" / "mine" / "state"
    resolve_state_dir(folder, {}, home=tmp_path)
    assert list(state_dir_problems(folder)) == []
    (tmp_path / "open").chmod(0o777)
    ((text, hint),) = state_dir_problems(folder)
    assert f"others can write to {tmp_path / 'open'} (mode 0777)" in text
    assert f"chmod go-w {tmp_path / 'open'}" in hint
    (tmp_path / "open").chmod(0o1777)
    assert list(state_dir_problems(folder)) == []


@needs_root
def test_owner_and_group_of_parent_count(tmp_path: Path) -> None:
    folder = tmp_path / "open" / "state"
    resolve_state_dir(folder, {}, home=tmp_path)
    (tmp_path / "open").chmod(0o770)
    assert list(state_dir_problems(folder)) == [], "the group of root is root's own"
    os.chown(tmp_path / "open", 0, OTHER)
    assert len(list(state_dir_problems(folder))) == 1
    (tmp_path / "open").chmod(0o700)
    os.chown(tmp_path / "open", OTHER, OTHER)
    ((text, _),) = state_dir_problems(folder)
    assert f"belongs to user {OTHER}" in text


AS_OTHER = """
import os, stat, sys
from pathlib import Path
from molecule_connect.worker.lease import lease
from molecule_connect.config.state_dir import resolve_state_dir, state_dir_problems

volume, other = Path(sys.argv[1]), int(sys.argv[2])
for place in volume.parents:
    if not place.stat().st_mode & 0o001:
        place.chmod(stat.S_IMODE(place.stat().st_mode) | 0o011)
os.setgroups([other])
os.setgid(other)
os.setuid(other)
used = resolve_state_dir(volume, {}, home=volume)
below = resolve_state_dir(volume / "molecule", {}, home=volume)
with lease(used, "ws-1"), lease(below, "ws-1"):
    print(oct(below.stat().st_mode & 0o777), len(list(state_dir_problems(below))))
"""


@needs_root
def test_a_volume_of_kubernetes_is_used(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    os.chown(volume, 0, OTHER)
    volume.chmod(0o2775)
    words = [sys.executable, "-c", AS_OTHER, str(volume), str(OTHER)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout == "0o700 1\n", done.stderr


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("untouched")
    return path


def test_rejects_link_as_lock_file(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "ws-1.lock").symlink_to(victim)
    with pytest.raises(ConfigError, match="link") as caught, lease(tmp_path, "ws-1"):
        pass
    assert caught.value.hint
    assert victim.read_text() == "untouched"


@pytest.mark.parametrize("name", ["ws-1.status", ".ws-1.status.new"])
def test_link_as_status_file_is_replaced(tmp_path: Path, victim: Path, name: str) -> None:
    (tmp_path / name).symlink_to(victim)
    write_status(tmp_path, SavedStatus(workspace_id="ws-1"))
    assert read_status(tmp_path, "ws-1") is not None
    assert not status_path(tmp_path, "ws-1").is_symlink()
    assert victim.read_text() == "untouched"


def test_status_is_not_written_through_link(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "ws-1.status").symlink_to(victim)
    (tmp_path / ".ws-1.status.new").mkdir()
    write_status(tmp_path, SavedStatus(workspace_id="ws-1"))
    assert victim.read_text() == "untouched"


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
def test_a_journal_behind_a_link_is_refused(tmp_path: Path, victim: Path, suffix: str) -> None:
    (tmp_path / f"{FILE_NAME}{suffix}").symlink_to(victim)
    with pytest.raises(JournalError, match="not a plain file") as caught:
        open_file(tmp_path / FILE_NAME)
    assert f"{FILE_NAME}{suffix}" in str(caught.value)
    assert caught.value.hint
    assert victim.read_text() == "untouched"


@needs_root
@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
def test_a_journal_of_another_user_is_refused(tmp_path: Path, suffix: str) -> None:
    planted = tmp_path / f"{FILE_NAME}{suffix}"
    planted.touch()
    os.chown(planted, OTHER, OTHER)
    with pytest.raises(JournalError, match=f"belongs to user {OTHER}"):
        open_file(tmp_path / FILE_NAME)


@needs_root
@pytest.mark.parametrize("name", ["runs", "ws-1/files"])
def test_rejects_subfolder_of_another_user(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir(parents=True)
    os.chown(tmp_path / name, OTHER, OTHER)
    with pytest.raises(files.ForeignError):
        RunMarks(tmp_path).new() if name == "runs" else FileFolder(tmp_path / name).new("x").__enter__()


def test_pipe_as_file_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ws-1.lock")
    os.mkfifo(tmp_path / "ws-1.status")
    with pytest.raises(ConfigError), lease(tmp_path, "ws-1"):
        pass
    assert read_status(tmp_path, "ws-1") is None


@pytest.mark.parametrize(
    ("given", "safe"),
    [
        ("alpha.txt", "alpha.txt"),
        ("../../etc/passwd", "passwd"),
        ("/", "file"),
        ("", "file"),
        (".", "file"),
        ("..", "file"),
        ("...", "..."),
        ("my file.txt", "my_file.txt"),
        ("a\0b", "a_b"),
        ('x"\r\ny: z', "x___y__z"),
        ("größe.png", "gr__e.png"),
        ("a\\b.txt", "a_b.txt"),
        ("x" * 300, "x" * 100),
        ("x" * 300 + ".jpeg", "x" * 95 + ".jpeg"),
        ("x" * 300 + "." + "y" * 15, "x" * 84 + "." + "y" * 15),
        ("x" * 90 + "." + "y" * 16, "x" * 90 + "." + "y" * 9),
        (".bashrc", ".bashrc"),
        ("." + "x" * 200, "." + "x" * 99),
    ],
)
def test_safe_name_follows_the_platform(given: str, safe: str) -> None:
    assert safe_name(given) == safe


@pytest.mark.parametrize(
    ("uri", "file_id"),
    [
        ("platform-pending:ws-1/F1", "F1"),
        ("platform-pending:ws-1/8f14e45f-ceea-467f-a1d0-6f6f6f6f6f6f", "8f14e45f-ceea-467f-a1d0-6f6f6f6f6f6f"),
        ("platform-pending:ws-1/..", None),
        ("platform-pending:ws-1/a/b", None),
        ("platform-pending:ws-1/a?b", None),
        ("platform-pending:ws-1/", None),
        ("platform-pending:F1", None),
        ("https://host/platform-pending:ws-1/F1", None),
        ("", None),
    ],
)
def test_pending_id_of_upload_addresses_only(uri: str, file_id: str | None) -> None:
    assert pending_id(uri) == file_id


def test_pending_uri_and_id_match() -> None:
    assert pending_id(pending_uri("ws-1", "F1")) == "F1"


@pytest.mark.parametrize("name", ["//[draft] plan.pdf", "http://[x.pdf", "data:text/html,x.pdf", "a\0b/\ud800.pdf"])
def test_type_of_a_name_like_url(name: str) -> None:
    assert type_by_name(name) == "application/pdf"


def test_unknown_extension_has_no_type() -> None:
    assert type_by_name("plan.unknown") == type_by_name("") == ""
