"""What a sandbox is asked to be."""

import secrets
import time
from collections.abc import Callable

import attrs

from molecule_connect import ConfigError
from molecule_connect_sandbox.generation import AUGUST, GENERATIONS, Generation


@attrs.frozen(kw_only=True)
class SandboxOptions:
    """One sandbox.

    Attributes:
        platform: The generation to keep the rules of: ``2026-05`` or ``2026-08``.
        admin_token: Who sends it is the administrator. None: 2026-05 lets everybody be one, as in its
            development mode; 2026-08 takes any workspace's token.
        org_id: Set: requests without this ``X-Molecule-Org-Id`` are turned away, as hosted tenants do.
        store: A file for the embedded database. None: in memory.
        faults: Faults to begin with, as ``NAME[=VALUE]``.
        rate_limit: Requests per minute and key; 0 is without limit.
        control_token: What ``/sandbox/`` asks for: the administrator's token, else one that is made.
        seed: Of all that is left to chance in the faults.
        retry_delegation_after: Seconds until a delegation that failed is tried once more.
        now: Gives seconds since 1970.
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
        """The rules to keep.

        Raises:
            ConfigError: There is no such generation.
        """
        if self.platform not in GENERATIONS:
            known = ", ".join(GENERATIONS)
            raise ConfigError(f"no platform generation {self.platform!r}", hint=f"choose one of {known}")
        return GENERATIONS[self.platform]
