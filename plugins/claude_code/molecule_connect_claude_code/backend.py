"""The backend: each conversation is a headless session of Claude Code, each message a turn of it."""

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
from molecule_connect.process import Ending, Program, RunMarks, not_started, require_posix
from molecule_connect_claude_code import validation as v
from molecule_connect_claude_code.command import BASE, OUTBOX, environment_for, flag
from molecule_connect_claude_code.outbox import Outbox
from molecule_connect_claude_code.permissions import Mode, Permissions
from molecule_connect_claude_code.prompt import GROUND, prompt_for, readable_files
from molecule_connect_claude_code.readiness import INSTALL, find_program, problems_with
from molecule_connect_claude_code.sessions import Session, Sessions, conversation_of, is_session_id
from molecule_connect_claude_code.stream import Turn
from molecule_connect_claude_code.verdict import UnusableSessionError, judge

# What the program has to end by itself once its result is here; it stops background shells meanwhile.
AFTER_RESULT_SECONDS = 10.0
LONGEST_LINE = 64 * 2**20

Effort = Literal["low", "medium", "high", "xhigh", "max"]


@attrs.frozen(eq=False, kw_only=True)
class ClaudeCodeBackend:
    """Answer with Claude Code: a session per conversation, resumed for each message, also after a restart.

    It runs ``claude -p`` in ``cwd`` with the operator's login. Unless options allow more, Claude may read the files of
    a message and write to its outbox; no settings, memory, hooks, skills or MCP servers are loaded. POSIX only.
    """

    bin: Annotated[str, "the program: a name or a path"] = attrs.field(default="claude", validator=v.not_blank)
    args: Annotated[list[str], "one more word of its command line"] = attrs.field(
        factory=list, validator=v.extra_words, repr=False
    )
    model: Annotated[str | None, "an alias (opus, sonnet) or a model's full name"] = attrs.field(
        default=None, validator=v.optional_word
    )
    fallback_model: Annotated[str | None, "the model to take while the first is overloaded"] = attrs.field(
        default=None, validator=v.optional_word
    )
    effort: Annotated[Effort | None, "how hard it thinks"] = None
    cwd: Annotated[
        Path,
        "the folder that it works in; by default the one that molecule was started in",
        "(a new one: new sessions)",
    ] = attrs.field(factory=Path.cwd, converter=v.whole, validator=v.is_folder)
    allow_unsafe_cwd: Annotated[bool, "accept a cwd that holds the home directory or the state folder"] = False
    settings: Annotated[
        list[str], "whose settings, memory, hooks, skills and MCP servers to load: user,project,local; by default none"
    ] = attrs.field(factory=list, converter=v.split_by_commas, validator=v.setting_sources)
    permission_mode: Annotated[Mode, "what becomes of tools that no rule allows; dontAsk refuses them"] = "dontAsk"
    allowed_tools: Annotated[
        list[str], "a tool it may use: Read(./**) for the files in cwd, Edit, or Bash(git log *)"
    ] = attrs.field(factory=list, validator=v.words)
    tools: Annotated[
        list[str], "one more tool that exists, under Claude Code's own rules: Agent, or default for all"
    ] = attrs.field(factory=list, converter=v.split_by_commas, validator=v.tool_names)
    disallowed_tools: Annotated[list[str], "a tool it may never use"] = attrs.field(factory=list, validator=v.words)
    mcp_config: Annotated[list[str], "MCP servers: a JSON file, or the JSON itself"] = attrs.field(
        factory=list, converter=v.mcp_configs, repr=False
    )
    add_dirs: Annotated[list[Path], "one more folder that it may work in"] = attrs.field(
        factory=list, converter=v.all_whole, validator=v.are_folders
    )
    append_prompt: Annotated[str, "text put after its system prompt"] = attrs.field(
        default="", validator=v.short_enough, repr=False
    )
    max_turns: Annotated[int | None, "model calls for one message, at least 2; then what it has is sent"] = attrs.field(
        default=None, validator=v.at_least_two
    )
    max_budget_usd: Annotated[float | None, "dollars for one message; then what it has is sent"] = attrs.field(
        default=None, validator=v.above_zero
    )
    idle_timeout: Annotated[Duration, "how long it may write nothing; 0 is without limit"] = 300.0
    timeout: Annotated[Duration, "how long one message may take in all; 0 is without limit"] = 0.0
    session: Annotated[
        Literal["lane", "workspace", "none", "running"],
        "what remembers: each conversation, the whole workspace, nothing, or the Claude Code that you have open",
    ] = "lane"
    pass_meta: Annotated[
        bool, "put MOLECULE_WORKSPACE_ID, _CALLER_ID, _MESSAGE_ID, _TASK_ID and _METHOD into its environment"
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
            return await self._take_turn(request, progress, ["--no-session-persistence"], fresh=False)
        key = conversation_of(request, whole_workspace=self.session == "workspace")
        async with self._sessions.alone(key):
            known, spent = await self._sessions.find(key), Usage()
            if known is not None and known.folder == str(self.cwd):
                try:
                    return await self._take_turn(request, progress, [f"--resume={known.id}"], key=key)
                except UnusableSessionError as exc:
                    # The old one stays known until the new one has answered: the message may be at fault.
                    progress(f"beginning a new session: {exc}")
                    spent = exc.usage or spent
            flags = [f"--session-id={uuid.uuid4()}"]
            try:
                response = await self._take_turn(request, progress, flags, key=key, fresh=known is not None)
            except BackendError as exc:
                exc.usage = _sum(spent, exc.usage)
                raise
            return attrs.evolve(response, usage=_sum(spent, response.usage))

    @hookimpl
    async def check(self) -> list[str]:
        """The program, its version, and its login. What an earlier process left when it was killed is ended."""
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self._marks.sweep)
        return await problems_with(self.bin, self._environment(None))

    @hookimpl
    def describe(self) -> list[str]:
        """What Claude may do here."""
        return [self._permissions.describe()]

    @hookimpl
    async def close(self) -> None:
        await asyncio.gather(*(program.end() for program in tuple(self._running)))
        self._marks.close()

    def state_folder(self) -> Path | None:
        """Where sessions are kept; None for a backend that a program made without a state folder."""
        try:
            return self.config.state_dir
        except ConfigError:
            return None

    async def _take_turn(
        self, request: Request, progress: Progress, flags: list[str], *, key: str = "", fresh: bool = False
    ) -> Response:
        turn = Turn()
        outbox = await asyncio.to_thread(self._outbox.open, request)
        # A long message takes its time, and so do the folders.
        program = await asyncio.to_thread(self._program, request, flags, fresh=fresh, outbox=outbox)
        ending = await self._run(turn, progress, program)
        response = judge(turn, ending, now=time.time())
        if files := await asyncio.to_thread(self._outbox.take, outbox):
            response = attrs.evolve(response, parts=(*response.parts, *files))
        session_id = turn.field("session_id")
        if key and is_session_id(session_id):
            await self._sessions.keep(key, Session(id=session_id, folder=str(self.cwd)))
        return response

    async def _run(self, turn: Turn, progress: Progress, program: Program) -> Ending:
        self._running.add(program)
        try:
            async with program:
                async for line in program.lines():
                    if told := turn.hear(line):
                        progress(told)
                    if turn.result is not None:
                        break
                return await program.finish(within=AFTER_RESULT_SECONDS if turn.result is not None else None)
        except OSError as exc:
            raise not_started(f"claude could not be started in {self.cwd}", exc) from exc
        finally:
            self._running.discard(program)

    def _program(self, request: Request, flags: list[str], *, fresh: bool, outbox: Path | None) -> Program:
        environment = self._environment(request) | ({OUTBOX: str(outbox)} if outbox is not None else {})
        found = find_program(self.bin, environment)
        if found is None:
            raise BackendError(f"the program {self.bin!r} is not found; {INSTALL}")
        return Program(
            [str(found), *BASE, *flags, *self._settings(request, outbox), *self.args],
            environment=environment,
            stdin=prompt_for(request, fresh=fresh, outbox=outbox).encode(errors="replace"),
            cwd=self.cwd,
            marks=self._marks,
            timeout=self.timeout or None,
            idle_timeout=self.idle_timeout or None,
            most_bytes=LONGEST_LINE,
        )

    def _settings(self, request: Request, outbox: Path | None) -> list[str]:
        return [
            *flag("model", self.model),
            *flag("fallback-model", self.fallback_model),
            *flag("effort", self.effort),
            *self._permissions.flags(readable_files(request), outbox, self._environment(request)),
            *(word for each in self.mcp_config for word in flag("mcp-config", each)),
            *(word for each in self.add_dirs for word in flag("add-dir", each)),
            *flag("append-system-prompt", "\n\n".join(filter(None, [GROUND, self.append_prompt]))),
            *flag("max-turns", self.max_turns),
            *flag("max-budget-usd", self.max_budget_usd),
        ]

    def _environment(self, request: Request | None) -> dict[str, str]:
        base = environment_for(self.config.child_environment(), request if self.pass_meta else None)
        return base | self._permissions.environment()

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
            has_own_settings=any(word.partition("=")[0] == "--settings" for word in self.args),
            state_root=self.config.state_root,
        )


def _sum(first: Usage, second: Usage | None) -> Usage:
    other = second or Usage()
    return Usage(
        input_tokens=first.input_tokens + other.input_tokens,
        output_tokens=first.output_tokens + other.output_tokens,
        cost_usd=first.cost_usd + other.cost_usd,
    )
