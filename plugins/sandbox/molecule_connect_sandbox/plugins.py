"""Plugins of workspaces: download, and the rejected report of an installed one."""

import re

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from molecule_connect_sandbox.auth import Auth
from molecule_connect_sandbox.platform import Platform
from molecule_connect_sandbox.responses import Refusal, json_response, read_body, read_object
from molecule_connect_sandbox.tarballs import TARBALLS

SCHEMES = ("clawhub", "github", "local")
MAX_UPLOAD = 256 * 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Plugins:
    """The plugins of ``tarballs``, and uploaded ones."""

    def __init__(self, platform: Platform, auth: Auth) -> None:
        self._has_manifests = platform.generation.seq
        self._auth = auth
        self._uploaded: dict[str, bytes] = {}

    def routes(self) -> list[Route]:
        """The routes of these endpoints."""
        return [
            Route("/workspaces/{id}/plugins/{name}/download", self.download, methods=["GET"]),
            Route("/workspaces/{id}/plugins", self.report, methods=["POST"]),
            Route("/sandbox/plugins/{name}", self.put, methods=["PUT"]),
        ]

    async def download(self, request: Request) -> Response:
        """Return a plugin as a gzipped tar archive."""
        self._auth.workspace(request)
        name = request.path_params["name"]
        if not _NAME.fullmatch(name) or ".." in name:
            raise Refusal(400, "invalid plugin name")
        source = request.query_params.get("source") or f"local://{name}"
        scheme, _, rest = source.partition("://")
        if scheme not in SCHEMES:
            raise Refusal(400, "unsupported plugin source scheme", available_schemes=list(SCHEMES))
        resolved = rest.rstrip("/").rpartition("/")[2].partition("#")[0]
        if resolved != name:
            refused = {"resolved_name": resolved, "requested_name": name}
            raise Refusal(400, "plugin name does not match its source", **refused)
        if scheme == "github" and "#" not in rest:
            raise Refusal(422, "unpinned git source: name a tag or a commit")
        content = self._uploaded.get(name) or (TARBALLS[name]() if name in TARBALLS else None)
        if content is None:
            raise Refusal(404, "plugin not found")
        headers = {"X-Plugin-Name": name, "X-Plugin-Source": source}
        return Response(content, media_type="application/gzip", headers=headers)

    async def report(self, request: Request) -> Response:
        """Reject the report of an installed plugin, as for any external workspace."""
        self._auth.workspace(request)
        body = await read_object(request)
        if not isinstance(body.get("source"), str) or not body["source"]:
            raise Refusal(400, "source is required")
        if self._has_manifests:
            hint = "external agents pull their plugins: GET /workspaces/:id/plugins/:name/download"
            raise Refusal(422, "plugin install via push is not supported for external runtimes", hint=hint)
        raise Refusal(503, "workspace container not running")

    async def put(self, request: Request) -> Response:
        """Upload any bytes as the archive of a plugin, for all workspaces."""
        self._auth.control(request)
        self._uploaded[request.path_params["name"]], _ = await read_body(request, MAX_UPLOAD)
        return json_response({"status": "set"})
