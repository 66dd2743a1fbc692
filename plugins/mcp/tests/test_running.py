"""What a start is refused for."""

from pathlib import Path

import pytest

from molecule_connect import ConfigError
from molecule_connect_mcp.running import read_workspaces

WHOLE = {"WORKSPACE_ID": "ws-1", "MOLECULE_WORKSPACE_TOKEN": "t-1"}


@pytest.mark.parametrize("missing", WHOLE)
def test_what_is_missing_is_named_in_the_words_of_a_host(tmp_path: Path, missing: str) -> None:
    environ = {name: value for name, value in WHOLE.items() if name != missing}
    with pytest.raises(ConfigError) as caught:
        read_workspaces(environ, state_dir=tmp_path)
    assert missing in caught.value.hint
    assert "host's configuration" in caught.value.hint


def test_a_platform_that_is_out_of_reach_is_waited_for() -> None:
    (one,) = read_workspaces(WHOLE, state_dir=None)
    assert (one.workspace_id, one.patient) == ("ws-1", True)
