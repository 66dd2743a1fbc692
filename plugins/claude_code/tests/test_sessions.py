"""Which sessions are kept, and which are given up when there are too many."""

import uuid

from molecule_connect.testing import make_request
from molecule_connect_claude_code.sessions import Session, Sessions, conversation_of


def key(caller_id: str | None, context_id: str) -> str:
    return conversation_of(make_request(caller_id=caller_id, context_id=context_id), whole_workspace=False)


async def keep(sessions: Sessions, *keys: str) -> None:
    for each in keys:
        await sessions.keep(each, Session(id=str(uuid.uuid4()), folder="/work"))


async def known(sessions: Sessions, *keys: str) -> list[bool]:
    return [await sessions.find(each) is not None for each in keys]


async def test_a_peer_with_many_conversations_evicts_only_its_own() -> None:
    sessions = Sessions(lambda: None, most=10)
    people = [key(None, f"talk {number}") for number in range(3)]
    other = key("peer-2", "talk")
    await keep(sessions, *people, other)
    flood = [key("peer-1", f"talk {number}") for number in range(50)]
    await keep(sessions, *flood)

    assert await known(sessions, *people, other) == [True] * 4
    assert await known(sessions, *flood) == [False] * 44 + [True] * 6


async def test_among_conversations_of_one_caller_the_least_recent_goes() -> None:
    sessions = Sessions(lambda: None, most=2)
    await keep(sessions, key(None, "a"), key(None, "b"), key(None, "a"), key(None, "c"))

    assert await known(sessions, key(None, "a"), key(None, "b"), key(None, "c")) == [True, False, True]
