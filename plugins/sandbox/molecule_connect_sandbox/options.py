"""The options of a sandbox."""

import secrets
import time
from collections.abc import Callable

import attrs

from molecule_connect import ConfigError
from molecule_connect_sandbox.generation import AUGUST, GENERATIONS, Generation


@attrs.frozen(kw_only=True)
class SandboxOptions:
    """The options of a sandbox.

    Attributes:
        platform: The generation to imitate: ``2026-05`` or ``2026-08``.
        admin_token: The administrator's token. None: 2026-05 treats everyone as the administrator, as in its
            development mode; 2026-08 accepts the token of any workspace.
        org_id: If set, requests without this ``X-Molecule-Org-Id`` are rejected, as by hosted tenants.
        store: A file for the database. None: in memory.
        faults: The initial faults, as ``NAME[=VALUE]``.
        rate_limit: Requests per minute and key; 0 means no limit.
        control_token: The token for ``/sandbox/``; by default the administrator's token, or a generated one.
        seed: Seed for the random choices of faults.
        retry_delegation_after: Seconds until a failed delegation is retried.
        now: Returns seconds since 1970.
    """

    platform: str = AUGUST.name
    admin_token: str | None = attrs.field(default=None, repr=False)
    control_token: str = attrs.field(repr=False)
    org_id: str | None = None
    store: str | None = None
    faults: tuple[str, ...] = attrs.field(default=(), converter=tuple[str, ...])
    rate_limit: int = 0
    seed: int = 0
    retry_delegation_after: float = 8.0
    now: Callable[[], float] = time.time

    @control_token.default
    def _make_control_token(self) -> str:
        return self.admin_token or secrets.token_urlsafe(16)

    @property
    def generation(self) -> Generation:
        """The rules of the platform.

        Raises:
            ConfigError: The generation is unknown.
        """
        if self.platform not in GENERATIONS:
            known = ", ".join(GENERATIONS)
            raise ConfigError(f"no platform generation {self.platform!r}", hint=f"choose one of {known}")
        return GENERATIONS[self.platform]
