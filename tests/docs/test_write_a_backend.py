"""``docs/write-a-backend.md`` works as it stands: its blocks are laid out and used."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tests.docs.pages import block, lay_out, page

from molecule_connect import Response, create_backend, installed_backends, testing
from molecule_connect.cli.new_backend import distribution_files
from molecule_connect.plugins.options import describe
from molecule_connect.process import program
from molecule_connect.testing import checks, make_request

PAGE = page("write-a-backend.md")
PROJECT = block(PAGE, "toml", "[build-system]")


@pytest.fixture
def search_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The page's distribution as an installation would lay it out."""
    package = lay_out(tmp_path, PROJECT, block(PAGE, "python", '"""Answer A2A messages in capitals.'))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, package, raising=False)
    return [str(tmp_path)]


async def test_backend_on_the_page_works(search_path: list[str]) -> None:
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

    assert (field.key, field.default, field.help) == ("suffix", "!", "text to append to each reply")


def test_the_pages_tests_pass(search_path: list[str], tmp_path: Path) -> None:
    files = distribution_files("shout")
    (tmp_path / "pyproject.toml").write_text(files["pyproject.toml"])
    (tmp_path / "test_shout.py").write_text(block(PAGE, "python", "from molecule_connect.testing"))

    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "3 passed" in ran.stdout, ran.stdout + ran.stderr


def test_the_page_shows_what_the_command_writes() -> None:
    files = distribution_files("shout")
    shown, written = tomllib.loads(PROJECT), tomllib.loads(files["pyproject.toml"])

    for key in shown["project"].keys() - {"description"}:
        assert shown["project"][key] == written["project"][key]
    assert shown["build-system"] == written["build-system"]
    table = PAGE.partition("| file | |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([\w./]+)`", table)) == set(files)


def test_page_mentions_every_name_of_testing() -> None:
    kit = PAGE.partition("## Run programs")[2].partition("## If your plugin")[0]

    for name in (*program.__all__, *testing.__all__):
        assert name in {"Running", "require_posix"} or re.search(rf"\b{name}\b", kit), name


def test_every_check_is_told_of() -> None:
    table = PAGE.partition("## What check_backend checks")[2].partition("`seconds=60`")[0]
    told = [re.sub(r"[,']", "", row) for row in re.findall(r"^\| (?!it )(?!---)([^|]+?) \|", table, re.MULTILINE)]

    assert told == [check.__name__.strip("_").replace("_", " ") for check in checks.ALL]


def test_all_python_blocks_on_the_page_parse() -> None:
    for text in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        indented = text.startswith("    ")
        compile(f"class Plugin:\n{text}" if indented else text, "page", "exec")
