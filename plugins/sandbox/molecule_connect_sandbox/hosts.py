"""Tells requests of local programs from those that web pages send through a browser."""

import ipaddress
import re

from starlette.datastructures import Headers
from starlette.responses import Response

from molecule_connect_sandbox.responses import json_response

_HOST = re.compile(r"(?:\[(?P<bracketed>[^\]]*)\]|(?P<plain>[^:\[\]]*))(?::\d*)?")
_ORIGIN = re.compile(r"https?://(?P<host>[^/?#@\\]+)", re.IGNORECASE)


def is_local(host: str) -> bool:
    """Whether a ``Host`` is a loopback name: ``localhost``, 127.0.0.0/8 or ``[::1]``, with any port.

    The owner of any other name can point it at 127.0.0.1; some resolvers look up ``*.localhost`` too.
    """
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    bracketed, plain = match["bracketed"], match["plain"]
    if bracketed is not None:
        return bracketed == "::1"
    if plain.lower().removesuffix(".") == "localhost":
        return True
    try:
        return ipaddress.IPv4Address(plain).is_loopback
    except ValueError:
        return False


def is_local_origin(origin: str) -> bool:
    """Whether an ``Origin`` is a loopback name; ``null`` isn't."""
    match = _ORIGIN.fullmatch(origin)
    return match is not None and is_local(match["host"])


def reject_foreign(headers: Headers) -> Response | None:
    """The error for a request whose ``Host`` or ``Origin`` isn't a loopback name, else None.

    After DNS rebinding, requests have the attacker's name as their host; forms and scripts of other sites have the
    site as their origin.
    """
    if not all(map(is_local, headers.getlist("host") or [""])):
        named = "Host"
    elif not all(map(is_local_origin, headers.getlist("origin"))):
        named = "Origin"
    else:
        return None
    refused = {
        "error": f"the sandbox serves only this machine, and the {named} header is not a loopback name",
        "hint": "use http://127.0.0.1:PORT or http://localhost:PORT",
    }
    return json_response(refused, 403)
