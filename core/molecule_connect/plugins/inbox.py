"""The backend of an inbox: it answers nothing, so that messages wait for readers."""

import attrs


@attrs.frozen(eq=False)
class InboxBackend:
    """A backend that answers nothing itself: messages wait for the readers of an inbox.

    ``open_inbox`` and ``molecule mcp`` read it, in this process or in others on this machine. A backend's factory may
    return one, to leave its messages to a program that reads the inbox. It takes no middleware: there is no handler.
    """
