"""What the values say of themselves."""

import pytest

from molecule_connect.models import FilePart


@pytest.mark.parametrize("uri", ["https://h/x", "platform-pending:ws/1", "platform://1", "s3://bucket/x"])
def test_an_address_elsewhere_is_an_address(uri: str) -> None:
    assert FilePart(uri=uri).address == uri


@pytest.mark.parametrize(
    "uri",
    ["", "data:,x", "file:///etc/passwd", "FILE:x", " file:///x", "/etc/passwd", "../x", "~/x", "x", "C:\\x", "//h/x"],
)
def test_rejects_addresses_that_look_like_paths(uri: str) -> None:
    assert FilePart(uri=uri).address == ""
