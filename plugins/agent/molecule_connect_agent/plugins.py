"""Plugins of a workspace: downloaded from the platform, unpacked, and set up when that was asked for."""

import contextlib
import hashlib
import logging
import os
import re
import signal
import subprocess
import tarfile
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import attrs

from molecule_connect import files
from molecule_connect.errors import (
    ArchiveError,
    ArgumentError,
    ConfigError,
    PageTooLargeError,
    PlatformError,
)
from molecule_connect.platform import endpoints
from molecule_connect.platform.responses import sanitize
from molecule_connect_agent import archives
from molecule_connect_agent.steps import Ask, Flow, ask, call, hinting

SETUP_SECONDS = 120.0
_STDERR_SHOWN = 200
_PIECE = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHA256 = re.compile(r"(?:sha256:)?([0-9a-fA-F]{64})")
_log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Installer:
    """Where one agent keeps its plugins."""

    workspace_id: str
    folder: Path
    setup_seconds: float = SETUP_SECONDS

    def install(
        self, name: str, source: str | None, *, run_setup_sh: bool, report: bool, sha256: str | None
    ) -> Flow[Path]:
        """The folder of the plugin, installed anew."""
        name, digest = _checked_name(name), _checked_digest(sha256)
        if not hasattr(tarfile, "data_filter"):
            raise ConfigError(
                "the tarfile of this Python has no filters, so it cannot unpack plugins safely",
                hint="use Python 3.11.4 or newer",
            )
        yield from call(self._make_folder)
        try:
            # Before the download, which they may have left no room for.
            yield from call(lambda: archives.remove_leftovers(self.folder, name=name))
            with tempfile.TemporaryFile(dir=self.folder) as archive:
                yield from self._download(name, source, archive)
                place = yield from call(partial(self._place, archive, name, digest))
        except OSError as exc:
            raise ConfigError(
                f"the plugin {name} cannot be put in {self.folder}: {exc.strerror or type(exc).__name__}",
                hint="make the folder writable, and see that the disk is not full",
            ) from exc
        if run_setup_sh:
            yield from call(lambda: run_setup(place, self.setup_seconds))
        if report:
            yield from self._report(source or f"local://{name}", digest)
        return place

    def _download(self, name: str, source: str | None, archive: BinaryIO) -> Flow[None]:
        download = endpoints.plugin_download(self.workspace_id, name, source)
        hint = "compare the name with the platform's plugins; one from elsewhere needs its source too"
        if source:
            hint = "compare name and source with where the plugin is published"
        try:
            with hinting(hint, 404):
                yield from ask(download, sink=archive)
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
                f"the plugins folder {self.folder} cannot be made: {exc.strerror}", hint="name another with token_dir"
            ) from exc

    def _place(self, archive: BinaryIO, name: str, digest: str | None) -> Path:
        archive.seek(0)
        if digest is not None:
            found = _digest(archive)
            if found != digest:
                raise ArchiveError(
                    f"the archive of {name} is not the expected one: its SHA-256 is {found}; nothing was installed",
                    hint="compare it with what its publisher says, and do not use it before they agree",
                )
            archive.seek(0)
        return archives.install(archive, self.folder, name=name)

    def _report(self, source: str, digest: str | None) -> Flow[None]:
        try:
            yield Ask(endpoints.plugin_report(self.workspace_id, source, digest))
        except PlatformError as exc:
            # Platforms refuse it for external workspaces, whatever was installed (contract 2.16).
            _log.debug("the report of the plugin was not taken: %s", exc)


def run_setup(folder: Path, seconds: float = SETUP_SECONDS, *, bash: str = "bash") -> None:
    """Runs ``setup.sh`` in *folder*, if there is one; a failure is a warning."""
    script = folder / "setup.sh"
    if not script.is_file():
        return
    # What it was downloaded with must not reach it: tokens stand in environments.
    environ = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(  # noqa: S603 - whoever asks for it trusts the script
                [bash, "setup.sh"],
                cwd=folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,
            )
        except OSError as exc:
            _log.warning("setup.sh of %s cannot be run: %s", folder.name, exc.strerror)
            return
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end_group(process)
        said.seek(0)
        words = sanitize(said.read(4 * _STDERR_SHOWN).decode("utf-8", "replace"), limit=_STDERR_SHOWN)
    if code is None:
        _log.warning("setup.sh of %s was ended after %.0f s: %s", folder.name, seconds, words)
    elif code:
        _log.warning("setup.sh of %s failed with code %d: %s", folder.name, code, words)


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """What the script started must not outlive it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while piece := file.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name:
        raise ArgumentError(
            f"{name!r} cannot be a plugin's name",
            hint="a name is of A-Z a-z 0-9 . _ - and begins with a letter or digit",
        )
    return name


def _checked_digest(sha256: str | None) -> str | None:
    if sha256 is None:
        return None
    match = _SHA256.fullmatch(sha256.strip())
    if match is None:
        raise ArgumentError("the SHA-256 is not one", hint="give its 64 hexadecimal digits")
    return match[1].lower()
