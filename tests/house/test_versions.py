"""The distributions agree: versions, ranges, licences, entry points, and how a clone is installed."""

import importlib
import importlib.metadata
import re
from pathlib import Path
from typing import TYPE_CHECKING

import molecule_connect

if TYPE_CHECKING:
    from tests.house.conftest import Project

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*\Z")


def next_minor(version: str) -> str:
    major, minor, _ = version.split(".")
    return f"{major}.{int(minor) + 1}"


def the_range(version: str) -> str:
    """The range in which distributions of one release train work together."""
    return f">={version.rpartition('.')[0]},<{next_minor(version)}"


def test_plugins_match_the_readme(plugins: "list[Project]") -> None:
    names = {project.name for project in plugins}
    assert names >= {f"molecule-connect-{name}" for name in ("mock", "exec", "claude-code", "mcp", "sandbox", "agent")}


def test_all_versions_are_the_same(projects: "list[Project]") -> None:
    versions = {project.name: project.metadata["version"] for project in projects}
    assert set(versions.values()) == {molecule_connect.__version__}, versions


def test_what_is_installed_is_what_stands_here(projects: "list[Project]") -> None:
    installed = {project.name: importlib.metadata.version(project.name) for project in projects}
    assert set(installed.values()) == {molecule_connect.__version__}, installed


def test_the_changelog_tells_of_this_version(root: Path) -> None:
    assert re.search(
        rf"^## \[{re.escape(molecule_connect.__version__)}\]", (root / "CHANGELOG.md").read_text(), re.MULTILINE
    )


def test_plugins_depend_on_this_core_release(plugins: "list[Project]") -> None:
    wanted = f"molecule-connect{the_range(molecule_connect.__version__)}"
    lacking = [project.name for project in plugins if wanted not in project.metadata["dependencies"]]
    assert lacking == []


def test_extras_match_the_plugins(core: "Project", plugins: "list[Project]") -> None:
    wanted = {
        project.name.removeprefix("molecule-connect-"): [f"{project.name}{the_range(project.metadata['version'])}"]
        for project in plugins
    }
    for project in plugins:
        for extra in project.metadata.get("optional-dependencies", {}):
            wanted[extra] = [f"{project.name}[{extra}]{the_range(project.metadata['version'])}"]
    assert core.metadata["optional-dependencies"] == wanted


def test_every_dependency_has_a_lowest_version(projects: "list[Project]") -> None:
    loose = [line for project in projects for line in project.metadata["dependencies"] if ">=" not in line]
    assert loose == []


def test_distributions_share_python_version_and_license(root: Path, projects: "list[Project]") -> None:
    licence = (root / "LICENSE").read_text()
    assert "Apache License" in licence
    assert licence.rstrip().endswith("limitations under the License.")
    for project in projects:
        assert project.metadata["requires-python"] == ">=3.11", project.name
        assert project.metadata["license"] == "Apache-2.0", project.name
        assert (project.folder / "LICENSE").read_text() == licence, project.name


def test_distributions_are_typed_with_a_readme(projects: "list[Project]") -> None:
    for project in projects:
        assert (project.package / "py.typed").is_file(), project.name
        assert (project.folder / project.metadata["readme"]).read_text().startswith(f"# {project.name}"), project.name


def test_every_entry_point_and_script_leads_somewhere(projects: "list[Project]") -> None:
    targets = {}
    for project in projects:
        groups = [project.metadata.get("scripts", {}), *project.metadata.get("entry-points", {}).values()]
        targets.update({name: target for group in groups for name, target in group.items()})
    assert {"molecule", "molecule-connect", "molecule-mcp", "mock", "exec", "claude-code", "mcp", "sandbox"} <= set(
        targets
    )
    for name, target in targets.items():
        module, _, attribute = target.partition(":")
        assert NAME.match(name), name
        assert callable(getattr(importlib.import_module(module), attribute)), target


def test_a_clone_installs_every_distribution_from_itself(root: Path, plugins: "list[Project]") -> None:
    lines = (root / "requirements.txt").read_text().splitlines()
    assert "-r requirements.txt" in (root / "requirements-dev.txt").read_text().splitlines()
    editable = [line.removeprefix("-e ") for line in lines if line.startswith("-e ")]
    names = ("mock", "exec", "claude_code", "mcp", "sandbox", "agent", "observe", "postgres")
    assert editable == [".", *(f"./plugins/{name}" for name in names)]
    assert {project.folder for project in plugins} == {(root / path).resolve() for path in editable[1:]}


def test_no_file_pins_a_package_host(root: Path) -> None:
    locks = ["uv.lock", "poetry.lock", "pdm.lock", "pylock.toml", "Pipfile.lock", "constraints.txt"]
    assert [name for name in locks if (root / name).exists()] == []
