"""Several workspaces over one journal and one set of connections: nothing of one is ever another's."""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import attrs
import httpx
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from molecule_connect import events
from molecule_connect.app import deploy, find_problems, serve
from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.config.workspaces import Fault, Listing, Refused, WorkspacesError
from molecule_connect.deployment import Deployment
from molecule_connect.errors import AuthError, ConfigError, FleetError
from molecule_connect.models import Request, Response
from molecule_connect.plugins.hookspecs import hookimpl
from molecule_connect.worker.status_file import read_refused_blocks

ORIGINS = ("https://one.example", "https://two.example:8443", "http://localhost:8080")


@attrs.frozen(eq=False)
class Parrot:
    """Answers with what it hears."""

    problem: str = ""

    @hookimpl
    def check(self) -> list[str]:
        return [self.problem] if self.problem else []

    @hookimpl
    async def handle_a2a(self, request: Request) -> Response:
        return Response.from_text(request.text)


@attrs.define
class Tenant:
    """A workspace as its platform knows it, and how we are told of it.

    Attributes:
        kind: Where its token comes from: given, in a file, rotated while we start, handed out, or wrong.
    """

    number: int
    origin: str
    org_id: str | None
    kind: str
    file: Path | None = None
    refused: int = 0
    read: bool = False
    sent: list[str] = attrs.field(factory=list)
    was_answered: asyncio.Event = attrs.field(factory=asyncio.Event)

    @property
    def name(self) -> str:
        return f"ws-{self.number}"

    @property
    def tokens(self) -> set[str]:
        """All that ever belonged to it."""
        return {f"{word}-token-of-{self.number}" for word in ("given", "rotated", "handed", "wrong")}

    def settings(self, folder: Path) -> WorkspaceSettings:
        given = "wrong" if self.kind == "wrong" else "given"
        token = f"{given}-token-of-{self.number}"
        if self.kind in ("file", "rotated"):
            self.file = folder / f"{self.name}.secret"
            self.file.write_text(token)
            self.file.chmod(0o600)
        return WorkspaceSettings(
            workspace_id=self.name,
            api_url=f"{self.origin}/api",
            org_id=self.org_id,
            token=None if self.file else token,
            token_file=self.file,
            backend=Parrot(),
            once=True,
            patient=True,
        )

    def answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/api")
        token = request.headers["authorization"].removeprefix("Bearer ")
        if self.kind == "wrong" and path == "/registry/register":
            return httpx.Response(401, json={"error": "invalid workspace auth token"})
        if self.kind == "rotated" and token.startswith("given") and path == "/registry/register":
            assert self.file is not None
            self.file.write_text(f"rotated-token-of-{self.number}")
            return httpx.Response(401, json={"error": "invalid workspace auth token"})
        if path == "/registry/register":
            handed = {"auth_token": f"handed-token-of-{self.number}"} if self.kind == "handed" else {}
            return httpx.Response(200, json=handed)
        if path == f"/workspaces/{self.name}/activity":
            message = {"messageId": "m", "role": "user", "parts": [{"kind": "text", "text": f"for {self.number}"}]}
            row = {
                "id": "the-same-row",
                "activity_type": "a2a_receive",
                "source_id": "peer",
                "method": "message/send",
                "request_body": {"params": {"message": message}},
            }
            rows, self.read = ([] if self.read else [row]), True
            return httpx.Response(200, json=rows)
        if path == "/workspaces/peer/a2a":
            self.sent.append(json.loads(request.content)["params"]["message"]["parts"][0]["text"])
            self.was_answered.set()
        return httpx.Response(200, json={})


class Platforms(httpx.AsyncBaseTransport):
    """All of them, on one wire. Each request must belong to one tenant, whole."""

    def __init__(self, tenants: list[Tenant]) -> None:
        self.tenants = {tenant.name: tenant for tenant in tenants}
        self.requests = 0
        self.mixed: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.requests += 1
        tenant = self.tenants[request.headers["x-workspace-id"]]
        path = request.url.path.removeprefix("/api")
        body = json.loads(request.content or b"{}")
        is_named = path.startswith("/workspaces/") or not body
        # /workspaces/ID/..., or the registry's /registry/discover/ID and /registry/ID/...
        named = path.removeprefix("/registry/discover").split("/")[1 if "/discover/" in path else 2]
        named = named if is_named else body.get("id") or body.get("workspace_id")
        belongs = (
            request.headers["authorization"].removeprefix("Bearer ") in tenant.tokens,
            request.headers["origin"] == tenant.origin == f"{request.url.scheme}://{request.url.netloc.decode()}",
            request.headers.get("x-molecule-org-id") == tenant.org_id,
            named in (tenant.name, "peer"),
        )
        if not all(belongs):
            self.mixed.append(f"{request.method} {request.url}: {belongs}")
        if path.endswith("/events/stream"):
            return httpx.Response(404)
        return tenant.answer(request)


