"""The MCP server: what it says of itself, its tools, and the channel's capability in both eras of the protocol."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import NotificationOptions, Server

from molecule_connect_mcp import __version__
from molecule_connect_mcp.catalogue import INSTRUCTIONS, TOOLS, Tool

CHANNEL = "claude/channel"
CHANNEL_NOTIFICATION = "notifications/claude/channel"

Call = Callable[[str, Mapping[str, Any]], Awaitable[tuple[str, bool]]]
"""A tool's name and arguments; its text, and whether that tells of an error."""


class ChannelServer(Server[dict[str, Any]]):
    """A server that declares the channel: the era without a handshake ignores the initialisation options."""

    def get_capabilities(
        self,
        notification_options: NotificationOptions | None = None,
        experimental_capabilities: dict[str, dict[str, Any]] | None = None,
        extensions: dict[str, dict[str, Any]] | None = None,
        *,
        protocol_version: str | None = None,
    ) -> types.ServerCapabilities:
        """As the SDK's, and the channel."""
        return super().get_capabilities(
            notification_options,
            {CHANNEL: {}, **(experimental_capabilities or {})},
            extensions,
            protocol_version=protocol_version,
        )


def create_server(call: Call) -> ChannelServer:
    """The server; *call* runs a tool."""

    async def list_tools(
        context: ServerRequestContext[dict[str, Any]], params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[_described(tool) for tool in TOOLS])

    async def call_tool(
        context: ServerRequestContext[dict[str, Any]], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        text, failed = await call(params.name, params.arguments or {})
        return types.CallToolResult(content=[types.TextContent(type="text", text=text)], is_error=failed)

    return ChannelServer(
        "molecule",
        version=__version__,
        title="Molecule inbox",
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


def _described(tool: Tool) -> types.Tool:
    return types.Tool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=tool.schema,
        annotations=types.ToolAnnotations(
            read_only_hint=tool.reads_only, destructive_hint=tool.removes, idempotent_hint=tool.repeatable
        ),
    )
