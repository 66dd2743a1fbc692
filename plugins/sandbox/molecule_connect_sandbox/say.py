"""``molecule sandbox say``: sends one message to a workspace of a running sandbox and prints the answer."""

import mimetypes
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import attrs
import click
import httpx

from molecule_connect import ConfigError, MoleculeError
from molecule_connect_sandbox.canvas import safe_name
from molecule_connect_sandbox.hosts import is_local
from molecule_connect_sandbox.page.conversation import PERSON
from molecule_connect_sandbox.page.guard import HEADER
from molecule_connect_sandbox.page.peers import NEW_PEER
from molecule_connect_sandbox.running import running_sandboxes
from molecule_connect_sandbox.session import clean

SERVE = "start one in another terminal: molecule sandbox --serve"
# Seconds: for one request, and between two looks for the answer.
REQUEST_TIMEOUT = 60.0
FIRST_LOOK, LAST_LOOK = 0.1, 1.0


@attrs.frozen(kw_only=True)
class Question:
    """A message to send.

    Attributes:
        to: The name or id of the workspace. None: the one that is served, or the default one of several.
        timeout: Seconds to wait for the answer.
        save: The folder for files of the answer. None: they are only listed.
    """

    text: str
    files: tuple[Path, ...] = ()
    as_peer: bool = False
    to: str | None = None
    timeout: float = 120.0
    save: Path | None = None


@attrs.frozen(kw_only=True)
class Reply:
    """The answer. ``files`` are lines: where each was saved, or its name and address."""

    text: str
    files: tuple[str, ...]


def find_sandbox(url: str | None, environ: Mapping[str, str] = os.environ) -> str:
    """The address of the sandbox to use: *url*, else the one that ``MOLECULE_API_URL`` names, else the newest.

    Raises:
        ConfigError: None is running.
    """
    if url is not None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme != "http" or not is_local(parts.netloc):
            raise ConfigError(
                f"{url} is not an address of a sandbox, which listens on this machine only",
                hint="write it as --url http://127.0.0.1:PORT",
            )
        address = f"http://{parts.netloc}"
        if _boot(address) is None:
            raise ConfigError(f"no sandbox is running at {address}", hint=SERVE)
        return address
    found = [one.url for one in running_sandboxes(environ) if _boot(one.url) == one.boot]
    if not found:
        raise ConfigError("no sandbox is running", hint=SERVE)
    named = environ.get("MOLECULE_API_URL", "").rstrip("/")
    return named if named in found else found[0]


def _boot(url: str) -> str | None:
    """What identifies the running sandbox at *url*; None if there is none."""
    try:
        with _client(url) as client:
            response = client.get("/_sandbox/state", timeout=5)
        known = response.json()
    except (httpx.HTTPError, ValueError):
        return None
    if response.status_code == 403 and isinstance(known, dict) and "another user" in str(known.get("error")):
        raise ConfigError(f"the sandbox at {url} belongs to another user", hint=SERVE)
    return str(known["boot"]) if isinstance(known, dict) and "boot" in known else None


def _client(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={HEADER: "1"}, timeout=REQUEST_TIMEOUT, trust_env=False)


def choose_workspace(workspaces: Sequence[dict[str, Any]], to: str | None) -> dict[str, Any]:
    """The workspace to write to.

    Raises:
        ConfigError: There is no such workspace, none is served, or several are and none is the default one.
    """
    known = ", ".join(clean(one["name"]) for one in workspaces) or "none"
    if to is not None:
        found = [one for one in workspaces if to in (one["id"], one["name"])]
        if not found:
            raise ConfigError(f"no workspace is named {to!r}", hint=f"the workspaces are: {known}")
        if len(found) > 1:
            raise ConfigError(f"{len(found)} workspaces are named {to!r}", hint="pass the id with --to")
    else:
        found = list(workspaces)
    served = [one for one in found if _is_served(one)]
    if not served:
        if len(found) == 1 and found[0]["status"] == "paused":
            raise ConfigError(f"the workspace {clean(found[0]['name'])} is paused", hint="resume it, and try again")
        raise ConfigError(
            f"the workspace {clean(found[0]['name'])} is not online" if len(found) == 1 else "no workspace is online",
            hint="start a connector: paste the export lines of the sandbox, then run: molecule connect --backend mock",
        )
    default = [one for one in served if one["name"] == "sandbox"]
    if len(served) > 1 and len(default) != 1:
        names = ", ".join(clean(one["name"]) for one in served)
        raise ConfigError("several workspaces are online", hint=f"choose one with --to: {names}")
    return (default if len(served) > 1 else served)[0]


def _is_served(one: dict[str, Any]) -> bool:
    return bool(one["status"] == "online" or (one["status"] == "degraded" and one["error"] != "stopped"))


