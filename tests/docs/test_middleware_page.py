"""``docs/middleware.md`` works as it stands: its blocks are laid out and used, its test is run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.docs.pages import block, lay_out, page

PAGE = page("middleware.md")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    lay_out(tmp_path, block(PAGE, "toml"), block(PAGE, "python", '"""Keep secrets'))
    return tmp_path


def run(site: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(site), "HOME": str(site)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=site, env=environment, capture_output=True, text=True, check=False
    )


def test_the_pages_line_prints_what_the_page_says(site: Path) -> None:
    pattern = "redact.pattern=sk-[0-9]+"
    program = ("-m", "molecule_connect", "try", "mock", "my key is sk-12345", "--use", "redact", "--use-opt", pattern)

    ran = run(site, *program)

    assert f"\n{ran.stdout}" in PAGE
    assert ran.stdout == "echo: my key is [redacted]\n"


def test_a_bad_pattern_is_refused(site: Path) -> None:
    program = ("-m", "molecule_connect", "try", "mock", "hi", "--use", "redact", "--use-opt", "redact.pattern=(")

    assert "error: option 'pattern' of middleware redact is no regular expression" in run(site, *program).stderr


def test_the_pages_test_passes(site: Path) -> None:
    (site / "test_redact.py").write_text(block(PAGE, "python", "from molecule_connect import Response"))
    (site / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n"
    )

    ran = run(site, "-m", "pytest", "-q")

    assert "1 passed" in ran.stdout, ran.stdout
