"""Fixtures for pytest; say ``pytest_plugins = ["molecule_connect.testing.fixtures"]`` in the outermost conftest.py."""

import os
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def no_molecule_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test sees none of the ``MOLECULE_`` variables of the shell that it was started in."""
    for name in [name for name in os.environ if name.startswith("MOLECULE_") or name == "WORKSPACE_ID"]:
        monkeypatch.delenv(name)


@pytest.fixture
def sandbox() -> Iterator[Any]:
    """A local platform over HTTP, as ``molecule_connect_sandbox.testing.Sandbox``; it ends with the test."""
    try:
        from molecule_connect_sandbox.testing import Sandbox
    except ImportError as exc:
        pytest.fail(f'the fixture `sandbox` needs pip install "molecule-connect[sandbox]" ({exc})', pytrace=False)
    with Sandbox.in_thread() as running:
        yield running
