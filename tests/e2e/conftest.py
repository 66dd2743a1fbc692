"""The real Claude Code, installed from npm, and a stand-in for the API that it talks to."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .messages_api import MessagesApi

# The one place that names the version; MOLECULE_TEST_CLAUDE names a program of any other.
PACKAGE = "@anthropic-ai/claude-code@2.1.197"


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if given := os.environ.get("MOLECULE_TEST_CLAUDE"):
        return Path(given)
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    place = tmp_path_factory.mktemp("npm")
    try:
        done = subprocess.run(
            [npm, "install", "--no-audit", "--no-fund", "--prefix", str(place), PACKAGE],
            capture_output=True,
            text=True,
            timeout=200,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not install {PACKAGE} in time")
    found = place / "node_modules" / ".bin" / "claude"
    if done.returncode != 0 or not found.exists():
        pytest.skip(f"npm cannot install {PACKAGE}: {done.stderr.strip()[-300:]}")
    return found


@pytest.fixture
def api() -> Iterator[MessagesApi]:
    with MessagesApi() as api:
        yield api
