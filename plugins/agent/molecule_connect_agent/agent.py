"""What both clients are made of: their arguments, checked, and the parts that know what to do."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs

from molecule_connect.config.settings import MAX_SINCE_SECS, Tls, check_workspace_id, shown_address
from molecule_connect.config.state_dir import state_file
from molecule_connect.errors import ConfigError
from molecule_connect.models import canonical_id
from molecule_connect.platform.address import parse_address
from molecule_connect.platform.clock import PlatformClock
from molecule_connect.platform.direct_messages import Resolve, system_addresses
from molecule_connect_agent.chat import Chat
from molecule_connect_agent.checks import check_json, check_seconds
from molecule_connect_agent.feed import ActivityFeed
from molecule_connect_agent.peers import Peers
from molecule_connect_agent.plugins import Installer
from molecule_connect_agent.presence import Registrar
from molecule_connect_agent.tokens import TokenFile
from molecule_connect_agent.values import (
    DEFAULT_HEARTBEAT_INTERVAL,
    DEFAULT_STATE_POLL_INTERVAL,
    DEFAULT_URL_CACHE_TTL,
)


@attrs.frozen(kw_only=True)
class AgentSettings:
    """The arguments of a client; see ``RemoteAgentClient``."""

    workspace_id: str = attrs.field(converter=check_workspace_id)
    platform_url: str = attrs.field(repr=shown_address)
    agent_card: Mapping[str, object] | None = None
    reported_url: str = ""
    token_dir: str | Path | None = None
    token: str | None = attrs.field(default=None, repr=False)
    org_id: str | None = None
    insecure: bool = False
    heartbeat_interval: float = DEFAULT_HEARTBEAT_INTERVAL
    state_poll_interval: float = DEFAULT_STATE_POLL_INTERVAL
    url_cache_ttl: float = DEFAULT_URL_CACHE_TTL
    clock: Callable[[], float] = time.monotonic
    allow_private: bool = False
    resolve: Resolve = system_addresses

    def __attrs_post_init__(self) -> None:
        if not self.platform_url:
            raise ConfigError("no platform URL was given", hint="pass the address of the platform's API")
        for name in ("heartbeat_interval", "state_poll_interval"):
            check_seconds(name, getattr(self, name))
        check_seconds("url_cache_ttl", self.url_cache_ttl, zero=True)
        check_json("agent_card", self.agent_card)

    @property
    def folder(self) -> Path:
        """Where the token and the plugins are."""
        try:
            if self.token_dir is not None:
                return Path(self.token_dir).expanduser()
            return state_file(Path.home() / ".molecule", self.workspace_id, "")
        except RuntimeError as exc:
            whose = "this user" if self.token_dir is None else f"the user that token_dir {str(self.token_dir)!r} names"
            raise ConfigError(f"{whose} has no home folder", hint="name a folder with token_dir, without a ~") from exc

    @property
    def card(self) -> Mapping[str, object]:
        """What peers and people are told of the agent."""
        return self.agent_card if self.agent_card is not None else {"name": f"remote-agent-{self.workspace_id[:8]}"}


def tls_of(ca_file: str | Path | None, client_cert: str | Path | None, client_key: str | Path | None) -> Tls:
    """The files as the settings of connections have them."""
    files = (None if file is None else Path(file) for file in (ca_file, client_cert, client_key))
    return Tls(**dict(zip(("ca_file", "client_cert", "client_key"), files, strict=True)))


class Agent:
    """The parts of one client. Nothing here sends: flows are taken by the client."""

    def __init__(self, settings: AgentSettings) -> None:
        origin = parse_address(settings.platform_url, insecure=settings.insecure).origin
        self.workspace_id = settings.workspace_id
        self.token_file = settings.folder / ".auth_token"
        self.plugins_dir = settings.folder / "plugins"
        self.tokens = TokenFile(self.token_file, workspace_id=self.workspace_id, origin=origin, given=settings.token)
        self.registrar = Registrar(
            workspace_id=self.workspace_id,
            tokens=self.tokens,
            card=settings.card,
            reported_url=settings.reported_url,
            heartbeat_interval=settings.heartbeat_interval,
            state_poll_interval=settings.state_poll_interval,
            clock=settings.clock,
        )
        self.peers = Peers(
            workspace_id=self.workspace_id,
            url_cache_ttl=settings.url_cache_ttl,
            clock=settings.clock,
            resolve=None if settings.allow_private else settings.resolve,
        )
        self.chat = Chat(workspace_id=self.workspace_id)
        self.installer = Installer(workspace_id=self.workspace_id, folder=self.plugins_dir)

    def feed(
        self, platform_clock: PlatformClock, *, since_secs: float, poll_interval: float, follow: bool
    ) -> ActivityFeed:
        """An iteration over what arrives."""
        check_seconds("since_secs", since_secs, zero=True, most=MAX_SINCE_SECS)
        check_seconds("poll_interval", poll_interval)
        return ActivityFeed(
            self.workspace_id,
            platform_clock,
            since_secs=since_secs,
            poll_interval=poll_interval,
            follow=follow,
            is_removed=self.registrar.is_removed,
            attributed=self.peers.attributed,
        )


class AgentClient:
    """What both clients have: the members that ask nobody."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._agent = Agent(settings)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.workspace_id!r})"

    @property
    def workspace_id(self) -> str:
        """Whose client this is."""
        return self._agent.workspace_id

    @property
    def token_file(self) -> Path:
        """Where the token is kept."""
        return self._agent.token_file

    @property
    def plugins_dir(self) -> Path:
        """Where plugins are installed."""
        return self._agent.plugins_dir

    def load_token(self) -> str | None:
        """The token in memory, else the one in ``token_file``, else None. A file that cannot be read is warned of.

        Raises:
            ConfigError: Others can read or write the file, or it belongs to another user.
        """
        return self._agent.tokens.load()

    def save_token(self, token: str) -> None:
        """Uses *token* from now on, and writes it to ``token_file``, readable by its owner alone.

        Raises:
            ArgumentError: It is blank.
            ConfigError: It cannot be a token, or the file cannot be written.
        """
        self._agent.tokens.save(token)

    @property
    def platform_url(self) -> str:
        """The address of the platform's API, without a slash at its end."""
        return self._settings.platform_url.rstrip("/")

    @property
    def agent_card(self) -> Mapping[str, object]:
        """What peers and people are told of the agent."""
        return self._settings.card

    @property
    def reported_url(self) -> str:
        """Where peers may reach the agent directly; empty: by way of the platform."""
        return self._settings.reported_url

    @property
    def heartbeat_interval(self) -> float:
        """Seconds between the beats of ``run_heartbeat_loop``."""
        return self._settings.heartbeat_interval

    @property
    def state_poll_interval(self) -> float:
        """Seconds between its state reads."""
        return self._settings.state_poll_interval

    @property
    def url_cache_ttl(self) -> float:
        """Seconds for which a peer's address is kept."""
        return self._settings.url_cache_ttl

    def invalidate_peer_url(self, target_id: str) -> None:
        """Asks the platform again for the address of a peer the next time."""
        self._agent.peers.addresses.forget(canonical_id(target_id))

    @staticmethod
    def is_queued(answer: Mapping[str, object]) -> bool:
        """Whether an answer of ``call_peer`` says no more than that the peer will read the message later."""
        return answer.get("status") == "queued" or answer.get("queued") is True
