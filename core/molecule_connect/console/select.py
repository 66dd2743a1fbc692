"""Choose the screen for a stream."""

import os
from collections.abc import Mapping
from typing import TextIO

from molecule_connect.console.log_options import DEFAULT, LogOptions
from molecule_connect.console.screen import Screen

LOG_FORMATS = ("auto", "lines", "json")


def choose(
    stream: TextIO,
    log_format: str = "auto",
    options: LogOptions = DEFAULT,
    *,
    environ: Mapping[str, str] = os.environ,
) -> Screen:
    """The screen for *stream*: the requested format, or by default a live view on a terminal and lines elsewhere.

    Args:
        options: For the formats other than the live view.
    """
    if log_format == "json":
        from molecule_connect.console.json_lines import JsonScreen

        return JsonScreen(stream, options)
    if log_format == "auto" and _is_terminal(stream) and environ.get("TERM", "") not in ("", "dumb", "unknown"):
        from molecule_connect.console.live import LiveScreen

        return LiveScreen(stream)
    from molecule_connect.console.lines import LineScreen

    return LineScreen(stream, options)


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (OSError, ValueError):
        return False
