"""The interface of all screens."""

from typing import Protocol

import attrs

from molecule_connect.events import Event


@attrs.frozen(kw_only=True)
class Summary:
    """The workspace that will be served. Contains no secrets.

    Attributes:
        settings_file: The saved settings that it is from, if any.
    """

    workspace_id: str
    backend: str
    mode: str
    api_url: str
    state_dir: str
    settings_file: str = ""

    @property
    def text(self) -> str:
        """The summary as one line."""
        source = f", settings {self.settings_file}" if self.settings_file else ""
        return (
            f"workspace {self.workspace_id}, backend {self.backend}, mode {self.mode}, "
            f"api {self.api_url}, state {self.state_dir}{source}"
        )


class Screen(Protocol):
    """A listener that shows events. Its methods neither block nor raise."""

    def open(self, summaries: list[Summary]) -> None:
        """Show the workspaces that will be served. Called again for added ones."""
        ...

    def plan(self, summaries: list[Summary]) -> None:
        """Show the workspaces that a start would serve."""
        ...

    def forget(self, workspace_id: str) -> None:
        """A workspace is no longer served."""
        ...

    def __call__(self, event: Event) -> None: ...

    def note(self, level: str, text: str, hint: str = "") -> None:
        """Show a log line."""
        ...

    def fail(self, text: str, hint: str, exit_code: int, traceback: str = "") -> None:
        """Show why the program ends."""
        ...

    def last_words(self, text: str, exit_code: int) -> str:
        """Return *text*, which may be empty, as what to write last, with what restores the terminal.

        For signal handlers: it waits for no lock and writes nothing.
        """
        ...

    def close(self) -> None:
        """Write everything that is pending, for at most two seconds."""
        ...
