import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from molecule_connect.platform.feed_pages import MalformedPageError, RawRow, read_rows

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
DEEP = "[" * 200_000 + "]" * 200_000


def rows(page: str) -> list[RawRow | None]:
    return list(read_rows(page))


@given(st.lists(JSON, max_size=5), st.sampled_from([None, 2]))
def test_reads_pages_like_json(page: list[Any], indent: int | None) -> None:
    found = rows(json.dumps(page, indent=indent))

    assert [row.fields if row else None for row in found] == [item if isinstance(item, dict) else None for item in page]


@given(st.dictionaries(st.text(), JSON, max_size=4), JSON)
def test_text_of_member_is_exact(fields: dict[str, Any], body: Any) -> None:
    text = json.dumps(body, indent=1)
    page = f"[{json.dumps(fields | {'request_body': 0})[:-2]} {text} }}]"
    row = rows(page)[0]

    assert row is not None
    assert row.text_of("request_body") == text
    assert row.text == page[1:-1]


def test_numbers_keep_every_digit_in_the_text() -> None:
    body = '{"big":12345678901234567890123,"exact":1.10,"tiny":1e-400}'
    row = rows(f'[{{"id":"r","request_body":{body}}}]')[0]

    assert row is not None
    assert row.text_of("request_body") == body


def test_quoted_member_is_not_mistaken() -> None:
    inner = {"request_body": 1, "text": '"request_body": 2'}
    page = json.dumps([{"id": "r", "other": inner, "request_body": {"a": 3}}])
    row = rows(page)[0]

    assert row is not None
    assert row.text_of("request_body") == '{"a": 3}'
    assert row.text_of("absent") is None


def test_huge_number_does_not_spoil_page() -> None:
    found = rows('[{"id":"a","n":' + "9" * 10_000 + '},{"id":"b"}]')

    assert [row.fields["id"] for row in found if row] == ["a", "b"]


def test_deep_row_does_not_spoil_page() -> None:
    found = rows(f'[{{"id":"a"}}, {{"id":"b", "request_body":{DEEP}, "seq":1}}, {DEEP}, {{"id":"c"}}]')

    assert [row and (row.fields["id"], row.deep) for row in found] == [("a", False), ("b", True), None, ("c", False)]
    assert found[1] is not None
    assert found[1].fields == {"id": "b", "seq": 1}
    assert found[1].text_of("request_body") == DEEP


def test_null_is_an_empty_page() -> None:
    assert rows("null") == rows(" [ ] ") == []


@pytest.mark.parametrize("page", ["<html></html>", '{"error":"x"}', '[{"id":"a"} {"id":"b"}]', "[nonsense]"])
def test_what_is_no_list_is_refused(page: str) -> None:
    with pytest.raises(MalformedPageError) as caught:
        rows(page)

    assert not caught.value.cut


@given(st.data())
def test_truncated_page_raises(data: st.DataObject) -> None:
    page = json.dumps([{"id": "a", "text": 'quote " and \\ more', "n": [1, {"x": None}]}, {"id": "b"}])
    end = data.draw(st.integers(0, len(page) - 1))

    with pytest.raises(MalformedPageError):
        rows(page[:end])
