"""Scripted nodes: agents that do what a test tells them, well or badly.

An `Act` is plain data: its kind and its arguments. A turn whose input carries acts (`acting(...)`) is performed from
its input, so that a log tells what every node was told, and a node elsewhere can be told the same. `ACTS` is the one
table of what can be done; `random_acts` draws from it, for agents that follow from a seed.

A lie is an output that must not pass. It says what it is, so that whether one passed is judged from outside
(`no_forgery_kept`) and never by the node. The agent of a turn is trusted with its handle, so only what the public
`Turn` lets it do is tried.
"""

from __future__ import annotations

import contextlib
import copy
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

import trio
import trio.testing
from attrs import evolve, frozen

from ..core.ids import TurnId
from ..core.reasons import Fenced, Refused
from ..runtime.agent import Turn
from .checkers import Seen
from .report import Violation

LIE: Final = "lie:"
"""Begins the text of every output that a liar tries."""

FORGERIES: Final = ("old_epoch", "wrong_id")
"""Lies that never pass; the others pass while the turn that they speak for is still open."""

LIES: Final = ("other_turn", "after_cancel", *FORGERIES)
LIE_SECONDS_MAX: Final = 1.0
TURNS_KEPT: Final = 8
"""So many handles of ended turns a node keeps, to speak through them later."""


TOOL_S: Final = 0.5
"""How long a tool call takes: long enough to be cut short."""


@frozen
class Act:
    """One thing a node does. `ACTS` says what each kind means."""

    kind: str
    arguments: tuple[Any, ...] = ()

    def data(self) -> list[Any]:
        """As JSON holds it: the kind, then the arguments."""
        return [self.kind, *(one.data() if isinstance(one, Act) else one for one in self.arguments)]

    @classmethod
    def of(cls, data: Iterable[Any]) -> Act:
        """The act that `data()` gave. ValueError for a kind that is none."""
        kind, *arguments = data
        if kind not in ACTS:
            raise ValueError(f"no act {kind!r}; there are {', '.join(sorted(ACTS))}")
        return cls(kind, tuple(map(cls.of, arguments)) if kind == "below" else tuple(arguments))


# what a test says


def say(data: Any) -> Act:
    """Produce one output: text or any JSON value."""
    return Act("say", (data,))


def wait(seconds: float) -> Act:
    """Sleep; a cancel is obeyed."""
    return Act("wait", (seconds,))


def hang() -> Act:
    """Wait for ever; only a cancel ends it."""
    return Act("hang")


def ignore_cancel(ms: int) -> Act:
    """Let no cancel through for so long; then go on, and obey."""
    return Act("ignore_cancel", (ms,))


def crash(message: str = "told to") -> Act:
    """Raise a RuntimeError with this message."""
    return Act("crash", (message,))


def block_loop(ms: int) -> Act:
    """Hold the event loop so long that no other task runs meanwhile.

    On virtual time the clock jumps without a checkpoint, which is all that others could see of a blocked loop; on
    real time the thread sleeps.
    """
    return Act("block_loop", (ms,))


def flood(count: int) -> Act:
    """So many outputs, as fast as the window lets them in."""
    return Act("flood", (count,))


def lie(what: str) -> Act:
    """Try an output that must not pass, and go on when it is refused.

    `old_epoch` and `wrong_id`: through a handle with forged numbers. `other_turn`: through the handle of a turn that
    this node performed before. `after_cancel`: waits to be cancelled, then speaks instead of going.
    """
    if what not in LIES:
        raise ValueError(f"no lie {what!r}; there are {', '.join(LIES)}")
    return Act("lie", (what,))


def ask(prompt: Any, deadline: float | None = None) -> Act:
    """Ask for an approval, wait for the answer, and say it: `{"resolution": ..., "value": ...}`."""
    return Act("ask", (prompt, deadline))


def effect(name: str, key: str | None = None) -> Act:
    """Call the node's `tool` under the effect ledger; say `{"effect": name, "run": ..., "result": ...}`."""
    return Act("effect", (name, key))


def steer() -> Act:
    """Wait for one steering input, and say it."""
    return Act("steer")


def below(*acts: Act) -> Act:
    """Open a sub-session, start a turn with these acts in it, wait for its outcome, and say `{"below": outcome}`."""
    return Act("below", acts)