def ask(url: str, question: Question) -> Reply:
    """Send *question* to the sandbox at *url* and wait for the answer.

    Raises:
        ConfigError: It can't be sent.
        MoleculeError: It was not answered in time, or became a dead letter.
    """
    with _client(url) as client:
        workspace = choose_workspace(_request(client, "GET", "/_sandbox/state").json()["workspaces"], question.to)
        path = f"/_sandbox/workspaces/{quote(workspace['id'], safe='')}/messages"
        voice = NEW_PEER if question.as_peer else PERSON
        before = _messages(client, path, {"as": voice, "limit": 1})
        after = before[-1]["seq"] if before else 0
        sent = _send(client, path, question, voice)
        message = _wait(client, path, question, sent, after)
        name = clean(workspace["name"])
        if message is None:
            raise MoleculeError(
                f"{name} has not answered within {question.timeout:g} s",
                hint=f"the answer may still come: open {url}/, or wait longer with --timeout SECONDS; "
                f"if it failed: molecule messages list {workspace['id']} --state dead",
            )
        if message["notice"]:
            raise MoleculeError(
                f"{name} could not answer: {clean(message['text'])}",
                hint=f"for the reason, run: molecule messages list {workspace['id']} --state dead",
            )
        lines = tuple(_file_line(client, file, question.save) for file in message["files"])
        return Reply(text=clean(message["text"]), files=lines)


def _request(client: httpx.Client, method: str, path: str, **content: Any) -> httpx.Response:
    try:
        response = client.request(method, path, **content)
    except httpx.TransportError as exc:
        raise MoleculeError(
            f"the sandbox at {client.base_url} does not answer: {type(exc).__name__}", hint="look at its terminal"
        ) from exc
    if response.is_success:
        return response
    try:
        refused = response.json()
        reason, hint = str(refused["error"]), str(refused.get("hint", ""))
    except (ValueError, KeyError, TypeError):
        reason, hint = f"status {response.status_code}", ""
    raise ConfigError(f"the sandbox refused it: {clean(reason)}", hint=clean(hint) or "change it, and try again")


def _messages(client: httpx.Client, path: str, query: dict[str, Any]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = _request(client, "GET", path, params=query).json()["messages"]
    return messages


def _send(client: httpx.Client, path: str, question: Question, voice: str) -> dict[str, Any]:
    parts: list[tuple[str, Any]] = [("text", (None, question.text)), ("as", (None, voice))]
    for file in question.files:
        try:
            content = file.read_bytes()
        except OSError as exc:
            raise ConfigError(f"cannot read {file}: {exc.strerror}", hint="choose a file that you can read") from exc
        if not content:
            raise ConfigError(f"{file} is empty", hint="the platform does not accept empty files")
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        parts.append(("files", (file.name, content, kind)))
    sent: dict[str, Any] = _request(client, "POST", path, files=parts).json()
    return sent


def _wait(
    client: httpx.Client, path: str, question: Question, sent: dict[str, Any], after: int
) -> dict[str, Any] | None:
    """The first message of the agent after the question. On a peer's question, it names the question."""
    deadline, pause, asked = time.monotonic() + question.timeout, FIRST_LOOK, False
    while True:
        for message in _messages(client, path, {"as": sent["as"], "after": after, "limit": 200}):
            after = message["seq"]
            asked = asked or message["message_id"] == sent["message_id"]
            if asked and message["from"] == "agent" and message["reply_to"] in (None, sent["message_id"]):
                return message
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, LAST_LOOK)


def _file_line(client: httpx.Client, file: dict[str, Any], save: Path | None) -> str:
    name, address = clean(file["name"]), file["address"]
    if file["source"] not in ("upload", "inline"):
        return f"file: {name}" + (f" {clean(address)}" if address else "")
    if save is None:
        return f"file: {name} {client.base_url.join(address)}"
    content = _request(client, "GET", address).content
    path = _free_path(save, safe_name(file["name"]))
    try:
        save.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as exc:
        raise MoleculeError(f"cannot save {path}: {exc.strerror}", hint="choose another folder with --save") from exc
    return f"file: {path}"


def _free_path(folder: Path, name: str) -> Path:
    """A path in *folder* that doesn't exist."""
    path, number = folder / name, 1
    while path.exists() or path.is_symlink():
        number += 1
        path = folder / f"{Path(name).stem}-{number}{Path(name).suffix}"
    return path


def run_say(url: str | None, question: Question) -> None:
    """Ask, and print the answer."""
    reply = ask(find_sandbox(url), question)
    if reply.text or not reply.files:
        click.echo(reply.text)
    for line in reply.files:
        click.echo(line)
