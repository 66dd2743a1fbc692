"""Installing plugins: good archives whole, hostile ones not at all, and the old copy until the new one is there."""

import contextlib
import gzip
import hashlib
import io
import os
import stat
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from molecule_connect import ArchiveError, ArgumentError, ConfigError, PermanentPlatformError, TransientPlatformError
from molecule_connect.testing import until_gone
from molecule_connect_agent import archives
from molecule_connect_agent.plugins import run_setup
from molecule_connect_sandbox.tarballs import TARBALLS

from .kit import ME, Make, Platform, Twin, said

REPORT = f"POST /workspaces/{ME}/plugins"


def download(name: str) -> str:
    return f"GET /workspaces/{ME}/plugins/{name}/download"


def archive(content: bytes) -> httpx.Response:
    return httpx.Response(200, content=content, headers={"Content-Type": "application/gzip"})


def packed(*entries: tarfile.TarInfo, **files: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for entry in entries:
            tar.addfile(entry, io.BytesIO(bytes(entry.size)))
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def tree(folder: Path) -> list[str]:
    """Everything below *folder*, but for the locks."""
    found = (path for path in folder.rglob("*") if not path.name.endswith(".lock"))
    return sorted(str(path.relative_to(folder)) for path in found)


@pytest.fixture
def hello(agent: Twin, platform: Platform) -> Twin:
    """A client, and a platform with a good plugin."""
    platform.on(download("hello"), archive(TARBALLS["hello"]()))
    return agent


def test_a_plugin_is_put_in_its_folder(hello: Twin, platform: Platform) -> None:
    place = hello.install_plugin("hello")

    assert place == hello.plugins_dir / "hello"
    assert tree(hello.plugins_dir) == [
        "hello",
        "hello/plugin.yaml",
        "hello/setup.sh",
        "hello/skills",
        "hello/skills/hello.md",
    ]
    assert stat.S_IMODE((place / "setup.sh").stat().st_mode) == 0o755
    assert stat.S_IMODE(hello.plugins_dir.stat().st_mode) == 0o700
    assert platform.asked(download("hello"))[0].url.query == b""


def test_source_is_requested_and_reported(hello: Twin, platform: Platform) -> None:
    digest = hashlib.sha256(TARBALLS["hello"]()).hexdigest()
    platform.on(REPORT, said(422, "not for external runtimes"))
    hello.install_plugin("hello", source="github://acme/hello#v1", sha256=f"SHA256:{digest}".lower())

    assert platform.asked(download("hello"))[0].url.params["source"] == "github://acme/hello#v1"
    assert platform.body(REPORT) == {"source": "github://acme/hello#v1", "sha256": digest}


@pytest.mark.parametrize("answer", [httpx.Response(503), httpx.ConnectError("refused"), httpx.Response(200)])
def test_a_report_that_fails_fails_nothing(hello: Twin, platform: Platform, answer: Any) -> None:
    platform.on(REPORT, answer)

    assert hello.install_plugin("hello").is_dir()
    assert platform.body(REPORT) == {"source": "local://hello"}
    assert hello.waits == []


def test_a_report_can_be_left_out(hello: Twin, platform: Platform) -> None:
    hello.install_plugin("hello", report_to_platform=False)

    assert platform.asked(REPORT) == []


def test_new_copy_replaces_the_old(hello: Twin) -> None:
    place = hello.install_plugin("hello")
    (place / "stale.txt").write_text("from before")
    hello.install_plugin("hello")

    assert "hello/stale.txt" not in tree(hello.plugins_dir)
    assert "hello/plugin.yaml" in tree(hello.plugins_dir)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hostile-escape", r"'skills/../../escaped.txt' leaves the folder"),
        ("hostile-absolute", r"'/escaped.txt' has an absolute path"),
        ("hostile-device", r"'null' is a device"),
        ("hostile-through-link", None),
        ("hostile-bomb", r"'zeros.bin', unpacks to more than 100 MiB"),
        ("broken", "no whole gzip tar"),
        ("not-a-tarball", "no whole gzip tar"),
    ],
)
def test_a_hostile_archive_changes_nothing(
    hello: Twin, platform: Platform, tmp_path: Path, name: str, words: str | None
) -> None:
    place = hello.install_plugin("hello")
    before = tree(tmp_path)
    platform.on(download("hello"), archive(TARBALLS[name]()))
    if words is None:
        # The link is left out, so that what goes through it lands inside.
        hello.install_plugin("hello")
        assert (place / "door" / "escaped.txt").read_text() == "out\n"
        return
    with pytest.raises(ValueError, match=words) as caught:
        hello.install_plugin("hello")

    assert isinstance(caught.value, ArchiveError)
    assert caught.value.hint
    assert tree(tmp_path) == before
    assert len(platform.asked(REPORT)) == 1


