"""Output to terminals and pipes whose encoding doesn't have all characters."""

import codecs
import contextlib
import io
import sys

ESCAPE = "molecule.escape"


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)), error.end


codecs.register_error(ESCAPE, _escape)


def tolerate_encodings() -> None:
    """Let the standard streams write and read any text, regardless of the locale and ``PYTHONIOENCODING``.

    Characters that the encoding doesn't have are written as JSON escapes, ``\\ud83d\\ude00``, so that JSON stays valid.
    Undecodable input is read as U+FFFD.
    """
    for stream, errors in ((sys.stdout, ESCAPE), (sys.stderr, ESCAPE), (sys.stdin, "replace")):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            with contextlib.suppress(OSError, ValueError):  # closed, or its buffer cannot be flushed
                stream.reconfigure(errors=errors)
