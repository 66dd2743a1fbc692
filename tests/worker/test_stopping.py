"""Stopping: running messages finish within the grace period, no task remains, no message is lost."""

import asyncio
import contextlib
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from tests.worker.kit import WORKSPACE, Disk, FakePlatform, Serving, echo, open_journal

from molecule_connect import events
from molecule_connect.errors import BackendError, TransientPlatformError
from molecule_connect.journal.journal import Journal
from molecule_connect.mirrors import Lease
from molecule_connect.models import Outgoing, Page, Progress, Request, Response, WorkspaceStatus
from molecule_connect.worker.sharing import Gate as LeaseGate
from molecule_connect.worker.sharing import Seat, SeatGate
from molecule_connect.worker.worker import Worker


@attrs.define
class Gate:
    """A point that a test waits for, and then releases."""

    reached: asyncio.Event = attrs.field(factory=asyncio.Event)
    open: asyncio.Event = attrs.field(factory=asyncio.Event)

    async def pass_through(self) -> None:
        self.reached.set()
        await self.open.wait()


@attrs.define
class GatedPlatform(FakePlatform):
    """A platform whose requests the test holds up."""

    fetching: Gate | None = None
    sending: Gate | None = None
    registering: Gate | None = None
    beating: Gate | None = None

    async def fetch(self, **given: Any) -> Page:
        if self.fetching is not None:
            await self.fetching.pass_through()
        return await super().fetch(**given)

    async def send(self, outgoing: Outgoing) -> None:
        if self.sending is not None:
            await self.sending.pass_through()
        await super().send(outgoing)

    async def register(self, card: dict[str, Any]) -> str:
        if self.registering is not None:
            await self.registering.pass_through()
        return await super().register(card)

    async def heartbeat(self, presence: Any) -> None:
        if self.beating is not None and presence.wedged == "stopped":
            await self.beating.pass_through()
        await super().heartbeat(presence)


async def stopped(serving: Serving) -> float:
    """Stop, and return how long it took."""
    began = asyncio.get_running_loop().time()
    serving.stop.set()
    await serving.ended()
    return asyncio.get_running_loop().time() - began


@attrs.define
class Slow:
    """A backend that answers once it is released."""

    gate: Gate = attrs.field(factory=Gate)
    calls: list[str] = attrs.field(factory=list)

    async def __call__(self, request: Request, progress: Progress) -> Response:
        self.calls.append(request.text)
        await self.gate.pass_through()
        return Response.from_text(request.text)


async def test_ends_at_once_while_registering(journal: Journal) -> None:
    platform = GatedPlatform(registering=Gate())
    async with Serving(platform, journal) as serving:
        assert platform.registering is not None
        await platform.registering.reached.wait()
        assert await stopped(serving) == 0
    assert serving.error is None
    assert platform.beats == []


async def test_does_not_wait_for_a_read(journal: Journal) -> None:
    platform = GatedPlatform(fetching=Gate())
    platform.write("hi")
    async with Serving(platform, journal) as serving:
        assert platform.fetching is not None
        await platform.fetching.reached.wait()
        assert await stopped(serving) == 0
    assert serving.rows() == []


async def test_handles_nothing_before_it_is_registered(journal: Journal) -> None:
    platform, backend = GatedPlatform(), Slow()
    platform.write("first")
    async with Serving(platform, journal):
        await asyncio.sleep(600)
    platform.write("second")
    async with Serving(platform, journal, backend, grace=0):
        await backend.gate.reached.wait()
    backend.gate.open.set()
    platform.registering = Gate()
    async with Serving(platform, journal, backend) as serving:
        await platform.registering.reached.wait()
        # During the start, a program changes the journal, and the machine sleeps.
        serving.connection.journal_changed()
        serving.connection.clock_jumped()
        await stopped(serving)
        await asyncio.sleep(1)
    assert platform.answers() == ["echo: first"]
    assert serving.rows() == [("row-1", "done"), ("row-3", "received")]


async def test_does_not_start_messages_that_wait(journal: Journal) -> None:
    platform, backend = FakePlatform(), Slow()
    for number in range(4):
        platform.write(str(number), context=f"talk-{number}", age=4 - number)
    async with Serving(platform, journal, backend, concurrency=1) as serving:
        await backend.gate.reached.wait()
        serving.stop.set()
        await asyncio.sleep(1)
        backend.gate.open.set()
    assert backend.calls == ["0"]
    assert platform.answers() == ["0"]
    assert serving.rows("state, attempt") == [("done", 1)] + [("received", 0)] * 3


