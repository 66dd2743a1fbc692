"""Machines share one virtual clock: their event loop jumps to the next timer as soon as nothing is left to do."""

import asyncio
from collections.abc import Callable

import pytest
from tests.worker.kit import VirtualLoop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"virtual": VirtualLoop}
