"""Clients of the Molecule platform for programs that are agents themselves, without a connector."""

from molecule_connect_agent.async_client import AsyncRemoteAgentClient
from molecule_connect_agent.client import RemoteAgentClient
from molecule_connect_agent.values import (
    DEFAULT_HEARTBEAT_INTERVAL,
    DEFAULT_STATE_POLL_INTERVAL,
    DEFAULT_URL_CACHE_TTL,
    Delegation,
    Message,
    PeerInfo,
    WorkspaceState,
)

__all__ = [
    "DEFAULT_HEARTBEAT_INTERVAL",
    "DEFAULT_STATE_POLL_INTERVAL",
    "DEFAULT_URL_CACHE_TTL",
    "AsyncRemoteAgentClient",
    "Delegation",
    "Message",
    "PeerInfo",
    "RemoteAgentClient",
    "WorkspaceState",
]
