"""Responses of the platform: status and body become a reply or an error."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from molecule_connect.errors import (
    AuthError,
    CursorExpiredError,
    Outcome,
    PermanentPlatformError,
    PlatformError,
    TransientPlatformError,
)
from molecule_connect.models import is_uuid
from molecule_connect.platform.clock import SECOND_US, parse_http_date
from molecule_connect.platform.endpoints import BodyFormat, Operation, Priority, Reply
from molecule_connect.platform.feed_pages import MalformedPageError

FINAL: Final = frozenset({400, 403, 404, 409, 413, 422})
_ABSENT: Final = frozenset({404, 405, 501})
# In every response of the platform, of both generations (contract, section (j)).
_PLATFORM_HEADER: Final = "x-ratelimit-limit"
# Errors of the platform about the receiving peer (contract 2.9).
_PEER_IS_DOWN: Final = ("workspace has no URL", "failed to reach workspace agent", "not publicly routable")
_SECRETS = re.compile(r'("(?:auth_token|platform_inbound_secret)"\s*:\s*")[^"]*')
# Part of an oversized row that holds its id and time: platforms write the members of a row in alphabetical order.
_ROW_HEAD = 1 << 16
_MAX_EXCERPT = 200
_MAX_BODY = 2_000
_HINTS: Final = {
    402: "the budget of the workspace is used up; raise it on the platform",
    403: "the platform's rules forbid it; its message says which",
    429: "the rate limit of the platform is used up; serve fewer workspaces or use longer intervals",
}
_STRANGE = "this doesn't look like a Molecule platform"
_EDGE = (
    f"{_STRANGE}: perhaps a captive portal, a proxy or the platform's edge answered instead; check the network and"
    " the API address"
)


class EndpointAbsentError(PermanentPlatformError):
    """The platform doesn't have this optional endpoint."""


@attrs.frozen(kw_only=True)
class HttpResponse:
    """An HTTP response. Header names are lower case.

    Attributes:
        is_whole: False if the body was cut off at the operation's cap.
        seconds: Time from the request to the head of the response.
    """

    status: int
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)
    is_whole: bool = True
    seconds: float = 0.0


def judge(operation: Operation[Any], response: HttpResponse, *, redact: Callable[[str], str]) -> Reply:
    """Return the reply in *response*.

    Raises:
        AuthError: 401.
        CursorExpiredError: 410 on the feed.
        EndpointAbsentError: The platform does not have an optional endpoint.
        PermanentPlatformError: The platform refused with its own JSON error.
        TransientPlatformError: Any other status outside 2xx, and a 2xx that is not from the platform.
    """
    found = _decode(response.body) if operation.body_format is BodyFormat.JSON or response.status >= 300 else None
    if response.status in operation.accepts:
        return _reply(response, found)
    if operation.name == "a2a" and _is_from_peer(response, found):
        if found is _NOT_JSON:
            # Malformed JSON, or the peer's own text.
            is_json = response.body.lstrip()[:1] in (b"{", b"[")
            found = None if is_json else response.body.decode("utf-8", "replace")
        return _reply(response, found)
    if not (200 <= response.status < 300 or _was_delivered(response, found)):
        raise _error(operation, response, found, redact=redact)
    if found is _NOT_JSON:
        if response.is_whole or not response.body.lstrip().startswith(b"{"):
            raise not_platform_json(
                operation,
                response.status,
                response.headers.get("content-type", ""),
                about_peer=_may_be_from_peer(operation, response),
            )
        found = None
    if (
        operation.priority is Priority.SEND
        and response.status == 200
        and isinstance(found, dict)
        and found.get("error")
    ):
        raise _peer_error(operation, response, found, redact=redact)
    return _reply(response, found, is_head=operation.body_format is BodyFormat.ROW and not response.is_whole)


def not_platform_json(
    operation: Operation[Any], status: int, content_type: str, *, about_peer: bool = False
) -> TransientPlatformError:
    """Return the error for a 2xx whose body the platform can't have written."""
    kind = (content_type or "no content type").split(";")[0][:60]
    return TransientPlatformError(
        f"{operation.name}: {status} with an answer that is not the platform's JSON ({kind})",
        operation=operation.name,
        status=status,
        outcome=Outcome.UNKNOWN,
        about_peer=about_peer,
        hint=_EDGE,
    )


