"""RemoteAgentClient: the blocking client for people's own agents."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from molecule_connect.errors import ConfigError, MoleculeError
from molecule_connect.models import Presence
from molecule_connect.platform.blocking_client import BlockingTransport, BlockingTransports, PlatformClient
from molecule_connect.platform.direct_messages import HEADERS, Resolve, literal_addresses, system_addresses
from molecule_connect.platform.endpoints import A2A_TIMEOUT
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


class RemoteAgentClient(AgentClient):
    """A workspace's way to its platform, for a program that is the agent itself. Threads may share one.

    Use it as a context manager, or call ``close``. Requests that cannot do harm twice are repeated, up to three times,
    when the platform answers 429 or 5xx; it is waited for as long as the platform asks, a minute at most.

    Args:
        workspace_id: As the platform shows it.
        platform_url: The address of the platform's API; a slash at its end is harmless.
        agent_card: What peers and people are told; None: a name made of the id.
        reported_url: Where peers may reach the agent directly; empty: they write by way of the platform.
        token_dir: Where the token and the plugins are kept; None: ``~/.molecule/<workspace_id>``.
        token: The workspace's token; None: the one that the folder holds, or that ``register`` is given.
        org_id: The organisation that hosted tenants are told apart by.
        insecure: Allows plain http to another machine.
        allow_private: Lets ``prefer_direct`` post to addresses of this machine and of private networks.
        ca_file: Certificates of the CAs to trust in place of the built-in ones, in PEM form.
        client_cert: The certificate to show to a platform that asks for one.
        client_key: Its key; None: it is in the same file.
        heartbeat_interval: Seconds between the beats of ``run_heartbeat_loop``.
        state_poll_interval: Seconds between its state reads.
        url_cache_ttl: Seconds for which a peer's address is kept.
        transport: An httpx transport that stands in for the network; tests give one.
        sleep: Waits for so many seconds; None: until then, or until ``close``.
        resolve: Gives the addresses of a peer's host and port; None: as this system resolves it, and with *transport*
            none for a name.

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
        transport: BlockingTransport | None = None,
        sleep: Callable[[float], object] | None = None,
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
        tls = tls_of(ca_file, client_cert, client_key)
        self._transports = BlockingTransports(transport=transport, tls=tls, clock=clock)
        self._platform = PlatformClient(
            platform_url,
            workspace_id=workspace_id,
            credentials=self._agent.tokens,
            org_id=org_id,
            insecure=insecure,
            transports=self._transports,
            clock=clock,
        )
        self._sleep = sleep
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends loops and iterations of other threads, and closes the connections once their requests are answered."""
        self._closed.set()
        self._platform.close()

    def register(self) -> str:
        """Tells the platform that this agent answers for the workspace, and that it fetches its messages itself.

        The token that the platform hands out to a new workspace is saved.

        Returns:
            That token, else the one that is there, else an empty text.

        Raises:
            AuthError: The workspace has a token, and it is not the one that is there.
            WorkspaceDeletedError: The workspace is gone; the token that is there stays.
        """
        return self._run(self._agent.registrar.register())

    def pull_secrets(self) -> dict[str, str]:
        """Name and value of each secret of the workspace.

        Raises:
            AuthError: The token is refused; register first.
        """
        return self._run(self._agent.registrar.secrets())

    def poll_state(self) -> WorkspaceState:
        """Whether the workspace is paused or removed. A refused token whose workspace is gone counts as removed."""
        return self._run(self._agent.registrar.state())

    def heartbeat(
        self, current_task: str = "", active_tasks: int = 0, error_rate: float = 0.0, sample_error: str = ""
    ) -> None:
        """One heartbeat, with the whole seconds since this client was made as uptime.

        Args:
            error_rate: 0 to 1; from 0.5 on the platform shows the workspace as degraded.

        Raises:
            ArgumentError: The rate is none.
        """
        presence = Presence(
            current_task=current_task, active_tasks=active_tasks, error_rate=error_rate, sample_error=sample_error
        )
        self._run(self._agent.registrar.beat(presence))

    def run_heartbeat_loop(self, max_iterations: int | None = None, task_supplier: TaskSupplier | None = None) -> str:
        """Beats and reads the state until the agent should stop. Failures are logged, and tried again soon.

        Args:
            max_iterations: Ends after so many beats; None: no limit.
            task_supplier: Gives ``current_task`` and ``active_tasks`` for each beat.

        Returns:
            ``paused``, ``removed``, ``max_iterations``, or ``closed`` when another thread closed the client.
        """
        return self._until_closed(self._agent.registrar.loop(max_iterations, task_supplier), "closed")

    def get_peers(self) -> list[PeerInfo]:
        """The workspaces that this one may write to."""
        return self._run(self._agent.peers.neighbours())

    def discover_peer(self, target_id: str) -> str | None:
        """Where a peer says that it listens, from memory for a while; None when it names no http(s) address.

        Raises:
            AuthError: The token is refused.
            PermanentPlatformError: This workspace may not write to the peer.
        """
        return self._run(self._agent.peers.discover(target_id))

    def call_peer(
        self,
        target_id: str,
        message: str,
        prefer_direct: bool = False,
        timeout: float = A2A_TIMEOUT,
        *,
        context_id: str | None = None,
        message_id: str | None = None,
    ) -> JsonObject:
        """Asks a peer, by way of the platform, and gives its JSON-RPC answer as it came; see ``is_queued``.

        Args:
            prefer_direct: Post to the peer's own address, without the token. The platform carries the message when it
                cannot have arrived there, and never when nobody knows. An address that is not public counts as none,
                unless the client was made with *allow_private*.
            timeout: Seconds to wait for the answer to begin, and for each piece of it.
            context_id: The conversation that it belongs to.
            message_id: What the message is called; a later answer may name it as ``in_reply_to``. None: a new id.

        Raises:
            PermanentPlatformError: The platform refused.
            TransientPlatformError: No answer came; ``outcome`` says whether the message may have arrived.
        """
        flow = self._agent.peers.call(
            target_id,
            message,
            prefer_direct=prefer_direct,
            timeout=timeout,
            context_id=context_id,
            message_id=message_id,
        )
        return self._run(flow)

    def delegate(self, target_id: str, task: str, *, idempotency_key: str | None = None) -> Delegation:
        """Hands a task to a peer; the platform keeps the list. The same key twice is the same delegation."""
        return self._run(self._agent.peers.delegate(target_id, task, idempotency_key=idempotency_key))

    def delegations(self) -> list[Delegation]:
        """The newest fifty delegations of the workspace."""
        return self._run(self._agent.peers.delegations())

    def notify(self, message: str, files: Sequence[str | Path] = ()) -> None:
        """Writes to the person in the canvas of the workspace, with files of this machine."""
        self._run(self._agent.chat.notify(message, files))

    def activity(
        self, *, since_secs: float = 30.0, poll_interval: float = 5.0, follow: bool = True
    ) -> Iterator[Message]:
        """What arrives for the workspace: messages, answers of peers, results of delegations.

        Each comes at least once. Reads overlap by 45 seconds, because the platform may show a row late; what came
        before is known by its id, in memory alone: another iteration, or another process, begins anew. While it is
        followed, failures that may pass are logged, and it goes on.

        Args:
            since_secs: How far to look back at first, in seconds; at most 30 days.
            poll_interval: Seconds between reads that bring nothing.
            follow: Wait for more when all was read; ends when the client is closed.

        Raises:
            WorkspaceDeletedError: The workspace is gone.
            AuthError: The token stayed refused, for more than a minute while it is followed.
        """
        feed = self._agent.feed(
            self._platform.platform_clock, since_secs=since_secs, poll_interval=poll_interval, follow=follow
        )

        def messages() -> Iterator[Message]:
            while (batch := self._until_closed(feed.next(), None)) is not None:
                yield from batch

        return messages()

    def reply(self, message: Message, text: str) -> None:
        """Answers *message*, to the peer or the person who wrote it. The same text again is the same reply.

        Raises:
            ArgumentError: The message is itself an answer, or is for another workspace.
        """
        self._run(self._agent.chat.reply(message, text))

    def install_plugin(
        self,
        name: str,
        source: str | None = None,
        run_setup_sh: bool = False,
        report_to_platform: bool = True,
        sha256: str | None = None,
    ) -> Path:
        """Downloads a plugin and puts it in ``plugins_dir``, in place of the one that is there.

        Links in it are left out, with a warning. At most 100 MiB, packed and unpacked.

        Args:
            source: Where the platform takes it from; None: its own.
            run_setup_sh: Run its ``setup.sh`` by bash for at most 120 seconds. It may do whatever this user may, so
                read it first. A failure is a warning.
            report_to_platform: Tell the platform; whatever it says to that is ignored.
            sha256: What the archive must be; 64 hexadecimal digits.

        Raises:
            ArgumentError: Name or digest cannot be one.
            ArchiveError: The archive is not the expected one, broken or hostile. Nothing was changed.
        """
        flow = self._agent.installer.install(
            name, source, run_setup_sh=run_setup_sh, report=report_to_platform, sha256=sha256
        )
        return self._run(flow)

    def _until_closed(self, flow: Flow[T], otherwise: T) -> T:
        """What *flow* gives, or *otherwise* when another thread has closed the client."""
        try:
            return self._run(flow)
        except ConfigError:
            if not self._closed.is_set():
                raise
            return otherwise

    def _run(self, flow: Flow[T]) -> T:
        """Takes the steps of *flow*, in this thread."""
        try:
            step = next(flow)
            while True:
                try:
                    result = self._take(step)
                except (MoleculeError, OSError) as exc:
                    step = flow.throw(exc)
                else:
                    step = flow.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value
        finally:
            flow.close()

    def _take(self, step: Step) -> Any:
        match step:
            case Ask():
                if step.sink is not None:
                    step.sink.seek(0)
                    step.sink.truncate()
                return self._platform.call(step.operation, sink=step.sink)
            case AskPeer(post):
                answer = self._transports.exchange(
                    post.address, post.operation, post.url, HEADERS, connect_to=post.connect_to
                )
                return post.read(answer)
            case Wait(seconds):
                if self._sleep is not None:
                    self._sleep(seconds)
                    return self._closed.is_set()
                return self._closed.wait(seconds)
            case _:
                return step.do()
