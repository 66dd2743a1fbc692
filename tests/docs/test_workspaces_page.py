"""The list in ``docs/workspaces.md`` can be served."""

from pathlib import Path

from tests.docs.pages import block, page

from molecule_connect.app import load_list
from molecule_connect.config.load import parse_file

PAGE = page("workspaces.md")


def test_the_list_of_the_page_is_one(tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    for name in ("tokens/ws_123", "tokens/ws_456", "ws_789"):
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_text(f"token-of-{name[-6:]}\n")
    config = tmp_path / "fleet.toml"
    config.touch(mode=0o600)
    config.write_text(block(PAGE, "toml"))

    one, two, three = load_list(parse_file(config, {"CREDENTIALS_DIRECTORY": str(tmp_path)})).whole()

    assert one.options == {"cmd": "python /opt/handler.py"}
    assert two.options == {"cmd": "python /opt/handler.py", "timeout": "20m"}
    assert (two.api_url, two.concurrency) == ("https://platform.example", 2)
    assert (three.api_url, three.backend, three.options) == ("https://other.example", "claude-code", {})
    assert three.token_file == tmp_path / "ws_789"
