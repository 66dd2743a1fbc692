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


def test_saved_token_is_private(make: Make, tmp_path: Path) -> None:
    make(token=None).save_token("  a-new-token \n")
    path = token_file(tmp_path)

    assert path.read_text().strip() == "a-new-token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_another_client_finds_it(make: Make) -> None:
    make(token=None).save_token("a-new-token")

    assert make(token=None).load_token() == "a-new-token"


def test_memory_takes_precedence_over_file(make: Make) -> None:
    agent = make(token=None)
    agent.save_token("a-new-token")
    agent.token_file.write_text("another-token")

    assert agent.load_token() == "a-new-token"
    assert make(token="given-token").load_token() == "given-token"


@pytest.mark.parametrize("blank", ["", "  ", "\n"])
def test_blank_token_changes_nothing(make: Make, blank: str) -> None:
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
def test_exposed_file_is_refused(make: Make, platform: Platform, mode: int) -> None:
    agent = make(platform, token=None)
    agent.token_file.parent.mkdir()
    agent.token_file.write_text("a-token")
    agent.token_file.chmod(mode)

    for ask in (agent.load_token, agent.poll_state):
        with pytest.raises(ConfigError, match=f"is open to others \\(mode 0{mode:o}\\)") as caught:
            ask()
        assert f"chmod 600 {agent.token_file}" in caught.value.hint
    assert platform.requests == []


def test_group_readable_file_is_used(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    agent = make(token=None)
    agent.token_file.parent.mkdir()
    agent.token_file.write_text("a-token")
    agent.token_file.chmod(0o640)

    assert agent.load_token() == "a-token"
    assert not caplog.records


def test_shared_folder_keeps_its_mode(make: Make, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    make(token=None, token_dir=shared).save_token("a-new-token")

    assert stat.S_IMODE(shared.stat().st_mode) == 0o1777
    assert stat.S_IMODE((shared / ".auth_token").stat().st_mode) == 0o600


def test_unreadable_file_logs_a_warning(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    agent = make(token=None)
    agent.token_file.mkdir(parents=True)

    assert agent.load_token() is None
    assert str(agent.token_file) in caplog.text


def test_missing_token_sends_nothing(make: Make, platform: Platform) -> None:
    with pytest.raises(ConfigError, match=ME) as caught:
        make(platform, token=None).poll_state()

    assert "register" in caught.value.hint
    assert platform.requests == []


def test_refused_token_is_replaced_from_file(make: Make, platform: Platform) -> None:
    def judge(request: httpx.Request) -> httpx.Response:
        fresh = request.headers["authorization"] == "Bearer fresh-token"
        return httpx.Response(200, json={"status": "online"}) if fresh else said(401)

    agent = make(platform.on(STATE, judge), token="stale-token")
    agent.token_file.parent.mkdir()
    agent.token_file.write_text("fresh-token\n")
    agent.token_file.chmod(0o600)

    assert agent.poll_state().status == "online"
    assert agent.load_token() == "fresh-token"


def test_unstorable_token_is_used(
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


def test_nothing_shows_a_token_or_secret(make: Make, platform: Platform, caplog: pytest.LogCaptureFixture) -> None:
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


def test_failing_chmod_is_ignored(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    agent = make(token=None)
    agent.save_token("a-new-token")

    assert agent.load_token() == "a-new-token"


def test_default_folder_is_in_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with RemoteAgentClient(ME, API) as agent:
        assert agent.token_file == tmp_path / ".molecule" / ME / ".auth_token"
        assert agent.plugins_dir == tmp_path / ".molecule" / ME / "plugins"
    assert not (tmp_path / ".molecule").exists()


def test_unknown_home_is_named() -> None:
    with pytest.raises(ConfigError, match="'~nobody-of-this-name/x' names has no home"):
        RemoteAgentClient(ME, API, token_dir="~nobody-of-this-name/x")


def test_concurrent_saves_leave_a_whole_file(tmp_path: Path) -> None:
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
