"""Every member of both clients over real HTTP, against both generations of the platform."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from molecule_connect import (
    ArchiveError,
    AuthError,
    PermanentPlatformError,
    TransientPlatformError,
    WorkspaceDeletedError,
)
from molecule_connect_sandbox.testing import Sandbox, Workspace

from .kit import Twin


@attrs.frozen
class Field:
    """A sandbox, two workspaces that may write to each other, and what is asked of it in passing."""

    sandbox: Sandbox
    me: Workspace
    peer: Workspace
    runner: asyncio.Runner

    def do(self, work: Any) -> Any:
        return self.runner.run(work)


@pytest.fixture(params=["2026-05", "2026-08"], scope="module")
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox.in_thread(platform=request.param) as running:
        yield running


@pytest.fixture
def field(sandbox: Sandbox) -> Iterator[Field]:
    with asyncio.Runner() as runner:
        peer, me = runner.run(sandbox.pair())
        yield Field(sandbox, me, peer, runner)
        runner.run(sandbox.faults())


@pytest.fixture(params=["blocking", "async"])
def agent(request: pytest.FixtureRequest, field: Field, tmp_path: Path) -> Iterator[Twin]:
    twin = Twin(
        request.param == "async",
        workspace_id=field.me.id,
        platform_url=f"{field.sandbox.url}/",
        token=field.me.token,
        token_dir=tmp_path / "agent",
    )
    yield twin
    twin.end()


def texts(messages: Any) -> list[str]:
    return [message.text for message in messages]


def test_registers_heartbeats_and_reads_state(agent: Twin, field: Field) -> None:
    assert agent.register() == field.me.token
    agent.heartbeat("thinking", 1)

    state = agent.poll_state()
    assert (state.workspace_id, state.status, state.should_stop) == (field.me.id, "online", False)
    (beat,) = field.do(field.sandbox.beats(field.me, 1))
    assert (beat["current_task"], beat["active_tasks"]) == ("thinking", 1)


def test_new_workspace_gets_working_token(field: Field, tmp_path: Path) -> None:
    new = "6f1c2b1e-8a44-4a53-9d0e-1f6a2f9b7c10"
    twin = Twin(False, workspace_id=new, platform_url=field.sandbox.url, token=None, token_dir=tmp_path)
    try:
        token = twin.register()
        assert token
        assert twin.register() == token
        assert twin.poll_state().status == "online"
    finally:
        twin.end()


def test_a_deleted_workspace_is_not_registered_again(agent: Twin, field: Field) -> None:
    agent.save_token(field.me.token)
    field.do(field.sandbox.delete(field.me))
    with pytest.raises(WorkspaceDeletedError):
        agent.register()

    assert agent.load_token() == agent.token_file.read_text().strip() == field.me.token


def test_secrets_are_pulled(agent: Twin, field: Field) -> None:
    assert agent.pull_secrets() == {}
    field.do(field.sandbox.set_secrets(field.me, KEY="value"))

    assert agent.pull_secrets() == {"KEY": "value"}


def test_pause_and_deletion_end_loop(agent: Twin, field: Field) -> None:
    assert agent.run_heartbeat_loop(1) == "max_iterations"
    field.do(field.sandbox.pause(field.me))
    assert agent.run_heartbeat_loop() == "paused"
    field.do(field.sandbox.delete(field.me))
    assert agent.run_heartbeat_loop() == "removed"
    with pytest.raises(AuthError):
        agent.pull_secrets()


def test_a_peer_is_found_and_asked(agent: Twin, field: Field) -> None:
    assert field.peer.id in [peer.id for peer in agent.get_peers()]
    assert agent.discover_peer(field.peer.id) is None

    answer = agent.call_peer(field.peer.id, "hello", context_id="c1", message_id="m1")
    assert agent.is_queued(answer)
    (row,) = field.do(field.sandbox.rows(field.peer, 1))
    message = row["request_body"]["params"]["message"]
    assert (row["source_id"], message["role"], message["messageId"]) == (field.me.id, "user", "m1")


def test_a_stranger_may_not_be_asked(agent: Twin, field: Field) -> None:
    parent = field.do(field.sandbox.workspace("stranger"))
    stranger = field.do(field.sandbox.workspace("child of stranger", parent=parent))
    for member in (agent.discover_peer, lambda peer: agent.call_peer(peer, "hello")):
        with pytest.raises(PermanentPlatformError, match="403"):
            member(stranger.id)


def test_same_key_delegates_once(agent: Twin, field: Field) -> None:
    first = agent.delegate(field.peer.id, "summarise", idempotency_key="k")
    second = agent.delegate(field.peer.id, "summarise", idempotency_key="k")

    assert first.id == second.id
    assert [(one.id, one.target_id) for one in agent.delegations()] == [(first.id, field.peer.id)]
    field.do(field.sandbox.rows(field.peer, 1))
    assert agent.delegations()[0].is_queued


def test_notifies_person_with_file(agent: Twin, field: Field, tmp_path: Path) -> None:
    path = tmp_path / "report.txt"
    path.write_text("all green")
    agent.notify("here it is", [path])

    (answer,) = field.do(field.sandbox.answers(field.me, 1))
    assert (answer.to, answer.text) == (None, "here it is")
    (part,) = answer.message["parts"]
    assert (part["file"]["name"], part["file"]["size"]) == ("report.txt", 9)


def test_messages_are_read_and_replied_to(agent: Twin, field: Field) -> None:
    field.do(field.sandbox.say(field.me, "from a person"))
    field.do(field.sandbox.say(field.me, "from a peer", sender=field.peer, contextId="c1"))
    field.do(field.sandbox.rows(field.me, 2))
    messages = agent.activity(follow=False)
    for message in messages:
        agent.reply(message, f"re: {message.text}")

    assert [(one.text, one.caller_id) for one in messages] == [
        ("from a person", None),
        ("from a peer", field.peer.id),
    ]
    (person,) = [one for one in field.do(field.sandbox.answers(field.me, 1)) if one.to is None]
    assert person.text == "re: from a person"
    (row,) = field.do(field.sandbox.rows(field.peer, 1))
    sent = row["request_body"]["params"]["message"]
    assert (sent["role"], sent["contextId"]) == ("agent", "c1")
    assert sent["metadata"]["molecule"] == {"in_reply_to": messages[1].message_id, "auto": True}


def test_reply_arrives_as_answer_without_reply(agent: Twin, field: Field, tmp_path: Path) -> None:
    other = Twin(
        False,
        workspace_id=field.peer.id,
        platform_url=field.sandbox.url,
        token=field.peer.token,
        token_dir=tmp_path / "peer",
    )
    try:
        agent.call_peer(field.peer.id, "how are you?", message_id="question")
        field.do(field.sandbox.rows(field.peer, 1))
        (question,) = other.activity(follow=False)
        other.reply(question, "well")
        field.do(field.sandbox.rows(field.me, 1))
        (answer,) = agent.activity(follow=False)
    finally:
        other.end()

    assert (answer.kind, answer.text, answer.in_reply_to) == ("answer", "well", "question")
    with pytest.raises(ValueError, match="answer"):
        agent.reply(answer, "thank you")


@pytest.mark.parametrize("name", ["hello", "links", "failing-setup"])
def test_a_good_plugin_is_installed(agent: Twin, name: str) -> None:
    assert (agent.install_plugin(name, run_setup_sh=True) / "plugin.yaml").is_file()


@pytest.mark.parametrize("name", ["hostile-escape", "hostile-absolute", "hostile-device", "broken", "not-a-tarball"])
def test_a_hostile_plugin_is_not(agent: Twin, name: str) -> None:
    with pytest.raises(ArchiveError):
        agent.install_plugin(name)

    assert not (agent.plugins_dir / name).exists()


@pytest.mark.parametrize("fault", ["rate-limited=1,times=2", "unavailable=1,times=2", "bare-status=502,times=2"])
def test_what_passes_is_waited_for(agent: Twin, field: Field, fault: str) -> None:
    field.do(field.sandbox.faults(fault))

    assert agent.poll_state().workspace_id == field.me.id
    assert len(agent.waits) >= 2


@pytest.mark.parametrize("fault", ["cut-before", "cut-after", "cut-short", "html"])
def test_errors_have_a_hint(agent: Twin, field: Field, fault: str) -> None:
    field.do(field.sandbox.faults(fault))
    with pytest.raises(TransientPlatformError) as caught:
        agent.get_peers()

    assert caught.value.hint


def test_hosted_platform_gets_its_headers(field: Field, agent: Twin) -> None:
    field.do(field.sandbox.faults("origin-required"))

    assert agent.poll_state().workspace_id == field.me.id
