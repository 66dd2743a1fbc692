"""``molecule status``: what it finds out about connectors without asking them, and its exit codes."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from molecule_connect.cli.local_status import local_statuses
from molecule_connect.journal.journal import FILE_NAME, Journal
from molecule_connect.journal.models import Conversation
from molecule_connect.models import Inbound, Kind, TextPart
from molecule_connect.worker.lease import lease
from molecule_connect.worker.status_file import Problem, RefusedBlocksFile, SavedStatus, status_path

Molecule = Callable[..., Any]
# Times here are told relative to this, and moved to the time of the test.
NOW = 1_800_000_000.0
WELL = SavedStatus(
    workspace_id="ws_1",
    pid=os.getpid(),
    host="here",
    started=NOW - 600,
    written=NOW,
    api_url="https://platform.example",
    backend="exec",
    registered=True,
    last_beat=NOW - 12,
    listening="stream",
)
TROUBLE = Problem(part="intake", reason="no feed\x1b[2J", hint="look there", since=NOW - 300)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


@pytest.fixture
def status(molecule: Molecule, state: Path) -> Molecule:
    """Run ``molecule status`` on the state folder."""
    return lambda *arguments: molecule("status", *arguments, MOLECULE_STATE_DIR=str(state))


def tell(state: Path, told: SavedStatus, **changes: Any) -> None:
    values = attrs.asdict(attrs.evolve(told, **changes))
    passed = time.time() - NOW
    for part in (values, *values["ailments"], values["ended"] or {}):
        moved = {name: part[name] + passed for name in ("started", "written", "last_beat", "since") if part.get(name)}
        part.update(moved)
    status_path(state, values["workspace_id"]).write_text(json.dumps(values))


@contextlib.contextmanager
def serving(state: Path, told: SavedStatus = WELL, **changes: Any) -> Iterator[None]:
    """As if a connector ran that told this of itself."""
    with lease(state, told.workspace_id):
        tell(state, told, **changes)
        yield


def fill(state: Path, waiting: int, *, running: bool = False, workspace_id: str = "ws_1") -> None:
    async def main() -> None:
        async with Journal.open(state, wall=time.time) as journal:
            part = journal.of(workspace_id)
            items = [
                Inbound(
                    row_id=f"row-{number}",
                    kind=Kind.MESSAGE,
                    message_id=f"row-{number}",
                    idempotency_key=f"row-{number}",
                    context_id=f"c{number}",
                    parts=(TextPart("hello"),),
                    time=round((time.time() - 300) * 1e6),
                )
                for number in range(waiting)
            ]
            await part.add(items, now=0)
            if running:
                entry = part.next(Conversation(None, "c0"))
                assert entry is not None
                assert await part.start(entry)

    asyncio.run(main())


def test_id_in_capitals_names_same_workspace(status: Molecule, state: Path) -> None:
    name = "dc98486f-8e1e-44fc-94c0-ba89c005241b"
    with serving(state, attrs.evolve(WELL, workspace_id=name)):
        result = status(f" {name.upper()}")

    assert result.code == 0
    assert result.stdout.startswith(f"{name}: runs well")


def test_working_connector_exits_0(status: Molecule, state: Path) -> None:
    fill(state, 3, running=True)
    with serving(state):
        result = status()

    assert result.code == 0
    assert result.stdout.startswith(f"ws_1: runs well (process {os.getpid()} on ")
    assert "    platform   https://platform.example, backend exec\n" in result.stdout
    assert "    presence   registered, last heartbeat 1" in result.stdout
    assert "    listening  by stream\n" in result.stdout
    assert "    running    1 message\n" in result.stdout
    assert 'row-0 of person, "hello" attempt 1, for ' in result.stdout
    assert "    waiting    2 messages, the oldest for 5 min\n" in result.stdout
    assert "trouble" not in result.stdout


@pytest.mark.parametrize(
    ("changes", "state_name", "code", "words"),
    [
        ({"ailments": [TROUBLE]}, "trouble", 1, "trouble    intake, for 5 min: no feed -> look there\n"),
        ({"ailments": [attrs.evolve(TROUBLE, part="stream")]}, "running", 0, "trouble    stream, for 5 min"),
        ({"paused": True, "registered": False}, "paused", 0, "is paused on the platform"),
        ({"registered": False}, "starting", 1, "is starting"),
        ({"stopping": True}, "stopping", 1, "is stopping"),
        ({"written": NOW - 300}, "silent", 1, "hangs: it has not updated its status for 5 min -> restart it"),
        ({"last_beat": NOW - 200}, "trouble", 1, "trouble    heartbeat, for 3 min"),
        ({"last_beat": None}, "trouble", 1, "no heartbeat yet"),
        ({"last_beat": None, "started": NOW - 5}, "running", 0, "no heartbeat yet"),
        ({"pid": 1, "ailments": [TROUBLE]}, "starting", 1, "is starting"),
    ],
)
def test_reported_facts_decide_state_and_code(
    status: Molecule, state: Path, changes: dict[str, Any], state_name: str, code: int, words: str
) -> None:
    with serving(state, **changes):
        for_people, for_machines = status("ws_1"), status("ws_1", "--json")

    (found,) = json.loads(for_machines.stdout)["workspaces"]
    assert (found["state"], for_people.code, for_machines.code) == (state_name, code, code)
    assert found["well"] is (code == 0)
    assert words in for_people.stdout
    assert "\x1b" not in for_people.stdout + for_machines.stdout


def test_labels_are_shown(status: Molecule, state: Path) -> None:
    with serving(state, labels={"team": "support", "site": "a\x1b[2Jb"}):
        for_people, for_machines = status("ws_1"), status("ws_1", "--json")

    assert "labels     team=support, site=a" in for_people.stdout
    assert "\x1b" not in for_people.stdout
    assert json.loads(for_machines.stdout)["workspaces"][0]["labels"] == {"team": "support", "site": "a\x1b[2Jb"}


def test_distinguishes_killed_from_stopped(status: Molecule, state: Path) -> None:
    fill(state, 1, running=True)
    tell(state, WELL)

    killed = status("ws_1")

    assert killed.code == 1
    assert f"no connector runs; process {os.getpid()} was killed or crashed (last status update " in killed.stdout
    assert "running    1 message, interrupted" in killed.stdout
    assert "presence" not in killed.stdout
    status_path(state, "ws_1").unlink()
    assert status("ws_1").stdout.startswith("ws_1: no connector runs\n")


def test_what_ended_a_connector_is_told(status: Molecule, state: Path) -> None:
    tell(state, WELL, ended=Problem(part="connection", reason="401", hint="a new token", since=NOW - 300))

    result = status()

    assert result.code == 1
    forget = f"    forget it  rm {status_path(state, 'ws_1')}\n"
    assert result.stdout == "ws_1: no connector runs; the last one failed 5 min ago: 401 -> a new token\n" + forget
    assert json.loads(status("--json").stdout)["workspaces"][0]["ended"]["hint"] == "a new token"


def test_stopped_workspaces_do_not_count(status: Molecule, state: Path) -> None:
    fill(state, 1, workspace_id="ws_old")
    with serving(state):
        assert status().code == 0
        assert "ws_old: no connector runs\n" in status().stdout
        assert status("ws_old").code == 1
        tell(state, WELL, workspace_id="ws_died")
        assert status().code == 1
    assert [one.workspace_id for one in local_statuses(state, None, time.time())] == ["ws_1", "ws_died", "ws_old"]


ENDED = Problem(part="connection", reason="401", hint="a new token", since=NOW - 300)


def test_failed_start_does_not_count(status: Molecule, state: Path) -> None:
    with serving(state):
        tell(state, WELL, workspace_id="ws_typo", pid=1, registered=False, ended=ENDED)
        result = status()
        assert result.code == 0
        assert "ws_typo: no connector runs; the last start failed 5 min ago: 401 -> a new token\n" in result.stdout
        assert f"forget it  rm {status_path(state, 'ws_typo')}\n" in result.stdout
        assert status("ws_typo").code == 1
    assert status().code == 1


def test_ended_workspace_counts_until_file_removed(status: Molecule, state: Path) -> None:
    with serving(state):
        tell(state, WELL, workspace_id="ws_ended", pid=1, ended=ENDED)
        assert status().code == 1
        status_path(state, "ws_ended").unlink()
        assert status().code == 0


def test_given_up_workspace_counts(status: Molecule, state: Path) -> None:
    with serving(state, host=socket.gethostname()):
        tell(state, WELL, workspace_id="ws_refused", host=socket.gethostname(), registered=False, ended=ENDED)
        result = status()

    assert result.code == 1
    given_up = (
        f"ws_refused: failed 5 min ago; process {os.getpid()} still serves other workspaces: 401 -> a new token\n"
    )
    assert given_up in result.stdout
    assert "forget it" not in result.stdout


def test_blocks_that_a_running_process_refuses_count(status: Molecule, state: Path) -> None:
    refused = Problem(part="list", reason="workspace 2 (ws_2): no backend", hint="name one", since=time.time() - 300)
    RefusedBlocksFile(state).write({"ws_2": refused, "workspace 3": refused})
    assert status("ws_2").stdout == "ws_2: no connector runs\n"
    with serving(state, host=socket.gethostname()):
        found, one = status(), status("ws_2")
        document = json.loads(status("--json").stdout)

    assert (found.code, one.code) == (1, 1)
    for name in ("ws_2", "workspace 3"):
        head = (
            f"{name}: is not served: process {os.getpid()} serves other workspaces of the list, but rejected this one\n"
        )
        assert f"{head}    trouble    list, for 5 min: workspace 2 (ws_2): no backend -> name one\n" in found.stdout
    assert "forget it" not in found.stdout
    assert one.stdout.startswith("ws_2: is not served: ")
    assert [(found["workspace_id"], found["state"]) for found in document["workspaces"]] == [
        ("workspace 3", "refused"),
        ("ws_1", "running"),
        ("ws_2", "refused"),
    ]


def test_refused_block_is_a_problem(status: Molecule, state: Path) -> None:
    refused = Problem(part="list", reason="workspace 1 (ws_1): no backend", since=time.time() - 300)
    RefusedBlocksFile(state).write({"ws_1": refused})
    with serving(state, host=socket.gethostname()):
        assert status().code == 1
        assert "trouble    list, for 5 min: workspace 1 (ws_1): no backend\n" in status().stdout
        RefusedBlocksFile(state).write({})
        assert status().code == 0


def test_what_a_killed_process_refused_is_forgotten(status: Molecule, state: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    content = {"pid": process.pid, "host": socket.gethostname(), "blocks": {"ws_9": {"part": "list", "reason": "x"}}}
    left = state / f"{socket.gethostname()}.{process.pid}.refused"
    left.write_text(json.dumps(content))
    (state / "broken.refused").write_text("{")
    with serving(state, host=socket.gethostname()):
        assert status().code == 0
        assert "ws_9" not in status().stdout
    RefusedBlocksFile(state).write({})
    assert list(state.glob("*.refused")) == []


def test_empty_state_folder_is_reported(status: Molecule, state: Path) -> None:
    state.rmdir()

    result = status()

    assert result.code == 1
    assert f"no connector runs, and none has used the state folder {state}\nwhat to do: " in result.stdout
    assert json.loads(status("--json").stdout)["workspaces"] == []
    assert status("ws_1").stdout == "ws_1: no connector runs\n"
    assert not state.exists()


def test_unreadable_journal_is_a_problem(status: Molecule, state: Path) -> None:
    (state / FILE_NAME).write_bytes(b"nothing that SQLite would know" * 100)
    with serving(state):
        result = status()

    assert result.code == 1
    assert "ws_1: runs, but has problems" in result.stdout
    assert "trouble    journal" in result.stdout
    assert "presence   registered" in result.stdout


def test_json_has_every_key_whatever_the_state(status: Molecule, state: Path) -> None:
    fill(state, 1)
    with serving(state):
        well = json.loads(status("--json").stdout)
    stopped = json.loads(status("other", "--json").stdout)

    assert well["state_dir"] == stopped["state_dir"] == str(state)
    assert well["workspaces"][0].keys() == stopped["workspaces"][0].keys()
    assert well["workspaces"][0]["messages"]["received"] == 1
    assert well["workspaces"][0]["pid"] == os.getpid()
    assert stopped["workspaces"][0]["pid"] is None


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
def test_a_suspended_process_is_not_well(status: Molecule, state: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from molecule_connect.worker.lease import lease\n"
        "with lease(Path(sys.argv[1]), 'ws_1'): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(state)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            tell(state, WELL, pid=process.pid)
            assert status().stdout.startswith("ws_1: runs well")
            process.send_signal(signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            suspended, told = status("ws_1"), status("--json")
            process.send_signal(signal.SIGCONT)
            os.waitpid(process.pid, os.WCONTINUED)
            assert status().code == 0
        finally:
            process.kill()
    assert suspended.code == told.code == 1
    assert f"is suspended by SIGSTOP or Ctrl-Z and receives no messages -> kill -CONT {process.pid}" in (
        suspended.stdout
    )
    assert json.loads(told.stdout)["workspaces"][0]["state"] == "suspended"
