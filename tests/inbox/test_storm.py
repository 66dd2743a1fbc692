"""Readers in two processes, a worker that changes its mode, a failing platform: one answer to each message."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
from tests.inbox.test_mode import LocalSession
from tests.worker.kit import WORKSPACE, FakePlatform, Serving, open_journal

from molecule_connect.errors import ConfigError, Outcome, TransientPlatformError
from molecule_connect.inbox.inbox import ChangeSignal, Inbox
from molecule_connect.journal.journal import Journal
from molecule_connect.models import Progress, Request, Response
from molecule_connect.worker.sending import MAX_COPIES

MESSAGES = 14
# After this many sends with an unknown outcome, a reply is sent once more.
CUTS = MAX_COPIES - 1


@attrs.define
class Storm:
    """Random events around one journal."""

    folder: Path
    dice: random.Random
    platform: FakePlatform
    popped: set[str] = attrs.field(factory=set)
    cuts: int = 0

    async def backend(self, request: Request, progress: Progress) -> Response:
        await asyncio.sleep(self.dice.choice([0.1, 3, 20]))
        return Response.from_text(f"auto {request.text}")

    @asynccontextmanager
    async def reading(self, journal: Journal, serving: Serving | None = None) -> AsyncIterator[None]:
        inbox = Inbox(
            journal, {WORKSPACE: LocalSession(connection=serving.connection if serving else None)}, ChangeSignal()
        )
        task = asyncio.ensure_future(self._read(inbox))
        try:
            yield
        finally:
            task.cancel()
            (ended,) = await asyncio.gather(task, return_exceptions=True)
            await inbox.close()
        assert isinstance(ended, asyncio.CancelledError), ended

    async def _read(self, inbox: Inbox) -> None:
        while True:
            message = await inbox.wait(self.dice.choice([0, 5, 30]), hold=self.dice.choice([1, 10, 300]))
            await asyncio.sleep(self.dice.choice([0.1, 0.5, 15]))
            if message is None or self.dice.random() < 0.2:
                continue
            if self.dice.random() < 0.2:
                try:
                    if await inbox.pop(message.activity_id):
                        self.popped.add(message.text)
                except asyncio.CancelledError:
                    # It may have been committed by then.
                    self.popped.add(message.text)
                    raise
                continue
            text = f"by hand {message.text}"
            replying = asyncio.ensure_future(inbox.reply(message.activity_id, Response.from_text(text), patience=2))
            if self.dice.random() < 0.3:
                await asyncio.sleep(0)
                replying.cancel()
            outcome = (await asyncio.gather(replying, return_exceptions=True))[0]
            # The reply was too late, or the reader has left.
            assert isinstance(outcome, str | ConfigError | asyncio.CancelledError), outcome

    async def serve(self) -> None:
        """Serve for a while, as an inbox or with a backend."""
        handler = self.dice.choice([None, None, self.backend])
        grace, slots = self.dice.choice([0.0, 5.0]), self.dice.choice([1, 4])
        async with (
            open_journal(self.folder) as journal,
            Serving(self.platform, journal, handler, grace=grace, concurrency=slots) as serving,
        ):
            if handler is not None:
                await self._watch(serving)
                return
            async with self.reading(journal, serving):
                await self._watch(serving)

    async def _watch(self, serving: Serving) -> None:
        """Check for changes to the journal once a second, like the supervisor."""
        version = await serving.journal.data_version()
        for _ in range(self.dice.choice([5, 30, 100])):
            await asyncio.sleep(1)
            before, version = version, await serving.journal.data_version()
            if version != before:
                serving.connection.journal_changed()
            if self.dice.random() < 0.03 and self.cuts < CUTS:
                self.cuts += 1
                cut = TransientPlatformError("notify: cut", operation="notify", outcome=Outcome.UNKNOWN)
                self.dice.choice([self.platform.fail_send, self.platform.cut_after]).append(cut)


async def write_some(platform: FakePlatform, dice: random.Random) -> None:
    for number in range(MESSAGES):
        await asyncio.sleep(dice.choice([0, 0.2, 5, 20]))
        caller, context = dice.choice([None, None, "peer-1"]), dice.choice([None, "talk"])
        platform.write(f"m{number}", caller=caller, context=context, late=dice.choice([0, 0, 10]))


@pytest.mark.parametrize("seed", range(6))
async def test_each_message_answered_once_or_popped(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    platform = FakePlatform(send_delay=dice.choice([0, 0.3, 2]), echo_delay=dice.choice([0, 0, 3.0]))
    storm = Storm(tmp_path, dice, platform)
    writing = asyncio.ensure_future(write_some(platform, dice))
    async with open_journal(tmp_path) as elsewhere, storm.reading(elsewhere):
        for _ in range(6):
            await storm.serve()
        await writing
    async with open_journal(tmp_path) as journal, Serving(platform, journal) as serving:
        await platform.until(lambda: Counter(row[1] for row in serving.rows()) == {"done": MESSAGES}, seconds=4000)
    answered = Counter(answer.split()[-1] for answer in platform.answers())
    assert max(answered.values()) == 1
    assert set(answered) | storm.popped == {f"m{number}" for number in range(MESSAGES)}
