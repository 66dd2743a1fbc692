"""Registration: retries, the operator's card, paused and deleted workspaces."""

import asyncio
from pathlib import Path

import pytest
from tests.worker.kit import Disk, FakePlatform, Serving, open_journal

from molecule_connect import events
from molecule_connect.errors import (
    AuthError,
    ConfigError,
    PermanentPlatformError,
    PlatformError,
    TransientPlatformError,
    WorkspaceDeletedError,
)
from molecule_connect.journal.journal import Journal
from molecule_connect.models import Signal, WorkspaceInfo, WorkspaceStatus


def unavailable(retry_after: float | None = None) -> TransientPlatformError:
    return TransientPlatformError("register: 503", operation="register", status=503, retry_after=retry_after)


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_retries_passing_errors_within_seconds(journal: Journal) -> None:
    platform = FakePlatform(fail_register=[unavailable()])
    async with Serving(platform, journal) as serving:
        await platform.until(lambda: len(platform.cards) == 1, 4)
        await asyncio.sleep(1)
        assert len(platform.beats) == 1
        assert len(serving.events.of(events.Registered)) == 1
    assert [event.part for event in serving.events.of(events.Recovered)] == ["register"]


async def test_gives_up_after_five_tries(journal: Journal) -> None:
    platform = FakePlatform(fail_register=[unavailable() for _ in range(10)])
    serving = Serving(platform, journal)
    with pytest.raises(TransientPlatformError, match="503"):
        await serving.connection.run(serving.stop)
    assert len(platform.fail_register) == 5
    assert 7.5 <= now() <= 15
    assert platform.beats == []


async def test_one_of_several_keeps_trying(journal: Journal) -> None:
    platform = FakePlatform(fail_register=[unavailable() for _ in range(12)])
    async with Serving(platform, journal, patient=True) as serving:
        await platform.until(lambda: len(platform.cards) == 1, 600)
        assert now() > 60
        await asyncio.sleep(5)
        assert len(platform.beats) == 1
    hints = [event.hint for event in serving.events.of(events.Trouble) if event.part == "register"]
    assert any("without a limit" in hint for hint in hints)
    assert [event.part for event in serving.events.of(events.Recovered)] == ["register"]


@pytest.mark.parametrize(
    "error",
    [
        AuthError("register: 401", operation="register", status=401, body=""),
        *(
            PermanentPlatformError(f"register: {status} no", operation="register", status=status, body="no")
            for status in (400, 403, 404)
        ),
    ],
    ids=str,
)
async def test_one_of_several_outlasts_a_refusal(journal: Journal, error: PlatformError) -> None:
    platform = FakePlatform(fail_register=[error] * 4)
    async with Serving(platform, journal, patient=True) as serving:
        await platform.until(lambda: len(platform.cards) == 1, 30)
        assert len(serving.events.of(events.Registered)) == 1
    (trouble,) = [event for event in serving.events.of(events.Trouble) if event.part == "register"]
    assert trouble.reason == str(error)
    assert "trying again in at most a minute" in trouble.hint


async def test_one_of_several_outlasts_a_false_deletion(journal: Journal) -> None:
    platform = FakePlatform(status=WorkspaceStatus.REMOVED)
    async with Serving(platform, journal, patient=True) as serving:
        await asyncio.sleep(15)
        assert platform.cards == []
        assert "deleted" in serving.events.of(events.Trouble)[0].reason
        platform.status = WorkspaceStatus.ACTIVE
        await platform.until(lambda: len(platform.cards) == 1, 60)
    assert serving.error is None


async def test_one_of_several_believes_a_lasting_deletion(journal: Journal) -> None:
    platform = FakePlatform(status=WorkspaceStatus.REMOVED)
    serving = Serving(platform, journal, patient=True)
    with pytest.raises(WorkspaceDeletedError):
        await serving.connection.run(serving.stop)
    assert 60 <= now() <= 180
    assert platform.cards == []


class Absent(FakePlatform):
    """A platform that reports the workspace as unknown for some seconds."""

    until_seconds = float("inf")

    async def workspace(self) -> WorkspaceInfo:
        if now() < self.until_seconds:
            return WorkspaceInfo(status=WorkspaceStatus.UNKNOWN, is_absent=True)
        return await super().workspace()


