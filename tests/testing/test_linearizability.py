"""The judge of concurrent answers says yes where one order explains them, no where none does, and nothing else."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnlane.testing.histories import (
    CURSORS,
    DISPATCH_CLAIMS,
    IDEMPOTENCY_KEYS,
    LEASES,
    STREAM_HEADS,
    OperationHistory,
    assert_linearizable,
    check_linearizable,
)


def history_of(*moments):
    """`(process, operation, value)` begins; `(process, fate, answer)` ends what the process waits for."""
    history, waiting = OperationHistory(), {}
    for process, word, value in moments:
        if word == "ok":
            waiting.pop(process).ok(value)
        elif word in ("failed", "unknown"):
            getattr(waiting.pop(process), word)()
        else:
            waiting[process] = history.invoke(process, word, value)
    return history


def in_turn(*calls):
    """Calls one after another, each by a process of its own."""
    moments = []
    for number, (operation, value, answer) in enumerate(calls):
        moments += [(f"p{number}", operation, value), (f"p{number}", "ok", answer)]
    return history_of(*moments)


def together(*calls):
    """Calls that all overlap."""
    begun = [(f"p{number}", operation, value) for number, (operation, value, _) in enumerate(calls)]
    return history_of(*begun, *((f"p{number}", "ok", answer) for number, (_, _, answer) in enumerate(calls)))


LINEARIZABLE = [
    (DISPATCH_CLAIMS, together(("claim", ("d", "ann"), None), ("claim", ("d", "bob"), 1))),
    (
        DISPATCH_CLAIMS,
        in_turn(
            ("claim", ("d", "ann"), 1),
            ("requeue", ("d", "ann", 1), True),
            ("claim", ("d", "bob"), 2),
            ("complete", ("d", "ann", 1), False),
            ("complete", ("d", "bob", 2), True),
            ("claim", ("d", "ann"), None),
        ),
    ),
    (LEASES, together(("acquire", ("s", "ann", "a"), 2), ("acquire", ("s", "ann", "b"), 1), ("read", "s", ("ann", 1)))),
    (
        LEASES,
        in_turn(
            ("acquire", ("s", "ann", "a"), 1),
            ("acquire", ("s", "ann", "a"), 1),
            ("release", ("s", "ann", 1), True),
            ("read", "s", None),
            ("acquire", ("s", "ann", "a"), 2),
            ("release", ("s", "ann", 1), False),
        ),
    ),
    (IDEMPOTENCY_KEYS, together(("put", ("k", "c", 1), ("repeated", 2)), ("put", ("k", "c", 2), ("kept", 2)))),
    (IDEMPOTENCY_KEYS, in_turn(("put", ("k", "c", 1), ("kept", 1)), ("put", ("k", "d", 2), ("conflict", 1)))),
    (CURSORS, together(("save", ("c", 1), None), ("save", ("c", 2), None), ("load", "c", None), ("load", "c", 1))),
    (STREAM_HEADS, together(("append", ("s", 0, 2), (True, 2)), ("append", ("s", 0, 1), (False, 2)), ("head", "s", 0))),
]
NOT_LINEARIZABLE = [
    (DISPATCH_CLAIMS, together(("claim", ("d", "ann"), 1), ("claim", ("d", "bob"), 1))),
    (DISPATCH_CLAIMS, in_turn(("claim", ("d", "ann"), 1), ("complete", ("d", "bob", 1), True))),
    (LEASES, together(("acquire", ("s", "ann", "a"), 1), ("acquire", ("s", "bob", "b"), 1))),
    (LEASES, in_turn(("acquire", ("s", "ann", "a"), 1), ("acquire", ("s", "ann", "b"), 2), ("read", "s", ("ann", 1)))),
    (LEASES, in_turn(("acquire", ("s", "ann", "a"), 1), ("acquire", ("s", "bob", "b"), 2))),
    (
        LEASES,
        in_turn(("acquire", ("s", "a", "a"), 1), ("acquire", ("s", "a", "b"), 2), ("release", ("s", "a", 1), True)),
    ),
    (IDEMPOTENCY_KEYS, in_turn(("put", ("k", "c", 1), ("kept", 1)), ("put", ("k", "c", 2), ("kept", 2)))),
    (IDEMPOTENCY_KEYS, in_turn(("put", ("k", "c", 1), ("kept", 1)), ("find", "k", None))),
    (CURSORS, in_turn(("save", ("c", 1), None), ("save", ("c", 2), None), ("load", "c", 1))),
    (CURSORS, together(("save", ("c", 1), None), ("load", "c", 3))),
    (STREAM_HEADS, together(("append", ("s", 0, 1), (True, 1)), ("append", ("s", 0, 1), (True, 1)))),
    (STREAM_HEADS, in_turn(("append", ("s", 0, 1), (True, 1)), ("head", "s", 0))),
]


@pytest.mark.parametrize(("model", "history"), LINEARIZABLE)
def test_what_one_order_explains_is_linearizable(model, history):
    assert_linearizable(history, model)


@pytest.mark.parametrize(("model", "history"), NOT_LINEARIZABLE)
def test_what_no_order_explains_is_not(model, history):
    with pytest.raises(AssertionError, match="not linearizable"):
        assert_linearizable(history, model)


def test_keys_know_nothing_of_each_other():
    assert_linearizable(in_turn(("save", ("c", 1), None), ("load", "d", None)), CURSORS)
    broken = in_turn(("save", ("c", 1), None), ("load", "d", None), ("load", "c", None))
    assert check_linearizable(broken, CURSORS).key == "c"


def test_the_first_answer_that_cannot_be_is_named():
    history = in_turn(*[("append", ("s", n, 1), (True, n + 1)) for n in range(30)], ("head", "s", 7), ("head", "s", 30))
    verdict = check_linearizable(history, STREAM_HEADS)
    assert verdict.impossible is history.ops[30]
    assert len(verdict.order) == 30
    with pytest.raises(AssertionError, match=r"fits no order: p30 head\('s',\) -> 7"):
        assert_linearizable(history, STREAM_HEADS)


def test_an_operation_of_unknown_fate_may_have_happened():
    seen = history_of(("p", "save", ("c", 1)), ("p", "unknown", None), ("q", "load", "c"), ("q", "ok", 1))
    assert_linearizable(seen, CURSORS)


def test_an_operation_of_unknown_fate_may_never_have_happened():
    unseen = history_of(("p", "save", ("c", 1)), ("p", "unknown", None), ("q", "load", "c"), ("q", "ok", None))
    assert_linearizable(unseen, CURSORS)


def test_an_operation_of_unknown_fate_may_happen_later_than_others_that_follow_it():
    late = history_of(
        *[("p", "save", ("c", 1)), ("p", "unknown", None)],
        *[("q", "load", "c"), ("q", "ok", None), ("q", "save", ("c", 2)), ("q", "ok", None)],
        *[("q", "load", "c"), ("q", "ok", 1)],
    )
    assert_linearizable(late, CURSORS)


def test_an_operation_of_unknown_fate_happens_at_most_once_and_not_before_it_begins():
    twice = history_of(
        *[("p", "save", ("c", 1)), ("p", "unknown", None), ("q", "load", "c"), ("q", "ok", 1)],
        *[("q", "save", ("c", 2)), ("q", "ok", None), ("q", "load", "c"), ("q", "ok", 1)],
    )
    early = history_of(("q", "load", "c"), ("q", "ok", 1), ("p", "save", ("c", 1)), ("p", "unknown", None))
    for history in (twice, early):
        assert check_linearizable(history, CURSORS).answer == "not linearizable"


def test_an_operation_that_is_still_open_is_of_unknown_fate():
    assert_linearizable(history_of(("p", "save", ("c", 1)), ("q", "load", "c"), ("q", "ok", 1)), CURSORS)


def test_an_operation_that_failed_never_happened():
    seen = history_of(("p", "save", ("c", 1)), ("p", "failed", None), ("q", "load", "c"), ("q", "ok", 1))
    assert check_linearizable(seen, CURSORS).answer == "not linearizable"


def test_a_search_beyond_its_budget_is_undecided_and_that_is_a_failure():
    history = together(*[("save", ("c", n), None) for n in range(20)], ("load", "c", 99))
    assert check_linearizable(history, CURSORS, steps_max=1_000).answer == "undecided"
    with pytest.raises(AssertionError, match="undecided"):
        assert_linearizable(history, CURSORS, steps_max=1_000)


def test_the_memo_makes_long_histories_short_work():
    """Four processes over a real order, with overlaps and some unknown fates; a few questions an operation."""
    dice, history, head, waiting = random.Random(7), OperationHistory(), 0, {}
    for _ in range(4_000):
        process = f"p{dice.randrange(4)}"
        if process not in waiting:
            expected = head - (dice.random() < 0.3)
            op = history.invoke(process, "append", ("s", expected, 1))
            accepted = expected == head
            head += accepted
            waiting[process] = op, (accepted, head)
        else:
            op, answer = waiting.pop(process)
            op.ok(answer) if dice.random() < 0.99 or answer[0] else op.unknown()
    verdict = check_linearizable(history, STREAM_HEADS)
    assert verdict.answer == "linearizable"
    assert verdict.steps < 50 * len(history.ops)


def test_a_process_does_one_thing_at_a_time_and_each_thing_ends_once():
    history = OperationHistory()
    op = history.invoke("p", "load", "c")
    with pytest.raises(RuntimeError, match="one thing at a time"):
        history.invoke("p", "load", "c")
    op.ok(None)
    with pytest.raises(RuntimeError, match="has ended already"):
        op.unknown()
    history.invoke("p", "load", "c").failed()


# against brute force

CALLS = {
    "cursors": [("save", ("c", 1)), ("save", ("c", 2)), ("load", ("c",))],
    "idempotency keys": [("put", ("k", "c", 1)), ("put", ("k", "d", 2)), ("find", ("k",))],
    "leases": [
        ("acquire", ("s", "a", "1")),
        ("acquire", ("s", "b", "2")),
        ("release", ("s", "a", 1)),
        ("read", ("s",)),
    ],
    "dispatch claims": [
        ("claim", ("d", "a")),
        ("claim", ("d", "b")),
        ("requeue", ("d", "a", 1)),
        ("complete", ("d", "b", 2)),
    ],
    "stream heads": [("append", ("s", 0, 1)), ("append", ("s", 1, 1)), ("head", ("s",))],
}
NAMED = {model.name: model for model in (CURSORS, IDEMPOTENCY_KEYS, LEASES, DISPATCH_CLAIMS, STREAM_HEADS)}
PROCESSES = 3


def brute_force(history, model):
    """Every subset of the unknown, every order that respects time."""
    told = [op for op in history.ops if op.fate == "ok"]
    untold = [op for op in history.ops if op.fate in ("unknown", "open")]
    for count in range(len(untold) + 1):
        for some in itertools.combinations(untold, count):
            if any(explains(order, model) for order in itertools.permutations([*told, *some])):
                return True
    return False


def explains(order, model):
    if any(later.returned < earlier.invoked for earlier, later in itertools.combinations(order, 2)):
        return False
    state = model.initial
    for op in order:
        state, answer = model.operations[op.operation](state, *op.value[1:])
        if op.returned != math.inf and answer != op.result:
            return False
    return True


@st.composite
def tiny_histories(draw):
    """Up to six operations. An answer is the model's at some moment of the call, now and then one of another moment."""
    model = NAMED[draw(st.sampled_from(sorted(NAMED)))]
    history, waiting, state, answers = OperationHistory(), {}, model.initial, [None]
    for process, chance, lies in draw(
        st.lists(st.tuples(st.integers(0, PROCESSES - 1), st.integers(0, 11), st.integers(0, 9)), max_size=14)
    ):
        if process in waiting:
            op, answer, happens = waiting.pop(process)
            if answer is None and happens:
                state, answer = model.step(state, op)
            answers.append(answer)
            if chance < 8:
                op.ok(answers[lies % len(answers)] if lies > 7 else answer)
            else:
                op.unknown() if chance < 11 else op.failed()
        elif len(history.ops) < 6:
            calls = CALLS[model.name]
            op = history.invoke(str(process), *calls[chance % len(calls)])
            at_once = lies % 2
            answer = None
            if at_once:
                state, answer = model.step(state, op)
            waiting[process] = op, answer, not at_once
    return model, history


@settings(max_examples=300)
@given(tiny_histories())
def test_the_search_agrees_with_brute_force(drawn):
    model, history = drawn
    expected = "linearizable" if brute_force(history, model) else "not linearizable"
    assert check_linearizable(history, model).answer == expected
