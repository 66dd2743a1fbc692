"""Answer A2A messages with a throw of dice."""

import random
import re
from typing import Annotated

import attrs
from molecule_connect import BackendError, Progress, Request, Response, hookimpl

__all__ = ["DiceBackend"]

_THROW = re.compile(r"\b(\d{1,3})[dw](\d{1,4})\b", re.IGNORECASE)


@attrs.frozen(eq=False, kw_only=True)
class DiceBackend:
    """Throw the dice that a message names, as in "2d6"."""

    default: Annotated[str, "what is thrown when a message names no dice"] = "1d6"
    seed: Annotated[int | None, "makes the throws the same each time"] = None
    _random: random.Random = attrs.field(init=False, repr=False)

    @_random.default
    def _new_random(self) -> random.Random:
        return random.Random(self.seed)

    @hookimpl
    async def handle_a2a(self, request: Request, progress: Progress) -> Response:
        throw = _THROW.search(request.text) or _THROW.search(self.default)
        if throw is None:
            raise BackendError("the message names no dice, such as 2d6", retryable=False)
        count, sides = int(throw[1]), max(1, int(throw[2]))
        progress(f"throwing {throw[0]}")
        thrown = [self._random.randint(1, sides) for _ in range(count)]
        return Response.from_text(f"{sum(thrown)} ({' + '.join(map(str, thrown))})" if count > 1 else f"{sum(thrown)}")

    @hookimpl
    def check(self) -> list[str]:
        return [] if _THROW.fullmatch(self.default) else [f"default={self.default} are no dice; write it as 2d6"]