def test_links_are_left_out_and_told(hello: Twin, platform: Platform, caplog: pytest.LogCaptureFixture) -> None:
    platform.on(download("links"), archive(TARBALLS["links"]()))
    place = hello.install_plugin("links")

    assert sorted(path.name for path in place.iterdir()) == ["plugin.yaml", "setup.sh", "skills"]
    assert all(f"'{name}'" in caplog.text for name in ("passwords", "above", "twin"))


@pytest.mark.parametrize(
    "content",
    [
        packed(a=b"x", **{"a/b": b"y"}),
        packed(**{"a/b": b"y", "a": b"x"}),
        packed(**{"n" * 300: b"x"}),
        gzip.compress(b""),
        gzip.compress(b"no tar at all" * 100),
        b"",
        b"\x1f\x8b",
    ],
    ids=["file above", "file below", "long name", "empty", "no tar", "no bytes", "header only"],
)
def test_broken_archive_is_a_value_error(hello: Twin, platform: Platform, content: bytes) -> None:
    platform.on(download("odd"), archive(content))
    with pytest.raises(ArchiveError):
        hello.install_plugin("odd")

    assert tree(hello.plugins_dir) == []


def of_type(kind: bytes, name: str, target: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (packed(), "is empty"),
        (packed(of_type(tarfile.SYMTYPE, "a", "/etc/passwd"), of_type(tarfile.LNKTYPE, "b", "a")), "only links"),
        (packed(of_type(tarfile.DIRTYPE, "skills")), "holds no file, only links or folders"),
    ],
    ids=["empty", "links", "folder"],
)
def test_empty_archive_replaces_nothing(hello: Twin, platform: Platform, content: bytes, words: str) -> None:
    hello.install_plugin("hello")
    before = tree(hello.plugins_dir)
    platform.on(download("hello"), archive(content))
    with pytest.raises(ArchiveError, match=words) as caught:
        hello.install_plugin("hello")

    assert caught.value.hint
    assert tree(hello.plugins_dir) == before
    assert len(platform.asked(REPORT)) == 1


@pytest.mark.parametrize("end", [b"", b"\0" * 8])
def test_bad_gzip_checksum_changes_nothing(hello: Twin, platform: Platform, end: bytes) -> None:
    hello.install_plugin("hello")
    before = tree(hello.plugins_dir)
    platform.on(download("hello"), archive(packed(other=b"x")[:-8] + end))
    with pytest.raises(ArchiveError, match="no whole gzip tar"):
        hello.install_plugin("hello")

    assert tree(hello.plugins_dir) == before


def test_old_tarfile_names_required_python(hello: Twin, platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(ConfigError) as caught:
        hello.install_plugin("hello")

    assert "3.11.4" in caught.value.hint
    assert platform.requests == []


def test_too_many_entries_are_refused(tmp_path: Path) -> None:
    content = packed(*(tarfile.TarInfo(str(number)) for number in range(12)))
    with pytest.raises(ArchiveError, match="more than 10 entries"):
        archives.unpack(io.BytesIO(content), tmp_path, entries=10)


@pytest.mark.parametrize("sparse_map", [f"{1 << 40},0", "", "x", "-1,-1"])
def test_sparse_file_counts_its_unpacked_size(tmp_path: Path, sparse_map: str) -> None:
    entry = tarfile.TarInfo("sparse")
    entry.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.name": "sparse",
        "GNU.sparse.size": str(1 << 40),
        "GNU.sparse.numblocks": "0",
        "GNU.sparse.map": sparse_map,
    }
    with pytest.raises(ArchiveError):
        archives.unpack(io.BytesIO(packed(entry)), tmp_path)
    assert not any(path.stat().st_size for path in tmp_path.iterdir())


