"""``docs/write-a-backend.md`` works as it stands: its blocks are laid out and used."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from molecule_connect import Response, create_backend, installed_backends
from molecule_connect.plugins.options import describe
from molecule_connect.testing import make_request

PAGE = (Path(__file__).parents[2] / "docs" / "write-a-backend.md").read_text()


def block(language: str, beginning: str) -> str:
    """The first block of a language whose text begins so."""
    blocks: list[str] = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return next(text for text in blocks if text.startswith(beginning))


@pytest.fixture
def search_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The page's distribution as an installation would lay it out."""
    project = tomllib.loads(block("toml", "[build-system]"))["project"]
    package = tmp_path / "molecule_connect_shout"
    package.mkdir()
    (package / "__init__.py").write_text(block("python", '"""Answer A2A messages in capitals.'))
    info = tmp_path / "molecule_connect_shout-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    ((group, entries),) = project["entry-points"].items()
    (info / "entry_points.txt").write_text(f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    return [str(tmp_path)]


async def test_the_pages_backend_is_found_and_answers_as_the_page_says(search_path: list[str]) -> None:
    (shown,) = installed_backends(check=True, path=search_path)
    answers: list[Response] = [
        await create_backend("shout", options, path=search_path).handle_a2a(make_request("hi"))
        for options in ({}, {"suffix": "?"})
    ]

    assert f"{shown.name}  {shown.origin}  {shown.problem or 'ok'}" in PAGE
    assert [f"\n{answer.text}\n" in PAGE for answer in answers] == [True, True]
    assert [answer.text for answer in answers] == ["HI!", "HI?"]


def test_its_options_are_described(search_path: list[str]) -> None:
    create_backend("shout", path=search_path)

    (field,) = describe(sys.modules["molecule_connect_shout"].ShoutBackend) or ()

    assert (field.key, field.default, field.help) == ("suffix", "!", "text put after each answer")


def test_every_block_of_python_on_the_page_can_be_read() -> None:
    for text in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        indented = text.startswith("    ")
        compile(f"class Plugin:\n{text}" if indented else text, "page", "exec")
