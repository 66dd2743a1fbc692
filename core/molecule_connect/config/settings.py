"""The settings of a workspace: each field declares its type, default, bounds, help, flag, variables and key."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from molecule_connect.config import values
from molecule_connect.config.values import Bounds, ValueType
from molecule_connect.errors import ConfigError, without_credentials
from molecule_connect.models import canonical_id

DEFAULT_API_URL = "http://localhost:8080"
DEFAULT_BACKEND = "claude-code"
# An id becomes a file name and a part of a URL.
WORKSPACE_ID = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,128}\Z")
MAX_SINCE_SECS = 30 * 24 * 3600
# Longer waits overflow the timers of threads on some machines.
MAX_SECONDS = 24 * 3600
_LONGEST_BUDGET = 40
# attrs types its class as a function.
_Factory: Any = attrs.Factory
_METADATA = "molecule_connect.setting"


def is_same_workspace(one: str, other: str) -> bool:
    """Whether both ids may refer to the same workspace. The platform rejects a message to oneself in any spelling."""
    return canonical_id(one).lower() == canonical_id(other).lower()


def shown_address(api_url: str) -> str:
    """How a repr shows an address: before it is checked, it may contain a password."""
    return repr(without_credentials(str(api_url)))


def check_workspace_id(workspace_id: Any) -> str:
    """*workspace_id* in its canonical form.

    Raises:
        ConfigError: It can't be an id: 1 to 128 of ``A-Z a-z 0-9 . _ -``, not ``.`` or ``..``.
    """
    given, workspace_id = workspace_id, _canonical(workspace_id)
    if not workspace_id:
        raise ConfigError("no workspace id was given", hint="pass the id that the platform shows for the workspace")
    if not isinstance(workspace_id, str) or not WORKSPACE_ID.match(workspace_id):
        raise ConfigError(
            f"{given!r} cannot be a workspace id",
            hint="an id is 1 to 128 characters of A-Z a-z 0-9 . _ - (no slash, no space); copy it from the platform",
        )
    return workspace_id


def check_org_id(org_id: str | None) -> None:
    """Raises ConfigError if *org_id* can't be sent in a header. None is fine."""
    if org_id is not None and not (org_id.isascii() and org_id.isprintable() and org_id.strip() == org_id != ""):
        raise ConfigError(
            "the organization id contains characters that a header can't contain",
            hint="copy it from the platform again",
        )


def _canonical(workspace_id: Any) -> Any:
    # The class accepts any value, so that check() can report a wrong one.
    return canonical_id(workspace_id) if isinstance(workspace_id, str) else workspace_id


@attrs.frozen(kw_only=True)
class Tls:
    """Which certificates to trust for https, and which one to present.

    Attributes:
        ca_file: Certificates (PEM) of the CAs to trust instead of the default ones.
        client_cert: Our certificate (PEM), for platforms that require one.
        client_key: Its key; None if it is in the same file.
    """

    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None


USUAL_TLS = Tls()


@attrs.frozen(kw_only=True)
class PeerBudget:
    """How many turns a peer may have before its conversation is parked. 0 means no limit."""

    per_minute: int = 60
    per_hour: int = 600

    @classmethod
    def parse(cls, text: str) -> "PeerBudget":
        """``60/600`` (per minute and per hour), or ``0`` for no limit.

        Raises:
            ConfigError: *text* has another form.
        """
        minute, slash, hour = ("0", "/", "0") if text == "0" else text.partition("/")
        # int() itself refuses thousands of digits.
        if not (slash and minute.isdecimal() and hour.isdecimal() and len(text) <= _LONGEST_BUDGET):
            raise ConfigError(
                f"{text[:_LONGEST_BUDGET]!r} must be like 60/600 (turns per minute and per hour), or 0 for no limit",
                hint="omit it for the default, 60/600",
            )
        return cls(per_minute=int(minute), per_hour=int(hour))

    @classmethod
    def from_document(cls, value: Any) -> "PeerBudget":
        """``"60/600"``, ``"0"`` or the number 0.

        Raises:
            InvalidValueError, ConfigError: It is another value.
        """
        is_zero = value == 0 and not isinstance(value, bool)
        return cls.parse("0" if is_zero else values.TEXT.from_document(value))

    def __str__(self) -> str:
        return f"{self.per_minute}/{self.per_hour}"


