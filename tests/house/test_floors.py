"""A module imports its own floor or below, and a library has one home."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import molecule_connect

CORE = Path(__file__).parents[2] / "core" / "molecule_connect"
FLOORS = (
    {"models", "errors", "events", "backoff"},
    {
        "settings",
        "state_folder",
        "file_names",
        "open_files",
        "private_file",
        "run_marks",
        "pipes",
        "processes",
        "process_start",
        "threads",
    },
    {"platform", "plugins"},
    {"delivery"},
    {"environment", "workspace_keys", "workspaces"},
    {"serve", "blocks", "inboxes", "inbox_desk"},
    {"remote_agent", "console", "testing"},
    {"cli", "__main__"},
)
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}
HOMES = {
    "pluggy": {"plugins"},
    "httpx": {"platform"},
    "httpcore": {"platform"},
    "h11": {"platform"},
    "rich": {"console", "cli"},
}
PLUGIN_SOURCES = sorted(path for path in CORE.parents[1].glob("plugins/*/**/*.py") if ".venv" not in path.parts)


def imports(source: str, module: str) -> Iterator[tuple[str, str]]:
    """Every import in *source*, those for types and in functions too: the module, and the name taken from it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from ((base, alias.name) for alias in node.names)


def room(base: str, name: str) -> str | None:
    """The module or package right under ``molecule_connect`` that an import reaches; None for any other import."""
    top, _, rest = base.partition(".")
    if top != "molecule_connect":
        return None
    if rest:
        return rest.partition(".")[0]
    return public_home(name) or name


def public_home(name: str) -> str | None:
    """The room that a public name lives in, as the package itself says."""
    if name.startswith("__") or not name:
        return "models"
    if name not in molecule_connect.__all__:
        return None
    homes: dict[str, Any] = vars(molecule_connect)["_HOME_OF"]
    return str(homes[name] or name).partition(".")[0]


def violations(source: str, module: str) -> list[str]:
    """What *module* imports although it must not."""
    here = module.split(".")[1]
    if here not in FLOOR_OF:
        return [f"{here} stands on no floor: add it to FLOORS"]
    found = []
    for base, name in imports(source, module):
        library = base.partition(".")[0]
        if here not in HOMES.get(library, {here}):
            found.append(f"{library} belongs to {sorted(HOMES[library])}, not to {here}")
        there = room(base, name)
        if there is None or there == here:
            continue
        if there not in FLOOR_OF:
            found.append(f"{base}.{name} stands on no floor")
        elif FLOOR_OF[there] > FLOOR_OF[here]:
            found.append(f"{here} must not import {there}, which stands above it")
        elif {here, there} == FLOORS[2]:
            found.append(f"{here} must not import {there}: they do not know each other")
    return found


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(CORE.parent).with_suffix("").parts)


SOURCES = sorted(path for path in CORE.rglob("*.py") if path != CORE / "__init__.py")


@pytest.mark.parametrize("path", SOURCES, ids=[module_name(path) for path in SOURCES])
def test_a_module_imports_its_own_floor_or_below(path: Path) -> None:
    assert violations(path.read_text(), module_name(path)) == []


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("models", "from molecule_connect.settings import ConnectionSettings", "above"),
        ("models", "def f():\n    import molecule_connect.delivery.journal.journal", "above"),
        ("delivery.lanes", "from ..serve import connect", "above"),
        ("delivery.lanes", "from molecule_connect import connect", "above"),
        ("delivery.lanes", "from molecule_connect import serve", "above"),
        ("platform.client", "from molecule_connect.plugins.host import PluginHost", "each other"),
        ("plugins.host", "from molecule_connect.platform import client", "each other"),
        ("delivery.lanes", "import httpx", "httpx belongs"),
        ("delivery.lanes", "import pluggy._hooks", "pluggy belongs"),
        ("serve", "from rich.live import Live", "rich belongs"),
        ("attic", "import json", "no floor"),
    ],
)
def test_the_rule_notices(module: str, source: str, complaint: str) -> None:
    (found,) = violations(source, f"molecule_connect.{module}")
    assert complaint in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("delivery.lanes", "from molecule_connect.errors import BackendError\nfrom .journal import Journal"),
        ("delivery.lanes", "from molecule_connect import Request, __version__"),
        ("platform.client", "import httpx"),
        ("cli.connect", "import rich.console\nfrom molecule_connect.serve import connect"),
    ],
)
def test_the_rule_lets_pass(module: str, source: str) -> None:
    assert violations(source, f"molecule_connect.{module}") == []


def test_the_package_itself_imports_nothing_of_ours_at_run_time() -> None:
    tree = ast.parse((CORE / "__init__.py").read_text())
    outside = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [node.module for node in outside if isinstance(node, ast.ImportFrom)] == ["typing"]
    assert len(outside) == 1


def trespasses(source: str, *, test: bool) -> list[str]:
    """What a plugin imports of the core that is no public name."""
    public = {"", "__version__", *molecule_connect.__all__}
    found = []
    for base, name in imports(source, "plugin.module"):
        if base == "molecule_connect" and (name in public or (test and name == "testing")):
            continue
        if base == "molecule_connect.processes":
            continue
        if base.partition(".")[0] == "molecule_connect" and not (test and base == "molecule_connect.testing"):
            found.append(f"{base}: {name}")
    return found


@pytest.mark.parametrize("path", PLUGIN_SOURCES, ids=["/".join(path.parts[-3:]) for path in PLUGIN_SOURCES])
def test_a_first_party_plugin_uses_public_names_alone(path: Path) -> None:
    assert trespasses(path.read_text(), test="tests" in path.parts) == []


def test_a_plugin_that_reaches_inside_is_noticed() -> None:
    assert trespasses("from molecule_connect.plugins.host import PluginHost", test=True)
    assert trespasses("from molecule_connect.testing import make_request", test=False)
    assert trespasses("from molecule_connect import serve", test=False)
    assert not trespasses("from molecule_connect.testing import make_request", test=True)
    assert not trespasses("from molecule_connect.processes import Program", test=False)
    assert not trespasses("import molecule_connect\nfrom molecule_connect import hookimpl", test=False)
