"""Bounds and formats of settings."""

from typing import Any

import pytest

from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.config.values import parse_size
from molecule_connect.errors import ConfigError
from molecule_connect.models import canonical_id

FLOATS = ("poll_interval", "heartbeat_interval", "safety_interval", "since_secs", "grace", "max_cost_per_day")


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e300, 1e10, -1.0])
def test_refuses_numbers_out_of_range(name: str, value: float) -> None:
    given: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError, match=name.replace("_", ".")) as caught:
        WorkspaceSettings(workspace_id="ws_1", backend="mock", **given).check()
    assert caught.value.hint


@pytest.mark.parametrize("name", FLOATS)
def test_a_sane_number_is_taken(name: str) -> None:
    given: dict[str, Any] = {name: 60.0}
    settings = WorkspaceSettings(workspace_id="ws_1", backend="mock", **given)
    assert settings.check() is settings


@pytest.mark.parametrize(
    ("text", "size"),
    [("1GiB", 1 << 30), ("500M", 500 << 20), ("2 mb", 2 << 20), ("3k", 3 << 10), ("1T", 1 << 40), ("7", 7), ("7B", 7)],
)
def test_size_is_bytes_or_has_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1", "1.5G", "1Gi iB", "9" * 5000, "1E9", "0x10", "\u0663"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size") as caught:
        parse_size(text)
    assert "1GiB" in caught.value.hint


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("DC98486F-8E1E-44FC-94C0-BA89C005241B", "dc98486f-8e1e-44fc-94c0-ba89c005241b"),
        (" dc98486f-8E1E-44fc-94c0-ba89c005241b\n", "dc98486f-8e1e-44fc-94c0-ba89c005241b"),
        (" WS_1\t", "WS_1"),
        ("DC98486F8E1E44FC94C0BA89C005241B", "DC98486F8E1E44FC94C0BA89C005241B"),
        ("{DC98486F-8E1E-44FC-94C0-BA89C005241B}", "{DC98486F-8E1E-44FC-94C0-BA89C005241B}"),
        ("DC98486F-8E1E-44FC-94C0-BA89C005241B-2", "DC98486F-8E1E-44FC-94C0-BA89C005241B-2"),
    ],
)
def test_only_uuids_are_folded_to_lower_case(given: str, expected: str) -> None:
    assert canonical_id(given) == expected


def test_repr_hides_credentials_of_an_address() -> None:
    settings = WorkspaceSettings(workspace_id="ws_1", api_url="https://user:hunter2@platform.example")
    assert "hunter2" not in repr(settings)
    assert "platform.example" in repr(settings)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no way to http://user:pw@proxy:3128 (407)", "no way to http://***@proxy:3128 (407)"),
        ("'https://token@a', socks5://u:p@b/x", "'https://***@a', socks5://***@b/x"),
        ("see https://example.com/@user and a@b.example", "see https://example.com/@user and a@b.example"),
    ],
)
def test_errors_leave_the_credentials_of_urls_out(text: str, shown: str) -> None:
    error = ConfigError(text, hint=text)
    assert (str(error), error.hint) == (shown, shown)
