"""The backend: a message on the command's standard input, its standard output as the answer."""

import asyncio
import re
import subprocess
from collections.abc import Mapping
from typing import Annotated

import attrs

from molecule_connect import BackendConfig, BackendError, Duration, OptionError, Request, Response, hookimpl
from molecule_connect_exec.shell import Ending, ShellCommand

# A first word that has no meaning of its own to the shell.
_PLAIN_WORD = re.compile(r"\s*([\w./+-]+)(?=[\s;|&]|$)")


def _positive(instance: object, attribute: "attrs.Attribute[float]", value: float) -> None:
    if value <= 0:
        raise OptionError("option 'timeout' of backend exec must be more than 0", hint="write it as 90s or 5m")


def _not_blank(instance: object, attribute: "attrs.Attribute[str]", value: str) -> None:
    if not value.strip() or "\0" in value:
        raise OptionError("option 'cmd' of backend exec holds no command", hint="--backend-opt cmd='tr a-z A-Z'")


@attrs.frozen(eq=False, kw_only=True)
class ExecBackend:
    """Run ``cmd`` for each message: its text comes on standard input, what is printed is the answer.

    A command that exits with another status than 0, or runs longer than ``timeout``, has failed and is tried again.
    One that prints nothing has no answer. POSIX only.
    """

    cmd: Annotated[str, "the command, as the shell understands it"] = attrs.field(validator=_not_blank, repr=False)
    timeout: Annotated[Duration, "how long it may run"] = attrs.field(default=300.0, validator=_positive)
    pass_meta: Annotated[
        bool, "put MOLECULE_WORKSPACE_ID, _CALLER_ID, _MESSAGE_ID, _TASK_ID and _METHOD into its environment"
    ] = False
    config: BackendConfig = attrs.field(factory=lambda: BackendConfig(name="exec"), repr=False)
    _running: set[ShellCommand] = attrs.field(factory=set, init=False, repr=False)

    @hookimpl
    async def handle_a2a(self, request: Request) -> Response:
        command = ShellCommand(self.cmd, request.text.encode(errors="replace"), self._environment(request))
        self._running.add(command)
        try:
            ending = await command.run(self.timeout)
        except OSError as exc:
            raise BackendError(f"the command could not be started: {exc.strerror or exc}") from exc
        finally:
            self._running.discard(command)
        return _answer(ending, self.timeout)

    @hookimpl
    def check(self) -> str | None:
        """The shell is asked whether it can read the command, and whether it finds its first word."""
        environment = self.config.child_environment()
        syntax = _sh("-n", "-c", self.cmd, environment=environment)
        if syntax.returncode != 0:
            return f"the shell cannot read cmd: {syntax.stderr.decode(errors='replace').strip()}"
        word = _PLAIN_WORD.match(self.cmd)
        if word and _sh("-c", 'command -v -- "$1"', "sh", word[1], environment=environment).returncode != 0:
            return f"the shell does not find {word[1]!r}, the first word of cmd; install it, or give its whole path"
        return None

    @hookimpl
    async def close(self) -> None:
        await asyncio.gather(*(command.end() for command in tuple(self._running)))

    def _environment(self, request: Request) -> dict[str, str]:
        environment = self.config.child_environment()
        if self.pass_meta:
            meta = {
                "MOLECULE_WORKSPACE_ID": request.workspace_id,
                "MOLECULE_CALLER_ID": request.caller_id,
                "MOLECULE_MESSAGE_ID": request.message_id,
                "MOLECULE_TASK_ID": request.task_id,
                "MOLECULE_METHOD": request.method,
            }
            environment |= {name: _for_environment(value or "") for name, value in meta.items()}
        return environment


def _answer(ending: Ending, timeout: float) -> Response:
    tail = f": {ending.error_tail}" if ending.error_tail else ""
    if ending.timed_out:
        raise BackendError(f"the command was still running after {timeout:g} s{tail}")
    if ending.too_long:
        raise BackendError(f"the command printed more than {ShellCommand.MOST_BYTES // 2**20} MiB", retryable=False)
    if ending.status < 0:
        raise BackendError(f"the command was ended by signal {-ending.status}{tail}")
    if ending.status:
        raise BackendError(f"the command ended with exit status {ending.status}{tail}")
    text = ending.output.decode(errors="replace")
    text = text.removesuffix("\n").removesuffix("\r")
    if not text.strip():
        raise BackendError(f"the command printed no answer{tail}", retryable=False)
    return Response.from_text(text)


def _for_environment(value: str) -> str:
    # The sender chose these: a NUL or half a surrogate pair would keep the command from starting.
    return value.replace("\0", "").encode(errors="replace").decode()


def _sh(*arguments: str, environment: Mapping[str, str]) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(  # noqa: S603
        ["/bin/sh", *arguments],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=10,
        check=False,
    )
