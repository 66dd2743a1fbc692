"""From an answer's status to what happens next: the result, or the error whose class says so. Design, "Sending"."""

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
from molecule_connect.platform.endpoints import Form, Operation, Priority, Reply

FINAL: Final = frozenset({400, 403, 404, 409, 413, 422})
_ABSENT: Final = frozenset({404, 405, 501})
# On every answer of the platform, of either generation (contract, section (j)).
_PLATFORM_HEADER: Final = "x-ratelimit-limit"
# How the platform says that it is the peer that can't be written to now (contract 2.9).
_PEER_IS_DOWN: Final = ("workspace has no URL", "failed to reach workspace agent", "not publicly routable")
_SECRETS = re.compile(r'("(?:auth_token|platform_inbound_secret)"\s*:\s*")[^"]*')
# Where a row that is too large tells its id and time: platforms write a row's members in alphabetical order.
_ROW_HEAD = 1 << 16
_WORDS = 200
_BODY = 2_000
_HINTS: Final = {
    402: "the budget of the workspace is used up; raise it on the platform",
    403: "the platform's rules forbid it; its own words say which",
    429: "the rate limit of the platform is used up; fewer workspaces or longer intervals help",
}
_EDGE = "a portal, a proxy or the platform's edge answered in its place; check the network and the API address"


class EndpointAbsentError(PermanentPlatformError):
    """This platform does not have an endpoint that platforms may leave out."""


@attrs.frozen(kw_only=True)
class Answer:
    """What came back: a status, headers by lower-case name, and a body (``whole`` unless it was cut at the cap)."""

    status: int
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)
    whole: bool = True
    seconds: float = 0.0


def judge(operation: Operation[Any], answer: Answer, *, redact: Callable[[str], str]) -> Reply:
    """The good answer, ready to be read.

    Raises:
        AuthError: 401.
        CursorExpiredError: 410 on the feed.
        EndpointAbsentError: The platform does not have an optional endpoint.
        PermanentPlatformError: The platform refused in its own JSON.
        TransientPlatformError: Everything else that is not a 2xx, and a 2xx that the platform cannot have written.
    """
    found = _decode(answer.body) if operation.form is Form.JSON or answer.status >= 300 else None
    if answer.status in operation.accepts:
        return Reply(body=answer.body, json=found, status=answer.status, began=lower_bound(answer))
    if _is_peers_own(operation, answer, found):
        if found is _NOT_JSON:
            # JSON that can't be read, or the peer's words.
            is_json = answer.body.lstrip()[:1] in (b"{", b"[")
            found = None if is_json else answer.body.decode("utf-8", "replace")
        return Reply(body=answer.body, json=found, status=answer.status, began=lower_bound(answer))
    if 200 <= answer.status < 300 or _was_delivered(answer, found):
        return _good(operation, answer, found, redact=redact)
    raise _error(operation, answer, found, redact=redact)


def lower_bound(answer: Answer) -> int | None:
    """A lower bound of the platform's clock when the request was made, in microseconds."""
    date = parse_http_date(answer.headers.get("date"))
    return None if date is None else date - int(answer.seconds * SECOND_US)


def not_ours(operation: Operation[Any], answer: Answer) -> TransientPlatformError:
    """A 2xx whose body is not what the platform writes: it does not count as an answer."""
    kind = (answer.headers.get("content-type") or "no content type").split(";")[0][:60]
    return TransientPlatformError(
        f"{operation.name}: {answer.status} with an answer that is not the platform's JSON ({kind})",
        operation=operation.name,
        status=answer.status,
        outcome=Outcome.UNKNOWN,
        about_peer=_may_be_peers_own(operation, answer),
        hint=_EDGE,
    )


def sanitised(text: str, *, limit: int = _WORDS) -> str:
    """The beginning of *text* on one line, without control characters and without handed-out secrets."""
    text = _SECRETS.sub(r"\1***", text)
    return "".join(char if char.isprintable() else " " for char in " ".join(text.split()))[:limit]


class _NotJson:
    """Stands for a body that is not empty and not JSON."""


_NOT_JSON: Final = _NotJson()


def _decode(body: bytes) -> Any:
    if not body.strip():
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return _NOT_JSON


def _was_delivered(answer: Answer, found: Any) -> bool:
    return answer.status == 502 and isinstance(found, dict) and found.get("delivery_confirmed") is True


def _is_peers_own(operation: Operation[Any], answer: Answer, found: Any) -> bool:
    """Whether this is a push peer's own response, passed on by the platform: then the peer has the message.

    A JSON-RPC error with a 200 is left to ``_good``, which refuses it.
    """
    if operation.name != "a2a" or not answer.body.strip():
        return False
    if isinstance(found, dict) and "jsonrpc" in found:
        return answer.status >= 300
    is_platforms = _PLATFORM_HEADER in answer.headers
    if 200 <= answer.status < 300:
        is_json = answer.headers.get("content-type", "").startswith("application/json")
        return found is _NOT_JSON and (is_platforms or is_json) and not _is_page(answer)
    # A web server before the peer's agent answers 404, 502 or 503 while the agent itself is down.
    return answer.status == 500 and is_platforms and not _platform_words(found)


def _may_be_peers_own(operation: Operation[Any], answer: Answer) -> bool:
    """Whether a response that isn't the platform's JSON may be one of the peer, or of a web server before it."""
    if operation.name != "a2a" or not answer.body.strip() or answer.status in _ABSENT:
        return False
    return _PLATFORM_HEADER in answer.headers or (200 <= answer.status < 300 and not _is_page(answer))