@attrs.frozen(kw_only=True)
class Setting:
    """Metadata of a setting. Its flag, variables, key, help and documentation are derived from it.

    Attributes:
        help: One or two sentences for help texts and documentation.
        bounds: The range of the value, in the unit of the field.
        flag: The flag of ``molecule connect``, if any.
        variables: Environment variables. The first that is set and not empty counts.
        key: The key in a list of workspaces, if any.
        placeholder: Stands for a value in help texts; None for that of the type.
        default_text: Describes the default, if the value alone doesn't.
        single: The variables apply to a single workspace, and not to a list.
        own: Each workspace of a list has its own value: it can't be in ``[defaults]``.
    """

    kind: ValueType
    help: str = ""
    bounds: Bounds | None = None
    flag: str = ""
    variables: tuple[str, ...] = ()
    key: str = ""
    placeholder: str | None = None
    default_text: str = ""
    single: bool = False
    own: bool = False
    default: Any = None

    @property
    def shown_default(self) -> str:
        """The default for help texts and documentation; empty without one."""
        if self.default_text or self.default in (None, False, ()) or isinstance(self.default, Mapping):
            return self.default_text
        return self.kind.to_text(self.default)


def _metadata(kind: ValueType, text: str, **declared: Any) -> dict[str, Setting]:
    return {_METADATA: Setting(kind=kind, help=text, **declared)}


def _setting(
    kind: ValueType,
    text: str,
    *,
    default: Any = attrs.NOTHING,
    repr: bool | Callable[[Any], str] = True,  # noqa: A002 - as in attrs
    **declared: Any,
) -> Any:
    """A field with its ``Setting``. Type checkers see a field with a default."""
    return attrs.field(default=default, repr=repr, metadata=_metadata(kind, text, **declared))


_SECONDS = Bounds(minimum=0, maximum=MAX_SECONDS, unit="seconds")
_INTERVAL = attrs.evolve(_SECONDS, exclusive=True)
_ID = ValueType(
    placeholder="ID",
    from_text=str,
    from_document=lambda value: check_workspace_id(values.TEXT.from_document(value)),
)


_PEER_BUDGET = ValueType(
    placeholder="N/N", from_text=PeerBudget.parse, from_document=PeerBudget.from_document, to_document=str
)


