"""``docs/architecture.md`` names modules, classes and functions that exist, and every layer."""

import re

from tests.docs.pages import DOCS, page
from tests.house.test_layers import CORE, LAYER_OF

ROOT = DOCS.parent
PAGE = page("architecture.md")
SOURCE = "\n".join(path.read_text() for path in CORE.rglob("*.py"))


def test_every_named_file_exists() -> None:
    named = set(re.findall(r"`([\w/.]+(?:\.py|\.md|/))`", PAGE))
    places = (ROOT, CORE, CORE / "worker")

    assert len(named) > 30
    assert [name for name in sorted(named) if not any((place / name).exists() for place in places)] == []


def test_every_module_of_the_picture_exists() -> None:
    picture = PAGE.partition("```text\n")[2].partition("```")[0]
    modules = {path.name for path in CORE.rglob("*.py")}

    assert set(re.findall(r"\w+\.py", picture)) <= modules


def test_every_named_function_exists() -> None:
    functions = set(re.findall(r"`(?:\w+\.)?(\w+)\(\)`", PAGE))
    classes = set(re.findall(r"`(\w+)\.\w+\(\)`", PAGE))

    assert [name for name in sorted(functions) if f"def {name}(" not in SOURCE] == []
    assert [name for name in sorted(classes) if not re.search(rf"^class {name}\b", SOURCE, re.MULTILINE)] == []


def test_layers_are_those_of_the_import_check() -> None:
    rows = re.findall(r"^\| (\d) \| ([^|]*) \|", PAGE, re.MULTILINE)
    layers = {name: int(number) - 1 for number, names in rows for name in re.findall(r"`(\w+)/?`", names)}

    assert len(rows) == max(LAYER_OF.values()) + 1
    assert layers.items() <= LAYER_OF.items()
