"""pytest fixtures, enabled by ``pytest_plugins = ["molecule_connect.testing.fixtures"]`` in the root conftest.py."""

import os
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def no_molecule_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove all ``MOLECULE_`` variables from the environment."""
    for name in [name for name in os.environ if name.startswith("MOLECULE_") or name == "WORKSPACE_ID"]:
        monkeypatch.delenv(name)


@pytest.fixture
def sandbox() -> Iterator[Any]:
    """A local platform over HTTP, a ``molecule_connect_sandbox.testing.Sandbox`` that is closed after the test."""
    try:
        from molecule_connect_sandbox.testing import Sandbox
    except ImportError as exc:
        pytest.fail(f'the fixture `sandbox` needs pip install "molecule-connect[sandbox]" ({exc})', pytrace=False)
    with Sandbox.in_thread() as running:
        yield running
