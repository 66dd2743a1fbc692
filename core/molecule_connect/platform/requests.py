"""What the two clients share: who asks, what every request carries, and what its answer means. No I/O."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlencode

from molecule_connect import __version__
from molecule_connect.config.settings import check_org_id, check_workspace_id
from molecule_connect.errors import ConfigError, TransientPlatformError
from molecule_connect.platform.address import parse_address
from molecule_connect.platform.clock import PlatformClock, parse_http_date
from molecule_connect.platform.cooperative import Steps, finish
from molecule_connect.platform.endpoints import Operation
from molecule_connect.platform.feed_pages import MalformedPageError
from molecule_connect.platform.responses import Answer, EndpointAbsentError, judge, not_ours

ABSENT_FOR = 3600.0
USER_AGENT = ("User-Agent", f"molecule-connect/{__version__}")
_log = logging.getLogger(__name__)
Headers = list[tuple[str, str]]
T = TypeVar("T")


class TokenSource(Protocol):
    """Where a client's token comes from. ``origin`` is the only place that it may go to."""

    @property
    def origin(self) -> str: ...

    @property
    def source(self) -> str:
        """Where the token comes from, in the operator's words."""

    @property
    def kept_path(self) -> Path | None:
        """Where a handed-out token is kept; None: in memory alone."""

    def check(self) -> None:
        """Raises ConfigError when there has to be a token already, and there is none."""

    def current(self) -> str:
        """The token to use now. Raises ConfigError when there is none."""

    def optional(self) -> str | None:
        """The token to use now, or None: for what the platform answers without one."""

    def after_refusal(self, refused: str) -> str | None:
        """Another token to try once, or None."""

    def keep(self, token: str) -> None:
        """Use a handed-out token from now on. Raises ConfigError when it cannot be written; it is used all the same."""

    def redact(self, text: str) -> str:
        """*text* without any token that was ever used."""


class Caller:
    """One workspace on one platform, as its requests show it.

    Raises:
        ConfigError: Id, address, token or organisation cannot be used.
    """

    def __init__(
        self,
        api_url: str,
        *,
        workspace_id: str,
        credentials: Callable[[str], TokenSource],
        org_id: str | None,
        insecure: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.workspace_id = check_workspace_id(workspace_id)
        check_org_id(org_id)
        self.address = parse_address(api_url, insecure=insecure)
        self.credentials = credentials(self.address.origin)
        if self.credentials.origin != self.address.origin:
            raise ConfigError(f"the token is for {self.credentials.origin}, not for {self.address.origin}")
        self.credentials.check()
        self.platform_clock = PlatformClock(clock)
        self._org_id, self._clock = org_id, clock
        self._headers: tuple[str | None, Headers] | None = None
        self._absent: dict[str, tuple[float, EndpointAbsentError]] = {}

    def token_for(self, operation: Operation[Any]) -> str | None:
        """The token to send *operation* with. Raises ConfigError when it needs one and there is none."""
        return self.credentials.optional() if operation.is_open else self.credentials.current()

    def url(self, operation: Operation[Any]) -> str:
        """Where *operation* goes."""
        query = f"?{urlencode(operation.params)}" if operation.params else ""
        return self.address.url(operation.path) + query

    def headers(self, token: str | None) -> Headers:
        """What every request carries."""
        kept = self._headers
        if kept is not None and kept[0] == token:
            return kept[1]
        headers = [("Authorization", f"Bearer {token}")] if token is not None else []
        headers += [
            # Hosted tenants answer an empty 404 without it (contract, section (d)).
            ("Origin", self.address.origin),
            ("X-Workspace-ID", self.workspace_id),
            USER_AGENT,
            ("Accept-Encoding", "gzip, deflate"),
            ("Content-Type", "application/json"),
        ]
        headers += [("X-Molecule-Org-Id", self._org_id)] if self._org_id else []
        self._headers = (token, headers)
        return headers

    def read(self, operation: Operation[T], answer: Answer) -> T:
        """What *operation* makes of *answer*, or the error that its status stands for; see ``judge``."""
        return finish(self.read_in_steps(operation, answer))

    def read_in_steps(self, operation: Operation[T], answer: Answer) -> Steps[T]:
        """``read``, in the steps of *operation*."""
        try:
            reply = judge(operation, answer, redact=self.credentials.redact)
            return (yield from operation.steps(reply)) if operation.steps else operation.read(reply)
        except MalformedPageError as exc:
            if not exc.cut:
                raise not_ours(operation, answer) from exc
            raise TransientPlatformError(
                f"{operation.name}: {exc}", operation=operation.name, status=answer.status
            ) from exc
        except EndpointAbsentError as exc:
            self.remember_absent(operation, exc)
            raise

    def saw(self, answer: Answer) -> None:
        """Takes the platform's time from *answer*."""
        self.platform_clock.saw(parse_http_date(answer.headers.get("date")))

    def check_absent(self, operation: Operation[Any]) -> None:
        """Raises EndpointAbsentError for an endpoint that was absent less than an hour ago."""
        until, error = self._absent.get(operation.name, (0.0, None))
        if error is not None and self._clock() < until:
            raise EndpointAbsentError(
                str(error), operation=error.operation, status=error.status, body=error.body, hint=error.hint
            )

    def remember_absent(self, operation: Operation[Any], error: EndpointAbsentError) -> None:
        """The platform does not have the endpoint of *operation*."""
        _log.debug("%s; asked again in an hour", error)
        self._absent[operation.name] = (self._clock() + ABSENT_FOR, error)
