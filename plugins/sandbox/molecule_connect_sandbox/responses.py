"""JSON requests and responses as the platform parses and writes them; errors."""

import json
import re
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

JSON_TYPE = "application/json; charset=utf-8"
GONE = (
    "since_id cursor not found (row may have been pruned or belongs to a different workspace); omit since_id to reset"
)


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


class Refusal(Exception):  # noqa: N818
    """Ends the request with a status and ``{"error": ...}``."""

    def __init__(self, code: int, error: str, /, **extra: Any) -> None:
        super().__init__(error)
        self.status = code
        self.body = {"error": error, **extra}


def to_json(value: Any) -> str:
    """Compact JSON text with minimal escaping."""
    return _ENCODER.encode(value)


def raw_json_response(text: str, status: int = 200) -> Response:
    """A response from JSON text."""
    return Response(text.encode(), status, media_type=JSON_TYPE)


def json_response(value: Any, status: int = 200) -> Response:
    """A response from a JSON value."""
    return raw_json_response(to_json(value), status)


async def refusal_response(request: Request, exc: Exception) -> Response:
    """The exception handler for ``Refusal``."""
    assert isinstance(exc, Refusal)  # noqa: S101
    return json_response(exc.body, exc.status)


async def internal_error(request: Request, exc: Exception) -> Response:
    """The platform's response when its database rejects a value."""
    return json_response({"error": "internal error"}, 500)


async def page_not_found(request: Request, exc: Exception) -> Response:
    """The platform's response to an unknown path or method."""
    return Response("404 page not found", 404, media_type="text/plain")


async def read_body(request: Request, cap: int) -> tuple[bytes, bool]:
    """The body, up to *cap* bytes, and whether there was more."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        chunks.append(chunk)
        size += len(chunk)
        if size > cap:
            return b"".join(chunks)[:cap], True
    return b"".join(chunks), False


def _integer(text: str) -> int | float:
    # The platform's numbers are 64-bit floats; Python's integers would keep every digit.
    return int(text) if len(text) < 16 else int(float(text))


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _replace_surrogates(value: Any) -> Any:
    """*value* with U+FFFD for each lone surrogate."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_replace_surrogates(key): _replace_surrogates(item) for key, item in value.items()}
    return [_replace_surrogates(item) for item in value] if isinstance(value, list) else value


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_DECODER = json.JSONDecoder(parse_int=_integer, parse_constant=_no_constant)


def parse(body: bytes) -> Any:
    """Parse JSON as the platform does.

    Raises:
        ValueError: *body* isn't JSON.
    """
    try:
        text = body.decode("utf-8", "replace")
        value = _DECODER.decode(text)
        return _replace_surrogates(value) if _SURROGATE.search(text) else value
    except (RecursionError, OverflowError) as exc:
        raise ValueError("not JSON that the platform accepts") from exc


async def read_object(
    request: Request, error: str = "invalid request body", cap: int = 16 * 1024 * 1024
) -> dict[str, Any]:
    """The body as a JSON object; anything else is a 400 with *error*."""
    body, _ = await read_body(request, cap)
    try:
        value = parse(body)
    except ValueError as exc:
        raise Refusal(400, error) from exc
    if not isinstance(value, dict):
        raise Refusal(400, error)
    return value
