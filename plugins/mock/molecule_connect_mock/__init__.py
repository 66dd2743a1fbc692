"""A backend that replies with a template."""

from typing import Annotated

import attrs

from molecule_connect import Request, Response, hookimpl

__version__ = "0.1.0"


@attrs.frozen(eq=False, kw_only=True)
class MockBackend:
    """Reply to each message with ``reply``, in which every ``%s`` is replaced by the message's text.

    Any other ``%`` is literal, and a template without ``%s`` is sent unchanged.
    """

    reply: Annotated[str, "the reply; every %s is replaced by the text of the message"] = "echo: %s"

    @hookimpl
    async def handle_a2a(self, request: Request) -> Response:
        return Response.from_text(self.reply.replace("%s", request.text))
