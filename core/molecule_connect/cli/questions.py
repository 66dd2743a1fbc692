"""The questions of ``molecule init``."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from molecule_connect.config.saved import SavedSettings
from molecule_connect.config.settings import DEFAULT_API_URL, DEFAULT_BACKEND, SCHEMA, check_workspace_id
from molecule_connect.config.tokens import check_token
from molecule_connect.console.sanitize import one_line
from molecule_connect.errors import ConfigError, MoleculeError
from molecule_connect.platform.address import parse_address
from molecule_connect.plugins import discovery
from molecule_connect.plugins.entry_points import BACKENDS
from molecule_connect.plugins.options import OptionField, describe

# Options whose values aren't shown while they are typed.
_SECRET = re.compile(r"key|token|secret|password", re.IGNORECASE)


class Questions:
    """Asks for settings on a terminal, in standard error.

    Args:
        before: Provides the suggested answers.
    """

    def __init__(self, before: SavedSettings | None) -> None:
        self._before: Mapping[str, Any] = before.values if before is not None else {}

    def complete(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """*found*, with answers for the settings that it lacks."""
        answers = dict(found)
        for name in ("api_url", "workspace_id", "token", "backend"):
            if answers.get(name):
                if name != "token":
                    click.echo(f"{_LABELS[name]}: {one_line(str(answers[name]))}", err=True)
                continue
            self._ask_setting(name, answers, self._before)
        self._ask_options(answers, self._before)
        return answers

    def ask_again(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """*found*, with new answers for all settings that are asked for. The earlier answers are suggested."""
        answers = dict(found)
        for name in ("api_url", "workspace_id", "token", "backend"):
            self._ask_setting(name, answers, found)
        if answers["backend"] != found["backend"]:
            answers["options"] = {}
        self._ask_options(answers, found, again=answers["backend"] == found["backend"])
        return answers

    def choose(self, text: str, choices: Sequence[str]) -> str:
        """One of *choices*; the first is suggested."""
        answer: str = click.prompt(
            f"{text} What now?", type=click.Choice(choices, case_sensitive=False), default=choices[0], err=True
        )
        return answer

    def _ask_setting(self, name: str, answers: dict[str, Any], suggested: Mapping[str, Any]) -> None:
        is_insecure = bool(answers.get("insecure"))

        def address(text: str) -> str:
            parse_address(text, insecure=is_insecure)
            return text.strip()

        if name == "api_url":
            answers[name] = _ask(_LABELS[name], address, str(suggested.get(name) or DEFAULT_API_URL))
        elif name == "workspace_id":
            answers[name] = _ask(_LABELS[name], check_workspace_id, suggested.get(name))
        elif name == "token":
            # A token that was entered before, but never a saved one: it may be for another platform.
            kept = suggested.get("token") if suggested is not self._before else None
            label = f"{_LABELS[name]} (not shown{'; Enter keeps it' if kept else ''})"
            token = _ask(label, lambda text: check_token(text, source="the terminal"), kept, is_hidden=True)
            answers |= {"token": token, "token_source": "the terminal"}
        else:
            names = [plugin.name for plugin in discovery.installed(BACKENDS)]
            default = suggested.get(name) or _default_backend(names)
            label = f"{_LABELS[name]} ({', '.join(dict.fromkeys(names))})"
            answers[name] = _ask(label, lambda text: _installed(text.strip()), default)

    def _ask_options(self, answers: dict[str, Any], suggested: Mapping[str, Any], *, again: bool = False) -> None:
        """Ask for the options that the backend requires."""
        is_same = answers["backend"] == suggested.get("backend", SCHEMA["backend"].default)
        earlier: Mapping[str, Any] = suggested.get("options", {}) if is_same else {}
        options = dict(answers.get("options", {}))
        for field in _required(str(answers["backend"])):
            if options.get(field.key) and not again:
                continue
            is_secret = bool(_SECRET.search(field.key))
            default = earlier.get(field.key)
            about = f" ({one_line(field.help)})" if field.help else ""
            label = f"Option {field.key}{about}"
            default = default if isinstance(default, str) else None
            options[field.key] = _ask(label, str, default, is_hidden=is_secret)
        answers["options"] = options


_LABELS = {
    "api_url": "Address of the platform",
    "workspace_id": "Workspace id",
    "token": "Workspace token",
    "backend": "Backend",
}


def _ask(label: str, read: Callable[[str], str], default: str | None = None, *, is_hidden: bool = False) -> str:
    """Ask until *read* accepts the answer."""
    while True:
        try:
            answer: str = click.prompt(
                label, default=default, hide_input=is_hidden, show_default=not is_hidden, err=True, type=str
            )
        except click.Abort:
            click.echo(err=True)  # the cursor is behind the question
            raise
        try:
            return read(answer)
        except MoleculeError as error:
            click.echo(one_line(f"{error} -> {error.hint}" if error.hint else str(error), 400), err=True)


def _installed(name: str) -> str:
    discovery.find(BACKENDS, name)
    return name


def _default_backend(names: Sequence[str]) -> str | None:
    # An inbox doesn't answer.
    answering = [name for name in names if name != "inbox"]
    return DEFAULT_BACKEND if DEFAULT_BACKEND in names else next(iter(answering), None)


def _required(name: str) -> list[OptionField]:
    """The options that the backend requires. Its problems are left to the checks."""
    try:
        fields = describe(discovery.load(discovery.find(BACKENDS, name)))
    except ConfigError:
        return []
    return [field for field in fields or () if field.required]
