"""Other workspaces: their addresses, messages to them, and delegations."""

import logging
import threading
import uuid
from collections.abc import Callable

import attrs

from molecule_connect import (
    ArgumentError,
    Inbound,
    Kind,
    PlatformError,
    TransientPlatformError,
    canonical_id,
    endpoints,
)
from molecule_connect_agent.checks import check_peer_id, check_seconds, check_text
from molecule_connect_agent.direct import DirectMessages, JsonObject, NotSentError, is_web_address
from molecule_connect_agent.questions import Questions
from molecule_connect_agent.requests import Requests, hinting
from molecule_connect_agent.responses import read_delegation, read_peers
from molecule_connect_agent.values import Delegation, PeerInfo

_log = logging.getLogger(__name__)


class Addresses:
    """The addresses of peers, each kept for *ttl* seconds. Threads can share it."""

    def __init__(self, ttl: float, clock: Callable[[], float]) -> None:
        self._ttl, self._clock = ttl, clock
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, str]] = {}

    def put(self, peer_id: str, url: str) -> None:
        """Keep *url*, unless it is not an http(s) address."""
        if is_web_address(url):
            with self._lock:
                self._known[peer_id] = (self._clock() + self._ttl, url)

    def get(self, peer_id: str) -> str | None:
        """The address; None if it is unknown or too old."""
        with self._lock:
            until, url = self._known.get(peer_id, (0.0, ""))
            if url and self._clock() < until:
                return url
            self._known.pop(peer_id, None)
            return None

    def forget(self, peer_id: str) -> None:
        """Look the address up again next time."""
        with self._lock:
            self._known.pop(peer_id, None)


@attrs.define(eq=False)
class Peers:
    """Reaches other workspaces."""

    _requests: Requests
    addresses: Addresses
    _direct: DirectMessages
    _questions: Questions = attrs.field(factory=Questions, init=False)

    @property
    def workspace_id(self) -> str:
        """The workspace that writes."""
        return self._requests.workspace_id

    async def listed(self) -> list[PeerInfo]:
        """The workspaces that this one may write to. Their addresses are kept."""
        found = await self._requests.send(endpoints.peers(self.workspace_id))
        peers = read_peers(found)
        for peer in peers:
            self.addresses.put(peer.id, peer.url)
        return peers

    async def discover(self, peer_id: str) -> str | None:
        """The address that a peer claims, or None."""
        peer_id = check_peer_id(peer_id)
        known = self.addresses.get(peer_id)
        if known is not None:
            return known
        try:
            fields = await self._requests.send(endpoints.discover(peer_id), is_final=_has_no_address)
        except PlatformError as exc:
            if exc.status == 404 or _has_no_address(exc):
                return None
            raise
        url: object = fields.get("url")
        if not isinstance(url, str) or not is_web_address(url):
            return None
        self.addresses.put(peer_id, url)
        return url

    async def call(
        self,
        peer_id: str,
        text: str,
        *,
        prefer_direct: bool,
        timeout: float,
        context_id: str | None,
        message_id: str | None,
    ) -> JsonObject:
        """Ask a peer; its JSON-RPC response unchanged."""
        peer_id = self._check(peer_id, text, "message")
        check_seconds("timeout", timeout)
        message_id = message_id or str(uuid.uuid4())
        self._questions.ask(peer_id, message_id)
        operation = endpoints.question(peer_id, text, message_id=message_id, context_id=context_id, timeout=timeout)
        if prefer_direct:
            response = await self._call_directly(peer_id, operation.body or b"", timeout)
            if response is not None:
                return response
        return await self._requests.send_text(operation)

    async def _call_directly(self, peer_id: str, body: bytes, timeout: float) -> JsonObject | None:
        """The response of the peer's own host, or None if the message can't have reached it."""
        try:
            url = await self.discover(peer_id)
        except TransientPlatformError as exc:
            _log.info("can't look up the address of %s (%s); the platform carries the message", peer_id, exc)
            return None
        if url is None:
            return None
        try:
            self._requests.check_open()
            return await self._direct.post(url, body, timeout=timeout)
        except NotSentError as exc:
            _log.info("%s; the platform carries the message", exc)
        self.addresses.forget(peer_id)
        return None

    async def delegate(self, target_id: str, task: str, *, idempotency_key: str | None) -> Delegation:
        """Delegate a task to a peer. The platform takes a repeat with the same key for the same delegation."""
        target_id = self._check(target_id, task, "task")
        key = idempotency_key or str(uuid.uuid4())
        operation = endpoints.delegate(self.workspace_id, target_id, task, idempotency_key=key)
        with hinting("compare the peer's id with those of get_peers(): the platform accepts no other form", 400):
            fields = await self._requests.send(operation, repeatable=True)
        delegation = read_delegation(fields, source_id=self.workspace_id, target_id=target_id)
        self._questions.delegate(target_id, delegation.id)
        return delegation

    async def delegations(self) -> list[Delegation]:
        """The newest delegations."""
        listed = await self._requests.send(endpoints.delegations(self.workspace_id))
        return [read_delegation(item) for item in listed]

    async def attributed(self, row: Inbound) -> Inbound | None:
        """*row* with its peer, and without claims that don't match the messages and delegations of this client.

        None for the result of a delegation that this workspace did not open with the peer.
        """
        if row.kind is not Kind.RESULT:
            return self._questions.without_false_claims(row)
        callee = await self._callee(row.delegation_id or "")
        if callee is None or row.caller_id not in (None, callee):
            _log.warning("skipped row %s: the result of a delegation that this workspace did not open", row.row_id)
            return None
        return attrs.evolve(row, caller_id=callee)

    async def _callee(self, delegation_id: str) -> str | None:
        """The peer of a delegation of this workspace. The platform knows those of earlier processes."""
        known = self._questions.callee(delegation_id)
        if known is not None or not delegation_id:
            return known
        try:
            listed = await self.delegations()
        except PlatformError as exc:
            # A platform without this list can't say whose result it is.
            if isinstance(exc, TransientPlatformError) and exc.status not in (404, 405):
                raise
            return None
        own = (one for one in listed if canonical_id(one.source_id or self.workspace_id) == self.workspace_id)
        target = next((one.target_id for one in own if one.id == delegation_id and one.target_id), None)
        if target is None:
            return None
        self._questions.delegate(target, delegation_id)
        return canonical_id(target)

    def _check(self, peer_id: str, text: str, what: str) -> str:
        peer_id = check_peer_id(peer_id)
        if peer_id.lower() == self.workspace_id.lower():
            raise ArgumentError(
                f"{peer_id} is this workspace itself", hint="a workspace that writes to itself answers itself"
            )
        check_text(text, what)
        return peer_id


def _has_no_address(exc: PlatformError) -> bool:
    """Whether the peer has no address because it polls: the platform says "not available" with 503."""
    return exc.status == 503 and isinstance(exc, TransientPlatformError) and exc.platform_said and not exc.retry_after
