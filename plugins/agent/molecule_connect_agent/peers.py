"""Writing to other workspaces: who there is, where they listen, messages and delegations."""

import logging
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import attrs

from molecule_connect.config.settings import is_same_workspace
from molecule_connect.errors import (
    ArgumentError,
    ConfigError,
    Outcome,
    PlatformError,
    TransientPlatformError,
)
from molecule_connect.models import Inbound, Kind, canonical_id
from molecule_connect.platform import endpoints
from molecule_connect.platform.direct_messages import (
    A2A_CAP,
    DirectPost,
    Resolve,
    direct_post,
    is_web_address,
    read_rpc_answer,
)
from molecule_connect.platform.messages import question_envelope, to_json
from molecule_connect_agent.checks import check_peer_id, check_seconds, check_text
from molecule_connect_agent.readings import read_delegation, read_peers
from molecule_connect_agent.steps import AskPeer, Flow, ask, ask_at_length, call, hinting
from molecule_connect_agent.values import DEFAULT_URL_CACHE_TTL, Delegation, PeerInfo

MOST_QUESTIONS = 10_000
JsonObject = dict[str, object]
_log = logging.getLogger(__name__)


class Addresses:
    """Where peers listen, for so many seconds. Threads may share it."""

    def __init__(self, ttl: float, clock: Callable[[], float]) -> None:
        self._ttl, self._clock = ttl, clock
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, str]] = {}

    def put(self, peer_id: str, url: str) -> None:
        """Keeps *url*, unless it is no http(s) address."""
        if is_web_address(url):
            with self._lock:
                self._known[peer_id] = (self._clock() + self._ttl, url)

    def get(self, peer_id: str) -> str | None:
        """The address, or None when it is not known or too old."""
        with self._lock:
            until, url = self._known.get(peer_id, (0.0, ""))
            if url and self._clock() < until:
                return url
            self._known.pop(peer_id, None)
            return None

    def forget(self, peer_id: str) -> None:
        """Looks the address up again next time."""
        with self._lock:
            self._known.pop(peer_id, None)


class Questions:
    """What was asked of which peer, so that only that peer can answer it.

    Kept in memory, the newest 10,000 of each kind. Threads may share it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: dict[tuple[str, str], None] = {}
        self._delegated: dict[str, str] = {}

    def ask(self, peer_id: str, message_id: str) -> None:
        """The message is about to be sent to the peer."""
        with self._lock:
            self._asked[canonical_id(peer_id), message_id] = None
            _trim(self._asked)

    def delegate(self, peer_id: str, delegation_id: str) -> None:
        """The platform accepted the delegation. The message that carries it has the delegation's id."""
        self.ask(peer_id, delegation_id)
        with self._lock:
            self._delegated[delegation_id] = canonical_id(peer_id)
            _trim(self._delegated)

    def was_asked(self, peer_id: str | None, message_id: str) -> bool:
        """Whether that very peer was sent the message."""
        with self._lock:
            return peer_id is not None and (peer_id, message_id) in self._asked

    def callee(self, delegation_id: str) -> str | None:
        """The peer that has the delegation, or None if this client did not open it."""
        with self._lock:
            return self._delegated.get(delegation_id)


def _trim(known: dict[Any, Any]) -> None:
    if len(known) > MOST_QUESTIONS:
        del known[next(iter(known))]