@st.composite
def fleets(draw: st.DrawFn) -> list[Tenant]:
    kinds = st.sampled_from(["given", "file", "rotated", "handed", "wrong"])
    return [
        Tenant(number, draw(st.sampled_from(ORIGINS)), draw(st.sampled_from([None, "org-1", "org-2"])), draw(kinds))
        for number in range(draw(st.integers(2, 5)))
    ]


@hypothesis_settings(max_examples=12)
@given(fleets())
async def test_requests_use_their_own_workspaces_credentials(tenants: list[Tenant]) -> None:
    platforms = Platforms(tenants)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        told: list[events.Event] = []
        with suppress(AuthError, FleetError):
            await serve(
                [tenant.settings(folder) for tenant in tenants],
                state_dir=folder,
                listener=told.append,
                stop=asyncio.Event(),
                transport=platforms,
            )
    assert platforms.mixed == []
    assert [tenant.sent for tenant in tenants] == [
        [] if tenant.kind == "wrong" else [f"for {tenant.number}"] for tenant in tenants
    ]
    assert not any("-token-of-" in str(event) for event in told)
    ended = {event.workspace_id for event in told if isinstance(event, events.Trouble) and event.part == "connection"}
    assert ended == {tenant.name for tenant in tenants if tenant.kind == "wrong"}


@asynccontextmanager
async def running(
    folder: Path, *tenants: Tenant, strict: bool = True, listener: events.Listener = events.ignore
) -> AsyncIterator[tuple[Deployment, Platforms]]:
    """A fleet that serves until the block ends."""
    platforms, stop = Platforms(list(tenants)), asyncio.Event()
    settings = [attrs.evolve(tenant.settings(folder), once=False) for tenant in tenants]
    listing = Listing(settings=tuple(settings))
    async with deploy(listing, folder, listener, transport=platforms, strict=strict) as deployment:
        task = asyncio.ensure_future(deployment.run(stop))
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(20):
                yield deployment, platforms
        finally:
            stop.set()
            await task


def tenant(number: int) -> Tenant:
    return Tenant(number, ORIGINS[0], None, "given")


async def test_plan_names_new_changed_gone_and_same(tmp_path: Path) -> None:
    async with running(tmp_path, *map(tenant, range(3))) as (deployment, platforms):
        zero, one = (attrs.evolve(tenant(n).settings(tmp_path), once=False, backend="mock") for n in range(2))
        three = tenant(3)
        platforms.tenants["ws-3"] = three
        first = await deployment.plan([zero, one])
        assert (first.new, first.changed, first.unchanged, first.removed) == ((), ("ws-0", "ws-1"), (), ("ws-2",))
        await deployment.apply(first)

        second = await deployment.plan([attrs.evolve(one, concurrency=2), three.settings(tmp_path), zero])
        assert (second.new, second.changed, second.unchanged, second.removed) == (("ws-3",), ("ws-1",), ("ws-0",), ())
        await deployment.apply(second)
        await three.was_answered.wait()
    assert platforms.mixed == []


async def test_invalid_list_reports_all_faults(tmp_path: Path) -> None:
    async with running(tmp_path, tenant(0)) as (deployment, _):
        old = attrs.evolve(tenant(0).settings(tmp_path), once=False)
        wrong = attrs.evolve(old, backend="mock", options={"rply": "x"}, strict=True)
        unready = attrs.evolve(old, workspace_id="ws-1", backend=Parrot("no login"))
        with pytest.raises(WorkspacesError) as caught:
            await deployment.plan([wrong, unready])
    first, second = caught.value.faults
    assert first.startswith("workspace ws-0: backend mock has no option 'rply'")
    assert second == "workspace ws-1: backend Parrot: no login"


