"""The trace context that the sender of a message chose."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from molecule_connect.traces import sent_trace

VALID = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def envelope(value: object, key: str = "traceparent") -> str:
    message = {"role": "user", "parts": [], "metadata": {key: value}}
    return json.dumps({"jsonrpc": "2.0", "method": "message/send", "params": {"message": message}})


def test_valid_context_is_read_from_every_envelope() -> None:
    message = {"role": "user", "metadata": {"traceparent": VALID}}
    assert sent_trace(envelope(VALID)) == VALID
    assert sent_trace(json.dumps({"message": message})) == VALID
    assert sent_trace(json.dumps(message)) == VALID


@pytest.mark.parametrize(
    "value",
    [
        VALID.upper(),
        VALID.replace("00-", "01-", 1),
        VALID.replace("00-", "ff-", 1),
        f"{VALID}-more",
        f"{VALID}\n",
        f" {VALID}",
        VALID[:-1],
        VALID.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32),
        VALID.replace("00f067aa0ba902b7", "0" * 16),
        VALID.replace("01", "٠١"),
        "",
        None,
        7,
        [VALID],
        {"traceparent": VALID},
    ],
)
def test_invalid_context_is_ignored(value: object) -> None:
    assert sent_trace(envelope(value)) == ""


@pytest.mark.parametrize(
    "raw",
    [
        None,
        "{}",
        envelope(VALID, "tracestate"),
        envelope({"traceparent": VALID}, "other"),
        json.dumps({"params": {"message": {"parts": [{"data": {"traceparent": VALID}}]}}}),
        json.dumps({"params": {"message": {"metadata": [["traceparent", VALID]]}}}),
        json.dumps({"params": [envelope(VALID)]}),
        json.dumps([{"traceparent": VALID}]),
        '{"traceparent"',
        '["traceparent",' + "[" * 100_000,
    ],
)
def test_other_places_are_ignored(raw: str | None) -> None:
    assert sent_trace(raw) == ""


@given(st.text() | st.from_regex(r"0[01]-[0-9a-fA-F]{31,33}-[0-9a-f]{16}-[0-9a-f]{2}\n?", fullmatch=True))
def test_no_text_passes_that_is_not_a_context(value: str) -> None:
    found = sent_trace(envelope(value))
    assert found in ("", value)
    assert not found or re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", found, re.ASCII)
