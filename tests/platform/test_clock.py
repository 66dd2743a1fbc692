from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from molecule_connect.platform.clock import PlatformClock, format_time, parse_http_date, parse_time

SECOND = 1_000_000


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:01.5Z", 1_500_000),
        ("2026-05-05T10:00:00.123456Z", 1_777_975_200_123_456),
        ("2026-05-05T10:00:00.123456789Z", 1_777_975_200_123_456),
        ("2026-05-05T12:00:00.123456+02:00", 1_777_975_200_123_456),
        ("2026-05-05T08:30:00.123456-01:30", 1_777_975_200_123_456),
        ("2026-05-05 10:00:00.1+00", 1_777_975_200_100_000),
        ("2026-05-05t10:00:00z", 1_777_975_200_000_000),
        ("1969-12-31T23:59:59.999999Z", -1),
    ],
)
def test_times_are_truncated_to_microseconds(text: str, microseconds: int) -> None:
    assert parse_time(text) == microseconds


@pytest.mark.parametrize(
    "junk", [None, "", "yesterday", 5, 5.5, "2026-13-01T00:00:00Z", "2026-01-01", "2026-01-01T25:00:00Z", "٢٠٢٦", {}]
)
def test_what_is_no_time_is_none(junk: object) -> None:
    assert parse_time(junk) is None


@given(st.datetimes(timezones=st.just(UTC)))
def test_time_survives_formatting_and_parsing(moment: datetime) -> None:
    microseconds = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // (moment.resolution)

    assert parse_time(format_time(microseconds)) == microseconds


def test_format_time_has_six_digits_and_z() -> None:
    assert format_time(1_777_975_200_000_000) == "2026-05-05T10:00:00.000000Z"


def test_parses_http_dates_and_ignores_junk() -> None:
    assert parse_http_date("Thu, 01 Jan 1970 00:00:01 GMT") == SECOND
    assert parse_http_date("soon") is None
    assert parse_http_date(None) is None


def test_platform_clock_never_goes_back() -> None:
    now = [100.0]
    clock = PlatformClock(lambda: now[0])
    assert clock.now() is None

    clock.record(50 * SECOND)
    now[0] += 2
    assert clock.now() == 52 * SECOND
    clock.record(51 * SECOND)
    assert clock.now() == 52 * SECOND
    clock.record(60 * SECOND)
    assert clock.now() == 60 * SECOND
