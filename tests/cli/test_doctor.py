"""``molecule doctor``: each thing that can be wrong is one row, and none of it is changed by looking."""

import os
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from molecule_connect.cli import diagnostics
from molecule_connect.platform.client import AsyncPlatformClient
from molecule_connect.worker.lease import lease
from molecule_connect_sandbox.testing import Sandbox

Molecule = Callable[..., Any]


def levels(findings: list[diagnostics.Finding]) -> dict[str, str]:
    return {finding.check: finding.level for finding in findings}


async def look(
    api_url: str,
    folder: Path,
    environ: dict[str, str] | None = None,
    *,
    workspace_id: str | None = "ws_1",
    config: Path | None = None,
    token: str | None = None,
) -> list[Any]:
    options = {
        "state_dir": str(folder),
        "config": config,
        "workspace_id": workspace_id,
        "profile": None,
        "journal_url": None,
    }
    given = {"workspace_id": workspace_id, "api_url": api_url, "backend": ""} | ({"token": token} if token else {})
    found = diagnostics.checkup(options, given, environ or {}, datetime.now(UTC).timestamp())
    return [finding async for finding in found]


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox.over_loopback() as sandbox:
        yield sandbox


async def test_passes_without_registering_or_writing(sandbox: Sandbox, tmp_path: Path) -> None:
    workspace = await sandbox.workspace()

    found = await look(sandbox.url, tmp_path / "state", workspace_id=workspace.id, token=workspace.token)

    assert levels(found) == {
        "state folder": "ok",
        "asked for": "ok",
        "connector": "ok",
        "backend": "-",
        "token": "ok",
        "platform": "ok",
        "workspace": "ok",
        "clock": "ok",
        "token accepted": "ok",
        "event stream": "ok",
    }
    assert await sandbox.beats(workspace) == []
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - of interest is that it is empty
    assert not any(workspace.token in line for line in diagnostics.lines(found))


def test_names_default_backend_and_address(molecule: Molecule) -> None:
    result = molecule("doctor", "ws_1", "--token", "some-token-1234", PATH="")

    assert result.code == 1
    assert (
        "at http://localhost:8080, the default address (--api-url or MOLECULE_API_URL names another)" in result.stdout
    )
    (backend,) = (line for line in result.stdout.splitlines() if line.startswith("backend "))
    assert "FAIL" in backend
    assert "claude" in backend


def test_chosen_address_is_not_called_default(molecule: Molecule) -> None:
    result = molecule("doctor", "ws_1", "--token", "some-token-1234", MOLECULE_API_URL="http://127.0.0.1:1")

    assert "the default address" not in result.stdout


@pytest.mark.parametrize("command", [("doctor",), ("connect", "--dry-run", "--backend", "parrot")])
def test_reports_an_unwritable_home(molecule: Molecule, environ: dict[str, str], command: tuple[str, ...]) -> None:
    for name in (".config", ".molecule-workspace"):
        (Path(environ["HOME"]) / name).touch()

    result = molecule(*command, "ws_1", "--token", "some-token-1234", MOLECULE_API_URL="http://127.0.0.1:1")

    assert result.code != 0
    assert "no state folder can be written" in result.output
    assert environ["HOME"] in result.output


async def test_refused_token_fails_with_a_hint(sandbox: Sandbox, tmp_path: Path) -> None:
    workspace = await sandbox.workspace()

    found = await look(sandbox.url, tmp_path, workspace_id=workspace.id, token="not-the-token-1234")

    assert (found[-1].check, found[-1].level) == ("token accepted", "FAIL")
    assert "a current one" in found[-1].hint


async def test_unreachable_platform_ends_the_table(tmp_path: Path) -> None:
    found = await look("http://127.0.0.1:1", tmp_path, token="some-token-1234")

    assert (found[-1].check, found[-1].level) == ("platform", "FAIL")
    assert "cannot be reached" in found[-1].text


