"""AsyncPlatformClient: sends operations as one workspace, with the headers, the token and the patience they need."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self, TypeVar

from molecule_connect.config.settings import USUAL_TLS, Tls
from molecule_connect.errors import AuthError
from molecule_connect.platform.call_limits import Places
from molecule_connect.platform.cooperative import in_slices
from molecule_connect.platform.credentials import Credentials
from molecule_connect.platform.endpoints import Operation, Priority
from molecule_connect.platform.rate_limit import RateLimiter
from molecule_connect.platform.requests import Caller, TokenSource
from molecule_connect.platform.responses import Answer, EndpointAbsentError, judge, not_ours
from molecule_connect.platform.transports import Transports

if TYPE_CHECKING:
    import httpx

# What the platform asks to be left alone for when a 429 does not say how long.
_USUAL_REFUSAL = 5.0
# Calls of one kind that a workspace may start at once, so that one busy workspace leaves room for the others.
PER_WORKSPACE = 4
# Those of them that may be to one peer, so that a peer that hangs leaves room for the others.
PER_PEER = 2
T = TypeVar("T")


class AsyncPlatformClient:
    """One workspace's way to a platform. Use it as a context manager, or call ``aclose``.

    Args:
        api_url: With or without a path and a slash at its end.
        token: The workspace's token; or give *credentials*.
        token_file: Read when there is no *token*, and again whenever the token is refused.
        org_id: The organisation that hosted tenants are told apart by.
        insecure: Allows plain http to another machine.
        tls: Whom to trust, and with which certificate to show who we are.
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
        token_file: Path | None = None,
        credentials: TokenSource | None = None,
        org_id: str | None = None,
        insecure: bool = False,
        tls: Tls = USUAL_TLS,
        transports: Transports | None = None,
        transport: "httpx.AsyncBaseTransport | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._caller = Caller(
            api_url,
            workspace_id=workspace_id,
            credentials=lambda origin: (
                credentials or Credentials(workspace_id, origin=origin, token=token, token_file=token_file)
            ),
            org_id=org_id,
            insecure=insecure,
            clock=clock,
        )
        self.workspace_id, self.address = self._caller.workspace_id, self._caller.address
        self.credentials = self._caller.credentials
        self.platform_clock = self._caller.platform_clock
        self._own_transports = Transports(transport=transport) if transports is None else None
        self._connections = (transports or self._own_transports or Transports()).to(self.address, tls)
        self._connections.pacer.join()
        self._queued_reads = 0
        self._places = Places(PER_WORKSPACE)
        self._to_peers = Places(PER_PEER)

    @property
    def is_queued(self) -> bool:
        """Whether a read waits for its turn under the platform's rate limit."""
        return self._queued_reads > 0

    @property
    def pacer(self) -> RateLimiter:
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

    async def call(self, operation: Operation[T], *, sink: IO[bytes] | None = None) -> T:
        """Sends *operation* and returns what it reads in the answer. A refused token is replaced once.

        Args:
            sink: Takes the body of a good answer, piece by piece.

        Raises:
            AuthError: No token that its sources hold is accepted.
            PermanentPlatformError: The platform itself refused, or does not have an optional endpoint.
            TransientPlatformError: Anything that may work later; ``outcome`` says how far it came.
        """
        self._caller.check_absent(operation)
        token = self._caller.token_for(operation)
        try:
            return await self._once(operation, token, sink)
        except AuthError:
            other = self.credentials.after_refusal(token or "")
            if other is None:
                raise
        return await self._once(operation, other, sink)

    @contextlib.asynccontextmanager
    async def open(self, operation: Operation[Any]) -> AsyncIterator[AsyncIterator[bytes]]:
        """Opens an event stream: inside it, the pieces of its body. Raises what ``call`` raises."""
        self._caller.check_absent(operation)
        token = self.credentials.current()
        for attempt in (1, 2):
            await self.pacer.admit(operation.priority)
            answer: Answer | None = None
            try:
                url, headers = self._caller.url(operation), self._caller.headers(token)
                async with self._connections.stream(operation, url, headers) as (answer, pieces):
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
                    self.pacer.ended(operation.priority)

    async def _admit(self, operation: Operation[Any]) -> None:
        is_read = operation.priority is Priority.READ
        self._queued_reads += is_read
        try:
            await self.pacer.admit(operation.priority, peer=operation.path if operation.to_peer else "")
        finally:
            self._queued_reads -= is_read

    async def _once(self, operation: Operation[T], token: str | None, sink: IO[bytes] | None) -> T:
        await self._admit(operation)
        answer = None
        try:
            url, headers = self._caller.url(operation), self._caller.headers(token)
            to_peer = self._to_peers.of(operation.path) if operation.to_peer else contextlib.nullcontext()
            async with to_peer, self._places.of(operation.name):
                answer = await self._connections.exchange(operation, url, headers, sink=sink)
        finally:
            self._ended(operation, answer)
        return await in_slices(self._caller.read_in_steps(operation, answer))

    def _ended(self, operation: Operation[Any], answer: Answer | None) -> None:
        if answer is None:
            self.pacer.ended(operation.priority)
            return
        self._caller.saw(answer)
        refused_for = None
        # A push peer's own 429 is passed on too, and must not hold back messages to others.
        is_peers = operation.to_peer and answer.headers.get("x-ratelimit-remaining", "0") != "0"
        if answer.status == 429 and not is_peers:
            said = answer.headers.get("retry-after", "")
            refused_for = float(said) if said.isascii() and said.isdigit() else _USUAL_REFUSAL
        self.pacer.ended(operation.priority, answer.headers, refused_for=refused_for)

    def _check_stream(self, operation: Operation[Any], answer: Answer) -> None:
        content_type = answer.headers.get("content-type", "text/event-stream")
        if answer.status == 200:
            if not content_type.startswith("text/event-stream"):
                raise not_ours(operation, answer)
            return
        try:
            judge(operation, answer, redact=self.credentials.redact)
        except EndpointAbsentError as exc:
            self._caller.remember_absent(operation, exc)
            raise
        raise not_ours(operation, answer)