def _require_acts(acts: tuple[object, ...]) -> None:
    for act in acts:
        if not isinstance(act, Act):
            raise TypeError(f"an act is what say(...), wait(...) and the others give, not {act!r}")


def acting(*acts: Act) -> dict[str, Any]:
    """The input of a turn that is to perform these acts, whatever its node was told."""
    _require_acts(acts)
    return {"acts": [act.data() for act in acts]}


def given(input: Any) -> tuple[Act, ...] | None:
    """The acts that an input carries, or that the inputs which were merged into it carry together; None for none."""
    inputs = input if isinstance(input, list) else [input]
    lists = [one["acts"] for one in inputs if isinstance(one, dict) and "acts" in one]
    return tuple(Act.of(data) for acts in lists for data in acts) if lists else None


# how it is done


class ScriptedNode:
    """An agent that performs its acts in order, or those that the turn's input carries.

    `tool(turn, name)` is what `effect` calls, plain: the world's side of a tool call, for whoever counts them.
    """

    def __init__(self, *acts: Act, tool: Callable[[Turn, str], Any] | None = None) -> None:
        _require_acts(acts)
        self.acts = acts
        self.tool = tool
        self.ended: deque[Turn] = deque(maxlen=TURNS_KEPT)
        """Handles of turns that this node performed, the latest last."""
        self.accepted: Counter[str] = Counter()
        """Outputs that were accepted, by turn."""

    async def speak(self, turn: Turn, data: Any) -> None:
        """One output, counted once it is accepted."""
        await turn.output(data)
        self.accepted[turn.id] += 1

    async def __call__(self, turn: Turn) -> None:
        try:
            acts = given(turn.input)
            for act in self.own_acts() if acts is None else acts:
                await ACTS[act.kind](self, turn, *act.arguments)
        finally:
            self.ended.append(turn)

    def own_acts(self) -> tuple[Act, ...]:
        """What is performed where the input says nothing."""
        return self.acts


async def _say(node: ScriptedNode, turn: Turn, data: Any) -> None:
    await node.speak(turn, data)


async def _wait(_: ScriptedNode, __: Turn, seconds: float) -> None:
    await trio.sleep(seconds)


async def _hang(_: ScriptedNode, __: Turn) -> None:
    await trio.sleep_forever()


async def _ignore_cancel(_: ScriptedNode, __: Turn, ms: int) -> None:
    with trio.CancelScope(shield=True):
        await trio.sleep(ms / 1_000)


async def _crash(_: ScriptedNode, __: Turn, message: str) -> None:
    raise RuntimeError(message)


async def _block_loop(_: ScriptedNode, __: Turn, ms: int) -> None:
    clock = trio.lowlevel.current_clock()
    if isinstance(clock, trio.testing.MockClock):
        clock.jump(ms / 1_000)
    else:
        time.sleep(ms / 1_000)  # noqa: ASYNC251  blocking is what is asked for


async def _flood(node: ScriptedNode, turn: Turn, count: int) -> None:
    for number in range(count):
        await node.speak(turn, f"{number} ")


async def _lie(node: ScriptedNode, turn: Turn, what: str) -> None:
    handles: Iterable[Turn] = [turn]
    if what == "after_cancel":
        try:
            await trio.sleep_forever()
        finally:
            await _try_output(node, turn, what)
    elif what == "other_turn":
        handles = tuple(node.ended)
    else:
        handles = [_forged(turn, what)]
    for handle in handles:
        await _try_output(node, handle, what)


async def _try_output(node: ScriptedNode, handle: Turn, what: str) -> None:
    """Shielded, since a liar does not leave when it is told to; bounded, since its runtime may be gone."""
    with trio.move_on_after(LIE_SECONDS_MAX, shield=True), contextlib.suppress(Fenced, Refused):
        await node.speak(handle, LIE + what)


def _forged(turn: Turn, what: str) -> Turn:
    forged = copy.copy(turn)
    if what == "old_epoch":
        forged.plan = evolve(turn.plan, epoch=turn.plan.epoch - 1)
    else:
        forged.id = TurnId("turn_of_nobody")
    return forged


