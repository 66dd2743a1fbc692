"""Network errors in terms of the operation: how far the request got, and what the operator can do."""

from typing import Any

from molecule_connect import open_files
from molecule_connect.errors import Outcome, TransientPlatformError, ran_out_of_files
from molecule_connect.platform.endpoints import Operation
from molecule_connect.platform.http_messages import PROXY_AUTHENTICATION_REQUIRED, WRITE_TIMEOUT, origin_of
from molecule_connect.platform.httpx_import import httpx
from molecule_connect.platform.tls import proxy_source

_NOT_TAKEN = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
)
_UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"
_WANTS_CERTIFICATE = ("certificate required", "certificate_required", "alert handshake failure")


def network_error(operation: Operation[Any], url: str, exc: Exception, *, is_written: bool) -> TransientPlatformError:
    """Return the error for a request that failed with *exc*."""
    origin = origin_of(url)
    outcome = Outcome.UNKNOWN
    text, hint = f"the connection to {origin} was cut", "if it persists, check the network and the proxies on the way"
    reason = "" if isinstance(exc, httpx.LocalProtocolError) else " ".join(str(exc).split())[:120]
    if isinstance(exc, _NOT_TAKEN):
        outcome = Outcome.NOT_TAKEN
        text, hint = f"{origin} cannot be reached", "check the network and the API address, and that the platform runs"
        if proxy := proxy_source(origin):
            text, hint = _proxy_text(origin, proxy, exc)
        if _UNTRUSTED in reason:
            text = f"the certificate of {origin} is not trusted"
            hint = "if it is from a private CA, pass the certificate of that CA with --ca-file or SSL_CERT_FILE"
        if ran_out_of_files(exc):
            text, hint = f"no connection to {origin} can be opened", open_files.HOW_TO_RAISE
    elif isinstance(exc, httpx.WriteTimeout):
        text, reason = f"{origin} did not take the request within {WRITE_TIMEOUT:g} s", ""
    elif isinstance(exc, httpx.ReadTimeout | TimeoutError):
        # A cut after the write proves less: the platform may have stopped before it read the request.
        outcome = Outcome.WRITTEN if is_written else Outcome.UNKNOWN
        text, reason = f"no answer within {operation.timeout:g} s from {origin}", ""
        hint = "other endpoints may still answer; if it persists, ask the platform's operator about this one"
    elif any(words in reason.lower() for words in _WANTS_CERTIFICATE):
        hint = "the platform, or a proxy before it, asks for a client certificate: pass yours with --client-cert"
    if isinstance(exc, TimeoutError):
        text = f"no complete answer from {origin}: it arrives too slowly"
    return TransientPlatformError(
        f"{operation.name}: {text}" + (f" ({reason})" if reason else ""),
        operation=operation.name,
        outcome=outcome,
        hint=hint,
    )


def safe_cause(exc: Exception) -> Exception | None:
    """Return *exc*, or None if its text could hold the token: httpx quotes the header that it rejects."""
    return None if isinstance(exc, httpx.LocalProtocolError) else exc


def _proxy_text(origin: str, proxy: str, exc: Exception) -> tuple[str, str]:
    """Return text and hint for a failure to reach *origin* through the proxy in the variable *proxy*."""
    if not isinstance(exc, httpx.ProxyError):
        hint = f"check the network, the proxy in {proxy}, and the API address, and that the platform runs"
        return f"{origin} cannot be reached by way of the proxy", hint
    if str(PROXY_AUTHENTICATION_REQUIRED) in str(exc):
        return f"the proxy on the way to {origin} refuses the credentials", f"correct user name and password in {proxy}"
    hint = f"check the proxy in {proxy}, or add the platform's host to NO_PROXY"
    return f"the proxy on the way to {origin} refuses the connection", hint
