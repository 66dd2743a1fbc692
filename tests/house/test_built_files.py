"""What the built wheels and sdists hold: what they should, and nothing else."""

import email.message
import email.parser
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pytest

import molecule_connect

if TYPE_CHECKING:
    from tests.house.conftest import Project

Names = set[str]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory, projects: "list[Project]") -> Path:
    """A folder with the wheel and the sdist of every distribution."""
    place = tmp_path_factory.mktemp("dist")
    for project in projects:
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "--directory", str(place)],
            cwd=project.folder,
            check=True,
            capture_output=True,
        )
    return place


def wheel(dist: Path, project: "Project") -> zipfile.ZipFile:
    (path,) = dist.glob(f"{project.package.name}-{molecule_connect.__version__}-py3-none-any.whl")
    return zipfile.ZipFile(path)


def sdist_names(dist: Path, project: "Project") -> Names:
    stem = f"{project.package.name}-{molecule_connect.__version__}"
    with tarfile.open(dist / f"{stem}.tar.gz") as archive:
        return {str(PurePosixPath(name).relative_to(stem)) for name in archive.getnames()}


def sources(project: "Project") -> Names:
    """The files of the package, as paths from the folder that holds it."""
    base = project.package.parent
    files = (path for path in project.package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(base).as_posix() for path in files}


def test_wheel_contains_package_and_metadata(dist: Path, projects: "list[Project]") -> None:
    for project in projects:
        info = f"{project.package.name}-{molecule_connect.__version__}.dist-info"
        extra = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "licenses/LICENSE")}
        if "scripts" in project.metadata or "entry-points" in project.metadata:
            extra.add(f"{info}/entry_points.txt")
        with wheel(dist, project) as built:
            assert set(built.namelist()) == sources(project) | extra, project.name
            assert f"{project.package.name}/py.typed" in built.namelist()


def test_sdist_contains_only_sources_of_the_wheel(dist: Path, projects: "list[Project]") -> None:
    for project in projects:
        prefix = project.package.parent.relative_to(project.folder)
        wanted = {(prefix / name).as_posix() for name in sources(project)} | {"PKG-INFO", "LICENSE", "README.md"}
        allowed = wanted | {"pyproject.toml", "CHANGELOG.md", ".gitignore"}
        found = {name for name in sdist_names(dist, project) if not name.startswith("tests/")}
        assert wanted <= found <= allowed, (project.name, found ^ wanted)


def metadata(dist: Path, project: "Project") -> email.message.Message:
    with wheel(dist, project) as built:
        (name,) = (name for name in built.namelist() if name.endswith("METADATA"))
        return email.parser.Parser().parsestr(built.read(name).decode())


def test_the_metadata_says_what_an_index_shows(dist: Path, projects: "list[Project]") -> None:
    for project in projects:
        said = metadata(dist, project)
        assert said["Name"] == project.name
        assert said["License-Expression"] == "Apache-2.0"
        assert said["Requires-Python"] == ">=3.11"
        assert said["Description-Content-Type"] == "text/markdown"
        assert said["Summary"], project.name


def test_wheels_have_the_documented_entry_points(dist: Path, projects: "list[Project]") -> None:
    found: dict[str, Names] = {}
    for project in projects:
        with wheel(dist, project) as built:
            names = [name for name in built.namelist() if name.endswith("entry_points.txt")]
            lines = [line for name in names for line in built.read(name).decode().splitlines()]
        found[project.name] = {line.partition("=")[0].strip() for line in lines if line}
    core = {"[console_scripts]", "molecule", "molecule-connect", "[molecule_connect.backends]", "inbox"}
    assert found["molecule-connect"] == core
    assert found["molecule-connect-mock"] == {"[molecule_connect.backends]", "mock"}
    assert found["molecule-connect-exec"] == {"[molecule_connect.backends]", "exec"}
    assert found["molecule-connect-mcp"] == {
        "[console_scripts]",
        "molecule-mcp",
        "[molecule_connect.commands]",
        "mcp",
    }
    assert found["molecule-connect-agent"] == set()
    assert found["molecule-connect-postgres"] == {"[molecule_connect.mirrors]", "postgresql", "postgres"}
    assert found["molecule-connect-observe"] == {"[molecule_connect.observers]", "http", "otel"}
    assert found["molecule-connect-sandbox"] == {"[molecule_connect.commands]", "sandbox"}
