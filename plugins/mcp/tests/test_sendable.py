"""A model may send only files from the allowed folders."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from molecule_connect import ArgumentError, ConfigError, FilePart, TextPart, WorkspaceSettings
from molecule_connect_mcp.sendable import COPY_MAX_AGE, MAX_BYTES, SendableFiles, working_root
from molecule_connect_mcp.sender import DirectSender
from molecule_connect_mcp.settings import ServerSettings, read_settings
from molecule_connect_mcp.tools import Tools
from molecule_connect_mcp.workspaces import Workspaces

from .kit import ENVELOPE, FakeInbox, Serving, as_inbox, message

TOKEN = "secret-token-value"


@attrs.frozen
class Place:
    """The folders of a machine: a project, a state folder and a folder outside both."""

    base: Path
    project: Path
    state: Path
    outside: Path

    def sendable(self, **changes: Any) -> SendableFiles:
        rule = SendableFiles.of([WorkspaceSettings(workspace_id="ws-1", token=TOKEN)], state_dir=self.state, environ={})
        return attrs.evolve(rule, **{"working": self.project, **changes})

    def refused(self, path: Path | str, *roots: Path, **changes: Any) -> str:
        with pytest.raises(ArgumentError) as caught:
            self.sendable(**changes).copy([str(path)], roots)
        assert not list(self.state.glob("ws-1/outgoing/*"))
        return f"{caught.value} {caught.value.hint}"

    def sent(self, path: Path | str, *roots: Path, **changes: Any) -> bytes:
        (copy,) = self.sendable(**changes).copy([str(path)], roots).files
        return copy.read_bytes()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    project, state, outside = tmp_path / "project", tmp_path / "state", tmp_path / "outside"
    for folder in (project, state / "ws-1" / "files", outside):
        folder.mkdir(parents=True)
    (project / "plot.png").write_bytes(b"plot")
    (outside / "id_rsa").write_bytes(b"key")
    (state / "journal.db").write_bytes(b"journal")
    (state / "ws-1.token").write_bytes(b"token")
    (state / "ws-1" / "files" / "0-photo.png").write_bytes(b"photo")
    return Place(tmp_path, project, state, outside)


def test_files_under_the_roots_are_sent(place: Place) -> None:
    assert place.sent(place.project / "plot.png") == b"plot"
    assert place.sent(place.outside / "id_rsa", place.outside) == b"key"
    assert place.sent(place.outside / "id_rsa", named=(place.outside,)) == b"key"
    assert place.sent(place.state / "ws-1" / "files" / "0-photo.png") == b"photo"


def test_file_outside_roots_refused_with_hint(place: Place) -> None:
    refusal = place.refused(place.outside / "id_rsa")
    assert str(place.outside / "id_rsa") in refusal
    assert str(place.project) in refusal
    assert str(place.state / "ws-1" / "files") in refusal
    assert "--files-root" in refusal


@pytest.mark.parametrize("name", ["journal.db", "ws-1.token", "ws-1/new", "ws-1/outgoing/x"])
@pytest.mark.parametrize("root", ["/", "base", "state"])
def test_state_folder_files_are_never_sent(place: Place, name: str, root: str) -> None:
    file = place.state / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"state")
    roots = {"/": Path("/"), "base": place.base, "state": place.state}
    changes: tuple[dict[str, Any], ...] = ({}, {"named": (roots[root],)}, {"working": roots[root]})
    for change in changes:
        with pytest.raises(ArgumentError, match="state folder"):
            place.sendable(**change).copy([str(file)], [roots[root]])


def test_links_resolved_before_checking_roots(place: Place) -> None:
    for number, target in enumerate(
        [place.outside / "id_rsa", place.state / "journal.db", Path("/etc/passwd"), place.state / "ws-1.token"]
    ):
        link = place.project / f"link-{number}"
        link.symlink_to(target)
        assert str(target) in place.refused(link) or "state folder" in place.refused(link)
    (place.project / "folder").symlink_to(place.outside)
    place.refused(place.project / "folder" / "id_rsa")
    place.refused(place.project / ".." / "outside" / "id_rsa")
    (place.state / "ws-1" / "files" / "1-link").symlink_to(place.state / "journal.db")
    place.refused(place.state / "ws-1" / "files" / "1-link")


def test_link_into_root_sent_under_target_name(place: Place) -> None:
    (place.outside / "link").symlink_to(place.project / "plot.png")
    (copy,) = place.sendable().copy([str(place.outside / "link")]).files
    assert (copy.name, copy.read_bytes()) == ("plot.png", b"plot")


def test_opened_file_is_sent_despite_path_change(place: Place) -> None:
    (copy,) = place.sendable().copy([str(place.project / "plot.png")]).files
    (place.project / "plot.png").unlink()
    (place.project / "plot.png").symlink_to(place.outside / "id_rsa")
    assert copy.read_bytes() == b"plot"
    assert copy.stat().st_mode & 0o777 == 0o600
    assert copy.parent.parent.parent == place.state / "ws-1" / "outgoing"


def test_path_swapped_during_open_judged_by_descriptor(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    opening = os.open

    def swapping(path: Any, flags: int, *mode: int) -> int:
        if Path(path) == place.project / "plot.png":
            Path(path).unlink()
            Path(path).symlink_to(place.outside / "id_rsa")
        return opening(path, flags, *mode)

    monkeypatch.setattr(os, "open", swapping)
    assert "outside of the folders" in place.refused(place.project / "plot.png")


def test_token_file_is_not_sent(place: Place) -> None:
    token_file = place.project / "token"
    token_file.write_text("t-1")
    (place.project / "again").hardlink_to(token_file)
    for name in ("token", "again"):
        assert "token" in place.refused(place.project / name, token_files=(token_file,))
    (place.project / ".mcp.json").write_text(json.dumps({"env": {"MOLECULE_WORKSPACE_TOKEN": TOKEN}}))
    refusal = place.refused(place.project / ".mcp.json")
    assert "token" in refusal
    assert TOKEN not in refusal


def test_other_state_folders_are_private(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place.base))
    usual = place.base / ".config" / "molecule" / "state"
    usual.mkdir(parents=True)
    (usual / "ws-2.token").write_text("t-2")
    assert "state folder" in place.refused(usual / "ws-2.token", place.base)


def test_saved_settings_are_private(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place.base))
    home = place.base / ".config" / "molecule"
    for folder in (home, home / "profiles" / "work"):
        folder.mkdir(parents=True)
        for name in ("config.toml", "token"):
            (folder / name).write_text("t-2")
            assert "state folder" in place.refused(folder / name, place.base)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_non_files_refused_without_blocking(place: Place, make: Callable[[Path], None]) -> None:
    make(place.project / "odd")
    assert "there is no file" in place.refused(place.project / "odd")


def test_proc_environ_is_not_sent(place: Place) -> None:
    assert place.sent("/proc/self/environ", Path("/")) == b""


def test_oversized_file_refused_before_copying(place: Place) -> None:
    with (place.project / "large").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert "256 MiB" in place.refused(place.project / "large")


def test_old_copies_are_removed(place: Place) -> None:
    first = place.sendable().copy([str(place.project / "plot.png")])
    assert first.folder is not None
    os.utime(first.folder, (0, first.folder.stat().st_mtime - COPY_MAX_AGE - 1))
    second = place.sendable().copy([str(place.project / "plot.png")])
    assert not first.folder.exists()
    assert second.files[0].exists()


@pytest.mark.parametrize(
    ("working", "counts"),
    [("/", False), ("home/me", False), ("home", False), ("home/me/project", True), ("srv", True)],
)
def test_working_directory_above_home_does_not_count(tmp_path: Path, working: str, counts: bool) -> None:
    home, folder = tmp_path / "home" / "me", tmp_path / working
    for each in (home, folder):
        each.mkdir(parents=True, exist_ok=True)
    assert working_root(folder, [home]) == (folder if counts else None)


def test_account_home_counts_besides_home_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    monkeypatch.setenv("HOME", "/nowhere")
    assert working_root(Path(pwd.getpwuid(os.getuid()).pw_dir)) is None


# The tools


def tools_of(inbox: FakeInbox, place: Place) -> Tools:
    workspaces = Workspaces(inbox.workspace_ids, has_inbox=True)
    workspaces.set_inbox(as_inbox(inbox))
    return Tools(workspaces, claim_seconds=300.0, files=place.sendable())


async def test_reply_keeps_copies_until_sent(place: Place) -> None:
    inbox = FakeInbox(message("a1"))
    given = {"activity_id": "a1", "text": "here", "files": [str(place.project / "plot.png")]}
    assert (await tools_of(inbox, place).call("reply", given))[1] is False
    ((_, response),) = inbox.replies
    text, file = response.parts
    assert text == TextPart("here")
    assert isinstance(file, FilePart)
    assert file.path is not None
    assert (file.name, file.path.read_bytes()) == ("plot.png", b"plot")


async def test_refused_reply_leaves_no_copy(place: Place) -> None:
    given = {"activity_id": "a9", "text": "here", "files": str(place.project / "plot.png")}
    text, failed = await tools_of(FakeInbox(), place).call("reply", given)
    assert failed
    assert "no message" in text
    assert list((place.state / "ws-1" / "outgoing").iterdir()) == []


async def test_attachments_without_text_leave_no_copy(place: Place) -> None:
    inbox = FakeInbox()
    given = {"message": " ", "attachments": str(place.project / "plot.png")}
    assert (await tools_of(inbox, place).call("send_message_to_user", given))[1] is False
    ((_, text, (file,)),) = inbox.notifications
    assert (text, file.name) == ("", "plot.png")
    assert list((place.state / "ws-1" / "outgoing").iterdir()) == []


async def test_without_an_inbox_no_file_is_sent(place: Place) -> None:
    workspaces = Workspaces(["ws-1"], has_inbox=False)
    workspaces.set_sender(DirectSender({"ws-1": FakeInbox().fake_client}))  # type: ignore[dict-item]
    tools = Tools(workspaces, claim_seconds=300.0, files=place.sendable())
    given = {"message": "x", "attachments": [str(place.project / "plot.png")]}
    text, failed = await tools.call("send_message_to_user", given)
    assert failed
    assert "inbox not enabled" in text


# The host's roots


def settings(place: Place) -> ServerSettings:
    return ServerSettings(state_dir=place.state)


async def test_host_roots_requested_at_each_call(place: Place) -> None:
    async with Serving(FakeInbox(message("a1")), settings(place)) as serving:
        host, file = serving.host, str(place.outside / "id_rsa")
        host.roots = []
        await host.begin()
        assert "--files-root" in await host.call("reply", activity_id="a1", text="x", files=[file])
        host.roots = [place.outside.as_uri()]
        host.write({"method": "notifications/roots/list_changed"})
        assert (await host.call("reply", activity_id="a1", text="x", files=[file]))["status"] == "delivered"
        host.roots = ["file:///nowhere"]
        assert "/nowhere" in await host.call("send_message_to_user", message="x", attachments=[file])
        assert host.asked_for_roots == 3


async def test_root_with_special_characters_counts(place: Place) -> None:
    odd = place.base / "a b#%41"
    odd.mkdir()
    (odd / "x").write_text("x")
    async with Serving(FakeInbox(message("a1")), settings(place)) as serving:
        serving.host.roots = [odd.as_uri()]
        await serving.host.begin()
        result = await serving.host.call("reply", activity_id="a1", text="x", files=[str(odd / "x")])
    assert result["status"] == "delivered"


async def test_host_without_roots_is_not_asked(place: Place) -> None:
    async with Serving(FakeInbox(message("a1")), settings(place)) as serving:
        await serving.host.begin()
        refusal = await serving.host.call("reply", activity_id="a1", text="x", files=[str(place.outside / "id_rsa")])
        assert "outside of the folders" in refusal
        assert serving.host.asked_for_roots == 0


async def test_modern_host_asked_for_roots_in_result(place: Place) -> None:
    meta = {**ENVELOPE, "io.modelcontextprotocol/clientCapabilities": {"roots": {}}}
    given = {"activity_id": "a1", "text": "x", "files": [str(place.outside / "id_rsa")]}
    params = {"_meta": meta, "name": "reply", "arguments": given}
    async with Serving(FakeInbox(message("a1")), settings(place)) as serving:
        host = serving.host
        host.write({"id": 1, "method": "tools/call", "params": params})
        asked = (await host.answer(1))["result"]
        assert asked["resultType"] == "input_required"
        (name, request), *_ = asked["inputRequests"].items()
        assert request["method"] == "roots/list"
        assert serving.inbox.replies == []
        responses = {name: {"roots": [{"uri": place.outside.as_uri()}]}}
        host.write({"id": 2, "method": "tools/call", "params": {**params, "inputResponses": responses}})
        result = json.loads((await host.answer(2))["result"]["content"][0]["text"])
    assert result["status"] == "delivered"


# The flag


def test_flag_overrides_its_variable(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
    environ = {"MOLECULE_MCP_FILES_ROOTS": f"{first}:{second}"}
    assert read_settings(environ).files_roots == (first, second)
    assert read_settings(environ, files_roots=[str(second)]).files_roots == (second,)
    assert read_settings({"MOLECULE_MCP_FILES_ROOTS": ""}).files_roots == ()


@pytest.mark.parametrize("named", ["/no/such/folder", "/etc/passwd", "~nobody-of-that-name", "x\0y"])
def test_root_that_is_not_a_folder_refused(named: str) -> None:
    with pytest.raises(ConfigError, match="--files-root"):
        read_settings({}, files_roots=[named])
