"""Work that outlives a process, as calls one behind another: runs, workers, dispatches, the contract.

Each call may be repeated: it has a key, or is the same thing said again by the same holder. So whoever was cut off goes
on with the first call that it had no answer to. `seen` is what such a caller can see of all of it, without the ids and
instants that are drawn, and without generations (a claim that is asked for again has a new one): after each call there
is one that is right.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

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

SCENES: Final = {"run": RUN, "worker": WORKER, "dispatch": DISPATCH, "contract": CONTRACT}


async def seen(runtime: turnlane.Runtime) -> dict[str, Any]:
    """All that there is of runs, the worker, the dispatches and the contract."""
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
    return found


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
