"""Error responses to invalid requests: truncated or too deeply nested JSON, and members of the wrong type."""

import json
import re
from typing import Any

import mcp_types as types
from pydantic import ValidationError

# The id is near the start of a request, and a line may have megabytes.
MAX_SEARCHED_BYTES = 1 << 20
MAX_REASON_LENGTH = 200
# Only responses have these members.
_RESPONSE_MEMBERS = {"result", "error"}
_INVALID = "invalid JSON-RPC request: {} missing or of the wrong type"
# An unterminated string extends to the end; otherwise the search would restart at each quote in it.
_LEXEME = re.compile(r'"(?:[^"\\]|\\.)*+"?|[{}\[\],:]|[^\s"{}\[\],:]++', re.DOTALL)


def error_response(line: bytes, exc: ValidationError) -> dict[str, Any] | None:
    """Return the JSON-RPC error for *line*, which failed to parse with *exc*.

    None for a response or a notification: these get no response. The error has the id of the request if it can be
    found, else null.
    """
    members = _top_level_members(line)
    method = members.get("method")
    if "method" not in members and _RESPONSE_MEMBERS & set(members):
        return None
    if "id" not in members and isinstance(method, str) and method.startswith("notifications/"):
        return None
    return _response(members, *_code_and_reason(exc))


def invalid_id_response(line: bytes) -> dict[str, Any] | None:
    """Return the JSON-RPC error for a request that was parsed as a notification because its id has the wrong type.

    None if it has no id.
    """
    members = _top_level_members(line) if b"id" in line else {}
    if "id" not in members:
        return None
    return _response(members, types.INVALID_REQUEST, _INVALID.format("id"))


def _response(members: dict[str, Any], code: int, reason: str) -> dict[str, Any]:
    request_id = members.get("id")
    is_id = isinstance(request_id, str | int | float) and not isinstance(request_id, bool)
    error = {"code": code, "message": reason[:MAX_REASON_LENGTH]}
    return {"jsonrpc": "2.0", "id": request_id if is_id else None, "error": error}


def _code_and_reason(exc: ValidationError) -> tuple[int, str]:
    errors = exc.errors(include_url=False, include_context=False, include_input=False)
    if errors and errors[0]["type"] == "json_invalid":
        return types.PARSE_ERROR, f"invalid JSON: {errors[0]['msg']}"
    wrong = [error for error in errors if error["loc"][:1] == ("JSONRPCRequest",)] or errors
    # Pydantic reports a member once for each type that it tried.
    members = list(dict.fromkeys(str(error["loc"][1]) for error in wrong if len(error["loc"]) > 1))
    if not members:
        return types.INVALID_REQUEST, "a message must be a JSON object"
    code = types.INVALID_PARAMS if members == ["params"] else types.INVALID_REQUEST
    return code, _INVALID.format(", ".join(members))


def _top_level_members(line: bytes) -> dict[str, Any]:
    """Extract the top-level members of a JSON object that may be truncated, or too deep or too large to parse.

    Objects and arrays become None.
    """
    members: dict[str, Any] = {}
    depth, key, after_colon = 0, "", False
    for lexeme in _LEXEME.findall(line[:MAX_SEARCHED_BYTES].decode(errors="replace")):
        if lexeme in "{[":
            if depth == 0 and lexeme == "[":
                return {}
            if depth == 1 and after_colon:
                members[key] = None
            depth += 1
        elif lexeme in "}]":
            depth -= 1
        elif depth != 1:
            continue
        elif lexeme in ",:":
            after_colon = lexeme == ":"
        elif after_colon:
            members[key] = _scalar(lexeme)
        else:
            key = str(_scalar(lexeme))
    if depth == 1 and after_colon and key in members:
        # Nothing follows this value, so it may be truncated and look like the id of another request.
        members[key] = None
    return members


def _scalar(lexeme: str) -> Any:
    try:
        value = json.loads(lexeme)
    except ValueError:  # an invalid word, or an integer with thousands of digits
        return None
    # Lone surrogates can't be encoded, and JSON has no infinity.
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    return None if isinstance(value, float) and value - value != 0 else value
