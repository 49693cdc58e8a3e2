"""A harness for an agent of your own: every fault at every await of it, in a conversation that asks all it can.

The conversation is one turn for each input, in a runtime in memory, with a reader that is slow, somebody who answers
every question, and one steering input a turn. It is an ordinary scenario, and the harness a thin use of `sweep`: the
faults into the running turn, and then a cancel of the whole host, whose store is opened again afterwards.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

import trio
from attrs import evolve

import turnlane
from turnlane.core.reasons import Refused
from turnlane.runtime.agent import Agent

from .node_hosts import Stage, first_of
from .report import Report
from .sweep import sweep
from .world import Checker, Scenario, World, quiescent

TURN_SECONDS: Final = 60.0
SLOW_SECONDS: Final = 0.02
INPUTS: Final = ({"text": "hello"},)


def node_harness(
    agent: Agent,
    *,
    inputs: Sequence[Any] = INPUTS,
    faults: Sequence[str] = ("cancel", "deadline", "error"),
    seeds: int | Sequence[int] = 1,
    **bounds: Any,
) -> Report:
    """Every fault at every await of the agent's turns, and the end of its whole host at every await of any task.

    One turn for each of `inputs`, in a runtime in memory on virtual time, with a reader that is slow, somebody who
    answers every question, and one steering input a turn. Afterwards the store is opened again and the checkers look
    at all of it. An agent that raises what was not injected, or does not end when it is cancelled, is a finding.
    An agent that never waits itself is hit by the end of its host alone; a note says so. `bounds` go to `sweep` (`at`,
    `pairs`, `runs_max`, `seconds_max`). A finding is seen again with
    `replay(token, scenario=node_scenario(agent, inputs), check=NODE_JUDGES)`.
    """
    if not (inspect.iscoroutinefunction(agent) or inspect.iscoroutinefunction(type(agent).__call__)):
        raise TypeError("an agent is an async function of a turn: async def agent(turn)")
    scenario = node_scenario(agent, inputs)
    turns = sweep(scenario, faults=faults, scope="turn", seeds=seeds, check=NODE_JUDGES, **bounds)
    host = sweep(scenario, faults=("cancel",), seeds=seeds, check=NODE_JUDGES, **bounds)
    waits = bool(turns.points)
    notes = turns.notes if waits else ("the agent itself never waits: only the end of its host was tried",)
    return evolve(
        turns,
        ok=(turns.ok or not waits) and host.ok,
        points=turns.points + host.points,
        runs=turns.runs + host.runs,
        missed=turns.missed + host.missed,
        seconds=turns.seconds + host.seconds,
        findings=turns.findings + host.findings,
        incomplete=turns.incomplete or host.incomplete,
        notes=tuple(dict.fromkeys((*notes, *host.notes))),
        command="replay({token!r}, scenario=node_scenario(agent, inputs), check=NODE_JUDGES)",
    )


_STAGES: Final[WeakKeyDictionary[World, Stage]] = WeakKeyDictionary()


def node_scenario(agent: Agent, inputs: Sequence[Any] = INPUTS) -> Scenario:
    """The conversation that `node_harness` sweeps."""

    async def converse(world: World) -> None:
        stage = _STAGES[world] = Stage(clock=world.clock, ids=world.ids)
        async with stage.runtime({"agent": world.exposed(agent)}) as runtime:
            session = await runtime.open_session("s-1")
            for given in inputs:
                async with trio.open_nursery() as nursery:
                    turn = await session.start_turn(given, deadline=TURN_SECONDS)
                    nursery.start_soon(stage.follow, session, SLOW_SECONDS)
                    nursery.start_soon(_attend, session, turn)
                    await turn.outcome()
                    nursery.cancel_scope.cancel()

    converse.__qualname__ = f"node_scenario.<locals>.{getattr(agent, '__name__', type(agent).__name__)}"
    return converse


async def _attend(session: turnlane.Session, turn: turnlane.TurnHandle) -> None:
    """Steer once, and answer every question."""
    with contextlib.suppress(Refused):
        await session.steer({"text": "steered"}, turn.id)
    async with session.attach("earliest") as events:
        async for item in events:
            if isinstance(item, turnlane.Event) and item.type == "request.opened":
                with contextlib.suppress(Refused):
                    await session.answer(item.data["request"], _answer_to(item.data))


def _answer_to(question: Mapping[str, Any]) -> Any:
    if question["kind"] == "approval":
        return "accept"
    return question["choices"][0] if question["kind"] == "choice" else "an answer"


async def nothing_is_broken(world: World) -> None:
    """Open the store again, let everything end, and let the checkers look at the log and at what readers were given."""
    if (stage := _STAGES.get(world)) is None:
        return
    async with stage.runtime({"agent": _idle}) as runtime:
        for name in await runtime.sessions():
            session = await runtime.session(name)
            if session.phase != "ended":
                await session.close()
    found = stage.judged()
    assert not found, "; ".join(map(str, found))


async def _idle(turn: turnlane.Turn) -> None:
    return


def obeys_cancel(world: World) -> None:
    """The agent ends within the ladder when it is cancelled."""
    if (stage := _STAGES.get(world)) is not None:
        assert not stage.disowned, f"the agent of {stage.disowned[0]} did not end when it was cancelled"


def raises_nothing_of_its_own(world: World) -> None:
    """What the agent raises was injected, or is the runtime's own no."""
    for error in _STAGES[world].failed if world in _STAGES else ():
        first = first_of(error)
        if not (world.was_injected(first) or isinstance(first, Refused)):
            raise AssertionError(f"the agent raised {type(first).__name__}: {first}")


NODE_JUDGES: Final[tuple[Checker, ...]] = (quiescent, nothing_is_broken, obeys_cancel, raises_nothing_of_its_own)
