"""AsyncPlatformClient: sends operations for one workspace."""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlencode

from molecule_connect import __version__
from molecule_connect.config.settings import USUAL_TLS, Tls, check_org_id, check_workspace_id
from molecule_connect.config.tokens import READ_ONCE
from molecule_connect.errors import AuthError, ConfigError
from molecule_connect.models import Page
from molecule_connect.platform import endpoints
from molecule_connect.platform.address import parse_address
from molecule_connect.platform.call_limits import CallLimit
from molecule_connect.platform.clock import PlatformClock, parse_http_date
from molecule_connect.platform.credentials import Credentials, TokenSource
from molecule_connect.platform.endpoints import Operation, Priority, Reply
from molecule_connect.platform.feed_pages import MalformedPageError
from molecule_connect.platform.feed_rows import PageReader
from molecule_connect.platform.http_messages import Headers
from molecule_connect.platform.responses import (
    EndpointAbsentError,
    HttpResponse,
    judge,
    malformed,
    not_platform_json,
)
from molecule_connect.platform.transports import Transports

if TYPE_CHECKING:
    import httpx

# Seconds to wait after a 429 without a Retry-After.
_DEFAULT_RETRY_AFTER = 5.0
# Concurrent calls of one kind for one workspace, so that a busy workspace leaves room for others.
PER_WORKSPACE = 4
# Concurrent messages to one peer, so that a peer that hangs leaves room for others.
PER_PEER = 2
# Seconds until an optional endpoint that the platform doesn't have is tried again.
ABSENT_SECONDS = 3600.0
USER_AGENT = f"molecule-connect/{__version__}"
_log = logging.getLogger(__name__)
T = TypeVar("T")


