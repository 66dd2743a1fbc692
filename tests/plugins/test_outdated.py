"""Broken, doubled and outdated plugins: clear words, and what to do."""

from pathlib import Path

import pytest
from tests.plugins.distributions import backends, write_distribution

from molecule_connect import __version__
from molecule_connect.errors import PluginError
from molecule_connect.plugins.discovery import find, installed_backends, load, unmet
from molecule_connect.plugins.entry_points import BACKENDS


@pytest.mark.parametrize(
    ("requirement", "found"),
    [
        ("molecule-connect>=0.5,<0.6", ("<0.6,>=0.5", True)),
        ("Molecule_Connect (>=2)", (">=2", True)),
        ("molecule-connect[exec]>=0.2", (">=0.2", True)),
        ("molecule-connect<0.1", ("<0.1", False)),
        ("molecule-connect==0.0.*", ("==0.0.*", False)),
        ("molecule-connect~=0.2.0", ("~=0.2.0", True)),
        ("molecule-connect!=0.1.2", ("!=0.1.2", False)),
        ("molecule-connect>0.1.2", (">0.1.2", False)),
        ("molecule-connect", None),
        ("molecule-connect>=0.1,<0.2", None),
        ("molecule-connect==0.1.2", None),
        ("molecule-connect==0.1.*", None),
        ("molecule-connect~=0.1.1", None),
        ("molecule-connect<=0.1.2", None),
        ("molecule-connect>=0.5; extra == 'late'", None),
        ("molecule-connect @ https://example.org/x.whl", None),
        ("molecule-connect-exec>=3", None),
        ("", None),
    ],
)
def test_a_range_is_read(requirement: str, found: tuple[str, bool] | None) -> None:
    assert unmet([requirement], "0.1.2") == found


def metadata(name: str, requirement: str) -> str:
    return f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: {requirement}\n"


def test_names_required_version_and_what_to_upgrade(site: Path) -> None:
    for name, requirement in (("early", "molecule-connect<0.1"), ("late", "molecule-connect>=7")):
        write_distribution(
            site, name, entry_points=backends(**{name: f"{name}:B"}), metadata=metadata(name, requirement)
        )

    early, late = installed_backends(path=[str(site)])

    assert early.problem.startswith(f"requires molecule-connect <0.1, but this is {__version__}; upgrade early: ")
    assert early.problem.endswith("-m pip install --upgrade early")
    assert late.problem.startswith("requires molecule-connect >=7, but this is ")
    assert late.problem.endswith("-m pip install --upgrade molecule-connect")


def test_outdated_plugins_that_break_suggest_an_upgrade(site: Path) -> None:
    path = write_distribution(
        site,
        "late",
        entry_points=backends(late="late:B"),
        metadata=metadata("late", "molecule-connect>=7"),
        late="from molecule_connect import SomethingNew",
    )

    with pytest.raises(PluginError, match="SomethingNew") as caught:
        load(find(BACKENDS, "late", path=[path]))

    assert caught.value.hint.endswith("install --upgrade molecule-connect")


def test_outdated_plugins_that_work_are_usable(site: Path) -> None:
    path = write_distribution(
        site,
        "late",
        entry_points=backends(late="late:B"),
        metadata=metadata("late", "molecule-connect>=7"),
        late="class B: ...",
    )

    assert load(find(BACKENDS, "late", path=[path])).__name__ == "B"
