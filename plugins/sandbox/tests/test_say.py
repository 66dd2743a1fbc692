"""``molecule sandbox say`` and ``--open``: how they find the sandbox, and what they print."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from molecule_connect import ConfigError, MoleculeError, OptionError
from molecule_connect_sandbox.browser import has_browser, open_page
from molecule_connect_sandbox.command import sandbox as command
from molecule_connect_sandbox.running import running_sandboxes
from molecule_connect_sandbox.say import Question, ask, choose_workspace, find_sandbox
from molecule_connect_sandbox.testing import Sandbox, Workspace

PROGRAM = [sys.executable, "-m", "molecule_connect_sandbox"]
OWN = {"X_Sandbox_Page": "1"}


@pytest.fixture
async def served(generation: str) -> AsyncIterator[Sandbox]:
    async with Sandbox.over_loopback(platform=generation) as running:
        yield running


async def answer(sandbox: Sandbox, workspace: Workspace, text: str, **more: Any) -> dict[str, Any]:
    """Wait for a message and answer it like a connector."""
    rows = await sandbox.rows(workspace, 1)
    row = [row for row in rows if row["method"] == "message/send"][-1]
    message = row["request_body"]["params"]["message"]
    if row["source_id"] is None:
        path, body = f"/workspaces/{workspace.id}/notify", {"message": text, **more}
    else:
        path = f"/workspaces/{row['source_id']}/a2a"
        mark = {"molecule": {"in_reply_to": message["messageId"], "auto": True}}
        reply = {"role": "agent", "parts": [{"kind": "text", "text": text}], "metadata": mark}
        body = {"method": "message/send", "params": {"message": reply}}
    answered = await sandbox.call("POST", path, body, token=workspace.token)
    assert answered.status_code == 200, answered.text
    return row


async def exchange(sandbox: Sandbox, workspace: Workspace, question: Question, text: str, **more: Any) -> Any:
    asking = asyncio.create_task(asyncio.to_thread(ask, sandbox.url, question))
    row = await answer(sandbox, workspace, text, **more)
    return row, await asking


async def test_prints_the_answer(served: Sandbox) -> None:
    workspace = await served.workspace(registered=True)
    row, reply = await exchange(served, workspace, Question(text="hello"), "hi\x1b[2J\nthere")
    assert row["source_id"] is None
    assert (reply.text, reply.files) == ("hi[2J\nthere", ())


async def test_earlier_answers_are_not_printed(served: Sandbox) -> None:
    workspace = await served.workspace(registered=True)
    await served.call("POST", f"/workspaces/{workspace.id}/notify", {"message": "old"}, token=workspace.token)
    asking = asyncio.create_task(asyncio.to_thread(ask, served.url, Question(text="hello")))
    await served.rows(workspace, 2)
    await answer(served, workspace, "new")
    assert (await asking).text == "new"


async def test_speaks_as_a_peer_and_takes_its_own_answer(served: Sandbox) -> None:
    workspace = await served.workspace(registered=True)
    asking = asyncio.create_task(asyncio.to_thread(ask, served.url, Question(text="one", as_peer=True)))
    (row,) = await served.rows(workspace, 1)
    mark = {"molecule": {"in_reply_to": "another question", "auto": True}}
    other = {"role": "agent", "parts": [{"kind": "text", "text": "for another"}], "metadata": mark}
    body = {"method": "message/send", "params": {"message": other}}
    await served.call("POST", f"/workspaces/{row['source_id']}/a2a", body, token=workspace.token)
    await answer(served, workspace, "for you")
    assert (await asking).text == "for you"


async def test_sends_and_saves_files(served: Sandbox, tmp_path: Path) -> None:
    workspace = await served.workspace(registered=True)
    made = await served.client.post(
        f"/workspaces/{workspace.id}/chat/uploads",
        files=[("files", ("out.txt", b"made", "text/plain"))],
        headers={"Authorization": f"Bearer {workspace.token}"},
    )
    (tmp_path / "in.txt").write_text("sent")
    (tmp_path / "out.txt").write_text("kept")
    attachments = made.json()["files"]
    question = Question(text="", files=(tmp_path / "in.txt",), save=tmp_path)
    asking = asyncio.create_task(asyncio.to_thread(ask, served.url, question))
    rows = await served.rows(workspace, 3)
    assert rows[1]["request_body"]["name"] == "in.txt"
    row = await answer(served, workspace, "done", attachments=attachments)
    assert row["request_body"]["params"]["message"]["parts"][0]["file"]["name"] == "in.txt"
    reply = await asking
    assert reply.files == (f"file: {tmp_path / 'out-2.txt'}",)
    assert (tmp_path / "out-2.txt").read_text() == "made"
    assert (tmp_path / "out.txt").read_text() == "kept"


async def test_lists_files_without_saving(served: Sandbox) -> None:
    workspace = await served.workspace(registered=True)
    file = {"uri": f"platform-pending:{workspace.id}/{workspace.id}", "name": "../a\x1bb.txt"}
    _, reply = await exchange(served, workspace, Question(text="x"), "done", attachments=[file])
    (line,) = reply.files
    assert line.startswith("file: ../ab.txt http://127.0.0.1:")


async def test_timeout_says_what_to_do(served: Sandbox) -> None:
    await served.workspace(registered=True)
    with pytest.raises(MoleculeError, match="tester has not answered within 0 s") as caught:
        await asyncio.to_thread(ask, served.url, Question(text="hello", timeout=0))
    assert not isinstance(caught.value, ConfigError)
    assert "--timeout" in caught.value.hint
    assert served.url in caught.value.hint


async def test_dead_letter_fails(served: Sandbox) -> None:
    workspace = await served.workspace(registered=True)
    with pytest.raises(MoleculeError, match="tester could not answer") as caught:
        await exchange(
            served, workspace, Question(text="x"), "This message could not be answered (reference 3f2a9c1d)."
        )
    assert "messages list" in caught.value.hint


@pytest.mark.parametrize("name", ["missing.txt", "empty.txt", "."])
async def test_unreadable_file_is_reported(served: Sandbox, tmp_path: Path, name: str) -> None:
    workspace = await served.workspace(registered=True)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ConfigError, match=str(tmp_path)):
        await asyncio.to_thread(ask, served.url, Question(text="x", files=(tmp_path / name,)))
    assert await served.rows(workspace) == []


def listed(name: str, status: str = "online", **more: Any) -> dict[str, Any]:
    return {"id": f"id of {name}", "name": name, "status": status, "error": "", **more}


def test_chooses_the_workspace_that_is_served() -> None:
    both = [listed("a", "awaiting_agent"), listed("b"), listed("c", "degraded", error="stopped")]
    assert choose_workspace(both, None)["name"] == "b"
    assert choose_workspace([listed("a"), listed("sandbox")], None)["name"] == "sandbox"
    assert choose_workspace([listed("a"), listed("b")], "id of a")["name"] == "a"


@pytest.mark.parametrize(
    ("workspaces", "to", "error"),
    [
        ([listed("sandbox", "awaiting_agent")], None, "the workspace sandbox is not online"),
        ([listed("a", "offline"), listed("b", "offline")], None, "no workspace is online"),
        ([listed("a", "paused")], None, "the workspace a is paused"),
        ([listed("a"), listed("b")], None, "several workspaces are online"),
        ([listed("a")], "b", "no workspace is named 'b'"),
        ([listed("a"), listed("a")], "a", "2 workspaces are named 'a'"),
        ([listed("a", "degraded", error="stopped")], "a", "the workspace a is not online"),
        ([], None, "no workspace is online"),
    ],
)
def test_unclear_workspace_is_an_error(workspaces: list[dict[str, Any]], to: str | None, error: str) -> None:
    with pytest.raises(ConfigError, match=error) as caught:
        choose_workspace(workspaces, to)
    assert caught.value.hint


# Finding the sandbox


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "HOME": str(home), "MOLECULE_STATE_DIR": str(home / "state")}


@contextlib.contextmanager
def serving(home: Path, *options: str) -> Iterator[dict[str, str]]:
    """A serving process of a user with this home folder; its exported variables."""
    command = [*PROGRAM, "--serve", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(home))
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline().strip() for _ in range(4)]
        yield dict(line.removeprefix("export ").split("=", 1) for line in lines[1:])
        process.terminate()
        assert process.wait(40) == 0
    finally:
        process.kill()
        process.communicate()


def say(home: Path, *arguments: str, **more: Any) -> "subprocess.CompletedProcess[str]":
    command = [*PROGRAM, "say", *arguments]
    env = environment(home)
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False, **more)


def test_finds_the_served_sandbox_without_tokens(tmp_path: Path) -> None:
    with serving(tmp_path) as exported:
        folder = tmp_path / "state" / "sandboxes"
        (file,) = folder.iterdir()
        assert (file.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)
        content = file.read_text()
        assert json.loads(content)["url"] == exported["MOLECULE_API_URL"]
        assert exported["MOLECULE_WORKSPACE_TOKEN"] not in content
        offline = say(tmp_path, "hello")
        assert (offline.returncode, offline.stdout) == (2, "")
        assert offline.stderr.startswith("error: the workspace sandbox is not online\n")
        assert offline.stderr.count("\n") == 2
    assert list(folder.iterdir()) == []
    gone = say(tmp_path, "hello")
    assert (gone.returncode, gone.stdout) == (2, "")
    assert (
        gone.stderr == "error: no sandbox is running\nhint: start one in another terminal: molecule sandbox --serve\n"
    )


def test_connector_answers_say(tmp_path: Path) -> None:
    with serving(tmp_path) as exported:
        connect = [sys.executable, "-m", "molecule_connect", "connect", "--backend", "mock"]
        env = environment(tmp_path) | exported
        with subprocess.Popen(connect, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            try:
                assert process.stdout is not None
                assert any("online" in line.lower() or "registered" in line.lower() for line in process.stdout)
                person = say(tmp_path, "-", input="hello\n")
                assert (person.returncode, person.stdout, person.stderr) == (0, "echo: hello\n", "")
                peer = say(tmp_path, "status?", "--as-peer")
                assert (peer.returncode, peer.stdout, peer.stderr) == (0, "echo: status?\n", "")
            finally:
                process.terminate()
                process.communicate(timeout=40)


async def test_named_address_wins(served: Sandbox) -> None:
    assert await asyncio.to_thread(find_sandbox, f"{served.url}/", {}) == served.url
    assert await asyncio.to_thread(find_sandbox, served.url.removeprefix("http://"), {}) == served.url


@pytest.mark.parametrize("url", ["https://platform.example", "http://10.0.0.1:1", "http://127.0.0.1.evil.example"])
def test_foreign_address_gets_no_request(url: str) -> None:
    with pytest.raises(ConfigError, match="is not an address of a sandbox"):
        find_sandbox(url, {})


def test_nothing_at_the_address_is_reported() -> None:
    with pytest.raises(ConfigError, match=r"no sandbox is running at http://127\.0\.0\.1:1") as caught:
        find_sandbox("http://127.0.0.1:1", {})
    assert "molecule sandbox --serve" in caught.value.hint


async def test_another_program_at_the_address_is_not_trusted(served: Sandbox, tmp_path: Path) -> None:
    folder = tmp_path / "sandboxes"
    folder.mkdir(mode=0o700)
    about = {"url": served.url, "boot": "of another run", "pid": os.getpid(), "started": 1.0}
    (folder / "1.json").write_text(json.dumps(about))
    environ = {"MOLECULE_STATE_DIR": str(tmp_path), "HOME": str(tmp_path)}
    assert [one.url for one in running_sandboxes(environ)] == [served.url]
    with pytest.raises(ConfigError, match="no sandbox is running"):
        await asyncio.to_thread(find_sandbox, None, environ)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"url":1}', '{"url":"u","boot":"b","pid":99999999,"started":1}'])
def test_stale_files_are_removed(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "sandboxes"
    folder.mkdir(mode=0o700)
    (folder / "1.json").write_text(content)
    assert running_sandboxes({"MOLECULE_STATE_DIR": str(tmp_path), "HOME": str(tmp_path)}) == []
    assert list(folder.iterdir()) == []


def test_serves_without_a_place_for_the_file(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with serving(tmp_path) as exported:
        assert exported["MOLECULE_API_URL"]
        found = say(tmp_path, "hello", "--url", exported["MOLECULE_API_URL"])
        assert "not online" in found.stderr


# The command


@pytest.mark.parametrize("arguments", [[""], ["  "], []])
def test_empty_message_is_rejected(arguments: list[str]) -> None:
    outcome = CliRunner().invoke(command, ["say", *arguments])
    assert isinstance(outcome.exception, OptionError)


@pytest.mark.parametrize("option", [["--serve"], ["--backend", "exec"], ["--open"], ["--port", "1"]])
def test_options_before_say_are_rejected(option: list[str]) -> None:
    outcome = CliRunner().invoke(command, [*option, "say", "hello"])
    assert isinstance(outcome.exception, OptionError)
    assert str(outcome.exception).startswith(option[0])
    assert "say --help" in outcome.exception.hint


def test_help_of_say_explains_exit_codes() -> None:
    shown = CliRunner().invoke(command, ["say", "--help"])
    assert shown.exit_code == 0
    assert all(text in shown.output for text in ("--as-peer", "--file", "--timeout", "exit code"))


# The browser


def test_opens_the_page_once_it_is_served() -> None:
    opened: list[str] = []

    def start(url: str) -> bool:
        opened.append(url)
        return True

    thread = open_page("http://127.0.0.1:1/", environ={"DISPLAY": ":0"}, start=start)
    assert thread is not None
    thread.join(30)
    assert opened == ["http://127.0.0.1:1/"]


def test_prints_the_address_without_a_browser(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(url: str) -> bool:
        return False

    def crash(url: str) -> bool:
        raise OSError("no such program")

    if sys.platform != "darwin":
        assert open_page("http://127.0.0.1:1/", environ={}) is None
    for start in (fail, crash):
        thread = open_page("http://127.0.0.1:1/", environ={"BROWSER": "none"}, start=start)
        assert isinstance(thread, threading.Thread)
        thread.join(30)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert set(shown.err.splitlines()) == {"No browser could be opened. The page is at http://127.0.0.1:1/"}


@pytest.mark.parametrize(
    ("environ", "platform", "expected"),
    [
        ({}, "linux", False),
        ({"DISPLAY": ":0"}, "linux", True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", True),
        ({"BROWSER": "firefox"}, "linux", True),
        ({}, "darwin", True),
    ],
)
def test_text_browsers_are_not_started(environ: dict[str, str], platform: str, expected: bool) -> None:
    assert has_browser(environ, platform) is expected


@pytest.mark.parametrize("mode", [["--serve"], []])
def test_open_starts_the_browser_with_the_address(tmp_path: Path, mode: list[str]) -> None:
    opened = tmp_path / "opened"
    os.mkfifo(opened)
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(0o755)
    env = environment(tmp_path) | {"BROWSER": str(browser)}
    pipe = subprocess.PIPE
    with subprocess.Popen([*PROGRAM, *mode, "--open"], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env) as run:
        assert opened.read_text().startswith("http://127.0.0.1:")
        run.terminate()
        run.communicate(timeout=40)
