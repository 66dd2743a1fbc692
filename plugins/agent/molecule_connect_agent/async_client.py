"""AsyncRemoteAgentClient: the twin of ``RemoteAgentClient`` for programs that run an event loop."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from molecule_connect.errors import ConfigError, MoleculeError
from molecule_connect.executors import in_thread
from molecule_connect.models import Presence
from molecule_connect.platform.client import AsyncPlatformClient
from molecule_connect.platform.direct_messages import HEADERS, Resolve, literal_addresses, system_addresses
from molecule_connect.platform.endpoints import A2A_TIMEOUT
from molecule_connect.platform.transports import AsyncTransport, Transports
from molecule_connect_agent.agent import AgentClient, AgentSettings, tls_of
from molecule_connect_agent.peers import JsonObject
from molecule_connect_agent.presence import TaskSupplier
from molecule_connect_agent.steps import Ask, AskPeer, Flow, Step, Wait
from molecule_connect_agent.values import (
    DEFAULT_HEARTBEAT_INTERVAL,
    DEFAULT_STATE_POLL_INTERVAL,
    DEFAULT_URL_CACHE_TTL,
    Delegation,
    Message,
    PeerInfo,
    WorkspaceState,
)

T = TypeVar("T")


class AsyncRemoteAgentClient(AgentClient):
    """``RemoteAgentClient`` for an event loop: the same members, awaited. Use it as a context manager, or ``aclose``.

    Cancelling ends any of them. The arguments are those of ``RemoteAgentClient``; *transport* is an async one, and
    *sleep* is awaited.

    Raises:
        ConfigError: Something of it cannot be used; before any request.
    """

    def __init__(
        self,
        workspace_id: str,
        platform_url: str,
        agent_card: Mapping[str, object] | None = None,
        reported_url: str = "",
        token_dir: str | Path | None = None,
        heartbeat_interval: float = DEFAULT_HEARTBEAT_INTERVAL,
        state_poll_interval: float = DEFAULT_STATE_POLL_INTERVAL,
        url_cache_ttl: float = DEFAULT_URL_CACHE_TTL,
        *,
        token: str | None = None,
        org_id: str | None = None,
        insecure: bool = False,
        allow_private: bool = False,
        ca_file: str | Path | None = None,
        client_cert: str | Path | None = None,
        client_key: str | Path | None = None,
        transport: AsyncTransport | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        resolve: Resolve | None = None,
    ) -> None:
        super().__init__(
            AgentSettings(
                workspace_id=workspace_id,
                platform_url=platform_url,
                agent_card=agent_card,
                reported_url=reported_url,
                token_dir=token_dir,
                token=token,
                org_id=org_id,
                insecure=insecure,
                heartbeat_interval=heartbeat_interval,
                state_poll_interval=state_poll_interval,
                url_cache_ttl=url_cache_ttl,
                clock=clock,
                allow_private=allow_private,
                resolve=resolve or (system_addresses if transport is None else literal_addresses),
            )
        )
        self._transports = Transports(transport=transport, clock=clock, sleep=sleep)
        self._platform = AsyncPlatformClient(
            platform_url,
            workspace_id=workspace_id,
            credentials=self._agent.tokens,
            org_id=org_id,
            insecure=insecure,
            tls=tls_of(ca_file, client_cert, client_key),
            transports=self._transports,
            clock=clock,
        )
        self._sleep = sleep
        self._is_closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connections; loops end after their next wait."""
        if self._is_closed:
            return
        self._is_closed = True
        await self._platform.aclose()
        await self._transports.aclose()

    async def register(self) -> str:
        """See ``RemoteAgentClient.register``."""
        return await self._run(self._agent.registrar.register())

    async def pull_secrets(self) -> dict[str, str]:
        """See ``RemoteAgentClient.pull_secrets``."""
        return await self._run(self._agent.registrar.secrets())

    async def poll_state(self) -> WorkspaceState:
        """See ``RemoteAgentClient.poll_state``."""
        return await self._run(self._agent.registrar.state())

    async def heartbeat(
        self, current_task: str = "", active_tasks: int = 0, error_rate: float = 0.0, sample_error: str = ""
    ) -> None:
        """See ``RemoteAgentClient.heartbeat``."""
        presence = Presence(
            current_task=current_task, active_tasks=active_tasks, error_rate=error_rate, sample_error=sample_error
        )
        await self._run(self._agent.registrar.beat(presence))

    async def run_heartbeat_loop(
        self, max_iterations: int | None = None, task_supplier: TaskSupplier | None = None
    ) -> str:
        """See ``RemoteAgentClient.run_heartbeat_loop``."""
        return await self._until_closed(self._agent.registrar.loop(max_iterations, task_supplier), "closed")

    async def get_peers(self) -> list[PeerInfo]:
        """See ``RemoteAgentClient.get_peers``."""
        return await self._run(self._agent.peers.neighbours())

    async def discover_peer(self, target_id: str) -> str | None:
        """See ``RemoteAgentClient.discover_peer``."""
        return await self._run(self._agent.peers.discover(target_id))

    async def call_peer(
        self,
        target_id: str,
        message: str,
        prefer_direct: bool = False,
        timeout: float = A2A_TIMEOUT,
        *,
        context_id: str | None = None,
        message_id: str | None = None,
    ) -> JsonObject:
        """See ``RemoteAgentClient.call_peer``."""
        flow = self._agent.peers.call(
            target_id,
            message,
            prefer_direct=prefer_direct,
            timeout=timeout,
            context_id=context_id,
            message_id=message_id,
        )
        return await self._run(flow)

    async def delegate(self, target_id: str, task: str, *, idempotency_key: str | None = None) -> Delegation:
        """See ``RemoteAgentClient.delegate``."""
        return await self._run(self._agent.peers.delegate(target_id, task, idempotency_key=idempotency_key))

    async def delegations(self) -> list[Delegation]:
        """See ``RemoteAgentClient.delegations``."""
        return await self._run(self._agent.peers.delegations())

    async def notify(self, message: str, files: Sequence[str | Path] = ()) -> None:
        """See ``RemoteAgentClient.notify``."""
        await self._run(self._agent.chat.notify(message, files))

    def activity(
        self, *, since_secs: float = 30.0, poll_interval: float = 5.0, follow: bool = True
    ) -> AsyncGenerator[Message, None]:
        """See ``RemoteAgentClient.activity``; for ``async for``."""
        feed = self._agent.feed(
            self._platform.platform_clock, since_secs=since_secs, poll_interval=poll_interval, follow=follow
        )

        async def messages() -> AsyncGenerator[Message, None]:
            while (batch := await self._until_closed(feed.next(), None)) is not None:
                for message in batch:
                    yield message

        return messages()

    async def reply(self, message: Message, text: str) -> None:
        """See ``RemoteAgentClient.reply``."""
        await self._run(self._agent.chat.reply(message, text))

    async def install_plugin(
        self,
        name: str,
        source: str | None = None,
        run_setup_sh: bool = False,
        report_to_platform: bool = True,
        sha256: str | None = None,
    ) -> Path:
        """See ``RemoteAgentClient.install_plugin``. Files and script are a thread's work, which a cancel leaves."""
        flow = self._agent.installer.install(
            name, source, run_setup_sh=run_setup_sh, report=report_to_platform, sha256=sha256
        )
        return await self._run(flow)

    async def _until_closed(self, flow: Flow[T], otherwise: T) -> T:
        """What *flow* gives, or *otherwise* when another task has closed the client."""
        try:
            return await self._run(flow)
        except ConfigError:
            if not self._is_closed:
                raise
            return otherwise

    async def _run(self, flow: Flow[T]) -> T:
        """Takes the steps of *flow*."""
        if self._is_closed:
            raise ConfigError("the client is closed", hint="make a new one")
        try:
            step = next(flow)
            while True:
                try:
                    result = await self._take(step)
                except (MoleculeError, OSError) as exc:
                    step = flow.throw(exc)
                else:
                    step = flow.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value
        finally:
            flow.close()

    async def _take(self, step: Step) -> Any:
        match step:
            case Ask():
                if step.sink is not None:
                    step.sink.seek(0)
                    step.sink.truncate()
                return await self._platform.call(step.operation, sink=step.sink)
            case AskPeer(post):
                connections = self._transports.to(post.address)
                answer = await connections.exchange(post.operation, post.url, HEADERS, connect_to=post.connect_to)
                return post.read(answer)
            case Wait(seconds):
                await self._sleep(seconds)
                return self._is_closed
            case _:
                return await in_thread(step.do)
