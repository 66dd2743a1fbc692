"""``molecule new-backend`` writes what installs, passes its tests and builds; ``examples/backend`` is one of them."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from molecule_connect.cli.new_backend import distribution_files

Molecule = Callable[..., Any]

EXAMPLE = Path(__file__).parents[2] / "examples" / "backend"
TOOLS = ("-m", "ruff", "check"), ("-m", "ruff", "format", "--check"), ("-m", "mypy", "--strict")


def test_creates_a_distribution_and_lists_next_steps(molecule: Molecule, tmp_path: Path) -> None:
    result = molecule("new-backend", "acme", "--into", str(tmp_path / "new"))

    folder = tmp_path / "new" / "molecule-connect-acme"
    assert result.code == 0
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert written == {
        ".gitignore",
        "README.md",
        "molecule_connect_acme/__init__.py",
        "molecule_connect_acme/py.typed",
        "pyproject.toml",
        "tests/test_acme.py",
    }
    for words in (f"wrote {folder}", f"cd {folder}", "install -e", "-m pytest", 'molecule try acme "hi"', "twine"):
        assert words in result.stdout


def test_nothing_is_written_over(molecule: Molecule, tmp_path: Path) -> None:
    (tmp_path / "molecule-connect-acme").mkdir()
    (tmp_path / "molecule-connect-acme" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")

    again = molecule("new-backend", "acme", "--into", str(tmp_path))
    file = molecule("new-backend", "acme", "--into", str(tmp_path / "file"))

    assert (again.code, file.code) == (2, 2)
    assert "exists already" in again.stderr
    assert "what to do: " in again.stderr
    assert [path.name for path in (tmp_path / "molecule-connect-acme").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Acme", "cannot be the name"),
        ("acme!", "cannot be the name"),
        ("-acme", "No such option"),
        ("acme-", "cannot be the name"),
        ("../acme", "cannot be the name"),
        ("", "cannot be the name"),
        ("a" * 51, "cannot be the name"),
        ("exec", "exists already"),
        ("inbox", "comes with molecule-connect"),
        ("claude_code", "exists already"),
        ("molecule-connect-acme", "molecule new-backend acme"),
    ],
)
def test_a_bad_name_is_refused(molecule: Molecule, tmp_path: Path, name: str, words: str) -> None:
    result = molecule("new-backend", name, "--into", str(tmp_path / "new"))

    assert result.code == 2
    assert words in result.stderr
    assert not (tmp_path / "new").exists()


def test_reports_an_unwritable_folder(molecule: Molecule) -> None:
    result = molecule("new-backend", "acme", "--into", "/proc/here")

    assert result.code == 2
    assert "cannot be written" in result.stderr


@pytest.fixture(params=["acme", "3d-print_er", "example"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Written for two kinds of names; and the example, as it stands."""
    place = tmp_path / "distribution"
    if request.param == "example":
        return Path(shutil.copytree(EXAMPLE, place, ignore=shutil.ignore_patterns("__pycache__", "dist", ".*_cache")))
    for path, text in distribution_files(request.param).items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text(text)
    return place


def run(folder: Path, *arguments: str, **environment: str) -> str:
    ran = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_virtual_environment_is_not_packed(folder: Path, tmp_path: Path) -> None:
    (folder / "fresh" / "bin").mkdir(parents=True)
    (folder / "fresh" / "bin" / "python").symlink_to(sys.executable)

    run(folder, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path / "dist"))

    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as built:
        names = {name.split("/")[1] for name in built.getnames()}
    assert "fresh" not in names
    assert {"README.md", "pyproject.toml", "tests"} < names


# Tools that begin without a cache take a minute on a machine with other work.
@pytest.mark.timeout(300)
def test_created_distribution_builds_and_passes_tests(folder: Path, tmp_path: Path) -> None:
    run(folder, "-m", "hatchling", "build", "-d", str(tmp_path / "dist"))
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    (package,) = folder.glob("molecule_connect_*")
    shutil.rmtree(package)
    with zipfile.ZipFile(wheel) as built:
        built.extractall(tmp_path / "site")

    said = run(folder, "-W", "error", "-m", "pytest", "-q", "-W", "error", PYTHONPATH=str(tmp_path / "site"))

    assert " passed" in said
    name = package.name.removeprefix("molecule_connect_").replace("_", "-")
    checked = run(
        folder,
        "-c",
        "from molecule_connect import installed_backends as backends\n"
        "print([(each.origin, each.problem) for each in backends(check=True)])",
        PYTHONPATH=str(tmp_path / "site"),
    )
    assert f"('molecule-connect-{name} 0.1.0', '')" in checked


@pytest.mark.timeout(300)
@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="ruff and mypy are not installed")
@pytest.mark.parametrize("folder", ["acme", "example"], indirect=True)
def test_created_files_pass_linters(folder: Path) -> None:
    for tool in TOOLS:
        run(folder, *tool, ".")


def test_example_extends_the_created_files() -> None:
    written = distribution_files("dice")
    tracked = subprocess.run(["git", "ls-files", "."], cwd=EXAMPLE, capture_output=True, text=True, check=False).stdout

    assert set(tracked.split()) in (set(), set(written) | {"LICENSE"})
    for path in (".gitignore", "molecule_connect_dice/py.typed"):
        assert (EXAMPLE / path).read_text() == written[path]
    example, template = (
        tomllib.loads((EXAMPLE / "pyproject.toml").read_text()),
        tomllib.loads(written["pyproject.toml"]),
    )
    for key in ("description", "license", "license-files"):
        example["project"].pop(key)
    template["project"].pop("description")
    assert example == template
