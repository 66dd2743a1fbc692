"""Downloads, unpacks and sets up plugins of a workspace."""

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import signal
import tarfile
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

import anyio.to_thread
import attrs

from molecule_connect import (
    ArchiveError,
    ArgumentError,
    ConfigError,
    PageTooLargeError,
    PlatformError,
    endpoints,
    files,
)
from molecule_connect_agent import archives
from molecule_connect_agent.requests import Requests, hinting

SETUP_SECONDS = 120.0
_STDERR_SHOWN = 200
_PIECE = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHA256 = re.compile(r"(?:sha256:)?([0-9a-fA-F]{64})")
T = TypeVar("T")
_log = logging.getLogger(__name__)


@attrs.frozen
class Installer:
    """Installs plugins in *folder*."""

    _requests: Requests
    folder: Path

    async def install(
        self, name: str, source: str | None, *, run_setup_sh: bool, report: bool, sha256: str | None
    ) -> Path:
        """The folder of the plugin, which is replaced."""
        name, digest = _checked_name(name), _checked_digest(sha256)
        if not hasattr(tarfile, "data_filter"):
            raise ConfigError(
                "the tarfile module of this Python has no filters, so it can't unpack plugins safely",
                hint="use Python 3.11.4 or newer",
            )
        await in_thread(self._make_folder)
        try:
            # Before the download, for which they may have left no space.
            await in_thread(partial(archives.remove_leftovers, self.folder, name=name))
            with tempfile.TemporaryFile(dir=self.folder) as archive:
                await self._download(name, source, archive)
                place = await in_thread(partial(self._place, archive, name, digest))
        except OSError as exc:
            raise ConfigError(
                f"can't write the plugin {name} to {self.folder}: {exc.strerror or type(exc).__name__}",
                hint="make the folder writable, and check that the disk is not full",
            ) from exc
        if run_setup_sh:
            await run_setup(place)
        if report:
            await self._report(source or f"local://{name}", digest)
        return place

    async def _download(self, name: str, source: str | None, archive: IO[bytes]) -> None:
        download = endpoints.plugin_download(self._requests.workspace_id, name, source)
        hint = "compare the name with the platform's plugins; a plugin from elsewhere also needs its source"
        if source:
            hint = "compare name and source with where the plugin is published"
        try:
            with hinting(hint, 404):
                await self._requests.send(download, sink=archive)
        except PageTooLargeError as exc:
            raise ArchiveError(
                f"the archive of {name} is larger than {download.cap >> 20} MiB; nothing was installed",
                hint=archives.TOO_MUCH,
            ) from exc

    def _make_folder(self) -> None:
        try:
            files.make_folder(self.folder)
        except OSError as exc:
            raise ConfigError(
                f"can't create the plugins folder {self.folder}: {exc.strerror}", hint="name another with token_dir"
            ) from exc

    def _place(self, archive: IO[bytes], name: str, digest: str | None) -> Path:
        archive.seek(0)
        if digest is not None:
            found = _digest(archive)
            if found != digest:
                raise ArchiveError(
                    f"the archive of {name} is not the expected one: its SHA-256 is {found}; nothing was installed",
                    hint="compare it with the publisher's, and don't use the plugin until they match",
                )
            archive.seek(0)
        return archives.install(archive, self.folder, name=name)

    async def _report(self, source: str, digest: str | None) -> None:
        operation = endpoints.plugin_report(self._requests.workspace_id, source, digest)
        try:
            await self._requests.send(operation, retries=0)
        except PlatformError as exc:
            # Platforms refuse it for external workspaces (contract 2.16).
            _log.debug("the platform refused the report of the plugin: %s", exc)


async def in_thread(work: Callable[[], T]) -> T:
    """Run *work* in a thread. If the wait is cancelled, the thread continues."""
    return await anyio.to_thread.run_sync(work, abandon_on_cancel=True)


async def run_setup(folder: Path, seconds: float = SETUP_SECONDS, *, bash: str = "bash") -> None:
    """Run ``setup.sh`` in *folder*, if there is one. A failure is a warning."""
    if not (folder / "setup.sh").is_file():
        return
    # Environments hold tokens, which must not reach the script.
    environ = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    with tempfile.TemporaryFile() as stderr:
        try:
            process = await asyncio.create_subprocess_exec(
                bash,
                "setup.sh",
                cwd=folder,
                env=environ,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
        except OSError as exc:
            _log.warning("setup.sh of %s cannot be run: %s", folder.name, exc.strerror)
            return
        is_stopped = False
        try:
            async with asyncio.timeout(seconds):
                await process.wait()
        except TimeoutError:
            is_stopped = True
        finally:
            # Everything that the script started ends with it.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            code = await process.wait()
        stderr.seek(0)
        text = " ".join(stderr.read(4 * _STDERR_SHOWN).decode("utf-8", "replace").split())
        shown = "".join(char if char.isprintable() else " " for char in text)[:_STDERR_SHOWN]
    if is_stopped:
        _log.warning("setup.sh of %s was ended after %.0f s: %s", folder.name, seconds, shown)
    elif code:
        _log.warning("setup.sh of %s failed with code %d: %s", folder.name, code, shown)


def _digest(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while piece := file.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name:
        raise ArgumentError(
            f"{name!r} cannot be a plugin's name",
            hint="a name has the characters A-Z a-z 0-9 . _ - and starts with a letter or digit",
        )
    return name


def _checked_digest(sha256: str | None) -> str | None:
    if sha256 is None:
        return None
    match = _SHA256.fullmatch(sha256.strip())
    if match is None:
        raise ArgumentError("sha256 is not a SHA-256 digest", hint="pass its 64 hexadecimal digits")
    return match[1].lower()
