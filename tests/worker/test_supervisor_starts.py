"""Many workspaces that start together."""

import asyncio
import random

from tests.worker.kit import EPOCH, FakePlatform, echo

from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.journal.journal import Journal
from molecule_connect.worker.supervisor import Supervisor
from molecule_connect.worker.worker import Worker, WorkerOptions

COUNT = 50


async def test_fifty_register_in_turn_within_a_second(journal: Journal) -> None:
    loop = asyncio.get_running_loop()
    platforms = [FakePlatform() for _ in range(COUNT)]

    def wall() -> float:
        return EPOCH + loop.time()

    connections = [
        Worker(
            WorkspaceSettings(workspace_id=f"ws-{number}", backend="fake"),
            platform=platform,
            handler=echo,
            journal=journal,
            options=WorkerOptions(wall=wall),
        )
        for number, platform in enumerate(platforms)
    ]
    began, stop = loop.time(), asyncio.Event()
    fleet = Supervisor(connections, journal, wall=wall, random=random.Random(1).random)
    running = asyncio.ensure_future(fleet.run(stop))
    await asyncio.sleep(5)
    stop.set()
    await running
    firsts = sorted(platform.beat_times[0] - began for platform in platforms)
    assert firsts[-1] <= 1.5
    most_in_a_tenth = max(sum(first <= other < first + 0.1 for other in firsts) for first in firsts)
    assert most_in_a_tenth < COUNT / 3
