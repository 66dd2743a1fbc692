"""Responses and errors from the output of a turn."""

import json
from typing import Any

import pytest

from molecule_connect import BackendError, Response, Usage
from molecule_connect.process import Ending, Stop
from molecule_connect_claude_code.result import UnusableSessionError, response_from
from molecule_connect_claude_code.stream import Turn
from molecule_connect_claude_code.usage_limits import seconds_until_reset

from .kit import assistant, failed, result, text

NOW = 1_790_000_000.0  # 2026-09-21 14:13:20 UTC
ENDED = Ending(status=0, output=b"", error_tail="")
DENIED = [{"tool_name": name, "tool_input": {"command": "secret"}} for name in ("Bash", "Write", "Bash")]


def response(*events: dict[str, Any], ending: Ending = ENDED) -> Response:
    turn = Turn()
    for event in events:
        turn.read(json.dumps(event).encode())
    return response_from(turn, ending, now=NOW)


def error(*events: dict[str, Any], ending: Ending = ENDED) -> BackendError:
    with pytest.raises(BackendError) as caught:
        response(*events, ending=ending)
    return caught.value


def crash(status: int = 1, tail: str = "", stop: Stop = Stop.NONE) -> BackendError:
    return error(ending=Ending(status=status, output=b"", error_tail=tail, stop=stop))


def test_error_marked_as_success_is_an_error() -> None:
    found = error(failed("API Error: 500 the inside of a server", api_error_status=500))

    assert found.retryable
    assert found.retry_after is None
    assert "API Error: 500" in str(found)


def test_result_takes_precedence_over_exit_status() -> None:
    ended = Ending(status=1, output=b"", error_tail="warning")

    assert response(result("fine"), ending=ended).text == "fine"
    assert "API Error" in str(error(failed("API Error: 529"), ending=ended))


@pytest.mark.parametrize("fields", [{"is_error": None}, {"terminal_reason": "aborted_streaming"}])
def test_result_without_explicit_success_is_an_error(fields: dict[str, Any]) -> None:
    assert error(result(**fields)).retryable


@pytest.mark.parametrize("events", [failed("API Error: 500"), result(""), failed("Prompt is too long")])
def test_failure_reports_usage(events: dict[str, Any]) -> None:
    usage = error(events).usage

    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, usage.cost_usd) == (210, 3, 0.25)


def test_accepts_a_result_without_terminal_reason() -> None:
    old = result()
    del old["terminal_reason"]

    assert response(old).text == "hi"


@pytest.mark.parametrize("words", ["", " \n"])
def test_empty_result_is_a_permanent_failure(words: str) -> None:
    found = error(assistant({"type": "thinking", "thinking": "well"}), result(words))

    assert not found.retryable
    assert "no answer" in str(found)


def test_uses_the_first_result() -> None:
    assert response(result("first"), result("of a task in the background")).text == "first"


def test_turn_limit_sends_the_text_so_far() -> None:
    stopped = result("", subtype="error_max_turns", is_error=True, num_turns=4, terminal_reason="max_turns")
    del stopped["result"]

    found = response(assistant(text("I looked.")), assistant(text("  ")), assistant(text("Half is done.")), stopped)

    assert found.text.startswith("I looked.\n\nHalf is done.\n\n[stopped at 3 turns")
    assert found.usage is not None
    assert found.usage.cost_usd == 0.25


def test_budget_limit_may_send_only_a_note() -> None:
    stopped = result("", subtype="error_max_budget_usd", is_error=True, permission_denials=DENIED)

    assert response(stopped).text.startswith("[stopped at its budget")


def test_reply_names_refused_tools_without_their_input() -> None:
    found = response(result("I could not.", permission_denials=DENIED)).text

    assert found == "I could not.\n\n[not permitted here: Bash, Write]"


@pytest.mark.parametrize(
    "words",
    [
        "Prompt is too long",
        "API Error: 400 prompt is too long: 250000 tokens > 200000 maximum",
        "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000",
        "This model's maximum context length is 128000 tokens",
        "Your input exceeds the context window of this model",
        "Compaction failed: conversation could not be reduced below the context limit",
        "Request too large (max 32MB)",
    ],
)
def test_recognizes_a_full_context(words: str) -> None:
    found = error(failed(words))

    assert isinstance(found, UnusableSessionError)
    assert not found.retryable


