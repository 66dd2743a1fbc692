"""The backend: a headless Claude Code session per conversation, and a turn per message."""

import asyncio
import contextlib
import time
import uuid
from pathlib import Path
from typing import Annotated, Literal

import attrs

from molecule_connect import (
    BackendConfig,
    BackendError,
    ConfigError,
    Duration,
    Progress,
    Request,
    Response,
    Usage,
    hookimpl,
)
from molecule_connect.process import Ending, Program, RunMarks, not_started, request_variables, require_posix
from molecule_connect_claude_code import validation as v
from molecule_connect_claude_code.outbox import Outbox
from molecule_connect_claude_code.permissions import Mode, Permissions
from molecule_connect_claude_code.prompt import SYSTEM_PROMPT, prompt_for, readable_files
from molecule_connect_claude_code.readiness import INSTALL, find_program, problems_with
from molecule_connect_claude_code.result import UnusableSessionError, response_from
from molecule_connect_claude_code.sessions import Session, Sessions, conversation_of, is_session_id
from molecule_connect_claude_code.stream import Turn

# How long the program may take to exit after its result, for example to stop background shells.
AFTER_RESULT_SECONDS = 10.0
MAX_LINE_BYTES = 64 * 2**20
OUTBOX_VARIABLE = "MOLECULE_OUTBOX"
_OUTPUT_FLAGS = ("-p", "--output-format=stream-json", "--verbose", "--include-partial-messages")
# Variables that Claude Code sets for its child processes. With them, claude would treat this run as nested.
_NESTING_VARIABLES = ("CLAUDECODE", "CLAUDE_CODE_ENTRYPOINT", "CLAUDE_CODE_SESSION_ID", "CLAUDE_CODE_SSE_PORT")

Effort = Literal["low", "medium", "high", "xhigh", "max"]


