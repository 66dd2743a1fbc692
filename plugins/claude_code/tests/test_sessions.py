"""The limit on stored sessions, and which ones it evicts."""

import uuid

from molecule_connect.testing import make_request
from molecule_connect_claude_code.sessions import Session, Sessions, conversation_of


def key(caller_id: str | None, context_id: str) -> str:
    return conversation_of(make_request(caller_id=caller_id, context_id=context_id), whole_workspace=False)


async def store(sessions: Sessions, *keys: str) -> None:
    for each in keys:
        await sessions.store(each, Session(id=str(uuid.uuid4()), folder="/work"))


async def are_stored(sessions: Sessions, *keys: str) -> list[bool]:
    return [await sessions.find(each) is not None for each in keys]


async def test_caller_evicts_only_its_own_sessions() -> None:
    sessions = Sessions(lambda: None, limit=10)
    people = [key(None, f"talk {number}") for number in range(3)]
    other = key("peer-2", "talk")
    await store(sessions, *people, other)
    flood = [key("peer-1", f"talk {number}") for number in range(50)]
    await store(sessions, *flood)

    assert await are_stored(sessions, *people, other) == [True] * 4
    assert await are_stored(sessions, *flood) == [False] * 44 + [True] * 6


async def test_evicts_the_least_recently_used_session() -> None:
    sessions = Sessions(lambda: None, limit=2)
    await store(sessions, key(None, "a"), key(None, "b"), key(None, "a"), key(None, "c"))

    assert await are_stored(sessions, key(None, "a"), key(None, "b"), key(None, "c")) == [True, False, True]
