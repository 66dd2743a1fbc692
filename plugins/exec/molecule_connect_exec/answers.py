"""What a command says in JSON mode: a JSON object a line. ``docs/exec.md`` is the reference."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import attrs

from molecule_connect import BackendError, DataPart, FilePart, Part, Response, TextPart, Usage

# A program that chatters beside its answers is not remembered for ever.
MOST_STRAY_BYTES = 2**20
# Of a path, in an error.
MOST_SHOWN = 100

_FINAL = ("response", "silent", "error")
_AMOUNTS = ("input_tokens", "output_tokens", "cost_usd")
# int() refuses more than 4,300 digits, and with them the whole line.
_MOST_DIGITS = 4_000
_log = logging.getLogger(__name__)


@attrs.define(kw_only=True)
class Conversation:
    """The lines of one command, read as they come.

    Attributes:
        folder: What relative paths in an answer start from.
        final: The object that decides: the first response, silent or error.
        strays: Lines that are no such object. A pretty-printed answer is made of them.
    """

    folder: Path
    final: dict[str, Any] | None = None
    strays: list[bytes] = attrs.field(factory=list)
    _stray_bytes: int = attrs.field(default=0, init=False)

    def hear(self, line: bytes) -> str | None:
        """Take a line; the text, if it is progress."""
        said = _object(line)
        if said is None:
            if line.strip() and self._stray_bytes < MOST_STRAY_BYTES:
                self.strays.append(line)
                self._stray_bytes += len(line)
            return None
        if said.get("type") == "progress":
            text = said.get("text")
            return text if isinstance(text, str) and text.strip() else None
        if self.final is None and _is_final(said):
            self.final = said
        return None

    def answer(self) -> Response | None:
        """What the command answered, or None when it said nothing that counts.

        Raises:
            BackendError: It said so, or what it said cannot be understood.
        """
        said = self.final or self._pretty_printed()
        if said is None:
            return None
        kind = said.get("type", "response")
        if kind == "error":
            raise _error(said)
        if kind == "silent":
            return Response.silent(usage=_usage(said.get("usage")))
        return Response(parts=self._parts(said), usage=_usage(said.get("usage")))

    def first_stray(self) -> str:
        """The first line that was no object, shortened, for people."""
        return self.strays[0].decode(errors="replace").strip()[:200] if self.strays else ""

    def _pretty_printed(self) -> dict[str, Any] | None:
        said = _object(b"\n".join(self.strays))
        return said if said is not None and _is_final(said) else None

    def _parts(self, said: dict[str, Any]) -> tuple[Part, ...]:
        given = said.get("parts", [])
        if not isinstance(given, list):
            raise _wrong("'parts' is not a list")
        text = said.get("text")
        if text is not None and not isinstance(text, str):
            raise _wrong("'text' is no text")
        # With parts, a text beside them is their short form, as in a request.
        parts = tuple(self._part(part) for part in given)
        return parts or ((TextPart(_clean(text)),) if text else ())

    def _part(self, part: Any) -> Part:
        match part:
            case {"type": "text", "text": str(text)}:
                return TextPart(_clean(text))
            case {"type": "data", "data": data}:
                return DataPart(data)
            case {"type": "file"}:
                return self._file(part)
        raise _wrong("a part is neither text, nor file, nor data")

    def _file(self, part: dict[str, Any]) -> FilePart:
        given = {key: part.get(key) or "" for key in ("uri", "path", "name", "mime_type")}
        if wrong := [key for key, value in given.items() if not isinstance(value, str)]:
            raise _wrong(f"{wrong[0]!r} of a file is no text")
        uri, path, name, mime_type = map(_clean, given.values())
        if not uri and not path:
            raise _wrong("a file has neither 'uri' nor 'path'")
        place = self._place(path) if path else None
        size = part.get("size")
        return FilePart(
            uri=uri or (place.as_uri() if place is not None else ""),
            name=name or (place.name if place is not None else ""),
            mime_type=mime_type,
            size=size if isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 2**63 else None,
            path=place,
        )

    def _place(self, path: str) -> Path:
        try:
            place = (self.folder / path).absolute()
            # What is named from the folder stays in it; elsewhere a path has to be named as a whole.
            is_inside = Path(path).is_absolute() or place.resolve().is_relative_to(self.folder.resolve())
            is_file = not place.exists() or place.is_file()
        except (OSError, ValueError, RuntimeError) as exc:
            # Its name is too long, holds a NUL, is a loop of links, or starts from a folder that was deleted.
            raise _wrong(f"the file {_shortened(path)!r} cannot be looked at: {_reason(exc)}") from exc
        if not is_inside:
            raise _wrong(f"the file {_shortened(path)!r} leads out of the folder that the command runs in")
        if not is_file:
            raise _wrong(f"{_shortened(path)!r} is no file")
        return place


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        said = json.loads(text.decode(errors="replace"), parse_int=_integer)
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MOST_DIGITS else float(digits)


def _is_final(said: dict[str, Any]) -> bool:
    return said["type"] in _FINAL if "type" in said else "text" in said or "parts" in said


def _error(said: dict[str, Any]) -> BackendError:
    message, retryable, wait = said.get("message"), said.get("retryable", True), said.get("retry_after")
    if not isinstance(message, str) or not message.strip():
        message = "the command said no more than that it failed"
    if not isinstance(retryable, bool):
        raise _wrong("'retryable' is neither true nor false")
    if wait is not None and not (_is_number(wait) and wait < 1e9):
        raise _wrong("'retry_after' is no number of seconds")
    usage = _usage(said.get("usage"))
    return BackendError(_clean(message), retryable=retryable, retry_after=wait, usage=usage)


def _usage(said: Any) -> Usage | None:
    """The numbers in *said*; anything else counts as nothing, since accounting must not cost the answer."""
    if said is None:
        return None
    if not isinstance(said, dict):
        _log.warning("the command's 'usage' is not an object, and counts as nothing")
        return None
    given = {name: said[name] for name in _AMOUNTS if said.get(name) is not None}
    if wrong := [name for name, value in given.items() if not _is_number(value)]:
        _log.warning("the command's 'usage' has no usable number in %s, which counts as nothing", ", ".join(wrong))
    return Usage(**{name: value for name, value in given.items() if name not in wrong})


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _shortened(path: str) -> str:
    return path if len(path) <= MOST_SHOWN else f"{path[:MOST_SHOWN]}..."


def _reason(exc: Exception) -> str:
    return (isinstance(exc, OSError) and exc.strerror) or str(exc)


def _clean(text: str) -> str:
    # JSON can name half a surrogate pair, which nothing further on can encode.
    return text.encode(errors="replace").decode()


def _wrong(problem: str) -> BackendError:
    return BackendError(f"the command's answer cannot be understood: {problem}", retryable=False)
