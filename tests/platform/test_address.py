import traceback

import pytest

from molecule_connect.errors import ConfigError
from molecule_connect.platform.address import parse_address


@pytest.mark.parametrize(
    ("api_url", "origin", "prefix"),
    [
        ("https://platform.example", "https://platform.example", ""),
        ("https://platform.example/", "https://platform.example", ""),
        ("https://Platform.Example:443/api/v1/", "https://platform.example", "/api/v1"),
        ("https://platform.example:8443", "https://platform.example:8443", ""),
        ("http://localhost:8080", "http://localhost:8080", ""),
        ("http://127.0.0.1:80", "http://127.0.0.1", ""),
        ("http://[::1]:8080/", "http://[::1]:8080", ""),
        (" https://münchen.example ", "https://xn--mnchen-3ya.example", ""),
    ],
)
def test_origin_and_path_are_told_apart(api_url: str, origin: str, prefix: str) -> None:
    address = parse_address(api_url)

    assert (address.origin, address.prefix) == (origin, prefix)
    assert address.url("/x") == f"{origin}{prefix}/x"


@pytest.mark.parametrize(
    "api_url",
    [
        "",
        "platform.example",
        "ftp://platform.example",
        "https://",
        "https://platform.example:port",
        "https://a b",
        "https://a..b\u200d",
        "https://a..b",
        f"https://{'a' * 64}.example",
        "https://a|b",
        "https://[::g]",
        "https://user:hunter2@platform.example",
        "user:hunter2@platform.example",
        "https:/user:hunter2@platform.example",
        "ftp://user:hunter2@platform.example",
        "https://user:hunter2@platform.example:port",
        "https://user:hunt/er2@platform.example",
        "https://platform.example\n",
        "https://plat\nform.example",
        "https://platform.example\r",
        "https://platform.example/?token=hunter2",
        "https://platform.example/#x",
    ],
)
def test_invalid_addresses_are_rejected_without_secrets(api_url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_address(api_url)

    assert caught.value.hint
    assert "er2" not in "".join(traceback.format_exception(caught.value))


def test_plain_http_needs_loopback_or_insecure() -> None:
    with pytest.raises(ConfigError, match="clear text"):
        parse_address("http://platform.example")

    assert parse_address("http://platform.example", insecure=True).origin == "http://platform.example"
    assert parse_address("http://127.8.8.8").is_loopback
    assert not parse_address("http://localhost.example", insecure=True).is_loopback


@pytest.mark.parametrize(
    ("addresses", "is_loopback"),
    [(["127.0.0.1", "::1"], True), (["127.0.0.1", "10.0.0.1"], False), (["93.184.215.14"], False), ([], False)],
)
def test_names_below_localhost_are_resolved(addresses: list[str], is_loopback: bool) -> None:
    asked: list[str] = []

    def resolve(host: str) -> list[str]:
        asked.append(host)
        return addresses

    parsed = parse_address("http://app.localhost:8080", insecure=True, resolve=resolve)
    assert (parsed.is_loopback, asked) == (is_loopback, ["app.localhost"])
    if not is_loopback:
        with pytest.raises(ConfigError, match="clear text"):
            parse_address("http://app.localhost:8080", resolve=resolve)


def test_no_other_name_is_looked_up() -> None:
    for url in ("http://localhost", "https://platform.example", "http://127.0.0.1", "https://localhost.example"):
        parse_address(url, resolve=lambda host: pytest.fail(f"{host} was looked up"))
