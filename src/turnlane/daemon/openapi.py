"""The OpenAPI document, made from the table of operations and the attrs classes. Nothing of it is written by hand.

Schemas are those that msgspec makes of the classes. `python -m turnlane.daemon.openapi` prints the document; with
`--write` it renews docs/openapi.json, unless something would go that clients may rely on: see `lost`. `--breaking`
writes it all the same.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import msgspec

from .. import __version__
from ..core.reasons import Reason
from . import operator_shapes as shapes
from .access import RIGHTS, Reach
from .http_wire import error_word
from .operation import JSON, PATH_VALUES, Operation
from .operations import OPERATIONS
from .shapes import hints

PAGE: Final = Path("docs/openapi.json")
"""Below the root of the project, where the command is run."""
_REFS: Final = "#/components/schemas/{name}"


def document(operations: Sequence[Operation] = OPERATIONS) -> bytes:
    """The document as bytes, the same for the same table."""
    return json.dumps(described(operations), indent=1, ensure_ascii=False).encode() + b"\n"


def tag_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def described(operations: Sequence[Operation]) -> dict[str, Any]:
    """The document as a value."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "turnlane, the operator's listener",
            "version": __version__,
            "description": "Every failure has one form, `Failure`; `reason_code` decides. See docs/operator.md.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://127.0.0.1:4100"}],
        "paths": paths,
        "components": {
            "schemas": _schemas(operations),
            "securitySchemes": {
                "operator": {"type": "http", "scheme": "bearer", "description": "an operator token with these rights"},
                "sync": {"type": "http", "scheme": "bearer", "description": "a token of live delivery"},
                "session": {"type": "http", "scheme": "bearer", "description": "a token of the websocket, for tickets"},
                "ticket": {"type": "apiKey", "in": "query", "name": "ticket", "description": "good once, see /tickets"},
            },
        },
    }


def _schemas(operations: Sequence[Operation]) -> dict[str, Any]:
    used = {shapes.Failure, shapes.NotFound}
    for operation in operations:
        used |= {shape for shape in (*operation.answers.values(), operation.body) if shape is not None}
    _, found = msgspec.json.schema_components(sorted(used, key=lambda shape: shape.__name__), ref_template=_REFS)
    return dict(sorted(found.items()))


def _ref(shape: type) -> dict[str, Any]:
    return {"$ref": _REFS.format(name=shape.__name__)}


def _operation(operation: Operation) -> dict[str, Any]:
    said: dict[str, Any] = {"operationId": operation.name, "summary": operation.summary}
    if parameters := list(_parameters(operation)):
        said["parameters"] = parameters
    if operation.takes_body:
        content: dict[str, Any] = {"schema": {"type": "object"} if operation.body is None else _ref(operation.body)}
        if operation.body_example is not None:
            content["example"] = operation.body_example
        said["requestBody"] = {"required": True, "content": {JSON: content}}
    said["responses"] = {str(status): one for status, one in sorted(_responses(operation))}
    said["security"] = _security(operation)
    return said


def _security(operation: Operation) -> list[dict[str, list[str]]]:
    need = operation.need
    assert set(need.rights) <= RIGHTS
    if need.reach is Reach.OPEN:
        return []
    if need.reach is Reach.SYNC:
        return [{"sync": []}]
    others = {"sync": need.or_sync, "ticket": need.or_ticket, "session": need.reach is Reach.ANY}
    return [{"operator": list(need.rights)}, *({name: list[str]()} for name, holds in others.items() if holds)]


def _parameters(operation: Operation) -> Iterator[dict[str, Any]]:
    for name in operation.path_names:
        value = PATH_VALUES[name]
        schema = {"type": "string", "minLength": 1, "maxLength": value.chars_max}
        described = {"description": value.expected, "schema": schema, "example": value.example}
        yield {"name": name, "in": "path", "required": True, **described}
    if operation.query is not None:
        required = {one.name for one in attrs.fields(operation.query) if one.default is attrs.NOTHING}
        for name, type_ in hints(operation.query).items():
            schema = _of_query(msgspec.json.schema(type_))
            about = {"description": schema.pop("description")} if "description" in schema else {}
            yield {"name": name, "in": "query", "required": name in required, **about, "schema": schema}
    for name, meaning in operation.headers.items():
        yield {"name": name, "in": "header", "description": meaning, "required": False, "schema": {"type": "string"}}


