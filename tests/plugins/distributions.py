"""Distributions for the tests: real folders on a search path, never installed."""

from collections.abc import Mapping
from pathlib import Path

Groups = Mapping[str, Mapping[str, str]]


def write_distribution(
    folder: Path,
    name: str,
    *,
    version: str = "1.0",
    entry_points: Groups | str | bytes = "",
    metadata: str | None = None,
    suffix: str = "dist-info",
    **modules: str,
) -> str:
    """Write the metadata of ``name`` into *folder*, and its *modules* beside it. Returns the folder for a search path.

    Args:
        entry_points: Targets by group and name, or the content of ``entry_points.txt``.
    """
    info = folder / f"{name.replace('-', '_')}-{version}.{suffix}"
    info.mkdir(parents=True)
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" if metadata is None else metadata
    (info / ("METADATA" if suffix == "dist-info" else "PKG-INFO")).write_text(text)
    if isinstance(entry_points, Mapping):
        entry_points = _as_text(entry_points)
    (info / "entry_points.txt").write_bytes(entry_points.encode() if isinstance(entry_points, str) else entry_points)
    for module, source in modules.items():
        (folder / f"{module}.py").write_text(source)
    return str(folder)


def backends(**targets: str) -> str:
    """The ``entry_points.txt`` that offers these backends."""
    return _as_text({"molecule_connect.backends": {name.replace("_", "-"): to for name, to in targets.items()}})


def _as_text(groups: Groups) -> str:
    sections = (f"[{group}]\n" + "".join(f"{key} = {to}\n" for key, to in of.items()) for group, of in groups.items())
    return "\n".join(sections)
