"""Multipart forms with files, which are read from the disk while they are sent."""

import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs

from molecule_connect.errors import ConfigError
from molecule_connect.files import safe_name, type_by_name
from molecule_connect.models import FilePart

PIECE = 256 * 1024
UNKNOWN_TYPE = "application/octet-stream"
# Other characters could end the header early.
_PLAIN_TYPE = re.compile(
    r"[A-Za-z0-9!#$&^_.+-]{1,60}/[A-Za-z0-9!#$&^_.+-]{1,60}(; ?[A-Za-z0-9-]{1,60}=[A-Za-z0-9._-]{1,60}){0,4}"
)


@attrs.frozen(kw_only=True)
class UploadFile:
    """A file to upload. If it grows meanwhile, only the first ``size`` bytes are sent."""

    path: Path
    name: str
    mime_type: str
    size: int


@attrs.frozen
class Multipart:
    """A ``multipart/form-data`` body with the field ``files``."""

    files: tuple[UploadFile, ...]
    boundary: str = attrs.field(factory=lambda: secrets.token_hex(16))

    @classmethod
    def of(cls, files: Iterable[FilePart]) -> "Multipart":
        """Make a form of *files*, each of which has a ``path``.

        Raises:
            ConfigError: One of them can't be read, or is empty, which the platform rejects.
        """
        return cls(tuple(_upload_file(file) for file in files))

    @property
    def content_type(self) -> str:
        """The value of the ``Content-Type`` header."""
        return f"multipart/form-data; boundary={self.boundary}"

    @property
    def length(self) -> int:
        """Size of the whole body, in bytes."""
        return sum(len(self._head(file)) + file.size + 2 for file in self.files) + len(self._end)

    def pieces(self) -> Iterator[bytes]:
        """Yield the body in pieces, reading from the disk.

        Raises:
            ConfigError: A file can't be read any more, or became shorter.
        """
        for file in self.files:
            yield self._head(file)
            try:
                yield from _content(file)
            except (OSError, ValueError) as exc:
                raise _unreadable(file.name, exc) from exc
            yield b"\r\n"
        yield self._end

    def _head(self, file: UploadFile) -> bytes:
        return (
            f"--{self.boundary}\r\n"
            f'Content-Disposition: form-data; name="files"; filename="{file.name}"\r\n'
            f"Content-Type: {file.mime_type}\r\n\r\n"
        ).encode()

    @property
    def _end(self) -> bytes:
        return f"--{self.boundary}--\r\n".encode()


def _content(file: UploadFile) -> Iterator[bytes]:
    left = file.size
    with file.path.open("rb") as source:
        while left and (piece := source.read(min(PIECE, left))):
            left -= len(piece)
            yield piece
    if left:
        raise OSError("it became shorter while it was sent")


def _upload_file(file: FilePart) -> UploadFile:
    name = file.name or (file.path.name if file.path else "")
    try:
        if file.path is None:
            raise FileNotFoundError("it is not on this machine")
        size = file.path.stat().st_size
        if not file.path.is_file() or not os.access(file.path, os.R_OK):
            raise OSError("it is not a readable file")
    except (OSError, ValueError) as exc:
        raise _unreadable(name, exc) from exc
    if not size:
        raise ConfigError(
            f"the file {name[:100]!r} is empty, and the platform rejects empty files", hint="send a file with content"
        )
    guessed = file.mime_type or type_by_name(name) or UNKNOWN_TYPE
    mime_type = guessed if _PLAIN_TYPE.fullmatch(guessed) else UNKNOWN_TYPE
    return UploadFile(path=file.path, name=safe_name(name), mime_type=mime_type, size=size)


def _unreadable(name: str, exc: OSError | ValueError) -> ConfigError:
    reason = getattr(exc, "strerror", None) or exc
    return ConfigError(f"the file {name[:100]!r} cannot be sent: {reason}", hint="check that it exists and is readable")
