"""``session=running`` leaves messages to the inbox and explains how to have them read."""

import pytest

from molecule_connect import InboxBackend, OptionError, create_backend
from molecule_connect_claude_code import ClaudeCodeBackend
from molecule_connect_claude_code.factory import OpenSession


def test_open_session_leaves_messages_to_the_inbox() -> None:
    backend = create_backend("claude-code", {"session": "running"})
    assert isinstance(backend, InboxBackend)
    assert "claude mcp add molecule" in backend.advice
    assert "-e WORKSPACE_ID=" in backend.advice


@pytest.mark.parametrize("session", ["lane", "workspace", "none"])
def test_other_sessions_use_the_backend(session: str) -> None:
    assert isinstance(create_backend("claude-code", {"session": session}), ClaudeCodeBackend)


def test_open_session_rejects_other_options() -> None:
    with pytest.raises(OptionError, match="other options: allowed_tools, model") as refused:
        create_backend("claude-code", {"session": "running", "model": "opus", "allowed_tools": "Edit", "effort": ""})
    assert "leave out" in refused.value.hint


def test_check_requires_the_mcp_server() -> None:
    class NoServer(OpenSession):
        server = "no-such-distribution"

    (problem,) = NoServer().check()
    assert "python -m pip install no-such-distribution" in problem
