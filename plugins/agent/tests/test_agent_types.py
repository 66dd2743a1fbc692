"""The types of the clients for agents are told in full: nothing in them is Any. mypy reads ``agent_program``."""

import inspect
import typing
from collections.abc import Iterator
from typing import Any

import attrs
import pytest

from molecule_connect_agent import (
    AsyncRemoteAgentClient,
    Delegation,
    Message,
    PeerInfo,
    RemoteAgentClient,
    WorkspaceState,
)

CLIENTS = (RemoteAgentClient, AsyncRemoteAgentClient)


def members(client: type) -> dict[str, Any]:
    """The public methods and properties of a client, with its construction."""
    found = dict(inspect.getmembers(client, lambda member: callable(member) or isinstance(member, property)))
    return {
        name: member.fget if isinstance(member, property) else member
        for name, member in found.items()
        if name == "__init__" or not name.startswith("_")
    }


def parts(hint: Any) -> Iterator[Any]:
    yield hint
    for argument in typing.get_args(hint):
        yield from (part for one in (argument if isinstance(argument, list) else [argument]) for part in parts(one))


@pytest.mark.parametrize("client", CLIENTS)
def test_no_member_takes_or_gives_any(client: type) -> None:
    for name, member in members(client).items():
        hints = typing.get_type_hints(member)
        assert "return" in hints, name
        assert Any not in [part for hint in hints.values() for part in parts(hint)], name


@pytest.mark.parametrize("value", [Delegation, Message, PeerInfo, WorkspaceState])
def test_no_value_holds_any(value: type) -> None:
    hints = [field.type for field in attrs.fields(attrs.resolve_types(value))]

    assert Any not in [part for hint in hints for part in parts(hint)]


def test_both_clients_have_the_same_signatures() -> None:
    blocking, other = (members(client) for client in CLIENTS)
    assert set(blocking) - {"close"} == set(other) - {"aclose"}
    for name in set(blocking) - {"close"}:
        first, second = (inspect.signature(each[name]).parameters for each in (blocking, other))
        assert list(first) == list(second), name
        for parameter in set(first) - {"self", "transport", "sleep"}:
            assert first[parameter] == second[parameter], f"{name}: {parameter}"


@pytest.mark.parametrize("client", CLIENTS)
def test_every_public_member_says_what_it_does(client: type) -> None:
    assert [name for name, member in members(client).items() if name != "__init__" and not member.__doc__] == []
