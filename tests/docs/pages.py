"""The blocks of a page, laid out as the page says."""

import re
import tomllib
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def page(name: str) -> str:
    return (DOCS / name).read_text()


def block(text: str, language: str, beginning: str = "") -> str:
    """The first block of a language whose text begins so."""
    blocks: list[str] = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return next(each for each in blocks if each.startswith(beginning))


def lay_out(folder: Path, project_toml: str, code: str) -> str:
    """A distribution of one module as an installation would lay it out; the name of its package."""
    project = tomllib.loads(project_toml)["project"]
    package: str = project["name"].replace("-", "_")
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text(code)
    info = folder / f"{package}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    ((group, entries),) = project["entry-points"].items()
    (info / "entry_points.txt").write_text(f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()))
    return package
