"""When the backend fails: an unexpected error of one message affects that message only."""

import asyncio
import errno
from typing import Any

import attrs
import pytest
from tests.worker.kit import EPOCH, WORKSPACE, FakePlatform, Serving, echo, inbound

from molecule_connect import events
from molecule_connect.errors import BackendError, TransientPlatformError
from molecule_connect.journal.journal import Journal
from molecule_connect.models import Outgoing, Part, Progress, Request, Response, TextPart


@attrs.define
class Brittle(FakePlatform):
    """Raises *error* where a text says so, as often as *times*."""

    error: Exception = attrs.field(factory=lambda: ValueError("embedded null byte"))
    times: int = 1000

    def _raise_for(self, parts: tuple[Part, ...], word: str) -> None:
        if self.times and any(isinstance(part, TextPart) and word in part.text for part in parts):
            self.times -= 1
            raise self.error

    def fingerprint(self, caller_id: str | None, parts: tuple[Part, ...]) -> str | None:
        self._raise_for(parts, "no fingerprint")
        return super().fingerprint(caller_id, parts)

    async def send(self, outgoing: Outgoing) -> None:
        self._raise_for(outgoing.parts, "no sending")
        await super().send(outgoing)


async def test_unexpected_send_error_affects_one_message(journal: Journal) -> None:
    platform = Brittle(has_stream=True)
    async with Serving(platform, journal, echo) as serving:
        platform.write("no sending", caller="peer")
        platform.write("next", caller="peer")
        await platform.until(lambda: platform.answers() == ["echo: next"], seconds=5)
        (dead,) = serving.events.of(events.Dead)
        assert dead.reason == "internal error, please report it: ValueError: embedded null byte"
        [(state, error, answer)] = [row for row in serving.rows("state, error, answer") if row[0] != "done"]
        assert state == "dead"
        assert error.startswith("Traceback (most recent call last):")
        assert error.endswith("ValueError: embedded null byte\n")
        assert "echo: no sending" in answer
    async with Serving(platform, journal, echo) as serving:
        await asyncio.sleep(60)
    assert (serving.error, len(platform.sent)) == (None, 1)


async def test_error_after_a_run_affects_one_message(journal: Journal) -> None:
    platform, calls = Brittle(has_stream=True), 0

    async def handler(request: Request, progress: Progress) -> Response:
        nonlocal calls
        calls += 1
        return await echo(request, progress)

    async with Serving(platform, journal, handler) as serving:
        platform.write("no fingerprint")
        platform.write("next")
        await platform.until(lambda: platform.answers() == ["echo: next"], seconds=5)
        await asyncio.sleep(300)
        assert calls == 2
    assert serving.rows("state") == [("dead",), ("done",)]


async def test_unloadable_message_affects_no_other(journal: Journal) -> None:
    workspace = journal.of(WORKSPACE)
    await workspace.add([inbound("one", row_id="row-1"), inbound("two", row_id="row-2")], now=0)
    await journal.writer.put(lambda db: db.execute("UPDATE message SET parts='[{' WHERE row_id='row-1'").rowcount)
    platform = FakePlatform()
    async with Serving(platform, journal, echo) as serving:
        await platform.until(lambda: platform.answers() == ["echo: two"], seconds=5)
        assert serving.rows("state") == [("dead",), ("done",)]
    assert serving.error is None


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "too many open files"), RuntimeError("can't start new thread"), MemoryError()]
)
@pytest.mark.parametrize("text", ["no sending", "no fingerprint"])
async def test_resource_shortage_loses_no_waiting_message(journal: Journal, error: Exception, text: str) -> None:
    platform = Brittle(error=error, times=3)
    # A stored answer, which is stamped and sent.
    workspace = journal.of(WORKSPACE)
    await workspace.add([inbound("hi", time=round(EPOCH * 1e6))], now=0)
    answer = f'{{"is_notice": false, "parts": [{{"text": "{text}"}}], "reason": "", "usage": null}}'
    await journal.writer.put(lambda db: db.execute("UPDATE message SET answer=?", (answer,)).rowcount)
    async with Serving(platform, journal, echo) as serving:
        await platform.until(lambda: platform.answers() == [text], seconds=300)
        assert serving.events.of(events.Retrying)[0].what == "this machine"
    assert serving.rows("state") == [("done",)]


async def test_a_listener_that_fails_costs_no_message(journal: Journal) -> None:
    platform, failures = FakePlatform(), []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: failures.append(context["exception"]))

    def listen(event: events.Event) -> None:
        raise UnicodeEncodeError("utf-8", "x", 0, 1, "surrogates not allowed")

    platform.write("hi")
    async with Serving(platform, journal, echo, listener=listen) as serving:
        await platform.until(lambda: len(platform.sent) == 1)
    assert serving.error is None
    assert isinstance(failures[0], UnicodeEncodeError)


class RudeError(BackendError):
    """Cannot even say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize("asked", ["abc", [5], 10**400, float("nan"), object()])
async def test_invalid_retry_after_is_ignored(journal: Journal, asked: Any) -> None:
    platform, calls = FakePlatform(), 0

    async def handler(request: Request, progress: Progress) -> Response:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RudeError("no", retry_after=asked)
        return Response.from_text("fine")

    platform.write("hi")
    async with Serving(platform, journal, handler):
        await platform.until(lambda: platform.answers() == ["fine"], seconds=60)


async def test_unstorable_row_is_a_dead_letter(journal: Journal) -> None:
    workspace = journal.of(WORKSPACE)
    rows = [
        inbound("before", row_id="row-1"),
        inbound("bad", row_id="row-2", seq=1 << 70),
        inbound("bad", row_id="row-3", time=1 << 70),
        inbound("after", row_id="row-4"),
    ]
    stored = await workspace.add(rows, now=round(EPOCH * 1e6))
    assert [one.state for one in stored] == ["received", "dead", "dead", "received"]
    found = journal.reader.execute("SELECT kind, reason, error FROM message WHERE state='dead'").fetchall()
    for kind, reason, error in found:
        assert (kind, reason) == ("unreadable", "unreadable: it cannot be stored: OverflowError")
        assert error.startswith("Traceback ")
    assert await workspace.add(rows, now=0) == []


async def test_error_after_accepted_reply_keeps_it_accepted(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal, echo):
        platform.write("damaged later", caller="peer")
        await platform.until(lambda: len(platform.sent) == 1)
        away = TransientPlatformError("a2a: 503", operation="a2a", status=503)
        platform.fail_send = [away] * 100
        platform.write("hi", caller="peer")
        await platform.until(lambda: len(platform.fail_send) < 100)
    platform.fail_send = []
    await journal.writer.put(lambda db: db.execute("UPDATE message SET answer='[{' WHERE row_id='row-1'").rowcount)
    async with Serving(platform, journal, echo) as serving:
        await platform.until(lambda: len(platform.sent) == 2)
        await asyncio.sleep(10)
        assert serving.rows() == [("row-1", "done"), ("row-2", "done")]
