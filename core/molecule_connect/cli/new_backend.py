"""``molecule new-backend``: create a distribution for a new backend. See ``docs/write-a-backend.md``."""

import re
import shlex
import shutil
import sys
from pathlib import Path
from string import Template

import click

from molecule_connect import __version__
from molecule_connect.errors import ConfigError
from molecule_connect.plugins.entry_points import NAME

_PREFIX = "molecule-connect-"
# The backend in the core.
_INBOX = "inbox"
# The first-party distributions.
_TAKEN = ("claude-code", "exec", "mcp", "mock", "sandbox")


@click.command("new-backend")
@click.argument("name")
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    metavar="DIR",
    help="Where to create its folder. [default: the current folder]",
)
def new_backend(name: str, into: Path) -> None:
    """Create a folder molecule-connect-NAME with a working backend, its tests, and packaging metadata.

    \b
    molecule new-backend acme
    molecule new-backend acme --into ~/projects
    """
    _check_name(name)
    folder = into / _distribution_name(name)
    _write(folder, distribution_files(name))
    click.echo(_next_steps(name, folder))


def _write(folder: Path, texts: dict[str, str]) -> None:
    try:
        folder.mkdir(parents=True)
        for path, text in texts.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except FileExistsError as error:
        raise ConfigError(
            f"{error.filename} exists already; nothing was overwritten",
            hint="choose another name, or pass another folder with --into DIR",
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{error.filename or folder} cannot be written: {error.strerror}", hint="choose another folder with --into"
        ) from error


def _next_steps(name: str, folder: Path) -> str:
    python = _python()
    return "\n".join(
        [
            f"wrote {folder}",
            "next:",
            f"  cd {shlex.quote(str(folder))}",
            f'  {python} -m pip install -e ".[test]"',
            f"  {python} -m pytest",
            f'  molecule try {name} "hi"',
            f"then edit {folder.name.replace('-', '_')}/__init__.py, choose a license, and publish it:",
            f"  {python} -m pip install build twine",
            f"  {python} -m build",
            f"  {python} -m twine upload dist/*",
        ]
    )


def _python() -> str:
    """The command for this interpreter: ``python`` if that is in the same environment."""
    found = shutil.which("python")
    is_same = found is not None and Path(found).parent == Path(sys.executable).parent
    return "python" if is_same else shlex.quote(sys.executable)


def _check_name(name: str) -> None:
    """Raises ConfigError if a new backend can't have this name."""
    if name.startswith(_PREFIX) and NAME.match(name.removeprefix(_PREFIX)):
        raise ConfigError(
            f"{name!r} is a distribution's name, not a backend's",
            hint=f"use the name that operators will type: molecule new-backend {name.removeprefix(_PREFIX)}",
        )
    if not NAME.match(name) or name[-1] in "-_" or len(name) > 50:
        raise ConfigError(
            f"{name!r} cannot be the name of a backend",
            hint="use up to 50 of a-z 0-9 - _, with a letter or digit at both ends: molecule new-backend acme",
        )
    if name.replace("_", "-") in _TAKEN:
        raise ConfigError(f"{_PREFIX}{name.replace('_', '-')} exists already", hint="choose another name")
    if name == _INBOX:
        raise ConfigError(f"a backend {name!r} comes with molecule-connect", hint="choose another name")


def _distribution_name(name: str) -> str:
    """The name of the distribution, and of its folder."""
    return _PREFIX + re.sub(r"[-_]+", "-", name)


def distribution_files(name: str) -> dict[str, str]:
    """The text of each file, by its path in the distribution."""
    words = re.split(r"[-_]+", name)
    camel = "".join(word.capitalize() for word in words)
    major, minor, _ = __version__.split(".")
    given = {
        "name": name,
        "distribution": _distribution_name(name),
        "package": _distribution_name(name).replace("-", "_"),
        "cls": f"Backend{camel}" if camel[0].isdigit() else f"{camel}Backend",
        "core": f"molecule-connect>={major}.{minor},<{major}.{int(minor) + 1}",
        "tests": f"test_{'_'.join(words)}.py",
    }
    return {Template(path).substitute(given): Template(text).substitute(given) for path, text in _TEMPLATES.items()}


_PYPROJECT = """\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "$distribution"
version = "0.1.0"
description = "A molecule-connect backend that answers with the length of a message"
readme = "README.md"
requires-python = ">=3.11"
keywords = ["a2a", "agent", "molecule"]
dependencies = ["attrs>=25.3", "$core"]

[project.optional-dependencies]
test = ["pytest>=8", "pytest-asyncio>=1.3"]

[project.entry-points."molecule_connect.backends"]
$name = "$package:$cls"

[tool.hatch.build.targets.sdist]
only-include = ["$package", "tests"]

[tool.hatch.build.targets.wheel]
packages = ["$package"]

[tool.pytest.ini_options]
asyncio_mode = "auto"
asyncio_default_fixture_loop_scope = "function"

[tool.ruff]
line-length = 120

[tool.ruff.lint]
select = ["E", "F", "I"]
"""

_BACKEND = '''\
"""Answer A2A messages with their length."""

from typing import Annotated

import attrs
from molecule_connect import BackendError, Request, Response, hookimpl

__all__ = ["$cls"]


@attrs.frozen(eq=False, kw_only=True)
class $cls:
    """Count the characters of a message."""

    unit: Annotated[str, "the unit that is counted"] = "characters"

    @hookimpl
    async def handle_a2a(self, request: Request) -> Response:
        if not request.text:
            raise BackendError("there is no text to count", retryable=False)
        return Response.from_text(f"{len(request.text)} {self.unit}")
'''

_TESTS = """\
from molecule_connect.testing import check_backend, running


async def test_answers_with_the_length() -> None:
    async with running("$name", {"unit": "letters"}) as backend:
        response = await backend.ask("hi")

    assert response.text == "2 letters"


async def test_keeps_the_contract_of_a_backend() -> None:
    await check_backend("$name")
"""

_README = """\
# $distribution

A backend for [molecule-connect](https://pypi.org/project/molecule-connect/) that answers with the length of a message.

```console
$$ pip install $distribution
$$ molecule try $name "hi"
2 characters
$$ molecule connect ws_123 --backend $name
```

| option | default | |
| --- | --- | --- |
| `unit` | `characters` | The unit that is counted. |
"""

_IGNORED = """\
__pycache__/
*.egg-info/
.pytest_cache/
.venv/
build/
dist/
"""

_TEMPLATES = {
    "pyproject.toml": _PYPROJECT,
    "README.md": _README,
    ".gitignore": _IGNORED,
    "$package/__init__.py": _BACKEND,
    "$package/py.typed": "",
    "tests/$tests": _TESTS,
}
