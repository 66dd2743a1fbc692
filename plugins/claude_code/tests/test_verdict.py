"""What the end of a turn means."""

import json
from typing import Any

import pytest

from molecule_connect import BackendError, Response, Usage
from molecule_connect.process import Ending, Stop
from molecule_connect_claude_code.limits import seconds_until_reset
from molecule_connect_claude_code.stream import Turn
from molecule_connect_claude_code.verdict import UnusableSessionError, judge

from .kit import assistant, failed, result, text

NOW = 1_790_000_000.0  # 2026-09-21 14:13:20 UTC
ENDED = Ending(status=0, output=b"", error_tail="")
DENIED = [{"tool_name": name, "tool_input": {"command": "secret"}} for name in ("Bash", "Write", "Bash")]


def verdict(*events: dict[str, Any], ending: Ending = ENDED) -> Response:
    turn = Turn()
    for event in events:
        turn.hear(json.dumps(event).encode())
    return judge(turn, ending, now=NOW)


def error(*events: dict[str, Any], ending: Ending = ENDED) -> BackendError:
    with pytest.raises(BackendError) as caught:
        verdict(*events, ending=ending)
    return caught.value


def crash(status: int = 1, tail: str = "", stop: Stop = Stop.NONE) -> BackendError:
    return error(ending=Ending(status=status, output=b"", error_tail=tail, stop=stop))


def test_an_error_with_success_written_on_it_is_an_error_and_its_text_no_answer() -> None:
    found = error(failed("API Error: 500 the inside of a server", api_error_status=500))

    assert found.retryable
    assert found.retry_after is None
    assert "API Error: 500" in str(found)


def test_the_result_wins_over_the_exit_status() -> None:
    ended = Ending(status=1, output=b"", error_tail="warning")

    assert verdict(result("fine"), ending=ended).text == "fine"
    assert "API Error" in str(error(failed("API Error: 529"), ending=ended))


@pytest.mark.parametrize("fields", [{"is_error": None}, {"terminal_reason": "aborted_streaming"}])
def test_whatever_does_not_say_that_it_went_well_did_not(fields: dict[str, Any]) -> None:
    assert error(result(**fields)).retryable


@pytest.mark.parametrize("events", [failed("API Error: 500"), result(""), failed("Prompt is too long")])
def test_a_failure_tells_what_it_cost(events: dict[str, Any]) -> None:
    usage = error(events).usage

    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, usage.cost_usd) == (210, 3, 0.25)


def test_an_older_result_without_a_terminal_reason_counts() -> None:
    old = result()
    del old["terminal_reason"]

    assert verdict(old).text == "hi"


@pytest.mark.parametrize("words", ["", " \n"])
def test_an_answer_of_nothing_is_no_answer(words: str) -> None:
    found = error(assistant({"type": "thinking", "thinking": "well"}), result(words))

    assert not found.retryable
    assert "no answer" in str(found)


def test_the_first_result_decides() -> None:
    assert verdict(result("first"), result("of a task in the background")).text == "first"


def test_at_its_turn_limit_what_was_said_is_sent_with_the_number_of_turns() -> None:
    stopped = result("", subtype="error_max_turns", is_error=True, num_turns=4, terminal_reason="max_turns")
    del stopped["result"]

    found = verdict(assistant(text("I looked.")), assistant(text("  ")), assistant(text("Half is done.")), stopped)

    assert found.text.startswith("I looked.\n\nHalf is done.\n\n[stopped at 3 turns")
    assert found.usage is not None
    assert found.usage.cost_usd == 0.25


def test_at_its_budget_there_may_be_nothing_but_the_note() -> None:
    stopped = result("", subtype="error_max_budget_usd", is_error=True, permission_denials=DENIED)

    assert verdict(stopped).text.startswith("[stopped at its budget")


def test_refused_tools_are_told_by_name_and_not_by_what_they_were_to_do() -> None:
    found = verdict(result("I could not.", permission_denials=DENIED)).text

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
def test_a_context_that_is_full_is_known_in_all_spellings(words: str) -> None:
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
def test_a_refused_login_waits_for_a_person_and_says_what_to_do(events: list[dict[str, Any]]) -> None:
    found = error(*events)

    assert found.retryable
    assert found.retry_after == 600
    assert "log in" in str(found)


def test_a_used_up_plan_parks_the_conversation_until_the_time_that_was_told() -> None:
    rejected = {"status": "rejected", "resetsAt": NOW + 3600, "rateLimitType": "five_hour"}

    found = error({"type": "rate_limit_event", "rate_limit_info": rejected}, failed("You've hit it", status=429))

    assert found.retry_after == 3615


def test_a_warning_that_a_plan_is_nearly_used_up_parks_nothing() -> None:
    warning = {"type": "rate_limit_event", "rate_limit_info": {"status": "allowed_warning", "resetsAt": NOW + 9}}

    assert verdict(warning, result()).text == "hi"
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
def test_the_time_of_a_limit_is_read_from_its_words(words: str, seconds: float) -> None:
    found = error(failed(words, api_error_status=429)).retry_after

    assert found is not None
    assert abs(found - seconds) <= 20


def test_a_time_in_an_unknown_zone_is_ours() -> None:
    assert 0 < seconds_until_reset("resets 3pm (Nowhere/Land)", None, NOW) <= 86400 + 15


def test_too_many_requests_are_no_used_up_plan() -> None:
    found = error(assistant(text("x"), error="rate_limit"), failed("API Error: Request rejected (429)"))

    assert found.retryable
    assert found.retry_after is None


