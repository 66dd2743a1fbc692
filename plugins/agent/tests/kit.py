"""Both clients, called alike: a test that is written once holds them both."""

import asyncio
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from molecule_connect_agent import AsyncRemoteAgentClient, RemoteAgentClient

API = "https://platform.example"
ME = "0e008c43-8c0f-4de7-a8cc-e4de6461b8fd"
PEER = "056d2365-b427-4bdd-9cd3-711c7ce27068"
TOKEN = "token-of-the-agent"

Respond = Callable[[httpx.Request], httpx.Response]


class Platform:
    """Answers by method and path; what nobody prepared is the platform's own 404 page.

    Attributes:
        requests: What was asked.
    """

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self._answers: dict[str, list[Any]] = {}

    def on(self, what: str, *answers: httpx.Response | Respond | Exception) -> "Platform":
        """The answers to ``"GET /path"``, in turn, the last one for ever."""
        self._answers[what] = list(answers)
        return self

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        answers = self._answers.get(f"{request.method} {request.url.path}")
        if not answers:
            return httpx.Response(404, text="404 page not found")
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            made: httpx.Response = answer(request)
            return made
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    def asked(self, what: str) -> list[httpx.Request]:
        """The requests of ``"GET /path"``."""
        return [request for request in self.requests if f"{request.method} {request.url.path}" == what]

    def body(self, what: str) -> Any:
        """What the last of them sent."""
        return json.loads(self.asked(what)[-1].content)


class Twin:
    """Either client. What has to be awaited is; what is iterated over comes as a list.

    Args:
        waits_before_closing: Closes the client in its so-manieth wait: ends what would go on for ever.

    Attributes:
        waits: How long it slept, in order; no time passes for it.
        passing: What happens meanwhile.
    """

    def __init__(self, is_async: bool, *, waits_before_closing: int | None = None, **arguments: Any) -> None:
        self._last_wait = waits_before_closing
        self.waits: list[float] = []
        self.passing: Callable[[float], None] = lambda seconds: None
        self.now = 1000.0
        given: dict[str, Any] = {
            "workspace_id": ME,
            "platform_url": API,
            "token": TOKEN,
            "clock": lambda: self.now,
            **arguments,
        }
        if is_async:
            given.setdefault("sleep", self._sleep_async)
            self.client: Any = AsyncRemoteAgentClient(**given)
        else:
            given.setdefault("sleep", self._sleep)
            self.client = RemoteAgentClient(**given)
        self._runner = asyncio.Runner() if is_async else None

    def _pass(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds
        self.passing(seconds)

    def _sleep(self, seconds: float) -> None:
        self._pass(seconds)
        if len(self.waits) == self._last_wait:
            self.client.close()

    async def _sleep_async(self, seconds: float) -> None:
        self._pass(seconds)
        if len(self.waits) == self._last_wait:
            await self.client.aclose()

    def _run(self, work: Any) -> Any:
        assert self._runner is not None
        return self._runner.run(work)

    def __getattr__(self, name: str) -> Any:
        member = getattr(self.client, name)
        if not callable(member):
            return member

        def call(*args: Any, **kwargs: Any) -> Any:
            result = member(*args, **kwargs)
            if inspect.isawaitable(result):
                return self._run(_awaited(result))
            if inspect.isasyncgen(result):
                return self._run(_collected(result))
            return list(result) if inspect.isgenerator(result) else result

        return call

    def end(self) -> None:
        """Closes the client."""
        if self._runner is None:
            self.client.close()
            return
        self._run(self.client.aclose())
        self._runner.close()


async def _awaited(result: Any) -> Any:
    return await result


async def _collected(result: Any) -> list[Any]:
    return [item async for item in result]


Make = Callable[..., Twin]


def said(code: int, error: str = "no", headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
    """A refusal in the platform's own words."""
    return httpx.Response(code, json={"error": error, **more}, headers=headers)


def row(row_id: str, second: float | None, text: str = "hi", **fields: Any) -> dict[str, Any]:
    """A message in the feed, written so many seconds after nine o'clock."""
    message = {"role": "user", "messageId": f"m-{row_id}", "parts": [{"kind": "text", "text": text}]}
    whole = {
        "id": row_id,
        "activity_type": "a2a_receive",
        "source_id": PEER,
        "method": "message/send",
        "request_body": {"jsonrpc": "2.0", "id": "1", "method": "message/send", "params": {"message": message}},
    }
    if second is not None:
        minutes, seconds = divmod(second, 60)
        whole["created_at"] = f"2026-08-14T09:{int(minutes):02}:{seconds:09.6f}Z"
    return whole | fields


def token_file(tmp_path: Path) -> Path:
    """Where the clients of a test keep their token."""
    return tmp_path / "agent" / ".auth_token"
