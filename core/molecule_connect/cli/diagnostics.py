"""The checks of ``molecule doctor``. They don't register the workspace and read no messages."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from molecule_connect.app import check_platform, find_problems, load_list
from molecule_connect.cli.local_status import local_statuses
from molecule_connect.cli.shared import fault_of
from molecule_connect.config.load import (
    WORKSPACES_VARIABLE,
    WorkspaceList,
    parse_file,
    parse_variable,
)
from molecule_connect.config.saved import SavedSettings, describe_unused, find_saved
from molecule_connect.config.settings import DEFAULT_API_URL, WorkspaceSettings, check_workspace_id
from molecule_connect.config.single import read_identity, read_token
from molecule_connect.config.state_dir import preview_state_dir, state_dir_problems
from molecule_connect.config.tokens import no_token_error
from molecule_connect.config.workspaces import Listing, WorkspacesError
from molecule_connect.console.sanitize import span
from molecule_connect.errors import AuthError, ConfigError, MoleculeError, PlatformError
from molecule_connect.events import Described, Event, Notice
from molecule_connect.models import WorkspaceInfo, WorkspaceStatus, canonical_id
from molecule_connect.platform import endpoints
from molecule_connect.platform.client import AsyncPlatformClient
from molecule_connect.platform.credentials import Credentials
from molecule_connect.platform.responses import EndpointAbsentError
from molecule_connect.plugins.mirrors import create_mirror
from molecule_connect.runtime import credentials_of

OK, WARN, FAIL, SKIP = "ok", "warn", "FAIL", "-"
# Exit code.
NOT_WELL = 1
# Smaller differences come from the network and the whole seconds of the Date header.
SKEW = 30.0
STREAM_PATIENCE = 10.0


@attrs.frozen
class Finding:
    """The result of one check.

    Attributes:
        level: ok, warn, FAIL, or - if it wasn't checked.
        workspace: Empty if it concerns all workspaces.
    """

    check: str
    level: str
    text: str
    hint: str = ""
    workspace: str = ""


ABSENT = Finding(
    "workspace",
    FAIL,
    "the platform has no workspace with this id",
    "check the id; connect --create creates a new workspace",
)


async def checkup(
    options: Mapping[str, Any], given: Mapping[str, Any], environ: Mapping[str, str], now: float
) -> AsyncGenerator[Finding, None]:
    """Check everything that is needed to start with these options and this environment.

    Args:
        options: The parameters of the command.
        given: The settings on the command line, by field name.
    """
    saved, parsed = None, None
    is_list = options["config"] is not None or bool(environ.get(WORKSPACES_VARIABLE))
    try:
        if options["config"] is not None:
            parsed = parse_file(options["config"], environ)
        else:
            named, workspace_id = options["profile"], given.get("workspace_id")
            saved = find_saved(named, environ, workspace_id=workspace_id)
            if unused := describe_unused(named, environ, workspace_id=workspace_id):
                yield Finding("settings", SKIP, f"of the saved ones, {unused}")
    except WorkspacesError as exc:
        for fault in exc.faults:
            yield Finding("asked for", FAIL, f"{exc.source}: {fault}")
        return
    except ConfigError as exc:
        yield _failed("settings", exc)
        return
    if saved is not None:
        yield Finding("settings", OK, f"saved in {saved.path}")
    own_state_dir = saved.state_dir if saved is not None else parsed.own_state_dir if parsed is not None else None
    folder, findings = _folder(options, environ, own_state_dir)
    for finding in findings:
        yield finding
    if url := options["journal_url"] or (parsed.journal.url if parsed is not None else ""):
        yield await _database(url)
    try:
        if is_list:
            listing = _listed(options, parsed or parse_variable(environ), folder)
        else:
            listing = Listing(settings=(_single(given, environ, saved),))
    except WorkspacesError as exc:
        for fault in exc.faults:
            yield Finding("asked for", FAIL, f"{exc.source}: {fault}")
        return
    except ConfigError as exc:
        yield _failed("asked for", exc)
        return
    for refused in listing.refused:
        for fault in refused.lines:
            yield Finding("asked for", FAIL, f"{listing.source}: {fault}", workspace=refused.name)
    for one in listing.settings:
        tokens = partial(credentials_of if is_list else partial(_credentials, given, environ, saved), one, folder)
        async with contextlib.aclosing(_workspace_checkup(one, folder, tokens, now)) as found:
            async for finding in found:
                yield attrs.evolve(finding, workspace=one.workspace_id)


async def settings_checkup(settings: WorkspaceSettings, folder: Path, now: float) -> AsyncGenerator[Finding, None]:
    """Check a workspace with *settings*, and with their token only.

    Args:
        folder: The state folder.
    """
    for text, hint in state_dir_problems(folder):
        yield Finding("state folder", WARN, text, hint)
    async with contextlib.aclosing(
        _workspace_checkup(settings, folder, partial(credentials_of, settings, None), now)
    ) as found:
        async for finding in found:
            yield finding


async def _workspace_checkup(
    settings: WorkspaceSettings, folder: Path | None, tokens: Callable[[], Credentials], now: float
) -> AsyncGenerator[Finding, None]:
    workspace_id, api_url = settings.workspace_id, settings.api_url
    default = (
        ", the default address (--api-url or MOLECULE_API_URL names another)" if api_url == DEFAULT_API_URL else ""
    )
    yield Finding("asked for", OK, f"workspace {workspace_id} at {api_url}{default}")
    credentials, error = None, None
    try:
        credentials = tokens()
        credentials.current()
    except ConfigError as exc:
        credentials, error = None, exc
    if folder is not None:
        yield _lease(folder, workspace_id, now)
    for found in await _backend(settings, folder, credentials):
        yield found
    if credentials is None:
        yield _failed("token", error or no_token_error())
        yield Finding("platform", SKIP, "not checked without a token")
        return
    yield Finding("token", OK, f"from {credentials.source}")
    async with AsyncPlatformClient(
        api_url,
        workspace_id=workspace_id,
        credentials=credentials,
        org_id=settings.org_id,
        insecure=settings.insecure,
        tls=settings.tls,
    ) as client:
        async for finding in _platform(client, now):
            if settings.create and finding == ABSENT:
                finding = Finding("workspace", OK, "the platform has no workspace with this id: a start creates it")
            yield finding


def _folder(
    options: Mapping[str, Any], environ: Mapping[str, str], saved: Path | None
) -> tuple[Path | None, list[Finding]]:
    try:
        folder = preview_state_dir(options["state_dir"], environ, saved=saved)
    except ConfigError as exc:
        return None, [_failed("state folder", exc)]
    text = str(folder) if folder.exists() else f"{folder}, which a start would create"
    warnings = [Finding("state folder", WARN, text, hint) for text, hint in state_dir_problems(folder)]
    return folder, [Finding("state folder", OK, text), *warnings]


async def _database(url: str) -> Finding:
    try:
        mirror = create_mirror(url)
        try:
            info = await mirror.describe()
        finally:
            await mirror.aclose()
    except MoleculeError as exc:
        return _failed("database", exc)
    fault, hint = fault_of(info)
    if fault:
        return Finding("database", FAIL, f"{info.where}: {fault}", hint)
    return Finding("database", OK, f"{info.where}: {info.server}, tables of version {info.schema}")


def _listed(options: Mapping[str, Any], found: WorkspaceList, folder: Path | None) -> Listing:
    """The list, or only the workspace of it that is named."""
    listing = load_list(attrs.evolve(found, state_dir=folder))
    if options["workspace_id"] is None:
        return listing
    wanted = canonical_id(options["workspace_id"])
    chosen = attrs.evolve(
        listing,
        settings=tuple(one for one in listing.settings if one.workspace_id == wanted),
        refused=tuple(one for one in listing.refused if one.workspace_id == wanted),
    )
    if not chosen.settings and not chosen.refused:
        known = ", ".join(one.workspace_id for one in listing.settings)
        raise ConfigError(f"{wanted} is not on the list", hint=f"the list contains {known}")
    return chosen


def _single(given: Mapping[str, Any], environ: Mapping[str, str], saved: SavedSettings | None) -> WorkspaceSettings:
    settings = WorkspaceSettings(**read_identity(given, environ, saved))
    check_workspace_id(settings.workspace_id)
    check_platform(settings)
    return settings


def _credentials(
    given: Mapping[str, Any],
    environ: Mapping[str, str],
    saved: SavedSettings | None,
    settings: WorkspaceSettings,
    folder: Path | None,
) -> Credentials:
    found = read_token(settings, given, environ, state_dir=folder, saved=saved)
    return credentials_of(attrs.evolve(settings, **found), folder)


def _lease(folder: Path, workspace_id: str, now: float) -> Finding:
    try:
        (found,) = local_statuses(folder, workspace_id, now)
    except MoleculeError as exc:
        return _failed("connector", exc)
    if found.holder is None:
        level = OK if found.is_stopped else WARN
        return Finding(
            "connector", level, "none runs on this machine", "" if found.is_stopped else "see 'molecule status'"
        )
    process = f"process {found.holder.pid} on {found.holder.host} serves the workspace"
    if found.is_well:
        return Finding("connector", OK, f"{process}; no problems")
    return Finding("connector", WARN, f"{process}: {found.state}", "see 'molecule status'")


async def _backend(settings: WorkspaceSettings, folder: Path | None, credentials: Credentials | None) -> list[Finding]:
    """Whether the backend is ready, its permissions, and the warnings of a start."""
    if not settings.backend:
        return [Finding("backend", SKIP, "not checked", "pass --backend, and its options with --backend-opt")]
    warnings: list[Finding] = []
    permissions: list[Finding] = []

    def listen(event: Event) -> None:
        if isinstance(event, Notice):
            warnings.append(Finding("backend", WARN, event.text, "correct or remove it"))
        if isinstance(event, Described):
            permissions.append(Finding("permissions", OK, event.text))

    # The check makes no request, so any token will do.
    settings = attrs.evolve(settings, token=credentials.current() if credentials else "none-is-needed")
    try:
        problems = await find_problems(Listing(settings=(settings,)), None, listen, state_root=folder)
    except MoleculeError as exc:
        # An error of closing is also among the warnings.
        return [_failed("backend", exc), *(each for each in warnings if each.text != str(exc))]
    if problems:
        return [Finding("backend", FAIL, "; ".join(problems), "fix the problem, then start"), *permissions, *warnings]
    return [Finding("backend", OK, f"{settings.backend} is ready"), *permissions, *warnings]


async def _platform(client: AsyncPlatformClient, now: float) -> AsyncGenerator[Finding, None]:
    try:
        info = await client.call(endpoints.workspace(client.workspace_id))
    except PlatformError as exc:
        yield Finding(
            "platform", FAIL, str(exc), exc.hint or "compare the id and the address with those on the platform"
        )
        return
    yield Finding("platform", OK, f"answers at {client.address.origin}")
    yield _workspace(info)
    yield _clock(client.platform_clock.now(), now)
    if info.status is WorkspaceStatus.REMOVED or info.is_absent:
        return
    accepted = False
    try:
        await client.call(endpoints.state(client.workspace_id))
        accepted = True
    except EndpointAbsentError:
        pass
    except PlatformError as exc:
        yield _failed("token accepted", exc)
        return
    for finding in await _stream(client, accepted):
        yield finding


def _workspace(info: WorkspaceInfo) -> Finding:
    name, hint = info.name, info.hint
    if info.is_absent:
        return ABSENT
    match info.status:
        case WorkspaceStatus.ACTIVE:
            return Finding("workspace", OK, f"it exists{f', with the name {name}' if name else ''}")
        case WorkspaceStatus.PAUSED:
            return Finding(
                "workspace", WARN, "it is paused: messages are stored but not processed", "resume it in the canvas"
            )
        case WorkspaceStatus.REMOVED:
            return Finding(
                "workspace", FAIL, "it was deleted on the platform", hint or "create a new one there and use its id"
            )
    hint = "check the id, the path of the address, and --org-id on a hosted platform"
    return Finding("workspace", WARN, "the platform returned no information about it", hint)


def _clock(platform: int | None, now: float) -> Finding:
    if platform is None:
        return Finding("clock", SKIP, "the platform's response has no time")
    skew = now - platform / 1e6
    if abs(skew) <= SKEW:
        return Finding("clock", OK, "matches the clock of the platform")
    side = "ahead of" if skew > 0 else "behind"
    return Finding(
        "clock", WARN, f"{span(abs(skew))} {side} the platform's", "set the clock of this machine, preferably with NTP"
    )


async def _stream(client: AsyncPlatformClient, accepted: bool) -> list[Finding]:
    """Check the event stream, and the token unless it is known to be *accepted*."""
    token = Finding("token accepted", OK, "yes")
    try:
        async with asyncio.timeout(STREAM_PATIENCE), client.open(endpoints.events(client.workspace_id)):
            return [token, Finding("event stream", OK, "opens")]
    except AuthError as exc:
        return [_failed("token accepted", exc)]
    except (PlatformError, TimeoutError) as exc:
        text = str(exc) or "did not open in time"
        unknown = Finding("token accepted", SKIP, "this platform can't check a token without reading messages")
        return [
            token if accepted else unknown,
            Finding("event stream", WARN, text, "messages are received by polling instead, with a short delay"),
        ]


def _failed(check: str, error: MoleculeError) -> Finding:
    return Finding(check, FAIL, str(error), error.hint or "fix this, then run 'molecule doctor' again")


def lines(findings: list[Finding]) -> Iterator[str]:
    """The findings as a table."""
    from molecule_connect.console.sanitize import one_line

    width = max(len(finding.check) for finding in findings)
    several = len({finding.workspace for finding in findings if finding.workspace}) > 1
    before = ""
    for finding in findings:
        if several and finding.workspace != before:
            before = finding.workspace
            yield f"\n{finding.workspace}"
        hint = f" -> {one_line(finding.hint, 400)}" if finding.hint else ""
        yield f"{finding.check:{width}}  {finding.level:4}  {one_line(finding.text, 400)}{hint}"


def run(options: Mapping[str, Any], given: Mapping[str, Any], now: float) -> list[Finding]:
    """All findings of ``checkup``."""

    async def collect() -> list[Finding]:
        async with contextlib.aclosing(checkup(options, given, os.environ, now)) as found:
            return [finding async for finding in found]

    return asyncio.run(collect())
