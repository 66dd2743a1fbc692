"""Names of installed plugins, read straight from the files: for help and completion, which must start fast.

Loads neither ``importlib.metadata`` nor anything outside the standard library.
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator

BACKENDS = "molecule_connect.backends"
MIDDLEWARE = "molecule_connect.middleware"
COMMANDS = "molecule_connect.commands"

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*\Z")


def normalised(distribution: str) -> str:
    """The one spelling of a distribution's name: lower case, runs of ``-_.`` as one hyphen (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def entries(text: str, group: str) -> Iterator[tuple[str, str]]:
    """Name and target of each line of *group* in an ``entry_points.txt``; lines that are none are passed over."""
    section = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            section = line.strip("[]").strip() if line.endswith("]") else ""
        elif section == group and "=" in line and not line.startswith(("#", ";", "=")):
            name, target = line.split("=", 1)
            yield name.strip(), target.strip()


def faults(text: str) -> Iterator[str]:
    """What of an ``entry_points.txt`` is passed over because it is malformed; lines of strangers' groups are theirs."""
    section: str | None = None
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith(("#", ";")):
            continue
        if line.startswith("["):
            section = line.strip("[]").strip() if line.endswith("]") else ""
            if not line.endswith("]"):
                yield f"line {number} opens a group whose bracket is not closed"
        elif section is None:
            yield f"line {number} stands before any [group]"
        elif section in (BACKENDS, MIDDLEWARE, COMMANDS) and ("=" not in line or line.startswith("=")):
            yield f"line {number} is not name = module:attribute"


def scan_names(group: str, *, path: Iterable[str] | None = None) -> dict[str, str]:
    """Names that installed distributions offer in *group*, each with its distribution, sorted by name.

    ``path`` takes the place of ``sys.path``. As with imports, the first distribution of a name wins. Names that
    are not ``[a-z0-9][a-z0-9_-]*`` are left out, and so is whatever cannot be read.
    """
    found: dict[str, str] = {}
    seen: set[str] = set()
    for folder in sys.path if path is None else path:
        for distribution, file in _metadata_files(folder or "."):
            if distribution in seen:
                continue
            seen.add(distribution)
            for name, _ in entries(_read(file), group):
                if NAME.match(name):
                    found.setdefault(name, distribution)
    return dict(sorted(found.items()))


def _metadata_files(folder: str) -> Iterator[tuple[str, str]]:
    try:
        names = os.listdir(folder)  # noqa: PTH208 - pathlib would be a second import of half a millisecond
    except OSError:
        return
    for name in names:
        if name.endswith((".dist-info", ".egg-info")):
            yield normalised(name.rpartition(".")[0].partition("-")[0]), f"{folder}/{name}/entry_points.txt"


def _read(file: str) -> str:
    try:
        with open(file, encoding="utf-8", errors="replace") as stream:  # noqa: PTH123
            return stream.read()
    except OSError:
        return ""
