"""Converts the result of a turn to a response or an error.

Only the ``result`` line counts; the exit status is used if there is none. Claude Code has been seen to report
``subtype: success`` with ``is_error: true``, ``terminal_reason: completed`` with an API error, and exit status 0
after a failure.
"""

import re

from molecule_connect import BackendError, Response
from molecule_connect.process import Ending, Stop
from molecule_connect_claude_code.stream import Turn
from molecule_connect_claude_code.usage_limits import is_usage_limit, seconds_until_reset

# How long a conversation waits for the operator to log in before it retries.
LOGIN_WAIT_SECONDS = 600.0
MAX_REASON_LENGTH = 300

_SESSION_GONE = re.compile(
    r"no conversation found|session id \S+ is already in use|no deferred tool marker", re.IGNORECASE
)
_OVERFLOW = re.compile(
    r"prompt is too long|input is too long|conversation (is )?too long|maximum context length|context_length_exceeded"
    r"|exceeds? (the |your )?(model's )?(context|maximum number of tokens)|context (window|limit)"
    r"|too many (input )?tokens|request_too_large|request too large|could not be reduced below",
    re.IGNORECASE,
)
_LOGIN = re.compile(
    r"not logged in|please run /login|/login\b|invalid (api|auth|x-api-)[- ]?(key|token)|failed to authenticate"
    r"|oauth (token|authentication)|authentication_error|credit balance|billing|organization has been disabled"
    r"|disabled organi[sz]ation|does not have access to claude",
    re.IGNORECASE,
)
# Claude Code parses its command line before it writes any output, and exits if that fails.
_BAD_ARGUMENT = re.compile(r"^error: (unknown option|option '.*' argument (missing|'.*' is invalid))", re.MULTILINE)


class UnusableSessionError(BackendError):
    """The session is gone, too long, or contains content that the API rejects. A new session may succeed."""


def response_from(turn: Turn, ending: Ending, *, now: float) -> Response:
    """The response of a completed turn. *now* is in seconds since 1970.

    Raises:
        UnusableSessionError: A resumed session can't continue; retry in a new one.
        BackendError: The turn failed.
    """
    try:
        return _response(turn, ending, now)
    except BackendError as exc:
        exc.usage = turn.usage if turn.result is not None else None
        raise


def _response(turn: Turn, ending: Ending, now: float) -> Response:
    if turn.result is None:
        raise _error_without_result(ending)
    if turn.field("subtype") in ("error_max_turns", "error_max_budget_usd"):
        return _partial_response(turn)
    if turn.result.get("is_error") is not False or turn.field("terminal_reason") not in ("", "completed"):
        raise _error(turn, now)
    text = _final_text(turn)
    if not text:
        raise BackendError("no answer: Claude ended its turn without text", retryable=False)
    return Response.from_text(_with_refusals(turn, text), usage=turn.usage)


def _final_text(turn: Turn) -> str:
    """The text of the result, or of the last message if the result contains only a part of it or nothing."""
    result = turn.field("result").strip()
    is_partial = len(turn.last_text) > len(result) and "".join(result.split()) in "".join(turn.last_text.split())
    return turn.last_text if is_partial else result


def _partial_response(turn: Turn) -> Response:
    # num_turns includes the turn that was refused.
    limit = "its budget" if turn.field("subtype") == "error_max_budget_usd" else f"{max(turn.model_calls - 1, 1)} turns"
    note = f"[stopped at {limit}, the limit for one message; write again to continue]"
    text = "\n\n".join([*turn.texts, note])
    return Response.from_text(_with_refusals(turn, text), usage=turn.usage)


def _with_refusals(turn: Turn, text: str) -> str:
    if not turn.refused_tools:
        return text
    return f"{text}\n\n[not permitted here: {', '.join(turn.refused_tools)}]"


def _error(turn: Turn, now: float) -> BackendError:
    text = turn.error_text or turn.field("terminal_reason") or turn.field("subtype")
    reason = _shortened(text)
    if _SESSION_GONE.search(text):
        return UnusableSessionError(reason)
    if turn.field("terminal_reason") == "prompt_too_long" or _OVERFLOW.search(text):
        return UnusableSessionError(
            f"the conversation does not fit into the model's context: {reason}", retryable=False
        )
    if turn.resets_at is not None or is_usage_limit(text):
        wait = seconds_until_reset(text, turn.resets_at, now)
        return BackendError(f"Claude's usage limit is reached: {reason}", retry_after=wait)
    if turn.status in (401, 403) or turn.api_error in ("authentication_failed", "billing_error") or _LOGIN.search(text):
        return _login_error(reason)
    # Content that the API rejects, such as an unreadable image, would fail every later turn of the session.
    error_class = UnusableSessionError if turn.status == 400 else BackendError
    return error_class(f"Claude could not answer: {reason}")


def _error_without_result(ending: Ending) -> BackendError:
    tail = _shortened(ending.error_tail)
    after = f": {tail}" if tail else ""
    if ending.stop is Stop.IDLE:
        return BackendError(f"claude was ended: no output for idle_timeout{after}")
    if ending.stop is Stop.TOTAL:
        return BackendError(f"claude was ended: it ran for longer than timeout{after}")
    if ending.stop is Stop.OUTPUT:
        return BackendError("claude was ended: it wrote a line that is too long", retryable=False)
    if _SESSION_GONE.search(tail):
        return UnusableSessionError(tail)
    if _LOGIN.search(tail):
        return _login_error(tail)
    if _BAD_ARGUMENT.search(ending.error_tail):
        return BackendError(
            f"claude rejected its command line: {tail} (check the backend option args; if the flag isn't from there,"
            " update claude)",
            retryable=False,
        )
    if ending.stop is Stop.CLOSED:
        return BackendError(f"claude was ended: it closed its output without a result{after}")
    # Users reported 143 after many tool calls although the backend sent no signal.
    if ending.status < 0 or ending.status in (129, 130, 137, 143):
        number = -ending.status if ending.status < 0 else ending.status - 128
        return BackendError(f"claude was ended by signal {number} before it answered{after}")
    return BackendError(f"claude ended with exit status {ending.status} and without a result{after}")


def _login_error(reason: str) -> BackendError:
    return BackendError(
        f"Claude rejected the login: {reason} (run claude once and log in, or set ANTHROPIC_API_KEY and restart)",
        retry_after=LOGIN_WAIT_SECONDS,
    )


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_REASON_LENGTH else f"{line[:MAX_REASON_LENGTH]} ..."
