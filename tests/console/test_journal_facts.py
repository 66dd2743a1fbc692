"""What the live view reads from the journal."""

from pathlib import Path

from tests.worker.kit import EPOCH, WORKSPACE, FakePlatform, Serving

from molecule_connect.console.journal_facts import read_facts
from molecule_connect.errors import BackendError
from molecule_connect.journal import inspect
from molecule_connect.journal.inspect import Inspection
from molecule_connect.journal.journal import Journal
from molecule_connect.models import Progress, Request, Response


async def handler(request: Request, progress: Progress) -> Response:
    if request.text == "fail":
        raise BackendError("cannot", retryable=False)
    return Response.from_text("fine")


def test_no_journal_is_no_problem(tmp_path: Path) -> None:
    assert read_facts(tmp_path, ["ws"], new=["ws"], failed=[], wall=EPOCH) is None
    (tmp_path / "journal.sqlite3").write_bytes(b"not a database" * 100)
    assert read_facts(tmp_path, ["ws"], new=["ws"], failed=[], wall=EPOCH) is None


async def test_reads_sums_names_and_messages(journal: Journal, tmp_path: Path) -> None:
    platform = FakePlatform(listed={"peer-a": "Ops"})
    platform.write("fail", row_id="one")
    platform.write("hello", row_id="two", caller="peer-a")
    async with Serving(platform, journal, handler) as serving:
        await platform.until(lambda: sorted(serving.rows()) == [("one", "dead"), ("two", "done")])
        await platform.until(lambda: bool(journal.of(WORKSPACE).peer_names()))
        wall = serving.clock()
    facts = read_facts(tmp_path, [WORKSPACE], new=[WORKSPACE], failed=[(WORKSPACE, "one")], wall=wall)

    assert facts is not None
    assert (facts.totals[WORKSPACE].handled, facts.totals[WORKSPACE].failed) == (1, 1)
    assert facts.names == {WORKSPACE: {"peer-a": "Ops"}}
    assert {message.row_id for message in facts.messages} == {"one", "two"}
    assert facts.gone == []


async def test_notices_discarded_dead_letters(journal: Journal, tmp_path: Path) -> None:
    platform = FakePlatform()
    platform.write("fail", row_id="one")
    async with Serving(platform, journal, handler) as serving:
        await platform.until(lambda: serving.rows() == [("one", "dead")])
    with Inspection.open(tmp_path) as looked:
        inspect.drop(tmp_path, [looked.find("one")], EPOCH)
    shown = [(WORKSPACE, "one"), (WORKSPACE, "pruned")]
    facts = read_facts(tmp_path, [WORKSPACE], new=[], failed=shown, wall=EPOCH)

    assert facts is not None
    assert facts.gone == shown
