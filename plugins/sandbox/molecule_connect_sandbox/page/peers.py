"""The voices of the page: a person, the page's own peer of a workspace, and other workspaces that may write to it."""

import uuid
from typing import Any

from molecule_connect_sandbox.auth import Auth
from molecule_connect_sandbox.page.conversation import PERSON
from molecule_connect_sandbox.platform import Platform
from molecule_connect_sandbox.store import Workspace

# The page's own peer of a workspace, which is created with its first message.
NEW_PEER = "peer"
MAX_VOICES = 100
_KEY = "page peer of "


def page_peer(platform: Platform, workspace: Workspace, *, create: bool) -> str:
    """The id of the page's own peer of *workspace*, a child, which may write to its parent on every generation.

    An empty string if there is none and *create* is false.
    """
    store = platform.store
    known = store.workspace(store.remembered(_KEY + workspace.id))
    if known is not None and not known.removed:
        return known.id
    if not create:
        return ""
    peer_id = str(uuid.uuid4())
    store.add_workspace(
        peer_id,
        name="sandbox peer",
        role="you, speaking as a peer",
        parent_id=workspace.id,
        status="online",
        # Not external: no connector is expected, so it isn't shown as waiting for one.
        runtime="sandbox-page",
        delivery_mode="poll",
    )
    store.remember(_KEY + workspace.id, peer_id)
    return peer_id


def page_peers(platform: Platform) -> set[str]:
    """The ids of all peers that belong to the page."""
    return platform.store.remembered_with(_KEY)


def voices(platform: Platform, auth: Auth, workspace: Workspace) -> list[dict[str, Any]]:
    """Who can write to *workspace* from the page: ids and names."""
    hidden = page_peers(platform)
    own = page_peer(platform, workspace, create=False)
    others = [
        {"id": other.id, "name": other.name}
        for other in platform.store.workspaces("status != 'removed' AND id != ?", workspace.id)
        if other.id not in hidden and auth.may_talk(other.id, workspace.id)
    ]
    return [{"id": PERSON, "name": "a person"}, {"id": NEW_PEER, "name": "a peer", "peer": own}, *others[:MAX_VOICES]]
