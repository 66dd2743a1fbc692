"""The backend of an inbox: it handles no messages, so they wait for readers."""

from typing import ClassVar

import attrs


@attrs.frozen(eq=False)
class InboxBackend:
    """A backend that handles no messages: they wait for the readers of an inbox.

    ``open_inbox`` and ``molecule mcp`` read the inbox, in this process or in others on this machine. A backend's
    factory may return an ``InboxBackend`` to leave its messages to such a program. It can't be used with middleware.

    Attributes:
        advice: Tells the operator how messages are read; shown at the start.
    """

    advice: ClassVar[str] = (
        "messages wait until they are read, by 'molecule mcp' in an MCP host or by open_inbox() in a program"
    )
