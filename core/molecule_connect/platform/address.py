"""The address of the platform's API, and the origin that a token belongs to."""

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

import attrs

from molecule_connect.errors import ConfigError

_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]*:[0-9a-f:.]*(?:%\w+)?")
_PORTS = {"http": 80, "https": 443}


@attrs.frozen(kw_only=True)
class ApiAddress:
    """A parsed API address.

    Attributes:
        origin: Scheme, host and port, in the form of the ``Origin`` header.
        prefix: The path before ``/workspaces``, without a trailing slash.
    """

    origin: str
    prefix: str
    is_loopback: bool

    def url(self, path: str) -> str:
        """Return the URL for *path*, which starts with a slash."""
        return f"{self.origin}{self.prefix}{path}"


def system_addresses(host: str) -> tuple[str, ...]:
    """Resolve *host* on this system. Empty if it has no address."""
    try:
        return tuple(str(address[0]) for *_, address in socket.getaddrinfo(host, None))
    except OSError:
        return ()


def parse_address(
    api_url: str, *, insecure: bool = False, resolve: Callable[[str], Iterable[str]] = system_addresses
) -> ApiAddress:
    """Parse and check *api_url*. Only names below ``localhost`` are looked up.

    Raises:
        ConfigError: It isn't an http(s) address, or it is plain http to another machine without *insecure*.
    """
    # urlsplit drops line endings, which would remain in messages.
    if not str(api_url).isprintable():
        raise ConfigError(
            "the API address contains a line ending or another invisible character",
            hint="write it in one line, like https://platform.example",
        )
    try:
        parts = urlsplit(api_url.strip())
        host, port = parts.hostname or "", parts.port
        # Raises for a label that is empty or too long, as name resolution would.
        host = host if ":" in host else host.encode("idna").decode()
    except (ValueError, AttributeError):
        # The cause may quote a password.
        raise ConfigError("the API address cannot be read", hint="write it like https://platform.example") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            f"the API address of {host} contains a user name or password", hint="remove them; the token identifies you"
        )
    if parts.scheme not in _PORTS or not _HOST.fullmatch(host):
        shown = "the address" if "@" in api_url else repr(api_url)
        raise ConfigError(f"{shown} is not an API address", hint="write it like https://platform.example")
    if parts.query or parts.fragment:
        raise ConfigError(
            f"the API address of {host} contains a query or fragment", hint="remove everything after the path"
        )
    is_loopback = _is_loopback(host, resolve)
    if parts.scheme == "http" and not is_loopback and not insecure:
        raise ConfigError(
            f"http://{host} would carry the token in clear text over the network",
            hint="use https, or allow plain http on a trusted network: --insecure, or insecure=True from Python",
        )
    shown = f"[{host}]" if ":" in host else host
    suffix = "" if port in (None, _PORTS[parts.scheme]) else f":{port}"
    return ApiAddress(
        origin=f"{parts.scheme}://{shown}{suffix}", prefix=parts.path.rstrip("/"), is_loopback=is_loopback
    )


def _is_loopback(host: str, resolve: Callable[[str], Iterable[str]] = lambda host: ()) -> bool:
    if host == "localhost":
        return True
    if host.endswith(".localhost"):
        # Not all resolvers follow RFC 6761, so such a name may lead to another machine.
        addresses = list(resolve(host))
        return bool(addresses) and all(map(_is_loopback, addresses))
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
