"""The OpenAPI document: it is the checked-in one, whole in itself, and says what the listener does."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from operator_house import API, confirmed, drifted, house, told_a_story

from turnlane.daemon import openapi
from turnlane.daemon.access import Reach
from turnlane.daemon.openapi import described, document, lost
from turnlane.daemon.operation import JSON, PATH_VALUES, Operation
from turnlane.daemon.operations import OPERATIONS
from turnlane.daemon.shapes import read_shape
from turnlane.machines.projection import topic_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "openapi.json"
TOLD = f"default/worker/{PATH_VALUES['worker_id'].example}"
DOCUMENT = json.loads(document())


def test_the_checked_in_document_is_the_generated_one() -> None:
    """Renew it with `python -m turnlane.daemon.openapi --write`."""
    assert PAGE.read_bytes() == document()


def test_nothing_that_clients_rely_on_is_gone() -> None:
    assert lost(json.loads(PAGE.read_bytes()), DOCUMENT) == []


def test_every_reference_leads_to_a_schema_and_every_schema_is_used() -> None:
    used = set(refs(DOCUMENT))

    assert used == {f"#/components/schemas/{name}" for name in DOCUMENT["components"]["schemas"]}


def refs(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for inner in value.values():
            yield from refs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from refs(inner)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.name)
def test_an_operation_is_documented_whole(operation: Operation) -> None:
    """Its right, its statuses, its failures with their closed lists, and an example that has its shape."""
    said = DOCUMENT["paths"][operation.path][operation.method.lower()]

    assert said["operationId"] == operation.name and said["summary"].endswith(".")
    need = operation.need
    ways = [{"operator": [*need.rights]}] if need.rights or need.reach is Reach.ANY else []
    others = {"sync": need.reach is Reach.SYNC or need.or_sync, "ticket": need.or_ticket}
    ways += [{name: []} for name, does in {**others, "session": need.reach is Reach.ANY}.items() if does]
    assert said["security"] == ways and bool(ways) == (operation.need.reach is not Reach.OPEN)
    assert set(said["responses"]) == {str(status) for status in (*operation.answers, *operation.all_refusals())}
    for status, reasons in operation.all_refusals().items():
        text = json.dumps(said["responses"][str(status)]["content"][JSON]["schema"])
        assert "Failure" in text or "NotFound" in text
        assert all(f'"{reason.value}"' in text for reason in reasons if reason.value != "not_found")
    success = min(operation.answers)
    shape = operation.answers[success]
    (content,) = [content for content in said["responses"][str(success)]["content"].values() if "example" in content]
    assert content["example"] == operation.example
    if shape is not None:
        read_shape(shape, operation.example)
    if operation.body is not None:
        read_shape(operation.body, operation.body_example)


def test_operation_ids_are_verb_and_noun_and_occur_once() -> None:
    names = [one.name for one in OPERATIONS]

    assert len(set(names)) == len(names)
    assert all("_" in name and name == name.lower() for name in names)


async def test_the_document_is_served_with_its_tag() -> None:
    async with house() as made:
        first = await made.get(f"{API}/openapi.json")
        assert first.body == document() and first.headers["content-type"] == "application/json"
        again = await made.get(f"{API}/openapi.json", If_None_Match=first.headers["etag"])
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", first.headers["etag"])


async def test_the_document_describes_the_operations_of_the_listener_that_serves_it() -> None:
    some = [one for one in OPERATIONS if one.name in ("read_health", "read_openapi")]
    async with house(operations=some) as made:
        paths = (await made.get(f"{API}/openapi.json")).json["paths"]
        assert set(paths) == {one.path for one in some}
        assert (await made.get(f"{API}/sessions")).told[2] == "unknown_route"


async def test_what_is_answered_has_the_documented_shape() -> None:
    """Each operation with a class, asked of a runtime with a session, a run and a worker in it; writers first."""
    async with house() as made:
        await told_a_story(made)
        await drifted(made.runtime, TOLD)
        replay = {"event_id": await confirmed(made.runtime.contract)}
        run = ""
        for operation in sorted(OPERATIONS, key=lambda one: (one.method != "POST", "projectors" in one.path, one.path)):
            success = min(operation.answers)
            if (shape := operation.answers[success]) is None or operation.media_type != JSON:
                continue
            values = {name: PATH_VALUES[name].example for name in operation.path_names}
            path = operation.path.format(**{**values, **({"run_id": run} if "run_id" in values else {})})
            if operation.method == "GET":
                answer = await made.get(path + (f"?owner_user_id=7&key=user:7&topic={topic_of(TOLD)}"))
            else:
                topic = {"topic": f"run:{run}:events"} if operation.name == "rebuild_projector" else {}
                confirm = replay if operation.name == "apply_contract_replay" else {}
                answer = await made.post(path, {**(operation.body_example or {}), **topic, **confirm})
            assert answer.status == success, (operation.name, answer.body)
            read_shape(shape, answer.json)
            run = answer.json["run"]["id"] if operation.name == "create_run" else run


# what must not go


def changed(change: Any) -> list[str]:
    new = copy.deepcopy(DOCUMENT)
    change(new)
    return lost(DOCUMENT, new)


SESSIONS = f"{API}/sessions"


def failure(new: Any, status: str) -> Any:
    return new["paths"][SESSIONS]["get"]["responses"][status]["content"][JSON]["schema"]["allOf"][1]


@pytest.mark.parametrize(
    "change",
    [
        lambda new: new["paths"].pop(SESSIONS),
        lambda new: new["paths"][SESSIONS].pop("get"),
        lambda new: new["paths"][SESSIONS]["get"]["responses"].pop("403"),
        lambda new: new["paths"][SESSIONS]["get"]["parameters"].pop(),
        lambda new: new["components"]["schemas"]["Health"]["properties"].pop("build"),
        lambda new: new["components"]["schemas"]["Health"]["required"].remove("build"),
        lambda new: new["components"]["schemas"]["Ready"]["properties"]["status"]["enum"].remove("ready"),
        lambda new: new["paths"][SESSIONS]["get"]["responses"]["401"]["content"][JSON]["schema"]["allOf"][1][
            "properties"
        ]["reason_code"]["enum"].remove("invalid_token"),
    ],
)
def test_what_goes_is_named(change: Any) -> None:
    assert changed(change)


@pytest.mark.parametrize(
    "change",
    [
        lambda new: new["paths"].update({"/new": {"get": {}}}),
        lambda new: new["components"]["schemas"]["Health"]["properties"].update({"more": {"type": "string"}}),
        lambda new: new["paths"][SESSIONS]["get"].update(summary="Other words."),
        lambda new: new["info"].update(version="9"),
    ],
)
def test_what_is_added_or_reworded_is_no_loss(change: Any) -> None:
    assert changed(change) == []


def test_the_file_is_not_renewed_when_something_would_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "docs" / "openapi.json"
    page.parent.mkdir()
    more = evolve(OPERATIONS[0], name="read_more", path="/more")
    page.write_text(json.dumps(described([*OPERATIONS, more])))
    before = page.read_bytes()

    assert openapi.main(["--write"]) == 1
    assert page.read_bytes() == before and "/paths//more is gone" in capsys.readouterr().err
    assert openapi.main(["--write", "--breaking"]) == 0
    assert openapi.main(["--write"]) == 0
    assert page.read_bytes() == document()
    assert openapi.main([]) == 0 and capsys.readouterr().out.encode() == document()
