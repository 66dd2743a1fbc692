from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from .kit import Make, Platform, Twin


@pytest.fixture
def platform() -> Platform:
    return Platform()


@pytest.fixture(params=["blocking", "async"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes clients of one kind; they are closed at the end."""
    twins: list[Twin] = []

    def made(platform: Platform | None = None, **arguments: Any) -> Twin:
        if platform is not None:
            arguments.setdefault("transport", httpx.MockTransport(platform))
        arguments.setdefault("token_dir", tmp_path / "agent")
        twins.append(Twin(request.param == "async", **arguments))
        return twins[-1]

    yield made
    for twin in twins:
        twin.end()


@pytest.fixture
def agent(make: Make, platform: Platform) -> Twin:
    """A client of *platform*."""
    return make(platform)
