"""AsyncPlatformClient: sends operations as one workspace, with the headers, the token and the patience they need."""

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlencode

from molecule_connect import __version__
from molecule_connect.errors import (
    AuthError,
    ConfigError,
    TransientPlatformError,
)
from molecule_connect.platform.address import parse_address
from molecule_connect.platform.answers import Answer, EndpointAbsentError, judge, not_ours
from molecule_connect.platform.credentials import Credentials
from molecule_connect.platform.operations import Operation
from molecule_connect.platform.pacer import Pacer
from molecule_connect.platform.rows import MalformedPageError
from molecule_connect.platform.times import PlatformClock, parse_http_date
from molecule_connect.platform.transports import Headers, Transports
from molecule_connect.settings import check_workspace_id

if TYPE_CHECKING:
    import httpx

ABSENT_FOR = 3600.0
# What the platform asks to be left alone for when a 429 does not say how long.
_USUAL_REFUSAL = 5.0
_log = logging.getLogger(__name__)
T = TypeVar("T")


class AsyncPlatformClient:
    """One workspace's way to a platform. Use it as a context manager, or call ``aclose``.

    Args:
        api_url: With or without a path and a slash at its end.
        token: The workspace's token; or give *credentials*.
        org_id: The organisation that hosted tenants are told apart by.
        insecure: Allows plain http to another machine.
        transports: Shared connections; they outlive this client. None: its own.
        transport: Stands in for the network; tests give one.

    Raises:
        ConfigError: Id, address, token or organisation cannot be used; before any request.
    """

    def __init__(
        self,
        api_url: str,
        *,
        workspace_id: str,
        token: str | None = None,
        credentials: Credentials | None = None,
        org_id: str | None = None,
        insecure: bool = False,
        transports: Transports | None = None,
        transport: "httpx.AsyncBaseTransport | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_workspace_id(workspace_id)
        if org_id is not None and not (org_id.isascii() and org_id.isprintable() and org_id.strip() == org_id != ""):
            raise ConfigError("the organisation id cannot stand in a header", hint="copy it from the platform again")
        self.workspace_id = workspace_id
        self.address = parse_address(api_url, insecure=insecure)
        self.credentials = credentials or Credentials(workspace_id, origin=self.address.origin, token=token)
        if self.credentials.origin != self.address.origin:
            raise ConfigError(f"the token is for {self.credentials.origin}, not for {self.address.origin}")
        self.credentials.current()
        self._own_transports = Transports(transport=transport) if transports is None else None
        self._connections = (transports or self._own_transports or Transports()).to(self.address)
        self._connections.pacer.join()
        self.platform_clock = PlatformClock(clock)
        self._org_id, self._clock = org_id, clock
        self._headers: tuple[str, Headers] | None = None
        self._absent: dict[str, tuple[float, EndpointAbsentError]] = {}

    @property
    def pacer(self) -> Pacer:
        """What the platform's rate limit leaves for this origin."""
        return self._connections.pacer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Leaves the shared connections, and closes them when they are its own."""
        self._connections.pacer.leave()
        if self._own_transports is not None:
            await self._own_transports.aclose()

    async def call(self, operation: Operation[T]) -> T:
        """Sends *operation* and returns what it reads in the answer. A refused token is replaced once.

        Raises:
            AuthError: No token that its sources hold is accepted.
            PermanentPlatformError: The platform itself refused, or does not have an optional endpoint.
            TransientPlatformError: Anything that may work later; ``outcome`` says how far it came.
        """
        self._check_absent(operation)
        token = self.credentials.current()
        try:
            return await self._once(operation, token)
        except AuthError:
            other = self.credentials.after_refusal(token)
            if other is None:
                raise
        return await self._once(operation, other)

    @contextlib.asynccontextmanager
    async def open(self, operation: Operation[Any]) -> AsyncIterator[AsyncIterator[bytes]]:
        """Opens an event stream: inside it, the pieces of its body. Raises what ``call`` raises."""
        self._check_absent(operation)
        token = self.credentials.current()
        for attempt in (1, 2):
            await self.pacer.admit(operation.lane)
            answer: Answer | None = None
            try:
                async with self._connections.stream(operation, self._url(operation), self._headers_for(token)) as (
                    answer,
                    pieces,
                ):
                    self._ended(operation, answer)
                    self._check_stream(operation, answer)
                    yield pieces
                return
            except AuthError:
                other = self.credentials.after_refusal(token)
                if other is None or attempt == 2:
                    raise
                token = other
            finally:
                if answer is None:
                    self.pacer.ended(operation.lane)

    async def _once(self, operation: Operation[T], token: str) -> T:
        await self.pacer.admit(operation.lane)
        answer = None
        try:
            answer = await self._connections.exchange(operation, self._url(operation), self._headers_for(token))
        finally:
            self._ended(operation, answer)
        try:
            return operation.read(judge(operation, answer, redact=self.credentials.redact))
        except MalformedPageError as exc:
            raise self._malformed(operation, answer, exc) from exc
        except EndpointAbsentError as exc:
            self._remember_absent(operation, exc)
            raise

    def _ended(self, operation: Operation[Any], answer: Answer | None) -> None:
        if answer is None:
            self.pacer.ended(operation.lane)
            return
        self.platform_clock.saw(parse_http_date(answer.headers.get("date")))
        refused_for = None
        if answer.status == 429:
            said = answer.headers.get("retry-after", "")
            refused_for = float(said) if said.isascii() and said.isdigit() else _USUAL_REFUSAL
        self.pacer.ended(operation.lane, answer.headers, refused_for=refused_for)

    def _check_stream(self, operation: Operation[Any], answer: Answer) -> None:
        content_type = answer.headers.get("content-type", "text/event-stream")
        if answer.status == 200:
            if not content_type.startswith("text/event-stream"):
                raise not_ours(operation, answer)
            return
        try:
            judge(operation, answer, redact=self.credentials.redact)
        except EndpointAbsentError as exc:
            self._remember_absent(operation, exc)
            raise
        raise not_ours(operation, answer)

    def _check_absent(self, operation: Operation[Any]) -> None:
        until, error = self._absent.get(operation.name, (0.0, None))
        if error is not None and self._clock() < until:
            raise EndpointAbsentError(
                str(error), operation=error.operation, status=error.status, body=error.body, hint=error.hint
            )

    def _remember_absent(self, operation: Operation[Any], error: EndpointAbsentError) -> None:
        _log.debug("%s; asked again in an hour", error)
        self._absent[operation.name] = (self._clock() + ABSENT_FOR, error)

    def _malformed(self, operation: Operation[Any], answer: Answer, exc: MalformedPageError) -> TransientPlatformError:
        if not exc.cut:
            return not_ours(operation, answer)
        return TransientPlatformError(f"{operation.name}: {exc}", operation=operation.name, status=answer.status)

    def _url(self, operation: Operation[Any]) -> str:
        query = f"?{urlencode(operation.params)}" if operation.params else ""
        return self.address.url(operation.path) + query

    def _headers_for(self, token: str) -> Headers:
        if self._headers is None or self._headers[0] != token:
            headers = [
                ("Authorization", f"Bearer {token}"),
                # Hosted tenants answer an empty 404 without it (contract, section (d)).
                ("Origin", self.address.origin),
                ("X-Workspace-ID", self.workspace_id),
                ("User-Agent", f"molecule-connect/{__version__}"),
                ("Accept-Encoding", "gzip, deflate"),
                ("Content-Type", "application/json"),
            ]
            headers += [("X-Molecule-Org-Id", self._org_id)] if self._org_id else []
            self._headers = (token, headers)
        return self._headers[1]