def malformed(operation: Operation[Any], reply: Reply, error: MalformedPageError) -> TransientPlatformError:
    """Return the error for a reply that can't be read."""
    if error.cut:
        return TransientPlatformError(f"{operation.name}: {error}", operation=operation.name, status=reply.status)
    return not_platform_json(operation, reply.status, reply.content_type)


def sanitize(text: str, *, limit: int = _MAX_EXCERPT) -> str:
    """Return the beginning of *text* on one line, without control characters and new tokens."""
    text = _SECRETS.sub(r"\1***", text)
    return "".join(char if char.isprintable() else " " for char in " ".join(text.split()))[:limit]


class _NotJson:
    """A body that is neither empty nor JSON."""


_NOT_JSON: Final = _NotJson()


def _decode(body: bytes) -> Any:
    if not body.strip():
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return _NOT_JSON


def _was_delivered(response: HttpResponse, found: Any) -> bool:
    return response.status == 502 and isinstance(found, dict) and found.get("delivery_confirmed") is True


def _is_from_peer(response: HttpResponse, found: Any) -> bool:
    """Whether a push peer responded, through the platform. The peer has the message then.

    A JSON-RPC error with status 200 is handled like a refusal.
    """
    if not response.body.strip():
        return False
    if isinstance(found, dict) and "jsonrpc" in found:
        return response.status >= 300
    is_platforms = _PLATFORM_HEADER in response.headers
    if 200 <= response.status < 300:
        is_json = response.headers.get("content-type", "").startswith("application/json")
        return found is _NOT_JSON and (is_platforms or is_json) and not _is_page(response)
    # 404, 502 and 503 may be from a web server in front of a peer that is down.
    return response.status == 500 and is_platforms and not _platform_message(found)


def _may_be_from_peer(operation: Operation[Any], response: HttpResponse) -> bool:
    """Whether a response that isn't the platform's JSON may be from the peer, or from a web server in front of it."""
    if operation.name != "a2a" or not response.body.strip() or response.status in _ABSENT:
        return False
    return _PLATFORM_HEADER in response.headers or (200 <= response.status < 300 and not _is_page(response))


def _is_page(response: HttpResponse) -> bool:
    return response.headers.get("content-type", "").startswith("text/html") or response.body.lstrip().startswith(b"<")


def _peer_error(
    operation: Operation[Any], response: HttpResponse, found: Mapping[str, Any], *, redact: Callable[[str], str]
) -> PermanentPlatformError:
    words = redact(sanitize(_message_of(found["error"])))
    return PermanentPlatformError(
        f"{operation.name}: 200, but the peer refused: {words}",
        operation=operation.name,
        status=response.status,
        body=redact(sanitize(json.dumps(found), limit=_MAX_BODY)),
        hint="the peer's agent returned an error; ask its operator",
    )


def _reply(response: HttpResponse, found: Any, *, is_head: bool = False) -> Reply:
    date = parse_http_date(response.headers.get("date"))
    return Reply(
        body=response.body[:_ROW_HEAD] if is_head else response.body,
        json=found,
        status=response.status,
        earliest=None if date is None else date - int(response.seconds * SECOND_US),
        content_type=response.headers.get("content-type", ""),
        is_whole=not is_head,
    )


