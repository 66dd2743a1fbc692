"""The backend: a message on the command's standard input, its standard output as the answer."""

import asyncio
import contextlib
import fnmatch
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Literal

import attrs

from molecule_connect import (
    BackendConfig,
    BackendError,
    ConfigError,
    Duration,
    OptionError,
    Progress,
    Request,
    Response,
    hookimpl,
)
from molecule_connect.process import Ending, Program, RunMarks, Stop, not_started, request_variables
from molecule_connect_exec.answers import Conversation
from molecule_connect_exec.exit_codes import Meaning, check_rules, meaning
from molecule_connect_exec.requests import as_json, as_text
from molecule_connect_exec.shells import ask_shell, shell_line

# What a command has to end by itself once its answer is here.
AFTER_ANSWER_SECONDS = 5.0

# A first word that has no meaning of its own to the shell.
_LINE_END = re.compile(r"\r(?=\n|\Z)")
_PLAIN_WORD = re.compile(r"\s*([\w./+-]+)(?=[\s;|&]|$)")


def _not_blank(instance: object, attribute: "attrs.Attribute[str]", value: str) -> None:
    if not value.strip() or "\0" in value:
        raise OptionError("option 'cmd' of backend exec holds no command", hint="--backend-opt cmd='tr a-z A-Z'")
    shell_line(value)


def _positive(instance: object, attribute: "attrs.Attribute[int]", value: int) -> None:
    if value < 1:
        raise OptionError(f"option {attribute.name!r} of backend exec must be at least 1", hint="or leave it out")


def _rules(instance: object, attribute: "attrs.Attribute[list[str]]", value: list[str]) -> None:
    check_rules(value)


