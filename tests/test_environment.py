"""Flags before the environment, and an empty variable is none."""

from pathlib import Path

import pytest

from molecule_connect.environment import api_url, token_source, workspace_id
from molecule_connect.errors import ConfigError


@pytest.mark.parametrize(
    ("flag", "group", "environ", "found"),
    [
        ("f", "g", {"MOLECULE_API_URL": "m"}, "f"),
        (None, "g", {"MOLECULE_API_URL": "m"}, "g"),
        (None, None, {"MOLECULE_API_URL": "m", "PLATFORM_URL": "p"}, "m"),
        (None, None, {"MOLECULE_API_URL": "", "MOLECULE_PLATFORM_URL": "mp", "PLATFORM_URL": "p"}, "mp"),
        (None, None, {"PLATFORM_URL": "p"}, "p"),
        (None, None, {}, "http://localhost:8080"),
    ],
)
def test_where_the_platform_is(flag: str | None, group: str | None, environ: dict[str, str], found: str) -> None:
    assert api_url(flag, group, environ) == found


def test_the_argument_names_the_workspace_before_the_variable() -> None:
    assert workspace_id("a", {"WORKSPACE_ID": "b"}) == "a"
    assert workspace_id(None, {"WORKSPACE_ID": "b"}) == "b"


def test_an_empty_argument_is_not_replaced_by_the_variable() -> None:
    with pytest.raises(ConfigError, match="no workspace id"):
        workspace_id("", {"WORKSPACE_ID": "b"})


def test_token_sources_come_in_their_order(tmp_path: Path) -> None:
    for name in ("flag", "variable"):
        (tmp_path / name).write_text("t0k3n\n")
        (tmp_path / name).chmod(0o600)
    environ = {"MOLECULE_WORKSPACE_TOKEN": "direct", "MOLECULE_WORKSPACE_TOKEN_FILE": str(tmp_path / "variable")}

    first = token_source("given", tmp_path / "flag", environ)
    second = token_source(None, tmp_path / "flag", environ)
    third = token_source(None, None, environ)
    fourth = token_source(None, None, {**environ, "MOLECULE_WORKSPACE_TOKEN": ""})

    found = [source and (source.name, source.token, source.file) for source in (first, second, third, fourth)]
    assert found == [
        ("--token", "given", None),
        ("--token-file", None, tmp_path / "flag"),
        ("MOLECULE_WORKSPACE_TOKEN", "direct", None),
        ("MOLECULE_WORKSPACE_TOKEN_FILE", None, tmp_path / "variable"),
    ]
    assert token_source(None, None, {}) is None


def test_no_repr_of_a_source_holds_the_token() -> None:
    assert "t0k3n" not in repr(token_source("t0k3n", None, {}))
