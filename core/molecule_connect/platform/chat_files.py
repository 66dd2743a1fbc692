"""Chat uploads: how they are fetched and acknowledged, and how ours are put there. Contract 2.12 and 2.13."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import attrs

from molecule_connect.errors import Outcome, TransientPlatformError
from molecule_connect.models import FilePart, UploadLimits
from molecule_connect.platform import endpoints
from molecule_connect.platform.endpoints import Operation, Reply

T = TypeVar("T")


def limits() -> Operation[UploadLimits]:
    """How large files may be."""

    def read(reply: Reply) -> UploadLimits:
        told = reply.json if isinstance(reply.json, dict) else {}
        usual = UploadLimits()
        return UploadLimits(
            per_file=_bytes(told.get("per_file_bytes")) or usual.per_file,
            per_request=_bytes(told.get("per_request_bytes")) or usual.per_request,
        )

    return _reading(endpoints.upload_limits(), read)


def fetch(workspace_id: str, file_id: str, *, cap: int) -> Operation[str]:
    """The bytes of an upload, for a sink; gives the type that the platform calls it. More than *cap* are refused."""
    return _reading(endpoints.upload_content(workspace_id, file_id), lambda reply: reply.content_type, cap=cap)


def acknowledge(workspace_id: str, file_id: str) -> Operation[None]:
    """Tells the platform that it may forget an upload. One that it does not know any more is as good."""
    return attrs.evolve(endpoints.upload_ack(workspace_id, file_id), accepts=(404,))


def upload(workspace_id: str, files: Sequence[FilePart]) -> Operation[tuple[FilePart, ...]]:
    """As ``operations.upload_files``, and sure that each file got its address."""
    operation = endpoints.upload_files(workspace_id, files)

    def read(reply: Reply) -> tuple[FilePart, ...]:
        taken = operation.read(reply)
        if len(taken) != len(files):
            raise TransientPlatformError(
                f"upload: the platform names {len(taken)} of {len(files)} files",
                operation=operation.name,
                status=reply.status,
                outcome=Outcome.UNKNOWN,
            )
        return taken

    # A platform that takes no files says so at once, and is not asked again for each answer.
    return _reading(operation, read, is_optional=True)


def _reading(operation: Operation[Any], read: Callable[[Reply], T], **changes: Any) -> Operation[T]:
    return attrs.evolve(operation, read=read, **changes)


def _bytes(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