async def test_lenient_plan_keeps_refused_workspaces(tmp_path: Path) -> None:
    async with running(tmp_path, *map(tenant, range(3)), strict=False) as (deployment, _):
        zero, one = (attrs.evolve(tenant(n).settings(tmp_path), once=False) for n in range(2))
        unready = attrs.evolve(one, backend=Parrot("no login"), entry=2)
        plan = await deployment.plan([attrs.evolve(zero, concurrency=2, entry=1), unready])
        assert (plan.new, plan.changed, plan.kept, plan.removed) == ((), ("ws-0",), ("ws-1",), ("ws-2",))
        assert [one.lines for one in plan.refused] == [["workspace 2 (ws-1): backend Parrot: no login"]]

        nameless = Refused(entry=3, workspace_id=None, faults=(Fault("it has no id"),))
        plan = await deployment.plan([zero], [nameless])
        assert (plan.kept, plan.removed) == (("ws-1", "ws-2"), ())

        doubled = Refused(entry=2, workspace_id="ws-0", faults=(Fault("the id of workspace 1 again"),))
        plan = await deployment.plan([attrs.evolve(zero, concurrency=2, entry=1)], [doubled])
        assert (plan.changed, plan.kept) == (("ws-0",), ())


async def test_refused_block_is_reported_once_then_served(tmp_path: Path) -> None:
    told: list[events.Event] = []
    async with running(tmp_path, tenant(0), strict=False, listener=told.append) as (deployment, platforms):
        one = tenant(1)
        platforms.tenants["ws-1"] = one
        good = attrs.evolve(one.settings(tmp_path), once=False, entry=2)
        unready = attrs.evolve(good, backend=Parrot("no login"))
        for number in range(3):
            plan = await deployment.plan_retry([unready], [])
            assert (plan.new, plan.unchanged) == ((), ("ws-0",))
            deployment.report_refused(plan.refused, repeat=number == 0)
            await deployment.apply(plan)
        (trouble,) = [event for event in told if isinstance(event, events.Trouble)]
        assert (trouble.workspace_id, trouble.part) == ("ws-1", "list")
        assert len(read_refused_blocks(tmp_path)) == 1

        plan = await deployment.plan_retry([good], [])
        assert plan.new == ("ws-1",)
        deployment.report_refused(plan.refused)
        await deployment.apply(plan)
        await one.was_answered.wait()
        assert events.Recovered(workspace_id="ws-1", part="list") in told
        assert read_refused_blocks(tmp_path) == []


@pytest.fixture
def replaceable(tmp_path: Path) -> Path:
    """A state folder in a folder that everybody can write to."""
    tmp_path.chmod(0o777)
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    return folder


async def test_unsafe_folder_refuses_only_strict_blocks(replaceable: Path, tmp_path: Path) -> None:
    settings = [
        attrs.evolve(tenant(number).settings(tmp_path), strict=number == 1, entry=number) for number in range(2)
    ]

    listing = Listing(settings=tuple(settings))
    problems = await find_problems(listing, replaceable, events.ignore)
    async with deploy(listing, replaceable, events.ignore, strict=False) as deployment:
        (refused,) = deployment.refused
    assert problems == refused.lines
    assert refused.lines[0].startswith(f"workspace 1 (ws-1): others can write to {tmp_path}")


async def test_reports_all_failed_workspaces_before_any_request(tmp_path: Path) -> None:
    platforms = Platforms([])
    settings = [
        attrs.evolve(tenant(number).settings(tmp_path), backend=backend)
        for number, backend in enumerate([Parrot(), Parrot("no login"), "nobody", Parrot("no program")])
    ]
    with pytest.raises(WorkspacesError) as caught:
        await serve(settings, state_dir=tmp_path, listener=events.ignore, stop=asyncio.Event(), transport=platforms)
    starts = [fault.partition(" (installed")[0] for fault in caught.value.faults]
    assert starts == [
        "workspace ws-1: backend Parrot: no login",
        "workspace ws-2: no backend named 'nobody'",
        "workspace ws-3: backend Parrot: no program",
    ]
    assert platforms.requests == 0


async def test_reports_the_error_of_a_single_workspace(tmp_path: Path) -> None:
    settings = attrs.evolve(tenant(0).settings(tmp_path), backend=Parrot("no login"))
    with pytest.raises(ConfigError, match="the backend is not ready: backend Parrot: no login"):
        await serve([settings], state_dir=tmp_path, listener=events.ignore, stop=asyncio.Event())
