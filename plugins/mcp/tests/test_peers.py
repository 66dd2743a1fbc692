"""Names of peers are cached, and no message waits for them."""

import asyncio
from typing import Any

from molecule_connect import TransientPlatformError
from molecule_connect_mcp.inbox_runner import push_arrivals
from molecule_connect_mcp.peers import FAILURE_TTL, TTL, PeerCache

from .kit import FakeInbox, as_inbox, message


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeHost:
    """Stops reading after two notifications."""

    def __init__(self) -> None:
        self.pushed: list[str] = []

    async def notify(self, method: str, params: dict[str, Any]) -> bool:
        self.pushed.append(params["content"])
        return len(self.pushed) < 2


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_name_is_looked_up_once() -> None:
    inbox = FakeInbox(peers=[{"id": "p-1", "name": "ops", "role": "sre"}])
    cache = PeerCache(as_inbox(inbox))
    assert cache.get("ws-1", "p-1").name == ""
    await settled()
    peer = cache.get("ws-1", "p-1")
    assert (peer.name, peer.role, peer.card_url) == ("ops", "sre", "https://p.example/registry/discover/p-1")
    assert len(inbox.fake_client.called) == 1


async def test_failed_lookup_is_remembered_and_name_kept() -> None:
    clock, inbox = Clock(), FakeInbox(peers=TransientPlatformError("away", operation="peers"))
    cache = PeerCache(as_inbox(inbox), clock=clock)
    for _ in range(3):
        cache.get("ws-1", "p-1")
        await settled()
    assert len(inbox.fake_client.called) == 1
    clock.now = FAILURE_TTL
    cache.get("ws-1", "p-1")
    await settled()
    assert len(inbox.fake_client.called) == 2

    cache.update("ws-1", [{"id": "p-1", "name": "ops"}])
    clock.now += TTL
    assert cache.get("ws-1", "p-1").name == "ops"
    await settled()
    assert cache.get("ws-1", "p-1").name == "ops"


async def test_hanging_registry_delays_no_push() -> None:
    inbox = FakeInbox(message("a1", caller_id="p-1"), message("a2", caller_id="p-2"), peers=asyncio.Event())
    cache = PeerCache(as_inbox(inbox))
    host = FakeHost()
    async with asyncio.timeout(5):
        await push_arrivals(as_inbox(inbox), cache, host)
    assert host.pushed == ["hi", "hi"]
    await settled()
    assert len(inbox.fake_client.called) == 1
    await cache.aclose()


async def test_invalid_ids_are_never_looked_up() -> None:
    inbox = FakeInbox()
    cache = PeerCache(as_inbox(inbox))
    assert cache.get("ws-1", "../x").card_url == ""
    assert cache.get("ws-1", None).name == ""
    await settled()
    assert inbox.fake_client.called == []
