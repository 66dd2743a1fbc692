"""The rate limit: a fixed window of a minute, per address or per token."""

import hashlib
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import Scope

WINDOW = 60


class RateLimit:
    """Allows ``limit`` requests per minute and key; 0 means no limit."""

    def __init__(self, limit: int, now: Callable[[], float], *, by_token: bool) -> None:
        self.limit = limit
        self._now = now
        self._by_token = by_token
        self._windows: dict[str, tuple[float, int]] = {}

    def _key(self, scope: Scope) -> str:
        client = scope.get("client")
        address = client[0] if client else ""
        if not self._by_token:
            return address
        headers = Headers(scope=scope)
        token = headers.get("authorization", "")
        if org := headers.get("x-molecule-org-id"):
            return f"org:{org}"
        return hashlib.sha256(token.encode()).hexdigest() if token else address

    def take(self, scope: Scope) -> tuple[list[tuple[bytes, bytes]], int]:
        """Count a request. Returns headers for the response, and the seconds to wait if over the limit, else 0."""
        if not self.limit:
            return [(b"x-ratelimit-limit", b"unlimited")], 0
        now, key = self._now(), self._key(scope)
        ends, used = self._windows.get(key, (0.0, 0))
        if now >= ends:
            self._windows = {known: window for known, window in self._windows.items() if window[0] > now}
            ends, used = now + WINDOW, 0
        self._windows[key] = (ends, used + 1)
        reset = max(1, int(ends - now))
        headers = [
            (b"x-ratelimit-limit", b"%d" % self.limit),
            (b"x-ratelimit-remaining", b"%d" % max(0, self.limit - used - 1)),
            (b"x-ratelimit-reset", b"%d" % reset),
        ]
        return headers, reset if used >= self.limit else 0
