"""Messages to the person in the canvas, and replies."""

import json
import uuid
from collections.abc import Sequence
from pathlib import Path

from molecule_connect import ArgumentError, FilePart, Outgoing, TextPart, endpoints
from molecule_connect_agent.checks import check_text
from molecule_connect_agent.requests import Requests
from molecule_connect_agent.values import Message

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "molecule-connect/remote-agent")


async def notify(requests: Requests, text: str, files: Sequence[str | Path]) -> None:
    """Send *text* to the person, with files of this machine."""
    check_text(text, "message")
    if isinstance(files, str | Path):
        raise ArgumentError("files is one path, not a sequence of paths", hint="write it as [path]")
    attachments: tuple[FilePart, ...] = ()
    if files:
        local = [FilePart(uri="", name=Path(file).name, path=Path(file)) for file in files]
        attachments = await requests.send(endpoints.upload_files(requests.workspace_id, local))
    await requests.send(endpoints.notify(requests.workspace_id, text, attachments=attachments))


async def reply(requests: Requests, message: Message, text: str) -> None:
    """Reply to the sender of *message*."""
    check_text(text, "reply")
    if message.kind != "message":
        raise ArgumentError(
            f"{message.activity_id} is of kind {message.kind}: a reply to it would be replied to in turn",
            hint="to write to the peer on purpose, use call_peer()",
        )
    if message.workspace_id != requests.workspace_id:
        raise ArgumentError(
            f"the message is for workspace {message.workspace_id}, not {requests.workspace_id}",
            hint="reply with the client that read it",
        )
    # The same text again is a resend, which newer platforms recognize; another text is another message.
    name = json.dumps([requests.workspace_id, message.activity_id, text])
    outgoing = Outgoing(
        message_id=str(uuid.uuid5(_NAMESPACE, name)),
        caller_id=message.caller_id,
        context_id=message.context_id,
        in_reply_to=message.message_id,
        parts=(TextPart(text),),
    )
    await requests.send_text(endpoints.reply(requests.workspace_id, outgoing))
