"""The mock backend: a template, filled."""

import pytest

from molecule_connect import create_backend
from molecule_connect.testing import check_backend, make_request
from molecule_connect_mock import MockBackend


@pytest.mark.parametrize(
    ("reply", "text", "answer"),
    [
        ("echo: %s", "hello", "echo: hello"),
        ("%s, %s!", "ho", "ho, ho!"),
        ("100 % of %d: %s%%", "it", "100 % of %d: it%%"),
        ("always this", "hello", "always this"),
        ("<%s>", "%s", "<%s>"),
    ],
)
async def test_replaces_markers_and_keeps_other_percents(reply: str, text: str, answer: str) -> None:
    response = await MockBackend(reply=reply).handle_a2a(make_request(text))

    assert response.text == answer


async def test_by_name_it_echoes_unless_told_otherwise() -> None:
    plain = await create_backend("mock").handle_a2a(make_request("ping"))
    chosen = await create_backend("mock", {"reply": "pong: %s"}).handle_a2a(make_request("ping"))

    assert (plain.text, chosen.text) == ("echo: ping", "pong: ping")


async def test_mock_passes_check_backend() -> None:
    await check_backend("mock")
