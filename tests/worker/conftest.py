"""Delivery's tests own time: their event loop jumps to the next timer as soon as nothing is left to do."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.worker.kit import VirtualLoop, open_journal

from molecule_connect.journal.journal import Journal


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"virtual": VirtualLoop}


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    async with open_journal(tmp_path) as journal:
        yield journal
