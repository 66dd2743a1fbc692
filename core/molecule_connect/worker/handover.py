"""Hand a workspace to another machine: everything that the state folder has of it, in one archive."""

import contextlib
import io
import json
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

import attrs

from molecule_connect import __version__, files
from molecule_connect.config.settings import check_workspace_id
from molecule_connect.config.state_dir import PLUGIN_KINDS
from molecule_connect.errors import ConfigError
from molecule_connect.journal import copies
from molecule_connect.journal.journal import FILE_NAME
from molecule_connect.worker.lease import lease

FORMAT = 1
_MANIFEST, _JOURNAL = "manifest.json", "journal.sqlite3"
# The files of the workspace's messages, and what its plugins keep: sessions, for example.
_FOLDER, _PLUGINS = "folder/", "plugins/"
# Files beside the folder of a workspace: its cursor, and a token that a registration returned.
_CURSOR, _TOKEN = "cursor.json", "token"
_SUFFIXES = {_CURSOR: ".json", _TOKEN: ".token"}


@attrs.frozen(kw_only=True)
class Handover:
    """An archive that was written or read.

    Attributes:
        files: How many files of the workspace's folder it has: received and sent ones, and those of its backend.
        has_token: Whether it has a token that a registration returned.
    """

    workspace_id: str
    files: int
    has_token: bool


def export_workspace(folder: Path, workspace_id: str, archive: Path) -> Handover:
    """Write everything that *folder* has of a workspace to the new file *archive* (0600), and record the export.

    From then on, the workspace can't be served from *folder* until it is imported there again.

    Raises:
        LeaseError: A process serves the workspace.
        ConfigError: There is no such workspace in *folder*, or *archive* exists or can't be written.
        JournalError: The journal can't be used.
    """
    journal, archive = folder / FILE_NAME, archive.absolute()
    if os.path.lexists(archive):
        raise ConfigError(f"{archive} exists already", hint="choose another file, or remove this one")
    if not journal.exists():
        raise ConfigError(f"there is no journal in {folder}", hint="pass the state folder with --state-dir")
    copies.check_known(journal, workspace_id)
    with (
        lease(folder, workspace_id),
        _errors(archive, "written"),
        tempfile.TemporaryDirectory(dir=archive.parent, prefix=f".{archive.name}.") as scratch,
    ):
        part, complete = Path(scratch) / _JOURNAL, Path(scratch) / archive.name
        before = copies.extract(journal, workspace_id, part, wall=time.time(), target=str(archive))
        try:
            handover = _write(folder, workspace_id, part, complete)
            files.rename_new(complete, archive)
        except BaseException:
            # There is no archive, and the lease is still held.
            copies.set_export(journal, workspace_id, before)
            raise
    return handover


def import_workspace(folder: Path, archive: Path) -> Handover:
    """Add the workspace in *archive* to the state folder *folder*, which must exist.

    Raises:
        LeaseError: A process serves the workspace from *folder*.
        ConfigError: *archive* is no archive of ``export_workspace``, or *folder* has the workspace already.
        JournalError: The journal can't be used.
    """
    with _errors(archive, "read"), tarfile.open(archive, "r:gz") as tar:
        workspace_id = _read_manifest(tar, archive)
        with lease(folder, workspace_id), tempfile.TemporaryDirectory(dir=folder, prefix=".import.") as scratch:
            journal, part = folder / FILE_NAME, Path(scratch) / _JOURNAL
            copies.check_free(journal, workspace_id)
            count, has_token = 0, False
            for member in tar:
                content = tar.extractfile(member)
                if content is None:
                    continue  # a folder
                if member.name == _JOURNAL:
                    _save(content, part)
                elif member.name in _SUFFIXES:
                    _save(content, folder / f"{workspace_id}{_SUFFIXES[member.name]}")
                    has_token = has_token or member.name == _TOKEN
                elif (target := _target(folder, workspace_id, member.name)) is not None:
                    _save(content, target)
                    count += 1
            if not part.exists():
                raise _not_an_archive(archive)
            # Last: before this, the folder doesn't have the workspace.
            copies.merge(part, journal, workspace_id)
    return Handover(workspace_id=workspace_id, files=count, has_token=has_token)


