"""The contract as JSON Schema (2020-12), made of the same classes as the parser. Source: docs/contract.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, get_type_hints

from attrs import fields

from ..core.limits import DEFAULT_LIMITS, Limits
from .contract import (
    ABSENT,
    COMMANDS,
    EVENTS,
    EXTENSION_EVENTS,
    EXTENSIONS,
    SCHEMA_VERSION,
    Member,
    Snapshot,
    documentation_name,
    members,
)

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_PLAIN: Final[Mapping[Any, dict[str, Any]]] = {
    str: {"type": "string"},
    int: {"type": "integer", "minimum": 0},
    bool: {"type": "boolean"},
    str | None: {"type": ["string", "null"]},
    tuple[str, ...]: {"type": "array", "items": {"type": "string"}},
}


def schema(limits: Limits = DEFAULT_LIMITS) -> dict[str, Any]:
    """Names of all commands and events, and a schema for each of them and for the snapshot."""
    shapes = {cls.__name__: _tagged("command", cls.__name__, cls, limits) for cls in (*COMMANDS, *EXTENSIONS)}
    shapes |= {tag: _tagged("event", tag, cls, limits) for cls, tag in EVENTS.items()}
    extensions = [*(cls.__name__ for cls in EXTENSIONS), *(EVENTS[cls] for cls in EXTENSION_EVENTS)]
    events = [tag for cls, tag in EVENTS.items() if cls not in EXTENSION_EVENTS]
    return {
        "$schema": DIALECT,
        "schema_version": SCHEMA_VERSION,
        "commands": [documentation_name(cls.__name__) for cls in COMMANDS],
        "events": [documentation_name(tag) for tag in events],
        "extensions": [documentation_name(name) for name in extensions],
        "$defs": {**shapes, "Snapshot": _plain(Snapshot)},
    }


def _tagged(tag: str, name: str, cls: type, limits: Limits) -> dict[str, Any]:
    shapes, required = {tag: {"const": name}}, [tag]
    for member_name, (attribute, member) in members(cls).items():
        shapes[member_name] = _shape(member, limits)
        if attribute.default is not ABSENT:
            required.append(member_name)
    return _object(shapes, required)


def _shape(member: Member, limits: Limits) -> dict[str, Any]:
    most = member.most_in(limits)
    match member.kind:
        case "instant":
            return {"type": "string", "format": "date-time"}
        case "json":
            return {}
        case "texts":
            items = _shape(Member(), limits)
            return {"type": "array", "items": items, "minItems": 1, "maxItems": most, "uniqueItems": True}
    kind = ["string", "null"] if member.nullable else "string"
    return {"type": kind, "minLength": member.least, "maxLength": most}


def _plain(cls: type) -> dict[str, Any]:
    """A class all of whose members are always there."""
    hints = get_type_hints(cls)
    shapes = {one.name: _PLAIN.get(hints[one.name]) or _plain(hints[one.name]) for one in fields(cls)}
    return _object(shapes, list(shapes))


def _object(shapes: Mapping[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": dict(shapes), "required": required, "additionalProperties": False}