@attrs.frozen(eq=False, kw_only=True)
class ExecBackend:
    """Run ``cmd`` for each message: its text comes on standard input, what is printed is the answer.

    A command that exits with another status than 0, or is silent for longer than ``idle_timeout``, has failed and is
    tried again. One that prints nothing has no answer. POSIX only.
    """

    cmd: Annotated[str, "the command, as the shell understands it"] = attrs.field(validator=_not_blank, repr=False)
    format: Annotated[
        Literal["text", "json"], "text in and out, or the whole request as JSON and answers as JSON lines"
    ] = "text"
    idle_timeout: Annotated[Duration, "how long it may write nothing, to either output; 0 is without limit"] = 300.0
    timeout: Annotated[Duration, "how long it may run in all; 0 is without limit"] = 0.0
    output_cap: Annotated[int, "the longest output in bytes; in JSON the longest line"] = attrs.field(
        default=32 * 2**20, validator=_positive
    )
    cwd: Annotated[Path | None, "the folder that it starts in"] = None
    env: Annotated[
        list[str], "a variable that it gets, or a pattern such as LC_*; without any it gets all but the tokens"
    ] = attrs.field(factory=list, repr=False)
    concurrency: Annotated[int | None, "how many may run at once; others wait"] = attrs.field(
        default=None, validator=attrs.validators.optional(_positive)
    )
    exit_codes: Annotated[list[str], "what a status means: 3:silent, 64-78:permanent, *:retry"] = attrs.field(
        factory=list, validator=_rules
    )
    pass_meta: Annotated[
        bool, "put MOLECULE_WORKSPACE_ID, _CALLER_ID, _MESSAGE_ID, _TASK_ID, _METHOD and _FILES into its environment"
    ] = False
    raw: Annotated[bool, "with format=json: the platform's own request too, as text in `raw`"] = False
    config: BackendConfig = attrs.field(factory=lambda: BackendConfig(name="exec"), repr=False)
    _running: set[Program] = attrs.field(factory=set, init=False, repr=False)
    _marks: RunMarks = attrs.field(init=False, repr=False)
    _places: asyncio.Semaphore | None = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_marks", RunMarks(self._state_folder))
        object.__setattr__(self, "_places", asyncio.Semaphore(self.concurrency) if self.concurrency else None)

    @hookimpl
    async def handle_a2a(self, request: Request, progress: Progress) -> Response:
        async with self._places or contextlib.nullcontext():
            return await (self._converse(request, progress) if self.format == "json" else self._print(request))

    @hookimpl
    def check(self) -> list[str]:
        """The folder is looked for; the shell is asked whether it can read the command and finds its first word.

        What an earlier process left running when it was killed is ended.
        """
        with contextlib.suppress(OSError):
            self._marks.sweep()
        if self.cwd is not None and not self.cwd.is_dir():
            return [f"cwd is no folder: {self.cwd}"]
        if _LINE_END.search(self.cmd):
            return [
                "a line of cmd ends in a carriage return, which the shell takes for a part of the last word; "
                "remove it, as from a file with the line ends of Windows"
            ]
        environment = self._environment(None)
        syntax = ask_shell("-n", "-c", self.cmd, environment=environment)
        if syntax.returncode != 0:
            return [f"the shell cannot read cmd: {syntax.stderr.decode(errors='replace').strip()}"]
        word = _PLAIN_WORD.match(self.cmd)
        find = 'cd "$2" && command -v -- "$1"'
        place = str(self.cwd or ".")
        if word and ask_shell("-c", find, "sh", word[1], place, environment=environment).returncode != 0:
            return [f"the shell does not find {word[1]!r}, the first word of cmd; install it, or give its whole path"]
        return []

    @hookimpl
    async def close(self) -> None:
        await asyncio.gather(*(program.end() for program in tuple(self._running)))
        self._marks.close()

    async def _print(self, request: Request) -> Response:
        async with self._started(request, as_text(request)) as program:
            ending = await program.finish()
        text = ending.output.decode(errors="replace").removesuffix("\n").removesuffix("\r")
        closed = ending.stop is Stop.CLOSED and bool(text.strip())
        if not closed and (silent := self._failed(ending)):
            return silent
        if not text.strip():
            raise BackendError(f"the command printed no answer{_tail(ending)}", retryable=False)
        return Response.from_text(text)

    async def _converse(self, request: Request, progress: Progress) -> Response:
        talk = Conversation(folder=self.cwd or Path())
        async with self._started(request, as_json(request, raw=self.raw)) as program:
            async for line in program.lines():
                if told := talk.hear(line):
                    progress(told)
                if talk.final is not None:
                    break
            ending = await program.finish(within=AFTER_ANSWER_SECONDS if talk.final is not None else None)
        answer = talk.answer() if talk.final is not None or ending.stop is Stop.NONE else None
        if answer is not None:
            if not answer.is_silent and answer.is_blank:
                raise BackendError("the command's answer holds nothing to read", retryable=False, usage=answer.usage)
            return answer
        if silent := self._failed(ending):
            return silent
        stray = f"; it printed {talk.first_stray()!r}, which is no answer in JSON" if talk.strays else ""
        raise BackendError(f"the command gave no answer{stray}{_tail(ending)}", retryable=False)

    @contextlib.asynccontextmanager
    async def _started(self, request: Request, stdin: bytes) -> AsyncIterator[Program]:
        program = Program(
            shell_line(self.cmd),
            environment=self._environment(request),
            stdin=stdin,
            cwd=self.cwd,
            marks=self._marks,
            timeout=self.timeout or None,
            idle_timeout=self.idle_timeout or None,
            most_bytes=self.output_cap,
        )
        self._running.add(program)
        try:
            try:
                await program.start()
            except OSError as exc:
                what = f" in {self.cwd}" if self.cwd else ""
                raise not_started(f"the command could not be started{what}", exc) from exc
            try:
                yield program
            finally:
                await program.end()
        finally:
            self._running.discard(program)

    def _failed(self, ending: Ending) -> Response | None:
        """Raise for a command that failed; a silent response where its status stands for one."""
        tail = _tail(ending)
        if ending.stop is Stop.OUTPUT:
            raise BackendError(f"the command printed more than {self.output_cap} bytes", retryable=False)
        if ending.stop is Stop.TOTAL:
            raise BackendError(f"the command was still running after {self.timeout:g} s{tail}")
        if ending.stop is Stop.IDLE:
            raise BackendError(f"the command wrote nothing for {self.idle_timeout:g} s{tail}")
        if ending.stop is Stop.CLOSED:
            raise BackendError(f"the command closed its output without an answer, and did not end{tail}")
        if ending.status < 0 or ending.stop is Stop.ASKED:
            raise BackendError(f"the command was ended by signal {abs(ending.status) or 15}{tail}")
        if ending.status == 0:
            return None
        said = meaning(ending.status, self.exit_codes)
        if said is Meaning.SILENT:
            return Response.silent()
        raise BackendError(f"the command ended with exit status {ending.status}{tail}", retryable=said is Meaning.RETRY)

    def _environment(self, request: Request | None) -> dict[str, str]:
        environment = self.config.child_environment()
        if self.env:
            wanted = {name for name in environment if any(fnmatch.fnmatchcase(name, each) for each in self.env)}
            environment = {name: value for name, value in environment.items() if name in wanted}
        if self.pass_meta and request is not None:
            environment |= request_variables(request, files=True)
        return environment

    def _state_folder(self) -> Path | None:
        try:
            return self.config.state_dir
        except ConfigError:  # made by a program that gave it none
            return None


def _tail(ending: Ending) -> str:
    return f": {ending.error_tail}" if ending.error_tail else ""
