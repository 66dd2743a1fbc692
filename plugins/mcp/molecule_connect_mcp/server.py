"""The MCP server: what it says of itself, its tools, and the channel's capability in both eras of the protocol."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
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

Call = Callable[[str, Mapping[str, Any], Sequence[Path]], Awaitable[tuple[str, bool]]]
"""A tool's name, its arguments and the host's roots; its text, and whether that tells of an error."""

# Seconds that a host has to name its roots; without them, the other roots count.
ROOTS_TIMEOUT = 10.0
_ROOTS = "roots"
_FILES = {tool.name: tool.files for tool in TOOLS if tool.files}


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
    ) -> types.CallToolResult | types.InputRequiredResult:
        given = params.arguments or {}
        sends = bool(given.get(_FILES.get(params.name, "")))
        roots = await _host_roots(context, params.input_responses) if sends else ()
        if roots is None:
            return types.InputRequiredResult(input_requests={_ROOTS: types.ListRootsRequest()})
        text, failed = await call(params.name, given, roots)
        return types.CallToolResult(content=[types.TextContent(type="text", text=text)], is_error=failed)

    return ChannelServer(
        "molecule",
        version=__version__,
        title="Molecule inbox",
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


async def _host_roots(
    context: ServerRequestContext[dict[str, Any]], responses: types.InputResponses | None
) -> Sequence[Path] | None:
    """The host's roots at this moment, so that a change needs no notice. None: it has to be asked by our answer.

    The era without a handshake knows no requests of a server: its host adds what it was asked for, and calls again.
    """
    wanted = types.ClientCapabilities(roots=types.RootsCapability())
    if not context.session.check_client_capability(wanted):
        return ()
    answer: object = (responses or {}).get(_ROOTS)
    if context.session.can_send_request:
        try:
            answer = await context.session.send_request(
                types.ListRootsRequest(), types.ListRootsResult, request_read_timeout_seconds=ROOTS_TIMEOUT
            )
        except (MCPError, ValidationError):
            return ()
    elif responses is None:
        return None
    roots = answer.roots if isinstance(answer, types.ListRootsResult) else []
    return [path for root in roots if (path := _folder_of(str(root.uri))) is not None]


def _folder_of(uri: str) -> Path | None:
    """The folder that a root names; None for one that is on no file system of ours."""
    try:
        parts = urlsplit(uri)
        path = Path(unquote(parts.path))
    except ValueError:
        return None
    is_local = parts.scheme == "file" and parts.netloc in ("", "localhost")
    return path if is_local and path.is_absolute() and "\0" not in str(path) else None


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
