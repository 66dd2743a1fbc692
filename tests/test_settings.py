"""What a connection cannot be asked for."""

from typing import Any

import pytest

from molecule_connect.errors import ConfigError
from molecule_connect.settings import ConnectionSettings, canonical_id

FLOATS = ("poll_interval", "heartbeat_interval", "safety_interval", "since_secs", "grace", "max_cost_per_day")


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e300, 1e10, -1.0])
def test_a_number_that_no_clock_can_wait_for_is_refused(name: str, value: float) -> None:
    given: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError, match=name.replace("_", ".")) as caught:
        ConnectionSettings(workspace_id="ws_1", backend="mock", **given).check()
    assert caught.value.hint


@pytest.mark.parametrize("name", FLOATS)
def test_a_sane_number_is_taken(name: str) -> None:
    given: dict[str, Any] = {name: 60.0}
    settings = ConnectionSettings(workspace_id="ws_1", backend="mock", **given)
    assert settings.check() is settings


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


def test_no_repr_shows_the_credentials_of_an_address() -> None:
    settings = ConnectionSettings(workspace_id="ws_1", api_url="https://user:hunter2@platform.example")
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
