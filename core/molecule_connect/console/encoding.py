"""Output for a terminal or pipe that does not have every character."""

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
    """Let the standard streams write and read any text, whatever the locale or ``PYTHONIOENCODING`` says.

    A character that the output does not have is written as JSON writes it, ``\\ud83d\\ude00``, so that JSON stays
    JSON. What the input holds beyond its encoding reads as U+FFFD.
    """
    for stream, errors in ((sys.stdout, ESCAPE), (sys.stderr, ESCAPE), (sys.stdin, "replace")):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            with contextlib.suppress(OSError, ValueError):  # it is closed, or its buffer cannot be written
                stream.reconfigure(errors=errors)
