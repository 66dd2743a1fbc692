"""HttpObserver: what ``molecule connect --http`` serves."""

from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from molecule_connect import events
from molecule_connect.observers import ObserverConfig
from molecule_connect_observe.counts import EventCounter
from molecule_connect_observe.metrics import CONTENT_TYPE, MAX_WORKSPACES, Exposition
from molecule_connect_observe.server import DEADLINE, Server, is_open_to_others, listen, url


class HttpObserver:
    """Serves health checks and metrics. A connection lasts for at most *deadline* seconds."""

    def __init__(self, config: ObserverConfig, *, deadline: int = DEADLINE) -> None:
        self._config = config
        self._deadline = deadline
        self._process = config.process
        self._counter = EventCounter()
        self._exposition = Exposition(
            config.process, self._counter, workspace_labels=config.workspace_labels, too_many=self._too_many
        )
        self._server: Server | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: The port is in use, or the address can't be used.
        """
        config = self._config
        sockets = listen(config.host, config.port)
        routes = [Route("/healthz", self.healthz), Route("/readyz", self.readyz), Route("/metrics", self.metrics)]
        self._server = Server(Starlette(routes=routes), sockets, deadline=self._deadline)
        self._server.start()
        where = url(config.host, sockets[0].getsockname()[1])
        if is_open_to_others(sockets):
            config.note(
                "WARNING",
                f"--http: {where} is open to other machines, without a password",
                "it shows workspace ids, costs and counts: let only your monitoring reach it, or use --http :PORT",
            )
        config.note("INFO", f"health and metrics: {where}/healthz, /readyz, /metrics", "")

    def event(self, event: events.Event) -> None:
        """Count *event*."""
        self._counter(event)

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            await self._server.close()

    def _too_many(self, count: int) -> None:
        self._config.note(
            "WARNING",
            f"--http: the metrics of {count} workspaces are added up, because there are more than {MAX_WORKSPACES}",
            "serve fewer per process to tell them apart, or use --no-workspace-labels",
        )

    async def healthz(self, request: Request) -> Response:
        """The event loop turns: it ran this."""
        return PlainTextResponse("ok\n")

    async def readyz(self, request: Request) -> Response:
        """Whether every workspace is registered and reading."""
        state = self._process.state()
        not_ready = {one.workspace_id: one.unready for one in state.workspaces if one.unready}
        status = "stopping" if state.is_stopping else "not ready" if not_ready else "ready"
        if not state.is_started:
            status = "starting"
        content = {
            "status": status,
            "workspaces": len(state.workspaces),
            "not_ready": not_ready,
            "refused": state.refused,
        }
        return JSONResponse(content, status_code=200 if status == "ready" else 503)

    async def metrics(self, request: Request) -> Response:
        """The metrics. A slow client holds one piece of them in memory."""
        pieces = await self._exposition.pieces()
        size = sum(map(len, pieces))

        async def body() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        return StreamingResponse(body(), media_type=CONTENT_TYPE, headers={"Content-Length": str(size)})
