"""The backend of an inbox: it answers nothing, so that messages wait for readers."""

from typing import ClassVar

import attrs


@attrs.frozen(eq=False)
class InboxBackend:
    """A backend that answers nothing itself: messages wait for the readers of an inbox.

    ``open_inbox`` and ``molecule mcp`` read it, in this process or in others on this machine. A backend's factory may
    return one, to leave its messages to a program that reads the inbox. It takes no middleware: there is no handler.

    Attributes:
        advice: What the operator has to do for messages to be read; told at the start.
    """

    advice: ClassVar[str] = (
        "messages wait until somebody reads them: 'molecule mcp' in an MCP host, or open_inbox() in a program"
    )
