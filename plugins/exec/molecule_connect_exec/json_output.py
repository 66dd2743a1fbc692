"""Parse the output of a command in JSON mode, one object per line. ``docs/exec.md`` is the reference."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import attrs

from molecule_connect import BackendError, DataPart, FilePart, Part, Response, TextPart, Usage

# Other output is kept up to this size.
MOST_STRAY_BYTES = 2**20
# Maximum length of a path in an error.
MOST_SHOWN = 100

_FINAL = ("response", "silent", "error")
_AMOUNTS = ("input_tokens", "output_tokens", "cost_usd")
# int() rejects more than 4,300 digits, which would make the whole line invalid.
_MOST_DIGITS = 4_000
_log = logging.getLogger(__name__)


@attrs.define(kw_only=True)
class JsonOutput:
    """The output lines of one command.

    Attributes:
        folder: The base of relative paths in a response.
        final: The first response, silent or error object.
        strays: Lines that aren't a JSON object. A pretty-printed response consists of such lines.
    """

    folder: Path
    final: dict[str, Any] | None = None
    strays: list[bytes] = attrs.field(factory=list)
    _stray_bytes: int = attrs.field(default=0, init=False)

    def add(self, line: bytes) -> str | None:
        """Add a line. Returns the text if the line reports progress."""
        value = _object(line)
        if value is None:
            if line.strip() and self._stray_bytes < MOST_STRAY_BYTES:
                self.strays.append(line)
                self._stray_bytes += len(line)
            return None
        if value.get("type") == "progress":
            text = value.get("text")
            return text if isinstance(text, str) and text.strip() else None
        if self.final is None and _is_final(value):
            self.final = value
        return None

    def response(self) -> Response | None:
        """The command's response, or None if it wrote none.

        Raises:
            BackendError: It wrote an error or an invalid response.
        """
        value = self.final or self._pretty_printed()
        if value is None:
            return None
        kind = value.get("type", "response")
        if kind == "error":
            raise _error(value)
        if kind == "silent":
            return Response.silent(usage=_usage(value.get("usage")))
        return Response(parts=self._parts(value), usage=_usage(value.get("usage")))

    def first_stray(self) -> str:
        """The first line that isn't an object, shortened, for an error message."""
        return self.strays[0].decode(errors="replace").strip()[:200] if self.strays else ""

    def _pretty_printed(self) -> dict[str, Any] | None:
        value = _object(b"\n".join(self.strays))
        return value if value is not None and _is_final(value) else None

    def _parts(self, value: dict[str, Any]) -> tuple[Part, ...]:
        given = value.get("parts", [])
        if not isinstance(given, list):
            raise _wrong("'parts' is not a list")
        text = value.get("text")
        if text is not None and not isinstance(text, str):
            raise _wrong("'text' is not a string")
        # As in a request, 'text' beside 'parts' repeats their text.
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
        raise _wrong("a part is not of type text, file or data")

    def _file(self, part: dict[str, Any]) -> FilePart:
        given = {key: part.get(key) or "" for key in ("uri", "path", "name", "mime_type")}
        if wrong := [key for key, value in given.items() if not isinstance(value, str)]:
            raise _wrong(f"{wrong[0]!r} of a file is not a string")
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
            # Relative paths must stay in the folder; others must be absolute.
            is_inside = Path(path).is_absolute() or place.resolve().is_relative_to(self.folder.resolve())
            is_file = not place.exists() or place.is_file()
        except (OSError, ValueError, RuntimeError) as exc:
            # The name is too long, has a NUL or a symlink loop, or the folder was deleted.
            raise _wrong(f"the file {_shortened(path)!r} cannot be accessed: {_reason(exc)}") from exc
        if not is_inside:
            raise _wrong(f"the file {_shortened(path)!r} is outside of the command's working directory")
        if not is_file:
            raise _wrong(f"{_shortened(path)!r} is not a file")
        return place


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text.decode(errors="replace"), parse_int=_integer)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MOST_DIGITS else float(digits)


def _is_final(value: dict[str, Any]) -> bool:
    return value["type"] in _FINAL if "type" in value else "text" in value or "parts" in value


def _error(value: dict[str, Any]) -> BackendError:
    message, retryable, wait = value.get("message"), value.get("retryable", True), value.get("retry_after")
    if not isinstance(message, str) or not message.strip():
        message = "the command failed without a message"
    if not isinstance(retryable, bool):
        raise _wrong("'retryable' is not true or false")
    if wait is not None and not (_is_number(wait) and wait < 1e9):
        raise _wrong("'retry_after' is not a number of seconds")
    usage = _usage(value.get("usage"))
    return BackendError(_clean(message), retryable=retryable, retry_after=wait, usage=usage)


def _usage(value: Any) -> Usage | None:
    """The numbers in *value*. Invalid ones are ignored: accounting must not fail the delivery."""
    if value is None:
        return None
    if not isinstance(value, dict):
        _log.warning("ignored the command's 'usage': it is not an object")
        return None
    given = {name: value[name] for name in _AMOUNTS if value.get(name) is not None}
    if wrong := [name for name, value in given.items() if not _is_number(value)]:
        _log.warning("ignored invalid numbers in the command's 'usage': %s", ", ".join(wrong))
    return Usage(**{name: value for name, value in given.items() if name not in wrong})


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _shortened(path: str) -> str:
    return path if len(path) <= MOST_SHOWN else f"{path[:MOST_SHOWN]}..."


def _reason(exc: Exception) -> str:
    return (isinstance(exc, OSError) and exc.strerror) or str(exc)


def _clean(text: str) -> str:
    # JSON can contain lone surrogates, which cannot be encoded.
    return text.encode(errors="replace").decode()


def _wrong(problem: str) -> BackendError:
    return BackendError(f"the command's response is invalid: {problem}", retryable=False)
