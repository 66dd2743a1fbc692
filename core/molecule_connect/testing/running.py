"""A plugin made and closed around a block, as a connection does it, without a platform."""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import attrs

from molecule_connect.models import Request, Response
from molecule_connect.plugins.manager import PluginHost, create_host
from molecule_connect.plugins.raw_options import Value
from molecule_connect.testing.requests import make_request


@attrs.frozen(eq=False)
class Running:
    """A backend that can be asked.

    Attributes:
        progress: What was told so far, as text.
        warnings: What an operator was warned of, such as an unknown option.
    """

    host: PluginHost = attrs.field(repr=False)
    progress: list[str] = attrs.field(factory=list)
    warnings: list[str] = attrs.field(factory=list)

    async def ask(self, message: str | Request = "hello") -> Response:
        """The answer to a message, through the middleware, checked as a connection checks it.

        Raises:
            BackendError: It could not be answered, or what came back is no answer.
        """
        request = make_request(message) if isinstance(message, str) else message
        return await self.host.answering()(request, self._told)

    async def check(self) -> list[str]:
        """What the plugins say stands in the way of serving."""
        return await self.host.check()

    async def _told(self, update: str | Response, /) -> None:
        self.progress.append(update if isinstance(update, str) else update.text)


@contextlib.asynccontextmanager
async def running(
    backend: str | object,
    options: Mapping[str, Value] | None = None,
    *,
    middleware: Sequence[str | object] = (),
    middleware_options: Mapping[str, Value] | None = None,
    workspace_id: str = "ws_1",
    strict: bool = False,
    state_dir: Path | None = None,
    path: Sequence[str] | None = None,
) -> AsyncIterator[Running]:
    """*backend*, the name of an installed one or a plugin object, made now and closed after the block.

    Without ``state_dir`` its folder lasts as long as the block; ``path`` takes the place of ``sys.path``.

    Raises:
        MoleculeError: As ``connect`` would: it cannot be found, made, used or closed.
    """
    warnings: list[str] = []
    host = await create_host(
        workspace_id=workspace_id,
        backend=backend,
        options=options,
        middleware=middleware,
        middleware_options=middleware_options,
        strict=strict,
        state_dir=state_dir,
        warn=warnings.append,
        path=path,
    )
    async with host:
        yield Running(host, warnings=warnings)
