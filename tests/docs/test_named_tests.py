"""``docs/incidents.md`` names the test for each incident, and each test exists."""

import ast
import re
from functools import cache

from tests.docs.pages import DOCS, page

ROOT = DOCS.parent
PAGE = page("incidents.md")
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")
# Backends have their own tests.
LINES = [*map(str, range(1, 23)), "22b", "23", "24", *map(str, range(41, 50)), "49b", *map(str, range(50, 120))]


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


def test_every_test_that_the_page_names_exists() -> None:
    assert len(NAMED.findall(PAGE)) > 20
    assert missing(PAGE) == []


def test_notices_a_missing_test() -> None:
    assert missing("`tests/docs/test_named_tests.py::test_gone` and `tests/gone.py::test_it`") == [
        "tests/docs/test_named_tests.py::test_gone",
        "tests/gone.py::test_it",
    ]


def test_every_incident_has_tests_or_a_reason() -> None:
    rows = dict(re.findall(r"^\| (\d+b?) \| .* \| (.*) \|$", PAGE, re.MULTILINE))
    assert list(rows) == LINES
    without = [number for number, tests in rows.items() if not NAMED.search(tests)]
    assert without == ["22b"]