async def test_does_not_create_an_unknown_workspace(journal: Journal) -> None:
    serving = Serving(platform := Absent(), journal)
    with pytest.raises(ConfigError, match="the platform has no workspace ws-1") as caught:
        await serving.connection.run(serving.stop)
    assert "--create" in caught.value.hint
    assert platform.cards == []


async def test_creates_an_unknown_workspace_on_request(journal: Journal) -> None:
    async with Serving(platform := Absent(), journal, create=True):
        await asyncio.sleep(1)
    assert len(platform.cards) == 1


@pytest.mark.parametrize("heals", [True, False])
async def test_one_of_several_unknown_workspaces_ends(journal: Journal, heals: bool) -> None:
    platform = Absent()
    platform.until_seconds = 15.0 if heals else float("inf")
    async with Serving(platform, journal, patient=True) as serving:
        await asyncio.sleep(150)
    assert isinstance(serving.error, ConfigError) is not heals
    assert bool(platform.cards) is heals


@pytest.mark.parametrize("heals", [True, False])
async def test_one_of_several_doubts_a_later_deletion(journal: Journal, heals: bool) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal, patient=True) as serving:
        await asyncio.sleep(60)
        platform.status = WorkspaceStatus.REMOVED
        platform.signal(Signal.STATUS)
        await asyncio.sleep(15)
        platform.status = WorkspaceStatus.ACTIVE if heals else WorkspaceStatus.REMOVED
        await asyncio.sleep(120)
    assert isinstance(serving.error, WorkspaceDeletedError) is not heals


async def test_one_of_several_waits_for_its_journal(tmp_path: Path) -> None:
    disk, platform = Disk(full=True), FakePlatform()
    # The cursor of another program must be stored first.
    (tmp_path / "ws-1.json").write_text('{"workspace_id": "ws-1", "last_since_id": "row-0"}')
    async with open_journal(tmp_path, disk) as journal, Serving(platform, journal, patient=True) as serving:
        await asyncio.sleep(15)
        assert {event.part for event in serving.events.of(events.Trouble)} == {"start"}
        disk.full = False
        await platform.until(lambda: len(platform.cards) == 1, 60)
    assert "start" in [event.part for event in serving.events.of(events.Recovered)]


async def test_pause_during_an_outage_is_kept(journal: Journal) -> None:
    platform = FakePlatform(fail_register=[unavailable() for _ in range(5)])
    async with Serving(platform, journal, patient=True) as serving:
        await platform.until(lambda: not platform.fail_register)
        platform.status = WorkspaceStatus.PAUSED
        await asyncio.sleep(120)
        assert len(serving.events.of(events.Paused)) == 1
        assert platform.cards == []


async def test_honors_retry_after(journal: Journal) -> None:
    platform = FakePlatform(fail_register=[unavailable(20.0)])
    async with Serving(platform, journal):
        await platform.until(lambda: len(platform.cards) == 1)
        assert now() == pytest.approx(20, abs=0.2)


@pytest.mark.parametrize(
    "error",
    [
        AuthError("register: 401", operation="register", status=401, body=""),
        PermanentPlatformError("register: 400 no", operation="register", status=400, body="no"),
    ],
    ids=str,
)
async def test_refusal_ends_a_single_workspace(journal: Journal, error: PlatformError) -> None:
    platform = FakePlatform(fail_register=[error])
    serving = Serving(platform, journal)
    with pytest.raises(type(error), match="register"):
        await serving.connection.run(serving.stop)
    assert now() == 0
    assert platform.fetches == []


async def test_stop_ends_registering_at_once(journal: Journal) -> None:
    platform = FakePlatform(fail_register=[unavailable() for _ in range(10)])
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(1)
    assert serving.error is None
    assert now() == pytest.approx(1)
    assert platform.beats == []


# The card


async def test_sends_back_the_platforms_card(journal: Journal) -> None:
    card = {"name": "The operator's", "skills": [{"id": "sing"}]}
    platform = FakePlatform(card=card)
    async with Serving(platform, journal):
        await asyncio.sleep(1)
    assert platform.cards == [card]


