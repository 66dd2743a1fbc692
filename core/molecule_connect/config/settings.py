"""What one connection is asked to do. Values and their checks; where they come from is the caller's affair."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from molecule_connect.errors import ConfigError, without_credentials
from molecule_connect.models import canonical_id

DEFAULT_API_URL = "http://localhost:8080"
DEFAULT_BACKEND = "claude-code"
# An id becomes a file name and a piece of a URL.
WORKSPACE_ID = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,128}\Z")
MAX_SINCE_SECS = 30 * 24 * 3600
# Longer waits overflow the timers of threads on some machines, and are a slip of the pen anyway.
MAX_SECONDS = 24 * 3600
MAX_COST = 1_000_000
_LONGEST_BUDGET = 40
DEFAULT_JOURNAL_QUOTA = 1 << 30
LEAST_JOURNAL_QUOTA = 1 << 20
_SIZE = re.compile(r"([0-9]{1,15})\s*(?:([KMGT])(?:i?B)?|B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """The bytes of ``1GiB``, ``500M`` or ``1073741824``. Units are powers of 1024.

    Raises:
        ConfigError: It is no size.
    """
    if (found := _SIZE.fullmatch(text.strip())) is None:
        raise ConfigError(
            f"{text[:_LONGEST_BUDGET]!r} is no size", hint="write it like 500M, 1GiB or 1073741824 (bytes)"
        )
    return int(found[1]) << (10 * ("KMGT".index(found[2].upper()) + 1) if found[2] else 0)


def is_same_workspace(one: str, other: str) -> bool:
    """Whether both may name one workspace. A message to oneself is refused in any spelling."""
    return canonical_id(one).lower() == canonical_id(other).lower()


def shown_address(api_url: str) -> str:
    """How a repr shows an address: what is not checked yet may hold a password."""
    return repr(without_credentials(str(api_url)))


def _canonical(workspace_id: Any) -> Any:
    # Programs pass anything, and check_workspace_id says so with a better text.
    return canonical_id(workspace_id) if isinstance(workspace_id, str) else workspace_id


@attrs.frozen(kw_only=True)
class Tls:
    """Whom to trust over https, and how to show who we are.

    Attributes:
        ca_file: Certificates, in PEM form, of the authorities that are trusted in place of all others.
        client_cert: Our own, in PEM form, for a platform that asks for one.
        client_key: Its key; None: it is in the same file.
    """

    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None


USUAL_TLS = Tls()


@attrs.frozen(kw_only=True)
class PeerBudget:
    """How many true turns a peer may have with us before its conversation is parked. 0 is without limit."""

    per_minute: int = 60
    per_hour: int = 600

    @classmethod
    def parse(cls, text: str) -> "PeerBudget":
        """``60/600`` (a minute and an hour), or ``0`` for no limit.

        Raises:
            ConfigError: It is neither.
        """
        minute, slash, hour = ("0", "/", "0") if text == "0" else text.partition("/")
        # int() itself refuses thousands of digits.
        if not (slash and minute.isdecimal() and hour.isdecimal() and len(text) <= _LONGEST_BUDGET):
            raise ConfigError(
                f"{text[:_LONGEST_BUDGET]!r} is neither like 60/600 (turns a minute and an hour) nor 0",
                hint="leave it out for 60/600",
            )
        return cls(per_minute=int(minute), per_hour=int(hour))


@attrs.frozen(kw_only=True)
class WorkspaceSettings:
    """One workspace to serve.

    Attributes:
        workspace_id: In its canonical form, whatever the spelling it is given in.
        token: The token itself; in no repr. None: ``token_file``, else what the state folder keeps.
        token_source: Where ``token`` came from, in the operator's words ("--token").
        adopt_token: Keep ``token`` in the state folder: it was found where another client keeps it.
        options: Options of the backend, as the operator wrote them; a repeated key is a list.
        middleware: Names of middleware, the outermost first.
        poll_interval: Seconds between polls; None eases from 1 to 5 by itself.
        heartbeat_interval, safety_interval, grace: Seconds, at most a day.
        max_cost_per_day: US dollars by what backends say of their usage, at most a million; None is without limit.
        journal_quota: Bytes that the journal may come to, with what other workspaces have in the same file.
        since_secs: How far a first start looks back, in seconds.
        tls: Whom to trust over https, and with which certificate to show who we are.
        agent_name, agent_description, agent_skills: What the card is to say; the rest of it stays as it is.
        create: Register a workspace that the platform says it doesn't have, which makes a new one.
        entry: The number of its entry in the list that names it; 0 for one that is served by itself.
        patient: Go on trying to register while the platform cannot be reached; else five tries end it.
    """

    workspace_id: str = attrs.field(converter=_canonical)
    api_url: str = attrs.field(default=DEFAULT_API_URL, repr=shown_address)
    org_id: str | None = None
    token: str | None = attrs.field(default=None, repr=False)
    token_source: str = "token"  # noqa: S105
    adopt_token: bool = False
    token_file: Path | None = None
    backend: str | object = DEFAULT_BACKEND
    options: Mapping[str, str | list[str]] = attrs.field(factory=dict, repr=False)
    middleware: tuple[str | object, ...] = ()
    middleware_options: Mapping[str, str | list[str]] = attrs.field(factory=dict, repr=False)
    strict: bool = False
    poll_interval: float | None = None
    heartbeat_interval: float = 30.0
    safety_interval: float = 30.0
    since_secs: float = 30.0
    concurrency: int = 8
    grace: float = 20.0
    peer_budget: PeerBudget = attrs.field(factory=PeerBudget)
    max_cost_per_day: float | None = None
    journal_quota: int = DEFAULT_JOURNAL_QUOTA
    agent_name: str | None = None
    agent_description: str | None = None
    agent_skills: tuple[str, ...] = ()
    once: bool = False
    patient: bool = False
    unpause: bool = False
    create: bool = False
    insecure: bool = False
    tls: Tls = USUAL_TLS
    entry: int = attrs.field(default=0, eq=False)

    @property
    def card(self) -> dict[str, Any]:
        """The members of the agent card that were asked for."""
        asked: dict[str, Any] = {"name": self.agent_name, "description": self.agent_description}
        asked["skills"] = [{"id": skill, "name": skill, "description": "", "tags": []} for skill in self.agent_skills]
        return {member: value for member, value in asked.items() if value}

    def check(self) -> "WorkspaceSettings":
        """These settings, or ConfigError for the first thing in them that cannot work."""
        for fault in self.faults():
            raise fault
        return self

    def faults(self) -> Iterator[ConfigError]:
        """Everything in them that cannot work."""
        for check, value in ((check_workspace_id, self.workspace_id), (check_org_id, self.org_id)):
            try:
                check(value)
            except ConfigError as exc:
                yield exc
        if not self.backend:
            yield ConfigError(
                "no backend was given", hint="name one, for example backend='mock', or pass a plugin object"
            )
        if self.concurrency < 1:
            yield ConfigError(
                f"concurrency must be at least 1, not {self.concurrency}", hint="leave it out for the default, 8"
            )
        if not 0 <= self.since_secs <= MAX_SINCE_SECS:
            yield ConfigError(
                f"since-secs must lie between 0 and {MAX_SINCE_SECS} (30 days), not {self.since_secs:g}", hint=_SECONDS
            )
        for name in ("poll_interval", "heartbeat_interval", "safety_interval"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= MAX_SECONDS:
                yield ConfigError(
                    f"{name} must be more than 0 and at most {MAX_SECONDS} seconds, not {value:g}", hint=_SECONDS
                )
        if not 0 <= self.grace <= MAX_SECONDS:
            yield ConfigError(f"grace must lie between 0 and {MAX_SECONDS} seconds, not {self.grace:g}", hint=_SECONDS)
        if self.max_cost_per_day is not None and not 0 < self.max_cost_per_day <= MAX_COST:
            yield ConfigError(
                f"max-cost-per-day must be more than 0 and at most {MAX_COST} dollars, not {self.max_cost_per_day:g}",
                hint="leave it out for no limit",
            )
        if self.journal_quota < LEAST_JOURNAL_QUOTA:
            yield ConfigError(
                f"journal-quota must be at least {LEAST_JOURNAL_QUOTA} bytes (1 MiB), not {self.journal_quota}",
                hint="leave it out for the default, 1 GiB",
            )


_SECONDS = "give a plain number of seconds within these bounds, or leave it out for the default"


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
    """ConfigError unless *org_id* is None, or can stand in a header."""
    if org_id is not None and not (org_id.isascii() and org_id.isprintable() and org_id.strip() == org_id != ""):
        raise ConfigError("the organisation id cannot stand in a header", hint="copy it from the platform again")
