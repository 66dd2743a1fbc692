"""The values that the clients give, and what can be read of a client, as in the older SDK."""

import attrs
import pytest

from molecule_connect import AuthError, PermanentPlatformError, TextPart
from molecule_connect_agent import Delegation, Message, PeerInfo, WorkspaceState

from .kit import API, ME, PEER, Make, Platform


def test_values_take_their_fields_by_position() -> None:
    state = WorkspaceState(ME, "paused", True, False)
    assert (state.should_stop, attrs.evolve(state, paused=False).should_stop) == (True, False)
    assert attrs.asdict(state) == {"workspace_id": ME, "status": "paused", "paused": True, "deleted": False}

    peer = PeerInfo(PEER, "ops", "https://peer.example", "sre", 3, "online", {"name": "ops"})
    assert attrs.astuple(peer) == (PEER, "ops", "https://peer.example", "sre", 3, "online", {"name": "ops"})
    assert PeerInfo(PEER).status == "unknown"
    assert len({peer, PeerInfo(PEER)}) == 2

    assert Delegation("d1", PEER, "queued").target_id == PEER
    message = Message(ME, "message", "row-1", "m-1", PEER, parts=(TextPart("hello"),))
    assert (message.caller_id, message.text) == (PEER, "hello")
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        state.status = "online"  # type: ignore[misc]


def test_client_arguments_are_attributes(make: Make, platform: Platform) -> None:
    given = {"agent_card": {"name": "mine"}, "reported_url": "https://me.example/a2a", "url_cache_ttl": 7.0}
    agent = make(platform, platform_url=f"{API}/", heartbeat_interval=11.0, state_poll_interval=13.0, **given)

    assert (agent.workspace_id, agent.platform_url, agent.agent_card) == (ME, API, {"name": "mine"})
    assert (agent.reported_url, agent.url_cache_ttl) == ("https://me.example/a2a", 7.0)
    assert (agent.heartbeat_interval, agent.state_poll_interval) == (11.0, 13.0)
    bare = make(platform)
    assert (bare.agent_card, bare.reported_url) == ({"name": f"remote-agent-{ME[:8]}"}, "")
    assert (bare.heartbeat_interval, bare.state_poll_interval, bare.url_cache_ttl) == (30.0, 30.0, 300.0)


def test_a_refusal_shows_its_status() -> None:
    def refusal(text: str, status: int | None) -> str:
        return str(PermanentPlatformError(text, operation="a2a", status=status, body=""))

    assert refusal("workspace not found", 404) == "workspace not found (status 404)"
    assert refusal("a2a: 404 workspace not found", 404) == "a2a: 404 workspace not found"
    assert refusal("it is not JSON", None) == "it is not JSON"
    assert "401" in str(AuthError("a2a: 401 no", operation="a2a", status=401, body=""))
