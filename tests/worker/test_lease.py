"""The lease: one process of this machine serves a workspace, and others see which."""

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


def test_second_holder_sees_the_first(tmp_path: Path) -> None:
    holder = f"{os.getpid()} on {socket.gethostname()}"
    with lease(tmp_path, "ws-1"), pytest.raises(LeaseError, match=holder) as refused:
        lease(tmp_path, "ws-1").__enter__()
    assert refused.value.hint


def test_free_after_its_holder_ended(tmp_path: Path) -> None:
    with lease(tmp_path, "ws-1"):
        pass
    with lease(tmp_path, "ws-1"):
        pass


def test_similar_ids_have_separate_leases(tmp_path: Path) -> None:
    with lease(tmp_path, "6f1c2b1e-8a44-1"), lease(tmp_path, "6f1c2b1e-8a44-2"):
        pass


def test_file_is_private(tmp_path: Path) -> None:
    with lease(tmp_path, "ws-1"):
        assert (tmp_path / "ws-1.lock").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("junk", [b"", b"not json", b"[]", b'{"pid": 1}', b"\xff" * 5000, b"[" * 5000])
def test_content_of_the_file_does_not_matter(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "ws-1.lock"
    path.write_bytes(junk)
    with lease(tmp_path, "ws-1"):
        path.write_bytes(junk)
        with pytest.raises(LeaseError, match="another process"), lease(tmp_path, "ws-1"):
            pass


def test_names_a_missing_folder(tmp_path: Path) -> None:
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


async def test_worker_without_lease_sends_no_request(journal: Journal) -> None:
    platform = FakePlatform()
    serving = Serving(platform, journal)
    with lease(journal.path.parent, "ws-1"), pytest.raises(LeaseError):
        await serving.connection.run(serving.stop)
    assert platform.looks == []
    assert platform.cards == []


async def test_worker_that_failed_releases_its_lease(journal: Journal) -> None:
    error = TransientPlatformError("register: 503", operation="register", status=503)
    serving = Serving(FakePlatform(fail_register=[error] * 5), journal)
    with pytest.raises(TransientPlatformError):
        await serving.connection.run(serving.stop)
    with lease(journal.path.parent, "ws-1"):
        pass
