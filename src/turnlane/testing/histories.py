"""Linearizability: whether what concurrent callers were told could have come from one caller after another.

An `OperationHistory` holds who asked what, when, and what came back: calls of ports and services, with their overlaps.
(`turnlane.testing.History` is another thing: what is seen from outside during one run of the kit, in order.) A `Model`
says what a single caller would have been told. `assert_linearizable` looks for one order of the operations which keeps
every "ended before the other began", and in which the model gives every answer that was given.

The search is that of Wing and Gong: take any operation that began before all those that are left had ended, ask the
model, go on; with a memo of (what was taken, state), since two ways to the same place have one future (Lowe). Keys of
a model know nothing of each other, so each is searched alone. An operation of unknown fate may have happened at any
time after its call, or never. The problem is NP-complete: beyond a budget of steps the answer is `undecided`, and that
is a failure, because silence must mean that it was shown.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Final

from attrs import define, evolve, field, frozen

STEPS_MAX: Final = 2_000_000
"""Questions to the model for one key; below ten seconds on a slow machine."""
OPERATIONS_SHOWN_MAX: Final = 20

State = Hashable
Operation = Callable[..., tuple[State, Any]]


@define(slots=True, eq=False)
class Op:
    """One call, open until one of `ok`, `failed`, `unknown` is said. One that stays open is of unknown fate."""

    process: str
    operation: str
    value: tuple[Any, ...]
    invoked: int
    _history: OperationHistory = field(repr=False)
    returned: float = math.inf
    result: Any = None
    fate: str = "open"

    def ok(self, result: Any = None) -> None:
        """It happened, and this was the answer."""
        self._end("ok", result)

    def failed(self) -> None:
        """It did not happen and never will: it has no place in any order."""
        self._end("failed")

    def unknown(self) -> None:
        """Nobody can tell: it may have happened, may happen later, or never."""
        self._end("unknown")

    def _end(self, fate: str, result: Any = None) -> None:
        if self.fate != "open":
            raise RuntimeError(f"{self} has ended already")
        self._history.ended(self, fate, result)

    def __str__(self) -> str:
        answer = f"-> {self.result!r}" if self.fate == "ok" else self.fate
        span = f"[{self.invoked}, {'' if self.returned == math.inf else int(self.returned)}]"
        return f"{self.process} {self.operation}{self.value!r} {answer} {span}"


class OperationHistory:
    """Calls of concurrent processes, tasks or threads, in the order of their beginnings and ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = 0
        self._open: dict[str, Op] = {}
        self.ops: list[Op] = []

    def invoke(self, process: str, operation: str, value: Any) -> Op:
        """Say this before the call begins. `value` is the key, or a tuple of the key and the arguments."""
        with self._lock:
            if process in self._open:
                raise RuntimeError(f"{process} waits for {self._open[process]}: a process does one thing at a time")
            self._now += 1
            op = Op(process, operation, value if isinstance(value, tuple) else (value,), self._now, self)
            self._open[process] = op
            self.ops.append(op)
            return op

    def ended(self, op: Op, fate: str, result: Any) -> None:
        """Said through the operation itself, after its call has returned."""
        with self._lock:
            self._now += 1
            op.fate, op.result = fate, result
            if fate == "ok":
                op.returned = self._now
            del self._open[op.process]

    def by_key(self) -> dict[Hashable, list[Op]]:
        """What may have happened, key by key, in the order of beginnings."""
        found: dict[Hashable, list[Op]] = {}
        for op in self.ops:
            if op.fate != "failed":
                found.setdefault(op.value[0], []).append(op)
        return found


@frozen
class Model:
    """What one caller after another would be told about one key.

    `operations[name](state, *arguments)` gives the next state and the answer. States are values with a hash.
    """

    name: str
    initial: State
    operations: Mapping[str, Operation]

    def step(self, state: State, op: Op) -> tuple[State, Any]:
        return self.operations[op.operation](state, *op.value[1:])


