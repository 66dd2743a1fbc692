"""``molecule messages``: what it shows, what it changes, and that nothing a peer wrote reaches the terminal raw."""

import asyncio
import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from molecule_connect.cli import message_format
from molecule_connect.journal.fairness import Turns
from molecule_connect.journal.inbox import InboxStore
from molecule_connect.journal.journal import Journal
from molecule_connect.journal.models import State, StoredReply
from molecule_connect.models import DataPart, FilePart, Inbound, Kind, Part, TextPart, Usage
from molecule_connect.worker.lease import lease

Molecule = Callable[..., Any]
HOSTILE = "\x1b[2J\x1b]0;owned\x07\u202egnp.exe\x9b31m second\nline"


@attrs.frozen
class Book:
    """A state folder with a journal, and how to fill it."""

    folder: Path

    def write(
        self, row_id: str, *parts: Part | str, workspace: str = "ws_1", inbox: bool = False, **given: Any
    ) -> None:
        """A message that waits for the backend."""
        made = tuple(TextPart(part) if isinstance(part, str) else part for part in parts)
        item = Inbound(
            **{"kind": Kind.MESSAGE, "message_id": row_id, "idempotency_key": row_id, "context_id": row_id, **given},
            row_id=row_id,
            parts=made,
            time=round(time.time() * 1e6) - 60_000_000,
            fingerprint=row_id,
        )
        self._run(workspace, lambda part: part.add([item], now=0), inbox=inbox)

    def kill(self, row_id: str, reason: str, *, answer: StoredReply | None = None, workspace: str = "ws_1") -> None:
        """A message that was given up, after *answer* was stored, if one is given."""

        async def run(part: Any) -> None:
            entry = next(
                e for e in (part.next(conversation) for conversation in self._conversations(part)) if e.row_id == row_id
            )
            if answer is not None:
                entry = await part.store_reply(await part.start(entry), answer, at=1, send_print=None)
            assert await part.mark_dead(entry, reason)

        self._run(workspace, run)

    def put_off(self, row_id: str, reason: str, *, seconds: float, workspace: str = "ws_1") -> None:
        """A message that waits for a time."""

        async def run(part: Any) -> None:
            entry = next(
                e for e in (part.next(conversation) for conversation in self._conversations(part)) if e.row_id == row_id
            )
            assert await part.defer(entry, not_before=time.time() + seconds, error=reason)

        self._run(workspace, run)

    def state(self, row_id: str, workspace: str = "ws_1") -> str:
        """Where a message stands."""
        found: list[str] = []

        async def run(part: Any) -> None:
            sql = "SELECT state FROM message WHERE workspace_id=? AND row_id=?"
            found.extend(part._reader.execute(sql, (workspace, row_id)).fetchone())

        self._run(workspace, run)
        return found[0]

    def _conversations(self, part: Any) -> list[Any]:
        return [conversation for caller in part.callers() for conversation in part.due_conversations(caller, 99)]

    def take(self, seconds: float, workspace: str = "ws_1") -> None:
        """A reader of the inbox takes the oldest message for *seconds*."""

        async def run() -> None:
            async with Journal.open(self.folder, wall=time.time) as journal:
                assert await InboxStore(journal).claim([workspace], "somebody", seconds, turns=Turns())

        asyncio.run(run())

    def _run(self, workspace: str, work: Callable[[Any], Any], *, inbox: bool = False) -> None:
        async def main() -> None:
            async with Journal.open(self.folder, wall=time.time) as journal:
                await work(journal.of(workspace, inbox=inbox))

        asyncio.run(main())


@pytest.fixture
def book(tmp_path: Path) -> Book:
    folder = tmp_path / "state"
    folder.mkdir()
    return Book(folder)


@pytest.fixture
def messages(molecule: Molecule, book: Book) -> Molecule:
    """Run ``molecule messages`` on the book."""

    def run(*arguments: str, stdin: str = "") -> Any:
        return molecule("messages", *arguments, stdin=stdin, MOLECULE_STATE_DIR=str(book.folder))

    return run


def test_help_tells_each_command_with_an_example(molecule: Molecule) -> None:
    for name in ("list", "show", "replay", "drop"):
        result = molecule("messages", name, "--help")
        assert result.code == 0
        assert f"\n  molecule messages {name}" in result.stdout