def _of_query(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter is there or not; null is no value of it."""
    given = [one for one in schema.get("anyOf", []) if one.get("type") != "null"]
    return dict(given[0]) if len(given) == 1 else schema


def _responses(operation: Operation) -> Iterator[tuple[int, dict[str, Any]]]:
    refusals = operation.all_refusals()
    first = True
    for status in sorted({*operation.answers, *refusals}):
        schemas: list[dict[str, Any]] = []
        content: dict[str, Any] = {}
        if status in operation.answers:
            shape, kind = operation.answers[status], operation.media_type.partition(";")[0]
            if shape is not None and kind == JSON:
                schemas.append(_ref(shape))
            elif shape is not None:
                content[kind] = {"schema": _ref(shape)}
            elif status == 200:
                content[kind] = {"schema": {"type": "object" if kind == JSON else "string"}}
            if first and (schemas or content):
                kind = JSON if schemas else next(iter(content))
                content.setdefault(kind, {})["example"] = operation.example
                first = False
        if status in refusals:
            schemas += _failures(status, refusals[status])
        if schemas:
            content.setdefault(JSON, {})["schema"] = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
        said: dict[str, Any] = {"description": _MEANING[status]}
        if content:
            said["content"] = content
        yield status, said


def _failures(status: int, reasons: Sequence[Reason]) -> Iterator[dict[str, Any]]:
    """The envelope with the closed lists of its words. An absent resource has its own form."""
    if Reason.NOT_FOUND in reasons:
        yield _ref(shapes.NotFound)
    told = [reason for reason in reasons if reason is not Reason.NOT_FOUND]
    if told:
        words = {
            "error": {"enum": sorted({error_word(status, reason) for reason in told})},
            "reason_code": {"enum": sorted(reason.value for reason in told)},
        }
        yield {"allOf": [_ref(shapes.Failure), {"type": "object", "properties": words}]}


_MEANING: Final[Mapping[int, str]] = {
    200: "Done.",
    201: "Made.",
    304: "You have it already.",
    400: "The request, a path or query value or the body cannot be used.",
    401: "No valid token.",
    403: "Not allowed.",
    404: "Not there, or not visible to this token.",
    405: "Not a method of this path.",
    408: "The request was not complete in time.",
    409: "Conflicts with what is there.",
    410: "The log begins after this place.",
    413: "Too large.",
    415: "The body is no JSON.",
    422: "The body has the wrong shape: `details` lists what was expected where.",
    429: "Too much at once.",
    431: "The head of the request is too large.",
    500: "A fault of ours, or an outcome that is not known yet.",
    503: "Not now. Nothing happened.",
}

# what must not go


def lost(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What a client of `old` relies on and `new` has no more: paths, operations, parameters, statuses, members, codes.

    Words of a request may become more and those of an answer fewer without harm; both are named here all the same, so
    that a change of the contract is seen.
    """
    return [f"{place} is gone" for place in sorted(set(_places(old, "")) - set(_places(new, "")))]


def _places(value: Any, at: str) -> Iterator[str]:
    """Each member by its path; entries of lists by what names them."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name not in _PROSE:
                yield f"{at}/{name}"
                yield from _places(inner, f"{at}/{name}")
    elif isinstance(value, list):
        for one in value:
            if isinstance(one, Mapping):
                yield from _places(one, f"{at}[{one.get('name') or one.get('$ref') or one.get('type') or ''}]")
            else:
                yield f"{at}[{one}]"


_PROSE: Final = frozenset({"summary", "description", "example", "info", "servers", "default"})


def main(arguments: Sequence[str]) -> int:
    new = document()
    if "--write" not in arguments:
        sys.stdout.write(new.decode())
        return 0
    old = json.loads(PAGE.read_bytes()) if PAGE.exists() and "--breaking" not in arguments else {}
    if gone := lost(old, json.loads(new)):
        sys.stderr.write("\n".join(gone) + "\nclients rely on these: keep them, or say --breaking\n")
        return 1
    PAGE.write_bytes(new)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