async def _ask(node: ScriptedNode, turn: Turn, prompt: Any, deadline: float | None) -> None:
    answer = await turn.ask(prompt, deadline=deadline)
    await node.speak(turn, {"resolution": answer.resolution, "value": answer.value})


async def _effect(node: ScriptedNode, turn: Turn, name: str, key: str | None) -> None:
    async with turn.effect(name, {}, key) as call:
        if call.run:
            await trio.sleep(TOOL_S)
            call.result = name if node.tool is None else node.tool(turn, name)
    await node.speak(turn, {"effect": name, "run": call.run, "result": call.result})


async def _steer(node: ScriptedNode, turn: Turn) -> None:
    async for more in turn.steered:
        await node.speak(turn, more)
        return


async def _below(node: ScriptedNode, turn: Turn, *acts: Act) -> None:
    session = await turn.sub_session()
    outcome = await (await session.start_turn(acting(*acts))).outcome()
    await node.speak(turn, {"below": outcome.outcome})


Performed = Callable[..., Awaitable[None]]

ACTS: Final[Mapping[str, Performed]] = {
    "say": _say,
    "wait": _wait,
    "hang": _hang,
    "ignore_cancel": _ignore_cancel,
    "crash": _crash,
    "block_loop": _block_loop,
    "flood": _flood,
    "lie": _lie,
    "ask": _ask,
    "effect": _effect,
    "steer": _steer,
    "below": _below,
}


# chance


Drawn = Callable[[random.Random, int], Act]

DRAWS: Final[Mapping[str, tuple[int, Drawn]]] = {
    "say": (40, lambda dice, _: say(f"{dice.randrange(100)} ")),
    "wait": (20, lambda dice, _: wait(dice.choice((0.0, 0.001, 0.01, 0.1, 1.0)))),
    "flood": (6, lambda dice, _: flood(dice.choice((2, 17, 40, 300)))),
    "effect": (
        14,
        lambda dice, _: effect(dice.choice(("pay", "mail")), dice.choice((None, "key-1", "key-1", "key-2"))),
    ),
    "ask": (10, lambda dice, _: ask("go on?", dice.choice((0.5, 5.0, 60.0)))),
    "below": (8, lambda dice, size: below(*random_acts(dice, size // 2), wait(dice.choice((0.0, 1.0, 10.0))))),
    "lie": (4, lambda dice, _: lie(dice.choice(LIES))),
    "steer": (3, lambda _, __: steer()),
    "crash": (3, lambda _, __: crash("the dice say so")),
    "ignore_cancel": (2, lambda dice, _: ignore_cancel(dice.choice((20, 200, 2_000)))),
    "block_loop": (2, lambda dice, _: block_loop(dice.choice((1, 30, 300)))),
    "hang": (1, lambda _, __: hang()),
}
"""Kind -> how often, out of the sum of all, and what is drawn. `steer`, `hang` and a lie may wait for ever."""

_KINDS: Final = tuple(DRAWS)
_WEIGHTS: Final = tuple(weight for weight, _ in DRAWS.values())


def random_acts(dice: random.Random, size: int = 6) -> tuple[Act, ...]:
    """At most `size` acts, mostly talk. All of it follows from the dice."""
    kinds = dice.choices(_KINDS, _WEIGHTS, k=dice.randint(0, size))
    return tuple(DRAWS[kind][1](dice, size) for kind in kinds)


class DicedNode(ScriptedNode):
    """A node that throws its acts anew for each turn. A turn whose input carries acts performs those."""

    def __init__(self, dice: random.Random, size: int = 6, *, tool: Callable[[Turn, str], Any] | None = None) -> None:
        super().__init__(tool=tool)
        self.dice, self.size = dice, size

    def own_acts(self) -> tuple[Act, ...]:
        return random_acts(self.dice, self.size)


# the judge


def no_forgery_kept(seen: Seen) -> Iterable[Violation]:
    """No log holds an output of a handle with a forged epoch or id."""
    forged = [LIE + what for what in FORGERIES]
    for stream, log in seen.logs.items():
        for event in log:
            if event.type == "turn.output" and event.data["data"] in forged:
                yield Violation("no_forgery_kept", f"{stream}: {event.data['data']} at {event.seq}")
