"""The JSON schema of a list of workspaces, for editors."""

from typing import Any

import attrs

from molecule_connect.config import values
from molecule_connect.config.settings import KEYS, SCHEMA, PeerBudget, Setting
from molecule_connect.config.workspaces import FleetLimits

_TEXTS = {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_OPTION = {"type": ["string", "number", "boolean"]}
_OPTIONS = {
    "type": "object",
    "additionalProperties": {"oneOf": [_OPTION, {"type": "array", "items": _OPTION}]},
}
_SECRET = {
    "oneOf": [
        {"type": "string"},
        *(
            {"type": "object", "properties": {way: shape}, "required": [way], "additionalProperties": False}
            for way, shape in {
                "env": {"type": "string"},
                "file": {"type": "string"},
                "command": {"type": "array", "items": {"type": "string"}, "minItems": 1},
            }.items()
        ),
    ]
}
_SHAPES: dict[int, dict[str, Any]] = {
    id(values.TEXT): {"type": "string"},
    id(values.OPTIONAL_TEXT): {"type": "string"},
    id(values.PATH): {"type": "string"},
    id(values.SECRET): _SECRET,
    id(values.SWITCH): {"type": "boolean"},
    id(values.NUMBER): {"type": "number"},
    id(values.SECONDS): {"type": "number"},
    id(values.MILLISECONDS): {"type": "number"},
    id(values.WHOLE_NUMBER): {"type": "integer"},
    id(values.SIZE): {"type": ["string", "integer"]},
    id(values.NAMES): _TEXTS,
    id(values.OPTIONS): _OPTIONS,
    id(values.PLUGIN_OPTIONS): {"type": "object"},
    id(values.LABELS): {
        "type": "object",
        "propertyNames": {"pattern": f"^{values.LABEL.pattern}$"},
        "additionalProperties": {"type": "string", "maxLength": values.LONGEST_LABEL},
    },
}


def list_schema() -> dict[str, Any]:
    """The schema of the file of ``molecule connect --config``, as JSON Schema 2020-12."""
    block = {key: _property(SCHEMA[name]) for key, name in KEYS.items()}
    shared = {key: schema for key, schema in block.items() if not SCHEMA[KEYS[key]].own}
    fleet = {field.name: _property(SCHEMA[field.name]) for field in attrs.fields(FleetLimits)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Workspaces of molecule-connect",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "workspace": {
                "description": "The workspaces to serve.",
                "type": "array",
                "items": {"type": "object", "properties": block, "required": ["id"], "additionalProperties": False},
            },
            "defaults": _table("Settings for all workspaces.", shared),
            "fleet": _table("Limits for all workspaces together.", fleet),
            "journal": _table(
                "Where the journal is shared with other machines.",
                {
                    "url": {"description": "Of the database, like postgresql://user@host/database.", "type": "string"},
                    "capacity": {
                        "description": "Workspaces that one process serves at most; 0 for all.",
                        "type": "integer",
                        "minimum": 0,
                        "default": 0,
                    },
                },
            ),
            "include": {"description": "Files with more workspaces, such as conf.d/*.toml.", **_TEXTS},
            "state_dir": {"description": "The state folder.", "type": "string"},
        },
    }


def _table(description: str, properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "description": description,
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def _property(setting: Setting) -> dict[str, Any]:
    shape = dict(_SHAPES.get(id(setting.kind), {"type": "string"}))
    if setting.kind.from_document is PeerBudget.from_document or isinstance(setting.default, PeerBudget):
        shape = {"type": ["string", "integer"]}
    if setting.bounds is not None and shape.get("type") in ("number", "integer"):
        # Bounds are in the unit of the field; milliseconds are written in thousands of it.
        scale = 1000 if setting.kind is values.MILLISECONDS else 1
        shape["exclusiveMinimum" if setting.bounds.exclusive else "minimum"] = setting.bounds.minimum * scale
        if setting.bounds.maximum is not None:
            shape["maximum"] = setting.bounds.maximum * scale
    if isinstance(setting.default, str | int | float):
        shape["default"] = setting.default
    return {"description": setting.help, **shape}
