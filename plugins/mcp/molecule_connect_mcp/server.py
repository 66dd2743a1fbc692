"""The MCP server: its capabilities and tools, in both eras of the protocol."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from molecule_connect_mcp import __version__
from molecule_connect_mcp.catalogue import INSTRUCTIONS, TOOLS, Tool

CHANNEL = "claude/channel"
CHANNEL_NOTIFICATION = "notifications/claude/channel"

# How long to wait for the host's roots, in seconds. Without a response, only the other roots count.
ROOTS_TIMEOUT = 10.0
_ROOTS = "roots"
_FILE_ARGUMENTS = {tool.name: tool.files for tool in TOOLS if tool.files}


class ToolCaller(Protocol):
    """Runs tools."""

    async def call(self, name: str, arguments: Mapping[str, Any], roots: Sequence[Path]) -> tuple[str, bool]:
        """Call a tool with the host's roots. Returns the text of the result, and whether it is an error."""
        ...


class ChannelServer(Server[dict[str, Any]]):
    """A server of *tools* that declares the channel capability.

    It overrides ``get_capabilities``, because the era without a handshake ignores the initialization options.
    """

    def __init__(self, tools: ToolCaller) -> None:
        self._tools = tools
        super().__init__(
            "molecule",
            version=__version__,
            title="Molecule inbox",
            instructions=INSTRUCTIONS,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
        )

    def get_capabilities(
        self,
        notification_options: NotificationOptions | None = None,
        experimental_capabilities: dict[str, dict[str, Any]] | None = None,
        extensions: dict[str, dict[str, Any]] | None = None,
        *,
        protocol_version: str | None = None,
    ) -> types.ServerCapabilities:
        """Add the channel to the SDK's capabilities."""
        return super().get_capabilities(
            notification_options,
            {CHANNEL: {}, **(experimental_capabilities or {})},
            extensions,
            protocol_version=protocol_version,
        )

    async def _list_tools(
        self, context: ServerRequestContext[dict[str, Any]], params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[_describe(tool) for tool in TOOLS])

    async def _call_tool(
        self, context: ServerRequestContext[dict[str, Any]], params: types.CallToolRequestParams
    ) -> types.CallToolResult | types.InputRequiredResult:
        arguments = params.arguments or {}
        sends_files = bool(arguments.get(_FILE_ARGUMENTS.get(params.name, "")))
        roots = await _host_roots(context, params.input_responses) if sends_files else ()
        if roots is None:
            return types.InputRequiredResult(input_requests={_ROOTS: types.ListRootsRequest()})
        text, is_error = await self._tools.call(params.name, arguments, roots)
        return types.CallToolResult(content=[types.TextContent(type="text", text=text)], is_error=is_error)


async def _host_roots(
    context: ServerRequestContext[dict[str, Any]], responses: types.InputResponses | None
) -> Sequence[Path] | None:
    """Return the host's current roots, or None if the result of the call has to request them.

    In the era without a handshake, a server sends no requests: the host calls the tool again with the roots.
    """
    capability = types.ClientCapabilities(roots=types.RootsCapability())
    if not context.session.check_client_capability(capability):
        return ()
    response: object = (responses or {}).get(_ROOTS)
    if context.session.can_send_request:
        try:
            response = await context.session.send_request(
                types.ListRootsRequest(), types.ListRootsResult, request_read_timeout_seconds=ROOTS_TIMEOUT
            )
        except (MCPError, ValidationError):
            return ()
    elif responses is None:
        return None
    roots = response.roots if isinstance(response, types.ListRootsResult) else []
    return [path for root in roots if (path := _local_folder(str(root.uri))) is not None]


def _local_folder(uri: str) -> Path | None:
    """The local folder of a root, or None if it isn't on this machine."""
    try:
        parts = urlsplit(uri)
        path = Path(unquote(parts.path))
    except ValueError:
        return None
    is_local = parts.scheme == "file" and parts.netloc in ("", "localhost")
    return path if is_local and path.is_absolute() and "\0" not in str(path) else None


def _describe(tool: Tool) -> types.Tool:
    return types.Tool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=tool.schema,
        annotations=types.ToolAnnotations(
            read_only_hint=tool.reads_only, destructive_hint=tool.removes, idempotent_hint=tool.repeatable
        ),
    )
