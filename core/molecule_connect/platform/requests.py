"""Address, token and headers of one workspace's requests."""

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlencode

from molecule_connect import __version__
from molecule_connect.config.settings import check_org_id, check_workspace_id
from molecule_connect.errors import ConfigError
from molecule_connect.platform.address import ApiAddress
from molecule_connect.platform.clock import PlatformClock, parse_http_date
from molecule_connect.platform.credentials import TokenSource
from molecule_connect.platform.endpoints import Operation
from molecule_connect.platform.feed_pages import MalformedPageError
from molecule_connect.platform.http_messages import Headers
from molecule_connect.platform.responses import EndpointAbsentError, HttpResponse, judge, malformed

# Seconds until an optional endpoint that the platform doesn't have is tried again.
ABSENT_SECONDS = 3600.0
USER_AGENT = ("User-Agent", f"molecule-connect/{__version__}")
_log = logging.getLogger(__name__)
T = TypeVar("T")


class RequestContext:
    """One workspace on one platform.

    Raises:
        ConfigError: The workspace id, token or organization is invalid.
    """

    def __init__(
        self,
        address: ApiAddress,
        *,
        workspace_id: str,
        credentials: TokenSource,
        org_id: str | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.workspace_id = check_workspace_id(workspace_id)
        check_org_id(org_id)
        self.address, self.credentials = address, credentials
        if credentials.origin not in (None, address.origin):
            raise ConfigError(f"the token is for {credentials.origin}, not for {address.origin}")
        credentials.check()
        self.platform_clock = PlatformClock(clock)
        self._org_id, self._clock = org_id, clock
        self._headers: tuple[str | None, Headers] | None = None
        self._absent: dict[str, tuple[float, EndpointAbsentError]] = {}

    def token_for(self, operation: Operation[Any]) -> str | None:
        """Return the token for *operation*. Raises ConfigError if there is none and the operation needs one."""
        return self.credentials.optional() if operation.is_open else self.credentials.current()

    def url(self, operation: Operation[Any]) -> str:
        """Return the URL of *operation*."""
        query = f"?{urlencode(operation.params)}" if operation.params else ""
        return self.address.url(operation.path) + query

    def headers(self, token: str | None) -> Headers:
        """Return the headers of every request."""
        cached = self._headers
        if cached is not None and cached[0] == token:
            return cached[1]
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

    def read(self, operation: Operation[T], response: HttpResponse) -> T:
        """Return the result of *operation*, or raise the error that the status stands for; see ``judge``."""
        try:
            reply = judge(operation, response, redact=self.credentials.redact)
            try:
                return operation.read(reply)
            except MalformedPageError as exc:
                raise malformed(operation, reply, exc) from exc
        except EndpointAbsentError as exc:
            self.remember_absent(operation, exc)
            raise

    def update_clock(self, response: HttpResponse) -> None:
        """Read the platform's time from *response*."""
        self.platform_clock.record(parse_http_date(response.headers.get("date")))

    def check_absent(self, operation: Operation[Any]) -> None:
        """Raise EndpointAbsentError for an endpoint that was absent less than an hour ago."""
        until, error = self._absent.get(operation.name, (0.0, None))
        if error is not None and self._clock() < until:
            raise EndpointAbsentError(
                str(error), operation=error.operation, status=error.status, body=error.body, hint=error.hint
            )

    def remember_absent(self, operation: Operation[Any], error: EndpointAbsentError) -> None:
        """Don't call the endpoint of *operation* for an hour: the platform doesn't have it."""
        _log.debug("%s; next try in an hour", error)
        self._absent[operation.name] = (self._clock() + ABSENT_SECONDS, error)
