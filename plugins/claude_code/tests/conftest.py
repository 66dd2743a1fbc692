"""Fixtures: a fake ``claude``, and backends that run it."""

import os
from pathlib import Path

import pytest

from .kit import Asking, FakeClaude


@pytest.fixture
def claude(tmp_path: Path) -> FakeClaude:
    folder = tmp_path / "program"
    folder.mkdir()
    return FakeClaude(folder)


@pytest.fixture
def asking(claude: FakeClaude, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asking:
    for name in [name for name in os.environ if name.startswith(("ANTHROPIC_", "CLAUDE"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(tmp_path / "config"))
    for name in ("state", "work"):
        (tmp_path / name).mkdir()
    return Asking(claude, tmp_path / "state", tmp_path / "work")
