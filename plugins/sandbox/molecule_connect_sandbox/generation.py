"""The differences between the two generations of the platform, as data."""

import attrs

MIB = 1024 * 1024


@attrs.frozen(kw_only=True)
class Generation:
    """The rules of one generation.

    Attributes:
        anonymous_people: Whether ``a2a`` without a token is accepted as a person in the canvas.
        stored_before_answer: Whether a message is stored before the response is sent, and only once per message id.
        seq: Whether rows have ``seq``, which orders rows with equal times and can be acknowledged.
        uniform_parts: Whether parts are rewritten to use ``kind``, and a missing role is set to ``user``.
        roots_are_peers: Whether two workspaces without a parent may write to each other.
        a2a_cap, a2a_cut: Maximum bytes of an ``a2a`` body; whether a longer one is truncated instead of rejected.
        activity_events: Number of ``ACTIVITY_LOGGED`` events per message.
        stale_after: Seconds without a heartbeat until an external workspace becomes ``awaiting_agent``.
        register_resumes: Whether registering puts a paused workspace online.
        deletes_by_name: Whether deleting requires ``X-Confirm-Name`` instead of ``?confirm=true``.
        pause_asks_cascade: Whether pausing a parent requires ``?cascade=true``.
        acked_upload_stays: Whether an acknowledged upload can be read until it is deleted.
        keyed_by_token: Whether the rate limit counts by organization or token, not by address.
        removed_hint: The hint in the response of ``GET /workspaces/:id`` for a removed workspace.
    """

    name: str
    anonymous_people: bool
    stored_before_answer: bool
    seq: bool
    uniform_parts: bool
    roots_are_peers: bool
    a2a_cap: int
    a2a_cut: bool
    activity_events: int
    stale_after: float
    register_resumes: bool
    deletes_by_name: bool
    pause_asks_cascade: bool
    acked_upload_stays: bool
    keyed_by_token: bool
    upload_request_cap: int
    upload_file_cap: int
    bare_runtime: str
    summary_suffix: str
    recoverable: frozenset[str]
    removed_hint: str


MAY = Generation(
    name="2026-05",
    anonymous_people=True,
    stored_before_answer=False,
    seq=False,
    uniform_parts=False,
    roots_are_peers=True,
    a2a_cap=MIB,
    a2a_cut=True,
    activity_events=1,
    stale_after=90.0,
    register_resumes=True,
    deletes_by_name=False,
    pause_asks_cascade=False,
    acked_upload_stays=False,
    keyed_by_token=False,
    upload_request_cap=50 * MIB,
    upload_file_cap=25 * MIB,
    bare_runtime="langgraph",
    summary_suffix="queued for poll",
    recoverable=frozenset({"offline", "provisioning", "awaiting_agent"}),
    removed_hint="Regenerate workspace + token from the canvas → Tokens tab",
)

AUGUST = Generation(
    name="2026-08",
    anonymous_people=False,
    stored_before_answer=True,
    seq=True,
    uniform_parts=True,
    roots_are_peers=False,
    a2a_cap=16 * MIB,
    a2a_cut=False,
    activity_events=2,
    stale_after=180.0,
    register_resumes=False,
    deletes_by_name=True,
    pause_asks_cascade=True,
    acked_upload_stays=True,
    keyed_by_token=True,
    upload_request_cap=100 * MIB,
    upload_file_cap=100 * MIB,
    bare_runtime="hermes",
    summary_suffix="ingest",
    recoverable=frozenset({"offline", "provisioning", "awaiting_agent", "failed"}),
    removed_hint="Create a replacement workspace in Canvas, then open Settings → Workspace Tokens → + New Token",
)

GENERATIONS = {generation.name: generation for generation in (MAY, AUGUST)}
