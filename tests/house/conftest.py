"""Where the house stands, and what its distributions say of themselves."""

import tomllib
from pathlib import Path
from typing import Any

import attrs
import pytest


@attrs.frozen
class Project:
    """One distribution: its folder and its ``pyproject.toml``."""

    folder: Path
    data: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.data["project"]["name"])

    @property
    def metadata(self) -> dict[str, Any]:
        return dict(self.data["project"])

    @property
    def package(self) -> Path:
        """The folder of the package that is imported."""
        where = self.folder / "core" if (self.folder / "core").is_dir() else self.folder
        return where / self.name.replace("-", "_")


def read_project(folder: Path) -> Project:
    return Project(folder, tomllib.loads((folder / "pyproject.toml").read_text()))


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).parents[2]


@pytest.fixture(scope="session")
def core(root: Path) -> Project:
    return read_project(root)


@pytest.fixture(scope="session")
def plugins(root: Path) -> list[Project]:
    """The first-party plugins, by name."""
    return [read_project(path.parent) for path in sorted(root.glob("plugins/*/pyproject.toml"))]


@pytest.fixture(scope="session")
def projects(core: Project, plugins: list[Project]) -> list[Project]:
    return [core, *plugins]