def test_id_in_capitals_names_same_workspace(messages: Molecule, book: Book) -> None:
    name = "dc98486f-8e1e-44fc-94c0-ba89c005241b"
    book.write("row-of-that-workspace", "hello", workspace=name)

    assert "hello" in messages("list", name.upper()).stdout
    assert "hello" in messages("show", "row-of", "--workspace", name.upper()).stdout


def test_missing_journal_is_not_created(messages: Molecule, book: Book) -> None:
    for arguments in (["list"], ["show", "x"], ["replay", "x"], ["drop", "x"], ["replay", "--all-dead"]):
        result = messages(*arguments)
        assert result.code == 2
        assert f"error: there is no journal in {book.folder}" in result.stderr
        assert "what to do: " in result.stderr
    assert list(book.folder.iterdir()) == []


def test_list_shows_state_and_reason(messages: Molecule, book: Book) -> None:
    book.write("11111111-aaaa", "hello there")
    book.write("22222222-bbbb", "never mind", caller_id="peer-1")
    book.kill("22222222-bbbb", "no answer after 4 attempts: it broke")

    titles, first, second = messages("list").stdout.splitlines()

    assert titles.split() == ["ID", "TIME", "SENDER", "TEXT", "ANSWER", "DURATION", "COST"]
    assert first.split()[0] == "11111111"
    assert " person  hello there  received " in first
    assert " peer-1  never mind   dead: no answer after 4 attempts: it broke " in second


def test_filtered_list_shows_the_total(messages: Molecule, book: Book) -> None:
    for number in range(4):
        book.write(f"row-{number}", "text")
    book.kill("row-0", "over")

    assert [line.split()[0] for line in messages("list", "--state", "dead").stdout.splitlines()] == ["ID", "row-0"]
    assert len(messages("list", "--state", "open").stdout.splitlines()) == 1 + 3
    short = messages("list", "--limit", "1")
    assert [line.split()[0] for line in short.stdout.splitlines()] == ["ID", "row-3"]
    assert "1 of 4 messages; --limit 0 lists all" in short.stderr
    assert len(messages("list", "--limit", "0").stdout.splitlines()) == 1 + 4
    assert messages("list", "--state", "held").stderr == "no messages\n"


def test_inbox_shows_answers_and_claims(messages: Molecule, book: Book) -> None:
    book.write("row-a", "forty-two", kind=Kind.ANSWER, caller_id="peer", inbox=True)
    book.write("row-b", "what now?", inbox=True)
    book.write("row-c", "an answer to a backend", kind=Kind.ANSWER, caller_id="peer")
    book.take(90)
    listed = messages("list").stdout
    assert "answer: forty-two  held, claimed by a reader, for " in listed
    assert "what now?" in listed
    assert "row-c" not in listed
    shown = messages("show", "row-a").stdout
    assert "kind           answer" in shown
    assert "claim          claimed by a reader" in shown
    (told,) = (one for one in json.loads(messages("list", "--json").stdout)["messages"] if one["row_id"] == "row-a")
    assert (told["kind"], told["state"]) == ("answer", "held")
    assert told["held_until"] is not None


def test_expired_claim_is_shown(messages: Molecule, book: Book) -> None:
    book.write("row-a", "hello", inbox=True)
    book.take(0)
    assert "the claim has expired" in messages("list").stdout


def test_list_distinguishes_workspaces(messages: Molecule, book: Book) -> None:
    book.write("row-1", "one")
    book.write("row-2", "two", workspace="ws_2")

    lines = messages("list").stdout.splitlines()
    assert "TIME                 WORKSPACE  SENDER" in lines[0]
    assert ["  ws_1  " in lines[1], "  ws_2  " in lines[2]] == [True, True]
    assert "WORKSPACE" not in messages("list", "ws_2").stdout
    assert "row-1" not in messages("list", "ws_2").stdout
    unknown = messages("list", "ws_3")
    assert unknown.code == 2
    assert "error: the journal has no messages of 'ws_3'\nwhat to do: " in unknown.stderr
    assert "ws_1, ws_2" in unknown.stderr


