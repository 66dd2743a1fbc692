"""Long work in steps."""

import asyncio
from collections.abc import Generator

import pytest

from molecule_connect.platform.cooperative import finish, in_slices


def counted(upto: int) -> Generator[None, None, int]:
    for _ in range(upto):
        yield
    return upto


def test_steps_end_with_their_result() -> None:
    assert finish(counted(3)) == 3


async def test_others_get_a_turn_after_each_slice() -> None:
    turns: list[None] = []

    async def other() -> None:
        while True:
            turns.append(None)
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    assert await in_slices(counted(5), length=0.0) == 5
    assert len(turns) == 5
    assert await in_slices(counted(5), length=60.0) == 5
    assert len(turns) == 5
    task.cancel()


async def test_an_error_of_a_step_is_raised() -> None:
    def failing() -> Generator[None, None, None]:
        yield
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await in_slices(failing())
