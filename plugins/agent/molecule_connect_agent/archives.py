"""Unpacks a plugin next to its target, and then replaces the target as a whole.

The archive isn't trusted. The filters of ``tarfile`` keep its entries inside the folder.
"""

import contextlib
import errno
import fcntl
import gzip
import io
import logging
import os
import re
import stat
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from molecule_connect import ArchiveError, files

# The platform serves no larger tree (contract, section (e)). Bytes are counted after decompression.
TREE_CAP = 100 << 20
# Empty files have no bytes, but each uses the disk.
ENTRIES_CAP = 50_000
# Python creates and removes folders by recursion, whose depth is limited.
DEPTH_CAP = 64
# No install takes this long, so an older scratch folder belongs to none that is running.
LEFTOVER_SECONDS = 3600.0
_SCRATCH = re.compile(r"\.[a-z0-9_]{8}")
_PIECE = 1 << 20
# Malformed headers raise more than the errors of tarfile.
_BROKEN = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, ArithmeticError, LookupError)
TOO_MUCH = "ask its publisher for a smaller plugin"
_log = logging.getLogger(__name__)


def install(archive: IO[bytes], folder: Path, *, name: str) -> Path:
    """Unpack *archive*, a gzip tar, to ``folder/name``, which is replaced as a whole.

    Raises:
        ArchiveError: The archive is broken or hostile. The text names the entry.
        OSError: The folder can't be written.
    """
    target = folder / name
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}.", ignore_cleanup_errors=True) as scratch:
        staging = Path(scratch) / "new"
        staging.mkdir(mode=0o700)
        unpack(archive, staging)
        with _only_one(folder / f".{name}.lock"):
            _swap(staging, target, old=folder / f".{name}.old")
    return target


def remove_leftovers(folder: Path, *, name: str) -> None:
    """Remove the scratch folders of killed installs of the plugin."""
    left = [path for path in folder.glob(f".{name}.*") if _is_leftover(path, name)]
    if left:
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}.", ignore_cleanup_errors=True) as scratch:
            for path in left:
                # Another install may remove it too.
                with contextlib.suppress(OSError):
                    _discard(path, Path(scratch) / path.name)


def _is_leftover(path: Path, name: str) -> bool:
    if not _SCRATCH.fullmatch(path.name.removeprefix(f".{name}")):
        return False
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_mtime < time.time() - LEFTOVER_SECONDS


def unpack(archive: IO[bytes], folder: Path, *, cap: int = TREE_CAP, entries: int = ENTRIES_CAP) -> None:
    """Unpack *archive* into an empty *folder*. Links are skipped, with a warning.

    Raises:
        ArchiveError: An entry would leave the folder, is a device, or conflicts with another; or the archive is too
            large or has no file.
    """
    counted = _Counted(archive, cap)
    count, made, has_file = 0, set[PurePosixPath](), False
    try:
        with tarfile.open(fileobj=counted, mode="r|", errorlevel=1) as tar:
            for member in tar:
                if member.name.count("/") > DEPTH_CAP:
                    raise _refused(member, f"lies deeper than {DEPTH_CAP} folders")
                # An entry may imply the folders above it.
                place = PurePosixPath(member.name)
                made |= {place, *place.parents}
                count += 1
                if max(count, len(made)) > entries:
                    raise ArchiveError(
                        f"the archive holds more than {entries} entries; nothing was installed", hint=TOO_MUCH
                    )
                if member.issym() or member.islnk():
                    _log.warning("skipped the link %r to %r", member.name, member.linkname)
                    continue
                _extract(tar, member, folder, counted)
                has_file |= member.isreg()
        # The checksum follows the end of the tar, where tarfile stops reading.
        while counted.read(_PIECE):
            pass
        if not has_file:
            holds = "holds no file, only links or folders" if count else "is empty"
            raise ArchiveError(
                f"the archive {holds}; nothing was installed",
                hint="ask its publisher for an archive with the files themselves",
            )
    except ArchiveError:
        raise
    except _BROKEN as exc:
        raise ArchiveError(
            f"the archive is no whole gzip tar ({_words(exc)}); nothing was installed",
            hint="download it again; if that doesn't help, ask its publisher for a new archive",
        ) from exc


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, counted: "_Counted") -> None:
    if member.name.startswith(("/", "\\")):
        raise _refused(member, "has an absolute path")
    if member.size < 0:
        raise _refused(member, "has a size below 0")
    # A sparse file is larger than its bytes in the archive.
    counted.expect(member.size, member.name)
    try:
        tar.extract(member, folder, set_attrs=True, filter="data")
    except tarfile.FilterError as exc:
        reason = "leaves the folder" if isinstance(exc, tarfile.OutsideDestinationError) else _words(exc)
        raise _refused(member, "is a device" if isinstance(exc, tarfile.SpecialFileError) else reason) from exc
    except (FileExistsError, NotADirectoryError, IsADirectoryError, ValueError) as exc:
        raise _refused(member, "conflicts with an earlier entry") from exc
    except OSError as exc:
        if exc.errno != errno.ENAMETOOLONG:
            raise
        raise _refused(member, "has a name that is too long") from exc


def _refused(member: tarfile.TarInfo, reason: str) -> ArchiveError:
    return ArchiveError(
        f"the archive's entry {member.name[:200]!r} {reason}; nothing was installed",
        hint="don't use this plugin until its publisher has explained that",
    )


class _Counted(io.BufferedIOBase):
    """The decompressed gzip stream, up to a limit."""

    def __init__(self, archive: IO[bytes], cap: int) -> None:
        self._stream = gzip.GzipFile(fileobj=archive, mode="rb")
        self._read, self._expected, self._cap = 0, 0, cap

    def read(self, size: int | None = -1, /) -> bytes:
        piece = self._stream.read(size)
        self._read += len(piece)
        if self._read > self._cap:
            raise self._bomb("the archive")
        return piece

    def expect(self, size: int, name: str) -> None:
        """Count an entry of *size* bytes."""
        self._expected += size
        if self._expected > self._cap:
            raise self._bomb(f"the archive, with its entry {name[:200]!r},")

    def _bomb(self, what: str) -> ArchiveError:
        return ArchiveError(f"{what} unpacks to more than {self._cap >> 20} MiB; nothing was installed", hint=TOO_MUCH)


def _swap(staging: Path, target: Path, *, old: Path) -> None:
    if old.exists():
        # Another install was killed between its two renames, or before it had removed the old copy.
        if target.exists():
            _discard(old, staging.with_name("stale"))
        else:
            old.rename(target)
    if target.is_symlink() or target.is_file():
        target.unlink()
    if not target.exists():
        staging.rename(target)
        return
    target.rename(old)
    try:
        staging.rename(target)
    except BaseException:
        # A Ctrl-C can arrive after the rename.
        if not target.exists():
            old.rename(target)
        raise
    with contextlib.suppress(OSError):
        _discard(old, staging.with_name("old"))


def _discard(copy: Path, place: Path) -> None:
    # A setup.sh can create read-only folders, such as module caches. A temporary folder removes them too.
    copy.chmod(0o700)
    copy.rename(place)


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[None]:
    descriptor = files.open_file(path, os.O_WRONLY | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _words(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:120] or type(exc).__name__
