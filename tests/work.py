"""Work that outlives a process, as calls one behind another: runs, workers, dispatches, the contract, a turn elsewhere.

Each call may be repeated: it has a key, or is the same thing said again by the same holder. So whoever was cut off goes
on with the first call that it had no answer to. `seen` is what such a caller can see of all of it, without the ids and
instants that are drawn, and without generations (a claim that is asked for again has a new one): after each call there
is one that is right.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

import turnlane
from turnlane.core.owners import Owner
from turnlane.core.reasons import Reason, Refused
from turnlane.runtime.dispatch import Claim

from .contract_lines import LINES

Held = dict[str, Any]
Call = Callable[[turnlane.Runtime, Held], Awaitable[object]]

MINE: Final = Owner(user_id=7)


def _append(event_type: str, payload: Any, number: int, **how: Any) -> Call:
    async def call(runtime: turnlane.Runtime, held: Held) -> None:
        await runtime.runs.append(held["run"], event_type, payload, key=f"append-{number}", **how)

    return call


async def create_run(runtime: turnlane.Runtime, held: Held) -> None:
    made = await runtime.runs.create(metadata={"policy_bundle_id": "p.1"}, owner_user_id=7, key="create")
    held["run"] = made.run.run_id


RUN: Final[tuple[Call, ...]] = (
    create_run,
    _append("step", {"n": 1}, 1),
    _append(
        "tool", {"tool": "grep", "params_hash": "a", "output_hash": "b", "latency_ms": 4}, 2, expected_previous_seq=2
    ),
    _append("run.finished", {"status": "succeeded"}, 3),
    _append("step", {"late": True}, 4),
)

WORKER: Final[tuple[Call, ...]] = (
    lambda runtime, held: runtime.workers.register("w-1", owner=MINE, metadata={"a": 1}, key="w1"),
    lambda runtime, held: runtime.workers.heartbeat("w-1", owner=MINE, metadata_patch={"b": 2}, key="w2"),
    lambda runtime, held: runtime.workers.report_stall("w-1", "stdout-stale", key="w3"),
    lambda runtime, held: runtime.workers.report_recovery("w-1", "relaunch", key="w4"),
    lambda runtime, held: runtime.workers.set_status("w-1", "stopping", owner=MINE, key="w5"),
    lambda runtime, held: runtime.workers.set_status("w-1", "stopped", owner=MINE, key="w6"),
)


def _enqueue(name: str, **how: Any) -> Call:
    return lambda runtime, held: runtime.queue().enqueue({"say": name}, key=name, dispatch_id=name, **how)


def _claim(name: str, number: int) -> Call:
    async def call(runtime: turnlane.Runtime, held: Held) -> None:
        claim = await runtime.queue().claim("me", key=f"claim-{number}")
        assert isinstance(claim, Claim) and claim.dispatch == name, claim
        held[name] = claim

    return call


def _with(verb: str, name: str, *words: Any, **how: Any) -> Call:
    return lambda runtime, held: getattr(runtime.queue(), verb)(held[name], *words, **how)


async def give_back_b(runtime: turnlane.Runtime, held: Held) -> None:
    """Said again it is refused by name, since nobody holds it then: that is the answer which was lost."""
    try:
        await runtime.queue().release(held["b"])
    except Refused as no:
        if no.reason is not Reason.NOT_CLAIMED:
            raise


DISPATCH: Final[tuple[Call, ...]] = (
    _enqueue("a"),
    _enqueue("b", attempts_max=2),
    _enqueue("c"),
    _claim("a", 1),
    _with("start", "a", channel="tmux"),
    _with("renew", "a", lease_ms=60_000),
    _with("complete", "a"),
    _claim("b", 2),
    give_back_b,
    _claim("b", 3),
    _with("start", "b"),
    _with("fail", "b", "broken"),
    lambda runtime, held: runtime.queue().cancel("c"),
)


def _contract(number: int, command: str) -> Call:
    return lambda runtime, held: runtime.contract.execute(command, key=f"contract-{number}")


CONTRACT: Final[tuple[Call, ...]] = tuple(_contract(number, command) for number, (command, _) in enumerate(LINES))


def _elsewhere(act: Callable[[turnlane.Session, Held], Awaitable[object]]) -> Call:
    async def call(runtime: turnlane.Runtime, held: Held) -> None:
        await act(await runtime.session("elsewhere"), held)

    return call


async def claim_the_turn(session: turnlane.Session, held: Held) -> None:
    held["turn"] = await session.dispatches.claim("w-9", key="claim-turn")


async def start_the_turn(session: turnlane.Session, held: Held) -> None:
    """A host that is on its way out puts a start off, and the row waits; then it is claimed once more."""
    try:
        if (await session.dispatches.start(held["turn"])).started:
            return
    except Refused as no:
        if no.reason is not Reason.NOT_CLAIMED:
            raise
    await trio.sleep(1)
    await claim_the_turn(session, held)
    assert (await session.dispatches.start(held["turn"])).started


def _batch(*records: dict[str, Any]) -> Call:
    async def tell(session: turnlane.Session, held: Held) -> None:
        given = [{"turn": "turn-1", "payload": {"n": 1}, **record} for record in records]
        answer = await session.ingest(given, worker="w-9", generation=1, claim=held["turn"])
        assert not answer.errors, answer

    return _elsewhere(tell)


def _output(number: int, start: int, kind: str = "item/text/delta") -> dict[str, Any]:
    place = {"cursor_start": start, "cursor_end": start + 2}
    return {"type": "output", "event_id": f"o-{number}", "kind": kind, **place}


INGEST: Final[tuple[Call, ...]] = (
    lambda runtime, held: runtime.open_session("elsewhere", key="open"),
    _elsewhere(
        lambda session, held: session.dispatches.enqueue("go", key="go", dispatch_id="turn-row", turn_id="turn-1")
    ),
    lambda runtime, held: runtime.bind_worker("elsewhere", "w-9", saved_cursor=3, key="bind"),
    _elsewhere(claim_the_turn),
    _elsewhere(start_the_turn),
    _batch(_output(1, 0), {"type": "lifecycle", "event_id": "l-1", "kind": "item/started"}),
    lambda runtime, held: runtime.bind_worker("elsewhere", "w-9", saved_cursor=5),
    _batch(_output(2, 2), _output(2, 2), _output(3, 4, "usage")),
    _batch(_output(4, 9)),
    _batch({"type": "lifecycle", "event_id": "l-2", "kind": "turn/completed", "payload": {"status": "completed"}}),
    _batch(_output(5, 11)),
)

SCENES: Final = {"run": RUN, "worker": WORKER, "dispatch": DISPATCH, "contract": CONTRACT, "ingest": INGEST}


async def seen(runtime: turnlane.Runtime) -> dict[str, Any]:
    """All that there is of runs, the worker, the dispatches, the contract and the turn elsewhere."""
    runs, _ = await runtime.runs.list()
    found: dict[str, Any] = {"runs": [await _run(runtime, state.run_id) for state in runs]}
    try:
        worker = await runtime.workers.read("w-1", owner=MINE)
        found["worker"] = (worker.status.value, worker.stalled, worker.metadata, worker.last_seq)
    except Refused as no:
        found["worker"] = no.reason.value
    rows = [await runtime.queue().read(name) for name in "abc"]
    found["rows"] = [row and (row["phase"], row["attempts"], row["reason"]) for row in rows]
    snapshot = await runtime.contract.snapshot()
    listed = (await runtime.contract.events()).events
    found["contract"] = (snapshot.backlog, snapshot.authority, [(one["seq"], one["body"]) for one in listed])
    found["turn"] = await _turn_elsewhere(runtime)
    return found


async def _turn_elsewhere(runtime: turnlane.Runtime) -> Any:
    try:
        session = await runtime.session("elsewhere")
    except Refused as no:
        return no.reason.value
    row = await session.dispatches.read("turn-row")
    state = session.actor.state
    return (
        row and ("waits" if row["phase"] in ("queued", "claimed") else (row["phase"], row["attempts"])),
        state.binding and (state.binding.worker, state.binding.generation, state.binding.saved_cursor),
        state.turn and dict(state.turn.feeds),
        [(event.type, event.data) for event in (await session.read()).events if event.lane == "data"],
    )


async def _run(runtime: turnlane.Runtime, run_id: str) -> Any:
    state, events = await runtime.runs.read(run_id)
    return state.phase.value, [(seq, type(event).__name__, event.payload, event.key) for seq, event in events]


async def every_view(runtime: turnlane.Runtime, calls: tuple[Call, ...]) -> list[dict[str, Any]]:
    """What is seen before the first call and after each, when nothing goes wrong."""
    views, held = [await seen(runtime)], Held()
    for call in calls:
        await call(runtime, held)
        views.append(await seen(runtime))
    return views


async def go_on(
    runtime: turnlane.Runtime, calls: tuple[Call, ...], views: list[dict[str, Any]], answered: int, held: Held
) -> None:
    """After a restart: what was answered is there, and at most the call in doubt besides; the calls that have no answer
    are made, and end where they would have."""
    found = await seen(runtime)
    assert found in views[answered : answered + 2], f"after {answered} answers this is seen: {found}"
    for call in calls[answered:]:
        await call(runtime, held)
    assert await seen(runtime) == views[-1]