def test_json_is_one_document_with_whole_ids(messages: Molecule, book: Book) -> None:
    book.write("row-1-with-a-long-id", HOSTILE, caller_id="peer-1")
    book.kill("row-1-with-a-long-id", "over")

    result = messages("list", "--json")
    document = json.loads(result.stdout)

    assert result.stdout.isascii()
    assert document["total"] == 1
    (message,) = document["messages"]
    assert (message["row_id"], message["state"]) == ("row-1-with-a-long-id", "dead")
    assert (message["reason"], message["text"], message["attempts"]) == ("over", HOSTILE, 0)
    assert message["time"].endswith("Z")


def test_all_of_a_message_is_shown(messages: Molecule, book: Book) -> None:
    book.write(
        "row-1",
        "first line\nsecond line",
        DataPart({"key": "value"}),
        FilePart(uri="platform:/f/1", name="cat.png", mime_type="image/png", size=1234),
        caller_id="peer-1",
        message_id="their-id",
        task_id="task-1",
    )
    answer = StoredReply(
        parts=(TextPart("the answer"),), usage=Usage(input_tokens=1200, output_tokens=3, cost_usd=0.25)
    )
    book.kill("row-1", "the reply was not accepted: 403", answer=answer)

    shown = messages("show", "row").stdout

    facts = dict(line.split(maxsplit=1) for line in shown.partition("\n\n")[0].splitlines())
    assert (facts["row"], facts["workspace"], facts["from"], facts["attempts"]) == ("row-1", "ws_1", "peer-1", "1")
    assert facts["reason"] == "the reply was not accepted: 403"
    assert facts["state"].startswith("dead, since ")
    assert facts["usage"] == "1,200 tokens in, 3 out, 0.2500 USD"
    assert "message id     their-id\n" in shown
    assert "    first line\n    second line\n" in shown
    assert '        "key": "value"\n' not in shown.partition("Message:")[0]
    assert "    file cat.png (image/png, 1,234 bytes) platform:/f/1\n" in shown
    assert shown.endswith("Reply:\n    the answer\n")


@pytest.mark.parametrize("uri", ["file:///etc/passwd", "/etc/passwd"])
def test_uri_is_not_shown_as_path(messages: Molecule, book: Book, uri: str) -> None:
    book.write("row-1", FilePart(uri=uri, name="x"))

    assert f'no path; the sender\'s uri is "{uri}"\n' in messages("show", "row").stdout
    (part,) = json.loads(messages("show", "row", "--json").stdout)["parts"]
    assert "path" not in part["file"]


