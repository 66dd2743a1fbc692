"""Messages to a peer's own address, which must not reveal this agent's credentials or reach into its network.

A peer chooses its address, so the name is resolved, each of its addresses has to be public, and the connection goes to
the address that was checked.
"""

import asyncio
import contextlib
import ipaddress
import json
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import anyio.to_thread
import httpx

from molecule_connect import Outcome, PermanentPlatformError, TransientPlatformError, __version__

JsonObject: TypeAlias = dict[str, object]
# The longest message that newer platforms accept (contract, section (e)).
LARGEST_ANSWER = 64 << 20
# Neither Authorization nor anything else that the platform issued.
HEADERS = {
    "User-Agent": f"molecule-connect-agent/{__version__}",
    "Content-Type": "application/json",
    "Accept-Encoding": "identity",
}
# Each that doesn't respond costs a connect timeout.
MOST_ADDRESSES = 3
CONNECT_TIMEOUT, WRITE_TIMEOUT = 5.0, 10.0
WHOLE_ANSWER_TIMEOUT = 300.0
# The host did not get the request.
_NOT_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
)
_PROXY_REFUSES = 407
# A retry may succeed.
_PASSING = (408, 425, 429)
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Global according to older tables of ipaddress: protocol assignments (among them a metadata service), 6to4 relays,
# Azure's metadata and DNS, documentation.
_NOT_PUBLIC = (
    ipaddress.ip_network("192.0.0.0/24"),
    ipaddress.ip_network("192.88.99.0/24"),
    ipaddress.ip_network("168.63.129.16/32"),
    ipaddress.ip_network("2001::/23"),
    ipaddress.ip_network("3fff::/20"),
)
# Returns the addresses of a host name and port.
Resolve: TypeAlias = Callable[[str, int], Sequence[str]]


_log = logging.getLogger(__name__)


class NotSentError(Exception):
    """The request can't have reached the peer. The text says why."""


def system_addresses(host: str, port: int) -> Sequence[str]:
    """All addresses of *host*, as this system resolves it.

    Raises:
        OSError: It has none, or the resolver doesn't respond.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


def literal_addresses(host: str, port: int) -> Sequence[str]:
    """The address that *host* spells out, in any form that a connection accepts; none for a name but ``localhost``.

    For a transport that replaces the network and its names.
    """
    if host == "localhost" or host.endswith(".localhost"):
        return ("127.0.0.1",)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except OSError:
        return ()
    return tuple(str(address[0]) for *_, address in found)


def is_public(address: str) -> bool:
    """Whether an IP address is public: not loopback, private, link-local, multicast, reserved or of a metadata service.

    An address that embeds an IPv4 address (mapped, 6to4, NAT64) is as public as that; Teredo, in 2001::/23, is not.
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


def is_web_address(url: object) -> bool:
    """Whether *url* is an http(s) address that can be posted to: without a user and a query."""
    if not isinstance(url, str) or not url.isprintable():
        return False
    try:
        parsed = httpx.URL(url.strip())
        return (
            parsed.scheme in ("http", "https")
            and bool(parsed.host.encode("idna"))
            and (parsed.port or 0) < 1 << 16
            and not (parsed.userinfo or parsed.query or parsed.fragment)
        )
    except (httpx.InvalidURL, ValueError):
        return False


