"""The token: where it is kept, who can read it, and that it is never lost or shown."""

import logging
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from molecule_connect import ArgumentError, AuthError, ConfigError
from molecule_connect_agent import RemoteAgentClient

from .kit import API, ME, TOKEN, Make, Platform, Twin, said, token_file

STATE = f"GET /workspaces/{ME}/state"
REGISTER = "POST /registry/register"


def test_a_saved_token_is_for_its_owner_alone(make: Make, tmp_path: Path) -> None:
    make(token=None).save_token("  a-new-token \n")
    path = token_file(tmp_path)

    assert path.read_text().strip() == "a-new-token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_another_client_finds_it(make: Make) -> None:
    make(token=None).save_token("a-new-token")

    assert make(token=None).load_token() == "a-new-token"


def test_what_is_in_memory_comes_before_the_file(make: Make) -> None:
    agent = make(token=None)
    agent.save_token("a-new-token")
    agent.token_file.write_text("another-token")

    assert agent.load_token() == "a-new-token"
    assert make(token="given-token").load_token() == "given-token"


@pytest.mark.parametrize("blank", ["", "  ", "\n"])
def test_a_blank_token_is_a_value_error_and_changes_nothing(make: Make, blank: str) -> None:
    agent = make(token=None)
    agent.save_token("a-new-token")
    with pytest.raises(ValueError, match="blank") as caught:
        agent.save_token(blank)

    assert isinstance(caught.value, ArgumentError)
    assert agent.token_file.read_text().strip() == agent.load_token() == "a-new-token"


@pytest.mark.parametrize("content", [None, b"", b" \n", b"two\nlines", b"\xff\xfe\xff", b"<paste your token>"])
def test_a_file_without_a_token_is_none(make: Make, content: bytes | None, caplog: pytest.LogCaptureFixture) -> None:
    agent = make(token=None)
    if content is not None:
        agent.token_file.parent.mkdir()
        agent.token_file.write_bytes(content)
        agent.token_file.chmod(0o600)

    assert agent.load_token() is None
    assert bool(caplog.records) == bool(content and content.strip())


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o620, 0o602])
def test_a_file_that_is_open_to_others_is_refused(make: Make, platform: Platform, mode: int) -> None:
    agent = make(platform, token=None)
    agent.token_file.parent.mkdir()
    agent.token_file.write_text("a-token")
    agent.token_file.chmod(mode)

    for ask in (agent.load_token, agent.poll_state):
        with pytest.raises(ConfigError, match=f"is open to others \\(mode 0{mode:o}\\)") as caught:
            ask()
        assert f"chmod 600 {agent.token_file}" in caught.value.hint
    assert platform.requests == []


def test_a_file_that_the_group_can_read_is_used(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    agent = make(token=None)
    agent.token_file.parent.mkdir()
    agent.token_file.write_text("a-token")
    agent.token_file.chmod(0o640)

    assert agent.load_token() == "a-token"
    assert not caplog.records


def test_a_folder_that_is_everybodys_keeps_its_mode(make: Make, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    make(token=None, token_dir=shared).save_token("a-new-token")

    assert stat.S_IMODE(shared.stat().st_mode) == 0o1777
    assert stat.S_IMODE((shared / ".auth_token").stat().st_mode) == 0o600


def test_a_file_that_cannot_be_read_is_warned_of(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    agent = make(token=None)
    agent.token_file.mkdir(parents=True)

    assert agent.load_token() is None
    assert str(agent.token_file) in caplog.text


def test_without_a_token_it_is_said_what_to_do_before_any_request(make: Make, platform: Platform) -> None:
    with pytest.raises(ConfigError, match=ME) as caught:
        make(platform, token=None).poll_state()

    assert "register" in caught.value.hint
    assert platform.requests == []


def test_a_token_that_another_program_stored_is_taken_up_when_ours_is_refused(make: Make, platform: Platform) -> None:
    def judge(request: httpx.Request) -> httpx.Response:
        fresh = request.headers["authorization"] == "Bearer fresh-token"
        return httpx.Response(200, json={"status": "online"}) if fresh else said(401)

    agent = make(platform.on(STATE, judge), token="stale-token")
    agent.token_file.parent.mkdir()
    agent.token_file.write_text("fresh-token\n")
    agent.token_file.chmod(0o600)

    assert agent.poll_state().status == "online"
    assert agent.load_token() == "fresh-token"


def test_a_handed_out_token_that_cannot_be_kept_is_used_all_the_same(
    make: Make, platform: Platform, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    platform.on(REGISTER, httpx.Response(200, json={"auth_token": "handed-out-token"}))
    platform.on(STATE, httpx.Response(200, json={"status": "online"}))
    agent = make(platform, token=None, token_dir=tmp_path / "file" / "below")

    assert agent.register() == "handed-out-token"
    agent.poll_state()
    assert platform.asked(STATE)[0].headers["authorization"] == "Bearer handed-out-token"
    assert str(tmp_path / "file") in caplog.text
    assert "handed-out-token" not in caplog.text


def test_no_repr_log_or_error_shows_a_token_or_a_secret(
    make: Make, platform: Platform, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    platform.on(REGISTER, httpx.Response(200, json={"auth_token": "handed-out", "platform_inbound_secret": "inb"}))
    platform.on(f"GET /workspaces/{ME}/secrets/values", httpx.Response(200, json={"KEY": "a-secret-value"}))
    platform.on(STATE, said(403, f"no: {TOKEN} handed-out"))
    agent = make(platform)
    agent.register()
    agent.pull_secrets()
    with pytest.raises(Exception, match="403") as caught:
        agent.poll_state()

    shown = f"{agent.client!r} {caught.value!r} {caught.value} {getattr(caught.value, 'body', '')} {caplog.text}"
    assert not any(secret in shown for secret in (TOKEN, "handed-out", "a-secret-value", '"inb"'))


def test_a_folder_of_a_strange_file_system_is_no_reason_to_fail(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    agent = make(token=None)
    agent.save_token("a-new-token")

    assert agent.load_token() == "a-new-token"


def test_the_folder_is_the_users_own_unless_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with RemoteAgentClient(ME, API) as agent:
        assert agent.token_file == tmp_path / ".molecule" / ME / ".auth_token"
        assert agent.plugins_dir == tmp_path / ".molecule" / ME / "plugins"
    assert not (tmp_path / ".molecule").exists()


def test_the_home_of_a_user_who_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="'~nobody-of-this-name/x' names has no home"):
        RemoteAgentClient(ME, API, token_dir="~nobody-of-this-name/x")


def test_two_processes_that_save_at_once_never_leave_an_empty_file(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from molecule_connect_agent import RemoteAgentClient\n"
        f"with RemoteAgentClient({ME!r}, {API!r}, token_dir=Path(sys.argv[1])) as agent:\n"
        "    for number in range(100):\n"
        "        agent.save_token(f'token-{sys.argv[2]}-{number}')\n"
    )
    path = token_file(tmp_path)
    run = [sys.executable, "-c", program, str(path.parent)]
    writers = [subprocess.Popen([*run, name]) for name in ("a", "b")]
    seen: set[str] = set()
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            seen.add(path.read_text())

    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen
    assert all(text.startswith("token-") and text.endswith("\n") for text in seen)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_refused_token_says_register_first(agent: Twin, platform: Platform) -> None:
    platform.on(f"GET /workspaces/{ME}/secrets/values", said(401, "invalid workspace auth token"))
    with pytest.raises(AuthError) as caught:
        agent.pull_secrets()

    assert "register() first" in caught.value.hint