def test_traceback_is_shown_unchanged(messages: Molecule, book: Book) -> None:
    book.write("row-1", "hello")
    trace = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\nValueError: \x1b[2Jnull byte\n'

    async def run(part: Any) -> None:
        assert await part.mark_dead_by_id("row-1", None, "internal error, please report it: ValueError", trace)

    book._run("ws_1", run)
    shown = messages("show", "row-1").output
    assert "reason         internal error, please report it: ValueError\n" in shown
    assert '\nError:\n    Traceback (most recent call last):\n      File "x.py", line 1, in f\n' in shown
    assert "    ValueError: \\x1b[2Jnull byte\n" in shown
    assert json.loads(messages("show", "row-1", "--json").output)["error"] == trace


def test_json_has_parts_and_reply(messages: Molecule, book: Book) -> None:
    book.write("row-1", "one ", "two")
    book.kill("row-1", "refused", answer=StoredReply(parts=(TextPart("the answer"),)))

    document = json.loads(messages("show", "row-1", "--json").stdout)

    assert document["text"] == "one two"
    assert document["parts"] == [{"kind": "text", "text": "one "}, {"kind": "text", "text": "two"}]
    assert document["answer"] == {"parts": [{"kind": "text", "text": "the answer"}], "is_notice": False}


@pytest.mark.parametrize(
    "arguments", [("list",), ("show", "row-1"), ("show", "row-1", "--raw"), ("show", "row-1", "--json")]
)
def test_unsupported_character_is_replaced(book: Book, arguments: tuple[str, ...]) -> None:
    raw = json.dumps({"text": "fine \U0001f600 \xe9"}, ensure_ascii=False)
    book.write("row-1", "fine \U0001f600 \xe9", raw=raw)
    environ = {"PATH": os.environ["PATH"], "PYTHONIOENCODING": "latin-1", "MOLECULE_STATE_DIR": str(book.folder)}

    done = subprocess.run(
        [sys.executable, "-m", "molecule_connect", "messages", *arguments], capture_output=True, env=environ, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"fine " in done.stdout
    if arguments[-1].startswith("--"):
        assert "fine \U0001f600 \xe9" in str(json.loads(done.stdout.decode("latin-1")))


def test_raw_is_unchanged_in_a_pipe(messages: Molecule, book: Book) -> None:
    raw = '{"a": 1.10, "b": "\x9b31m\u202e", "z": 12345678901234567890}'
    book.write("row-1", "text", raw=raw)

    assert messages("show", "row-1", "--raw").stdout == raw + "\n"


def test_raw_is_escaped_on_a_terminal() -> None:
    raw = '{"b": "\x9b31m\u202e\U000e0001 plain é"}'

    shown = message_format.raw_text(raw)

    assert shown.isprintable()
    assert json.loads(shown) == json.loads(raw)


def test_peer_text_is_sanitized_for_terminals(messages: Molecule, book: Book) -> None:
    book.write("row-1", HOSTILE, FilePart(uri=HOSTILE, name=HOSTILE), DataPart(HOSTILE), caller_id=HOSTILE)
    book.kill("row-1", HOSTILE, answer=StoredReply(parts=(TextPart(HOSTILE),)))

    for arguments in (["list"], ["show", "row-1"], ["replay", "row-1"]):
        result = messages(*arguments)
        assert result.code == 0
        assert all(line.isprintable() for line in result.output.splitlines())
    assert r"    \x1b[2J\x1b]0;owned\x07\u202egnp.exe\x9b31m second" in messages("show", "row-1").stdout


def test_replay_shows_its_effect(messages: Molecule, book: Book) -> None:
    book.write("row-1", "hello")
    book.kill("row-1", "it broke")
    book.write("row-2", "again")
    book.kill("row-2", "refused", answer=StoredReply(parts=(TextPart("kept"),)))

    result = messages("replay", "row-1", "row-2", "row-1")

    assert result.code == 0
    assert result.stdout == (
        'row-1 of person, "hello": the backend runs again\n'
        'row-2 of person, "again": the stored reply is sent again\n'
        "replayed 2 messages\n"
        "ws_1: no connector runs; start 'molecule connect ws_1' to process it\n"
    )
    assert (book.state("row-1"), book.state("row-2")) == (State.RECEIVED, State.RECEIVED)


def test_replay_processes_a_deferred_message(messages: Molecule, book: Book) -> None:
    book.write("row-1", "hello")
    book.put_off("row-1", "the usage limit is reached", seconds=8 * 86_400)
    assert "in 8 d" in messages("list").stdout

    result = messages("replay", "row-1")

    assert result.stdout.splitlines()[:2] == [
        'row-1 of person, "hello": it is processed now, and deferred again if necessary',
        "replayed 1 message",
    ]
    assert "in 8 d" not in messages("list").stdout
    assert messages("replay", "row-1").code == 2


def test_replay_in_an_inbox_names_readers(messages: Molecule, book: Book) -> None:
    book.write("row-1", "hello")
    book.kill("row-1", "loop")
    (book.folder / "ws_1.status").write_text(json.dumps({"workspace_id": "ws_1", "inbox": True}))
    assert "it waits again for a reader of the inbox" in messages("replay", "row-1", "--yes").stdout


def test_replay_names_the_running_connector(messages: Molecule, book: Book) -> None:
    book.write("row-1", "hello")
    book.kill("row-1", "it broke")

    with lease(book.folder, "ws_1"):
        result = messages("replay", "row-1")

    assert "ws_1: the running connector processes it within a second" in result.stdout


def test_replays_all_dead_with_a_reason(messages: Molecule, book: Book) -> None:
    for row_id, reason in (("row-1", "loop: in a row"), ("row-2", "it broke")):
        book.write(row_id, "hello")
        book.kill(row_id, reason)
    book.write("row-3", "hello", kind=Kind.UNREADABLE)

    assert "replayed 1 message\n" in messages("replay", "--all-dead", "--reason", "loop").stdout
    assert [book.state(f"row-{n}") for n in (1, 2, 3)] == [State.RECEIVED, State.DEAD, State.DEAD]
    assert "replayed 1 message\n" in messages("replay", "--all-dead").stdout
    nothing = messages("replay", "--all-dead")
    assert (nothing.code, nothing.stdout) == (0, "no dead letter matches; nothing to do\n")


def test_many_are_told_in_short(messages: Molecule, book: Book) -> None:
    for number in range(23):
        book.write(f"row-{number}", "hello")
        book.kill(f"row-{number}", "it broke")

    lines = messages("replay", "--all-dead").stdout.splitlines()

    assert lines[19].startswith("row-19 of person")
    assert lines[20:22] == ["and 3 more", "replayed 23 messages"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["replay"], "pass either row ids or --all-dead"),
        (["replay", "row-1", "--all-dead"], "pass either row ids or --all-dead"),
        (["replay", "row-1", "--reason", "loop"], "--reason requires --all-dead"),
        (["replay", "row-1", "row-open"], "row-open is received: only dead letters and deferred"),
        (["replay", "row-1", "gone"], "no message has a row id that starts with 'gone'"),
        (["replay", "row-1", "odd"], "odd cannot be replayed: unreadable:"),
        (["replay", "row"], "matches more than one message"),
        (["replay", "row-1", "--workspace", "ws_2"], "no message has"),
        (["drop", "row-1", "row-open"], "row-open is received: only dead letters can be dropped"),
        (["drop"], "ROW_ID"),
        (["show", "gone"], "no message has"),
        (["list", "--state", "sad"], "sad"),
    ],
)
def test_refused_command_changes_nothing(messages: Molecule, book: Book, arguments: list[str], complaint: str) -> None:
    book.write("row-1", "hello")
    book.kill("row-1", "it broke")
    book.write("row-open", "hello")
    book.write("odd", kind=Kind.UNREADABLE)

    result = messages(*arguments)

    assert result.code == 2
    assert complaint in result.stderr
    assert "what to do: " in result.stderr
    assert [book.state(row_id) for row_id in ("row-1", "row-open", "odd")] == ["dead", "received", "dead"]


