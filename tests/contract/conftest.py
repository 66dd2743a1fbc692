"""Time passes here only where the product waits: how fast the machine is plays no part."""

import asyncio
from collections.abc import Callable

import pytest
from tests.worker.kit import VirtualLoop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"virtual": VirtualLoop}
