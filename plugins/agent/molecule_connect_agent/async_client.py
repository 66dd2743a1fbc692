"""AsyncRemoteAgentClient: a workspace's agent, for programs that run an event loop."""

import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import httpx

from molecule_connect import AsyncPlatformClient, ConfigError, Presence, Tls, canonical_id, endpoints
from molecule_connect_agent import chat
from molecule_connect_agent.checks import MAX_SINCE_SECS, check_card, check_seconds
from molecule_connect_agent.direct import (
    DirectMessages,
    JsonObject,
    Resolve,
    literal_addresses,
    system_addresses,
)
from molecule_connect_agent.feed import ActivityFeed
from molecule_connect_agent.peers import Addresses, Peers
from molecule_connect_agent.plugins import Installer
from molecule_connect_agent.presence import Registrar, TaskSupplier
from molecule_connect_agent.requests import ClosedError, InjectedTime, Requests
from molecule_connect_agent.tokens import TokenFile
from molecule_connect_agent.values import (
    DEFAULT_HEARTBEAT_INTERVAL,
    DEFAULT_STATE_POLL_INTERVAL,
    DEFAULT_URL_CACHE_TTL,
    Delegation,
    Message,
    PeerInfo,
    WorkspaceState,
)


class AsyncRemoteAgentClient:
    """A workspace's agent. Use it as a context manager, or call ``aclose``.

    Reads, ``register`` and ``delegate`` are retried up to three times after 429 and 5xx, other calls after 429 only.
    The client waits as long as the platform asks, at most a minute. Each method can be cancelled.

    Args:
        workspace_id: As the platform shows it.
        platform_url: The address of the platform's API.
        agent_card: Describes the agent to peers and people. None: a name made from the id.
        reported_url: Where peers can reach the agent directly. Empty: through the platform.
        token_dir: The folder for the token and the plugins. None: ``~/.molecule/<workspace_id>``.
        heartbeat_interval: Seconds between the heartbeats of ``run_heartbeat_loop``.
        state_poll_interval: Seconds between its reads of the state.
        url_cache_ttl: How long a peer's address is kept, in seconds.
        token: The workspace's token. None: the one in the folder, or the one that ``register`` receives.
        org_id: The organization on a hosted platform.
        insecure: Allow plain http to another machine.
        allow_private: Allow ``prefer_direct`` to post to this machine and to private networks.
        ca_file: Certificates of the CAs to trust instead of the built-in ones, in PEM form.
        client_cert: The certificate to present to a platform that asks for one.
        client_key: Its key. None: it is in the same file.
        transport: An httpx transport to use instead of the network, for tests.
        sleep: Called to wait a number of seconds, for tests.
        clock: Returns seconds, for tests.
        resolve: Returns the addresses of a peer's host and port. None: those that this system resolves or, with
            *transport*, none for a name.

    Attributes:
        workspace_id: The workspace, in the form that the platform stores.
        platform_url: The address of the platform's API, without a slash at the end.
        agent_card, reported_url, heartbeat_interval, state_poll_interval, url_cache_ttl: The arguments.
        token_file: Where the token is stored.
        plugins_dir: Where plugins are installed.

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
        sleep: Callable[[float], Awaitable[object]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        resolve: Resolve | None = None,
    ) -> None:
        if not platform_url:
            raise ConfigError("no platform URL was given", hint="pass the address of the platform's API")
        check_seconds("heartbeat_interval", heartbeat_interval)
        check_seconds("state_poll_interval", state_poll_interval)
        check_seconds("url_cache_ttl", url_cache_ttl, zero=True)
        if sleep is not None:
            time_ = InjectedTime(clock, sleep)
            clock, sleep = time_.now, time_.sleep
        self._tokens = TokenFile(workspace_id, token_dir, token=token)
        platform = AsyncPlatformClient(
            platform_url,
            workspace_id=workspace_id,
            credentials=self._tokens,
            org_id=org_id,
            insecure=insecure,
            tls=Tls(ca_file=_path(ca_file), client_cert=_path(client_cert), client_key=_path(client_key)),
            transport=transport,
            clock=clock,
            sleep=sleep,
        )
        self.workspace_id = platform.workspace_id
        self.platform_url = platform_url.rstrip("/")
        self.agent_card = check_card(self.workspace_id, agent_card)
        self.reported_url = reported_url
        self.heartbeat_interval = heartbeat_interval
        self.state_poll_interval = state_poll_interval
        self.url_cache_ttl = url_cache_ttl
        self.token_file = self._tokens.path
        self.plugins_dir = self._tokens.path.with_name("plugins")
        self._requests = Requests(platform, clock, sleep)
        self._registrar = Registrar(
            self._requests, self._tokens, self.agent_card, reported_url, heartbeat_interval, state_poll_interval
        )
        if resolve is None:
            resolve = system_addresses if transport is None else literal_addresses
        direct = DirectMessages(None if allow_private else resolve, transport)
        self._peers = Peers(self._requests, Addresses(url_cache_ttl, clock), direct)
        self._installer = Installer(self._requests, self.plugins_dir)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.workspace_id!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End loops and iterations, and close the connections when their requests are answered."""
        await self._requests.aclose()

    def load_token(self) -> str | None:
        """The token in memory, else the one in ``token_file``, else None. A file that can't be read logs a warning.

        Raises:
            ConfigError: Others can read or change the file, or it belongs to another user.
        """
        return self._tokens.load()

    def save_token(self, token: str) -> None:
        """Use *token* from now on, and write it to ``token_file``, readable only by its owner.

        Raises:
            ArgumentError: It is blank.
            ConfigError: It is not a valid token, or the file can't be written.
        """
        self._tokens.save(token)

    def invalidate_peer_url(self, target_id: str) -> None:
        """Look up the address of a peer again the next time."""
        self._peers.addresses.forget(canonical_id(target_id))

    @staticmethod
    def is_queued(answer: Mapping[str, object]) -> bool:
        """Whether a response of ``call_peer`` says only that the peer will read the message later."""
        return answer.get("status") == "queued" or answer.get("queued") is True

    async def register(self) -> str:
        """Register as the agent of the workspace, which polls for its messages.

        A token that the platform issues, to a new workspace, is stored.

        Returns:
            The issued token, else the stored one, else an empty string.

        Raises:
            AuthError: The workspace has another token than the stored one.
            WorkspaceDeletedError: The workspace was deleted. The stored token is kept.
        """
        return await self._registrar.register()

    async def pull_secrets(self) -> dict[str, str]:
        """The secrets of the workspace, by name.

        Raises:
            AuthError: The token was refused; register first.
        """
        return await self._registrar.secrets()

    async def poll_state(self) -> WorkspaceState:
        """The state of the workspace. It counts as deleted if the token is refused and the workspace is gone."""
        return await self._registrar.state()

    async def heartbeat(
        self, current_task: str = "", active_tasks: int = 0, *, error_rate: float = 0.0, sample_error: str = ""
    ) -> None:
        """Send one heartbeat, with the seconds since this client was created as uptime.

        Args:
            error_rate: 0 to 1. From 0.5, the platform shows the workspace as degraded.

        Raises:
            ArgumentError: The rate is invalid.
        """
        await self._registrar.heartbeat(
            Presence(
                current_task=current_task, active_tasks=active_tasks, error_rate=error_rate, sample_error=sample_error
            )
        )

    async def run_heartbeat_loop(
        self, max_iterations: int | None = None, task_supplier: TaskSupplier | None = None
    ) -> str:
        """Send heartbeats and read the state until the agent should stop. Failures are logged and retried.

        Args:
            max_iterations: The number of heartbeats to send. None: no limit.
            task_supplier: Returns ``current_task`` and ``active_tasks`` for each heartbeat. It may be async.

        Returns:
            ``paused``, ``removed``, ``max_iterations``, or ``closed`` if the client was closed meanwhile.
        """
        return await self._registrar.run_loop(max_iterations, task_supplier)

    async def get_peers(self) -> list[PeerInfo]:
        """The workspaces that this one may write to."""
        return await self._peers.listed()

    async def discover_peer(self, target_id: str) -> str | None:
        """The address that a peer claims, kept for a while. None if it isn't an http(s) address.

        Raises:
            AuthError: The token was refused.
            PermanentPlatformError: This workspace may not write to the peer.
        """
        return await self._peers.discover(target_id)

    async def call_peer(
        self,
        target_id: str,
        message: str,
        *,
        prefer_direct: bool = False,
        timeout: float = endpoints.A2A_TIMEOUT,
        context_id: str | None = None,
        message_id: str | None = None,
    ) -> JsonObject:
        """Ask a peer through the platform, and return its JSON-RPC response unchanged; see ``is_queued``.

        Args:
            prefer_direct: Post to the peer's own address, without the token. If the message can't have arrived there,
                it is sent through the platform. Only public addresses are used, unless the client was created with
                *allow_private*.
            timeout: Seconds to wait for the response to begin, and for each piece of it.
            context_id: The conversation that the message belongs to.
            message_id: The id of the message, which a later reply names as ``in_reply_to``. None: a new id.

        Raises:
            PermanentPlatformError: The platform refused.
            TransientPlatformError: There was no response. ``outcome`` says whether the message may have arrived.
        """
        return await self._peers.call(
            target_id,
            message,
            prefer_direct=prefer_direct,
            timeout=timeout,
            context_id=context_id,
            message_id=message_id,
        )

    async def delegate(self, target_id: str, task: str, *, idempotency_key: str | None = None) -> Delegation:
        """Delegate a task to a peer, and let the platform track it. The same key again is the same delegation."""
        return await self._peers.delegate(target_id, task, idempotency_key=idempotency_key)

    async def delegations(self) -> list[Delegation]:
        """The newest fifty delegations of the workspace."""
        return await self._peers.delegations()

    async def notify(self, message: str, files: Sequence[str | Path] = ()) -> None:
        """Write to the person in the canvas of the workspace, with files of this machine."""
        await chat.notify(self._requests, message, files)

    def activity(
        self, *, since_secs: float = 30.0, poll_interval: float = 5.0, follow: bool = True
    ) -> AsyncGenerator[Message, None]:
        """Messages, replies of peers and results of delegations, as they arrive.

        Delivery is at least once. Reads overlap by 45 seconds, because the platform may show a row late; messages that
        were yielded are recognized by their id. The ids are kept in memory, for one iteration. With *follow*,
        transient failures are logged and retried.

        Args:
            since_secs: How far the first read looks back, in seconds; at most 30 days.
            poll_interval: Seconds between reads that find nothing.
            follow: Wait for more when everything was read, until the client is closed.

        Raises:
            WorkspaceDeletedError: The workspace was deleted.
            AuthError: The token was refused; with *follow*, for more than a minute.
        """
        return _each(self._batches(since_secs, poll_interval, follow))

    def _batches(self, since_secs: float, poll_interval: float, follow: bool) -> AsyncGenerator[list[Message], None]:
        check_seconds("since_secs", since_secs, zero=True, most=MAX_SINCE_SECS)
        check_seconds("poll_interval", poll_interval)
        feed = ActivityFeed(self._requests, self._registrar, self._peers, since_secs=since_secs)
        return feed.batches(poll_interval if follow else None)

    async def reply(self, message: Message, text: str) -> None:
        """Reply to the peer or the person who wrote *message*. The same text again is the same reply.

        Raises:
            ArgumentError: The message is itself a reply, or is for another workspace.
        """
        await chat.reply(self._requests, message, text)

    async def install_plugin(
        self,
        name: str,
        source: str | None = None,
        *,
        run_setup_sh: bool = False,
        report_to_platform: bool = True,
        sha256: str | None = None,
    ) -> Path:
        """Download a plugin to ``plugins_dir``, replacing an installed copy.

        Links in it are skipped, with a warning. It may have at most 100 MiB, packed and unpacked.

        Args:
            source: Where the platform gets it from. None: from its own plugins.
            run_setup_sh: Run its ``setup.sh`` with bash, for at most 120 seconds. It has all permissions of this user,
                so read it first. A failure is a warning.
            report_to_platform: Report the plugin to the platform, whose response is ignored.
            sha256: The expected digest of the archive, as 64 hexadecimal digits.

        Raises:
            ArgumentError: The name or the digest is invalid.
            ArchiveError: The archive is broken, hostile or not the expected one. Nothing was changed.
        """
        return await self._installer.install(
            name, source, run_setup_sh=run_setup_sh, report=report_to_platform, sha256=sha256
        )


def _path(file: str | Path | None) -> Path | None:
    return None if file is None else Path(file)


async def _each(batches: AsyncGenerator[list[Message], None]) -> AsyncGenerator[Message, None]:
    with contextlib.suppress(ClosedError):
        async for batch in batches:
            for message in batch:
                yield message