@pytest.mark.parametrize(
    "events",
    [
        [failed("Failed to authenticate. API Error: 401 no", api_error_status=401)],
        [failed("no", api_error_status=403)],
        [failed("Not logged in · Please run /login")],
        [failed("Invalid API key · Fix external API key")],
        [failed("Credit balance is too low")],
        [assistant(text("x"), error="authentication_failed"), failed("some new words")],
    ],
)
def test_rejected_login_waits_for_the_operator(events: list[dict[str, Any]]) -> None:
    found = error(*events)

    assert found.retryable
    assert found.retry_after == 600
    assert "log in" in str(found)


def test_usage_limit_waits_until_the_reported_reset() -> None:
    rejected = {"status": "rejected", "resetsAt": NOW + 3600, "rateLimitType": "five_hour"}

    found = error({"type": "rate_limit_event", "rate_limit_info": rejected}, failed("You've hit it", status=429))

    assert found.retry_after == 3615


def test_usage_warning_causes_no_wait() -> None:
    warning = {"type": "rate_limit_event", "rate_limit_info": {"status": "allowed_warning", "resetsAt": NOW + 9}}

    assert response(warning, result()).text == "hi"
    assert error(warning, failed("API Error: 500")).retry_after is None


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        (f"Claude AI usage limit reached|{int(NOW) + 100}", 115),
        ("You've hit your session limit · resets 3:13pm (UTC)", 3595),
        ("You\u2019ve hit your limit · resets 4pm (Europe/Paris)", 60),
        ("You've hit your weekly limit · resets Sep 22, 2pm (UTC)", 85615),
        ("5-hour limit reached ∙ resets 1pm (UTC)", 82015),
        ("You've hit your limit · resets Jan 3 at 9pm (UTC)", 8 * 86400),
        ("You've hit your limit · resets Feb 31 at 9pm (UTC)", 900),
        ("You've hit your limit", 900),
    ],
)
def test_reads_the_reset_time_from_text(words: str, seconds: float) -> None:
    found = error(failed(words, api_error_status=429)).retry_after

    assert found is not None
    assert abs(found - seconds) <= 20


def test_unknown_time_zone_means_local_time() -> None:
    assert 0 < seconds_until_reset("resets 3pm (Nowhere/Land)", None, NOW) <= 86400 + 15


def test_rate_limit_is_not_a_usage_limit() -> None:
    found = error(assistant(text("x"), error="rate_limit"), failed("API Error: Request rejected (429)"))

    assert found.retryable
    assert found.retry_after is None


@pytest.mark.parametrize("status", [143, 137, -15])
def test_unexpected_signal_is_retryable(status: int) -> None:
    found = crash(status)

    assert found.retryable
    assert "by signal" in str(found)


def test_crash_is_retryable_and_shows_stderr() -> None:
    found = crash(1, "TypeError: x is undefined " + "y" * 1000)

    assert found.retryable
    assert "exit status 1" in str(found)
    assert "TypeError" in str(found)
    assert len(str(found)) < 500


def test_recognizes_a_rejected_login_without_result() -> None:
    assert crash(1, "Invalid API key · Please run /login").retry_after == 600


@pytest.mark.parametrize(
    "words",
    [
        "error: unknown option '--nosuchflag'\n",
        "Warning: something else\nerror: unknown option '--permision-mode'\n(Did you mean --permission-mode?)\n",
        "error: option '--agent <agent>' argument missing\n",
        "error: option '--input-format <format>' argument 'x' is invalid. Allowed choices are text, stream-json.\n",
    ],
)
def test_rejected_arguments_are_permanent_and_explained(words: str) -> None:
    found = crash(1, words)

    assert not found.retryable
    assert "backend option args" in str(found)
    assert " ".join(words.split()) in str(found)


def test_option_error_of_another_program_is_retryable() -> None:
    assert crash(1, "Error: MCP server ended, it wrote error: unknown option '--x'").retryable


def test_too_long_a_line_is_permanent() -> None:
    assert not crash(-15, stop=Stop.OUTPUT).retryable


def test_closed_output_without_result_is_retryable() -> None:
    assert crash(-15, stop=Stop.CLOSED).retryable


@pytest.mark.parametrize("fields", [{"usage": None, "total_cost_usd": "1"}, {"usage": {"input_tokens": "many"}}])
def test_invalid_usage_counts_as_zero(fields: dict[str, Any]) -> None:
    usage = response(result(**fields)).usage

    assert usage is not None
    assert usage.input_tokens == 0


# Streamed text


