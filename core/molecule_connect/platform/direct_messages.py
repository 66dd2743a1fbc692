"""A message straight to a peer's own address: another host, which is told nothing of who we are to the platform.

A peer chooses its address itself, so it must not lead into this machine or its network: the name is resolved, every
address of it has to be public, and the connection goes to the address that was checked.
"""

import ipaddress
import socket
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import attrs

from molecule_connect.errors import ConfigError, Outcome, PermanentPlatformError, PlatformError, TransientPlatformError
from molecule_connect.platform.address import ApiAddress, parse_address
from molecule_connect.platform.endpoints import Operation, Priority, Reply
from molecule_connect.platform.feed_pages import MalformedPageError
from molecule_connect.platform.http_messages import Headers
from molecule_connect.platform.requests import USER_AGENT
from molecule_connect.platform.responses import HttpResponse, judge, malformed

# What the newer platforms let through (contract, section (e)).
A2A_CAP = 64 << 20
# No Authorization, and nothing else that the platform gave us.
HEADERS: Headers = [USER_AGENT, ("Accept-Encoding", "gzip, deflate"), ("Content-Type", "application/json")]
# Each that does not answer costs a connect timeout.
MOST_ADDRESSES = 3
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# What older tables of ipaddress call global: protocol assignments (a metadata service is among them), 6to4 relays,
# Azure's metadata and DNS, documentation.
_NOT_PUBLIC = (
    ipaddress.ip_network("192.0.0.0/24"),
    ipaddress.ip_network("192.88.99.0/24"),
    ipaddress.ip_network("168.63.129.16/32"),
    ipaddress.ip_network("2001::/23"),
    ipaddress.ip_network("3fff::/20"),
)
# Addresses of a host name and port, as text.
Resolve = Callable[[str, int], Sequence[str]]


def system_addresses(host: str, port: int) -> Sequence[str]:
    """All addresses of *host*, as this system resolves it.

    Raises:
        OSError: It has none, or the resolver does not answer.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


def literal_addresses(host: str, port: int) -> Sequence[str]:
    """The address that *host* spells out, in any form that a connection takes; none for a name but ``localhost``.

    For a transport that stands in for the network: what its names lead to is its own affair.
    """
    if host == "localhost" or host.endswith(".localhost"):
        return ("127.0.0.1",)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except OSError:
        return ()
    return tuple(str(address[0]) for *_, address in found)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet: not loopback, private, link-local, multicast, reserved or metadata.

    An address that carries an IPv4 address (mapped, 6to4, NAT64) is as public as that; Teredo, in 2001::/23, is not.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(ip.packed[-4:])
        if inner is None and ip not in _GLOBAL_UNICAST:
            return False
        ip = inner or ip
    special = ip.is_multicast or ip.is_reserved or ip.is_unspecified
    return ip.is_global and not special and not any(ip in network for network in _NOT_PUBLIC)


@attrs.frozen(kw_only=True)
class DirectPost:
    """A JSON body for a peer's own address.

    Attributes:
        connect_to: The IP address to connect to; None: whatever the name leads to.
    """

    address: ApiAddress
    url: str
    operation: Operation[dict[str, Any]]
    connect_to: str | None = None

    def to_public(self, resolve: Resolve) -> "list[DirectPost]":
        """This post to each address of its host, as many as may be tried. Blocks while the name is resolved.

        Raises:
            ConfigError: One of the addresses is not public.
            OSError: The name cannot be resolved.
        """
        parts = urlsplit(self.address.origin)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        addresses = resolve(host, port)
        refused = [address for address in addresses if not is_public(address)]
        if refused:
            raise ConfigError(
                f"the peer's address {self.address.origin} leads to {refused[0]}, which is not public",
                hint="if peers of your own network may be posted to, make the client with allow_private=True",
            )
        if not addresses:
            return [self]
        return [attrs.evolve(self, connect_to=address) for address in addresses[:MOST_ADDRESSES]]

    def read(self, answer: HttpResponse) -> dict[str, Any]:
        """The peer's JSON object.

        Raises:
            PermanentPlatformError: The peer's host refused.
            TransientPlatformError: It may work later, or nobody knows what became of it.
        """
        try:
            reply = judge(self.operation, answer, redact=str)
            try:
                return self.operation.read(reply)
            except MalformedPageError as exc:
                raise malformed(self.operation, reply, exc) from None
        except PlatformError as exc:
            # What a status means is the platform's affair; here it is only a host that said no.
            raise self._refused(exc, answer.status) from exc

    def _refused(self, exc: PlatformError, status: int) -> PlatformError:
        hint = f"{self.address.origin} is the peer's own host; without prefer_direct the platform carries the message"
        if 400 <= status < 500 and status not in (408, 425, 429):
            return PermanentPlatformError(str(exc), operation="direct", status=status, body="", hint=hint)
        return TransientPlatformError(str(exc), operation="direct", status=status, outcome=Outcome.UNKNOWN, hint=hint)


def direct_post(url: str, body: bytes, *, timeout: float) -> DirectPost:
    """A post to *url*, which ``is_web_address``."""
    # Nothing secret is in it, so that plain http is the peer's own choice.
    address = parse_address(url, insecure=True, resolve=lambda host: ())
    operation: Operation[dict[str, Any]] = Operation(
        name="direct",
        method="POST",
        path=address.prefix or "/",
        read=read_rpc_answer,
        body=body,
        priority=Priority.SEND,
        timeout=timeout,
        cap=A2A_CAP,
        accepts=(200,),
    )
    return DirectPost(address=address, url=url.strip(), operation=operation)


def is_web_address(value: object) -> bool:
    """Whether *value* is an http(s) address that can be posted to: no user, no query."""
    if not isinstance(value, str):
        return False
    try:
        parse_address(value, insecure=True, resolve=lambda host: ())
    except ConfigError:
        return False
    return True


def read_rpc_answer(reply: Reply) -> dict[str, Any]:
    """A JSON-RPC answer as it came, a refusal of the other side's too; empty for an empty body.

    Raises:
        MalformedPageError: It is no JSON object.
    """
    if reply.json is None:
        return {}
    if not isinstance(reply.json, dict):
        raise MalformedPageError("the answer is not a JSON object")
    return reply.json
