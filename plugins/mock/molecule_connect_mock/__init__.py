"""A backend that answers from a template."""

from typing import Annotated

import attrs

from molecule_connect import Request, Response, hookimpl

__version__ = "0.1.0"


@attrs.frozen(eq=False, kw_only=True)
class MockBackend:
    """Answer each message with ``reply``, every ``%s`` in it replaced by the message's text.

    A ``%`` is otherwise literal, and a template without ``%s`` is sent as it is.
    """

    reply: Annotated[str, "the answer; every %s is the text of the message"] = "echo: %s"

    @hookimpl
    async def handle_a2a(self, request: Request) -> Response:
        return Response.from_text(self.reply.replace("%s", request.text))
