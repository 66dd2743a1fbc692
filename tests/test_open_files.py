"""How many files a number of workspaces needs, held against what the process may open."""

import subprocess
import sys

import pytest

from molecule_connect.errors import ConfigError
from molecule_connect.open_files import PER_WORKSPACE, SHARED, most_streams


@pytest.mark.parametrize("limit", [None, 1 << 20, SHARED + 3 * 60])
def test_enough_files_leave_streams_alone(limit: int | None) -> None:
    assert most_streams(60, limit) == (None, "")


def test_too_few_files_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        most_streams(60, 100)

    assert "60 workspaces need 228 open files" in str(caught.value)
    assert "open only 100" in str(caught.value)
    assert "LimitNOFILE=" in caught.value.hint


def test_scarce_files_limit_event_streams() -> None:
    streams, warning = most_streams(60, SHARED + PER_WORKSPACE * 60 + 10)

    assert streams == 10
    assert "50 of them are polled, without an event stream" in warning
    assert most_streams(60, SHARED + 61)[0] == 0


def test_soft_limit_is_raised_to_hard_limit() -> None:
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 200));"
        "from molecule_connect import open_files; open_files.raise_limit(); print(open_files.limit())"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert run.stdout == "200\n"
