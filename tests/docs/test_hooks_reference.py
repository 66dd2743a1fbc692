"""``docs/hooks.md`` and the code say the same."""

import inspect
import re
from pathlib import Path

import molecule_connect
from molecule_connect.plugins import entry_points, hooks, hookspecs, implementations

PAGE = (Path(__file__).parents[2] / "docs" / "hooks.md").read_text()
SPECS = {
    name: tuple(inspect.signature(function).parameters)
    for name, function in inspect.getmembers(hookspecs, inspect.isfunction)
    if hasattr(function, f"{hookspecs.PROJECT}_spec")
}


def test_every_hook_has_its_heading_and_parameters() -> None:
    headings = dict(re.findall(r"^## `(\w+)\(([\w, ]*)\)`$", PAGE, re.MULTILINE))

    assert {name: tuple(filter(None, given.split(", "))) for name, given in headings.items()} == SPECS


def test_the_host_gives_what_the_specs_say() -> None:
    assert dict(implementations.ARGUMENTS) == SPECS


def test_docstring_mentions_every_hook() -> None:
    assert all(inspect.getdoc(getattr(hookspecs, name)) for name in SPECS)


def test_lists_exactly_the_public_names() -> None:
    section = PAGE.partition("## Public names")[2]
    listed = set(re.findall(r"`(\w+)`", section))

    assert listed == set(molecule_connect.__all__)
    assert "`molecule_connect.testing.make_request`" in section


def test_groups_and_limits_match_the_code() -> None:
    assert set(re.findall(r"^\| `([\w.]+)` \|", PAGE, re.MULTILINE)) == {
        entry_points.BACKENDS,
        entry_points.MIDDLEWARE,
        entry_points.COMMANDS,
        entry_points.OBSERVERS,
        entry_points.MIRRORS,
    }
    assert f"{hooks.CHECK_SECONDS:g} seconds" in PAGE
    assert f"{hooks.CLOSE_SECONDS:g} seconds" in PAGE