async def test_a_connector_that_runs_is_named(tmp_path: Path) -> None:
    with lease(tmp_path, "ws_1"):
        found = await look("http://127.0.0.1:1", tmp_path, token="some-token-1234")

    (connector,) = [finding for finding in found if finding.check == "connector"]
    assert (connector.level, f"process {os.getpid()} on " in connector.text) == ("warn", True)


def answering(answers: dict[str, tuple[int, Any]], *, ahead: timedelta = timedelta()) -> AsyncPlatformClient:
    """A client of a platform that answers by the last word of the path; anything else is 404 without words."""

    def handle(request: httpx.Request) -> httpx.Response:
        status, body = answers.get(request.url.path.rpartition("/")[2], (404, None))
        date = (datetime.now(UTC) + ahead).strftime("%a, %d %b %Y %H:%M:%S GMT")
        return httpx.Response(status, json=body, headers={"Date": date})

    return AsyncPlatformClient(
        "http://127.0.0.1:1", workspace_id="ws_1", token="some-token-1234", transport=httpx.MockTransport(handle)
    )


@pytest.mark.parametrize(
    ("answers", "check", "level", "words"),
    [
        ({"ws_1": (200, {"status": "paused"})}, "workspace", "warn", "paused"),
        ({"ws_1": (410, {"error": "gone", "hint": "make another"})}, "workspace", "FAIL", "deleted"),
        ({"ws_1": (410, {"error": "gone"})}, "workspace", "FAIL", "deleted"),
        ({"ws_1": (400, {"error": "invalid workspace ID"})}, "platform", "FAIL", "invalid"),
        ({"ws_1": (404, None)}, "workspace", "warn", "no information about it"),
        ({"ws_1": (404, {"error": "workspace not found"})}, "workspace", "FAIL", "has no workspace with this id"),
        ({"ws_1": (200, {"status": "online"})}, "token accepted", "-", "can't check a token"),
        ({"ws_1": (200, {"status": "online"}), "state": (200, {})}, "event stream", "warn", "404"),
        ({"ws_1": (200, {"status": "online"}), "stream": (401, {"error": "no"})}, "token accepted", "FAIL", "401"),
        ({"ws_1": (200, {"status": "online"}), "state": (500, None)}, "token accepted", "FAIL", "500"),
    ],
)
async def test_what_the_platform_says_decides_a_row(
    answers: dict[str, tuple[int, Any]], check: str, level: str, words: str
) -> None:
    async with answering(answers) as client:
        found = {f.check: f async for f in diagnostics._platform(client, datetime.now(UTC).timestamp())}

    assert found[check].level == level
    assert words in found[check].text
    assert level != "FAIL" or found[check].hint


@pytest.mark.parametrize(("minutes", "words"), [(10, "10 min behind"), (-10, "10 min ahead of")])
async def test_clocks_that_disagree_are_told(minutes: int, words: str) -> None:
    async with answering({"ws_1": (200, {"status": "online"})}, ahead=timedelta(minutes=minutes)) as client:
        found = {f.check: f async for f in diagnostics._platform(client, datetime.now(UTC).timestamp())}

    assert (found["clock"].level, words in found["clock"].text) == ("warn", True)


@pytest.mark.parametrize(
    ("arguments", "row"),
    [
        (["ws_1"], "token  FAIL  no workspace token was given -> "),
        ([], "asked for  FAIL  no workspace id was given -> "),
        (["a/b"], "asked for  FAIL  'a/b' cannot be a workspace id -> "),
        (["ws_1", "--api-url", "http://far.example"], "asked for  FAIL  http://far.example would carry the token"),
        (["ws_1", "--token-file", "/nowhere"], "token  FAIL  the token file /nowhere "),
        (["ws_1", "--backend", "unready"], "backend  FAIL  backend unready: no login -> "),
        (["ws_1", "--backend", "unready"], "permissions  ok  unready may: do nothing"),
        (
            ["ws_1", "--backend", "parrot", "--backend-opt", "sufix=?"],
            "backend  warn  backend parrot has no option 'sufix', did you mean 'suffix'?; its options are ",
        ),
        (
            ["ws_1", "--backend", "parrot", "--backend-opt", "sufix=?", "--backend-opt", "times=x"],
            "backend  warn  backend parrot has no option 'sufix', did you mean 'suffix'?; its options are ",
        ),
        (["ws_1", "--backend", "parrot"], "backend  ok  parrot is ready"),
        (["ws_1", "--backend", "nobody"], "backend  FAIL  no backend named 'nobody'"),
    ],
)
def test_local_problem_exits_1(molecule: Molecule, arguments: list[str], row: str) -> None:
    result = molecule("doctor", *arguments)

    assert result.code == 1
    shown = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert [line for line in shown if line.startswith(" ".join(row.split()))], shown