def test_negative_size_is_refused(tmp_path: Path) -> None:
    folder = tarfile.TarInfo("folder")
    folder.type, folder.pax_headers = tarfile.DIRTYPE, {"size": str(-(1 << 50))}
    sparse = tarfile.TarInfo("sparse")
    sparse.pax_headers = {"GNU.sparse.size": str(1 << 40), "GNU.sparse.map": "0,0", "GNU.sparse.name": "sparse"}
    with pytest.raises(ArchiveError, match="'folder' has a size below 0"):
        archives.unpack(io.BytesIO(packed(folder, sparse)), tmp_path)


@pytest.mark.parametrize("depth", [65, 1800])
def test_too_deep_tree_is_refused(hello: Twin, platform: Platform, depth: int) -> None:
    platform.on(download("deep"), archive(packed(**{"a/" * depth + "file": b"x"})))
    with pytest.raises(ArchiveError, match="deeper than 64 folders"):
        hello.install_plugin("deep")

    assert tree(hello.plugins_dir) == []


def test_folders_that_no_entry_names_count_too(tmp_path: Path) -> None:
    content = packed(**{f"{number}/b/c/file": b"x" for number in range(4)})
    with pytest.raises(ArchiveError, match="more than 10 entries"):
        archives.unpack(io.BytesIO(content), tmp_path, entries=10)


PLAIN = gzip.decompress(TARBALLS["links"]())


@given(st.lists(st.tuples(st.integers(0, len(PLAIN) - 1), st.integers(0, 255)), min_size=1, max_size=20))
@settings(max_examples=150)
def test_any_bad_archive_raises_archive_error(
    changes: list[tuple[int, int]],
) -> None:
    content = bytearray(PLAIN)
    for at, byte in changes:
        content[at] = byte
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "a" / "b"
        folder.mkdir(parents=True)
        with contextlib.suppress(ArchiveError):
            archives.unpack(io.BytesIO(gzip.compress(bytes(content), 1)), folder)
        assert [path.name for path in Path(scratch).iterdir()] == ["a"]
        assert [path.name for path in (Path(scratch) / "a").iterdir()] == ["b"]
        assert not [path for path in folder.rglob("*") if path.is_symlink()]


def test_modes_that_would_harm_are_taken_off(hello: Twin, platform: Platform) -> None:
    entry = tarfile.TarInfo("tool")
    entry.mode = 0o6777
    platform.on(download("modes"), archive(packed(entry)))

    assert stat.S_IMODE((hello.install_plugin("modes") / "tool").stat().st_mode) == 0o755


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "/a", ".hidden", "a..b", "a b", "a\0", "x" * 101, None])
def test_invalid_name_is_refused(agent: Twin, platform: Platform, name: Any) -> None:
    with pytest.raises(ArgumentError, match="plugin's name"):
        agent.install_plugin(name)

    assert platform.requests == []
    assert not agent.plugins_dir.exists()


@pytest.mark.parametrize("sha256", ["", "abc", "g" * 64, "md5:" + "0" * 64])
def test_a_digest_that_is_none_is_refused(agent: Twin, platform: Platform, sha256: str) -> None:
    with pytest.raises(ArgumentError, match="SHA-256"):
        agent.install_plugin("hello", sha256=sha256)

    assert platform.requests == []


def test_an_archive_with_another_digest_changes_nothing(hello: Twin) -> None:
    place = hello.install_plugin("hello")
    (place / "mine.txt").write_text("mine")
    with pytest.raises(ArchiveError, match=hashlib.sha256(TARBALLS["hello"]()).hexdigest()):
        hello.install_plugin("hello", sha256="0" * 64)

    assert (place / "mine.txt").exists()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (said(404, "plugin not found"), PermanentPlatformError),
        (said(422, "unpinned"), PermanentPlatformError),
        (said(502), TransientPlatformError),
        (httpx.ConnectError("refused"), TransientPlatformError),
    ],
)
def test_a_download_that_fails_leaves_nothing(
    agent: Twin, platform: Platform, answer: Any, error: type[Exception]
) -> None:
    platform.on(download("hello"), answer)
    with pytest.raises(error):
        agent.install_plugin("hello")

    assert tree(agent.plugins_dir) == []


