"""The pages of the MCP server name its tools, arguments and variables, and their code blocks can be parsed."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from tests.docs.pages import DOCS, page

from molecule_connect_mcp import command, settings
from molecule_connect_mcp.catalogue import TOOLS

ROOT = DOCS.parent
README = (ROOT / "plugins" / "mcp" / "README.md").read_text()
HOSTS = ["mcp-claude-code.md", "mcp-claude-desktop.md", "mcp-codex.md", "mcp-other-hosts.md"]
VARIABLE = re.compile(r"\b(?:MOLECULE_[A-Z_]+|PLATFORM_URL|WORKSPACE_ID)\b")


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page(name), re.MULTILINE | re.DOTALL)


def test_pages_list_every_tool() -> None:
    tools = {tool.name for tool in TOOLS}
    for text in (page("mcp.md"), README):
        rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
        listed = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}
        assert tools <= listed


def test_page_names_every_argument_of_a_tool() -> None:
    for tool in TOOLS:
        (row,) = re.findall(rf"^\| `{tool.name}` \|(.*)$", page("mcp.md"), re.MULTILINE)
        arguments = set(tool.schema["properties"]) - {"workspace_id"}
        assert arguments == set(re.findall(r"`([a-z_]+)`", row.split("|")[0]))


def test_page_names_tools_without_workspace_argument() -> None:
    without = {tool.name for tool in TOOLS if "workspace_id" not in tool.schema["properties"]}
    (listed,) = re.findall(r"^Every tool except (.*), which cover all workspaces", page("mcp.md"), re.MULTILINE)
    assert without == set(re.findall(r"`([a-z_]+)`", listed))


def test_help_page_and_readme_name_same_variables() -> None:
    names = {settings.NO_HEARTBEAT, settings.NO_INBOX, settings.LEASE_SECS, "MOLECULE_ORG_ID", "MOLECULE_STATE_DIR"}
    for text in (page("mcp.md"), README, command.EPILOG):
        assert names <= set(VARIABLE.findall(text))
    assert set(VARIABLE.findall(command.EPILOG)) <= set(VARIABLE.findall(page("mcp.md")))


@pytest.mark.parametrize("name", HOSTS)
def test_host_configuration_blocks_can_be_parsed(name: str) -> None:
    for text in blocks(name, "json"):
        json.loads(text)
    for text in blocks(name, "toml"):
        tomllib.loads(text)
    for text in blocks(name, "python"):
        compile(text, name, "exec")
    assert "WORKSPACE_ID" in page(name)


def test_overview_links_a_page_per_host() -> None:
    named = set(re.findall(r"\((mcp-[a-z-]+\.md)\)", page("mcp.md")))
    assert named == set(HOSTS)
    assert all(Path(DOCS, name).is_file() for name in named)
