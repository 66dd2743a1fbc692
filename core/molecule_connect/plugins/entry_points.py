"""Scan the names of installed plugins without ``importlib.metadata``, so that help and completion start fast."""

import os
import re
import sys
from collections.abc import Iterable, Iterator

BACKENDS = "molecule_connect.backends"
MIDDLEWARE = "molecule_connect.middleware"
COMMANDS = "molecule_connect.commands"
OBSERVERS = "molecule_connect.observers"
MIRRORS = "molecule_connect.mirrors"

# Characters that are read of a distribution's metadata: the fields precede the description.
_MOST_HEADERS = 65536

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*\Z")


def normalized(distribution: str) -> str:
    """The normalized name of a distribution (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def entries(text: str, group: str) -> Iterator[tuple[str, str]]:
    """Name and target of each entry of *group* in an ``entry_points.txt``. Invalid lines are skipped."""
    section = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            section = line.strip("[]").strip() if line.endswith("]") else ""
        elif section == group and "=" in line and not line.startswith(("#", ";", "=")):
            name, target = line.split("=", 1)
            yield name.strip(), target.strip()


def faults(text: str) -> Iterator[str]:
    """Errors in an ``entry_points.txt``. Entries of other projects' groups are not checked."""
    section: str | None = None
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith(("#", ";")):
            continue
        if line.startswith("["):
            section = line.strip("[]").strip() if line.endswith("]") else ""
            if not line.endswith("]"):
                yield f"line {number} starts a group without a closing bracket"
        elif section is None:
            yield f"line {number} stands before any [group]"
        elif section in (BACKENDS, MIDDLEWARE, COMMANDS, OBSERVERS) and ("=" not in line or line.startswith("=")):
            yield f"line {number} is not name = module:attribute"


def scan_names(group: str, *, path: Iterable[str] | None = None) -> dict[str, str]:
    """Plugin names in *group*, each with its distribution, sorted by name.

    ``path`` replaces ``sys.path``. As with imports, the first distribution of a name wins. Invalid names and
    unreadable files are skipped.
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


def scan_headers(
    distributions: Iterable[str], *, path: Iterable[str] | None = None
) -> dict[str, list[tuple[str, str]]]:
    """The metadata fields of *distributions* (normalized names): lower-case name and value of each, in order.

    ``path`` replaces ``sys.path``. Distributions without readable metadata are missing.
    """
    wanted = set(distributions)
    found: dict[str, list[tuple[str, str]]] = {}
    for folder in sys.path if path is None else path:
        for distribution, file in _metadata_files(folder or ".") if wanted - set(found) else ():
            if distribution in wanted and distribution not in found:
                info = file.rpartition("/")[0]
                text = _read(f"{info}/METADATA", _MOST_HEADERS) or _read(f"{info}/PKG-INFO", _MOST_HEADERS)
                found[distribution] = list(_headers(text))
    return found


def _headers(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        if not line:
            return  # the description follows
        name, colon, value = line.partition(":")
        if colon and not line[0].isspace():
            yield name.lower(), value.strip()


def _metadata_files(folder: str) -> Iterator[tuple[str, str]]:
    try:
        names = os.listdir(folder)  # noqa: PTH208 - importing pathlib takes half a millisecond
    except OSError:
        return
    for name in names:
        if name.endswith((".dist-info", ".egg-info")):
            yield normalized(name.rpartition(".")[0].partition("-")[0]), f"{folder}/{name}/entry_points.txt"


def _read(file: str, most: int = -1) -> str:
    try:
        with open(file, encoding="utf-8", errors="replace") as stream:  # noqa: PTH123
            return stream.read(most)
    except OSError:
        return ""
