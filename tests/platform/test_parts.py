from typing import Any

import pytest

from molecule_connect.models import DataPart, FilePart, TextPart
from molecule_connect.platform.parts import MOST_PARTS, fingerprint, read_part, read_parts

FILE = FilePart(uri="platform-pending:ws/F1", name="alpha.txt", mime_type="text/plain", size=12)


@pytest.mark.parametrize("part", [{"kind": "text", "text": "hi"}, {"type": "text", "text": "hi"}, {"text": "hi"}, "hi"])
def test_text_parts_of_all_kinds(part: Any) -> None:
    assert read_part(part) == TextPart("hi")


@pytest.mark.parametrize(
    "part",
    [
        {"kind": "file", "file": {"uri": FILE.uri, "name": "alpha.txt", "mimeType": "text/plain", "size": 12}},
        {"type": "file", "file": {"uri": FILE.uri, "name": "alpha.txt", "mime_type": "text/plain", "size": 12}},
        {"kind": "file", "uri": FILE.uri, "name": "alpha.txt", "mime_type": "text/plain", "size": 12},
        {"file": {"fileWithUri": FILE.uri, "name": "alpha.txt", "mimeType": "text/plain", "size": 12}},
        {"url": FILE.uri, "filename": "alpha.txt", "mediaType": "text/plain", "size": 12},
        {"kind": "image", "file": {"uri": FILE.uri, "name": "alpha.txt", "mimeType": "text/plain", "size": 12}},
        {"kind": "audio", "uri": FILE.uri, "name": "alpha.txt", "mimeType": "text/plain", "size": 12},
        {"kind": "video", "uri": FILE.uri, "name": "alpha.txt", "mimeType": "text/plain", "size": 12},
    ],
)
def test_a_file_is_read_in_every_shape(part: Any) -> None:
    assert read_part(part) == FILE


@pytest.mark.parametrize(
    "part",
    [
        {"kind": "file", "file": {"bytes": "aGk=", "mimeType": "text/plain"}},
        {"file": {"fileWithBytes": "aGk=", "mimeType": "text/plain"}},
        {"raw": "aGk=", "mediaType": "text/plain"},
    ],
)
def test_inline_bytes_become_a_data_uri(part: Any) -> None:
    assert read_part(part) == FilePart(uri="data:text/plain;base64,aGk=", mime_type="text/plain")


@pytest.mark.parametrize(
    "part",
    [
        {"kind": "poll", "question": "tea?", "text": "or coffee"},
        {"kind": "file", "name": "without an address"},
        {"kind": "text", "text": None},
        {"kind": "text", "text": 5},
        ["nested"],
        5,
        True,
    ],
)
def test_what_fits_no_shape_is_kept_whole(part: Any) -> None:
    assert read_part(part) == DataPart(part)


def test_data_is_unwrapped() -> None:
    assert read_part({"kind": "data", "data": {"a": [1]}}) == DataPart({"a": [1]})
    assert read_part({"data": None}) == DataPart(None)


def test_older_content_is_read() -> None:
    assert read_parts("hi") == (TextPart("hi"),)
    assert read_parts([{"type": "text", "text": "a"}, "b", None]) == (TextPart("a"), TextPart("b"))
    assert read_parts(None) == read_parts("") == read_parts([]) == ()


def test_invalid_size_is_none() -> None:
    sizes = [read_part({"uri": "u", "size": size}) for size in ("12", True, -1, 1.5, None, 2**70)]

    assert sizes == [FilePart(uri="u")] * 6


def test_unpaired_surrogates_are_replaced() -> None:
    part = read_part({"kind": "text", "text": "a\ud800b"})

    assert isinstance(part, TextPart)
    assert part.text.encode() == "a\ufffdb".encode()


def test_fingerprints_differ_for_different_parts() -> None:
    same = [
        fingerprint([TextPart("hi"), DataPart({"a": 1, "b": 2})]),
        fingerprint([TextPart("hi"), DataPart({"b": 2, "a": 1})]),
    ]
    others = [
        fingerprint([]),
        fingerprint([TextPart("hi")]),
        fingerprint([TextPart("h"), TextPart("i")]),
        fingerprint([DataPart("hi")]),
        fingerprint([FILE]),
        fingerprint([FilePart(uri=FILE.uri, name="beta.txt")]),
    ]

    assert same[0] == same[1]
    assert len({same[0], *others}) == len(others) + 1


def test_parts_after_5000_become_one_part() -> None:
    numbers = list(range(MOST_PARTS))
    assert read_parts(numbers) == tuple(DataPart(number) for number in numbers)
    parts = read_parts([*numbers, "a", {"text": "b"}, None])
    assert parts[:-1] == read_parts(numbers)
    assert parts[-1] == DataPart(["a", {"text": "b"}, None])
