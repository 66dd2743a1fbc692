"""The workspace that every sandbox has from the start."""

import uuid

import attrs

from molecule_connect_sandbox.platform import Platform

NAME = "sandbox"


@attrs.frozen
class DefaultWorkspace:
    """The id and token that a connector needs."""

    id: str
    token: str = attrs.field(repr=False)


def default_workspace(platform: Platform) -> DefaultWorkspace:
    """Return the workspace named ``sandbox``, created on first use; a store keeps it with its token."""
    store = platform.store
    found = store.workspaces("name = ? AND status != 'removed' AND runtime = 'external'", NAME)
    if found:
        workspace_id = found[0].id
    else:
        workspace_id = str(uuid.uuid4())
        store.add_workspace(workspace_id, name=NAME, status="awaiting_agent", runtime="external", delivery_mode="poll")
    key = f"token of {workspace_id}"
    token = store.remembered(key)
    if token is None or store.token_owner(token) != workspace_id:
        token = store.add_token(workspace_id, "instance", platform.now())
        store.remember(key, token)
    return DefaultWorkspace(workspace_id, token)