@pytest.mark.parametrize(
    ("source", "own", "shown"),
    [
        (None, {}, "compare the name with the platform's plugins"),
        ("github://acme/hello#v1", {}, "compare name and source"),
        (None, {"hint": "it was renamed"}, "it was renamed"),
    ],
)
def test_unknown_plugin_has_a_hint(
    agent: Twin, platform: Platform, source: str | None, own: dict[str, Any], shown: str
) -> None:
    platform.on(download("hello"), said(404, "plugin not found", **own))
    with pytest.raises(PermanentPlatformError, match="plugin: 404 plugin not found") as caught:
        agent.install_plugin("hello", source)

    assert shown in caught.value.hint


def test_retried_download_starts_over(hello: Twin, platform: Platform) -> None:
    def cut(request: httpx.Request) -> httpx.Response:
        return httpx.Response(503, content=b"half an answer")

    platform.on(download("hello"), cut, archive(TARBALLS["hello"]()))

    assert (hello.install_plugin("hello") / "plugin.yaml").exists()


def test_uncreatable_folder_is_named(make: Make, platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="plugins folder"):
        make(platform, token_dir=tmp_path / "file").install_plugin("hello")


def test_full_disk_keeps_the_old_copy(hello: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    place = hello.install_plugin("hello")

    def full(**_: Any) -> Any:
        return Path("/dev/full").open("r+b", buffering=0)

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(ConfigError, match=str(hello.plugins_dir)) as caught:
        hello.install_plugin("hello")

    assert "disk" in caught.value.hint
    assert (place / "plugin.yaml").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failed_swap_restores_the_old_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    content = TARBALLS["hello"]()
    place = archives.install(io.BytesIO(content), tmp_path, name="hello")
    (place / "mine.txt").write_text("mine")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(type(error)):
        archives.install(io.BytesIO(content), tmp_path, name="hello")

    assert (place / "mine.txt").exists()


@pytest.mark.parametrize("target_is_there", [True, False])
def test_next_install_repairs_a_killed_one(tmp_path: Path, target_is_there: bool) -> None:
    old = tmp_path / ".hello.old"
    old.mkdir()
    (old / "mine.txt").write_text("mine")
    if target_is_there:
        (tmp_path / "hello").mkdir()
    archives.install(io.BytesIO(TARBALLS["hello"]()), tmp_path, name="hello")

    assert not old.exists()
    assert (tmp_path / "hello" / "plugin.yaml").exists()


def leftover(folder: Path, name: str, *, age: float) -> Path:
    """What an install leaves that is killed while it unpacks."""
    left = Path(tempfile.mkdtemp(dir=folder, prefix=f".{name}."))
    (left / "new").mkdir()
    (left / "new" / "half").touch()
    (left / "new").chmod(0o500)
    then = time.time() - age
    os.utime(left, (then, then))
    return left


def test_next_install_removes_leftovers(hello: Twin) -> None:
    hello.install_plugin("hello")
    leftover(hello.plugins_dir, "hello", age=3700)
    leftover(hello.plugins_dir, "hello", age=86400)
    hello.install_plugin("hello")

    assert sorted(path.name for path in hello.plugins_dir.iterdir()) == [".hello.lock", "hello"]


def test_failing_install_removes_leftovers(hello: Twin, platform: Platform) -> None:
    platform.on(download("hello"), said(404, "plugin not found"))
    hello.plugins_dir.mkdir(parents=True)
    left = leftover(hello.plugins_dir, "hello", age=3700)
    with pytest.raises(PermanentPlatformError):
        hello.install_plugin("hello")

    assert not left.exists()


def test_other_files_are_not_leftovers(hello: Twin, tmp_path: Path) -> None:
    folder = hello.plugins_dir
    folder.mkdir(parents=True)
    kept = [
        leftover(folder, "hello", age=3500),
        leftover(folder, "hello", age=-3700),
        leftover(folder, "hello.a", age=3700),
        leftover(folder, "hell", age=3700),
    ]
    (folder / "hello.abcdefgh").mkdir()
    (folder / ".hello.abcd-efgh").mkdir()
    (folder / ".hello.notafold").touch()
    (folder / ".hello.alinkaaa").symlink_to(leftover(tmp_path, "elsewhere", age=3700))
    for path in folder.iterdir():
        if path not in kept:
            os.utime(path, (0, 0), follow_symlinks=False)
    before = {path.name for path in folder.iterdir()}
    hello.install_plugin("hello")

    assert {path.name for path in folder.iterdir()} == before | {".hello.lock", "hello"}
    assert all((path / "new" / "half").exists() for path in [*kept, folder / ".hello.alinkaaa"])


def test_read_only_copy_is_replaced(tmp_path: Path) -> None:
    for _ in range(3):
        place = archives.install(io.BytesIO(TARBALLS["hello"]()), tmp_path, name="hello")
        cache = place / "go" / "mod"
        cache.mkdir(parents=True)
        (cache / "a.go").touch()
        for folder in (cache, place):
            folder.chmod(0o500)

    place.chmod(0o700)
    cache.chmod(0o700)
    assert [name for name in tree(tmp_path) if "/" not in name] == ["hello"]


def test_link_at_target_is_replaced(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "hello").symlink_to(elsewhere)
    archives.install(io.BytesIO(TARBALLS["hello"]()), folder, name="hello")

    assert not (folder / "hello").is_symlink()
    assert list(elsewhere.iterdir()) == []


def test_concurrent_installs_leave_a_whole_plugin(tmp_path: Path) -> None:
    content = TARBALLS["hello"]()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):
                archives.install(io.BytesIO(content), tmp_path, name="hello")
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert failures == []
    assert "hello/plugin.yaml" in tree(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name not in ("hello", ".hello.lock")]


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


