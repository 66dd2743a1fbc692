"""JSON mode: what a command is told, and what it can say. The first test is a promise to those who wrote commands."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from molecule_connect import BackendError, DataPart, FilePart, Progress, Request, Response, TextPart, Usage
from molecule_connect.testing import make_request
from molecule_connect_exec import ExecBackend
from molecule_connect_exec.requests import as_json, as_text

FULL = Request(
    workspace_id="ws_1",
    message_id="message-1",
    idempotency_key="key-1",
    caller_id="ws_2",
    task_id="task-1",
    context_id="context-1",
    parts=(
        TextPart("grüße, "),
        FilePart(uri="platform://1", name="a.png", mime_type="image/png", size=0, path=Path("/data/a.png")),
        DataPart({"n": [1, None]}),
        TextPart("half \ud800"),
    ),
    raw='{"method":"message/send"}',
    attempt=2,
    trace="00-1-2-01",
)
TOLD = """\
{
  "workspace_id": "ws_1",
  "message_id": "message-1",
  "idempotency_key": "key-1",
  "caller_id": "ws_2",
  "task_id": "task-1",
  "context_id": "context-1",
  "method": "message/send",
  "attempt": 2,
  "trace": "00-1-2-01",
  "text": "grüße, half ?",
  "parts": [
    {
      "type": "text",
      "text": "grüße, "
    },
    {
      "type": "file",
      "uri": "platform://1",
      "name": "a.png",
      "mime_type": "image/png",
      "size": 0,
      "path": "/data/a.png"
    },
    {
      "type": "data",
      "data": {
        "n": [
          1,
          null
        ]
      }
    },
    {
      "type": "text",
      "text": "half ?"
    }
  ]
}"""


class Heard(list[str]):
    """Progress that remembers."""

    def listen(self) -> Progress:
        def tell(update: str | Response, /) -> Any:
            self.append(update if isinstance(update, str) else update.text)

        return tell


async def respond(cmd: str, request: Request | None = None, *, heard: Heard | None = None, **options: Any) -> Response:
    backend = ExecBackend(cmd=cmd, format="json", **{"timeout": 20.0, **options})
    return await backend.handle_a2a(request or make_request(), (heard if heard is not None else Heard()).listen())


async def saying(*lines: Any, then: str = "true", **options: Any) -> Response:
    """The response to these objects, a line each; texts are lines as they are."""
    printed = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    return await respond(f"cat <<'END'\n{printed}END\n{then}", **options)


async def failing(*lines: Any, **options: Any) -> BackendError:
    with pytest.raises(BackendError) as caught:
        await saying(*lines, **options)
    return caught.value


async def seen(request: Request, **options: Any) -> str:
    """What a command reads, as it is."""
    reader = "import json, sys; print(json.dumps({'text': sys.stdin.read()}))"
    return (await respond(f'{sys.executable} -c "{reader}"', request, **options)).text


async def test_requests_have_these_field_names() -> None:
    told = await seen(FULL)

    assert told.endswith("}\n")
    assert told.count("\n") == 1
    assert json.dumps(json.loads(told), indent=2, ensure_ascii=False) == TOLD


async def test_what_is_empty_is_absent() -> None:
    told = json.loads(await seen(Request(workspace_id="ws_1", message_id="m", idempotency_key="k")))

    assert told == {
        "workspace_id": "ws_1",
        "message_id": "m",
        "idempotency_key": "k",
        "method": "message/send",
        "attempt": 1,
    }


async def test_empty_data_is_kept() -> None:
    told = json.loads(await seen(make_request(parts=(DataPart(None), DataPart([]), FilePart(uri="u")))))

    assert told["parts"] == [{"type": "data", "data": None}, {"type": "data", "data": []}, {"type": "file", "uri": "u"}]


async def test_includes_raw_request_on_demand() -> None:
    assert json.loads(await seen(FULL, raw=True))["raw"] == FULL.raw


@pytest.mark.parametrize(
    "said", [{"type": "response", "text": "hi"}, {"text": "hi"}, {"parts": [{"type": "text", "text": "hi"}]}]
)
async def test_responses_have_text_or_parts(said: dict[str, Any]) -> None:
    assert await saying(said) == Response.from_text("hi")


async def test_responses_may_span_many_lines() -> None:
    assert (
        await saying(json.dumps({"type": "response", "text": "hi", "usage": {"cost_usd": 1}}, indent=2))
    ).text == "hi"


async def test_parts_round_trip_relative_to_the_folder(tmp_path: Path) -> None:
    parts = [
        {"type": "text", "text": "see"},
        {"type": "file", "uri": "https://x/y", "name": "y", "mime_type": "text/plain", "size": 3},
        {"type": "file", "path": "out/z.png"},
        {"type": "data", "data": [1, {"a": None}]},
    ]

    response = await saying({"type": "response", "parts": parts, "text": "short"}, cwd=tmp_path)

    place = tmp_path / "out" / "z.png"
    assert response.parts == (
        TextPart("see"),
        FilePart(uri="https://x/y", name="y", mime_type="text/plain", size=3),
        FilePart(uri=place.as_uri(), name="z.png", path=place),
        DataPart([1, {"a": None}]),
    )


async def test_usage_is_passed_on() -> None:
    response = await saying({"text": "hi", "usage": {"input_tokens": 3, "output_tokens": 4, "cost_usd": 0.5, "new": 1}})

    assert response.usage == Usage(input_tokens=3, output_tokens=4, cost_usd=0.5)


@pytest.mark.parametrize(
    "number", ["1e400", "NaN", "-Infinity", "-1", '"many"', "true", "[]", "9" * 500, "9" * 5000, "-" + "9" * 5000]
)
async def test_no_usage_costs_the_answer(number: str) -> None:
    line = f'{{"text": "hi", "usage": {{"input_tokens": {number}, "output_tokens": 2, "cost_usd": {number}}}}}'

    response = await saying(line)

    assert (response.text, response.usage) == ("hi", Usage(output_tokens=2))


@pytest.mark.parametrize("usage", [3, "much", [1]])
async def test_ignores_usage_that_is_no_object(usage: object, caplog: pytest.LogCaptureFixture) -> None:
    response = await saying({"text": "hi", "usage": usage})

    assert (response.text, response.usage) == ("hi", None)
    assert "ignored the command's 'usage'" in caplog.text
    assert (await failing({"type": "error", "message": "quota", "usage": usage})).usage is None


async def test_reports_progress_and_uses_first_response() -> None:
    heard = Heard()

    response = await saying(
        {"type": "progress", "text": "reading"},
        {"type": "from a later version"},
        "a line of some library",
        {"type": "progress", "text": "writing"},
        {"type": "response", "text": "first"},
        {"type": "response", "text": "second"},
        heard=heard,
    )

    assert (response.text, heard) == ("first", ["reading", "writing"])


async def test_json_mode_reads_long_lines() -> None:
    assert len((await respond("cat", make_request("x" * 300_000))).text) == 300_000


async def test_no_answer_on_purpose_is_silent() -> None:
    assert (await saying({"type": "silent"})).is_silent


@pytest.mark.parametrize(
    ("said", "retryable", "retry_after"),
    [
        ({}, True, None),
        ({"retryable": False}, False, None),
        ({"retry_after": 3600}, True, 3600),
    ],
)
async def test_errors_control_retries(said: dict[str, Any], retryable: bool, retry_after: float | None) -> None:
    error = await failing(
        {"type": "error", "message": "quota is used up", **said}, then="exit 64", exit_codes=["64:silent"]
    )

    assert (str(error), error.retryable, error.retry_after) == ("quota is used up", retryable, retry_after)


async def test_an_error_tells_what_it_cost() -> None:
    error = await failing({"type": "error", "message": "quota", "usage": {"input_tokens": 3, "cost_usd": 0.5}})

    assert error.usage == Usage(input_tokens=3, cost_usd=0.5)
    assert (await failing({"type": "error", "message": "quota"})).usage is None
    assert (await failing({"text": " ", "usage": {"cost_usd": 0.5}})).usage == Usage(cost_usd=0.5)


async def test_an_answer_counts_whatever_happens_after_it() -> None:
    assert (await saying({"text": "hi"}, then="exit 3")).text == "hi"
    assert (await saying({"text": "hi"}, then="kill -9 $$")).text == "hi"


async def test_commands_hanging_after_the_response_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("molecule_connect_exec.backend.AFTER_RESPONSE_SECONDS", 0.1)

    assert (await saying({"text": "hi"}, then="sleep 60")).text == "hi"


async def test_without_an_answer_the_status_decides() -> None:
    assert (await failing("oops", then="echo bad >&2; exit 3")).retryable
    assert not (await failing(then="exit 64", exit_codes=["64:permanent"])).retryable
    assert (await saying({"type": "progress", "text": "x"}, then="exit 3", exit_codes=["3:silent"])).is_silent


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "gave no answer"),
        (["Traceback: oops", "more"], "it printed 'Traceback: oops'"),
        (["[1, 2]", '"text"'], "it printed '[1, 2]'"),
        ([{"type": "response"}], "has no content"),
        ([{"type": "response", "text": " "}], "has no content"),
        ([{"type": "response", "text": 3}], "'text'"),
        ([{"type": "response", "parts": {}}], "'parts'"),
        ([{"parts": [{"type": "video"}]}], "a part is not of type"),
        ([{"parts": [{"type": "text", "text": None}]}], "a part is not of type"),
        ([{"parts": [{"type": "file", "name": "x"}]}], "neither 'uri' nor 'path'"),
        ([{"parts": [{"type": "file", "path": "../x"}]}], "outside of the command's working directory"),
        ([{"parts": [{"type": "file", "path": "/"}]}], "is not a file"),
        ([{"parts": [{"type": "file", "path": "/tmp/" + "n" * 300}]}], "File name too long"),
        ([{"parts": [{"type": "file", "path": "n" * 300}]}], "File name too long"),
        ([{"parts": [{"type": "file", "path": "a\0b"}]}], "null"),
        ([{"parts": [{"type": "file", "uri": 3}]}], "'uri' of a file"),
        ([{"type": "error", "retryable": "no"}], "'retryable'"),
        ([{"type": "error", "retry_after": -1}], "'retry_after'"),
    ],
)
async def test_invalid_responses_fail_without_retry(lines: list[Any], words: str) -> None:
    error = await failing(*lines)

    assert words in str(error)
    assert not error.retryable


async def test_half_a_surrogate_pair_is_replaced() -> None:
    assert (await saying('{"text": "half \\ud800"}')).text == "half ?"


async def test_rejects_links_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "inside" / "link").symlink_to(tmp_path / "secret")

    with pytest.raises(BackendError, match="outside of the command's working directory"):
        await saying({"parts": [{"type": "file", "path": "link"}]}, cwd=tmp_path / "inside")


async def test_deleted_folders_affect_only_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, kept = tmp_path / "gone", tmp_path / "kept.txt"
    gone.mkdir()
    kept.write_text("kept")
    monkeypatch.chdir(gone)
    gone.rmdir()

    assert (await saying({"text": "ok"})).text == "ok"
    (part,) = (await saying({"parts": [{"type": "file", "path": str(kept)}]})).parts
    assert part == FilePart(uri=kept.as_uri(), name="kept.txt", path=kept)
    with pytest.raises(BackendError, match="cannot be accessed") as caught:
        await saying({"parts": [{"type": "file", "path": "kept.txt"}]})
    assert not caught.value.retryable


@pytest.mark.parametrize("size", [-1, 2**63, 1.5, "1", True, None])
async def test_omits_invalid_sizes(size: object) -> None:
    (part,) = (await saying({"parts": [{"type": "file", "uri": "https://x/y", "size": size}]})).parts

    assert isinstance(part, FilePart)
    assert part.size is None


def test_messages_of_files_list_missing_ones(tmp_path: Path) -> None:
    here = FilePart(uri="platform-pending:ws/f1", name="a.txt", path=tmp_path / "a.txt")
    rest = FilePart(uri="", name="9 more files", unavailable="a message may bring at most 64 files")

    told = as_text(make_request(parts=(here, rest))).decode()

    assert told == f"{tmp_path / 'a.txt'}\nunavailable:9_more_files\n"


async def test_absolute_paths_with_nul_fail_later() -> None:
    (part,) = (await saying({"parts": [{"type": "file", "path": "/tmp/a\0b"}]})).parts

    assert isinstance(part, FilePart)
    assert part.path == Path("/tmp/a\0b")


async def test_missing_files_have_a_reason() -> None:
    part = FilePart(uri="platform-pending:ws/f1", name="a.txt", unavailable="it is not here yet")

    told = json.loads(as_json(make_request(parts=(part,))))

    assert told["parts"] == [
        {"type": "file", "uri": "platform-pending:ws/f1", "name": "a.txt", "unavailable": "it is not here yet"}
    ]