class AsyncPlatformClient:
    """A client of the platform for one workspace. Use it as a context manager, or call ``aclose``.

    Args:
        api_url: The platform's address, with or without a path and a trailing slash.
        token: The workspace's token; or pass *credentials*.
        token_file: Read if there is no *token*, and again each time the token is refused.
        org_id: The organization, for hosted platforms.
        insecure: Allow plain http to other machines.
        tls: CA file and client certificate.
        transports: Shared connections, which outlive this client. None: the client opens its own.
        transport: Replaces the network in tests.

    Attributes:
        requests: Number of requests by the name of the operation and the status of the response; 0 without a response.

    Raises:
        ConfigError: An argument is invalid. Raised before any request.
    """

    def __init__(
        self,
        api_url: str,
        *,
        workspace_id: str,
        token: str | None = None,
        token_file: Path | None = None,
        credentials: TokenSource | None = None,
        org_id: str | None = None,
        insecure: bool = False,
        tls: Tls = USUAL_TLS,
        transports: Transports | None = None,
        transport: "httpx.AsyncBaseTransport | None" = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] | None = None,
    ) -> None:
        self.workspace_id = check_workspace_id(workspace_id)
        check_org_id(org_id)
        self.address = parse_address(api_url, insecure=insecure)
        self.credentials = credentials or Credentials(
            self.workspace_id, origin=self.address.origin, token=token, token_file=token_file
        )
        if self.credentials.origin not in (None, self.address.origin):
            raise ConfigError(f"the token is for {self.credentials.origin}, not for {self.address.origin}")
        self.credentials.check()
        self.platform_clock = PlatformClock(clock)
        self._base_url = self.address.url("")
        self._org_id, self._clock = org_id, clock
        self._headers: tuple[str | None, Headers] | None = None
        self._absent: dict[str, tuple[float, EndpointAbsentError]] = {}
        self._own_transports = None
        if transports is None:
            self._own_transports = Transports(transport=transport, clock=clock, sleep=sleep or asyncio.sleep)
        self._connections = (transports or self._own_transports or Transports()).to(self.address, tls)
        # Shared by all workspaces on this origin.
        self.rate_limiter = self._connections.rate_limiter
        self.rate_limiter.join()
        self.requests: Counter[tuple[str, int]] = Counter()
        self._newest: int | None = None
        self._queued_reads = 0
        self._calls = CallLimit(PER_WORKSPACE)
        self._messages_to_peers = CallLimit(PER_PEER)

    @property
    def is_queued(self) -> bool:
        """Whether a read waits for the rate limit."""
        return self._queued_reads > 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Release the shared connections, and close the client's own ones."""
        self.rate_limiter.leave()
        if self._own_transports is not None:
            await self._own_transports.aclose()

    async def call(self, operation: Operation[T], *, sink: IO[bytes] | None = None) -> T:
        """Send *operation* and return its result. After a 401, another token is tried once if there is one.

        Args:
            sink: Receives the body of a 2xx response while it arrives.

        Raises:
            AuthError: The platform refused every token.
            PermanentPlatformError: The platform refused the request, or doesn't have an optional endpoint.
            TransientPlatformError: A retry may succeed; ``outcome`` says how far the request got.
        """
        if self._absent:
            self._raise_if_absent(operation)
        token = self.credentials.optional() if operation.is_open else self.credentials.current()
        try:
            return await self._call_once(operation, token, sink)
        except AuthError as exc:
            other = self.credentials.after_refusal(token or "")
            if other is None:
                self._explain(exc)
                raise
        return await self._call_once(operation, other, sink)

    def _explain(self, exc: AuthError) -> None:
        """Say that a token from a source that is read only once needs a restart."""
        if (source := self.credentials.source) in READ_ONCE:
            exc.hint = (
                "the platform refused the token: set a current one (canvas, workspace tokens), then restart, because"
                f" {source} is read only at the start"
            )

    async def fetch(
        self,
        *,
        since_id: str | None = None,
        before: int | None = None,
        limit: int,
        known: Callable[[str], bool],
        people: bool = False,
    ) -> Page:
        """Return a page of the feed, for a ``FeedReader``.

        Args:
            since_id: Return rows after this one, oldest first. None: newest first.
            before: Return rows strictly older than this, in microseconds.
            known: Says whether a row is stored already; such rows are only in ``Page.marks``.
            people: Leave out rows with a source workspace.

        Raises:
            CursorExpiredError: The platform no longer has the row *since_id*.
            PageTooLargeError: Ask again with a smaller limit.
            PlatformError: Any other failure.
        """
        newest = self._newest
        operation = endpoints.activity(
            self.workspace_id, _whole_reply, since_id=since_id, before=before, limit=limit, people=people
        )
        reply = await self.call(operation)
        bounds = [bound for bound in (reply.earliest, newest) if bound is not None]
        reader = PageReader(
            workspace_id=self.workspace_id, limit=limit, known=known, earliest=max(bounds, default=None)
        )
        text = reply.body.decode("utf-8-sig", "replace")
        try:
            page = await reader.read(text, size=len(reply.body), is_whole=reply.is_whole)
        except MalformedPageError as exc:
            raise malformed(operation, reply, exc) from exc
        times = [mark.time for mark in page.marks if mark.time is not None]
        times += [self._newest] if self._newest is not None else []
        self._newest = max(times, default=None)
        self.platform_clock.record(self._newest)
        return page

    def now(self) -> int | None:
        """Return a lower bound of the platform's clock in microseconds; None until a response has shown it."""
        return self.platform_clock.now()

    @contextlib.asynccontextmanager
    async def open(self, operation: Operation[Any]) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open an event stream and yield the pieces of its body. Raises the errors of ``call``."""
        if self._absent:
            self._raise_if_absent(operation)
        token = self.credentials.current()
        for attempt in (1, 2):
            await self.rate_limiter.admit(operation.priority)
            response: HttpResponse | None = None
            try:
                url, headers = self._url(operation), self._headers_with(token)
                async with self._connections.stream(operation, url, headers) as (response, pieces):
                    self._end(operation, response)
                    self._check_stream(operation, response)
                    yield pieces
                return
            except AuthError as exc:
                other = self.credentials.after_refusal(token)
                if other is None or attempt == 2:
                    self._explain(exc)
                    raise
                token = other
            finally:
                if response is None:
                    self._end(operation, None)

    async def _call_once(self, operation: Operation[T], token: str | None, sink: IO[bytes] | None) -> T:
        is_read = operation.priority is Priority.READ
        self._queued_reads += is_read
        try:
            await self.rate_limiter.admit(operation.priority, peer=operation.path if operation.to_peer else "")
        finally:
            self._queued_reads -= is_read
        response = None
        try:
            url, headers = self._url(operation), self._headers_with(token)
            if operation.headers:
                headers = [*headers, *operation.headers]
            peer = self._messages_to_peers.of(operation.path) if operation.to_peer else contextlib.nullcontext()
            async with peer, self._calls.of(operation.name):
                response = await self._connections.exchange(operation, url, headers, sink=sink)
        finally:
            self._end(operation, response)
        try:
            reply = judge(operation, response, redact=self.credentials.redact)
        except EndpointAbsentError as exc:
            self._remember_absent(operation, exc)
            raise
        try:
            return operation.read(reply)
        except MalformedPageError as exc:
            raise malformed(operation, reply, exc) from exc

    def _end(self, operation: Operation[Any], response: HttpResponse | None) -> None:
        self.requests[operation.name, 0 if response is None else response.status] += 1
        if response is None:
            self.rate_limiter.ended(operation.priority)
            return
        self.platform_clock.record(parse_http_date(response.headers.get("date")))
        refused_for = None
        # The platform passes on a 429 of a push peer, which must not delay messages to others.
        is_from_peer = operation.to_peer and response.headers.get("x-ratelimit-remaining", "0") != "0"
        if response.status == 429 and not is_from_peer:
            value = response.headers.get("retry-after", "")
            refused_for = float(value) if value.isascii() and value.isdigit() else _DEFAULT_RETRY_AFTER
        self.rate_limiter.ended(operation.priority, response.headers, refused_for=refused_for)

    def _check_stream(self, operation: Operation[Any], response: HttpResponse) -> None:
        content_type = response.headers.get("content-type", "text/event-stream")
        if response.status == 200 and content_type.startswith("text/event-stream"):
            return
        if response.status != 200:
            try:
                judge(operation, response, redact=self.credentials.redact)
            except EndpointAbsentError as exc:
                self._remember_absent(operation, exc)
                raise
        raise not_platform_json(operation, response.status, content_type)

    def _url(self, operation: Operation[Any]) -> str:
        query = f"?{urlencode(operation.params)}" if operation.params else ""
        return f"{self._base_url}{operation.path}{query}"

    def _headers_with(self, token: str | None) -> Headers:
        if self._headers is not None and self._headers[0] == token:
            return self._headers[1]
        headers = [("Authorization", f"Bearer {token}")] if token is not None else []
        headers += [
            # Hosted tenants answer an empty 404 without it (contract, section (d)).
            ("Origin", self.address.origin),
            ("X-Workspace-ID", self.workspace_id),
            ("User-Agent", USER_AGENT),
            ("Accept-Encoding", "gzip, deflate"),
            ("Content-Type", "application/json"),
        ]
        headers += [("X-Molecule-Org-Id", self._org_id)] if self._org_id else []
        self._headers = (token, headers)
        return headers

    def _raise_if_absent(self, operation: Operation[Any]) -> None:
        until, error = self._absent.get(operation.name, (0.0, None))
        if error is not None and self._clock() < until:
            raise EndpointAbsentError(
                str(error), operation=error.operation, status=error.status, body=error.body, hint=error.hint
            )

    def _remember_absent(self, operation: Operation[Any], error: EndpointAbsentError) -> None:
        _log.debug("%s; next try in an hour", error)
        self._absent[operation.name] = (self._clock() + ABSENT_SECONDS, error)


def _whole_reply(reply: Reply) -> Reply:
    return reply