@attrs.frozen(kw_only=True)
class Peers:
    """The other workspaces, as one workspace reaches them.

    Attributes:
        resolve: Finds what a peer's own address leads to, which has to be public; None: it may lead anywhere.
    """

    workspace_id: str
    url_cache_ttl: float = DEFAULT_URL_CACHE_TTL
    clock: Callable[[], float] = time.monotonic
    resolve: Resolve | None = None
    addresses: Addresses = attrs.field(
        default=attrs.Factory(lambda self: Addresses(self.url_cache_ttl, self.clock), takes_self=True), init=False
    )
    questions: Questions = attrs.field(factory=Questions, init=False)

    def neighbours(self) -> Flow[list[PeerInfo]]:
        """Whom this workspace may write to; their addresses are kept."""
        peers = read_peers((yield from ask(endpoints.peers(self.workspace_id))))
        for peer in peers:
            self.addresses.put(peer.id, peer.url)
        return peers

    def discover(self, peer_id: str) -> Flow[str | None]:
        """Where a peer says that it listens, or None."""
        peer_id = check_peer_id(peer_id)
        known = self.addresses.get(peer_id)
        if known is not None:
            return known
        try:
            told = yield from ask(endpoints.discover(peer_id), gives_up=_has_no_address)
        except PlatformError as exc:
            if exc.status == 404 or _has_no_address(exc):
                return None
            raise
        url: object = told.get("url")
        if not isinstance(url, str) or not is_web_address(url):
            return None
        self.addresses.put(peer_id, url)
        return url

    def call(
        self,
        peer_id: str,
        text: str,
        *,
        prefer_direct: bool,
        timeout: float,
        context_id: str | None,
        message_id: str | None,
    ) -> Flow[JsonObject]:
        """A question to a peer; its JSON-RPC answer as it came."""
        peer_id = self._check(peer_id, text, "message")
        check_seconds("timeout", timeout)
        message_id = message_id or str(uuid.uuid4())
        self.questions.ask(peer_id, message_id)
        envelope = question_envelope(message_id, text, context_id=context_id)
        if prefer_direct:
            answer: JsonObject | None = yield from self._direct(peer_id, to_json(envelope, operation="direct"), timeout)
            if answer is not None:
                return answer
        operation = attrs.evolve(
            endpoints.a2a(peer_id, envelope), read=read_rpc_answer, accepts=(200,), timeout=timeout, cap=A2A_CAP
        )
        told: JsonObject = yield from ask_at_length(operation)
        return told

    def _direct(self, peer_id: str, body: bytes, timeout: float) -> Flow[JsonObject | None]:
        """The peer's own answer, or None when the request cannot have reached it."""
        try:
            url = yield from self.discover(peer_id)
        except TransientPlatformError as exc:
            _log.info("the address of %s cannot be asked for (%s); the platform carries the message", peer_id, exc)
            return None
        if url is None:
            return None
        try:
            posts = yield from self._posts(direct_post(url, body, timeout=timeout))
            for post in posts:
                try:
                    answer: JsonObject = yield AskPeer(post)
                except TransientPlatformError as exc:
                    if exc.status is not None or exc.outcome is not Outcome.NOT_TAKEN:
                        raise
                    _log.info("%s; the platform carries the message unless another address answers", exc)
                else:
                    return answer
        except ConfigError as exc:
            # No request can be made of the address that the peer gave, or none may be.
            _log.warning("%s; the platform carries the message%s", exc, f" ({exc.hint})" if exc.hint else "")
        self.addresses.forget(peer_id)
        return None

    def _posts(self, post: DirectPost) -> Flow[list[DirectPost]]:
        """*post* to each address that may be tried; none where the name leads to none."""
        resolve = self.resolve
        if resolve is None:
            return [post]
        try:
            return (yield from call(lambda: post.to_public(resolve)))
        except OSError as exc:
            _log.info("%s cannot be resolved (%s); the platform carries the message", post.address.origin, exc)
            return []

    def delegate(self, target_id: str, task: str, *, idempotency_key: str | None) -> Flow[Delegation]:
        """Hands a task to a peer. A repeat with the same key is the same delegation, so it is repeated."""
        target_id = self._check(target_id, task, "task")
        key = idempotency_key or str(uuid.uuid4())
        operation = endpoints.delegate(self.workspace_id, target_id, task, idempotency_key=key)
        with hinting("compare the peer's id with those of get_peers(): the platform takes no other form of it", 400):
            told = yield from ask(operation, same=True)
        delegation = read_delegation(told, source_id=self.workspace_id, target_id=target_id)
        self.questions.delegate(target_id, delegation.id)
        return delegation

    def delegations(self) -> Flow[list[Delegation]]:
        """The newest delegations."""
        listed = yield from ask(endpoints.delegations(self.workspace_id))
        return [read_delegation(item) for item in listed]

    def attributed(self, row: Inbound) -> Flow[Inbound | None]:
        """*row* with the peer that it is from, and without claims that this workspace's own questions don't bear out.

        None for a result of a delegation that this workspace did not open with the peer.
        """
        if row.kind is Kind.ANSWER:
            peer, delegation = row.caller_id, row.delegation_id
            is_ours = delegation is not None and self.questions.was_asked(peer, delegation)
            reason = row.reason if self.questions.was_asked(peer, row.reason) else ""
            return attrs.evolve(row, reason=reason, delegation_id=delegation if is_ours else None)
        if row.kind is not Kind.RESULT:
            return row
        callee = yield from self._callee(row.delegation_id or "")
        if callee is None or row.caller_id not in (None, callee):
            _log.warning("row %s is left out: this workspace opened no delegation that it is the result of", row.row_id)
            return None
        return attrs.evolve(row, caller_id=callee)

    def _callee(self, delegation_id: str) -> Flow[str | None]:
        """The peer that has a delegation of this workspace; the platform knows those of earlier processes."""
        known = self.questions.callee(delegation_id)
        if known is not None or not delegation_id:
            return known
        try:
            listed = yield from self.delegations()
        except PlatformError as exc:
            # A platform without this list can't say whose result it is.
            if isinstance(exc, TransientPlatformError) and exc.status not in (404, 405):
                raise
            return None
        ours = (one for one in listed if canonical_id(one.source_id or self.workspace_id) == self.workspace_id)
        target = next((one.target_id for one in ours if one.id == delegation_id and one.target_id), None)
        if target is None:
            return None
        self.questions.delegate(target, delegation_id)
        return canonical_id(target)

    def _check(self, peer_id: str, text: str, what: str) -> str:
        peer_id = check_peer_id(peer_id)
        if is_same_workspace(peer_id, self.workspace_id):
            raise ArgumentError(
                f"{peer_id} is this workspace itself", hint="a workspace that writes to itself answers itself"
            )
        check_text(text, what)
        return peer_id


def _has_no_address(exc: PlatformError) -> bool:
    """A peer that polls has none: the platform says "not available" with 503, and another try changes nothing."""
    return exc.status == 503 and isinstance(exc, TransientPlatformError) and exc.platform_said and not exc.retry_after