@frozen
class Verdict:
    """`answer`: linearizable, not linearizable, undecided. `order` is a witness, or the longest that was found."""

    answer: str
    steps: int
    key: Hashable = None
    order: tuple[Op, ...] = ()
    impossible: Op | None = None
    """The first answer, by time, with which the operations before it have no order any more."""


def check_linearizable(history: OperationHistory, model: Model, *, steps_max: int = STEPS_MAX) -> Verdict:
    """The first key that has no order, else the first that is undecided, else the yes."""
    steps, undecided = 0, None
    for key, ops in history.by_key().items():
        verdict = evolve(_search(ops, model, steps_max), key=key)
        steps += verdict.steps
        if verdict.answer == "not linearizable":
            return evolve(verdict, steps=steps, impossible=_first_impossible(ops, model, steps_max))
        if verdict.answer == "undecided":
            undecided = undecided or verdict
    return evolve(undecided or Verdict("linearizable", 0), steps=steps)


def assert_linearizable(history: OperationHistory, model: Model, *, steps_max: int = STEPS_MAX) -> None:
    """Raises AssertionError, with the answer that cannot be, or with `undecided`."""
    verdict = check_linearizable(history, model, steps_max=steps_max)
    if verdict.answer == "linearizable":
        return
    ops = history.by_key()[verdict.key]
    lines = [f"{model.name} {verdict.key!r}: {verdict.answer}, {len(ops)} operations, {verdict.steps} steps"]
    if verdict.impossible is not None:
        lines.append(f"  this answer fits no order: {verdict.impossible}")
        ops = [op for op in ops if op.invoked < verdict.impossible.returned]
    lines.append("  operations [begun, ended], the last of them:")
    lines += [f"    {op}" for op in ops[-OPERATIONS_SHOWN_MAX:]]
    lines.append("  the longest order that was found ends with:")
    lines += [f"    {op}" for op in verdict.order[-OPERATIONS_SHOWN_MAX:]]
    raise AssertionError("\n".join(lines))


def _search(ops: Sequence[Op], model: Model, steps_max: int) -> Verdict:
    """Depth first, with a stack of its own, since histories are longer than Python's. A set of operations is an int."""
    steps, order, longest = 0, list[Op](), tuple[Op, ...]()
    answered = sum(1 << index for index, op in enumerate(ops) if op.fate == "ok")
    seen: set[tuple[int, State]] = set()

    def tries(taken: int, state: State) -> Iterator[tuple[int, State]]:
        nonlocal steps
        found = []
        for index in _candidates(ops, taken):
            steps += 1
            after, answer = model.step(state, ops[index])
            told = ops[index].fate == "ok"
            if told and answer == ops[index].result and after == state:
                return iter([(index, after)])  # what changes nothing may as well go first
            if answer == ops[index].result if told else after != state:  # of unknown fate, and without effect: never
                found.append((index, after))
        return iter(found)

    stack = [(0, tries(0, model.initial))]
    while stack and answered & ~stack[-1][0]:
        if steps > steps_max:
            return Verdict("undecided", steps, order=longest)
        index, state = next(stack[-1][1], (-1, None))
        if index < 0:
            stack.pop()
            del order[-1:]
            continue
        taken = stack[-1][0] | 1 << index
        if (taken, state) not in seen:
            seen.add((taken, state))
            order.append(ops[index])
            longest = tuple(order) if len(order) > len(longest) else longest
            stack.append((taken, tries(taken, state)))
    return Verdict("linearizable" if stack else "not linearizable", steps, order=tuple(order) if stack else longest)


def _candidates(ops: Sequence[Op], taken: int) -> list[int]:
    """Operations that began before all that are left had ended; the one that ended first goes first."""
    found, bound = [], math.inf
    first = (~taken & (taken + 1)).bit_length() - 1
    for index in range(first, len(ops)):
        if taken >> index & 1:
            continue
        if ops[index].invoked > bound:
            break
        found.append(index)
        bound = min(bound, ops[index].returned)
    return sorted(found, key=lambda index: ops[index].returned)


