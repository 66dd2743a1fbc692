"""Hostile peers in a process of their own: ``python hostile_peers.py URL WORKSPACE RATE ADMIN_TOKEN ID=TOKEN ...``.

Each writes RATE messages a second until standard input ends; then the number of messages that the platform took is
printed. A real platform lets through 10 a second of each.
"""

import functools
import http.client
import itertools
import json
import sys
import threading
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from typing import Any

from molecule_connect_sandbox.testing import FORGERIES

# Stands for an id that is new in each message: writing 400 kB of JSON anew would take this process's whole time.
NEW = "@new@"


def messages(workspace_id: str) -> Iterator[dict[str, Any]]:
    """One of each kind."""
    for text in ("fail", "slow", "flood"):
        yield {"parts": [{"kind": "text", "text": f"{text} {NEW}"}], "contextId": NEW}
        # In one conversation.
        yield {"parts": [{"kind": "text", "text": f"{text} {NEW}"}]}
    fake = [{"kind": "file", "file": {"uri": f"platform-pending:{workspace_id}/{uuid.uuid4()}"}} for _ in range(4000)]
    yield {"parts": fake, "contextId": NEW}
    yield {"parts": [{"kind": "file", "file": {"name": f"{number}", "bytes": "eA=="}} for number in range(900)]}
    yield {"parts": [{"kind": "text", "text": "slow and huge"}], "messageId": "x" * 200_000, "contextId": "x" * 200_000}


def bodies(workspace_id: str) -> Iterator[str]:
    for message in messages(workspace_id):
        told = {"role": "user", "messageId": NEW, **message}
        yield json.dumps({"jsonrpc": "2.0", "id": "1", "method": "message/send", "params": {"message": told}})


class Peer(threading.Thread):
    """One peer. ``taken`` counts its messages that the platform took."""

    def __init__(self, url: str, workspace_id: str, rate: float, admin: str, peer_id: str, token: str) -> None:
        super().__init__(daemon=True)
        where = urllib.parse.urlsplit(url)
        self._http = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
        self._workspace_id, self._rate, self._peer_id = workspace_id, rate, peer_id
        self._headers = {"Authorization": f"Bearer {token}", "X-Workspace-ID": peer_id}
        self._admin = {"Authorization": f"Bearer {admin}"}
        self.taken = 0

    def run(self) -> None:
        posts = [functools.partial(self._post, body) for body in bodies(self._workspace_id)]
        forged = [functools.partial(self._forge, kind) for kind in FORGERIES]
        due = time.monotonic()
        for write in itertools.cycle([*posts, *forged]):
            time.sleep(max(0.0, due - time.monotonic()))
            # What a slow platform held up is not made up for.
            due = max(due, time.monotonic() - 1) + 1 / self._rate
            self.taken += write()

    def _post(self, body: str) -> bool:
        while NEW in body:
            body = body.replace(NEW, str(uuid.uuid4()), 1)
        return self._call(f"/workspaces/{self._workspace_id}/a2a", body, self._headers)

    def _forge(self, kind: str) -> bool:
        body = json.dumps({"kinds": [kind], "sender": self._peer_id})
        return self._call(f"/sandbox/workspaces/{self._workspace_id}/forge", body, self._admin)

    def _call(self, path: str, body: str, headers: dict[str, str]) -> bool:
        self._http.request("POST", path, body, {**headers, "Content-Type": "application/json"})
        with self._http.getresponse() as answer:
            answer.read()
            return answer.status < 300


def main() -> None:
    url, workspace_id, rate, admin, *peers = sys.argv[1:]
    threads = [Peer(url, workspace_id, float(rate), admin, *peer.split("=", 1)) for peer in peers]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    print(sum(thread.taken for thread in threads), flush=True)


if __name__ == "__main__":
    main()