def test_dead_letter_without_text_says_so(messages: Molecule, book: Book) -> None:
    book.write("row-1", "x" * (20 << 20))
    book.write("row-2", "x" * (50 << 20))
    for row_id in ("row-1", "row-2"):
        book.kill(row_id, "too hard")

    assert "Its text was deleted to make room in the journal." in messages("show", "row-1").stdout
    refused = messages("replay", "row-1", stdin="")
    assert refused.code == 2
    assert "row-1 cannot be replayed: its text was deleted to make room in the journal" in refused.stderr
    assert "row-1" not in messages("replay", "--all-dead", "--yes").stdout


def test_a_dropped_message_is_done(messages: Molecule, book: Book) -> None:
    book.write("row-1", "hello")
    book.kill("row-1", "it broke")
    book.write("odd", kind=Kind.UNREADABLE)

    result = messages("drop", "row-1", "odd")

    assert (result.code, result.stdout.splitlines()[-1]) == (0, "dropped 2 messages")
    assert (book.state("row-1"), book.state("odd")) == ("done", "done")
    assert "hello  dropped: it broke" in messages("list").stdout


@pytest.mark.parametrize(
    ("said", "flags", "state"), [("n", [], "dead"), ("y", [], "received"), ("", ["--yes"], "received")]
)
def test_on_a_terminal_it_asks_first(
    environ: dict[str, str], book: Book, said: str, flags: list[str], state: str
) -> None:
    book.write("row-1", "hello")
    book.kill("row-1", "it broke")
    keyboard, terminal = pty.openpty()
    os.write(keyboard, f"{said}\n".encode())
    command = [sys.executable, "-m", "molecule_connect", "messages", "replay", "row-1", *flags]

    done = subprocess.run(
        [*command, "--state-dir", str(book.folder)],
        stdin=terminal,
        capture_output=True,
        text=True,
        env=environ,
        timeout=30,
        check=True,
    )
    os.close(keyboard)
    os.close(terminal)

    assert ("Replay 1 message? [y/N]" in done.stdout) == (not flags)
    assert ("nothing was changed" in done.stdout) == (state == "dead")
    assert book.state("row-1") == state
