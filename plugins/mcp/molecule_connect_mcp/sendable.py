"""Which files a model may send: those under the allowed roots, opened once, checked, and copied before they are sent.

A path that a model names may lead anywhere through symbolic links, and may lead elsewhere a moment later. So a file is
opened first, the system says what was opened, and what was opened is what is copied and sent. A hard link in an allowed
folder to a file outside of it can't be detected.
"""

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
from molecule_connect_mcp import harmless

FLAG = "--files-root"
# No platform is known to take larger files; a copy must not fill the disk.
LARGEST = 256 << 20
# As long as received files are kept; an answer that can't be sent is given up after a day.
KEPT_SECONDS = 7 * 24 * 3600.0
# Files in which a token is looked for: configuration files are small.
MOST_SEARCHED = 1 << 20
LONGEST_SHOWN = 300


@attrs.frozen
class Copies:
    """Copies of files, in a folder of their own."""

    folder: Path | None = None
    files: tuple[Path, ...] = ()

    def discard(self) -> None:
        """Remove them: they were sent, or will not be."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


@attrs.frozen(kw_only=True)
class SendableFiles:
    """The files of one session that may be sent.

    Attributes:
        named: Allowed because the operator named them, with ``--files-root`` or its variable.
        received: Allowed because files of messages lie there, although they are in a state folder.
        working: The working directory; None where it doesn't count, see ``working_root``.
        private: Folders of which nothing else is sent, whatever the roots are.
        token_files: Files that hold a token.
        tokens: Tokens that came another way; a file that holds one is not sent.
        outgoing: Where copies are kept until they are sent.
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
        """What a server of *workspaces* in this process may send.

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
        """Copy the files at *paths*, each under its own name. Reads and writes the disk.

        Args:
            host_roots: What the host's ``roots/list`` says.

        Raises:
            ArgumentError: One of them is missing, can't be copied, or may not be sent; no copy is left.
        """
        if not paths:
            return Copies()
        _sweep(self.outgoing, before=time.time() - KEPT_SECONDS)
        folder = self.outgoing / uuid.uuid4().hex
        try:
            files = [self._copy(path, folder / str(number), host_roots) for number, path in enumerate(paths)]
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return Copies(folder, tuple(files))

    def roots(self, host_roots: Sequence[Path] = ()) -> tuple[Path, ...]:
        """Every folder that files may be sent from, each once."""
        working = () if self.working is None else (self.working,)
        return tuple(dict.fromkeys(_resolved(root) for root in (*host_roots, *working, *self.named, *self.received)))

    def _copy(self, given: str, folder: Path, host_roots: Sequence[Path]) -> Path:
        with _opened(given) as (source, real):
            self._require_allowed(given, source, real, host_roots)
            if (size := os.fstat(source.fileno()).st_size) > LARGEST:
                raise ArgumentError(
                    f"the file {_shown(given)} has {size >> 20} MiB; at most {LARGEST >> 20} MiB can be sent",
                    hint="send a smaller file, or a link to it",
                )
            if size <= MOST_SEARCHED:
                content = source.read(size)
                source.seek(0)
                if any(token in content for token in self.tokens):
                    raise self._refusal(given, "holds the token of a workspace, and is never sent", host_roots)
            copy = folder / real.name
            try:
                # With parents=True, mkdir would leave those open to others.
                for each in (self.outgoing.parent, self.outgoing, folder.parent, folder):
                    each.mkdir(mode=0o700, exist_ok=True)
                descriptor = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                with os.fdopen(descriptor, "wb") as target:
                    _copy_bytes(source, target, size)
            except OSError as exc:
                raise ArgumentError(
                    f"the file {_shown(given)} could not be copied for sending: {exc.strerror or exc}",
                    hint=f"look at the folder {self.outgoing} and its disk",
                ) from exc
        return copy

    def _require_allowed(self, given: str, source: IO[bytes], real: Path, host_roots: Sequence[Path]) -> None:
        parents = [found for parent in real.parents if (found := _status(parent)) is not None]

        def lies_in(folders: Sequence[Path]) -> bool:
            # Compared by identity: one folder can have several spellings, and be mounted in several places.
            known = [found for folder in folders if (found := _status(folder)) is not None]
            return any(os.path.samestat(one, other) for one in parents for other in known)

        if lies_in(self.received):
            return
        opened = os.fstat(source.fileno())
        if any(os.path.samestat(opened, found) for one in self.token_files if (found := _status(one)) is not None):
            raise self._refusal(given, "holds the token of a workspace, and is never sent", host_roots)
        if lies_in(self.private):
            raise self._refusal(given, "is in a state folder of molecule-connect, and is never sent", host_roots)
        if not any(real.is_relative_to(root) for root in self.roots(host_roots)):
            leads = f" (it leads to {_shown(str(real))})" if real != Path(given).expanduser().absolute() else ""
            raise self._refusal(given, f"is outside of the folders that files may be sent from{leads}", host_roots)

    def _refusal(self, given: str, why: str, host_roots: Sequence[Path]) -> ArgumentError:
        roots = ", ".join(_shown(str(root)) for root in self.roots(host_roots))
        return ArgumentError(
            f"the file {_shown(given)} {why}",
            hint=f"send a file from one of these folders: {roots}; "
            f"your operator can add a folder by starting this server with {FLAG} DIR",
        )


def working_root(working: Path | None = None, homes: Sequence[Path] | None = None) -> Path | None:
    """The working directory, as a root. None for ``/``, a home directory and what lies above one.

    Hosts that belong to no project start their servers there, and nobody chose it as the place of files to send.
    """
    try:
        folder = _resolved(Path.cwd() if working is None else working)
    except OSError:  # it was removed
        return None
    above = [_resolved(home) for home in (_homes() if homes is None else homes)]
    return None if folder == Path("/") or any(home.is_relative_to(folder) for home in above) else folder


@contextlib.contextmanager
def _opened(given: str) -> Iterator[tuple[IO[bytes], Path]]:
    """The file at *given*, open, and its real path.

    Raises:
        ArgumentError: There is no such file, or it can't be read.
    """
    try:
        path = Path(given).expanduser().absolute()
        if not path.is_file():
            raise FileNotFoundError
        # Whatever took the file's place meanwhile must not block.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, RuntimeError, ValueError):  # not ours to read, a name that is too long, an unknown user's home
        raise _missing(given) from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        real = _path_of(descriptor, path)
        if not stat.S_ISREG(status.st_mode) or not status.st_nlink or real is None:
            raise _missing(given)
        yield file, real


def _path_of(descriptor: int, path: Path) -> Path | None:
    """Where the open file lies, without any link; None when that can't be known."""
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
        f"there is no file {_shown(given)} that can be read", hint="give the whole path of a file on this machine"
    )


def _copy_bytes(source: IO[bytes], target: IO[bytes], size: int) -> None:
    """No more than *size*: what /proc shows has content, but no size, and a log may grow while it is copied."""
    while size and (piece := source.read(min(size, 1 << 20))):
        target.write(piece)
        size -= len(piece)
    target.flush()
    os.fsync(target.fileno())


def _sweep(folder: Path, *, before: float) -> None:
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

        # What HOME says and what the account says may differ; both hold what is private.
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
    return harmless.name(path, longest=LONGEST_SHOWN)