async def test_checks_each_workspace_of_a_list(sandbox: Sandbox, tmp_path: Path) -> None:
    workspace, other = await sandbox.workspace(), await sandbox.workspace()
    config = tmp_path / "fleet.toml"
    blocks = [
        f'[[workspace]]\nid = "{workspace.id}"\ntoken = "{workspace.token}"\napi_url = "{sandbox.url}"\n',
        f'[[workspace]]\nid = "{other.id}"\ntoken = "{other.token}"\napi_url = "http://127.0.0.1:1"\n',
    ]
    config.write_text('[defaults]\nbackend = "mock"\n' + "".join(blocks))
    config.chmod(0o600)

    both = await look("http://unused", tmp_path, workspace_id=None, config=config)
    one = await look("http://unused", tmp_path, workspace_id=workspace.id, config=config)
    unknown = await look("http://unused", tmp_path, workspace_id="nobody", config=config)

    by_workspace = {name: [f for f in both if f.workspace == name] for name in (workspace.id, other.id)}
    assert levels(by_workspace[workspace.id])["token accepted"] == "ok"
    assert levels(by_workspace[workspace.id])["backend"] == "ok"
    assert levels(by_workspace[other.id])["platform"] == "FAIL"
    assert f"\n{other.id}" in list(diagnostics.lines(both))
    assert {finding.workspace for finding in one} == {"", workspace.id}
    assert (unknown[-1].level, unknown[-1].text) == ("FAIL", "nobody is not on the list")
    assert not any(workspace.token in line or other.token in line for line in diagnostics.lines(both))


async def test_bad_block_hides_no_other(sandbox: Sandbox, tmp_path: Path) -> None:
    workspace, config = await sandbox.workspace(), tmp_path / "fleet.toml"
    config.touch(mode=0o600)
    config.write_text(
        f'[defaults]\napi_url = "{sandbox.url}"\nbackend = "mock"\n'
        f'[[workspace]]\nid = "{workspace.id}"\ntoken = "{workspace.token}"\n'
        '[[workspace]]\nid = "bad"\ntoken_file = "none"\n'
    )

    found = await look("http://unused", tmp_path, workspace_id=None, config=config)
    one = await look("http://unused", tmp_path, workspace_id="bad", config=config)

    for findings in (found, one):
        (failed,) = [finding for finding in findings if finding.level == "FAIL"]
        assert (failed.workspace, failed.check) == ("bad", "asked for")
        assert failed.text.startswith(f"{config}: workspace 2 (bad): the token file ")
    assert levels([finding for finding in found if finding.workspace == workspace.id])["token accepted"] == "ok"


async def test_shows_every_fault_of_a_list(tmp_path: Path) -> None:
    environ = {
        "MOLECULE_WORKSPACES": '[{"id": "a"}, {"token": "some-token"}]',
        "MOLECULE_WORKSPACE_TOKEN": "not-theirs",
    }

    found = await look("http://unused", tmp_path, environ, workspace_id=None)

    assert [finding.level for finding in found] == ["ok", "FAIL", "FAIL"]
    assert "workspace 1 (a): it has neither token nor token_file" in found[1].text
    assert "workspace 2: it has no id" in found[2].text
