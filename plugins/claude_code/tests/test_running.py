"""``session=running``: the backend leaves its messages to the inbox, and says what the operator has to do."""

import pytest

from molecule_connect import InboxBackend, OptionError, create_backend
from molecule_connect_claude_code import ClaudeCodeBackend
from molecule_connect_claude_code.running import RunningSession


def test_an_open_session_takes_the_messages_from_the_inbox() -> None:
    backend = create_backend("claude-code", {"session": "running"})
    assert isinstance(backend, InboxBackend)
    assert "claude mcp add molecule" in backend.advice
    assert "-e WORKSPACE_ID=" in backend.advice


@pytest.mark.parametrize("session", ["lane", "workspace", "none"])
def test_every_other_session_answers_by_itself(session: str) -> None:
    assert isinstance(create_backend("claude-code", {"session": session}), ClaudeCodeBackend)


def test_options_that_the_open_session_would_not_heed_are_refused() -> None:
    with pytest.raises(OptionError, match="not the option allowed_tools, model") as refused:
        create_backend("claude-code", {"session": "running", "model": "opus", "allowed_tools": "Edit", "effort": ""})
    assert "leave out" in refused.value.hint


def test_without_its_server_it_is_not_ready_and_says_what_to_install() -> None:
    class Bare(RunningSession):
        server = "no-such-distribution"

    (problem,) = Bare().check()
    assert "python -m pip install no-such-distribution" in problem
