"""Delivery's tests own time: their event loop jumps to the next timer as soon as nothing is left to do."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.delivery.kit import EPOCH, VirtualLoop

from molecule_connect.delivery.journal import Journal


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"virtual": VirtualLoop}


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    loop = asyncio.get_running_loop()
    async with Journal.open(tmp_path, wall=lambda: EPOCH + loop.time()) as journal:
        yield journal
