"""``docs/metrics.md`` lists all metrics, made from the code."""

from pathlib import Path

import pytest

from molecule_connect import events
from molecule_connect.observers import PARTS
from molecule_connect_observe.counts import RETRIES
from molecule_connect_observe.families import FAMILIES, INFO, PROCESS_FAMILIES

PAGE = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()


def workspace_table() -> str:
    rows = ["| metric | type | labels | meaning | together |", "| --- | --- | --- | --- | --- |"]
    for family in (*FAMILIES, INFO):
        labels = ", ".join(f"`{label}`" for label in family.labels)
        rows.append(f"| `{family.name}` | {family.kind} | {labels} | {family.help} | {family.merge_name} |")
    return "\n".join(rows)


def process_table() -> str:
    rows = (
        f"| `{family.name}` | {', '.join(f'`{label}`' for label in family.labels)} | {family.help} |"
        for family in PROCESS_FAMILIES
    )
    return "\n".join(("| metric | labels | meaning |", "| --- | --- | --- |", *rows))


@pytest.mark.parametrize("table", [workspace_table(), process_table()], ids=["workspaces", "process"])
def test_page_lists_every_metric(table: str) -> None:
    assert table in PAGE, f"put this table on the page:\n{table}"


@pytest.mark.parametrize("values", [PARTS, events.DEAD_CATEGORIES, [one.replace(" ", "_") for one in RETRIES]])
def test_page_explains_label_values(values: list[str]) -> None:
    assert [value for value in values if f"`{value}`" not in PAGE] == []
