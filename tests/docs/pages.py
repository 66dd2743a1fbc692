"""The code blocks of the documentation's pages, and distributions made from them."""

import re
import tomllib
from pathlib import Path

from tests.plugins.distributions import write_distribution

DOCS = Path(__file__).parents[2] / "docs"


def page(name: str) -> str:
    return (DOCS / name).read_text()


def block(text: str, language: str, beginning: str = "") -> str:
    """Return the first block in *language* whose text starts with *beginning*."""
    blocks: list[str] = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return next(each for each in blocks if each.startswith(beginning))


def lay_out(folder: Path, project_toml: str, code: str) -> str:
    """Write a distribution of one module into *folder*, as if installed. Returns the name of its package."""
    project = tomllib.loads(project_toml)["project"]
    package: str = project["name"].replace("-", "_")
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text(code)
    write_distribution(folder, project["name"], version=project["version"], entry_points=project["entry-points"])
    return package