def _error(
    operation: Operation[Any], response: HttpResponse, found: Any, *, redact: Callable[[str], str]
) -> PlatformError:
    status, name = response.status, operation.name
    reason = _platform_message(found)
    text = response.body[: 4 * _MAX_BODY].decode("utf-8", "replace")
    words = redact(sanitize(reason or ("" if "<" in text[:200] else text)))
    message = f"{name}: {status} {words}".rstrip() if words else f"{name}: {status} without a message of the platform"
    body = redact(sanitize(text, limit=_MAX_BODY))
    may_be_from_peer = not reason and _may_be_from_peer(operation, response)
    if status == 401 and not may_be_from_peer:
        hint = "the platform refused the token: pass a current one (canvas, workspace tokens)"
        if not reason and response.body.strip():
            hint = f"{_STRANGE}: check the API address; if it is right, {hint}"
        return AuthError(message, operation=name, status=status, body=body, hint=hint)
    if operation.body_format in (BodyFormat.PAGE, BodyFormat.ROW) and (
        status == 410 or _is_invalid_cursor(operation, reason)
    ):
        return CursorExpiredError(message, operation=name, status=status, body=body)
    if status in FINAL and reason:
        hint = _own_hint(found) or _HINTS.get(status, "")
        return PermanentPlatformError(message, operation=name, status=status, body=body, hint=hint)
    if operation.is_optional and status in _ABSENT:
        message = f"{name}: {status}, the platform doesn't have this endpoint"
        return EndpointAbsentError(message, operation=name, status=status, body=body)
    if 300 <= status < 400:
        message = f"{name}: {status} to {_target(response)}; redirects are not followed"
    return TransientPlatformError(
        message,
        operation=name,
        status=status,
        retry_after=_retry_after(response, found),
        outcome=Outcome.UNKNOWN if status >= 500 or may_be_from_peer else Outcome.NOT_TAKEN,
        platform_said=bool(reason),
        about_peer=may_be_from_peer or _is_about_peer(operation, status, reason),
        hint=_hint(operation, response, reason),
    )


def _is_invalid_cursor(operation: Operation[Any], reason: str) -> bool:
    """Whether the read starts after an id that the platform can never look up, because it isn't a UUID (contract 2.6).

    The platform returns the same error if its database fails, but then the id is a UUID.
    """
    since_id = dict(operation.params).get("since_id")
    return reason == "cursor lookup failed" and since_id is not None and not is_uuid(since_id)


def _is_about_peer(operation: Operation[Any], status: int, reason: str) -> bool:
    is_down = status in (502, 503) and any(words in reason for words in _PEER_IS_DOWN)
    return operation.name == "a2a" and (is_down or (status == 402 and bool(reason)))


def _hint(operation: Operation[Any], response: HttpResponse, reason: str) -> str:
    if 300 <= response.status < 400:
        return "use the address that it points to as the API address, if that is the platform's"
    if response.status == 403 and not reason:
        return _EDGE
    if response.status in _ABSENT and not reason:
        if response.body.strip():
            return (
                f"{_STRANGE}: check the API address and its path; the platform's edge also answers so without"
                " --org-id, or for a wrong workspace id"
            )
        return (
            "a 404 without a body is the edge's rule on Origin or on the organization header (--org-id), "
            "a wrong workspace id, or an API address with a wrong path"
        )
    if response.status in _HINTS:
        return _HINTS[response.status]
    return "" if reason or response.status >= 500 else _EDGE


def _platform_message(found: Any) -> str:
    """Return the error message if the body is the platform's JSON, else ""."""
    if not isinstance(found, dict):
        return ""
    error = found.get("error")
    if isinstance(error, str) and error.strip():
        return error
    return "the workspace is deleted" if found.get("deleted") is True else ""


def _message_of(error: Any) -> str:
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else error if isinstance(error, str) else json.dumps(error)


def _own_hint(found: Any) -> str:
    hint = found.get("hint") if isinstance(found, dict) else None
    return sanitize(hint) if isinstance(hint, str) else ""


def _target(response: HttpResponse) -> str:
    return sanitize(response.headers.get("location", "nowhere").split("?")[0].rpartition("@")[2])


def _retry_after(response: HttpResponse, found: Any) -> float | None:
    header = response.headers.get("retry-after", "").strip()
    if header.isascii() and header.isdigit():
        return float(header[:9])
    until, now = parse_http_date(header), parse_http_date(response.headers.get("date"))
    if until is not None and now is not None:
        return max(0.0, (until - now) / SECOND_US)
    value = found.get("retry_after") if isinstance(found, dict) else None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9:
        return float(value)
    return None