@attrs.frozen(eq=False, kw_only=True)
class ClaudeCodeBackend:
    """Answer with Claude Code. Each conversation has its own session, which continues after a restart.

    It runs ``claude -p`` in ``cwd`` with the operator's login. By default, Claude may only read the files of a message
    and write to its outbox, and no settings, memory, hooks, skills or MCP servers are loaded. POSIX only.
    """

    bin: Annotated[str, "the program: a name or a path"] = attrs.field(default="claude", validator=v.not_blank)
    args: Annotated[list[str], "an additional command-line argument"] = attrs.field(
        factory=list, validator=v.additional_arguments, repr=False
    )
    model: Annotated[str | None, "an alias (opus, sonnet) or the full name of a model"] = attrs.field(
        default=None, validator=v.single_word
    )
    fallback_model: Annotated[str | None, "the model to use while the first one is overloaded"] = attrs.field(
        default=None, validator=v.single_word
    )
    effort: Annotated[Effort | None, "the reasoning effort"] = None
    cwd: Annotated[
        Path,
        "the working directory; by default the one molecule was started in",
        "(changing it starts new sessions)",
    ] = attrs.field(factory=Path.cwd, converter=v.absolute, validator=v.existing_folder)
    allow_unsafe_cwd: Annotated[bool, "accept a cwd that contains the home directory or the state folder"] = False
    settings: Annotated[
        list[str], "sources of settings, memory, hooks, skills and MCP servers: user,project,local; by default none"
    ] = attrs.field(factory=list, converter=v.split_by_commas, validator=v.setting_sources)
    permission_mode: Annotated[Mode, "how to treat tools that no rule allows; dontAsk refuses them"] = "dontAsk"
    allowed_tools: Annotated[
        list[str], "a rule for a tool to allow: Read(./**) for the files in cwd, Edit, or Bash(git log *)"
    ] = attrs.field(factory=list, validator=v.rules)
    tools: Annotated[
        list[str], "an additional built-in tool, under Claude Code's own rules: Agent, or default for all"
    ] = attrs.field(factory=list, converter=v.split_by_commas, validator=v.tool_names)
    disallowed_tools: Annotated[list[str], "a rule for a tool to deny"] = attrs.field(factory=list, validator=v.rules)
    mcp_config: Annotated[list[str], "MCP servers: a JSON file, or the JSON itself"] = attrs.field(
        factory=list, converter=v.mcp_configs, repr=False
    )
    add_dirs: Annotated[list[Path], "an additional folder to work in"] = attrs.field(
        factory=list, converter=v.all_absolute, validator=v.existing_folders
    )
    append_prompt: Annotated[str, "text to append to the system prompt"] = attrs.field(
        default="", validator=v.prompt_text, repr=False
    )
    max_turns: Annotated[int | None, "maximum model calls per message, at least 2; then the text so far is sent"] = (
        attrs.field(default=None, validator=v.at_least_two)
    )
    max_budget_usd: Annotated[float | None, "maximum cost per message in dollars; then the text so far is sent"] = (
        attrs.field(default=None, validator=v.positive)
    )
    idle_timeout: Annotated[Duration, "maximum time without output; 0 means no limit"] = 300.0
    timeout: Annotated[Duration, "maximum time for a message; 0 means no limit"] = 0.0
    session: Annotated[
        Literal["lane", "workspace", "none", "running"],
        "one session per conversation (lane), one for the workspace, none, or your open Claude Code session (running)",
    ] = "lane"
    pass_meta: Annotated[
        bool, "set MOLECULE_WORKSPACE_ID, _CALLER_ID, _MESSAGE_ID, _TASK_ID and _METHOD in the environment"
    ] = False
    config: BackendConfig = attrs.field(factory=lambda: BackendConfig(name="claude-code"), repr=False)
    _running: set[Program] = attrs.field(factory=set, init=False, repr=False)
    _marks: RunMarks = attrs.field(
        default=attrs.Factory(lambda self: RunMarks(self.state_folder), takes_self=True), init=False, repr=False
    )
    _sessions: Sessions = attrs.field(
        default=attrs.Factory(lambda self: Sessions(self.state_folder), takes_self=True), init=False, repr=False
    )
    _outbox: Outbox = attrs.field(
        default=attrs.Factory(lambda self: Outbox(self.state_folder), takes_self=True), init=False, repr=False
    )

    def __attrs_post_init__(self) -> None:
        require_posix()
        if self.session != "running" and not self.allow_unsafe_cwd:
            v.require_safe_cwd(self.cwd, self.config.state_root)

    @hookimpl
    async def handle_a2a(self, request: Request, progress: Progress) -> Response:
        if self.session == "none":
            return await self._run_turn(request, progress, ["--no-session-persistence"])
        key = conversation_of(request, whole_workspace=self.session == "workspace")
        async with self._sessions.lock(key):
            session, previous_usage = await self._sessions.find(key), Usage()
            if session is not None and session.folder == str(self.cwd):
                try:
                    return await self._run_turn(request, progress, [f"--resume={session.id}"], key=key)
                except UnusableSessionError as exc:
                    # Keep the old session until the new one has answered, because the message may be the cause.
                    progress(f"starting a new session: {exc}")
                    previous_usage = exc.usage or previous_usage
            flags = [f"--session-id={uuid.uuid4()}"]
            try:
                response = await self._run_turn(request, progress, flags, key=key, session_lost=session is not None)
            except BackendError as exc:
                exc.usage = _sum(previous_usage, exc.usage)
                raise
            return attrs.evolve(response, usage=_sum(previous_usage, response.usage))

    @hookimpl
    async def check(self) -> list[str]:
        """Check the program, its version and its login. End processes that an earlier run left behind."""
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self._marks.sweep)
        return await problems_with(self.bin, self._environment(None))

    @hookimpl
    def describe(self) -> list[str]:
        """Describe what Claude may do."""
        return [self._permissions.describe()]

    @hookimpl
    async def close(self) -> None:
        await asyncio.gather(*(program.end() for program in tuple(self._running)))
        self._marks.close()

    def state_folder(self) -> Path | None:
        """The folder for sessions and outboxes; None if the backend was created without a state folder."""
        try:
            return self.config.state_dir
        except ConfigError:
            return None

    async def _run_turn(
        self, request: Request, progress: Progress, flags: list[str], *, key: str = "", session_lost: bool = False
    ) -> Response:
        turn = Turn()
        outbox = await asyncio.to_thread(self._outbox.open, request)
        # In a thread, because it accesses folders and a prompt can be long.
        program = await asyncio.to_thread(self._program, request, flags, session_lost=session_lost, outbox=outbox)
        ending = await self._run(turn, progress, program)
        response = response_from(turn, ending, now=time.time())
        if files := await asyncio.to_thread(self._outbox.collect, outbox):
            response = attrs.evolve(response, parts=(*response.parts, *files))
        session_id = turn.field("session_id")
        if key and is_session_id(session_id):
            await self._sessions.store(key, Session(id=session_id, folder=str(self.cwd)))
        return response

    async def _run(self, turn: Turn, progress: Progress, program: Program) -> Ending:
        self._running.add(program)
        try:
            async with program:
                async for line in program.lines():
                    if update := turn.read(line):
                        progress(update)
                    if turn.result is not None:
                        break
                return await program.finish(within=AFTER_RESULT_SECONDS if turn.result is not None else None)
        except OSError as exc:
            raise not_started(f"cannot start claude in {self.cwd}", exc) from exc
        finally:
            self._running.discard(program)

    def _program(self, request: Request, flags: list[str], *, session_lost: bool, outbox: Path | None) -> Program:
        environment = self._environment(request) | ({OUTBOX_VARIABLE: str(outbox)} if outbox is not None else {})
        found = find_program(self.bin, environment)
        if found is None:
            raise BackendError(f"the program {self.bin!r} is not found; {INSTALL}")
        return Program(
            [str(found), *_OUTPUT_FLAGS, *flags, *self._option_flags(request, outbox), *self.args],
            environment=environment,
            stdin=prompt_for(request, session_lost=session_lost, outbox=outbox).encode(errors="replace"),
            cwd=self.cwd,
            marks=self._marks,
            timeout=self.timeout or None,
            idle_timeout=self.idle_timeout or None,
            most_bytes=MAX_LINE_BYTES,
        )

    def _option_flags(self, request: Request, outbox: Path | None) -> list[str]:
        return [
            *_flag("model", self.model),
            *_flag("fallback-model", self.fallback_model),
            *_flag("effort", self.effort),
            *self._permissions.flags(readable_files(request), outbox, self._environment(request)),
            *(f"--mcp-config={config}" for config in self.mcp_config),
            *(f"--add-dir={folder}" for folder in self.add_dirs),
            *_flag("append-system-prompt", "\n\n".join(filter(None, [SYSTEM_PROMPT, self.append_prompt]))),
            *_flag("max-turns", self.max_turns),
            *_flag("max-budget-usd", self.max_budget_usd),
        ]

    def _environment(self, request: Request | None) -> dict[str, str]:
        inherited = self.config.child_environment()
        environment = {name: value for name, value in inherited.items() if name not in _NESTING_VARIABLES}
        if request is not None and self.pass_meta:
            environment |= request_variables(request)
        if request is not None and request.trace:
            environment["TRACEPARENT"] = request.trace
        return environment | self._permissions.environment()

    @property
    def _permissions(self) -> Permissions:
        return Permissions(
            cwd=self.cwd,
            mode=self.permission_mode,
            tools=tuple(self.tools),
            allowed=tuple(self.allowed_tools),
            disallowed=tuple(self.disallowed_tools),
            settings=tuple(self.settings),
            add_dirs=tuple(self.add_dirs),
            has_own_settings=any(argument.partition("=")[0] == "--settings" for argument in self.args),
            state_root=self.config.state_root,
        )


def _flag(name: str, value: object) -> list[str]:
    """``--name=value``, or nothing without a value. One argument, so that a value may start with a dash."""
    return [f"--{name}={value}"] if value not in (None, "") else []


def _sum(first: Usage, second: Usage | None) -> Usage:
    other = second or Usage()
    return Usage(
        input_tokens=first.input_tokens + other.input_tokens,
        output_tokens=first.output_tokens + other.output_tokens,
        cost_usd=first.cost_usd + other.cost_usd,
    )
