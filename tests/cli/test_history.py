"""``molecule messages list`` and ``show`` as the history of a workspace."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from tests.cli.test_messages import HOSTILE, Book, book, messages

from molecule_connect.cli.message_query import Entry, Follower, Query
from molecule_connect.errors import ConfigError, JournalError, MoleculeError
from molecule_connect.journal.inspect import drop, replay
from molecule_connect.journal.journal import FILE_NAME, Journal
from molecule_connect.journal.models import StoredReply
from molecule_connect.models import FilePart, Inbound, Kind, TextPart, Usage

__all__ = ["book", "messages"]

Molecule = Callable[..., Any]
ALICE, ALSO_ALICE, BOB = "aaaa1111-0000", "aaaa2222-0000", "bbbb3333-0000"


def change(book: Book, work: Callable[[Any], Any], workspace: str = "ws_1") -> None:
    book._run(workspace, work)


def name(book: Book, **names: str) -> None:
    async def run(part: Any) -> None:
        part.add_peer_names({peer_id.replace("_", "-"): each for peer_id, each in names.items()})
        await part.set_position(part.position())

    change(book, run)


def answer(book: Book, row_id: str, text: str, *, cost: float = 0.0, seconds: float = 3.0) -> None:
    """The message is answered and sent, by a backend that took *seconds*."""

    async def main() -> None:
        now = time.time()
        async with Journal.open(book.folder, wall=lambda: now) as journal:
            part = journal.of("ws_1")
            running = await part.start(part.message(row_id))
            assert running
            now += seconds
            part.add_spend(None, cost, row_id=row_id)
            reply = StoredReply(parts=(TextPart(text),), usage=Usage(cost_usd=cost))
            answered = await part.store_reply(running, reply, at=round(now * 1e6), send_print=None)
            assert answered
            part.mark_sent(answered, at=round(now * 1e6))
            await part.sends_committed()

    asyncio.run(main())


def listed(messages: Molecule, *arguments: str) -> list[str]:
    return [line.split()[0] for line in messages("list", *arguments).stdout.splitlines()[1:]]


# Columns


def test_list_shows_answer_duration_and_cost(messages: Molecule, book: Book) -> None:
    book.write("row-1", "hello there")
    answer(book, "row-1", "hello back", cost=0.25)
    book.write("row-2", "and now?")

    titles, first, second = messages("list").stdout.splitlines()

    assert titles.split() == ["ID", "TIME", "SENDER", "TEXT", "ANSWER", "DURATION", "COST"]
    assert first.endswith("person  hello there  hello back     3.0 s  $0.25")
    assert second.split()[-3:] == ["received", "-", "-"]


def test_sender_is_shown_by_name(messages: Molecule, book: Book) -> None:
    name(book, aaaa1111_0000="Reviewer")
    book.write("row-1", "hello", caller_id=ALICE)
    book.write("row-2", "hello", caller_id=BOB)

    lines = messages("list").stdout.splitlines()

    assert "  Reviewer  " in lines[1]
    assert "  bbbb3333…  " in lines[2]
    assert f"from           Reviewer, {ALICE}\n" in messages("show", "row-1").stdout
    assert json.loads(messages("show", "row-1", "--json").stdout)["sender"] == "Reviewer"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_lines_fit_the_terminal(messages: Molecule, molecule: Molecule, book: Book, width: int) -> None:
    name(book, aaaa1111_0000="Name " * 20)
    book.write("row-1", "多くの言葉 \U0001f468\u200d\U0001f469\u200d\U0001f467 " * 30, caller_id=ALICE)
    book.write("row-2", HOSTILE * 10, caller_id=BOB, workspace="ws_2")
    book.write("row-3", "no")
    book.kill("row-3", "no answer after 4 attempts: " + "many words " * 30 + "exit status 3")

    result = molecule("messages", "list", COLUMNS=str(width), MOLECULE_STATE_DIR=str(book.folder))

    lines = result.stdout.splitlines()
    assert len(lines) == 4
    assert max(cell_len(line) for line in lines) <= width
    assert all(line.isprintable() for line in lines)
    assert [line.split()[0] for line in lines] == ["ID", "row-1", "row-2", "row-3"]
    assert "dead" in lines[-1]
    assert " 3" in lines[-1] or width == 40


def test_finished_messages_say_how(messages: Molecule, book: Book) -> None:
    book.write("row-1", "hello")
    book.kill("row-1", "it broke")
    drop(book.folder, [one.message.key for one in next(iter(follow(book))) if isinstance(one, Entry)], time.time())
    book.write("row-2", "hello")

    async def silent(part: Any) -> None:
        await part.finish_without_reply(await part.start(part.message("row-2")))

    change(book, silent)
    book.write("row-3", "hello")
    answer(book, "row-3", "kept for a day")

    async def later(part: Any) -> None:
        part._wall = lambda: time.time() + 2 * 86_400
        await part.prune(0)

    change(book, later)

    first, second, third = messages("list").stdout.splitlines()[1:]
    assert "  (deleted)  dropped: it broke  " in first
    assert "  (deleted)  done without an answer  " in second
    assert "  (deleted)  (deleted)  " in third
    assert "3.0 s" in third


def test_json_has_the_new_columns(messages: Molecule, book: Book) -> None:
    book.write("row-1", "hello")
    answer(book, "row-1", "hello back", cost=0.25)
    book.write("row-2", "hello")

    second, first = json.loads(messages("list", "--json").stdout)["messages"]

    assert (first["answer"], first["duration_seconds"], first["cost_usd"]) == ("hello back", 3.0, 0.25)
    assert (first["sender"], first["caller_id"], first["attempts"], first["state"]) == ("person", None, 1, "done")
    assert (second["answer"], second["duration_seconds"], second["cost_usd"]) == (None, None, None)


# Filters


def test_from_names_people_peers_and_names(messages: Molecule, book: Book) -> None:
    name(book, aaaa1111_0000="Reviewer", bbbb3333_0000="People")
    book.write("row-p", "hello")
    book.write("row-a", "hello", caller_id=ALICE)
    book.write("row-b", "hello", caller_id=BOB)

    for sender, rows in {
        "people": ["row-p"],
        "People": ["row-p"],
        "peer:people": ["row-b"],
        f"peer:{ALICE}": ["row-a"],
        f"peer:{ALICE.upper()}": ["row-a"],
        ALICE: ["row-a"],
        "reviewer": ["row-a"],
        "peer:Reviewer": ["row-a"],
        "bbbb": ["row-b"],
        "bbbb3333…": ["row-b"],
        "People (bbbb…)": ["row-b"],
        "peer:unknown-id": [],
    }.items():
        assert listed(messages, "--from", sender) == rows, sender
    assert messages("list", "--from", "peer:unknown-id").code == 0


def test_ambiguous_name_lists_the_ids(messages: Molecule, book: Book) -> None:
    name(book, aaaa1111_0000="Reviewer", aaaa2222_0000="reviewer")
    book.write("row-1", "hello", caller_id=ALICE)
    book.write("row-2", "hello", caller_id=ALSO_ALICE)

    for sender in ("Reviewer", "aaaa"):
        result = messages("list", "--from", sender)
        assert result.code == 2
        assert f"error: '{sender}' names 2 peers: {ALICE}, {ALSO_ALICE}\n" in result.stderr
        assert "what to do: pass one of them: --from peer:ID" in result.stderr
    assert listed(messages, "--from", f"peer:{ALSO_ALICE}") == ["row-2"]


def test_unknown_name_lists_the_senders(messages: Molecule, book: Book) -> None:
    name(book, aaaa1111_0000=f"Reviewer{HOSTILE}")
    book.write("row-1", "hello", caller_id=ALICE)

    result = messages("list", "--from", "nobody")

    assert result.code == 2
    assert "error: no message is from 'nobody'\nwhat to do: senders in the journal: people, Reviewer" in result.stderr
    assert all(line.isprintable() for line in result.stderr.splitlines())


def test_since_limits_the_age(messages: Molecule, book: Book) -> None:
    book.write("row-1", "a minute old")

    assert listed(messages, "--since", "2h") == ["row-1"]
    assert listed(messages, "--since", "1h30m") == ["row-1"]
    assert listed(messages, "--since", "30s") == []


@pytest.mark.parametrize("given", ["yesterday", "-2h", "2 fortnights", "", "9" * 400, "nan"])
def test_invalid_since_is_refused(messages: Molecule, book: Book, given: str) -> None:
    result = messages("list", "--since", given)

    assert result.code == 2
    assert "is not a duration such as 90s, 30m, 2h or 1d12h" in result.stderr


def test_search_finds_text_and_answer(messages: Molecule, book: Book) -> None:
    book.write("row-1", "where is the Invoice?")
    answer(book, "row-1", "in the drawer")
    book.write("row-2", "100% sure")

    assert listed(messages, "--search", "invoice") == ["row-1"]
    assert listed(messages, "--search", "DRAWER") == ["row-1"]
    assert listed(messages, "--search", "0%") == ["row-2"]
    assert messages("list", "--search", "nothing like it").stderr == "no messages\n"
    assert listed(messages, "--state", "open", "--search", "invoice") == []


# show


def test_show_prints_the_whole_exchange(messages: Molecule, book: Book, tmp_path: Path) -> None:
    report = tmp_path / "report.pdf"
    report.write_bytes(b"12345")
    book.write("row-1", "hello", FilePart(uri="platform:/f/1", name="cat.png", mime_type="image/png", size=1234))

    async def run(part: Any) -> None:
        running = await part.start(part.message("row-1"))
        requeued = await part.requeue(running, counts=True, error=f"overloaded {HOSTILE}")
        running = await part.start(requeued)
        part.add_spend(None, 0.5, row_id="row-1")
        parts = (TextPart("the answer"), FilePart(uri="", path=report, name="report.pdf", size=5))
        await part.store_reply(running, StoredReply(parts=parts, usage=Usage(cost_usd=0.25)), at=1, send_print=None)

    change(book, run)
    shown = messages("show", "row-1").stdout

    assert "Message:\n    hello\n" in shown
    assert "Files:\n    received  cat.png (1,234 bytes)\n" in shown
    assert f"    sent      {report} (5 bytes)\n" in shown
    first, second = shown.partition("Attempts:\n")[2].splitlines()[:2]
    assert first.startswith("    1  20")
    assert first.endswith(" s  overloaded gnp.exe second line")
    assert second.endswith(" s  succeeded")
    assert "cost           0.5000 USD\n" in shown
    assert "duration       0.0 s\n" in shown
    assert "Reply:\n    the answer\n" in shown
    assert all(line.isprintable() for line in shown.splitlines())
    document = json.loads(messages("show", "row-1", "--json").stdout)
    assert [run["error"] is None for run in document["runs"]] == [False, True]
    assert document["cost_usd"] == 0.5


def test_show_prints_the_running_attempt(messages: Molecule, book: Book) -> None:
    book.write("row-1", "hello")

    # Not through the journal: closing it puts the message back.
    async def run(part: Any) -> None:
        part.progress(await part.start(part.message("row-1")), "half of it")
        await part.set_position(part.position())

    change(book, run)
    assert "  runs for " in messages("show", "row-1").stdout
    assert ": half of it\n" in messages("show", "row-1").stdout
    assert "running: half of it" in messages("list").stdout


# --follow


def follow(book: Book, limit: int | None = None, **given: Any) -> Any:
    return iter(Follower(book.folder, Query(**given), limit))


def states(found: list[Entry] | MoleculeError) -> list[tuple[str, str]]:
    assert isinstance(found, list)
    return [(one.message.row_id, one.message.state.value) for one in found]


def test_follow_yields_each_change_once(book: Book) -> None:
    book.write("row-0", "hello")
    book.write("row-1", "hello")
    book.kill("row-1", "it broke")
    with contextlib.closing(follow(book, limit=1)) as steps:
        assert states(next(steps)) == [("row-1", "dead")]
        assert states(next(steps)) == []
        book.write("row-2", "hello")
        assert states(next(steps)) == [("row-2", "received")]
        answer(book, "row-2", "hello back")
        assert states(next(steps)) == [("row-2", "done")]
        replay(book.folder, [one.message.key for one in next(follow(book)) if one.row_id == "row-1"], time.time())
        assert states(next(steps)) == [("row-1", "received")]
        assert states(next(steps)) == []


def test_follow_applies_the_filters(book: Book) -> None:
    name(book, aaaa1111_0000="Reviewer")
    book.write("row-0", "hello", caller_id=ALICE)
    with contextlib.closing(follow(book, sender="Reviewer", search="HELLO")) as steps:
        assert states(next(steps)) == [("row-0", "received")]
        book.write("row-1", "hello")
        book.write("row-2", "bye", caller_id=ALICE)
        book.write("row-3", "hello again", caller_id=ALICE)
        assert states(next(steps)) == [("row-3", "received")]


def test_follow_waits_for_a_journal(book: Book) -> None:
    with contextlib.closing(follow(book, sender="Reviewer")) as steps:
        assert isinstance(next(steps), ConfigError)
        (book.folder / FILE_NAME).touch()
        assert isinstance(next(steps), JournalError)
        book.write("row-0", "hello")
        assert states(next(steps)) == []
        name(book, aaaa1111_0000="Reviewer")
        book.write("row-1", "hello", caller_id=ALICE)
        assert states(next(steps)) == [("row-1", "received")]


def test_follow_continues_with_a_replaced_journal(book: Book) -> None:
    book.write("row-0", "hello")
    with contextlib.closing(follow(book)) as steps:
        assert states(next(steps)) == [("row-0", "received")]
        for file in book.folder.glob(f"{FILE_NAME}*"):
            file.unlink()
        assert isinstance(next(steps), ConfigError)
        book.write("row-1", "hello")
        assert states(next(steps)) == [("row-1", "received")]
        (book.folder / FILE_NAME).rename(book.folder / "old")
        book.write("row-2", "hello")
        assert states(next(steps)) == [("row-2", "received")]


def test_follow_sees_changes_after_the_clock_is_set_back(book: Book) -> None:
    book.write("row-0", "hello")
    now = time.time()
    follower: Any = iter(Follower(book.folder, Query(), None, wall=lambda: now))
    with contextlib.closing(follower) as steps:
        next(steps)
        now -= 3600
        book.write("row-1", "hello")
        assert states(next(steps)) == [("row-1", "received")]
        _write_at(book, "row-2", now)
        assert states(next(steps)) == [("row-2", "received")]


def test_wrong_start_of_follow_is_refused(messages: Molecule, book: Book) -> None:
    book.write("row-0", "hello")
    assert messages("list", "--follow", "--from", "nobody").code == 2
    (book.folder / FILE_NAME).write_bytes(b"not a database" * 100)
    refused = messages("list", "--follow")
    assert refused.code == 2
    assert FILE_NAME in refused.stderr


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_follow_prints_until_interrupted(environ: dict[str, str], book: Book, flags: list[str]) -> None:
    book.write("row-0", "hello")
    command = [sys.executable, "-m", "molecule_connect", "messages", "list", "--follow", *flags]
    process = subprocess.Popen(
        [*command, "--state-dir", str(book.folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
    )
    with process:
        assert process.stdout
        lines = iter(process.stdout.readline, "")
        if not flags:
            assert next(lines).startswith("ID ")
        assert "row-0" in next(lines)
        book.write("row-1", HOSTILE)
        line = next(lines)
        assert json.loads(line)["row_id"] == "row-1" if flags else line.startswith("row-1 ")
        assert line.rstrip("\n").isprintable()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr
        assert process.stderr.read() == ""


def _write_at(book: Book, row_id: str, now: float) -> None:
    async def main() -> None:
        async with Journal.open(book.folder, wall=lambda: now) as journal:
            item = Inbound(
                kind=Kind.MESSAGE, message_id=row_id, idempotency_key=row_id, row_id=row_id, fingerprint=row_id,
                parts=(TextPart("hello"),), time=round(now * 1e6), context_id=row_id,
            )  # fmt: skip
            await journal.of("ws_1").add([item], now=0)

    asyncio.run(main())
