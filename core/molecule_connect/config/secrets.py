"""Tokens that a list of workspaces doesn't contain: in a variable, a file, or the output of a program."""

import os
import signal
import subprocess
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs

from molecule_connect.config.tokens import check_token
from molecule_connect.config.values import Secret
from molecule_connect.errors import ConfigError

# Seconds for a program to print a token. It may ask a server, or wait for a hardware key.
COMMAND_TIMEOUT = 30.0
_CONCURRENT = 8
_LONGEST_OUTPUT = 64 << 10
_LONGEST_QUOTE = 200


@attrs.define
class SecretReader:
    """Reads tokens. Each program runs once, and several at the same time.

    Attributes:
        environ: The variables, also for programs.
        folder: The working directory of programs: the folder of the list.
    """

    environ: Mapping[str, str] = attrs.field(repr=False)
    folder: Path
    _outputs: dict[tuple[str, ...], str | ConfigError] = attrs.field(factory=dict, repr=False, init=False)

    def run(self, secrets: Iterable[Secret]) -> None:
        """Run the programs of all *secrets*, so that ``token`` doesn't wait for them one after the other."""
        commands = {secret.value for secret in secrets if secret.way == "command"} - self._outputs.keys()
        if commands:
            with ThreadPoolExecutor(_CONCURRENT) as pool:
                self._outputs.update(zip(commands, pool.map(self._output, commands), strict=True))

    def token(self, secret: Secret) -> str:
        """The token that *secret* refers to, a variable or a program.

        Raises:
            ConfigError: It can't be read, or isn't a token. The text doesn't contain it.
        """
        if secret.way == "env":
            (name,) = secret.value
            if not self.environ.get(name):
                raise ConfigError(f"the variable {name} is not set", hint="set it for this process, then restart it")
            return check_token(self.environ[name], source=f"the variable {name}")
        self.run([secret])
        output = self._outputs[secret.value]
        if isinstance(output, ConfigError):
            raise output
        return check_token(output, source=secret.source)

    def _output(self, command: tuple[str, ...]) -> str | ConfigError:
        name = f"the command {command[0]!r}"
        hint = "run it yourself, as the user of this process: it must print the token, and nothing else"
        try:
            process = subprocess.Popen(  # noqa: S603 - the list names it, and only its owner can write the list
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=self.folder,
                env=dict(self.environ),
                start_new_session=True,
            )
        except (OSError, ValueError) as exc:
            return ConfigError(f"{name} can't be started: {getattr(exc, 'strerror', None) or exc}", hint=hint)
        with process:
            try:
                output, errors = process.communicate(timeout=COMMAND_TIMEOUT)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                return ConfigError(f"{name} didn't print a token within {COMMAND_TIMEOUT:.0f} s", hint=hint)
        if process.returncode:
            last = errors.decode(errors="replace").strip().rpartition("\n")[2][:_LONGEST_QUOTE]
            said = f": {last}" if last else ""
            return ConfigError(f"{name} failed with exit code {process.returncode}{said}", hint=hint)
        lines = output[:_LONGEST_OUTPUT].decode(errors="replace").strip().splitlines()
        if len(lines) != 1:
            return ConfigError(f"{name} printed {len(lines)} lines instead of a token", hint=hint)
        return lines[0]
