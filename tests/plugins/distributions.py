"""Distributions for the tests: real folders on a search path, never installed."""

from pathlib import Path


def write_distribution(
    folder: Path,
    name: str,
    *,
    version: str = "1.0",
    entry_points: str | bytes = "",
    metadata: str | None = None,
    suffix: str = "dist-info",
    **modules: str,
) -> str:
    """Lay out ``name`` in *folder*, with *modules* beside it, and return the folder as a search path has it."""
    info = folder / f"{name.replace('-', '_')}-{version}.{suffix}"
    info.mkdir(parents=True)
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" if metadata is None else metadata
    (info / ("METADATA" if suffix == "dist-info" else "PKG-INFO")).write_text(text)
    file = info / "entry_points.txt"
    file.write_bytes(entry_points if isinstance(entry_points, bytes) else entry_points.encode())
    for module, source in modules.items():
        (folder / f"{module}.py").write_text(source)
    return str(folder)


def backends(**targets: str) -> str:
    """The ``entry_points.txt`` that offers these backends."""
    return "[molecule_connect.backends]\n" + "".join(
        f"{name.replace('_', '-')} = {target}\n" for name, target in targets.items()
    )
