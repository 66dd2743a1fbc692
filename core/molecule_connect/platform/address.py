"""Where the platform is: an API address, and the origin that a token belongs to."""

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
    """An API address, taken apart.

    Attributes:
        origin: Scheme, host and port, as a browser spells an origin.
        prefix: The path before ``/workspaces``, without a slash at its end.
    """

    origin: str
    prefix: str
    is_loopback: bool

    def url(self, path: str) -> str:
        """The whole URL of *path*, which begins with a slash."""
        return f"{self.origin}{self.prefix}{path}"


def system_addresses(host: str) -> tuple[str, ...]:
    """What *host* resolves to on this system; nothing where it does not."""
    try:
        return tuple(str(address[0]) for *_, address in socket.getaddrinfo(host, None))
    except OSError:
        return ()


def parse_address(
    api_url: str, *, insecure: bool = False, resolve: Callable[[str], Iterable[str]] = system_addresses
) -> ApiAddress:
    """*api_url*, checked before any request. A name below ``localhost`` is looked up: no other name is.

    Raises:
        ConfigError: It is no http(s) address, or plain http to another machine without *insecure*.
    """
    # What takes addresses apart drops line endings, and everything that shows them would not.
    if not str(api_url).isprintable():
        raise ConfigError(
            "the API address holds a line ending or another character that cannot be seen",
            hint="write it again, in one line, like https://platform.example",
        )
    try:
        parts = urlsplit(api_url.strip())
        host, port = parts.hostname or "", parts.port
        # What resolves names raises for a label that is empty or too long.
        host = host if ":" in host else host.encode("idna").decode()
    except (ValueError, AttributeError):
        # The cause may quote a password.
        raise ConfigError("the API address cannot be read", hint="write it like https://platform.example") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            f"the API address of {host} holds a user name or password", hint="leave them out; the token stands for you"
        )
    if parts.scheme not in _PORTS or not _HOST.fullmatch(host):
        shown = "what was given" if "@" in api_url else repr(api_url)
        raise ConfigError(f"{shown} is not an API address", hint="write it like https://platform.example")
    if parts.query or parts.fragment:
        raise ConfigError(f"the API address of {host} holds a query or fragment", hint="end it after the path")
    is_loopback = _is_loopback(host, resolve)
    if parts.scheme == "http" and not is_loopback and not insecure:
        raise ConfigError(
            f"http://{host} would carry the token in clear text over the network",
            hint="use https, or allow it if you know that nobody listens: --insecure, or insecure=True from Python",
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
        # A resolver may send such a name anywhere: only some keep to RFC 6761.
        addresses = list(resolve(host))
        return bool(addresses) and all(map(_is_loopback, addresses))
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
