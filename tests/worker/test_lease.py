"""One process serves a workspace from this machine; the next is told who does."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.worker.kit import FakePlatform, Serving

from molecule_connect.errors import ConfigError, LeaseError, TransientPlatformError
from molecule_connect.journal.journal import Journal
from molecule_connect.worker.lease import lease

HOLD = """
import sys
from pathlib import Path
from molecule_connect.worker.lease import lease
with lease(Path(sys.argv[1]), "ws-1"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_holder_is_told_who_the_first_is(tmp_path: Path) -> None:
    holder = f"{os.getpid()} on {socket.gethostname()}"
    with lease(tmp_path, "ws-1"), pytest.raises(LeaseError, match=holder) as refused:
        lease(tmp_path, "ws-1").__enter__()
    assert refused.value.hint


def test_it_is_free_again_when_its_holder_has_ended(tmp_path: Path) -> None:
    with lease(tmp_path, "ws-1"):
        pass
    with lease(tmp_path, "ws-1"):
        pass


def test_workspaces_whose_ids_begin_alike_do_not_share_one(tmp_path: Path) -> None:
    with lease(tmp_path, "6f1c2b1e-8a44-1"), lease(tmp_path, "6f1c2b1e-8a44-2"):
        pass


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    with lease(tmp_path, "ws-1"):
        assert (tmp_path / "ws-1.lock").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("junk", [b"", b"not json", b"[]", b'{"pid": 1}', b"\xff" * 5000, b"[" * 5000])
def test_what_stands_in_the_file_does_not_matter(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "ws-1.lock"
    path.write_bytes(junk)
    with lease(tmp_path, "ws-1"):
        path.write_bytes(junk)
        with pytest.raises(LeaseError, match="another process"), lease(tmp_path, "ws-1"):
            pass


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing"), lease(tmp_path / "missing", "ws-1"):
        pass


def test_a_process_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LeaseError, match=f"process {holder.pid}"), lease(tmp_path, "ws-1"):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with lease(tmp_path, "ws-1"):
        pass


async def test_a_connection_whose_workspace_is_served_elsewhere_asks_the_platform_nothing(journal: Journal) -> None:
    platform = FakePlatform()
    serving = Serving(platform, journal)
    with lease(journal.path.parent, "ws-1"), pytest.raises(LeaseError):
        await serving.connection.run(serving.stop)
    assert platform.looks == []
    assert platform.cards == []


async def test_a_connection_that_could_not_register_lets_go(journal: Journal) -> None:
    error = TransientPlatformError("register: 503", operation="register", status=503)
    serving = Serving(FakePlatform(fail_register=[error] * 5), journal)
    with pytest.raises(TransientPlatformError):
        await serving.connection.run(serving.stop)
    with lease(journal.path.parent, "ws-1"):
        pass
