"""``molecule connect --http``: the address, and the plugin that serves it."""

from pathlib import Path

import pytest

from molecule_connect.cli.observing import parse_listen_address
from molecule_connect.errors import ConfigError

from .conftest import Molecule


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:9090", ("127.0.0.1", 9090)),
        (":9090", ("127.0.0.1", 9090)),
        ("[::1]:9090", ("::1", 9090)),
        ("[::]:0", ("::", 0)),
        ("0.0.0.0:9090", ("0.0.0.0", 9090)),
        ("localhost:65535", ("localhost", 65535)),
    ],
)
def test_listen_addresses_are_parsed(text: str, expected: tuple[str, int]) -> None:
    assert parse_listen_address(text) == expected


@pytest.mark.parametrize(
    "text", ["", "9090", "127.0.0.1", "127.0.0.1:", "::1:9090", "::1", "[::1]", ":65536", ":-1", ":9o", ":٣", "a:b:1"]
)
def test_invalid_listen_addresses_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--http") as caught:
        parse_listen_address(text)
    assert "[::1]:9090" in caught.value.hint


def test_dry_run_checks_the_listen_address(molecule: Molecule, tmp_path: Path, token: str) -> None:
    arguments = ("connect", "ws_1", "--backend", "parrot", "--dry-run", "--state-dir", str(tmp_path / "state"))
    result = molecule(*arguments, "--http", "nonsense", MOLECULE_WORKSPACE_TOKEN=token)
    assert result.code == 2
    assert "--http 'nonsense' is not an address with a port" in result.stderr
    assert molecule(*arguments, MOLECULE_WORKSPACE_TOKEN=token, MOLECULE_HTTP=":0").code == 0
