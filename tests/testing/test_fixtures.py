"""The fixtures, as an author's project uses them: asked for, never there by themselves."""

import subprocess
import sys
from pathlib import Path

CONFTEST = 'pytest_plugins = ["molecule_connect.testing.fixtures"]\n'
SETTINGS = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
filterwarnings = error
"""
TESTS = """
import os
from typing import Annotated

import attrs
from molecule_connect import Request, Response, hookimpl
from molecule_connect.testing import serving


class Echo:
    @hookimpl
    async def handle_a2a(self, request: Request) -> Response:
        return Response.from_text(f"echo: {request.text}")


async def test_it_answers_a_person(sandbox) -> None:
    async with serving(sandbox, Echo()) as workspace:
        await sandbox.say(workspace, "hi")
        (answer,) = await sandbox.answers(workspace, 1)
    assert answer.text == "echo: hi"


def test_the_shell_is_not_seen(no_molecule_environment) -> None:
    assert "MOLECULE_API_URL" not in os.environ
"""


def run(folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *arguments],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
    )


def test_author_projects_get_sandbox_and_environment(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    (tmp_path / "test_it.py").write_text(TESTS)

    ran = run(tmp_path, "test_it.py", MOLECULE_API_URL="http://elsewhere.example")

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "2 passed" in ran.stdout


def test_loads_nothing_by_default_without_pytest(tmp_path: Path) -> None:
    loads = "import sys, molecule_connect.testing; assert not {'pytest', '_pytest'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", loads], check=True)
    (tmp_path / "pytest.ini").write_text(SETTINGS)

    assert "no_molecule_environment" not in run(tmp_path, "--fixtures").stdout
