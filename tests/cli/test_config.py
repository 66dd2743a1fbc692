"""``molecule config``: each error of a list with its line, and a schema that accepts valid lists."""

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from .conftest import Molecule

VALID = """
[defaults]
api_url = "https://platform.example"
backend = "exec"
options.cmd = "cat"
labels = {team = "support"}

[fleet]
max_cost_per_day = 20.5
concurrency = 4

[[workspace]]
id = "ws_1"
token = {env = "FIRST_TOKEN"}
interval_ms = 500
journal_quota = "2GiB"
peer_budget = 0

[[workspace]]
id = "ws_2"
token = {command = ["pass", "show", "ws_2"]}
enabled = false
use = ["redact"]
use_options.redact.word = "x"
options = {cmd = "tac", timeout = "5m", env = ["A=1", "B=2"]}
"""


def _write(folder: Path, text: str, name: str = "fleet.toml") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)
    return path


def _errors(molecule: Molecule, path: Path, *flags: str) -> list[dict[str, Any]]:
    checked = molecule("config", "check", str(path), "--json", *flags)
    document = json.loads(checked.stdout)
    errors: list[dict[str, Any]] = document["errors"]
    assert checked.code == (2 if errors else 0)
    return errors


def test_errors_are_shown_with_their_lines(molecule: Molecule, tmp_path: Path) -> None:
    path = _write(
        tmp_path,
        """unknwon = 1
include = "conf.d/*.toml"
[defaults]
backend = "exec"
options.cmd = "cat"
grace = "soon"

# A comment.
[[workspace]]
id = "ws_1"
tokn = "abcdefghij"

[[workspace]]
id = "ws_2"
token = "abcdefghij"
agent_description = '''
[[not a header]]
'''

# The next key is wrong.
concurrency = 0
[workspace.options]
cmd = "tac"
timeot = 3
""",
    )
    _write(tmp_path, '[[workspace]]\nid = "ws_3"\ntoken = "abcdefghij"\nbackend = "nope"\n', "conf.d/a.toml")
    _write(tmp_path, '[[workspace]]\nid = "ws_4\n', "conf.d/b.toml")
    found = [(Path(one["file"]).name, one["line"], one["workspace"]) for one in _errors(molecule, path)]
    assert found == [
        ("fleet.toml", 1, ""),
        ("fleet.toml", 6, ""),
        ("fleet.toml", 9, "workspace 1 (ws_1)"),
        ("fleet.toml", 11, "workspace 1 (ws_1)"),
        ("fleet.toml", 21, "workspace 2 (ws_2)"),
        ("fleet.toml", 24, "workspace 2 (ws_2)"),
        ("a.toml", 4, "workspace 1 of conf.d/a.toml (ws_3)"),
        ("b.toml", 2, ""),
    ]
    shown = molecule("config", "check", str(path))
    assert f"{path}:11: workspace 1 (ws_1): unknown key 'tokn'" in shown.stderr
    assert shown.stdout == ""


def test_broken_toml_names_the_line(molecule: Molecule, tmp_path: Path) -> None:
    (error,) = _errors(molecule, _write(tmp_path, "[[workspace]]\nid = 'ws_1'\nid = 'ws_2'\n"))
    assert error["line"] == 3


@pytest.mark.parametrize("text", ["", "a = 1", "workspace = 1", "[[workspace]]", "include = 3", "[fleet]\nx = 1"])
def test_every_bad_list_is_an_error(molecule: Molecule, tmp_path: Path, text: str) -> None:
    assert _errors(molecule, _write(tmp_path, text))


def test_missing_file_is_an_error(molecule: Molecule, tmp_path: Path) -> None:
    assert _errors(molecule, tmp_path / "missing.toml")


def test_list_is_checked_without_its_secrets(molecule: Molecule, tmp_path: Path) -> None:
    path = _write(tmp_path, VALID)
    assert [one["line"] for one in _errors(molecule, path)] == [14, 21, 23]
    # Only the middleware, which isn't installed.
    assert [one["line"] for one in _errors(molecule, path, "--no-secrets")] == [23]


def test_disabled_workspaces_are_checked_too(molecule: Molecule, tmp_path: Path) -> None:
    path = _write(tmp_path, '[[workspace]]\nid = "ws_1"\nenabled = false\nbackend = "nope"\ntoken = "abcdefghij"')
    assert [one["line"] for one in _errors(molecule, path)] == [4]


def _schema(molecule: Molecule) -> Any:
    printed = molecule("config", "schema")
    assert printed.code == 0
    return json.loads(printed.stdout)


def test_schema_accepts_a_valid_list(molecule: Molecule) -> None:
    schema = _schema(molecule)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(tomllib.loads(VALID), schema)


@pytest.mark.parametrize(
    "block",
    [
        {},
        {"id": "a", "tokn": "x"},
        {"id": "a", "concurrency": 0},
        {"id": "a", "concurrency": "8"},
        {"id": "a", "token": {"env": "A", "file": "b"}},
        {"id": "a", "enabled": "yes"},
        {"id": "a", "labels": {"not valid": "x"}},
        {"id": "a", "interval_ms": 0},
    ],
)
def test_schema_rejects_wrong_blocks(molecule: Molecule, block: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"workspace": [block]}, _schema(molecule))
