"""What the environment asks of the server."""

import pytest

from molecule_connect import ConfigError
from molecule_connect_mcp.flags import Flags, read_flags


def test_defaults_enable_inbox_and_heartbeat() -> None:
    assert read_flags({}) == Flags(heartbeat=True, reads=True, hold=300.0)


def test_every_variable_is_read() -> None:
    environ = {
        "MOLECULE_MCP_DISABLE_HEARTBEAT": "1",
        "MOLECULE_MCP_DISABLE_INBOX": "True",
        "MOLECULE_INBOX_LEASE_SECS": "30",
    }
    assert read_flags(environ) == Flags(heartbeat=False, reads=False, hold=30.0)
    assert read_flags({"MOLECULE_MCP_DISABLE_INBOX": "0"}).reads


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MOLECULE_MCP_DISABLE_INBOX", "maybe"),
        ("MOLECULE_INBOX_LEASE_SECS", "soon"),
        ("MOLECULE_INBOX_LEASE_SECS", "0"),
        ("MOLECULE_INBOX_LEASE_SECS", "nan"),
    ],
)
def test_invalid_values_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        read_flags({name: value})
