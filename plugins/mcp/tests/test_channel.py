"""Missing conditions of channel push are reported."""

import json
from pathlib import Path

import pytest

from molecule_connect_mcp.channel import host_command, missing_flags, missing_for_host, missing_permission

GOOD = ["claude", "--dangerously-load-development-channels", "server:molecule"]


def test_session_started_with_the_channel_lacks_nothing() -> None:
    assert missing_for_host("claude-code 2.1.197", GOOD, {}, managed=[]) == []
    assert list(missing_flags(["claude", "--channels=plugin:molecule@x"])) == []


@pytest.mark.parametrize(
    ("host", "command", "expected"),
    [
        ("claude-code 2.1.197", ["claude"], "started without a channel"),
        ("claude-code 2.1.79", GOOD, "too old"),
        ("claude-code 2.1.197", [*GOOD, "-p"], "without a terminal"),
        ("Codex 1.0", [], "not known to show channels"),
        ("", [], "this host is not known"),
    ],
)
def test_missing_channel_conditions_are_reported(host: str, command: list[str], expected: str) -> None:
    (problem,) = missing_for_host(host, command, {}, managed=[])
    assert expected in problem


def test_unknown_command_line_reports_nothing() -> None:
    assert missing_for_host("claude-code 2.1.197", [], {}, managed=[]) == []


def test_api_key_instead_of_login_reported() -> None:
    (problem,) = missing_for_host("claude-code 2.1.197", GOOD, {"ANTHROPIC_API_KEY": "secret"}, managed=[])
    assert "ANTHROPIC_API_KEY is set" in problem
    assert "secret" not in problem


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"channelsEnabled": True}, []),
        ({"channelsEnabled": True, "allowedChannelPlugins": [{"marketplace": "m", "plugin": "p"}]}, []),
        ({"channelsEnabled": True, "allowedChannelPlugins": ["p"]}, ["allows nothing"]),
        ({"channelsEnabled": False}, ["channelsEnabled"]),
        ({}, ["channelsEnabled"]),
        ([], []),
    ],
)
def test_managed_settings_are_checked(tmp_path: Path, settings: object, expected: list[str]) -> None:
    path = tmp_path / "managed-settings.json"
    path.write_text(json.dumps(settings))
    problems = list(missing_permission([tmp_path / "none.json", path]))
    assert len(problems) == len(expected)
    assert all(word in problem for word, problem in zip(expected, problems, strict=True))


def test_parent_process_command_is_found() -> None:
    assert host_command()
