"""The alert rules, by Prometheus's own tool, and the Grafana dashboard."""

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from molecule_connect_observe.__main__ import main
from molecule_connect_observe.families import FAMILIES, INFO, PROCESS_FAMILIES

from .kit import promtool

FOLDER = Path(str(files("molecule_connect_observe"))) / "monitoring"
RULES, DASHBOARD = FOLDER / "molecule.rules.yml", FOLDER / "grafana-dashboard.json"
NAMES = {family.name for family in (*FAMILIES, *PROCESS_FAMILIES, INFO)}
BUCKETS = {f"{family.name}_bucket" for family in FAMILIES if family.kind == "histogram"}
WANTED = ("Deaf", "Mute", "AuthFailing", "Lagging", "DeadLettersGrowing", "BudgetSpent", "DiskFilling")


def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return content


def queries() -> list[str]:
    """The queries of the dashboard, with a value for each variable."""
    found = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]
    return [re.sub(r"\$(instance|workspace)", ".*", query.replace("$__rate_interval", "5m")) for query in found]


def test_rules_are_valid() -> None:
    code, output = promtool("check", "rules", str(RULES))
    assert code == 0, output
    assert [name for name in WANTED if f"alert: Molecule{name}\n" not in RULES.read_text()] == []


def test_each_alert_fires_for_its_fault_only(tmp_path: Path) -> None:
    tests = tmp_path / "rules_test.yml"
    tests.write_text((Path(__file__).parent / "rules_test.yml").read_text().replace("RULES", str(RULES)))
    code, output = promtool("test", "rules", str(tests))
    assert code == 0, output


def test_every_alert_is_tested() -> None:
    tests = (Path(__file__).parent / "rules_test.yml").read_text()
    alerts = set(re.findall(r"alert: (\w+)", RULES.read_text()))
    assert alerts == set(re.findall(r"alertname: (\w+)", tests))
    assert alerts - set(re.findall(r'alertname="(\w+)", alertstate="firing"', tests)) == set()


def used(text: str) -> set[str]:
    """The metrics that *text* names."""
    without_comments = re.sub(r"(?m)^ *#.*", "", text)
    return set(re.findall(r"\bmolecule_[a-z_]+", without_comments))


@pytest.mark.parametrize("path", [RULES, DASHBOARD], ids=["rules", "dashboard"])
def test_only_known_metrics_are_used(path: Path) -> None:
    assert used(path.read_text()) - NAMES - BUCKETS == set()


def test_every_metric_is_used() -> None:
    names = {name.removesuffix("_bucket") for name in used(RULES.read_text() + DASHBOARD.read_text())}
    # They are for joins, and to see when a list was applied.
    assert NAMES - names == {"molecule_workspace_info", "molecule_config_reload_timestamp_seconds"}


def test_dashboard_queries_are_valid(tmp_path: Path) -> None:
    records = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(queries())]
    rules = tmp_path / "dashboard.yml"
    # JSON is YAML.
    rules.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": records}]}))
    code, output = promtool("check", "rules", str(rules))
    assert code == 0, output
    assert len(records) > 30


def test_dashboard_has_what_grafana_requires() -> None:
    content = dashboard()
    panels = content["panels"]
    assert (content["uid"], content["title"]) == ("molecule-connect", "molecule-connect")
    assert "id" not in content, "an id belongs to one Grafana"
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (place["x"] + x, place["y"] + y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["w"])
        for y in range(place["h"])
    ]
    assert len(set(cells)) == len(cells), "panels overlap"
    assert max(x for x, _ in cells) < 24
    variables = {variable["name"] for variable in content["templating"]["list"]}
    assert set(re.findall(r"\$\{?([a-z]+)\}?", DASHBOARD.read_text())) <= variables
    for panel in panels:
        if panel["type"] != "row":
            assert panel["description"], panel["title"]
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@pytest.mark.parametrize(("name", "path"), [("rules", RULES), ("dashboard", DASHBOARD)])
def test_files_are_printed(name: str, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name]) == 0
    assert capsys.readouterr().out == path.read_text()
    assert main(["else"]) == 2
    assert "rules|dashboard" in capsys.readouterr().err


def test_dashboard_loads_in_grafanas_types() -> None:
    reason = "Grafana's types are not installed: pip install grafana-foundation-sdk"
    types = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason=reason)
    plugins = pytest.importorskip("grafana_foundation_sdk.cog.plugins", reason=reason)
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder", reason=reason)
    plugins.register_default_plugins()
    content = dashboard()
    loaded = json.loads(encoder.JSONEncoder().encode(types.Dashboard.from_json(content)))
    for variable in content["templating"]["list"]:
        # Only for people who edit it.
        variable.pop("definition", None)
    assert missing(content, loaded) == []


def missing(wanted: Any, found: Any, where: str = "") -> list[str]:
    """The places where *found* lacks a value."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return [each for key in wanted for each in missing(wanted[key], found.get(key), f"{where}/{key}")]
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        pairs = enumerate(zip(wanted, found, strict=True))
        return [each for key, (one, other) in pairs for each in missing(one, other, f"{where}/{key}")]
    return [] if wanted == found else [where]
