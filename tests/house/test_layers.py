"""Imports point down: a module imports its own layer or a lower one, and each library has one home."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import molecule_connect

CORE = Path(__file__).parents[2] / "core" / "molecule_connect"
LAYERS = (
    {
        "models",
        "errors",
        "events",
        "backoff",
        "files",
        "flag",
        "executors",
        "observers",
        "mirrors",
        "open_files",
        "traces",
    },
    {"config", "platform", "plugins", "journal", "process"},
    {"worker"},
    {"app", "deployment", "runtime"},
    {"inbox"},
    {"console", "testing", "service"},
    {"cli", "__main__"},
)
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}
# Packages of the second layer don't import each other, except these.
ALLOWED = {
    ("platform", "config"),
    ("plugins", "process"),
}
LIBRARIES = {
    "pluggy": {"plugins"},
    "httpx": {"platform"},
    "httpcore": {"platform"},
    "h11": {"platform"},
    "sqlite3": {"journal"},
    "rich": {"console", "cli"},
}
PUBLIC_MODULES = {
    "molecule_connect.events",
    "molecule_connect.mirrors",
    "molecule_connect.observers",
    "molecule_connect.process",
}


def imports(source: str, module: str) -> Iterator[tuple[str, str]]:
    """Every import in *source*, also in functions: the module, and the name taken from it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from ((base, alias.name) for alias in node.names)


def part(base: str, name: str) -> str | None:
    """The module or package directly under ``molecule_connect`` that an import reaches; None for other imports."""
    top, _, rest = base.partition(".")
    if top != "molecule_connect":
        return None
    if rest:
        return rest.partition(".")[0]
    if name.startswith("__") or not name:
        return "models"
    homes: dict[str, Any] = vars(molecule_connect)["_HOME_OF"]
    return str(homes.get(name) or name).partition(".")[0]


def violations(source: str, module: str) -> list[str]:
    here = module.split(".")[1]
    found = []
    for base, name in imports(source, module):
        library = base.partition(".")[0]
        if here not in LIBRARIES.get(library, {here}):
            found.append(f"{module}: {library} belongs to {sorted(LIBRARIES[library])}")
        there = part(base, name)
        if there is None or there == here:
            continue
        if there not in LAYER_OF or here not in LAYER_OF:
            found.append(f"{module}: {base}.{name} is in no layer")
        elif (here, there) in ALLOWED:
            continue
        elif LAYER_OF[there] > LAYER_OF[here]:
            found.append(f"{module}: {there} is a higher layer")
        elif LAYER_OF[there] == LAYER_OF[here] == 1:
            found.append(f"{module}: {here} and {there} must not know each other")
    return found


def trespasses(source: str, *, test: bool) -> list[str]:
    """What a plugin imports of the core that isn't public."""
    names = {"", "__version__", *molecule_connect.__all__}
    modules = {*PUBLIC_MODULES, *(["molecule_connect.testing"] if test else [])}
    return [
        f"{base}: {name}"
        for base, name in imports(source, "plugin.module")
        if base.partition(".")[0] == "molecule_connect"
        and base not in modules
        and not (base == "molecule_connect" and (name in names or (test and name == "testing")))
    ]


def test_imports_point_down() -> None:
    paths = [path for path in CORE.rglob("*.py") if path != CORE / "__init__.py"]
    assert len(paths) > 50
    names = {path: ".".join(path.relative_to(CORE.parent).with_suffix("").parts) for path in paths}
    assert [each for path in paths for each in violations(path.read_text(), names[path])] == []


def test_plugins_use_public_names_only() -> None:
    root = CORE.parents[1]
    paths = [path for path in root.glob("plugins/*/**/*.py") if not path.relative_to(root).match("**/.venv/**")]
    assert len(paths) > 50
    found = {path.name: trespasses(path.read_text(), test="tests" in path.parts) for path in paths}
    assert {name: each for name, each in found.items() if each} == {}


def test_layer_rules_notice_violations() -> None:
    for module, source in (
        ("models", "from molecule_connect.config.settings import WorkspaceSettings"),
        ("models", "def f():\n    import molecule_connect.journal.journal"),
        ("worker.dispatcher", "from ..app import connect"),
        ("worker.dispatcher", "from molecule_connect import connect"),
        ("journal.journal", "from molecule_connect.platform.client import AsyncPlatformClient"),
        ("plugins.manager", "from molecule_connect.platform import client"),
        ("worker.dispatcher", "import httpx"),
        ("worker.dispatcher", "import pluggy._hooks"),
        ("app", "from rich.live import Live"),
        ("attic", "from molecule_connect.errors import MoleculeError"),
    ):
        assert len(violations(source, f"molecule_connect.{module}")) == 1, source
    assert violations("from molecule_connect.errors import BackendError", "molecule_connect.worker.dispatcher") == []
    assert violations("from molecule_connect.config.settings import Tls", "molecule_connect.platform.tls") == []
    assert trespasses("from molecule_connect.plugins.manager import PluginHost", test=True)
    assert trespasses("from molecule_connect.testing import make_request", test=False)
    assert not trespasses("from molecule_connect.testing import make_request", test=True)
    assert not trespasses("from molecule_connect.process import Program", test=False)


def test_package_imports_nothing_at_run_time() -> None:
    tree = ast.parse((CORE / "__init__.py").read_text())
    outside = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [node.module for node in outside if isinstance(node, ast.ImportFrom)] == ["typing"]
    assert len(outside) == 1
