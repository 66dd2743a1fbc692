"""Talking to the person in the canvas, and answering whoever wrote."""

import json
import uuid
from collections.abc import Sequence
from pathlib import Path

import attrs

from molecule_connect.errors import ArgumentError, Outcome, TransientPlatformError
from molecule_connect.models import FilePart, Outgoing, TextPart
from molecule_connect.platform import endpoints
from molecule_connect_agent.checks import check_text
from molecule_connect_agent.steps import Flow, ask, ask_at_length
from molecule_connect_agent.values import Message

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "molecule-connect/remote-agent")


@attrs.frozen(kw_only=True)
class Chat:
    """What one workspace says."""

    workspace_id: str

    def notify(self, text: str, files: Sequence[str | Path]) -> Flow[None]:
        """Text for the person, with files of this machine."""
        check_text(text, "message")
        if isinstance(files, str | Path):
            raise ArgumentError("files is one path, not a sequence of them", hint="write it as [path]")
        attachments: tuple[FilePart, ...] = ()
        if files:
            local = [FilePart(uri="", name=Path(file).name, path=Path(file)) for file in files]
            attachments = yield from ask(endpoints.upload_files(self.workspace_id, local))
            if len(attachments) != len(local):
                raise TransientPlatformError(
                    f"upload: {len(local)} files were sent, and the platform names {len(attachments)}",
                    operation="upload",
                    outcome=Outcome.UNKNOWN,
                    hint="nothing was said; try again, the files that it took expire by themselves",
                )
        yield from ask(endpoints.notify(self.workspace_id, text, attachments=attachments))

    def reply(self, message: Message, text: str) -> Flow[None]:
        """The reply to *message*, to whoever wrote it."""
        check_text(text, "reply")
        if message.kind != "message":
            raise ArgumentError(
                f"{message.activity_id} is of kind {message.kind}: a reply to it would be answered in its turn",
                hint="call_peer() writes to the peer on purpose",
            )
        if message.workspace_id != self.workspace_id:
            raise ArgumentError(
                f"the message is for workspace {message.workspace_id}, not {self.workspace_id}",
                hint="reply with the client that it came from",
            )
        # The same words again are a resend, which newer platforms absorb; other words are another message.
        told = json.dumps([self.workspace_id, message.activity_id, text])
        outgoing = Outgoing(
            message_id=str(uuid.uuid5(_NAMESPACE, told)),
            caller_id=message.caller_id,
            context_id=message.context_id,
            in_reply_to=message.message_id,
            parts=(TextPart(text),),
        )
        yield from ask_at_length(endpoints.reply(self.workspace_id, outgoing))