async def test_does_not_wait_for_an_open_circuit(journal: Journal) -> None:
    async def handler(request: Request, progress: Progress) -> Response:
        raise BackendError("the model is out")

    platform = FakePlatform()
    for number in range(20):
        platform.write(str(number), context=f"talk-{number}")
    async with Serving(platform, journal, handler) as serving:
        await asyncio.sleep(60)
        assert serving.connection._dispatcher.active == 20
        assert await stopped(serving) < 1
    assert {state for _, state in serving.rows()} == {"received"}


async def test_does_not_start_the_next_message(journal: Journal) -> None:
    platform, backend = FakePlatform(), Slow()
    platform.write("first", age=1)
    platform.write("second")
    async with Serving(platform, journal, backend) as serving:
        await backend.gate.reached.wait()
        serving.stop.set()
        asyncio.get_running_loop().call_later(1, backend.gate.open.set)
    assert (backend.calls, platform.answers()) == (["first"], ["first"])
    assert serving.rows() == [("row-1", "done"), ("row-2", "received")]


async def test_late_row_does_not_shorten_the_grace(journal: Journal) -> None:
    platform, backend = FakePlatform(has_stream=True), Slow()
    async with Serving(platform, journal, backend) as serving:
        platform.write("late", late=20)
        await asyncio.sleep(1)
        platform.write("running")
        await asyncio.sleep(40)
        assert [state for _, state in serving.rows()] == ["running", "received"]
        serving.stop.set()
        asyncio.get_running_loop().call_later(5, backend.gate.open.set)
    assert (backend.calls, platform.answers()) == (["running"], ["running"])


async def test_finishes_a_send_in_progress(journal: Journal) -> None:
    platform = GatedPlatform(sending=Gate())
    platform.write("hi")
    async with Serving(platform, journal) as serving:
        assert platform.sending is not None
        await platform.sending.reached.wait()
        serving.stop.set()
        asyncio.get_running_loop().call_later(5, platform.sending.open.set)
    assert serving.rows() == [("row-1", "done")]


async def test_send_is_not_cut_off_at_the_end_of_the_grace(journal: Journal) -> None:
    platform = GatedPlatform(sending=(sending := Gate()))
    platform.write("hi", caller="peer")
    async with Serving(platform, journal, grace=5.0) as serving:
        await sending.reached.wait()
        asyncio.get_running_loop().call_later(6, sending.open.set)
        assert await stopped(serving) < 7
    assert serving.rows() == [("row-1", "done")]


async def test_nothing_is_sent_after_the_end(journal: Journal) -> None:
    async def stubborn(request: Request, progress: Progress) -> Response:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        return await echo(request, progress)

    platform = GatedPlatform(sending=(sending := Gate()))
    platform.write("hi", caller="peer")
    async with Serving(platform, journal, stubborn, grace=0.0) as serving:
        await platform.until(lambda: bool(serving.events.of(events.Started)))
        await stopped(serving)
        assert sending.reached.is_set()
        sending.open.set()
        await asyncio.sleep(1)
    assert platform.sent == []
    assert serving.rows() == [("row-1", "answered")]


async def test_shared_workspace_ends_once_its_sends_are_stored(tmp_path: Path) -> None:
    # Another machine continues with what is stored when this one has ended.
    async def slow(request: Request, progress: Progress) -> Response:
        while request.text == "slow":
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(20)
                break
        return await echo(request, progress)

    disk, seat = Disk(), Seat(WORKSPACE)
    gate = LeaseGate(asyncio.get_running_loop().time)
    gate.open_until(1000)
    seat.grant(Lease(workspace_id=WORKSPACE, epoch=1, commits=0), 0.0)
    async with open_journal(tmp_path, disk) as journal:
        platform = GatedPlatform(sending=(sending := Gate()))
        platform.write("hi", caller="peer")
        platform.write("slow", caller="slow")
        async with Serving(platform, journal, slow, grace=0, gate=SeatGate(gate, seat)) as serving:
            await sending.reached.wait()
            disk.full = True
            sending.open.set()
            await platform.until(lambda: bool(platform.sent))
            asyncio.get_running_loop().call_later(30, setattr, disk, "full", False)
            assert 30 <= await stopped(serving) < 40
            assert serving.rows()[0] == ("row-1", "done")


async def test_sends_an_unsent_reply_after_restart(
    journal: Journal,
) -> None:
    platform, backend = GatedPlatform(sending=Gate()), Slow()
    backend.gate.open.set()
    platform.write("hi", caller="peer-1")
    async with Serving(platform, journal, backend, grace=2.0) as serving:
        assert platform.sending is not None
        await platform.sending.reached.wait()
        assert await stopped(serving) < 2 + 8
    assert serving.rows() == [("row-1", "answered")]
    platform.sending = None
    async with Serving(platform, journal, backend) as serving:
        await asyncio.sleep(10)
    assert (backend.calls, platform.answers()) == (["hi"], ["hi"])
    assert serving.rows() == [("row-1", "done")]


