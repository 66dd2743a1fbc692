"""The middleware and the test on ``docs/middleware.md`` work as printed."""

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


def test_command_prints_the_output_on_the_page(site: Path) -> None:
    pattern = "redact.pattern=sk-[0-9]+"
    program = ("-m", "molecule_connect", "try", "mock", "my key is sk-12345", "--use", "redact", "--use-opt", pattern)

    ran = run(site, *program)

    assert f"\n{ran.stdout}" in PAGE
    assert ran.stdout == "echo: my key is [redacted]\n"


def test_rejects_an_invalid_pattern(site: Path) -> None:
    program = ("-m", "molecule_connect", "try", "mock", "hi", "--use", "redact", "--use-opt", "redact.pattern=(")

    refused = run(site, *program)

    assert refused.returncode == 2
    assert "'pattern' of middleware redact" in refused.stderr


def test_test_on_the_page_passes(site: Path) -> None:
    (site / "test_redact.py").write_text(block(PAGE, "python", "from molecule_connect import Response"))
    (site / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n"
    )

    ran = run(site, "-m", "pytest", "-q")

    assert "1 passed" in ran.stdout, ran.stdout
