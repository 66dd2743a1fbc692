"""Opens the page in a browser."""

import os
import sys
import threading
import webbrowser
from collections.abc import Callable, Mapping

import click


def has_browser(environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> bool:
    """Whether a browser can have a window. Without one, the standard library would start a text browser here."""
    if platform == "darwin" or environ.get("BROWSER"):
        return True
    return bool(environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY"))


def open_page(
    url: str, *, environ: Mapping[str, str] = os.environ, start: Callable[[str], bool] = webbrowser.open
) -> threading.Thread | None:
    """Open *url* in a browser, or print it if there is none.

    Returns the thread that waits for the browser: some run until their window is closed, and nothing should wait then.
    """
    if not has_browser(environ):
        _print_address(url)
        return None

    def run() -> None:
        try:
            opened = start(url)
        except (OSError, webbrowser.Error):
            opened = False
        if not opened:
            _print_address(url)

    thread = threading.Thread(target=run, name="browser", daemon=True)
    thread.start()
    return thread


def _print_address(url: str) -> None:
    click.echo(f"No browser could be opened. The page is at {url}", err=True)
