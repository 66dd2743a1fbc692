"""Answers to requests that can't be read: JSON that is cut or nested too deeply, and members of the wrong type."""

import json
import re
from typing import Any

import mcp_types as types
from pydantic import ValidationError

# The id of a request is near its beginning; a line may have megabytes.
MOST_SEARCHED = 1 << 20
LONGEST_REASON = 200
# Members that only an answer has: ours to the host was not asked for by a request of its.
_ANSWERS = {"result", "error"}
_WRONG = "not a JSON-RPC request that can be answered: {} missing or of the wrong type"
# A string that is not closed goes to the end: it must not be tried again from each quote in it.
_PIECE = re.compile(r'"(?:[^"\\]|\\.)*+"?|[{}\[\],:]|[^\s"{}\[\],:]++', re.DOTALL)


def refusal_of(line: bytes, exc: ValidationError) -> dict[str, Any] | None:
    """The JSON-RPC error that answers *line*, which is no message because of *exc*.

    None for an answer or a notification, which get none. The error's id is the one that the request has, as far as it
    can be found, else null.
    """
    members = _members_of(line)
    method = members.get("method")
    if "method" not in members and _ANSWERS & set(members):
        return None
    if "id" not in members and isinstance(method, str) and method.startswith("notifications/"):
        return None
    return _refusal(members, *_reason(exc))


def refusal_of_id(line: bytes) -> dict[str, Any] | None:
    """The JSON-RPC error for a request that was read as a notification, since its id is of the wrong type.

    None where there is no id.
    """
    members = _members_of(line) if b"id" in line else {}
    if "id" not in members:
        return None
    return _refusal(members, types.INVALID_REQUEST, _WRONG.format("id"))


def _refusal(members: dict[str, Any], code: int, reason: str) -> dict[str, Any]:
    request_id = members.get("id")
    is_id = isinstance(request_id, str | int | float) and not isinstance(request_id, bool)
    error = {"code": code, "message": reason[:LONGEST_REASON]}
    return {"jsonrpc": "2.0", "id": request_id if is_id else None, "error": error}


def _reason(exc: ValidationError) -> tuple[int, str]:
    errors = exc.errors(include_url=False, include_context=False, include_input=False)
    if errors and errors[0]["type"] == "json_invalid":
        return types.PARSE_ERROR, f"the line can't be read: {errors[0]['msg']}"
    wrong = [error for error in errors if error["loc"][:1] == ("JSONRPCRequest",)] or errors
    # A member is named once, however many types were tried for it.
    members = list(dict.fromkeys(str(error["loc"][1]) for error in wrong if len(error["loc"]) > 1))
    if not members:
        return types.INVALID_REQUEST, "a message is one JSON object"
    code = types.INVALID_PARAMS if members == ["params"] else types.INVALID_REQUEST
    return code, _WRONG.format(", ".join(members))


def _members_of(line: bytes) -> dict[str, Any]:
    """The plain members of the JSON object in *line*, which may be cut, or too deep or too large to be parsed."""
    members: dict[str, Any] = {}
    depth, key, after_colon = 0, "", False
    for piece in _PIECE.findall(line[:MOST_SEARCHED].decode(errors="replace")):
        if piece in "{[":
            if depth == 0 and piece == "[":
                return {}
            if depth == 1 and after_colon:
                members[key] = None
            depth += 1
        elif piece in "}]":
            depth -= 1
        elif depth != 1:
            continue
        elif piece in ",:":
            after_colon = piece == ":"
        elif after_colon:
            members[key] = _scalar(piece)
        else:
            key = str(_scalar(piece))
    if depth == 1 and after_colon and key in members:
        # Nothing follows this value, so it may be cut: the id of another request.
        members[key] = None
    return members


def _scalar(piece: str) -> Any:
    try:
        value = json.loads(piece)
    except ValueError:  # a word, or an integer with thousands of digits
        return None
    # Half a surrogate pair can't be written; infinity is no JSON.
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    return None if isinstance(value, float) and value - value != 0 else value
