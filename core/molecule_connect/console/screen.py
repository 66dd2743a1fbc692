"""What all screens have in common."""

from typing import Protocol

import attrs

from molecule_connect.events import Event


@attrs.frozen(kw_only=True)
class Summary:
    """What one start is about to serve. Nothing in it is secret."""

    workspace_id: str
    backend: str
    mode: str
    api_url: str
    state_dir: str

    @property
    def text(self) -> str:
        """All of it on one line."""
        return (
            f"workspace {self.workspace_id}, backend {self.backend}, mode {self.mode}, "
            f"api {self.api_url}, state {self.state_dir}"
        )


class Screen(Protocol):
    """A listener that shows events. No call of it blocks or raises."""

    def open(self, summaries: list[Summary]) -> None:
        """Say what is about to be served; again for what is served from now on too."""
        ...

    def forget(self, workspace_id: str) -> None:
        """A workspace is served no more, and nobody waits for it."""
        ...

    def __call__(self, event: Event) -> None: ...

    def note(self, level: str, text: str, hint: str = "") -> None: ...

    def fail(self, text: str, hint: str, exit_code: int, traceback: str = "") -> None: ...

    def last_words(self, text: str, exit_code: int) -> str:
        """How *text* looks here. May be called from a signal handler: takes no lock and writes nothing."""
        ...

    def close(self) -> None: ...