@attrs.frozen(kw_only=True)
class WorkspaceSettings:
    """One workspace to serve. Durations are in seconds.

    Attributes:
        workspace_id: Converted to its canonical form.
        token: Excluded from the repr. None: it is read from ``token_file``, or from the state folder.
        token_source: The source of ``token``, for messages ("--token").
        adopt_token: Store ``token`` in the state folder, because it is from the file of another client.
        backend: The name of an installed backend, or an object with a ``handle_a2a`` hook.
        options: The options of the backend, as text; a repeated key is a list.
        middleware: Names or objects, the outermost first.
        poll_interval: Time between polls; None eases from 1 to 5 seconds.
        heartbeat_interval: Time between heartbeats.
        safety_interval: Time between reads that don't follow an event.
        max_cost_per_day: US dollars, as reported by the backend; None for no limit.
        journal_quota: Bytes, for all workspaces of the same journal.
        agent_name, agent_description, agent_skills: Override these parts of the agent card.
        once: Read to the end of the feed, answer all messages, and stop.
        patient: Retry forever if the platform can't be reached or refuses the registration.
        create: Register a workspace that the platform doesn't have, which creates it.
        entry: The number of the workspace in a list, from 1; 0 if there is no list.
        place: How messages about the list name it, without its id.
        settings_file: The saved settings that these are from, if any.
    """

    workspace_id: str = attrs.field(
        converter=_canonical,
        metadata=_metadata(
            _ID, "The workspace.", variables=("WORKSPACE_ID",), key="id", single=True, own=True, default_text="required"
        ),
    )
    api_url: str = _setting(
        values.TEXT,
        "The address of the platform.",
        default=DEFAULT_API_URL,
        repr=shown_address,
        flag="--api-url",
        # The last two are set by related clients and in the platform's containers.
        variables=("MOLECULE_API_URL", "MOLECULE_PLATFORM_URL", "PLATFORM_URL"),
        key="api_url",
        placeholder="URL",
    )
    org_id: str | None = _setting(
        values.OPTIONAL_TEXT,
        "The organization, on platforms that host several.",
        default=None,
        flag="--org-id",
        variables=("MOLECULE_ORG_ID",),
        key="org_id",
        placeholder="ID",
    )
    token: str | None = _setting(
        values.SECRET,
        "The workspace token. Other users of this machine can see it in the process list; prefer --token-file.",
        default=None,
        repr=False,
        flag="--token",
        variables=("MOLECULE_WORKSPACE_TOKEN",),
        key="token",
        placeholder="TOKEN",
        single=True,
        own=True,
    )
    token_source: str = "token"  # noqa: S105
    adopt_token: bool = False
    token_file: Path | None = _setting(
        values.PATH,
        "A file with the token on one line, readable only by you.",
        default=None,
        flag="--token-file",
        variables=("MOLECULE_WORKSPACE_TOKEN_FILE",),
        key="token_file",
        single=True,
        own=True,
    )
    backend: str | object = _setting(
        values.TEXT,
        "The backend that answers messages; distribution:name if two distributions offer that name.",
        default=DEFAULT_BACKEND,
        flag="--backend",
        key="backend",
        placeholder="NAME",
    )
    options: Mapping[str, str | list[str]] = _setting(
        values.OPTIONS,
        "An option of the backend. See 'molecule backends NAME'. Repeatable.",
        default=_Factory(dict),
        repr=False,
        flag="--backend-opt",
        key="options",
    )
    middleware: tuple[str | object, ...] = _setting(
        values.NAMES,
        "A middleware around the backend. Repeatable; the first is the outermost.",
        default=(),
        flag="--use",
        key="use",
    )
    middleware_options: Mapping[str, str | list[str]] = _setting(
        values.PLUGIN_OPTIONS,
        "An option of a middleware. Repeatable.",
        default=_Factory(dict),
        repr=False,
        flag="--use-opt",
        key="use_options",
    )
    poll_interval: float | None = _setting(
        values.MILLISECONDS,
        "Poll at exactly this interval.",
        default=None,
        bounds=_INTERVAL,
        flag="--interval-ms",
        key="interval_ms",
        default_text="1 s after traffic, easing to 5 s",
    )
    heartbeat_interval: float = _setting(values.SECONDS, "Time between heartbeats.", default=30.0, bounds=_INTERVAL)
    safety_interval: float = _setting(
        values.SECONDS, "Time between reads that don't follow an event.", default=30.0, bounds=_INTERVAL
    )
    since_secs: float = _setting(
        values.SECONDS,
        "How far back the first start reads; 0 reads only new messages.",
        default=30.0,
        bounds=Bounds(minimum=0, maximum=MAX_SINCE_SECS, unit="seconds (30 days)"),
        flag="--since-secs",
        key="since_secs",
    )
    concurrency: int = _setting(
        values.WHOLE_NUMBER,
        "Maximum number of messages handled at once. Each conversation is handled in order.",
        default=8,
        bounds=Bounds(minimum=1),
        flag="--concurrency",
        key="concurrency",
    )
    grace: float = _setting(
        values.SECONDS,
        "How long messages in progress may take to finish after a shutdown was requested.",
        default=20.0,
        bounds=_SECONDS,
        flag="--grace",
        key="grace",
    )
    peer_budget: PeerBudget = _setting(
        _PEER_BUDGET,
        "Turns that one peer may have per minute and per hour; 0 for no limit.",
        default=_Factory(PeerBudget),
        flag="--peer-budget",
        key="peer_budget",
    )
    max_cost_per_day: float | None = _setting(
        values.NUMBER,
        "When the costs that the backend reports reach this amount, messages wait for the next day (UTC). One peer may "
        "spend half of it, all peers together three quarters.",
        default=None,
        bounds=Bounds(minimum=0, maximum=1_000_000, exclusive=True, unit="dollars"),
        flag="--max-cost-per-day",
        key="max_cost_per_day",
        placeholder="USD",
        default_text="no limit",
    )
    journal_quota: int = _setting(
        values.SIZE,
        "The maximum size of the journal, such as 500M or 2GiB. When it is reached, old texts of the callers that "
        "use the most space are deleted.",
        default=1 << 30,
        bounds=Bounds(minimum=1 << 20, unit="bytes (1 MiB)"),
        flag="--journal-quota",
        variables=("MOLECULE_JOURNAL_QUOTA",),
        key="journal_quota",
    )
    agent_name: str | None = _setting(
        values.OPTIONAL_TEXT,
        "The name on the agent card, instead of the one that the platform shows.",
        default=None,
        flag="--agent-name",
        variables=("MOLECULE_AGENT_NAME",),
        key="agent_name",
        placeholder="NAME",
        single=True,
    )
    agent_description: str | None = _setting(
        values.OPTIONAL_TEXT,
        "The description on the agent card.",
        default=None,
        variables=("MOLECULE_AGENT_DESCRIPTION",),
        key="agent_description",
        single=True,
    )
    agent_skills: tuple[str, ...] = _setting(
        values.NAMES,
        "The skills on the agent card; the variable separates them with commas.",
        default=(),
        variables=("MOLECULE_AGENT_SKILLS",),
        key="agent_skills",
        single=True,
    )
    ca_file: Path | None = _setting(
        values.PATH,
        "Certificates (PEM) of the CAs to trust instead of the default ones.",
        default=None,
        flag="--ca-file",
        variables=("MOLECULE_CA_FILE",),
        key="ca_file",
    )
    client_cert: Path | None = _setting(
        values.PATH,
        "The certificate (PEM), with its key, for a platform that requires one.",
        default=None,
        flag="--client-cert",
        variables=("MOLECULE_CLIENT_CERT",),
        key="client_cert",
    )
    client_key: Path | None = _setting(
        values.PATH,
        "The key (PEM), if it isn't in the file of --client-cert.",
        default=None,
        flag="--client-key",
        variables=("MOLECULE_CLIENT_KEY",),
        key="client_key",
    )
    strict: bool = _setting(
        values.SWITCH,
        "Treat warnings as errors: unknown options, and a state folder that other users could replace. Reject a "
        "list if any of its workspaces can't be served.",
        default=False,
        flag="--strict",
        key="strict",
    )
    once: bool = _setting(values.SWITCH, "Answer the waiting messages, then exit.", default=False, flag="--once")
    standby: bool = _setting(
        values.SWITCH,
        "While another process on this machine serves the workspace, wait until it stops, instead of exiting with 5.",
        default=False,
        flag="--standby",
        variables=("MOLECULE_STANDBY",),
        key="standby",
    )
    patient: bool = False
    unpause: bool = _setting(
        values.SWITCH,
        "Register even if the workspace is paused, which resumes it.",
        default=False,
        flag="--unpause",
        key="unpause",
    )
    create: bool = _setting(
        values.SWITCH,
        "Register even if the platform has no workspace with this id, which creates it.",
        default=False,
        flag="--create",
        variables=("MOLECULE_CREATE",),
        key="create",
    )
    insecure: bool = _setting(
        values.SWITCH,
        "Allow plain http to another machine, where it can be intercepted.",
        default=False,
        flag="--insecure",
        key="insecure",
    )
    enabled: bool = _setting(
        values.SWITCH,
        "Whether this workspace of a list is served.",
        default=True,
        key="enabled",
        default_text="true",
        own=True,
    )
    labels: Mapping[str, str] = _setting(
        values.LABELS,
        "Names and texts that describe the workspace in its status and its metrics.",
        default=_Factory(dict),
        key="labels",
    )
    entry: int = attrs.field(default=0, eq=False)
    place: str = attrs.field(default="", eq=False)
    settings_file: Path | None = attrs.field(default=None, eq=False)

    @property
    def backend_name(self) -> str:
        """The name of the backend, or of its class."""
        return self.backend if isinstance(self.backend, str) else type(self.backend).__name__

    @property
    def tls(self) -> Tls:
        """The files for https."""
        return Tls(ca_file=self.ca_file, client_cert=self.client_cert, client_key=self.client_key)

    @property
    def card(self) -> dict[str, Any]:
        """The parts of the agent card that these settings override."""
        skills = [{"id": skill, "name": skill, "description": "", "tags": []} for skill in self.agent_skills]
        members = {"name": self.agent_name, "description": self.agent_description, "skills": skills}
        return {member: value for member, value in members.items() if value}

    def check(self) -> "WorkspaceSettings":
        """Return these settings, or raise ConfigError for the first invalid one."""
        for _, fault in self.faults():
            raise fault
        return self

    def faults(self) -> Iterator[tuple[str, ConfigError]]:
        """Each invalid field, and the error."""
        checks: tuple[tuple[str, Callable[[Any], Any]], ...]
        checks = ("workspace_id", check_workspace_id), ("org_id", check_org_id)
        for name, check in checks:
            try:
                check(getattr(self, name))
            except ConfigError as exc:
                yield name, exc
        if not self.backend:
            yield (
                "backend",
                ConfigError("no backend is set", hint="pass a name, such as backend='mock', or a plugin object"),
            )
        for name, setting in SCHEMA.items():
            value = getattr(self, name)
            if setting.bounds is not None and value is not None and (fault := setting.bounds.fault(value)):
                default = f", {setting.shown_default}" if setting.shown_default else ""
                yield name, ConfigError(f"{name} {fault}", hint=f"correct it, or omit it to use the default{default}")


def _schema() -> dict[str, Setting]:
    found = {}
    for field in attrs.fields(WorkspaceSettings):
        if (declared := field.metadata.get(_METADATA)) is not None:
            default: Any = field.default
            if isinstance(default, _Factory):
                default = default.factory()
            found[field.name] = attrs.evolve(declared, default=None if default is attrs.NOTHING else default)
    return found


# Field name -> setting.
SCHEMA = _schema()
# Key of a list of workspaces -> field name.
KEYS = {setting.key: name for name, setting in SCHEMA.items() if setting.key}