def _is_page(answer: Answer) -> bool:
    return answer.headers.get("content-type", "").startswith("text/html") or answer.body.lstrip().startswith(b"<")


def _good(operation: Operation[Any], answer: Answer, found: Any, *, redact: Callable[[str], str]) -> Reply:
    if found is _NOT_JSON:
        if answer.whole or not answer.body.lstrip().startswith(b"{"):
            raise not_ours(operation, answer)
        found = None
    if operation.priority is Priority.SEND and isinstance(found, dict) and found.get("error") and answer.status == 200:
        words = redact(sanitised(_words(found["error"])))
        raise PermanentPlatformError(
            f"{operation.name}: 200, and the other side refused: {words}",
            operation=operation.name,
            status=answer.status,
            body=redact(sanitised(json.dumps(found), limit=_BODY)),
            hint="the peer's own agent answered with an error; ask who runs it",
        )
    is_head = operation.form is Form.ROW and not answer.whole
    return Reply(
        body=answer.body[:_ROW_HEAD] if is_head else answer.body,
        json=found,
        status=answer.status,
        began=lower_bound(answer),
        content_type=answer.headers.get("content-type", ""),
        whole=not is_head,
    )


def _error(operation: Operation[Any], answer: Answer, found: Any, *, redact: Callable[[str], str]) -> PlatformError:
    status, name = answer.status, operation.name
    said = _platform_words(found)
    text = answer.body[: 4 * _BODY].decode("utf-8", "replace")
    words = redact(sanitised(said or ("" if "<" in text[:200] else text)))
    message = f"{name}: {status} {words}".rstrip() if words else f"{name}: {status} without the platform's own words"
    body = redact(sanitised(text, limit=_BODY))
    may_be_peers = not said and _may_be_peers_own(operation, answer)
    if status == 401 and not may_be_peers:
        hint = "the platform refused the token: give a current one (canvas, workspace tokens)"
        return AuthError(message, operation=name, status=status, body=body, hint=hint)
    if operation.form in (Form.PAGE, Form.ROW) and (status == 410 or _is_no_cursor(operation, said)):
        return CursorExpiredError(message, operation=name, status=status, body=body)
    if status in FINAL and said:
        hint = _own_hint(found) or _HINTS.get(status, "")
        return PermanentPlatformError(message, operation=name, status=status, body=body, hint=hint)
    if operation.is_optional and status in _ABSENT:
        message = f"{name}: {status}, this platform does not have it"
        return EndpointAbsentError(message, operation=name, status=status, body=body)
    if 300 <= status < 400:
        message = f"{name}: {status} to {_target(answer)}; redirects are not followed"
    return TransientPlatformError(
        message,
        operation=name,
        status=status,
        retry_after=_retry_after(answer, found),
        outcome=Outcome.UNKNOWN if status >= 500 or may_be_peers else Outcome.NOT_TAKEN,
        platform_said=bool(said),
        about_peer=may_be_peers or _is_peers_affair(operation, status, said),
        hint=_hint(operation, answer, said),
    )


def _is_no_cursor(operation: Operation[Any], said: str) -> bool:
    """Whether the platform, whose ids are UUIDs, can never look up the row that the read starts after (contract 2.6).

    It answers so to a failure of its database too, but then the id is a UUID.
    """
    since_id = dict(operation.params).get("since_id")
    return said == "cursor lookup failed" and since_id is not None and not is_uuid(since_id)


def _is_peers_affair(operation: Operation[Any], status: int, said: str) -> bool:
    is_down = status in (502, 503) and any(words in said for words in _PEER_IS_DOWN)
    return operation.name == "a2a" and (is_down or (status == 402 and bool(said)))


def _hint(operation: Operation[Any], answer: Answer, said: str) -> str:
    if 300 <= answer.status < 400:
        return "give the address that it points to as the API address, if that is the platform's"
    if answer.status in (404, 405) and not said:
        return (
            "a bodiless 404 is the edge's rule on Origin or on the organisation header (--org-id), "
            "a wrong workspace id, or an API address with a wrong path"
        )
    if answer.status in _HINTS:
        return _HINTS[answer.status]
    return "" if said or answer.status >= 500 else _EDGE


def _platform_words(found: Any) -> str:
    """The platform's own words, when the body is its JSON; else empty."""
    if not isinstance(found, dict):
        return ""
    error = found.get("error")
    if isinstance(error, str) and error.strip():
        return error
    return "the workspace is deleted" if found.get("deleted") is True else ""


def _words(error: Any) -> str:
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else error if isinstance(error, str) else json.dumps(error)


def _own_hint(found: Any) -> str:
    hint = found.get("hint") if isinstance(found, dict) else None
    return sanitised(hint) if isinstance(hint, str) else ""


def _target(answer: Answer) -> str:
    return sanitised(answer.headers.get("location", "nowhere").split("?")[0].rpartition("@")[2])


def _retry_after(answer: Answer, found: Any) -> float | None:
    said = answer.headers.get("retry-after", "").strip()
    if said.isascii() and said.isdigit():
        return float(said[:9])
    until, now = parse_http_date(said), parse_http_date(answer.headers.get("date"))
    if until is not None and now is not None:
        return max(0.0, (until - now) / SECOND_US)
    value = found.get("retry_after") if isinstance(found, dict) else None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9:
        return float(value)
    return None
