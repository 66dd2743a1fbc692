"""A message straight to a peer's own address: another host, which is told nothing of who we are to the platform."""

from typing import Any

import attrs

from molecule_connect.errors import ConfigError, Outcome, PermanentPlatformError, PlatformError, TransientPlatformError
from molecule_connect.platform.address import ApiAddress, parse_address
from molecule_connect.platform.answers import Answer, judge, not_ours
from molecule_connect.platform.calling import USER_AGENT, Headers
from molecule_connect.platform.operations import Lane, Operation, Reply
from molecule_connect.platform.rows import MalformedPageError

# What the newer platforms let through (contract, section (e)).
A2A_CAP = 64 << 20
# No Authorization, and nothing else that the platform gave us.
HEADERS: Headers = [USER_AGENT, ("Accept-Encoding", "gzip, deflate"), ("Content-Type", "application/json")]


@attrs.frozen(kw_only=True)
class DirectPost:
    """A JSON body for a peer's own address."""

    address: ApiAddress
    url: str
    operation: Operation[dict[str, Any]]

    def read(self, answer: Answer) -> dict[str, Any]:
        """The peer's JSON object.

        Raises:
            PermanentPlatformError: The peer's host refused.
            TransientPlatformError: It may work later, or nobody knows what became of it.
        """
        try:
            return self.operation.read(judge(self.operation, answer, redact=lambda text: text))
        except MalformedPageError:
            raise self._refused(not_ours(self.operation, answer), answer.status) from None
        except PlatformError as exc:
            # What a status means is the platform's affair; here it is only a host that said no.
            raise self._refused(exc, answer.status) from exc

    def _refused(self, exc: PlatformError, status: int) -> PlatformError:
        hint = f"{self.address.origin} is the peer's own host; without prefer_direct the platform carries the message"
        if 400 <= status < 500 and status not in (408, 425, 429):
            return PermanentPlatformError(str(exc), operation="direct", status=status, body="", hint=hint)
        return TransientPlatformError(str(exc), operation="direct", status=status, outcome=Outcome.UNKNOWN, hint=hint)


def direct_post(url: str, body: bytes, *, timeout: float) -> DirectPost:
    """A post to *url*, which ``is_web_address``."""
    # Nothing secret is in it, so that plain http is the peer's own choice.
    address = parse_address(url, insecure=True)
    operation: Operation[dict[str, Any]] = Operation(
        name="direct",
        method="POST",
        path=address.prefix or "/",
        read=read_rpc_answer,
        body=body,
        lane=Lane.SEND,
        timeout=timeout,
        cap=A2A_CAP,
        accepts=(200,),
    )
    return DirectPost(address=address, url=url.strip(), operation=operation)


def is_web_address(value: object) -> bool:
    """Whether *value* is an http(s) address that can be posted to: no user, no query."""
    if not isinstance(value, str):
        return False
    try:
        parse_address(value, insecure=True)
    except ConfigError:
        return False
    return True


def read_rpc_answer(reply: Reply) -> dict[str, Any]:
    """A JSON-RPC answer as it came, a refusal of the other side's too; empty for an empty body.

    Raises:
        MalformedPageError: It is no JSON object.
    """
    if reply.json is None:
        return {}
    if not isinstance(reply.json, dict):
        raise MalformedPageError("the answer is not a JSON object")
    return reply.json
