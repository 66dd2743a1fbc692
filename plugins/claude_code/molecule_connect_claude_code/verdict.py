"""What became of a turn: an answer, or an error of the class that says what to do next.

The ``result`` line alone decides. ``subtype: success`` beside ``is_error: true``, ``terminal_reason: completed`` beside
an API error, and exit status 0 after a failure were all seen; so the exit status counts only where there is no result.
"""

import re

from molecule_connect import BackendError, Response
from molecule_connect.process import Ending, Stop
from molecule_connect_claude_code.limits import is_usage_limit, seconds_until_reset
from molecule_connect_claude_code.stream import Turn

# Somebody has to log in before another try can help; so long a parked conversation waits for it.
LOGIN_SECONDS = 600.0
LONGEST_REASON = 300

_LOST = re.compile(r"no conversation found|session id \S+ is already in use|no deferred tool marker", re.IGNORECASE)
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
# It reads its command line before it writes anything, and ends there when it does not understand it.
_COMMAND_LINE = re.compile(r"^error: (unknown option|option '.*' argument (missing|'.*' is invalid))", re.MULTILINE)


class UnusableSessionError(BackendError):
    """A new session may succeed: this one is gone, is too long, or holds what the API does not take."""


def judge(turn: Turn, ending: Ending, *, now: float) -> Response:
    """The answer of a turn that is over. *now*: seconds since 1970.

    Raises:
        UnusableSessionError: Try once more in a new session, if this was an old one.
        BackendError: There is no answer.
    """
    try:
        return _answer(turn, ending, now)
    except BackendError as exc:
        exc.usage = turn.usage if turn.result is not None else None
        raise


def _answer(turn: Turn, ending: Ending, now: float) -> Response:
    if turn.result is None:
        raise _without_result(ending)
    if turn.field("subtype") in ("error_max_turns", "error_max_budget_usd"):
        return _stopped_at_limit(turn)
    if turn.result.get("is_error") is not False or turn.field("terminal_reason") not in ("", "completed"):
        raise _failed(turn, now)
    text = _final_text(turn)
    if not text:
        raise BackendError("no answer: Claude ended its turn without a text", retryable=False)
    return Response.from_text(_with_refusals(turn, text), usage=turn.usage)


def _final_text(turn: Turn) -> str:
    """The result's text, or the text of the last message where the result holds nothing or only a part of it."""
    result = turn.field("result").strip()
    holds_less = len(turn.final) > len(result) and "".join(result.split()) in "".join(turn.final.split())
    return turn.final if holds_less else result


def _stopped_at_limit(turn: Turn) -> Response:
    # The program counts the turn that it refused to begin.
    reached = "its budget" if turn.field("subtype") == "error_max_budget_usd" else f"{max(turn.turns - 1, 1)} turns"
    note = f"[stopped at {reached}, the limit for one message; write again to let it go on]"
    text = "\n\n".join([*turn.texts, note])
    return Response.from_text(_with_refusals(turn, text), usage=turn.usage)


def _with_refusals(turn: Turn, text: str) -> str:
    if not turn.refused:
        return text
    return f"{text}\n\n[not permitted here: {', '.join(turn.refused)}]"


def _failed(turn: Turn, now: float) -> BackendError:
    says = turn.says or turn.field("terminal_reason") or turn.field("subtype")
    reason = _shortened(says)
    if _LOST.search(says):
        return UnusableSessionError(reason)
    if turn.field("terminal_reason") == "prompt_too_long" or _OVERFLOW.search(says):
        return UnusableSessionError(f"it does not fit into the model's context: {reason}", retryable=False)
    if turn.resets_at is not None or is_usage_limit(says):
        wait = seconds_until_reset(says, turn.resets_at, now)
        return BackendError(f"Claude's usage limit is reached: {reason}", retry_after=wait)
    if turn.status in (401, 403) or turn.error in ("authentication_failed", "billing_error") or _LOGIN.search(says):
        return _no_login(reason)
    # What the API calls a bad request once, an unreadable image say, it will find in every later turn of the session.
    kind = UnusableSessionError if turn.status == 400 else BackendError
    return kind(f"Claude could not answer: {reason}")


def _without_result(ending: Ending) -> BackendError:
    tail = _shortened(ending.error_tail)
    after = f": {tail}" if tail else ""
    if ending.stop is Stop.IDLE:
        return BackendError(f"claude wrote nothing for longer than idle_timeout, and was ended{after}")
    if ending.stop is Stop.TOTAL:
        return BackendError(f"claude was still at it when timeout was over, and was ended{after}")
    if ending.stop is Stop.OUTPUT:
        return BackendError("claude wrote a line that is too long to be read", retryable=False)
    if _LOST.search(tail):
        return UnusableSessionError(tail)
    if _LOGIN.search(tail):
        return _no_login(tail)
    if _COMMAND_LINE.search(ending.error_tail):
        return BackendError(
            f"claude does not take its command line: {tail} (look at the backend's option args; an option that is not"
            " from there needs a newer claude)",
            retryable=False,
        )
    if ending.stop is Stop.CLOSED:
        return BackendError(f"claude closed its output without a result, and was ended{after}")
    # 143 without a signal of ours was reported from the field, after many tool calls.
    if ending.status < 0 or ending.status in (129, 130, 137, 143):
        number = -ending.status if ending.status < 0 else ending.status - 128
        return BackendError(f"claude was ended by signal {number} before it had an answer{after}")
    return BackendError(f"claude ended with exit status {ending.status} and without a result{after}")


def _no_login(reason: str) -> BackendError:
    return BackendError(
        f"Claude refused the login: {reason} (run claude once and log in, or set ANTHROPIC_API_KEY and start again)",
        retry_after=LOGIN_SECONDS,
    )


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]} ..."
