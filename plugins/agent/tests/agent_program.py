"""A user's program as mypy sees it in strict mode: every member of both clients, and the types that come back."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, assert_type

from molecule_connect import Outcome, TransientPlatformError
from molecule_connect_agent import (
    DEFAULT_HEARTBEAT_INTERVAL,
    AsyncRemoteAgentClient,
    Delegation,
    Message,
    PeerInfo,
    RemoteAgentClient,
    WorkspaceState,
)

if TYPE_CHECKING:
    # A name that the package does not have is an error, and not silently Any.
    from molecule_connect_agent import RemoteAgentClint  # type: ignore[attr-defined] # noqa: F401


def supplier() -> dict[str, object]:
    return {"current_task": "sorting", "active_tasks": 1}


def blocking(workspace_id: str, url: str, folder: Path) -> list[str]:
    """Uses the blocking client."""
    assert_type(DEFAULT_HEARTBEAT_INTERVAL, float)
    with RemoteAgentClient(workspace_id, url, agent_card={"name": "mine"}, token_dir=folder) as client:
        assert_type(client.register(), str)
        assert_type(client.load_token(), str | None)
        assert_type(client.token_file, Path)
        assert_type(client.pull_secrets(), dict[str, str])
        assert_type(client.poll_state(), WorkspaceState)
        assert_type(client.get_peers(), list[PeerInfo])
        assert_type(client.discover_peer("p"), str | None)
        answer = client.call_peer("p", "hello")
        assert_type(answer, dict[str, object])
        assert_type(client.is_queued(answer), bool)
        assert_type(client.delegate("p", "task"), Delegation)
        assert_type(client.delegations(), list[Delegation])
        assert_type(client.install_plugin("hello"), Path)
        assert_type(client.run_heartbeat_loop(1, supplier), str)
        messages = client.activity(follow=False)
        assert_type(messages, Iterator[Message])
        try:
            client.notify("hello", [folder / "a.txt", "b.txt"])
        except TransientPlatformError as error:
            if error.outcome is Outcome.NOT_TAKEN:
                client.notify("hello")
        for message in messages:
            client.reply(message, message.text)
        return [peer.name for peer in client.get_peers()]


async def for_a_loop(workspace_id: str, url: str) -> AsyncIterator[str]:
    """Uses its twin."""
    async with AsyncRemoteAgentClient(workspace_id, url) as client:
        assert_type(await client.register(), str)
        assert_type(await client.poll_state(), WorkspaceState)
        assert_type(await client.call_peer("p", "hello"), dict[str, object])
        assert_type(await client.run_heartbeat_loop(1, supplier), str)
        async for message in client.activity():
            assert_type(message, Message)
            await client.reply(message, "hello")
            yield message.text