@pytest.mark.parametrize("behaves", ["returns late", "raises", "fails to end"])
async def test_cancelled_attempts_do_not_count(journal: Journal, behaves: str) -> None:
    platform, entered, release = FakePlatform(), asyncio.Event(), asyncio.Event()

    async def handler(request: Request, progress: Progress) -> Response:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if behaves == "raises":
                raise BackendError("cut short", retryable=False) from None
            while behaves == "fails to end" and not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue
        return Response.from_text("late")

    platform.write("hi")
    async with Serving(platform, journal, handler, grace=3.0) as serving:
        await entered.wait()
        assert 3 <= await stopped(serving) <= 3 + 8
    expected = [("done", 1, 0)] if behaves == "returns late" else [("received", 0, 0)]
    assert serving.rows("state, attempt, interruptions") == expected
    release.set()
    await asyncio.sleep(1)
    assert serving.rows("state, attempt, interruptions") == expected


@pytest.mark.parametrize("behaves", ["cancelled", "fails", "answers"])
async def test_backend_may_end_after_the_journal_closed(tmp_path: Path, behaves: str) -> None:
    platform, backend, told = FakePlatform(), Slow(), list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

    async def handler(request: Request, progress: Progress) -> Response:
        try:
            return await backend(request, progress)
        except asyncio.CancelledError:
            await asyncio.sleep(60)
            if behaves == "fails":
                raise BackendError("cut short") from None
            if behaves == "answers":
                return Response.from_text("late")
            raise

    platform.write("hi")
    async with open_journal(tmp_path) as journal, Serving(platform, journal, handler, grace=0.0) as serving:
        await backend.gate.reached.wait()
        await stopped(serving)
        assert serving.rows("state, attempt, interruptions") == [("received", 0, 0)]
    await asyncio.sleep(120)
    del serving
    gc.collect()
    assert told == []


async def test_ends_in_time_although_everything_is_slow(journal: Journal) -> None:
    platform, backend = GatedPlatform(beating=Gate(), sending=Gate()), Slow()
    platform.write("runs", caller="peer-1")
    platform.write("sends", caller="peer-2")
    async with Serving(platform, journal, backend, grace=20.0) as serving:
        await backend.gate.reached.wait()
        assert await stopped(serving) <= 28
    assert {state for _, state in serving.rows()} == {"received"}


async def test_grace_of_zero_cancels_at_once(journal: Journal) -> None:
    platform, backend = FakePlatform(), Slow()
    for number in range(5):
        platform.write(str(number), caller=f"peer-{number}")
    async with Serving(platform, journal, backend, grace=0.0) as serving:
        await backend.gate.reached.wait()
        assert await stopped(serving) <= 3
    assert serving.rows("state, attempt, interruptions") == [("received", 0, 0)] * 5


async def test_sends_heartbeats_while_draining(journal: Journal) -> None:
    platform, backend = FakePlatform(), Slow()
    platform.write("hi")
    async with Serving(platform, journal, backend, grace=100.0) as serving:
        await backend.gate.reached.wait()
        serving.stop.set()
        asyncio.get_running_loop().call_later(95, backend.gate.open.set)
        await asyncio.sleep(91)
        assert len(platform.beats) == 4
    assert [beat.wedged for beat in platform.beats] == [""] * 4 + ["stopped"]
    (stopping,) = serving.events.of(events.Stopping)
    assert (stopping.running, stopping.grace) == (1, 100.0)


async def test_deleted_workspace_ends_without_grace(journal: Journal) -> None:
    platform, backend = FakePlatform(), Slow()
    platform.write("hi")
    async with Serving(platform, journal, backend) as serving:
        await backend.gate.reached.wait()
        platform.status = WorkspaceStatus.REMOVED
        serving.connection._registration.check_soon()
        began = asyncio.get_running_loop().time()
        await serving.ended()
        assert asyncio.get_running_loop().time() - began < 5
    assert type(serving.error).__name__ == "WorkspaceDeletedError"
    assert serving.rows() == [("row-1", "received")]


async def scenario(
    folder: Path, *, newer: bool, stop_when: Callable[[FakePlatform, Serving], Any]
) -> tuple[FakePlatform, list[tuple[str, int]]]:
    """Several conversations, a stop at a given moment, and a second start with enough time."""
    platform, calls = FakePlatform(newer=newer, has_stream=True), []
    for number in range(3):
        platform.write(f"person {number}", context=f"talk-{number % 2}", age=9 - number)
        platform.write(f"peer {number}", caller="peer-1", context=f"talk-{number}", age=5 - number)
    platform.fail_send = [TransientPlatformError("a2a: 503", operation="a2a", status=503)]

    async def handler(request: Request, progress: Progress) -> Response:
        calls.append((request.text, request.attempt))
        await asyncio.sleep(0)
        if request.text == "peer 1" and request.attempt == 1:
            raise BackendError("not yet")
        await asyncio.sleep(0)
        return Response.from_text(request.text)

    async with open_journal(folder) as journal:
        async with Serving(platform, journal, handler, grace=0.0) as serving:
            await stop_when(platform, serving)
            await stopped(serving)
        assert "running" not in {state for _, state in serving.rows()}
        assert {row[0] for row in serving.rows("interruptions")} <= {0}
    async with open_journal(folder) as journal, Serving(platform, journal, handler) as serving:
        await asyncio.sleep(30)
        assert {state for _, state in serving.rows()} == {"done"}
        assert serving.journal.of(WORKSPACE).waiting() == 0
    return platform, calls