def streamed(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": "stream_event", "event": {"type": kind, **fields}, "parent_tool_use_id": None}


def started(name: str) -> dict[str, Any]:
    return streamed("message_start", message={"id": name, "role": "assistant"})


def piece(words: str, index: int = 0) -> dict[str, Any]:
    return streamed("content_block_delta", index=index, delta={"type": "text_delta", "text": words})


def block(name: str, *blocks: dict[str, Any], **fields: Any) -> dict[str, Any]:
    event = assistant(*blocks, **fields)
    event["message"]["id"] = name
    return event


THINKING = {"type": "thinking", "thinking": "a secret thought"}
TOOL = {"type": "tool_use", "id": "t1", "name": "Read", "input": {}}


@pytest.mark.parametrize("words", ["", " \n", "The answer"])
def test_completes_a_truncated_result_from_streamed_text(words: str) -> None:
    blocks = block("m1", THINKING), block("m1", text("The answer")), block("m1", text(" is long."))

    assert response(*blocks, result(words)).text == "The answer is long."


def test_separates_blocks_into_paragraphs() -> None:
    blocks = block("m1", text("First part.")), block("m1", THINKING), block("m1", text("Second part."))

    assert response(*blocks, result("First part.")).text == "First part.\n\nSecond part."


def test_uses_streamed_text_without_a_complete_block() -> None:
    pieces = started("m1"), piece("The ans"), piece("wer is"), piece(" long.")

    assert response(*pieces, result("")).text == "The answer is long."
    assert response(*pieces, block("m1", text("The answer is long.")), result("The")).text == "The answer is long."


def test_uses_only_the_last_message() -> None:
    before = block("m1", text("Let me look.")), block("m1", TOOL), {"type": "user", "message": {"content": []}}

    assert response(*before, started("m2"), piece("Done."), result("")).text == "Done."
    assert "no answer" in str(error(*before, block("m2", THINKING), result("")))


def test_uses_text_next_to_the_last_tool() -> None:
    assert response(block("m1", text("Here it is.")), block("m1", TOOL), result("")).text == "Here it is."


def test_ignores_subagents_thinking_and_synthetic_messages() -> None:
    of_agent = block("m2", text("of an agent"), parent_tool_use_id="t1")
    piece_of_agent = {**piece("of an agent"), "parent_tool_use_id": "t1"}
    own = block("m3", text("No response requested."))
    own["message"]["model"] = "<synthetic>"
    thought = streamed("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "a secret"})

    answer = response(block("m1", text("mine")), of_agent, piece_of_agent, own, thought, result(""))

    assert answer.text == "mine"


def test_keeps_a_result_unlike_the_streamed_text() -> None:
    assert response(block("m1", text("a long text that was streamed")), result("the result")).text == "the result"


def test_streamed_text_never_hides_a_failure() -> None:
    assert "API Error" in str(error(block("m1", text("half an ans")), failed("API Error: 500")))


# Invalid numbers


@pytest.mark.parametrize(
    "number", ["1e400", "-1e400", "NaN", "Infinity", "9" * 500, "9" * 5000, "-1", '"1"', "null", "[]", "true"]
)
def test_invalid_numbers_never_lose_the_reply(number: str) -> None:
    names = "input_tokens", "output_tokens", "cache_read_input_tokens"
    line = json.dumps(result(total_cost_usd=0, usage=dict.fromkeys(names, 0), num_turns=0))
    turn = Turn()
    turn.read(line.replace(": 0", f": {number}").encode())

    usage = response_from(turn, ENDED, now=NOW).usage

    assert usage == Usage()


@pytest.mark.parametrize("number", ["1e400", "NaN", "9" * 5000])
def test_invalid_reset_time_uses_the_default(number: str) -> None:
    turn = Turn()
    info = json.dumps({"type": "rate_limit_event", "rate_limit_info": {"status": "rejected", "resetsAt": 0}})
    turn.read(info.replace(": 0", f": {number}").encode())
    turn.read(json.dumps(failed("You've hit your limit")).encode())

    with pytest.raises(BackendError) as caught:
        response_from(turn, ENDED, now=NOW)

    assert caught.value.retry_after == 900


@pytest.mark.parametrize(
    "words",
    [
        "<tool_use_error>Error: No such tool available: Read</tool_use_error>",
        "<tool_use_error>File is in a directory that is denied by your permission settings.</tool_use_error>",
    ],
)
def test_names_refusals_missing_from_permission_denials(words: str) -> None:
    answered = {"type": "tool_result", "tool_use_id": "t1", "is_error": True, "content": words}

    found = response(block("m1", TOOL), {"type": "user", "message": {"content": [answered]}}, result("I could not."))

    assert found.text == "I could not.\n\n[not permitted here: Read]"
