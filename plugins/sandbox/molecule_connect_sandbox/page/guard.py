"""Who may call the endpoints of the page: the page itself, and programs of the same user."""

import os
import socket
import struct
from pathlib import Path

from starlette.requests import Request
from starlette.types import Scope

from molecule_connect_sandbox.responses import Refusal

# A page of another origin can't send this header without permission, which no response of the sandbox grants.
HEADER = "x-sandbox-page"
TCP_TABLE = Path("/proc/net/tcp")


def check_program(request: Request, table: Path = TCP_TABLE) -> None:
    """Require that the client runs as the user of this process, or as root.

    Other users of the machine could otherwise write to an agent that acts with the rights of this one. Systems without
    ``/proc/net/tcp`` don't tell, and are not checked.

    Raises:
        Refusal: It runs as another user.
    """
    user = _user_of_client(request.scope, table)
    if user is not None and user not in (0, os.geteuid()):
        raise Refusal(
            403, "this sandbox belongs to another user of this machine", hint="start one with: molecule sandbox --serve"
        )


def check_navigation(request: Request, table: Path = TCP_TABLE) -> None:
    """Require that a download or an image was requested by the page itself, or by hand.

    Raises:
        Refusal: Another site requested it, or another user.
    """
    check_program(request, table)
    if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        raise Refusal(403, "another site requested this")


def check_page(request: Request, table: Path = TCP_TABLE) -> None:
    """Require that the page itself sent the request, or a program of the same user. The host is checked before.

    Raises:
        Refusal: Another site sent it, another page of this machine, or another user.
    """
    check_program(request, table)
    headers = request.headers
    same_origin = f"http://{headers.get('host', '')}".lower()
    if HEADER not in headers:
        raise Refusal(403, "the X-Sandbox-Page header is missing", hint="only the page at / calls this endpoint")
    if any(origin.lower() != same_origin for origin in headers.getlist("origin")):
        raise Refusal(403, "another page sent this request: its Origin is not this address")
    if headers.get("sec-fetch-site", "same-origin") != "same-origin":
        raise Refusal(403, "another site sent this request")


def _user_of_client(scope: Scope, table: Path) -> int | None:
    """The user id of the process at the other end of the connection; None if it is unknown."""
    client, server = scope.get("client"), scope.get("server")
    if client is None or server is None:
        return None
    try:
        ends = [_hexadecimal(*client), _hexadecimal(*server)]
        lines = table.read_text().splitlines()
    except (OSError, TypeError, ValueError):
        return None
    for line in lines:
        fields = line.split()
        if fields[1:3] == ends:
            return int(fields[7])
    return None


def _hexadecimal(host: str, port: int) -> str:
    """An address as in ``/proc/net/tcp``, which prints the IPv4 address as a number of this machine."""
    (number,) = struct.unpack("=I", socket.inet_aton(host))
    return f"{number:08X}:{port:04X}"