class TestSetup:
    def test_setup_runs_only_on_request(self, hello: Twin) -> None:
        assert not (hello.install_plugin("hello") / "ready.txt").exists()
        assert (hello.install_plugin("hello", run_setup_sh=True) / "ready.txt").read_text() == "ready\n"

    def test_setup_failure_is_a_warning(
        self, agent: Twin, platform: Platform, caplog: pytest.LogCaptureFixture
    ) -> None:
        platform.on(download("failing-setup"), archive(TARBALLS["failing-setup"]()))

        assert agent.install_plugin("failing-setup", run_setup_sh=True).is_dir()
        assert "failed with code 3: no such tool" in caplog.text

    async def test_its_environment_is_bare(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MOLECULE_WORKSPACE_TOKEN", "a-secret")
        (tmp_path / "setup.sh").write_text("env > seen.txt\n")
        await run_setup(tmp_path)

        seen = {line.partition("=")[0] for line in (tmp_path / "seen.txt").read_text().splitlines()}
        assert seen <= {"PATH", "HOME", "LANG", "TMPDIR", "PWD", "SHLVL", "_", "OLDPWD"}

    async def test_only_the_first_words_are_shown(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "setup.sh").write_text("printf 'x%.0s' $(seq 5000) >&2; exit 1\n")
        await run_setup(tmp_path)

        assert "x" * 200 in caplog.text
        assert "x" * 201 not in caplog.text

    async def test_what_it_said_cannot_steer_a_terminal(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "setup.sh").write_text(r"printf '\033[31mred\007' >&2; exit 1")
        await run_setup(tmp_path)

        assert "red" in caplog.text
        assert caplog.records[0].getMessage().isprintable()

    async def test_hanging_setup_ends_with_its_children(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        told = tmp_path / "pid.txt"
        told.touch()
        (tmp_path / "setup.sh").write_text("sleep 60 & echo $! > pid.txt; wait\n")
        for seconds in (0.2, 2, 20):
            # A machine that is busy may need longer to come as far as that.
            if not told.read_text():
                await run_setup(tmp_path, seconds)

        assert "was ended after" in caplog.text
        await until_gone(int(told.read_text()))

    async def test_missing_script_or_bash_is_ignored(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        await run_setup(tmp_path)
        (tmp_path / "setup.sh").write_text("exit 0\n")
        await run_setup(tmp_path, bash="no-such-bash")

        assert "cannot be run" in caplog.text
        assert names(tmp_path) == ["setup.sh"]
