"""Run a backend in a test, without a platform."""

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
    """A running backend.

    Attributes:
        progress: The texts reported as progress so far.
        warnings: Warnings for the operator, such as an unknown option.
    """

    host: PluginHost = attrs.field(repr=False)
    progress: list[str] = attrs.field(factory=list)
    warnings: list[str] = attrs.field(factory=list)

    async def ask(self, message: str | Request = "hello") -> Response:
        """Send a message through the middleware to the backend, and return the validated response.

        Raises:
            BackendError: The backend failed or returned an invalid response.
        """
        request = make_request(message) if isinstance(message, str) else message
        return await self.host.answering()(request, self._reported)

    async def check(self) -> list[str]:
        """The problems found by the plugins' ``check``."""
        return await self.host.check()

    async def _reported(self, update: str | Response, /) -> None:
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
    """Create a backend, by name or as a plugin object, and close it after the block.

    Without ``state_dir``, its folder is removed after the block. ``path`` replaces ``sys.path``.

    Raises:
        MoleculeError: As in ``connect``: it cannot be found, created, used or closed.
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
