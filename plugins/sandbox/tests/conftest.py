"""Sandboxes for the tests: of both generations, and of one where it makes no difference."""

from collections.abc import AsyncIterator, Callable

import pytest

from molecule_connect_sandbox.testing import Sandbox


@pytest.fixture(params=["2026-05", "2026-08"])
def generation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def newer(generation: str) -> bool:
    return generation == "2026-08"


@pytest.fixture
async def sandbox(generation: str) -> AsyncIterator[Sandbox]:
    """A sandbox of each generation."""
    async with Sandbox.in_process(platform=generation) as running:
        yield running


@pytest.fixture
async def august() -> AsyncIterator[Sandbox]:
    async with Sandbox.in_process(platform="2026-08") as running:
        yield running


@pytest.fixture
async def may() -> AsyncIterator[Sandbox]:
    async with Sandbox.in_process(platform="2026-05") as running:
        yield running


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.seconds = 1_790_000_000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Callable[[], float]:
    return Clock()