def _first_impossible(ops: Sequence[Op], model: Model, steps_max: int) -> Op | None:
    """Every beginning of a linearizable history is one, so the first answer that cannot be is found by halving."""
    answers = sorted((op for op in ops if op.fate == "ok"), key=lambda op: op.returned)

    def fails(count: int) -> bool:
        until = answers[count - 1].returned
        seen = [_as_of(op, until) for op in ops if op.invoked < until]
        return _search(seen, model, steps_max).answer == "not linearizable"

    count = bisect_left(range(1, len(answers) + 1), True, key=fails) + 1
    return answers[count - 1] if count <= len(answers) else None


def _as_of(op: Op, until: float) -> Op:
    return op if op.returned <= until else evolve(op, returned=math.inf, fate="unknown", result=None)


# the models; the first argument of each operation in a history is the key


def _claim(state: Any, worker: str) -> tuple[State, Any]:
    phase, generation, _ = state
    return (("claimed", generation + 1, worker), generation + 1) if phase == "queued" else (state, None)


def _leave(after: str) -> Operation:
    def leave(state: Any, worker: str, generation: int) -> tuple[State, Any]:
        held = state == ("claimed", generation, worker)
        return ((after, generation, None), True) if held else (state, False)

    return leave


DISPATCH_CLAIMS: Final = Model(
    "dispatch claims",
    ("queued", 0, None),
    {"claim": _claim, "complete": _leave("completed"), "requeue": _leave("queued")},
)
"""`claim(dispatch, worker)` -> generation or None; `complete` and `requeue(dispatch, worker, generation)` -> bool."""


def _acquire(state: Any, owner: str, lease_id: str) -> tuple[State, Any]:
    epoch, held_by, _ = state
    if held_by == (owner, lease_id):
        return state, epoch
    if held_by is not None and held_by[0] != owner:
        return state, None
    return (epoch + 1, (owner, lease_id), owner), epoch + 1


def _release(state: Any, owner: str, epoch: int) -> tuple[State, Any]:
    current, _, last = state
    return ((current, None, last), True) if (current, last) == (epoch, owner) else (state, False)


def _holder(state: Any) -> tuple[State, Any]:
    epoch, held_by, _ = state
    return state, None if held_by is None else (held_by[0], epoch)


LEASES: Final = Model("leases", (0, None, None), {"acquire": _acquire, "release": _release, "read": _holder})
"""Of leases that do not run out: `acquire(scope, owner, lease_id)` -> epoch, None where another one holds it;
`release(scope, owner, epoch)` -> bool; `read(scope)` -> both."""


def _put(state: Any, content: Hashable, answer: Hashable) -> tuple[State, Any]:
    if state is None:
        return (content, answer), ("kept", answer)
    return state, ("repeated" if state[0] == content else "conflict", state[1])


IDEMPOTENCY_KEYS: Final = Model(
    "idempotency keys", None, {"put": _put, "find": lambda state: (state, None if state is None else state[1])}
)
"""`put(key, content, answer)` -> (kept, repeated or conflict, first answer); `find(key)` -> first answer or None."""

CURSORS: Final = Model(
    "cursors", None, {"save": lambda _, position: (position, None), "load": lambda state: (state, state)}
)
"""`save(cursor, position)`; `load(cursor)` -> what was saved last, or None."""


def _append(state: Any, expected: int, count: int) -> tuple[State, Any]:
    head = state + count if state == expected else state
    return head, (state == expected, head)


STREAM_HEADS: Final = Model("stream heads", 0, {"append": _append, "head": lambda state: (state, state)})
"""`append(stream, expected, count)` -> (accepted, head); `head(stream)` -> seq. Compare-and-set by expected seq."""
