"""The pages name the test that holds what they promise: each of them is there."""

import ast
import re
from functools import cache

import pytest
from tests.docs.pages import DOCS, page

ROOT = DOCS.parent
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")
# Backends have their own tests.
LINES = [*map(str, range(1, 23)), "22b", "23", "24", *map(str, range(41, 50)), "49b", *map(str, range(50, 79))]


@cache
def functions_of(file: str) -> frozenset[str]:
    """The names of the tests in a file of this repository."""
    path = ROOT / file
    if not path.is_file():
        return frozenset()
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = (node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, functions))
    return frozenset(name for name in found if name.startswith("test_"))


def missing(text: str) -> list[str]:
    return [f"{file}::{name}" for file, name in NAMED.findall(text) if name not in functions_of(file)]


@pytest.mark.parametrize(("name", "least"), [("delivery.md", 20), ("incidents.md", 20)])
def test_every_test_that_a_page_names_exists(name: str, least: int) -> None:
    assert len(NAMED.findall(page(name))) > least
    assert missing(page(name)) == []


def test_a_test_that_does_not_exist_is_noticed() -> None:
    assert missing("`tests/docs/test_named_tests.py::test_gone` and `tests/gone.py::test_it`") == [
        "tests/docs/test_named_tests.py::test_gone",
        "tests/gone.py::test_it",
    ]


def test_every_incident_has_its_line_and_a_test_or_a_reason() -> None:
    rows = dict(re.findall(r"^\| (\d+b?) \| .* \| (.*) \|$", page("incidents.md"), re.MULTILINE))
    assert list(rows) == LINES
    without = [number for number, tests in rows.items() if not NAMED.search(tests)]
    assert without == ["22b"]


@pytest.mark.parametrize("heading", re.findall(r"^## (.*)$", page("delivery.md"), re.MULTILINE))
def test_every_part_of_the_delivery_page_names_what_holds_it(heading: str) -> None:
    part = page("delivery.md").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    assert NAMED.search(part)
