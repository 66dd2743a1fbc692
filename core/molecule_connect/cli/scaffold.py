"""The files of a new backend's distribution, by path. ``docs/write-a-backend.md`` goes through them."""

import re
from string import Template

from molecule_connect import __version__
from molecule_connect.errors import ConfigError
from molecule_connect.plugins.entry_points import NAME

PREFIX = "molecule-connect-"
# A backend of the core's own.
INBOX = "inbox"
# Distributions of ours have these names.
TAKEN = ("claude-code", "exec", "mcp", "mock", "sandbox")


def check_name(name: str) -> None:
    """Refuse what cannot be the name of a new backend.

    Raises:
        ConfigError: With what to do.
    """
    if name.startswith(PREFIX) and NAME.match(name.removeprefix(PREFIX)):
        raise ConfigError(
            f"{name!r} is the name of a distribution, not of a backend",
            hint=f"give the name that operators type: molecule new-backend {name.removeprefix(PREFIX)}",
        )
    if not NAME.match(name) or name[-1] in "-_" or len(name) > 50:
        raise ConfigError(
            f"{name!r} cannot be the name of a backend",
            hint="up to 50 of a-z 0-9 - _, with a letter or digit at both ends: molecule new-backend acme",
        )
    if name.replace("_", "-") in TAKEN:
        raise ConfigError(f"{PREFIX}{name.replace('_', '-')} exists already", hint="give yours another name")
    if name == INBOX:
        raise ConfigError(f"a backend {name!r} comes with molecule-connect", hint="give yours another name")


def distribution_name(name: str) -> str:
    """What the backend's distribution, and its folder, is called."""
    return PREFIX + re.sub(r"[-_]+", "-", name)


def files(name: str) -> dict[str, str]:
    """The text of each file, by its path in the distribution's folder."""
    words = re.split(r"[-_]+", name)
    camel = "".join(word.capitalize() for word in words)
    major, minor, _ = __version__.split(".")
    given = {
        "name": name,
        "distribution": distribution_name(name),
        "package": distribution_name(name).replace("-", "_"),
        "cls": f"Backend{camel}" if camel[0].isdigit() else f"{camel}Backend",
        "core": f"molecule-connect>={major}.{minor},<{major}.{int(minor) + 1}",
        "tests": f"test_{'_'.join(words)}.py",
    }
    return {Template(path).substitute(given): Template(text).substitute(given) for path, text in _FILES.items()}


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
    """Tell how many characters a message has."""

    unit: Annotated[str, "what is counted, as the answer calls it"] = "characters"

    @hookimpl
    async def handle_a2a(self, request: Request) -> Response:
        if not request.text:
            raise BackendError("there is no text to count", retryable=False)
        return Response.from_text(f"{len(request.text)} {self.unit}")
'''

_TESTS = """\
from molecule_connect.testing import check_backend, running


async def test_it_answers() -> None:
    async with running("$name", {"unit": "letters"}) as backend:
        response = await backend.ask("hi")

    assert response.text == "2 letters"


async def test_it_keeps_to_what_a_connection_relies_on() -> None:
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
| `unit` | `characters` | What is counted, as the answer calls it. |
"""

_IGNORED = """\
__pycache__/
*.egg-info/
.pytest_cache/
.venv/
build/
dist/
"""

_FILES = {
    "pyproject.toml": _PYPROJECT,
    "README.md": _README,
    ".gitignore": _IGNORED,
    "$package/__init__.py": _BACKEND,
    "$package/py.typed": "",
    "tests/$tests": _TESTS,
}
