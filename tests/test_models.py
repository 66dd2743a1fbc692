"""What the values say of themselves."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from molecule_connect.models import FilePart, hashed_id


@pytest.mark.parametrize("uri", ["https://h/x", "platform-pending:ws/1", "platform://1", "s3://bucket/x"])
def test_an_address_elsewhere_is_an_address(uri: str) -> None:
    assert FilePart(uri=uri).address == uri


@pytest.mark.parametrize(
    "uri",
    ["", "data:,x", "file:///etc/passwd", "FILE:x", " file:///x", "/etc/passwd", "../x", "~/x", "x", "C:\\x", "//h/x"],
)
def test_rejects_addresses_that_look_like_paths(uri: str) -> None:
    assert FilePart(uri=uri).address == ""


@given(st.uuids(), st.text(st.characters(exclude_categories=["Cs"])))
def test_hashed_id_is_a_uuid_of_version_5(namespace: uuid.UUID, name: str) -> None:
    assert hashed_id(namespace.bytes, name) == str(uuid.uuid5(namespace, name))