def move_workspace(folder: Path, workspace_id: str, target: Path) -> Handover:
    """Move everything that *folder* has of a workspace to the state folder *target*, which must exist.

    Raises:
        LeaseError: A process serves the workspace.
        ConfigError: *folder* doesn't have the workspace, or *target* has it already.
        JournalError: One of the journals can't be used.
    """
    copies.check_free(target / FILE_NAME, workspace_id)
    with tempfile.TemporaryDirectory(dir=target, prefix=".move.") as scratch:
        archive = Path(scratch) / f"{workspace_id}.tar.gz"
        export_workspace(folder, workspace_id, archive)
        try:
            handover = import_workspace(target, archive)
        except BaseException:
            copies.set_export(folder / FILE_NAME, workspace_id, None)
            raise
        copies.set_export(
            folder / FILE_NAME, workspace_id, copies.Export(time=time.time(), target=f"{target.absolute()}/")
        )
    return handover


def _write(folder: Path, workspace_id: str, part: Path, target: Path) -> Handover:
    count, has_token = 0, False
    manifest = {"format": FORMAT, "workspace_id": workspace_id, "version": __version__, "time": time.time()}
    with os.fdopen(files.open_file(target, os.O_CREAT | os.O_EXCL | os.O_RDWR), "wb") as out:
        with tarfile.open(fileobj=out, mode="w:gz", compresslevel=6) as tar:
            _add(tar, _MANIFEST, io.BytesIO(json.dumps(manifest).encode()))
            with part.open("rb") as file:
                _add(tar, _JOURNAL, file)
            for name, suffix in _SUFFIXES.items():
                with contextlib.suppress(FileNotFoundError):
                    _add(tar, name, io.BytesIO(files.read(folder / f"{workspace_id}{suffix}")))
                    has_token = has_token or name == _TOKEN
            for prefix, root in _folders(folder, workspace_id):
                for path in sorted(root.rglob("*")):
                    if path.is_file() and not path.is_symlink():
                        with path.open("rb") as file:
                            _add(tar, f"{prefix}{path.relative_to(root).as_posix()}", file)
                        count += 1
        out.flush()
        os.fsync(out.fileno())
    return Handover(workspace_id=workspace_id, files=count, has_token=has_token)


def _folders(folder: Path, workspace_id: str) -> Iterator[tuple[str, Path]]:
    """The folders of a workspace, each with the beginning of its names in an archive."""
    yield _FOLDER, folder / workspace_id
    for kind in PLUGIN_KINDS:
        for root in sorted((folder / kind).glob(f"*/{workspace_id}")):
            yield f"{_PLUGINS}{kind}/{root.parent.name}/", root


def _add(tar: tarfile.TarFile, name: str, content: IO[bytes]) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = content.seek(0, os.SEEK_END), files.FILE_MODE, int(time.time())
    content.seek(0)
    tar.addfile(member, content)


def _read_manifest(tar: tarfile.TarFile, archive: Path) -> str:
    """Check that *tar* is an archive that can be imported. Returns the id of its workspace."""
    member = tar.next()
    content = tar.extractfile(member) if member is not None and member.name == _MANIFEST else None
    if content is None:
        raise _not_an_archive(archive)
    manifest = json.load(content)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
        raise _not_an_archive(archive)
    if manifest["format"] > FORMAT:
        raise ConfigError(
            f"{archive} was written by a newer molecule-connect ({manifest.get('version')})",
            hint="update molecule-connect",
        )
    return check_workspace_id(manifest.get("workspace_id"))


def _target(folder: Path, workspace_id: str, name: str) -> Path | None:
    """Where a member of an archive belongs in *folder*; None for one that this release doesn't know."""
    path = PurePosixPath(name)
    if ".." in path.parts:
        return None
    match path.parts:
        case ("folder", _, *_):
            return folder / workspace_id / path.relative_to("folder")
        case ("plugins", kind, plugin, _, *_) if kind in PLUGIN_KINDS:
            return folder / kind / plugin / workspace_id / path.relative_to(f"plugins/{kind}/{plugin}")
    return None


def _save(content: IO[bytes], path: Path) -> None:
    files.make_folder(path.parent)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:40]}.", delete=False) as file:
        try:
            shutil.copyfileobj(content, file)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _not_an_archive(archive: Path) -> ConfigError:
    return ConfigError(
        f"{archive} is not an archive of a workspace", hint="pass a file that 'molecule journal export' wrote"
    )


@contextlib.contextmanager
def _errors(archive: Path, doing: str) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, ValueError) as exc:
        raise _not_an_archive(archive) from exc
    except OSError as exc:
        name = exc.filename or archive
        raise ConfigError(
            f"{name} can't be {doing}: {exc.strerror or exc}", hint="check the path, its permissions and the disk"
        ) from exc