@pytest.mark.parametrize("status", [143, 137, -15])
def test_a_signal_that_nobody_here_sent_is_tried_again(status: int) -> None:
    found = crash(status)

    assert found.retryable
    assert "by signal" in str(found)


def test_a_crash_is_tried_again_and_says_what_was_written_last() -> None:
    found = crash(1, "TypeError: x is undefined " + "y" * 1000)

    assert found.retryable
    assert "exit status 1" in str(found)
    assert "TypeError" in str(found)
    assert len(str(found)) < 500


def test_a_refused_login_is_known_without_a_result_too() -> None:
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
def test_a_command_line_that_is_not_understood_is_not_tried_again_and_says_where_it_comes_from(words: str) -> None:
    found = crash(1, words)

    assert not found.retryable
    assert "look at the backend's option args" in str(found)
    assert " ".join(words.split()) in str(found)


def test_a_program_of_its_own_that_complains_of_an_option_is_no_mistake_in_args() -> None:
    assert crash(1, "Error: MCP server ended, it wrote error: unknown option '--x'").retryable


def test_a_line_beyond_measure_is_not_tried_again() -> None:
    assert not crash(-15, stop=Stop.OUTPUT).retryable


def test_an_output_that_was_closed_without_a_result_is_tried_again() -> None:
    assert crash(-15, stop=Stop.CLOSED).retryable


@pytest.mark.parametrize("fields", [{"usage": None, "total_cost_usd": "1"}, {"usage": {"input_tokens": "many"}}])
def test_figures_that_are_none_count_as_zero(fields: dict[str, Any]) -> None:
    usage = verdict(result(**fields)).usage

    assert usage is not None
    assert usage.input_tokens == 0


# The text of the last message


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
def test_a_result_with_less_than_was_streamed_is_completed(words: str) -> None:
    blocks = block("m1", THINKING), block("m1", text("The answer")), block("m1", text(" is long."))

    assert verdict(*blocks, result(words)).text == "The answer is long."


def test_blocks_that_stand_apart_are_paragraphs() -> None:
    blocks = block("m1", text("First part.")), block("m1", THINKING), block("m1", text("Second part."))

    assert verdict(*blocks, result("First part.")).text == "First part.\n\nSecond part."


def test_pieces_count_where_the_complete_block_is_missing() -> None:
    pieces = started("m1"), piece("The ans"), piece("wer is"), piece(" long.")

    assert verdict(*pieces, result("")).text == "The answer is long."
    assert verdict(*pieces, block("m1", text("The answer is long.")), result("The")).text == "The answer is long."


def test_only_the_last_message_counts() -> None:
    before = block("m1", text("Let me look.")), block("m1", TOOL), {"type": "user", "message": {"content": []}}

    assert verdict(*before, started("m2"), piece("Done."), result("")).text == "Done."
    assert "no answer" in str(error(*before, block("m2", THINKING), result("")))


def test_a_text_beside_the_last_tool_is_the_answer() -> None:
    assert verdict(block("m1", text("Here it is.")), block("m1", TOOL), result("")).text == "Here it is."


def test_sub_agents_thoughts_and_the_programs_own_words_never_count() -> None:
    of_agent = block("m2", text("of an agent"), parent_tool_use_id="t1")
    piece_of_agent = {**piece("of an agent"), "parent_tool_use_id": "t1"}
    own = block("m3", text("No response requested."))
    own["message"]["model"] = "<synthetic>"
    thought = streamed("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "a secret"})

    answer = verdict(block("m1", text("mine")), of_agent, piece_of_agent, own, thought, result(""))

    assert answer.text == "mine"


def test_a_result_that_says_something_else_is_kept() -> None:
    assert verdict(block("m1", text("a long text that was streamed")), result("the result")).text == "the result"


def test_a_streamed_text_never_hides_a_failure() -> None:
    assert "API Error" in str(error(block("m1", text("half an ans")), failed("API Error: 500")))


# Numbers


@pytest.mark.parametrize(
    "number", ["1e400", "-1e400", "NaN", "Infinity", "9" * 500, "9" * 5000, "-1", '"1"', "null", "[]", "true"]
)
def test_no_number_costs_the_answer(number: str) -> None:
    names = "input_tokens", "output_tokens", "cache_read_input_tokens"
    line = json.dumps(result(total_cost_usd=0, usage=dict.fromkeys(names, 0), num_turns=0))
    turn = Turn()
    turn.hear(line.replace(": 0", f": {number}").encode())

    usage = judge(turn, ENDED, now=NOW).usage

    assert usage == Usage()


@pytest.mark.parametrize("number", ["1e400", "NaN", "9" * 5000])
def test_no_number_makes_a_pause_endless(number: str) -> None:
    turn = Turn()
    info = json.dumps({"type": "rate_limit_event", "rate_limit_info": {"status": "rejected", "resetsAt": 0}})
    turn.hear(info.replace(": 0", f": {number}").encode())
    turn.hear(json.dumps(failed("You've hit your limit")).encode())

    with pytest.raises(BackendError) as caught:
        judge(turn, ENDED, now=NOW)

    assert caught.value.retry_after == 900


@pytest.mark.parametrize(
    "words",
    [
        "<tool_use_error>Error: No such tool available: Read</tool_use_error>",
        "<tool_use_error>File is in a directory that is denied by your permission settings.</tool_use_error>",
    ],
)
def test_a_refusal_that_is_no_listed_denial_is_named_too(words: str) -> None:
    answered = {"type": "tool_result", "tool_use_id": "t1", "is_error": True, "content": words}

    found = verdict(block("m1", TOOL), {"type": "user", "message": {"content": [answered]}}, result("I could not."))

    assert found.text == "I could not.\n\n[not permitted here: Read]"