@pytest.mark.parametrize("newer", [True, False])
async def test_any_step_answers_each_message_once(tmp_path: Path, newer: bool) -> None:
    for steps in range(0 if newer else 3, 108, 6):

        async def after_steps(platform: FakePlatform, serving: Serving, steps: int = steps) -> None:
            for _ in range(steps):
                await asyncio.sleep(0)

        folder = tmp_path / str(steps)
        folder.mkdir()
        platform, _ = await scenario(folder, newer=newer, stop_when=after_steps)
        wanted = sorted([f"person {number}" for number in range(3)] + [f"peer {number}" for number in range(3)])
        assert sorted(platform.answers()) == wanted, f"stopped after {steps} steps"
        people = [text for text in platform.answers() if text in ("person 0", "person 2")]
        assert people == ["person 0", "person 2"]


async def test_cancellation_drains_like_a_stop(journal: Journal) -> None:
    platform, backend = FakePlatform(), Slow()
    platform.write("hi")
    serving = Serving(platform, journal, backend)
    connection: Worker = serving.connection
    task = asyncio.ensure_future(connection.run(serving.stop))
    await backend.gate.reached.wait()
    task.cancel()
    asyncio.get_running_loop().call_later(5, backend.gate.open.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert platform.answers() == ["hi"]
    assert serving.rows() == [("row-1", "done")]


# --once


async def test_once_waits_for_retries(journal: Journal) -> None:
    platform, tries = FakePlatform(), []

    async def handler(request: Request, progress: Progress) -> Response:
        tries.append(request.text)
        if len(tries) < 3:
            raise BackendError("not yet")
        return await echo(request, progress)

    platform.write("hi")
    async with Serving(platform, journal, handler, once=True) as serving:
        await serving.ended()
    assert platform.answers() == ["echo: hi"]


async def test_once_ends_after_an_empty_read(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal, once=True) as serving:
        await serving.ended()
    assert 1 <= len(platform.fetches) <= 2
    assert platform.beats[-1].wedged == "stopped"


async def test_once_retries_the_read_and_answers_all(journal: Journal) -> None:
    platform = FakePlatform()
    platform.fail_fetch = [TransientPlatformError("activity: 503", operation="activity", status=503)] * 3
    for number in range(150):
        platform.write(str(number), context=f"talk-{number}", age=10)
    async with Serving(platform, journal, once=True) as serving:
        await serving.ended()
    assert len(platform.sent) == 150
    assert {state for _, state in serving.rows()} == {"done"}


async def test_once_ends_although_a_peer_keeps_writing(journal: Journal) -> None:
    platform = FakePlatform()

    async def handler(request: Request, progress: Progress) -> Response:
        platform.write("more", caller="peer-1", context=f"after {len(platform.rows)}")
        await asyncio.sleep(10)
        return await echo(request, progress)

    platform.write("hi")
    platform.write("hi", caller="peer-1", context="talk")
    async with Serving(platform, journal, handler, once=True) as serving:
        await serving.ended()
    assert platform.answers() == ["echo: hi", "echo: hi"]


async def test_once_leaves_messages_deferred_for_hours(journal: Journal) -> None:
    platform = FakePlatform()

    async def handler(request: Request, progress: Progress) -> Response:
        if request.caller_id is not None:
            raise BackendError("not before tomorrow", retry_after=3600.0)
        await asyncio.sleep(60)
        return await echo(request, progress)

    platform.write("hi")
    platform.write("hi", caller="peer-1")
    async with Serving(platform, journal, handler, once=True) as serving:
        await serving.ended()
    assert platform.answers() == ["echo: hi"]
    assert [state for _, state in serving.rows()] == ["done", "received"]


async def test_once_ends_with_a_dead_letter(journal: Journal) -> None:
    async def handler(request: Request, progress: Progress) -> Response:
        raise BackendError("no", retryable=False)

    platform = FakePlatform()
    platform.write("hi")
    async with Serving(platform, journal, handler, once=True) as serving:
        await serving.ended()
    assert serving.rows() == [("row-1", "dead")]
    assert len(platform.sent) == 1
