"""The public names are the ones that are promised, and importing the package costs nothing."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import molecule_connect
from molecule_connect import errors

PROMISED = {
    "AsyncPlatformClient",
    "BackendConfig",
    "BackendError",
    "DataPart",
    "FilePart",
    "Outcome",
    "Progress",
    "Request",
    "Response",
    "TextPart",
    "Usage",
    "connect",
    "create_backend",
    "hookimpl",
    "installed_backends",
    "options",
}
HEAVY = {"asyncio", "attr", "attrs", "cattrs", "click", "httpx", "importlib.metadata", "pluggy", "rich", "sqlite3"}


def names_for_type_checkers() -> set[str]:
    tree = ast.parse(Path(str(molecule_connect.__file__)).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {alias.name for node in ast.walk(block) if isinstance(node, ast.ImportFrom) for alias in node.names}


def loaded_by(statement: str) -> set[str]:
    """The modules that *statement* loads in a new interpreter."""
    program = (
        f"import sys, json; before = set(sys.modules); {statement}; print(json.dumps([*set(sys.modules) - before]))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(answer.stdout))


@pytest.mark.parametrize("name", molecule_connect.__all__)
def test_public_names_come_from_their_home(name: str) -> None:
    homes: dict[str, Any] = vars(molecule_connect)["_HOME_OF"]
    value = getattr(molecule_connect, name)
    assert value is not None
    if homes[name]:
        assert getattr(sys.modules[f"molecule_connect.{homes[name]}"], name) is value
    else:
        assert sys.modules[f"molecule_connect.{name}"] is value


def test_public_names_match_types_and_are_sorted() -> None:
    listed = molecule_connect.__all__
    assert listed == sorted(set(listed), key=lambda name: (not name.isupper(), name))
    assert set(listed) == names_for_type_checkers() == set(vars(molecule_connect)["_HOME_OF"])
    assert set(dir(molecule_connect)) == set(listed)


def test_what_was_promised_is_public() -> None:
    assert set(molecule_connect.__all__) >= PROMISED


def test_distinguishable_errors_are_public() -> None:
    caught = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    # It belongs to the command line: connect() serves a single workspace.
    assert caught - set(molecule_connect.__all__) == {"FleetError"}


def test_import_loads_no_other_modules() -> None:
    loaded = loaded_by("import molecule_connect")
    assert "molecule_connect" in loaded
    assert not loaded & HEAVY
    assert not {name for name in loaded if name.startswith("molecule_connect.")}


def test_a_name_loads_its_home_alone() -> None:
    loaded = loaded_by("from molecule_connect import Request")
    assert {name for name in loaded if name.startswith("molecule_connect.")} == {"molecule_connect.models"}


def test_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = molecule_connect.Nonsense  # type: ignore[attr-defined]
