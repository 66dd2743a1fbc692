"""Requests of this machine's own programs, told from those that a web page sends through a browser."""

import ipaddress
import re

from starlette.datastructures import Headers
from starlette.responses import Response

from molecule_connect_sandbox.answers import answer

_HOST = re.compile(r"(?:\[(?P<bracketed>[^\]]*)\]|(?P<plain>[^:\[\]]*))(?::\d*)?")
_ORIGIN = re.compile(r"https?://(?P<host>[^/?#@\\]+)", re.IGNORECASE)


def is_local(host: str) -> bool:
    """Whether a ``Host`` is a name of loopback: ``localhost``, 127.0.0.0/8 or ``[::1]``, with any port.

    Any other name can be pointed at 127.0.0.1 by whoever owns it, ``*.localhost`` by a resolver that is not the
    browser's own.
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
    """Whether an ``Origin`` is a page of this machine; ``null`` is not."""
    match = _ORIGIN.fullmatch(origin)
    return match is not None and is_local(match["host"])


def foreign(headers: Headers) -> Response | None:
    """The refusal of a request whose ``Host`` or ``Origin`` is not of this machine, else None.

    A page under a name that was rebound to 127.0.0.1 has that name as its host; a form or script of another site
    carries that site as its origin.
    """
    if not all(map(is_local, headers.getlist("host") or [""])):
        named = "Host"
    elif not all(map(is_local_origin, headers.getlist("origin"))):
        named = "Origin"
    else:
        return None
    refused = {
        "error": f"the sandbox serves this machine alone, and the {named} header is not a loopback name",
        "hint": "use http://127.0.0.1:PORT or http://localhost:PORT",
    }
    return answer(refused, 403)
