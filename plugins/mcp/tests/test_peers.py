"""Names of peers are known, or empty; nobody waits for them."""

import asyncio

from molecule_connect import TransientPlatformError
from molecule_connect_mcp.peers import KEPT, KEPT_FAILURE, PeerBook
from molecule_connect_mcp.push import push_arrivals

from .kit import FakeInbox, as_inbox, message


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_name_is_looked_up_once() -> None:
    inbox = FakeInbox(peers=[{"id": "p-1", "name": "ops", "role": "sre"}])
    book = PeerBook(as_inbox(inbox))
    assert book.of("ws-1", "p-1").name == ""
    await settled()
    peer = book.of("ws-1", "p-1")
    assert (peer.name, peer.role, peer.card_url) == ("ops", "sre", "https://p.example/registry/discover/p-1")
    assert len(inbox.fake_client.called) == 1


async def test_failed_lookup_is_remembered_and_name_kept() -> None:
    clock, inbox = Clock(), FakeInbox(peers=TransientPlatformError("away", operation="peers"))
    book = PeerBook(as_inbox(inbox), clock=clock)
    for _ in range(3):
        book.of("ws-1", "p-1")
        await settled()
    assert len(inbox.fake_client.called) == 1
    clock.now = KEPT_FAILURE
    book.of("ws-1", "p-1")
    await settled()
    assert len(inbox.fake_client.called) == 2

    book.learn("ws-1", [{"id": "p-1", "name": "ops"}])
    clock.now += KEPT
    assert book.of("ws-1", "p-1").name == "ops"
    await settled()
    assert book.of("ws-1", "p-1").name == "ops"


async def test_hanging_registry_delays_no_push() -> None:
    inbox = FakeInbox(message("a1", caller_id="p-1"), message("a2", caller_id="p-2"), peers=asyncio.Event())
    book = PeerBook(as_inbox(inbox))
    pushed = []

    async def notify(params: dict[str, object]) -> bool:
        pushed.append(params["content"])
        return len(pushed) < 2

    async with asyncio.timeout(5):
        await push_arrivals(as_inbox(inbox), book, notify)
    assert pushed == ["hi", "hi"]
    await settled()
    assert len(inbox.fake_client.called) == 1
    await book.aclose()


async def test_invalid_ids_are_never_looked_up() -> None:
    inbox = FakeInbox()
    book = PeerBook(as_inbox(inbox))
    assert book.of("ws-1", "../x").card_url == ""
    assert book.of("ws-1", None).name == ""
    await settled()
    assert inbox.fake_client.called == []
