"""The ASGI application."""

import contextlib
import sqlite3
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from molecule_connect_sandbox import __version__
from molecule_connect_sandbox.a2a import Proxy
from molecule_connect_sandbox.auth import Auth
from molecule_connect_sandbox.canvas import Canvas
from molecule_connect_sandbox.cleanup import clean_up_periodically
from molecule_connect_sandbox.control import Control
from molecule_connect_sandbox.delegation import Delegations
from molecule_connect_sandbox.feed import Feed
from molecule_connect_sandbox.forger import Forger
from molecule_connect_sandbox.middleware import SandboxMiddleware
from molecule_connect_sandbox.options import SandboxOptions
from molecule_connect_sandbox.page.endpoints import Page
from molecule_connect_sandbox.platform import Platform
from molecule_connect_sandbox.plugins import Plugins
from molecule_connect_sandbox.registry import Registry
from molecule_connect_sandbox.responses import Refusal, internal_error, json_response, page_not_found, refusal_response
from molecule_connect_sandbox.tokens import Tokens
from molecule_connect_sandbox.workspaces import Workspaces


async def _health(request: Request) -> Response:
    return json_response({"status": "ok"})


async def _buildinfo(request: Request) -> Response:
    return json_response({"git_sha": f"sandbox-{__version__}"})


def create_app(options: SandboxOptions) -> Starlette:
    """The platform as an ASGI application; its state is ``app.state.platform``.

    Raises:
        ConfigError: An option is invalid, or the store can't be opened.
    """
    platform = Platform(options)
    auth = Auth(platform)
    proxy = Proxy(platform, auth)
    canvas = Canvas(platform, auth)
    forger = Forger(platform, auth, proxy)
    # The most frequent first: routes are matched in order.
    parts = (
        proxy,
        canvas,
        Feed(platform, auth),
        Registry(platform, auth),
        Workspaces(platform, auth),
        Tokens(platform, auth),
        Delegations(platform, auth, proxy),
        Plugins(platform, auth),
        Control(platform, auth),
        forger,
        Page(platform, auth, proxy, canvas),
    )
    routes = [route for part in parts for route in part.routes()]
    routes += [Route("/health", _health), Route("/buildinfo", _buildinfo)]

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        platform.spawn(clean_up_periodically(platform))
        platform.spawn(forger.run())
        try:
            yield
        finally:
            await platform.stop()

    app = Starlette(
        routes=routes,
        middleware=[Middleware(SandboxMiddleware, platform=platform)],
        exception_handlers={
            Refusal: refusal_response,
            sqlite3.Error: internal_error,
            404: page_not_found,
            405: page_not_found,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.platform = platform
    return app
