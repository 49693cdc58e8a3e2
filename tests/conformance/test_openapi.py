"""Every operation, driven from the document that the listener serves: no 500, and every answer is what it says.

The requests are made by schemathesis from the schemas alone: good ones, and such that break them. The listener is a
real one on a socket, in a thread, over a session with a few turns in it; one operation with a body stands beside those
of the product, so that the frame of bodies is driven as well. What is tried grows with the level.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import pytest
import requests
import schemathesis
import trio
from attrs import asdict, define, evolve, frozen
from hypothesis import HealthCheck, Phase, given, settings
from msgspec import Meta
from schemathesis import GenerationMode
from schemathesis.checks import FailureGroup, not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

import turnlane
from turnlane.core.instants import WallInstant
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.owners import Owner
from turnlane.core.reasons import Reason
from turnlane.daemon.access import API, RIGHTS, Need, Reach
from turnlane.daemon.calls import Answer, Call
from turnlane.daemon.live_sources import live_delivery
from turnlane.daemon.operations import OPERATIONS, Operation
from turnlane.daemon.operator_api import OperatorApi, serve_operator
from turnlane.daemon.operator_pages import Pages
from turnlane.daemon.settings import Address, LiveSettings, OperatorSettings
from turnlane.daemon.tokens import OperatorTokens, mint_operator
from turnlane.journal.memory import MemoryStore
from turnlane.machines.projection import Drift, drift_row
from turnlane.observe.metrics import Metrics

EXAMPLES = {"default": 15, "ci": 60, "nightly": 300, "release": 300}
THERE = {"session": "s-1", "worker_id": "lab:east-2", "seq": "1", "run_id": ""}
WALL = WallInstant(1)
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@frozen
class Part:
    count: Annotated[int, Meta(ge=0, le=9)]
    flag: bool = False


@frozen
class Thing:
    name: Annotated[str, Meta(min_length=1, max_length=5)]
    kind: Literal["red", "blue"] = "red"
    seq: Annotated[int, Meta(ge=0, le=2**53 - 1)] | None = None
    payload: Any = None
    labels: Mapping[str, Any] | None = None


@frozen
class Made:
    thing: Thing
    duplicate: bool


async def make_thing(_: Pages, call: Call) -> Answer:
    return Answer({"thing": asdict(call.body(Thing)), "duplicate": False}, 201)


MAKE = Operation(
    "make_thing",
    "POST",
    f"{API}/things/{{session}}",
    Need(Reach.TENANT, ("runs.write",)),
    make_thing,
    "Make a thing.",
    {201: Made},
    {"thing": {"name": "x", "kind": "red", "seq": None, "payload": None, "labels": None}, "duplicate": False},
    body=Thing,
    body_example={"name": "x"},
    writes=True,
)


async def tell_lie(_: Pages, call: Call) -> Answer:
    return Answer({"thing": None}, 200)


LIE = Operation("tell_lie", "GET", f"{API}/lie", MAKE.need, tell_lie, "Not what it says.", {200: Made}, MAKE.example)
TABLE = (*OPERATIONS, MAKE)


@define(eq=False)
class Served:
    """A listener that runs in a thread of its own."""

    url: str = ""
    headers: Mapping[str, str] = {}
    document: Any = None


async def speaker(turn: turnlane.Turn) -> None:
    for word in ("one", "two", "three"):
        await turn.output(word)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    made, ready, stop = Served(), threading.Event(), trio.Event()
    tokens: list[trio.lowlevel.TrioToken] = []

    async def serve() -> None:
        limits = evolve(DEFAULT_LIMITS, tail_ms_max=20, poll_min_interval_ms=0)
        secret, token = mint_operator("driver", sorted(RIGHTS))
        async with turnlane.open_runtime(store=MemoryStore(limits=limits), agent=speaker, limits=limits) as runtime:
            session = await runtime.open_session("s-1")
            await (await session.start_turn({"text": "x"})).outcome()
            drift = Drift(f"default/worker/{THERE['worker_id']}", 2, 1, 3, Reason.SEQUENCE_GAP, WALL, WALL)
            await runtime.ports.read_hop(runtime.ports.projections.write, [drift_row(drift)])
            await runtime.workers.register(THERE["worker_id"], owner=Owner(7))
            await runtime.contract.execute({"command": "QueueDispatch", "request_id": "seen", "target": "worker-1"})
            await runtime.contract.execute({"command": "RequestReplay", "cursor": "c"})
            (event,), _ = await runtime.contract.replay_next(1)
            THERE["event_id"] = (await runtime.contract.replay_apply(event["event_id"])).event_id
            THERE["run_id"] = (await runtime.runs.create()).run.run_id
            rules = OperatorSettings(Address("127.0.0.1", 0), True, (), (), ())
            THERE["topic"] = f"run:{THERE['run_id']}:events"
            live = live_delivery(runtime, LiveSettings(auth=False))
            tokens_ = OperatorTokens([token])
            api = OperatorApi(runtime, rules, Metrics(), tokens_, operations=[*TABLE, LIE], live=live)
            async with trio.open_nursery() as nursery:
                address = await nursery.start(serve_operator, api)
                made.url = f"http://{address}"
                made.headers = {"Authorization": f"Bearer {secret.reveal().decode()}"}
                tokens.append(trio.lowlevel.current_trio_token())
                ready.set()
                await stop.wait()
                nursery.cancel_scope.cancel()

    thread = threading.Thread(target=trio.run, args=(serve,), name="listener", daemon=True)
    thread.start()
    assert ready.wait(20)
    answer = requests.get(f"{made.url}{API}/openapi.json", headers=made.headers, timeout=20)
    made.document = answer.json()
    yield made
    tokens[0].run_sync_soon(stop.set)
    thread.join(20)
    assert not thread.is_alive()


def operation_of(served: Served, name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schema = schemathesis.openapi.from_dict(served.document)
        found = [one.ok() for one in schema.get_all_operations()]
    (operation,) = [one for one in found if one.definition.raw["operationId"] == name]
    return operation


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["good", "bad"])
@pytest.mark.parametrize("name", [one.name for one in TABLE])
def test_an_operation_answers_as_its_document_says(
    served: Served, name: str, mode: GenerationMode, pytestconfig: pytest.Config
) -> None:
    operation = operation_of(served, name)
    takes_something = bool(operation.definition.raw.get("parameters")) or "requestBody" in operation.definition.raw
    if mode is GenerationMode.NEGATIVE and not takes_something:
        return  # nothing in it can be bad
    examples = EXAMPLES[pytestconfig.getoption("--turnlane-level")] if takes_something else 2
    seen: set[int] = set()

    @settings(
        max_examples=examples,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=True,
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def drive(case: Any) -> None:
        if name in (
            "stream_session",
            "follow_topic",
            "stream_contract_events",
        ):  # bounded by the listener
            case.query = {"tail_ms": 1, **(case.query or {})}
        seen.add(told(case))
        if mode is GenerationMode.POSITIVE:  # and once for what is there, as its owner
            case.path_parameters = {one: THERE[one] for one in case.path_parameters or {}}
            case.headers.pop("Last-Event-ID", None)
            if "/workers" in case.path:
                whose = {"owner_user_id": 7, "owner_guest_scope": None}
                if isinstance(case.body, dict):
                    case.body |= {**whose, "idempotency_key": None, "metadata": None, "metadata_patch": None}
                    case.body |= {"status": "running"} if "status" in case.body else {}
                else:
                    case.query = {**(case.query or {}), "owner_user_id": 7}
                    case.query.pop("owner_guest_scope", None)
            if name == "read_drift":
                case.query = {"topic": f"worker:{THERE['worker_id']}:lifecycle"}
            if name == "rebuild_projector":
                case.body = {"topic": f"run:{THERE['run_id']}:events"}
            if "/contract" in case.path:
                case.query = {key: value for key, value in (case.query or {}).items() if key != "after"}
                case.body = {"command": "CaptureSnapshot"} if "commands" in case.path else case.body
                case.body = {"event_id": THERE["event_id"]} if name == "apply_contract_replay" else case.body
            if "after_seq" in (case.query or {}):
                case.query["after_seq"] %= 8
            seen.add(told(case))

    def told(case: Any) -> int:
        response = case.call(base_url=served.url, headers=served.headers, timeout=20)
        case.validate_response(response, checks=CHECKS, headers=served.headers)
        return int(response.status_code)

    drive()
    assert seen & {200, 201} or mode is GenerationMode.NEGATIVE
    assert seen & {400, 422} or mode is GenerationMode.POSITIVE or name == "read_openapi"


@pytest.mark.filterwarnings("ignore")
def test_an_answer_that_is_not_what_its_document_says_is_found(served: Served) -> None:
    case = operation_of(served, "tell_lie").Case()
    response = case.call(base_url=served.url, headers=served.headers, timeout=20)

    with pytest.raises(FailureGroup, match="schema"):
        case.validate_response(response, checks=CHECKS, headers=served.headers)


def test_the_document_holds_each_operation_once(served: Served) -> None:
    found = [one["operationId"] for path in served.document["paths"].values() for one in path.values()]

    assert sorted(found) == sorted(one.name for one in (*TABLE, LIE))
