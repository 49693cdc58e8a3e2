"""Why is it stuck? A way to be stuck for each code, the whole answer, and the lists."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import pytest
from attrs import evolve
from machine_world import World, after, ask, open_session, running, start
from test_dispatch_modes import CLAIMED, D0, D1, HOST, LEASE_MS, NOW, QUEUED, STARTED, T0, begin, hashed, put, take

from turnlane.core.ids import DispatchId, RequestId
from turnlane.core.instants import wall_after_ms, wall_text
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.machines import queue_state as q
from turnlane.machines import session as rules
from turnlane.machines import turn as turns
from turnlane.machines.claims import decide_queue
from turnlane.machines.dispatch import RowPhase
from turnlane.machines.explaining import Facts, Filter, Stuck, explain, listed, row_value
from turnlane.machines.overlap import Policy
from turnlane.machines.session import Mode


def told(world: World, dispatch: str | None = None, **facts: Any) -> dict[str, Any]:
    answer = explain(world.state, Facts(world.wall, **facts), None if dispatch is None else DispatchId(dispatch))
    assert answer is not None
    json.dumps(answer)
    return answer


def codes(answer: Mapping[str, Any]) -> list[str]:
    assert all(found["detail"] for found in answer["stuck"])
    return [found["code"] for found in answer["stuck"]]


BUSY: Final = after(running(), start(1, Policy.QUEUE))
"""Mode runtime: t0 runs, d1 waits."""
WAITS: Final = after(BUSY, turns.CommitTurn(T0))
"""Mode runtime: d1 waits and nothing runs."""
RETRIED: Final = after(CLAIMED, q.FailDispatch(D0, NOW, retry=True))
LAST: Final = after(HOST, put(attempts_max=1), take()).later(LEASE_MS)

WAYS: Final[Mapping[str, tuple[World, str, dict[str, Any], list[str]]]] = {
    "nothing: runs": (running(), "d0", {}, []),
    "nothing: runs elsewhere": (STARTED, "d0", {}, []),
    "nothing: goes next": (WAITS, "d1", {}, []),
    "nothing: completed": (after(STARTED, q.CompleteDispatch(D0, NOW)), "d0", {}, []),
    "nothing: was run": (after(running(), turns.CommitTurn(T0)), "d0", {}, []),
    "nothing: drains but runs": (running(), "d0", {"draining": True}, []),
    "not_owner": (running(), "d0", {"owned_here": False, "granted": False}, ["not_owner"]),
    "no_authority": (running(), "d0", {"granted": False}, ["no_authority"]),
    "draining": (WAITS, "d1", {"draining": True}, ["draining"]),
    "storage_full": (running(), "d0", {"storage_full": True}, ["storage_full"]),
    "mode_host_no_claim": (QUEUED, "d0", {}, ["mode_host_no_claim"]),
    "turn_ahead": (BUSY, "d1", {}, ["turn_ahead"]),
    "turn_ahead of a claim": (after(STARTED, put(1), take("b", "w2")), "d1", {}, ["turn_ahead"]),
    "backoff": (RETRIED, "d0", {}, ["backoff"]),
    "backoff and not a permit": (
        after(running(), turns.LoseAuthority()),
        "d0",
        {"permit_free": False},
        ["backoff"],
    ),
    "claim_lapsed": (CLAIMED.later(LEASE_MS), "d0", {}, ["claim_lapsed"]),
    "claim_lapsed while it runs": (STARTED.later(LEASE_MS), "d0", {}, ["claim_lapsed"]),
    "attempts_exhausted": (LAST, "d0", {}, ["claim_lapsed", "attempts_exhausted"]),
    "attempts_exhausted: dead": (after(LAST, q.Sweep()), "d0", {}, ["attempts_exhausted"]),
    "waiting_for_person": (after(running(), ask(1, "t0")), "d0", {}, ["waiting_for_person"]),
    "waiting_for_person elsewhere": (
        after(STARTED, ask(1, "t0"), ask(2, "t0")),
        "d0",
        {"executor_silent_ms": 9},
        ["waiting_for_person", "waiting_for_person"],
    ),
    "waiting_for_executor: not begun": (CLAIMED, "d0", {}, ["waiting_for_executor"]),
    "waiting_for_executor: silent": (STARTED, "d0", {"executor_silent_ms": 180_000}, ["waiting_for_executor"]),
    "waiting_for_executor: cancelling": (
        after(STARTED, turns.CancelTurn(T0, mode="soft")),
        "d0",
        {},
        ["waiting_for_executor"],
    ),
    "no_permit": (WAITS, "d1", {"permit_free": False}, ["no_permit"]),
    "queued_behind": (after(BUSY, start(2, Policy.QUEUE), turns.CommitTurn(T0)), "d2", {}, ["queued_behind"]),
    "many at once": (
        after(BUSY, start(2, Policy.QUEUE)),
        "d2",
        {"granted": False, "draining": True, "storage_full": True, "permit_free": False},
        ["no_authority", "draining", "storage_full", "turn_ahead", "queued_behind"],
    ),
    "many at once in mode host": (
        after(STARTED, put(1), put(2)),
        "d2",
        {"permit_free": False},
        ["mode_host_no_claim", "turn_ahead", "queued_behind"],
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_to_be_stuck_has_its_code(way: str) -> None:
    """All that is in the way and nothing else, in the order of the page."""
    world, dispatch, facts, expected = WAYS[way]
    assert codes(told(world, dispatch, **facts)) == expected
    order = [code.value for code in Stuck]
    assert expected == sorted(expected, key=order.index)


def test_every_code_has_its_way() -> None:
    """No code is left without a case, and the order is written down once more."""
    found = {code for _, _, _, expected in WAYS.values() for code in expected}
    assert found == {code.value for code in Stuck}
    order = "not_owner, no_authority, draining, storage_full, mode_host_no_claim, turn_ahead, backoff, claim_lapsed, "
    order += "attempts_exhausted, waiting_for_person, waiting_for_executor, no_permit, queued_behind"
    assert [code.value for code in Stuck] == order.split(", ")


def test_the_whole_answer_comes_from_one_state() -> None:
    """Queue, claim, runtime, turn and correlations of a started row, and no token."""
    world = after(STARTED, put(1), put(2), ask(1, "t0")).later(1_200)
    at = {RequestId("q1"): wall_after_ms(world.wall, -5_000)}
    answer = told(world, epoch=4, requested_at=at)
    assert answer == {
        "session": "s-1",
        "mode": "host",
        "dispatch": "started",
        "queue": {"position": 0, "ahead": 0, "queued": 2, "oldest_age_ms": 1_200, "dead_letters": 0},
        "claim": {
            "owner": "w1",
            "token_hint": NOW[:8],
            "generation": 1,
            "attempts": 1,
            "leased_until": wall_text(wall_after_ms(world.wall, LEASE_MS - 1_200)),
            "active": True,
        },
        "runtime": {"session_id": "s-1", "turn_id": "t0", "in_flight": True, "owner_epoch": 4, "owned_here": True},
        "turn": {"turn_id": "t0", "phase": "active", "fence_seq": None, "pending_requests": 1},
        "correlations": {"dispatch_id": "d0", "turn_id": "t0", "executor_turn_id": None, "worker": "w1"},
        "stuck": [{"code": "waiting_for_person", "detail": "request q1 open for 5000 ms"}],
    }
    assert NOW not in json.dumps(answer)


def test_a_claim_is_active_while_it_is_held_and_runs() -> None:
    """Not after its instant, not after the end; the row of the runtime has no lease and no worker."""
    assert told(CLAIMED)["claim"]["active"] and not told(CLAIMED.later(LEASE_MS))["claim"]["active"]
    ended = told(after(STARTED, q.CompleteDispatch(D0, NOW)), "d0")
    assert (ended["claim"]["active"], ended["runtime"]["in_flight"], ended["turn"]["phase"]) == (False, False, "closed")
    assert ended["turn"]["fence_seq"] is not None
    own = told(running())
    assert own["claim"]["active"] and own["claim"]["leased_until"] is None and own["claim"]["token_hint"] is None
    assert own["correlations"]["worker"] is None and own["claim"]["owner"] == "runtime"
    assert told(QUEUED)["claim"] is None and told(QUEUED)["turn"] is None


def test_asked_is_about_the_started_else_the_claimed_else_the_oldest_row() -> None:
    """By dispatch, by turn, or by what matters most; nothing to tell is null."""
    three = after(STARTED, put(1), take("b", "w2"), put(2))
    facts = Facts(three.wall)
    assert told(three)["correlations"]["dispatch_id"] == "d0"
    ended = after(three, q.CompleteDispatch(D0, NOW))
    assert told(ended)["correlations"]["dispatch_id"] == "d1"
    released = after(ended, q.ReleaseDispatch(D1, hashed("b")))
    assert told(released)["correlations"]["dispatch_id"] == "d1" and told(released)["queue"]["position"] == 1
    by_turn = explain(released.state, facts, turn="t2")
    assert by_turn is not None and by_turn["correlations"]["dispatch_id"] == "d2" and by_turn["queue"]["position"] == 2
    by_old_turn = explain(ended.state, facts, turn="t0")
    assert by_old_turn is not None and by_old_turn["dispatch"] == "completed"
    assert explain(open_session().state, facts) is None
    assert explain(three.state, facts, DispatchId("d9")) is None and explain(three.state, facts, turn="t9") is None


def test_each_turn_of_a_dispatch_leads_to_it() -> None:
    """A turn id that a lost attempt had leads to the row that goes on."""
    world = after(after(STARTED.later(LEASE_MS), take("b", "w2")), begin(0, "b", turn="fresh-b"))
    for turn in ("t0", "fresh-b"):
        answer = explain(world.state, Facts(world.wall), turn=turn)
        assert answer is not None and answer["correlations"]["turn_id"] == "fresh-b"


def test_rows_that_wait_their_backoff_are_not_ahead() -> None:
    """Ahead are those that would be served before, as the ring will serve them: its cursor stands behind normal."""
    world = after(RETRIED, put(1, priority="low"), put(2, priority="high"))
    assert told(world, "d1")["queue"]["ahead"] == 0 and told(world, "d2")["queue"]["ahead"] == 1


def queue_of(*commands: Any, wall: Any = QUEUED.wall) -> q.Queue:
    state = q.Queue()
    for n, command in enumerate(commands):
        step = decide_queue(state, command, turns.Stamp(0, wall, n * 10, 1), DEFAULT_LIMITS)  # type: ignore[arg-type]
        for seq, event in enumerate(step.events):  # type: ignore[union-attr]
            state = q.evolve_queue(state, event, n * 10 + seq + 1)
    return state


def test_a_delivery_is_explained_too() -> None:
    """A queue of its own has no session and no turn; its mode is that of who asks."""
    state = queue_of(q.EnqueueDispatch(D0, "x", target="ada"))
    answer = explain(state, Facts(QUEUED.wall))
    assert answer is not None and codes(answer) == ["mode_host_no_claim"]
    assert (answer["session"], answer["turn"], answer["correlations"]["turn_id"]) == (None, None, None)
    runtime = explain(state, Facts(QUEUED.wall, mode=Mode.RUNTIME, permit_free=False))
    assert runtime is not None and codes(runtime) == ["no_permit"]


def test_a_row_is_read_with_all_its_values() -> None:
    """What was asked, where it stands, and its instants, which survive every reload."""
    world = after(HOST, put(metadata={"a": 1}, priority="high")).later(1_000)
    world = after(world, take()).later(1_000)
    world = after(world, begin(executor_turn_id="x-1", channel="mail")).later(1_000)
    world = after(world, q.FailDispatch(D0, NOW, "timeout", "E7"))
    started = row_value(world.state.ended_rows[D0], world.wall)
    instants = [started[f"{name}_at"] for name in ("queued", "claimed", "started", "ended", "updated")]
    assert instants == [wall_text(wall_after_ms(QUEUED.wall, ms)) for ms in (0, 1_000, 2_000, 3_000, 3_000)]
    assert (started["phase"], started["reason"], started["failure_code"]) == ("failed", "timeout", "E7")
    assert (started["metadata"], started["priority"], started["turns"]) == ({"a": 1}, "high", ["t0"])
    assert (started["executor_turn_id"], started["channel"], started["keys"]) == ("x-1", "mail", ["k0"])
    assert started["input"] is None, "of an ended row the log has the input"
    waiting = row_value(QUEUED.state.rows[D0], QUEUED.wall)
    assert (waiting["input"], waiting["claim"], waiting["started_at"]) == ("input 0", None, None)
    assert NOW not in json.dumps([started, waiting])


def test_lists_come_in_pages_and_by_what_is_wanted() -> None:
    """In order of position; `next` says where to go on, and is there only when there is more."""
    commands = [q.EnqueueDispatch(DispatchId(f"d{n}"), n, target="ada" if n % 2 else None) for n in range(5)]
    state = queue_of(*commands, take("a", "w1"), take("b", "w2"))
    dead = queue_of(q.EnqueueDispatch(DispatchId("d9"), 9, attempts_max=1), take("c"))
    dead_row = queue_of(
        q.EnqueueDispatch(DispatchId("d9"), 9, attempts_max=1),
        take("c"),
        q.FailDispatch(DispatchId("d9"), hashed("c"), retry=True),
    ).ended[DispatchId("d9")]
    assert dead.rows
    rows_ = list(state.rows.values())

    def names(wanted: Filter) -> list[str]:
        return [row.dispatch for row in listed([*rows_, dead_row], wanted, DEFAULT_LIMITS)[0]]

    assert set(names(Filter())) == {"d0", "d1", "d2", "d3", "d4", "d9"}
    assert names(Filter(phase=RowPhase.CLAIMED)) == ["d0", "d1"]
    assert names(Filter(owner="w2")) == ["d1"] and names(Filter(target="ada")) == ["d1", "d3"]
    assert names(Filter(dead_letter=True)) == ["d9"] and "d9" not in names(Filter(dead_letter=False))
    seen: list[str] = []
    after_: int | None = 0
    while after_ is not None:
        page, after_ = listed(rows_, Filter(), DEFAULT_LIMITS, after_, 2)
        assert 0 < len(page) <= 2
        seen += [row.dispatch for row in page]
    assert seen == ["d0", "d1", "d2", "d3", "d4"]
    few = evolve(DEFAULT_LIMITS, list_items=1, list_items_max=3)
    assert len(listed(rows_, Filter(), few)[0]) == 1 and len(listed(rows_, Filter(), few, 0, 99)[0]) == 3


def test_the_session_of_a_sequence_is_always_explained() -> None:
    """Whatever rests in a session can be told, and the told position is the place in which it is taken."""
    world = after(HOST, *(put(n, priority=name) for n, name in enumerate(["low", "normal", "high", "normal"])))
    positions = {name: told(world, name)["queue"]["position"] for name in ("d0", "d1", "d2", "d3")}
    order = []
    for n in range(4):
        before = set(world.state.rows) - set(order)
        world = after(world, take(f"t{n}"))
        order.append(next(row.dispatch for row in world.state.rows.values() if row.dispatch in before and row.claim))
    assert [positions[name] for name in order] == [1, 2, 3, 4]
    assert rules.due(world.state) > 1