class DirectMessages:
    """Posts to peers' own addresses.

    Args:
        resolve: Returns the addresses of a peer's host, which have to be public; None to allow any address.
        transport: Replaces the network.
    """

    def __init__(self, resolve: Resolve | None, transport: httpx.AsyncBaseTransport | None) -> None:
        self._resolve = resolve
        self._transport = transport

    async def post(self, url: str, body: bytes, *, timeout: float) -> JsonObject:
        """The JSON object that the peer at *url* responds with.

        Args:
            timeout: Seconds to wait for the response to begin, and for each piece of it.

        Raises:
            NotSentError: The message can't have arrived.
            PermanentPlatformError: The peer's host refused.
            TransientPlatformError: It may have arrived.
        """
        parsed = httpx.URL(url.strip())
        *others, last = await self._addresses(parsed)
        for address in others:
            with contextlib.suppress(NotSentError):
                return await self._post(parsed, address, body, timeout)
        return await self._post(parsed, last, body, timeout)

    async def _addresses(self, url: httpx.URL) -> Sequence[str | None]:
        """The addresses to try; None stands for any that the name resolves to."""
        if self._resolve is None:
            return [None]
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            host = url.raw_host.decode("ascii")
            addresses = await anyio.to_thread.run_sync(self._resolve, host, port, abandon_on_cancel=True)
        except (OSError, UnicodeError) as exc:
            raise NotSentError(f"{_origin(url)} can't be resolved ({exc})") from exc
        refused = [address for address in addresses if not is_public(address)]
        if refused:
            text = f"the peer's address {_origin(url)} leads to {refused[0]}, which is not public"
            _log.warning("%s -> to post to peers of your own network, create the client with allow_private=True", text)
            raise NotSentError(text)
        return addresses[:MOST_ADDRESSES] or [None]

    async def _post(self, url: httpx.URL, address: str | None, body: bytes, timeout: float) -> JsonObject:
        client = httpx.AsyncClient(
            transport=self._transport, timeout=httpx.Timeout(timeout, connect=CONNECT_TIMEOUT, write=WRITE_TIMEOUT)
        )
        try:
            async with asyncio.timeout(timeout + WHOLE_ANSWER_TIMEOUT):
                response = await client.send(_request(client, url, address, body), stream=True)
                try:
                    if response.status_code == _PROXY_REFUSES:
                        raise httpx.ProxyError(f"{_PROXY_REFUSES} {response.reason_phrase}")
                    if response.status_code != 200:
                        raise _refusal(url, f"{response.status_code} {response.reason_phrase}", response.status_code)
                    return _read(url, await _content(url, response))
                finally:
                    await response.aclose()
        except _NOT_SENT as exc:
            raise NotSentError(f"{_origin(url)} can't be reached ({type(exc).__name__})") from exc
        except (httpx.HTTPError, TimeoutError) as exc:
            raise _refusal(url, f"no complete response ({type(exc).__name__})", None) from exc
        finally:
            if self._transport is None:
                await client.aclose()


def _request(client: httpx.AsyncClient, url: httpx.URL, address: str | None, body: bytes) -> httpx.Request:
    headers = HEADERS | {"Host": url.netloc.decode("ascii")}
    if address is None:
        return client.build_request("POST", url, content=body, headers=headers)
    # The certificate has to be the name's, not the address's.
    extensions = {"sni_hostname": url.raw_host.decode("ascii"), "timeout": client.timeout.as_dict()}
    return client.build_request(
        "POST", url.copy_with(host=address), content=body, headers=headers, extensions=extensions
    )


async def _content(url: httpx.URL, response: httpx.Response) -> bytes:
    content = bytearray()
    async for piece in response.aiter_bytes():
        content += piece
        if len(content) > LARGEST_ANSWER:
            raise _refusal(url, f"a response larger than {LARGEST_ANSWER >> 20} MiB", None)
    return bytes(content)


def _read(url: httpx.URL, content: bytes) -> JsonObject:
    if not content.strip():
        return {}
    try:
        found: Any = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _refusal(url, "a response that is not a JSON object", 200)
    return found


def _refusal(url: httpx.URL, text: str, status: int | None) -> PermanentPlatformError | TransientPlatformError:
    text = f"direct: {text} from {_origin(url)}"
    hint = f"{_origin(url)} is the peer's own host; without prefer_direct, the platform carries the message"
    if status is not None and 400 <= status < 500 and status not in _PASSING:
        return PermanentPlatformError(text, operation="direct", status=status, body="", hint=hint)
    return TransientPlatformError(text, operation="direct", status=status, outcome=Outcome.UNKNOWN, hint=hint)


def _origin(url: httpx.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode('ascii')}"
