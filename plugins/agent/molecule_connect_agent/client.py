"""RemoteAgentClient: the async client for programs without an event loop."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from inspect import isawaitable
from pathlib import Path
from typing import Self

import httpx

from molecule_connect import endpoints
from molecule_connect_agent.async_client import AsyncRemoteAgentClient
from molecule_connect_agent.direct import JsonObject, Resolve
from molecule_connect_agent.plugins import in_thread
from molecule_connect_agent.portal import Portal
from molecule_connect_agent.presence import TaskSupplier
from molecule_connect_agent.requests import ClosedError
from molecule_connect_agent.values import (
    DEFAULT_HEARTBEAT_INTERVAL,
    DEFAULT_STATE_POLL_INTERVAL,
    DEFAULT_URL_CACHE_TTL,
    Delegation,
    Message,
    PeerInfo,
    WorkspaceState,
)


class RemoteAgentClient:
    """``AsyncRemoteAgentClient`` without an event loop: the same methods, blocking. Threads can share a client.

    Use it as a context manager, or call ``close``. The arguments and attributes are those of
    ``AsyncRemoteAgentClient``, except *sleep*, which isn't awaited. Requests run in a thread of the client, which ends
    when it is closed.

    Raises:
        ConfigError: An argument can't be used. Nothing was sent.
    """

    def __init__(
        self,
        workspace_id: str,
        platform_url: str,
        *,
        agent_card: Mapping[str, object] | None = None,
        reported_url: str = "",
        token_dir: str | Path | None = None,
        heartbeat_interval: float = DEFAULT_HEARTBEAT_INTERVAL,
        state_poll_interval: float = DEFAULT_STATE_POLL_INTERVAL,
        url_cache_ttl: float = DEFAULT_URL_CACHE_TTL,
        token: str | None = None,
        org_id: str | None = None,
        insecure: bool = False,
        allow_private: bool = False,
        ca_file: str | Path | None = None,
        client_cert: str | Path | None = None,
        client_key: str | Path | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
        resolve: Resolve | None = None,
    ) -> None:
        self._client = client = AsyncRemoteAgentClient(
            workspace_id,
            platform_url,
            agent_card=agent_card,
            reported_url=reported_url,
            token_dir=token_dir,
            heartbeat_interval=heartbeat_interval,
            state_poll_interval=state_poll_interval,
            url_cache_ttl=url_cache_ttl,
            token=token,
            org_id=org_id,
            insecure=insecure,
            allow_private=allow_private,
            ca_file=ca_file,
            client_cert=client_cert,
            client_key=client_key,
            transport=transport,
            sleep=None if sleep is None else partial(_sleep, sleep),
            clock=clock,
            resolve=resolve,
        )
        self._portal = Portal(client.aclose)
        self.workspace_id = client.workspace_id
        self.platform_url = client.platform_url
        self.agent_card = client.agent_card
        self.reported_url = client.reported_url
        self.heartbeat_interval = client.heartbeat_interval
        self.state_poll_interval = client.state_poll_interval
        self.url_cache_ttl = client.url_cache_ttl
        self.token_file = client.token_file
        self.plugins_dir = client.plugins_dir

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.workspace_id!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End loops and iterations of other threads, and close the connections when their requests are answered."""
        self._portal.close()

    def load_token(self) -> str | None:
        """See ``AsyncRemoteAgentClient.load_token``."""
        return self._client.load_token()

    def save_token(self, token: str) -> None:
        """See ``AsyncRemoteAgentClient.save_token``."""
        self._client.save_token(token)

    def invalidate_peer_url(self, target_id: str) -> None:
        """See ``AsyncRemoteAgentClient.invalidate_peer_url``."""
        self._client.invalidate_peer_url(target_id)

    @staticmethod
    def is_queued(answer: Mapping[str, object]) -> bool:
        """See ``AsyncRemoteAgentClient.is_queued``."""
        return AsyncRemoteAgentClient.is_queued(answer)

    def register(self) -> str:
        """See ``AsyncRemoteAgentClient.register``."""
        return self._portal.run(self._client.register)

    def pull_secrets(self) -> dict[str, str]:
        """See ``AsyncRemoteAgentClient.pull_secrets``."""
        return self._portal.run(self._client.pull_secrets)

    def poll_state(self) -> WorkspaceState:
        """See ``AsyncRemoteAgentClient.poll_state``."""
        return self._portal.run(self._client.poll_state)

    def heartbeat(
        self, current_task: str = "", active_tasks: int = 0, *, error_rate: float = 0.0, sample_error: str = ""
    ) -> None:
        """See ``AsyncRemoteAgentClient.heartbeat``."""
        self._portal.run(
            self._client.heartbeat, current_task, active_tasks, error_rate=error_rate, sample_error=sample_error
        )

    def run_heartbeat_loop(self, max_iterations: int | None = None, task_supplier: TaskSupplier | None = None) -> str:
        """See ``AsyncRemoteAgentClient.run_heartbeat_loop``. *task_supplier* is called in another thread."""
        supplier = None if task_supplier is None else partial(_supply, task_supplier)
        try:
            return self._portal.run(self._client.run_heartbeat_loop, max_iterations, supplier)
        except ClosedError:
            return "closed"

    def get_peers(self) -> list[PeerInfo]:
        """See ``AsyncRemoteAgentClient.get_peers``."""
        return self._portal.run(self._client.get_peers)

    def discover_peer(self, target_id: str) -> str | None:
        """See ``AsyncRemoteAgentClient.discover_peer``."""
        return self._portal.run(self._client.discover_peer, target_id)

    def call_peer(
        self,
        target_id: str,
        message: str,
        *,
        prefer_direct: bool = False,
        timeout: float = endpoints.A2A_TIMEOUT,
        context_id: str | None = None,
        message_id: str | None = None,
    ) -> JsonObject:
        """See ``AsyncRemoteAgentClient.call_peer``."""
        return self._portal.run(
            self._client.call_peer,
            target_id,
            message,
            prefer_direct=prefer_direct,
            timeout=timeout,
            context_id=context_id,
            message_id=message_id,
        )

    def delegate(self, target_id: str, task: str, *, idempotency_key: str | None = None) -> Delegation:
        """See ``AsyncRemoteAgentClient.delegate``."""
        return self._portal.run(self._client.delegate, target_id, task, idempotency_key=idempotency_key)

    def delegations(self) -> list[Delegation]:
        """See ``AsyncRemoteAgentClient.delegations``."""
        return self._portal.run(self._client.delegations)

    def notify(self, message: str, files: Sequence[str | Path] = ()) -> None:
        """See ``AsyncRemoteAgentClient.notify``."""
        self._portal.run(self._client.notify, message, files)

    def activity(
        self, *, since_secs: float = 30.0, poll_interval: float = 5.0, follow: bool = True
    ) -> Iterator[Message]:
        """See ``AsyncRemoteAgentClient.activity``."""
        batches = self._client._batches(since_secs, poll_interval, follow)

        async def next_batch() -> list[Message] | None:
            return await anext(batches, None)

        def messages() -> Iterator[Message]:
            with contextlib.suppress(ClosedError):
                while (batch := self._portal.run(next_batch)) is not None:
                    yield from batch

        return messages()

    def reply(self, message: Message, text: str) -> None:
        """See ``AsyncRemoteAgentClient.reply``."""
        self._portal.run(self._client.reply, message, text)

    def install_plugin(
        self,
        name: str,
        source: str | None = None,
        *,
        run_setup_sh: bool = False,
        report_to_platform: bool = True,
        sha256: str | None = None,
    ) -> Path:
        """See ``AsyncRemoteAgentClient.install_plugin``."""
        return self._portal.run(
            self._client.install_plugin,
            name,
            source,
            run_setup_sh=run_setup_sh,
            report_to_platform=report_to_platform,
            sha256=sha256,
        )


async def _sleep(sleep: Callable[[float], object], seconds: float) -> None:
    await in_thread(partial(sleep, seconds))


async def _supply(supplier: TaskSupplier) -> Mapping[str, object]:
    """What *supplier* returns, from a thread of its own: it may block, or call the client."""
    supplied = await in_thread(supplier)
    return await supplied if isawaitable(supplied) else supplied
