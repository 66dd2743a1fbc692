"""A server in this process with a fake inbox."""

from collections.abc import AsyncIterator

import pytest

from .kit import FakeInbox, Serving


@pytest.fixture
async def serving() -> AsyncIterator[Serving]:
    """A running server with an empty inbox of one workspace."""
    async with Serving(FakeInbox()) as running:
        yield running
