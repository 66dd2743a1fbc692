"""The backend: the message is the command's standard input, its standard output the reply."""

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
from molecule_connect_exec.exit_codes import Meaning, check_rules, meaning
from molecule_connect_exec.json_output import JsonOutput
from molecule_connect_exec.requests import as_json, as_text
from molecule_connect_exec.shells import ask_shell, shell_line

# How long a command may keep running after its response.
AFTER_RESPONSE_SECONDS = 5.0

_LINE_END = re.compile(r"\r(?=\n|\Z)")
# A first word without special meaning to the shell.
_PLAIN_WORD = re.compile(r"\s*([\w./+-]+)(?=[\s;|&]|$)")


def _not_blank(instance: object, attribute: "attrs.Attribute[str]", value: str) -> None:
    if not value.strip() or "\0" in value:
        raise OptionError("option 'cmd' of backend exec has no command", hint="--backend-opt cmd='tr a-z A-Z'")
    shell_line(value)


def _positive(instance: object, attribute: "attrs.Attribute[int]", value: int) -> None:
    if value < 1:
        raise OptionError(f"option {attribute.name!r} of backend exec must be at least 1", hint="or leave it out")


def _rules(instance: object, attribute: "attrs.Attribute[list[str]]", value: list[str]) -> None:
    check_rules(value)


@attrs.frozen(eq=False, kw_only=True)
class ExecBackend:
    """Run ``cmd`` for each message: the text is its standard input, its standard output the reply.

    A nonzero exit status, or no output for ``idle_timeout``, is a failure that is retried. A command that prints
    nothing gives no reply. POSIX only.
    """

    cmd: Annotated[str, "the command, run by /bin/sh"] = attrs.field(validator=_not_blank, repr=False)
    format: Annotated[
        Literal["text", "json"], "text in and out, or the whole request as JSON and replies as JSON lines"
    ] = "text"
    idle_timeout: Annotated[Duration, "maximum time without output; 0 means no limit"] = 300.0
    timeout: Annotated[Duration, "maximum run time; 0 means no limit"] = 0.0
    output_cap: Annotated[int, "maximum size of the output in bytes; with format=json, of a line"] = attrs.field(
        default=32 * 2**20, validator=_positive
    )
    cwd: Annotated[Path | None, "the working directory"] = None
    env: Annotated[
        list[str], "a variable to pass on, or a pattern such as LC_*; by default all variables except the tokens"
    ] = attrs.field(factory=list, repr=False)
    concurrency: Annotated[int | None, "how many commands may run at once"] = attrs.field(
        default=None, validator=attrs.validators.optional(_positive)
    )
    exit_codes: Annotated[list[str], "the meaning of an exit status: 3:silent, 64-78:permanent, *:retry"] = attrs.field(
        factory=list, validator=_rules
    )
    pass_meta: Annotated[
        bool, "set MOLECULE_WORKSPACE_ID, _CALLER_ID, _MESSAGE_ID, _TASK_ID, _METHOD and _FILES in its environment"
    ] = False
    raw: Annotated[bool, "with format=json, include the platform's original request as text in `raw`"] = False
    config: BackendConfig = attrs.field(factory=lambda: BackendConfig(name="exec"), repr=False)
    _running: set[Program] = attrs.field(factory=set, init=False, repr=False)
    _marks: RunMarks = attrs.field(init=False, repr=False)
    _slots: asyncio.Semaphore | None = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_marks", RunMarks(self._state_folder))
        object.__setattr__(self, "_slots", asyncio.Semaphore(self.concurrency) if self.concurrency else None)

    @hookimpl
    async def handle_a2a(self, request: Request, progress: Progress) -> Response:
        async with self._slots or contextlib.nullcontext():
            return await (self._converse(request, progress) if self.format == "json" else self._print(request))

    @hookimpl
    def check(self) -> list[str]:
        """Check the folder, and let the shell check the command's syntax and find its first word.

        Also kills processes that an earlier, killed process left behind.
        """
        with contextlib.suppress(OSError):
            self._marks.sweep()
        if self.cwd is not None and not self.cwd.is_dir():
            return [f"cwd is not a folder: {self.cwd}"]
        if _LINE_END.search(self.cmd):
            return [
                "a line of cmd ends with a carriage return, which the shell treats as part of the last word; "
                "convert Windows line endings"
            ]
        environment = self._environment(None)
        syntax = ask_shell("-n", "-c", self.cmd, environment=environment)
        if syntax.returncode != 0:
            return [f"the shell cannot parse cmd: {syntax.stderr.decode(errors='replace').strip()}"]
        word = _PLAIN_WORD.match(self.cmd)
        find = 'cd "$2" && command -v -- "$1"'
        place = str(self.cwd or ".")
        if word and ask_shell("-c", find, "sh", word[1], place, environment=environment).returncode != 0:
            return [f"the shell cannot find {word[1]!r}, the first word of cmd; install it, or use its full path"]
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
        output = JsonOutput(folder=self.cwd or Path())
        async with self._started(request, as_json(request, raw=self.raw)) as program:
            async for line in program.lines():
                if text := output.add(line):
                    progress(text)
                if output.final is not None:
                    break
            ending = await program.finish(within=AFTER_RESPONSE_SECONDS if output.final is not None else None)
        response = output.response() if output.final is not None or ending.stop is Stop.NONE else None
        if response is not None:
            if not response.is_silent and response.is_blank:
                raise BackendError("the command's response has no content", retryable=False, usage=response.usage)
            return response
        if silent := self._failed(ending):
            return silent
        stray = f"; it printed {output.first_stray()!r}, which is not a JSON response" if output.strays else ""
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
        """Raise if the command failed. Returns a silent response if its exit status means one."""
        tail = _tail(ending)
        if ending.stop is Stop.OUTPUT:
            raise BackendError(f"the command printed more than {self.output_cap} bytes", retryable=False)
        if ending.stop is Stop.TOTAL:
            raise BackendError(f"the command was still running after {self.timeout:g} s{tail}")
        if ending.stop is Stop.IDLE:
            raise BackendError(f"the command wrote nothing for {self.idle_timeout:g} s{tail}")
        if ending.stop is Stop.CLOSED:
            raise BackendError(f"the command closed its output without a response and kept running{tail}")
        if ending.status < 0 or ending.stop is Stop.ASKED:
            raise BackendError(f"the command was ended by signal {abs(ending.status) or 15}{tail}")
        if ending.status == 0:
            return None
        result = meaning(ending.status, self.exit_codes)
        if result is Meaning.SILENT:
            return Response.silent()
        raise BackendError(
            f"the command ended with exit status {ending.status}{tail}", retryable=result is Meaning.RETRY
        )

    def _environment(self, request: Request | None) -> dict[str, str]:
        environment = self.config.child_environment()
        if self.env:
            wanted = {name for name in environment if any(fnmatch.fnmatchcase(name, each) for each in self.env)}
            environment = {name: value for name, value in environment.items() if name in wanted}
        if self.pass_meta and request is not None:
            environment |= request_variables(request, files=True)
        if request is not None and request.trace:
            environment["TRACEPARENT"] = request.trace
        return environment

    def _state_folder(self) -> Path | None:
        try:
            return self.config.state_dir
        except ConfigError:  # created by a program without a state folder
            return None


def _tail(ending: Ending) -> str:
    return f": {ending.error_tail}" if ending.error_tail else ""
