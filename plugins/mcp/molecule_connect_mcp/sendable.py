"""Restricts the files that a model may send to the allowed folders, and copies each file before it is sent."""

# A path may lead anywhere through symbolic links, and elsewhere a moment later. So a file is opened first, and then the
# path of the open file is checked and its content copied. A hard link in an allowed folder to a file outside can't be
# detected.

import contextlib
import os
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import attrs

from molecule_connect import ArgumentError, WorkspaceSettings, state_folders
from molecule_connect_mcp import sanitize

FLAG = "--files-root"
# No known platform accepts larger files, and copies must not fill the disk.
MAX_BYTES = 256 << 20
# Received files are kept as long. A reply that can't be sent becomes a dead letter after a day.
COPY_MAX_AGE = 7 * 24 * 3600.0
# Only files up to this size are searched for tokens: configuration files are small.
MAX_SEARCHED_BYTES = 1 << 20
MAX_SHOWN_LENGTH = 300


@attrs.frozen
class Copies:
    """Copies of files to send, in their own folder."""

    folder: Path | None = None
    files: tuple[Path, ...] = ()

    def discard(self) -> None:
        """Remove the copies."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


@attrs.frozen(kw_only=True)
class SendableFiles:
    """The rules of a session for sending files.

    Attributes:
        named: Folders that the operator allowed with ``--files-root`` or its variable.
        received: Folders of received files. They are allowed although they are in a state folder.
        working: The working directory, or None if it isn't allowed; see ``working_root``.
        private: State folders. No other file in them is sent, even if a root contains them.
        token_files: Files that contain a token.
        tokens: The other tokens. A file that contains one isn't sent.
        outgoing: The folder of the copies.
    """

    outgoing: Path
    named: tuple[Path, ...] = ()
    received: tuple[Path, ...] = ()
    working: Path | None = None
    private: tuple[Path, ...] = ()
    token_files: tuple[Path, ...] = ()
    tokens: tuple[bytes, ...] = attrs.field(default=(), repr=False)

    @classmethod
    def of(
        cls,
        workspaces: Sequence[WorkspaceSettings],
        *,
        named: Sequence[Path] = (),
        state_dir: Path | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> "SendableFiles":
        """Create the rules for a server of *workspaces* in this process.

        Raises:
            ConfigError: The state folder can't be used.
        """
        folders = state_folders(environ, state_dir=state_dir)
        ids = [one.workspace_id for one in workspaces]
        return cls(
            named=tuple(named),
            received=tuple(folders[0] / one / "files" for one in ids),
            working=working_root(),
            private=tuple(folders),
            token_files=tuple(one.token_file for one in workspaces if one.token_file is not None),
            tokens=tuple(one.token.encode() for one in workspaces if one.token),
            outgoing=folders[0] / ids[0] / "outgoing",
        )

    def copy(self, paths: Sequence[str], host_roots: Sequence[Path] = ()) -> "Copies":
        """Copy the files at *paths*, each under its own name. Blocks while it reads and writes the files.

        Args:
            host_roots: The roots that the host offers.

        Raises:
            ArgumentError: A file is missing, can't be copied, or may not be sent. No copy is left.
        """
        if not paths:
            return Copies()
        _remove_old_copies(self.outgoing, before=time.time() - COPY_MAX_AGE)
        folder = self.outgoing / uuid.uuid4().hex
        try:
            files = [self._copy(path, folder / str(number), host_roots) for number, path in enumerate(paths)]
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return Copies(folder, tuple(files))

    def roots(self, host_roots: Sequence[Path] = ()) -> tuple[Path, ...]:
        """All folders that files may be sent from, without duplicates."""
        working = () if self.working is None else (self.working,)
        return tuple(dict.fromkeys(_resolved(root) for root in (*host_roots, *working, *self.named, *self.received)))

    def _copy(self, given: str, folder: Path, host_roots: Sequence[Path]) -> Path:
        with _opened(given) as (source, real):
            self._check_allowed(given, source, real, host_roots)
            if (size := os.fstat(source.fileno()).st_size) > MAX_BYTES:
                raise ArgumentError(
                    f"the file {_shown(given)} has {size >> 20} MiB; at most {MAX_BYTES >> 20} MiB can be sent",
                    hint="send a smaller file, or a link to it",
                )
            if size <= MAX_SEARCHED_BYTES:
                content = source.read(size)
                source.seek(0)
                if any(token in content for token in self.tokens):
                    raise self._refusal(given, "contains the token of a workspace and is never sent", host_roots)
            copy = folder / real.name
            try:
                # With parents=True, mkdir would ignore the mode for the parents.
                for parent in (self.outgoing.parent, self.outgoing, folder.parent, folder):
                    parent.mkdir(mode=0o700, exist_ok=True)
                descriptor = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                with os.fdopen(descriptor, "wb") as target:
                    _copy_bytes(source, target, size)
            except OSError as exc:
                raise ArgumentError(
                    f"the file {_shown(given)} could not be copied for sending: {exc.strerror or exc}",
                    hint=f"check the folder {self.outgoing} and its disk",
                ) from exc
        return copy

    def _check_allowed(self, given: str, source: IO[bytes], real: Path, host_roots: Sequence[Path]) -> None:
        parents = [found for parent in real.parents if (found := _status(parent)) is not None]

        def lies_in(folders: Sequence[Path]) -> bool:
            # Compare by identity: a folder can have several spellings and mount points.
            known = [found for folder in folders if (found := _status(folder)) is not None]
            return any(os.path.samestat(one, other) for one in parents for other in known)

        if lies_in(self.received):
            return
        opened = os.fstat(source.fileno())
        if any(os.path.samestat(opened, found) for one in self.token_files if (found := _status(one)) is not None):
            raise self._refusal(given, "contains the token of a workspace and is never sent", host_roots)
        if lies_in(self.private):
            raise self._refusal(given, "is in a state folder of molecule-connect and is never sent", host_roots)
        if not any(real.is_relative_to(root) for root in self.roots(host_roots)):
            target = f" (it leads to {_shown(str(real))})" if real != Path(given).expanduser().absolute() else ""
            raise self._refusal(given, f"is outside of the folders that files may be sent from{target}", host_roots)

    def _refusal(self, given: str, reason: str, host_roots: Sequence[Path]) -> ArgumentError:
        roots = ", ".join(_shown(str(root)) for root in self.roots(host_roots))
        return ArgumentError(
            f"the file {_shown(given)} {reason}",
            hint=f"send a file from one of these folders: {roots}; "
            f"your operator can add a folder by starting this server with {FLAG} DIR",
        )


def working_root(working: Path | None = None, homes: Sequence[Path] | None = None) -> Path | None:
    """The working directory, or None if it is ``/``, a home directory or a folder that contains one.

    Hosts without a project start their servers in these, which doesn't mean that all files there may be sent.
    """
    try:
        folder = _resolved(Path.cwd() if working is None else working)
    except OSError:  # the directory was removed
        return None
    resolved = [_resolved(home) for home in (_homes() if homes is None else homes)]
    return None if folder == Path("/") or any(home.is_relative_to(folder) for home in resolved) else folder


@contextlib.contextmanager
def _opened(given: str) -> Iterator[tuple[IO[bytes], Path]]:
    """Open the file at *given*, and yield it with its real path.

    Raises:
        ArgumentError: There is no such file, or it can't be read.
    """
    try:
        path = Path(given).expanduser().absolute()
        if not path.is_file():
            raise FileNotFoundError
        # Don't block if something else, such as a FIFO, has replaced the file meanwhile.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, RuntimeError, ValueError):  # no permission, a name that is too long, an unknown user's home
        raise _missing(given) from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        real = _path_of(descriptor, path)
        if not stat.S_ISREG(status.st_mode) or not status.st_nlink or real is None:
            raise _missing(given)
        yield file, real


def _path_of(descriptor: int, path: Path) -> Path | None:
    """The path of the open file without symbolic links, or None if it can't be determined."""
    with contextlib.suppress(OSError):
        if sys.platform == "darwin":
            import fcntl

            return Path(os.fsdecode(fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0")))
        return Path(f"/proc/self/fd/{descriptor}").readlink()
    real = _resolved(path)
    found = _status(real)
    return real if found is not None and os.path.samestat(found, os.fstat(descriptor)) else None


def _missing(given: str) -> ArgumentError:
    return ArgumentError(
        f"there is no file {_shown(given)} that can be read", hint="use the absolute path of a file on this machine"
    )


def _copy_bytes(source: IO[bytes], target: IO[bytes], size: int) -> None:
    """Copy at most *size* bytes: a log may grow meanwhile, and files in /proc have content although their size is 0."""
    while size and (chunk := source.read(min(size, 1 << 20))):
        target.write(chunk)
        size -= len(chunk)
    target.flush()
    os.fsync(target.fileno())


def _remove_old_copies(folder: Path, *, before: float) -> None:
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if entry.stat(follow_symlinks=False).st_mtime < before:
                shutil.rmtree(entry.path, ignore_errors=True)


def _homes() -> list[Path]:
    homes = []
    with contextlib.suppress(RuntimeError):
        homes.append(Path.home())
    with contextlib.suppress(ImportError, KeyError):
        import pwd

        # HOME and the account's home may differ; both are private.
        homes.append(Path(pwd.getpwuid(os.getuid()).pw_dir))
    return homes


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (OSError, ValueError):
        return None


def _shown(path: str) -> str:
    return sanitize.name(path, max_length=MAX_SHOWN_LENGTH)