async def test_configured_description_and_skills_replace_the_cards(journal: Journal) -> None:
    platform = FakePlatform(card={"name": "old", "description": "", "url": "x"})
    async with Serving(platform, journal, agent_description="sings", agent_skills=("alto",)):
        await asyncio.sleep(1)
    skill = {"id": "alto", "name": "alto", "description": "", "tags": []}
    assert platform.cards == [{"name": "old", "description": "sings", "url": "x", "skills": [skill]}]


async def test_configured_name_replaces_only_the_name(journal: Journal) -> None:
    platform = FakePlatform(card={"name": "old", "skills": [1]})
    async with Serving(platform, journal, agent_name="new"):
        await asyncio.sleep(1)
    assert platform.cards == [{"name": "new", "skills": [1]}]
    assert platform.card == {"name": "old", "skills": [1]}


async def test_uses_the_workspaces_name_without_card(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal):
        await asyncio.sleep(1)
    assert platform.cards == [{"name": "ws"}]


async def test_keeps_the_card_after_a_failed_request(journal: Journal) -> None:
    platform = FakePlatform(card={"name": "kept"}, fail_look=[unavailable(), unavailable()])
    async with Serving(platform, journal):
        await platform.until(lambda: bool(platform.cards))
    assert platform.cards == [{"name": "kept"}]


async def test_registers_with_the_id_without_state_endpoint(journal: Journal) -> None:
    platform = FakePlatform(
        fail_look=[PermanentPlatformError("workspace: 404", operation="workspace", status=404, body="")] * 3
    )
    async with Serving(platform, journal):
        await asyncio.sleep(0.1)
        assert platform.cards == [{"name": "ws-1"}]


# Paused and deleted workspaces


async def test_paused_workspace_is_online_but_runs_nothing(journal: Journal) -> None:
    platform = FakePlatform(status=WorkspaceStatus.PAUSED)
    platform.write("wait", caller="peer")
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(100)
        assert platform.cards == []
        assert len(platform.beats) == 4
        assert serving.rows() == [("row-1", "received")]
        assert len(serving.events.of(events.Paused)) == 1
        platform.status = WorkspaceStatus.ACTIVE
        await platform.until(lambda: platform.answers() == ["echo: wait"], 301)
        assert len(platform.cards) == 1


async def test_unpause_registers_a_paused_workspace(journal: Journal) -> None:
    platform = FakePlatform(status=WorkspaceStatus.PAUSED)
    async with Serving(platform, journal, unpause=True):
        await asyncio.sleep(1)
        assert len(platform.cards) == 1


async def test_does_not_register_a_deleted_workspace(journal: Journal) -> None:
    platform = FakePlatform(status=WorkspaceStatus.REMOVED)
    serving = Serving(platform, journal)
    with pytest.raises(WorkspaceDeletedError):
        await serving.connection.run(serving.stop)
    assert platform.cards == []


@pytest.mark.parametrize("has_stream", [True, False])
async def test_notices_a_pause_within_five_minutes(journal: Journal, has_stream: bool) -> None:
    platform = FakePlatform(has_stream=has_stream)
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(60)
        platform.status = WorkspaceStatus.PAUSED
        platform.signal(Signal.STATUS)
        await asyncio.sleep(1 if has_stream else 301)
        assert len(serving.events.of(events.Paused)) == 1
        platform.status = WorkspaceStatus.ACTIVE
        platform.signal(Signal.STATUS)
        await asyncio.sleep(1 if has_stream else 301)
        assert len(serving.events.of(events.Resumed)) == 1
    assert len(platform.cards) == 2


async def test_notices_a_resume_within_five_minutes(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(60)
        platform.status = WorkspaceStatus.PAUSED
        platform.signal(Signal.STATUS)
        await asyncio.sleep(1)
        platform.status = WorkspaceStatus.ACTIVE
        await asyncio.sleep(301)
        assert len(serving.events.of(events.Resumed)) == 1


async def test_deletion_ends_the_run(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(60)
        platform.status = WorkspaceStatus.REMOVED
        platform.signal(Signal.STATUS)
        await serving.ended()
    assert isinstance(serving.error, WorkspaceDeletedError)
    assert now() < 65


async def test_failed_check_changes_nothing(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(60)
        platform.fail_look = [unavailable()]
        platform.signal(Signal.STATUS)
        await asyncio.sleep(1)
        assert platform.fail_look == []
        assert serving.events.of(events.Paused) == []
