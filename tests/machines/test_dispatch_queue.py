"""A queue of deliveries: each phase with each command, every sequence, the ring, claims and their tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from hashlib import sha256
from itertools import pairwise
from math import inf, nan
from typing import Any, Final

import pytest
from attrs import evolve, field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from machine_world import CODEC, EPOCH, WALL, kept_of

from turnlane.core.ids import DispatchId, TurnId
from turnlane.core.instants import Instant, WallInstant, wall_after_ms, wall_text
from turnlane.core.limits import DEFAULT_LIMITS, Limits
from turnlane.core.reasons import Reason, Rejected
from turnlane.core.step import Step
from turnlane.machines import claims, fairness
from turnlane.machines import dispatch as rows
from turnlane.machines import queue_state as q
from turnlane.machines import turn as turns
from turnlane.machines.dispatch import RowPhase

D0: Final = DispatchId("d0")
LEASE_MS: Final = DEFAULT_LIMITS.claim_lease_ms


def hashed(token: str) -> str:
    return sha256(token.encode()).hexdigest()


@frozen
class Place:
    """A queue, its log, and the wall clock."""

    state: q.Queue = q.Queue()
    log: tuple[Any, ...] = ()
    wall: WallInstant = WALL
    limits: Limits = DEFAULT_LIMITS
    tokens: tuple[str, ...] = field(default=())
    """All tokens ever given, newest last."""

    def later(self, ms: int) -> Place:
        return evolve(self, wall=wall_after_ms(self.wall, ms))

    def row(self, dispatch: str = D0) -> rows.Row | None:
        name = DispatchId(dispatch)
        return self.state.rows.get(name) or self.state.ended.get(name)

    def events(self, *kinds: type) -> list[Any]:
        return [event for event in self.log if isinstance(event, kinds)]


def advance(place: Place, command: Any) -> tuple[Any, Place]:
    """Decide and fold. A no leaves the state byte-equal; the fold over the records is the fold over the events."""
    before = CODEC.encode_state(place.state)
    step = claims.decide_queue(
        place.state, command, turns.Stamp(Instant(0), place.wall, len(place.log), EPOCH), place.limits
    )
    assert CODEC.encode_state(place.state) == before, "decide changed the state"
    if isinstance(step, Rejected):
        assert step.message
        return step, place
    state, folded, log = place.state, place.state, list(place.log)
    for event in step.events:
        log.append(event)
        state = q.evolve_queue(state, event, len(log))
        folded = q.evolve_queue(folded, CODEC.decode(kept_of(event, len(log))), len(log))
        if isinstance(event, rows.DispatchEvent):
            assert event.at == wall_text(claims.moment(place.state.latest, place.wall))
    assert CODEC.encode_state(folded) == CODEC.encode_state(state)
    assert CODEC.decode_state(CODEC.encode_state(state), "dispatch") == state
    tokens = place.tokens
    if isinstance(command, q.ClaimDispatch) and step.events:
        tokens = (*tokens, command.token_sha256)
    if step.events:
        lapse = rows.next_lapse(state.rows)
        if lapse != rows.next_lapse(place.state.rows):
            timer = turns.DropTimer("lapse") if lapse is None else turns.ArmTimer("lapse", at_wall=lapse)
            assert step.effects == (timer,), "one timer for the earliest lapse"
    return step, evolve(place, state=state, log=tuple(log), tokens=tokens)


def after(place: Place, *commands: Any) -> Place:
    for command in commands:
        step, place = advance(place, command)
        assert isinstance(step, Step), step
    return place


def put(n: int | str = 0, **more: Any) -> q.EnqueueDispatch:
    return q.EnqueueDispatch(DispatchId(f"d{n}"), more.pop("input", f"input {n}"), **more)


def take(token: str = "now", owner: str = "w1", **more: Any) -> q.ClaimDispatch:
    return q.ClaimDispatch(owner, hashed(token), **more)


NOW: Final = hashed("now")
"""The hash of the token that holds d0 in the places below."""

QUEUED: Final = after(Place(), put())
CLAIMED: Final = after(QUEUED, take("old", "w0"), q.ReleaseDispatch(D0, hashed("old")), take(key="c1"))
STARTED: Final = after(CLAIMED, q.StartDispatch(D0, NOW))
LAST: Final = after(Place(), put(attempts_max=1), take(), q.StartDispatch(D0, NOW))
PLACES: Final[Mapping[str, Place]] = {
    "absent": Place(),
    "queued": QUEUED,
    "claimed": CLAIMED,
    "lapsed": CLAIMED.later(LEASE_MS),
    "started": STARTED,
    "lost": STARTED.later(LEASE_MS),
    "completed": after(STARTED, q.CompleteDispatch(D0, NOW)),
    "failed": after(STARTED, q.FailDispatch(D0, NOW)),
    "cancelled": after(STARTED, q.CancelDispatch(D0, NOW)),
    "dead": after(LAST.later(LEASE_MS), q.Sweep()),
}
OLD: Final = hashed("old")

COMMANDS: Final[Mapping[str, Any]] = {
    "enqueue": put(),
    "claim": take("new", "w2"),
    "claim again": take("new", key="c1"),
    "claim, key of another": take("new", "w2", key="c1"),
    "renew": q.RenewClaim(D0, NOW),
    "renew bare": q.RenewClaim(D0),
    "renew old": q.RenewClaim(D0, OLD),
    "start": q.StartDispatch(D0, NOW),
    "start bare": q.StartDispatch(D0),
    "start old": q.StartDispatch(D0, OLD),
    "complete": q.CompleteDispatch(D0, NOW),
    "complete bare": q.CompleteDispatch(D0),
    "complete old": q.CompleteDispatch(D0, OLD),
    "fail": q.FailDispatch(D0, NOW),
    "fail retry": q.FailDispatch(D0, NOW, retry=True),
    "fail bare": q.FailDispatch(D0),
    "fail old": q.FailDispatch(D0, OLD),
    "release": q.ReleaseDispatch(D0, NOW),
    "release bare": q.ReleaseDispatch(D0),
    "release old": q.ReleaseDispatch(D0, OLD),
    "cancel": q.CancelDispatch(D0, NOW),
    "cancel bare": q.CancelDispatch(D0),
    "cancel old": q.CancelDispatch(D0, OLD),
    "cancel any": q.CancelDispatch(D0, any_claim=True),
    "withdraw": q.WithdrawDispatch(D0, 2),
    "withdraw old": q.WithdrawDispatch(D0, 1),
    "recover": q.RecoverDispatch(D0),
    "recover fail": q.RecoverDispatch(D0, "fail"),
    "redrive": q.RedriveDispatch(D0, DispatchId("d9")),
    "sweep": q.Sweep(),
    "defer": q.DeferDelivery(D0, "leader_notification_deferred"),
    "mark notified": q.MarkDelivery(D0, RowPhase.STARTED),
    "mark delivered": q.MarkDelivery(D0, RowPhase.COMPLETED),
    "mark failed": q.MarkDelivery(D0, RowPhase.FAILED),
    "remove": q.RemoveRecords((D0,)),
    "other": object(),
}

CELLS: Final = """
                absent  queued  claimed    lapsed     started   lost      completed   failed   cancelled   dead
enqueue         queued  in_use  in_use     in_use     in_use    in_use    in_use      in_use   in_use      in_use
claim           absent= claimed claimed=   claimed    started=  claimed   completed=  failed=  cancelled=  failed=
claim again     absent= claimed claimed    claimed    started=  claimed   completed=  failed=  cancelled=  failed=
claim, key of another absent= claimed claimed= claimed started= claimed   completed=  failed=  cancelled=  failed=
renew           unknown waits   claimed    claimed    started   started   ended       ended    ended       ended
renew bare      unknown waits   token      token      token     token     ended       ended    ended       ended
renew old       unknown waits   lost       lost       lost      lost      ended       ended    ended       ended
start           unknown waits   started    started    started   started   completed=  failed=  cancelled=  failed=
start bare      unknown waits   token      token      token     token     completed=  failed=  cancelled=  failed=
start old       unknown waits   lost       lost       lost      lost      completed=  failed=  cancelled=  failed=
complete        unknown waits   completed  completed  completed completed completed=  ended    ended       ended
complete bare   unknown waits   token      token      token     token     completed=  ended    ended       ended
complete old    unknown waits   lost       lost       lost      lost      completed=  ended    ended       ended
fail            unknown waits   failed     failed     failed    failed    ended       failed=  ended       failed=
fail retry      unknown waits   queued     queued     queued    queued    ended       failed=  ended       failed=
fail bare       unknown failed  token      token      token     token     ended       failed=  ended       failed=
fail old        unknown waits   lost       lost       lost      lost      ended       failed=  ended       failed=
release         unknown waits   queued     queued     illegal   illegal   ended       ended    ended       ended
release bare    unknown waits   token      token      token     token     ended       ended    ended       ended
release old     unknown waits   lost       lost       lost      lost      ended       ended    ended       ended
cancel          unknown cancelled cancelled cancelled cancelled cancelled ended       ended    cancelled=  ended
cancel bare     unknown cancelled token    token      token     token     ended       ended    cancelled=  ended
cancel old      unknown cancelled lost     lost       lost      lost      ended       ended    cancelled=  ended
cancel any      unknown cancelled cancelled cancelled cancelled cancelled ended       ended    cancelled=  ended
withdraw        unknown waits   queued     queued     queued    queued    ended       ended    ended       ended
withdraw old    unknown waits   lost       lost       lost      lost      ended       ended    ended       ended
recover         unknown waits   queued     queued     queued    queued    ended       ended    ended       ended
recover fail    unknown waits   failed     failed     failed    failed    ended       ended    ended       ended
redrive         unknown illegal illegal    illegal    illegal   illegal   illegal     illegal  illegal     failed
sweep           absent= queued= claimed=   claimed=   started=  queued    completed=  failed=  cancelled=  failed=
defer           absent= queued  claimed=   claimed=   started=  started=  completed=  failed=  cancelled=  failed=
mark notified   unknown started started    started    move      move      move        move     move        move
mark delivered  unknown move    move       move       completed completed move        move     move        move
mark failed     unknown failed  failed     failed     failed    failed    move        move     move        move
remove          unknown move    move       move       move      move      absent      absent   absent      absent
other           illegal illegal illegal    illegal    illegal   illegal   illegal     illegal  illegal     illegal
"""
"""The phase of d0 after the command, with `=` where nothing is kept; or the no."""

NO: Final = {
    "in_use": Reason.ID_IN_USE,
    "unknown": Reason.UNKNOWN_DISPATCH,
    "waits": Reason.NOT_CLAIMED,
    "token": Reason.CLAIM_TOKEN_REQUIRED,
    "lost": Reason.CLAIM_LOST,
    "ended": Reason.ALREADY_ENDED,
    "illegal": Reason.ILLEGAL_IN_PHASE,
    "move": Reason.INVALID_TRANSITION,
}


def cells() -> list[tuple[str, str, str]]:
    header, *lines = (line for line in CELLS.splitlines() if line)
    names = sorted(COMMANDS, key=len, reverse=True)
    found = []
    for line in lines:
        name = next(name for name in names if line.startswith(f"{name} "))
        words = line.removeprefix(name).split()
        found += [(name, place, word) for place, word in zip(header.split(), words, strict=True)]
    return found


def test_the_table_names_every_command_and_phase() -> None:
    """There is one cell for each command and each phase, those with a lapsed lease apart."""
    assert Counter((name, place) for name, place, _ in cells()) == Counter(
        (name, place) for name in COMMANDS for place in PLACES
    )


@pytest.mark.parametrize(("name", "place", "expected"), cells())
def test_every_pair_of_phase_and_command_gives_its_cell(name: str, place: str, expected: str) -> None:
    """The phase, whether something was kept, or the reason of the no."""
    answer, later = advance(PLACES[place], COMMANDS[name])
    if expected in NO:
        assert isinstance(answer, Rejected) and answer.reason is NO[expected], answer
        return
    assert isinstance(answer, Step), answer
    row = later.row()
    phase = "absent" if row is None else row.phase.value
    assert phase + ("" if answer.events else "=") == expected


def test_a_repeated_end_says_whose_it_was() -> None:
    """The same end again changes nothing, needs no token, and says whether the token given ended it."""
    for phase, command in (
        ("completed", q.CompleteDispatch),
        ("failed", q.FailDispatch),
        ("cancelled", q.CancelDispatch),
    ):
        for token, yours in ((NOW, True), (OLD, False), (None, False)):
            step, _ = advance(PLACES[phase], command(D0, token))
            assert step.answer == q.RowAnswer(D0, phase, duplicate=True, yours=yours)
    step, _ = advance(PLACES["dead"], q.FailDispatch(D0))
    assert step.answer.duplicate


def test_what_memory_forgot_is_answered_from_the_store() -> None:
    """With the end that the store has, a forgotten row is answered as a remembered one."""
    ended = PLACES["completed"].row()
    for command in (q.CompleteDispatch, q.RenewClaim, q.StartDispatch):
        known, _ = advance(PLACES["completed"], command(D0, NOW))
        told, _ = advance(Place(), command(D0, NOW, known_end=ended))
        assert told == known
    refused, _ = advance(Place(), q.EnqueueDispatch(D0, "x", dispatch_known=True))
    assert refused.reason is Reason.ID_IN_USE


# every sequence

Choice = Callable[[Place, int], tuple[Any, Place]]


def held(place: Place, newest: int = 1) -> str:
    return place.tokens[-newest] if len(place.tokens) >= newest else hashed("none")


def on(command: Callable[[Place, int], Any], ms: int = 1) -> Choice:
    return lambda place, n: advance(place.later(ms), command(place, n))


CHOICES: Final[Mapping[str, Choice]] = {
    "claim": on(lambda place, n: take(f"t{n}", f"w{n}", key="same")),
    "claim later": on(lambda place, n: take(f"t{n}", f"w{n}"), LEASE_MS),
    "start": on(lambda place, n: q.StartDispatch(D0, held(place))),
    "renew": on(lambda place, n: q.RenewClaim(D0, held(place), 60_000)),
    "complete": on(lambda place, n: q.CompleteDispatch(D0, held(place))),
    "complete old": on(lambda place, n: q.CompleteDispatch(D0, held(place, 2))),
    "retry": on(lambda place, n: q.FailDispatch(D0, held(place), retry=True)),
    "fail": on(lambda place, n: q.FailDispatch(D0, held(place))),
    "release": on(lambda place, n: q.ReleaseDispatch(D0, held(place))),
    "cancel": on(lambda place, n: q.CancelDispatch(D0)),
    "withdraw": on(lambda place, n: q.WithdrawDispatch(D0, len(place.tokens))),
    "recover": on(lambda place, n: q.RecoverDispatch(D0)),
    "sweep": on(lambda place, n: q.Sweep(), 600_000),
}

MOVES: Final[Mapping[str | None, Mapping[type, str]]] = {
    None: {rows.DispatchQueued: "queued"},
    "queued": {
        rows.DispatchClaimed: "claimed",
        rows.DispatchDeferred: "queued",
        rows.DispatchFailed: "failed",
        rows.DispatchCancelled: "cancelled",
    },
    "claimed": {
        rows.DispatchClaimed: "claimed",
        rows.DispatchRenewed: "claimed",
        rows.DispatchStarted: "started",
        rows.DispatchRequeued: "queued",
        rows.DispatchCompleted: "completed",
        rows.DispatchFailed: "failed",
        rows.DispatchCancelled: "cancelled",
    },
    "started": {
        rows.DispatchClaimed: "claimed",
        rows.DispatchRenewed: "started",
        rows.DispatchRequeued: "queued",
        rows.DispatchCompleted: "completed",
        rows.DispatchFailed: "failed",
        rows.DispatchCancelled: "cancelled",
    },
    "completed": {},
    "failed": {},
    "cancelled": {},
}
"""The moves of the page, written down a second time on purpose. Nothing leads out of an end."""


def judge(place: Place) -> None:
    """The laws of a log of deliveries, and that no old token holds anything."""
    phases: dict[str, str] = {}
    generations: Counter[str] = Counter()
    instants = [event.at for event in place.log]
    assert instants == sorted(instants), "the kept instants never go back"
    for event in place.log:
        if isinstance(event, rows.DispatchRemoved):
            continue
        phases[event.dispatch] = MOVES[phases.get(event.dispatch)][type(event)]
        if isinstance(event, rows.DispatchClaimed):
            assert event.generation == generations[event.dispatch] + 1, "each claim raises the generation by one"
            generations[event.dispatch] = event.generation
    known = {**place.state.rows, **place.state.ended}
    assert {dispatch: row.phase.value for dispatch, row in known.items()} == phases
    for dispatch, row in place.state.rows.items():
        assert row.generation == generations[dispatch] and row.attempts <= row.attempts_max
        assert (row.claim is not None) == (row.phase is not RowPhase.QUEUED)
        if row.claim is None or not row.claim.token_sha256:
            continue
        for token in place.tokens:
            current = token == row.claim.token_sha256
            answer, _ = advance(place, q.RenewClaim(dispatch, token))
            assert isinstance(answer, Step) if current else answer.reason is Reason.CLAIM_LOST


def test_every_sequence_of_commands_gives_a_legal_log() -> None:
    """After any four commands to a claimed row, and any three to a fresh one, log and state obey the laws."""
    seen: set[str] = set()

    def visit(place: Place, depth: int) -> int:
        judge(place)
        row = place.row()
        assert row is not None
        seen.add(row.phase.value + (" dead" if row.end is not None and row.end.dead_letter else ""))
        if not depth:
            return 1
        return 1 + sum(visit(choice(place, 10 * depth)[1], depth - 1) for choice in CHOICES.values())

    assert visit(after(Place(), put(attempts_max=2)), 3) == sum(len(CHOICES) ** n for n in range(4))
    assert visit(after(Place(), put(attempts_max=2), take("t0", "w0", key="same")), 4)
    assert seen == {"queued", "claimed", "started", "completed", "failed", "failed dead", "cancelled"}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(sorted(CHOICES)),
            st.tuples(st.sampled_from(fairness.PRIORITIES), st.sampled_from(["requeue", "fail"])),
        ),
        max_size=30,
    )
)
def test_any_long_history_gives_a_legal_log(steps: list[Any]) -> None:
    """The same for long histories over several rows."""
    place = after(Place(), put())
    for n, step in enumerate(steps, 1):
        if isinstance(step, tuple):
            _, place = advance(place, put(n, priority=step[0], on_lost=step[1]))
        else:
            _, place = CHOICES[step](place, n)
    judge(place)


# order


def drained(place: Place) -> list[str]:
    """Who is served, one after the other, until nothing waits."""
    order = []
    for n in range(10_000):
        step, place = advance(place, take(f"t{n}"))
        if step.answer.claim is None:
            break
        order.append(str(step.answer.claim.dispatch))
    return order


def model(priorities: list[str]) -> list[str]:
    """The ring, said another way: a list a class, seven slots in a row, over and over."""
    lists = {name: [f"d{n}" for n, priority in enumerate(priorities) if priority == name] for name in fairness.SLOTS}
    order: list[str] = []
    while any(lists.values()):
        for name in ("immediate", "high", "high", "high", "normal", "normal", "low"):
            order += [lists[name].pop(0)] if lists[name] else []
    return order


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(fairness.PRIORITIES), max_size=40))
def test_rows_are_served_by_the_ring_and_in_order_within_a_priority(priorities: list[str]) -> None:
    """The order is that of a plain model; the item at place k of its class waits at most 7(k+1)-1 others."""
    place = after(Place(), *(put(n, priority=priority) for n, priority in enumerate(priorities)))
    order = drained(place)
    assert order == model(priorities)
    everything = rows.served(place.state.rows, lambda row: True, place.state.ring)
    assert [row.dispatch for row in everything] == order, "the order that is told is the order that is served"
    places: Counter[str] = Counter()
    for n, priority in enumerate(priorities):
        assert order.index(f"d{n}") <= 7 * (places[priority] + 1) - 1
        places[priority] += 1


def test_the_cursor_of_the_ring_survives_a_reload() -> None:
    """Between two claims the place in the round lies in the log: a fold goes on where the queue was."""
    priorities = [*fairness.PRIORITIES] * 6
    place = after(Place(), *(put(n, priority=priority) for n, priority in enumerate(priorities)))
    order = []
    for n in range(len(priorities)):
        folded = q.Queue()
        for seq, event in enumerate(place.log, 1):
            folded = q.evolve_queue(folded, event, seq)
        fresh = evolve(place, state=folded)
        assert fresh.state == place.state
        step, place = advance(fresh, take(f"t{n}"))
        order.append(step.answer.claim.dispatch)
    assert order == model(priorities)


def test_the_order_is_exact_at_every_length() -> None:
    """Among a thousand rows the last one of another class is found, and a requeued row keeps its place."""
    place = Place()
    for n in range(1_000):
        event = rows.DispatchQueued(DispatchId(f"d{n}"), "delivery", None, "", n, "normal", 3, "requeue", "queue")
        place = evolve(place, state=q.evolve_queue(place.state, event, n + 1))
    place = after(place, put("high", priority="high"))
    first, place = advance(place, take("a"))
    assert first.answer.claim.dispatch == "dhigh"
    second, place = advance(place, take("b"))
    assert second.answer.claim.dispatch == "d0"
    place = after(place, q.ReleaseDispatch(D0, hashed("b")))
    third, place = advance(place, take("c"))
    assert third.answer.claim.dispatch == "d0", "given back, it goes before newer ones"


def test_a_cancelled_row_costs_no_place_in_the_round() -> None:
    """Taking a row out does not move the cursor."""
    place = after(Place(), put(0, priority="high"), put(1, priority="high"), take(), q.CancelDispatch(DispatchId("d1")))
    assert place.state.ring == 2, "one of the three slots of high was served"


# claims and leases


def test_a_claim_raises_the_generation_and_kills_the_old_token() -> None:
    """The lapsed holder may still complete until somebody else claims; then its token is worth nothing."""
    lapsed = PLACES["lapsed"]
    step, _ = advance(lapsed, q.CompleteDispatch(D0, NOW))
    assert step.answer.phase == "completed"
    step, taken = advance(lapsed, take("new", "w2"))
    claim = step.answer.claim
    assert (claim.generation, claim.attempts, claim.owner, claim.duplicate) == (3, 2, "w2", False)
    refused, _ = advance(taken, q.CompleteDispatch(D0, NOW))
    assert refused.reason is Reason.CLAIM_LOST
    step, _ = advance(taken, q.CompleteDispatch(D0, hashed("new")))
    assert step.answer.phase == "completed"


def test_a_repeated_claim_gives_the_same_row_under_a_new_token() -> None:
    """An answer that was lost costs no attempt: new token, new generation; the old token is dead."""
    first, place = advance(QUEUED, take("a", key="c"))
    again, place = advance(place, take("b", key="c"))
    one, two = first.answer.claim, again.answer.claim
    assert (two.dispatch, two.attempts, two.generation) == (one.dispatch, one.attempts, one.generation + 1)
    assert two.duplicate and not one.duplicate and place.state.ring == 5
    refused, _ = advance(place, q.StartDispatch(D0, hashed("a")))
    assert refused.reason is Reason.CLAIM_LOST
    fresh, _ = advance(after(place, q.StartDispatch(D0, hashed("b"))), take("c", key="c"))
    assert fresh.answer.claim is None, "a started row is not claimed again"


def test_no_event_and_no_answer_holds_a_token() -> None:
    """Only the hash is kept, and the answer leaves the token to whoever made it."""
    step, place = advance(QUEUED, take("very secret"))
    text = b"".join(kept_of(event, 1).payload for event in place.log) + CODEC.encode_answer(step.answer)
    assert b"very secret" not in text and hashed("very secret").encode() in text


@pytest.mark.parametrize(
    ("wanted", "given_ms"),
    [(None, 15_000), (1, 1_000), (-5, 1_000), (2_500.9, 2_500), (10**9, 600_000), (10**400, 600_000), (1_000, 1_000)],
)
def test_a_lease_is_floored_and_clamped(wanted: Any, given_ms: int) -> None:
    """The answer says what is in effect."""
    step, _ = advance(QUEUED, take(lease_ms=wanted))
    claim = step.answer.claim
    assert claim.lease_ms == given_ms and claim.leased_until == wall_text(wall_after_ms(WALL, given_ms))


@pytest.mark.parametrize("wanted", [nan, inf, -inf, True, "15000"])
def test_a_lease_that_is_no_number_is_refused(wanted: Any) -> None:
    """Anything but a finite number is a mistake of the caller, at each call that takes a lease."""
    for place, command in (
        (QUEUED, take(lease_ms=wanted)),
        (CLAIMED, q.RenewClaim(D0, NOW, wanted)),
        (CLAIMED, q.StartDispatch(D0, NOW, wanted)),
    ):
        answer, _ = advance(place, command)
        assert answer.reason is Reason.INVALID_PARAMS and answer.data["path"] == "params.lease_ms"


def test_a_renewal_never_shortens_a_lease() -> None:
    """Renewed or started with a shorter one, the lease runs as long as before."""
    place = after(QUEUED, take(lease_ms=60_000))
    for command in (q.RenewClaim(D0, NOW, 1_000), q.StartDispatch(D0, NOW, 1_000)):
        step, place = advance(place, command)
        assert step.answer.leased_until == wall_text(wall_after_ms(WALL, 60_000))
    step, place = advance(place.later(59_000), q.RenewClaim(D0, NOW))
    assert step.answer.leased_until == wall_text(wall_after_ms(WALL, 119_000)) and step.answer.lease_ms == 60_000


@pytest.mark.parametrize("ask", [q.RenewClaim, q.StartDispatch])
@pytest.mark.parametrize("claimed_ms", [2_000, 15_000, 60_000])
def test_who_asks_for_no_length_gets_that_of_the_claim(ask: Any, claimed_ms: int) -> None:
    """Neither longer nor shorter than the claim got; a renewal for other lengths in between does not count."""
    place = after(QUEUED, take(lease_ms=claimed_ms))
    for _ in range(2):
        step, place = advance(place.later(1_000), ask(D0, NOW))
        assert step.answer.lease_ms == claimed_ms
        assert step.answer.leased_until == wall_text(wall_after_ms(place.wall, claimed_ms))
        place = after(place, q.RenewClaim(D0, NOW, claimed_ms + 500))


@pytest.mark.parametrize("ask", [q.RenewClaim, q.StartDispatch])
def test_an_answer_says_the_lease_that_is_in_effect(ask: Any) -> None:
    """From now to `leased_until`, also where that is more than was asked for."""
    place = after(QUEUED, take(lease_ms=60_000))
    step, _ = advance(place.later(10_000), ask(D0, NOW, 1_000))
    assert (step.answer.leased_until, step.answer.lease_ms) == (wall_text(wall_after_ms(WALL, 60_000)), 50_000)


def test_a_lease_runs_out_at_its_instant_and_not_before() -> None:
    """Inclusive: at `leased_until` itself the row is claimable; before, the answer says when."""
    for place in (CLAIMED, STARTED):
        early, _ = advance(place.later(LEASE_MS - 1), take("new", "w2"))
        assert early.answer == q.ClaimAnswer(None, wall_text(wall_after_ms(WALL, LEASE_MS)))
        due, _ = advance(place.later(LEASE_MS), take("new", "w2"))
        assert due.answer.claim is not None


def test_a_clock_that_steps_back_revives_no_claim() -> None:
    """Judged is by the greatest instant that the stream keeps, in leases and in backoffs."""
    place = after(after(Place(), put(0), put(1), take()).later(LEASE_MS), put(2))
    back = evolve(place, wall=WALL)
    step, _ = advance(back, take("new", "w2"))
    assert step.answer.claim.dispatch == "d0", "its lease is over, whatever the clock says now"
    step, _ = advance(back, q.StartDispatch(D0, NOW))
    assert step.answer.leased_until == wall_text(wall_after_ms(WALL, 2 * LEASE_MS))


def test_a_started_row_that_is_not_to_be_requeued_waits_for_the_sweep() -> None:
    """With `on_lost: fail` nobody claims it again; the sweep ends it, and the code says why."""
    place = after(Place(), put(on_lost="fail"), take(), q.StartDispatch(D0, NOW)).later(LEASE_MS)
    none, _ = advance(place, take("new", "w2"))
    assert none.answer == q.ClaimAnswer()
    row = after(place, q.Sweep()).row()
    assert row is not None and row.end is not None
    assert (row.phase, row.end.failure_code, row.end.dead_letter) == (RowPhase.FAILED, "claim_lost", False)


@pytest.mark.parametrize(("begun", "on_lost"), [(False, "requeue"), (False, "fail"), (True, "requeue")])
def test_the_last_attempt_that_lapses_is_a_dead_letter(begun: bool, on_lost: str) -> None:
    """Claimed or started: the sweep ends it as exhausted, and nobody can claim it before."""
    place = after(Place(), put(attempts_max=1, on_lost=on_lost), take())
    place = after(place, q.StartDispatch(D0, NOW)) if begun else place
    assert rows.next_lapse(place.state.rows) == wall_after_ms(WALL, LEASE_MS)
    for ms in (0, LEASE_MS):
        none, _ = advance(place.later(ms), take("new", "w2"))
        assert none.answer == q.ClaimAnswer(), "it is nothing to wait for"
    swept = after(place.later(LEASE_MS), q.Sweep())
    row = swept.row()
    assert row is not None and row.end is not None and row.end.dead_letter
    assert row.end.reason == row.end.failure_code == Reason.ATTEMPTS_EXHAUSTED.value
    assert rows.next_lapse(swept.state.rows) is None


def test_a_sweep_that_comes_too_early_looks_again() -> None:
    """The timer fired while the clock was behind: nothing is kept, and the timer is set anew."""
    step, _ = advance(STARTED, q.Sweep())
    assert step.events == () and step.effects == (turns.ArmTimer("lapse", at_wall=wall_after_ms(WALL, LEASE_MS)),)


def test_a_retry_waits_and_is_charged_and_a_release_is_not() -> None:
    """Backoff grows with the attempts that were used; what is given back goes at once and costs nothing."""
    place = QUEUED
    for attempt in (1, 2):
        place = after(place, take(f"t{attempt}"))
        step, place = advance(place, q.FailDispatch(D0, hashed(f"t{attempt}"), "timeout", retry=True))
        wait_ms = rows.backoff_ms(D0, attempt, DEFAULT_LIMITS)
        assert step.answer.next_at == wall_text(wall_after_ms(place.wall, wait_ms))
        none, _ = advance(place, take("no"))
        assert none.answer == q.ClaimAnswer(None, step.answer.next_at)
        place = place.later(wait_ms)
        released = after(place, take("r"), q.ReleaseDispatch(D0, hashed("r")))
        row = released.row()
        assert row is not None and (row.attempts, row.not_before) == (attempt, 0)
    step, place = advance(after(place, take("t3")), q.FailDispatch(D0, hashed("t3"), "timeout", "E7", retry=True))
    row = place.row()
    assert row is not None and row.end is not None
    assert (row.end.reason, row.end.failure_code, row.end.dead_letter) == ("timeout", "E7", True)


@pytest.mark.parametrize("retry", [True, False])
def test_a_delivery_that_fails_before_anybody_had_it_is_no_dead_letter(retry: bool) -> None:
    place = after(QUEUED, q.FailDispatch(D0, None, "gone", retry=retry))
    row = place.row()
    assert row is not None and row.end is not None
    assert (row.phase, row.attempts, row.end.dead_letter) == (RowPhase.FAILED, 0, False)


def test_a_worker_claims_only_while_it_is_available() -> None:
    """It runs, is not stalled, and has room for one more; the row stays where it is."""
    most = DEFAULT_LIMITS.worker_claims_max
    for worker in (q.Holder("stopping", False, 0), q.Holder("running", True, 0), q.Holder("running", False, most)):
        refused, _ = advance(QUEUED, take(worker=worker))
        assert refused.reason is Reason.WORKER_NOT_AVAILABLE and refused.data["status"] == worker.status
    step, place = advance(QUEUED, take(worker=q.Holder("running", False, most - 1), key="c"))
    assert step.answer.claim is not None
    again, _ = advance(place, take("b", key="c", worker=q.Holder("stopping", False, most)))
    assert again.answer.claim.duplicate, "what it holds already it is told again"


def test_a_withdrawal_says_why_and_uses_up_a_started_attempt_only() -> None:
    """The worker is stopped: a claim goes back uncharged, started work goes the way of lost work."""
    for place, attempts in ((CLAIMED, 0), (STARTED, 1)):
        requeued = after(place, q.WithdrawDispatch(D0, 2)).log[-1]
        assert (requeued.why, requeued.attempts) == (Reason.WORKER_STOPPED.value, attempts)
        assert (requeued.not_before is None) is (attempts == 0)


def test_what_is_put_off_without_an_instant_waits_for_its_backoff_as_before() -> None:
    """A target that cannot be reached says nothing of when the next attempt may be."""
    place = after(STARTED, q.FailDispatch(D0, NOW, retry=True))
    backoff = place.state.rows[D0].not_before
    assert backoff > 0
    place = after(place, q.DeferDelivery(D0, "leader_notification_deferred"))
    assert place.state.rows[D0].not_before == backoff


def test_an_unreachable_target_is_not_handed_out() -> None:
    """Who cannot be brought anything is skipped, and others are served meanwhile."""
    place = after(Place(), put(0, target="leader"), put(1, target="ada"))
    step, place = advance(place, take(unreachable=frozenset({"leader"})))
    assert step.answer.claim.dispatch == "d1"
    none, _ = advance(after(place, q.CompleteDispatch(DispatchId("d1"), NOW)), take(unreachable=frozenset({"leader"})))
    assert none.answer == q.ClaimAnswer(), "what is due already does not become due"


# a row that comes


@pytest.mark.parametrize(
    ("path", "command"),
    [
        ("priority", put(priority="urgent")),
        ("on_lost", put(on_lost="drop")),
        ("attempts_max", put(attempts_max=0)),
        ("attempts_max", put(attempts_max=DEFAULT_LIMITS.dispatch_attempts_max + 1)),
        ("target", put(target="x" * (DEFAULT_LIMITS.target_chars_max + 1))),
        ("key", put(key="")),
        ("turn", put(turn=TurnId("t0"))),
        ("key", put(key="\n")),
        ("owner", take(owner="")),
        ("action", q.RecoverDispatch(D0, "forget")),
    ],
)
def test_a_value_outside_of_its_range_is_refused_with_its_path(path: str, command: Any) -> None:
    """What a row may hold is bounded, and the no names the member."""
    answer, _ = advance(Place(), command)
    assert answer.reason is Reason.INVALID_PARAMS and answer.data["path"] == f"params.{path}"


def test_a_full_queue_refuses_for_now() -> None:
    """Above `dispatches_open_max` open rows a new one is refused; ended ones make room."""
    small = evolve(Place(), limits=evolve(DEFAULT_LIMITS, dispatches_open_max=2))
    full = after(small, put(0), put(1))
    refused, _ = advance(full, put(2))
    assert refused.reason is Reason.OVERLOADED and refused.reason.temporary and refused.retry_after_ms
    assert after(full, q.CancelDispatch(D0), put(2)).row("d2")


def test_an_enqueued_row_is_told_its_place() -> None:
    """The answer counts those that wait; everything that was given is kept."""
    given_ = put(3, key="k", target="ada", metadata={"a": [1]}, priority="low", attempts_max=7, on_lost="fail")
    step, place = advance(after(Place(), put(0), put(1), take()), given_)
    assert step.answer == q.EnqueueAnswer(DispatchId("d3"), "queued", 2)
    (event,) = step.events
    assert (event.kind, event.turn, event.key, event.input) == ("delivery", None, "k", "input 3")
    row = place.row("d3")
    assert row is not None and row.wish == rows.Wish("ada", {"a": [1]}, None, wall_text(WALL))
    assert (row.priority, row.attempts_max, row.on_lost) == ("low", 7, "fail")


def test_a_dead_letter_is_redriven_as_a_new_dispatch() -> None:
    """Same input and wish, a row of its own that says where it comes from; the dead one stays dead."""
    place = after(Place(), put(attempts_max=1, target="ada", metadata=1, priority="high"), take())
    dead = after(place.later(LEASE_MS), q.Sweep())
    step, redriven = advance(dead, q.RedriveDispatch(D0, DispatchId("d9"), "again"))
    fresh, old = redriven.row("d9"), redriven.row()
    assert fresh is not None and old is not None and old == dead.row()
    assert (fresh.input, fresh.priority, fresh.parts[0].key) == ("input 0", "high", "again")
    assert (fresh.wish.redrive_of, fresh.wish.target, fresh.wish.metadata) == (D0, "ada", 1)
    assert (fresh.attempts, fresh.phase, step.answer.dispatch) == (0, RowPhase.QUEUED, "d9")
    forgotten, _ = advance(Place(), q.RedriveDispatch(D0, DispatchId("d9"), known_end=old))
    assert forgotten.events[0].input == "input 0"


# memory and the contract


def test_old_ends_are_forgotten_but_still_counted() -> None:
    """At most `dispatches_ended_max` ended rows are remembered, without their inputs."""
    few = evolve(DEFAULT_LIMITS, dispatches_ended_max=2)
    place = Place()
    for n in range(4):
        place = after(place, put(n), q.CancelDispatch(DispatchId(f"d{n}")))
    bounded = q.bounded_queue(place.state, few)
    assert list(bounded.ended) == ["d2", "d3"] and bounded.cancelled == 4
    assert all(row.input is None for row in bounded.ended.values())
    assert q.bounded_queue(bounded, few) is bounded


def test_records_are_removed_all_or_none() -> None:
    """Open, unknown, empty or doubled ids refuse the whole; a repetition removes nothing."""
    place = after(PLACES["completed"], put(1), q.CancelDispatch(DispatchId("d1")), put(2))
    d1, d2, d3 = (DispatchId(f"d{n}") for n in (1, 2, 3))
    for wanted, reason in (
        ((), Reason.INVALID_PARAMS),
        ((D0, D0), Reason.INVALID_PARAMS),
        ((D0, DispatchId("")), Reason.INVALID_PARAMS),
        ((D0, d2), Reason.INVALID_TRANSITION),
        ((D0, d3), Reason.UNKNOWN_DISPATCH),
    ):
        refused, _ = advance(place, q.RemoveRecords(wanted))
        assert refused.reason is reason
    assert (place.state.completed, place.state.cancelled) == (1, 1)
    step, removed = advance(place, q.RemoveRecords((D0, d1)))
    assert step.answer.removed == 2 and step.events[0].request_ids == [D0, d1]
    assert (removed.state.completed, removed.state.cancelled, len(removed.state.ended)) == (0, 0, 0)
    again, _ = advance(removed, q.RemoveRecords((D0, d1), {D0: None, d1: None}))
    assert again.events == () and again.answer.removed == 0
    forgotten = evolve(place, state=evolve(place.state, ended={}))
    old = {D0: PLACES["completed"].row()}
    assert after(forgotten, q.RemoveRecords((D0,), old)).state.completed == 0


def test_a_mark_takes_the_place_of_a_worker_and_does_not_lapse() -> None:
    """Notified: the claim of the worker is dead, the channel is kept, and no sweep ever ends it."""
    step, notified = advance(CLAIMED, q.MarkDelivery(D0, RowPhase.STARTED, channel="mail"))
    assert [type(event) for event in step.events] == [rows.DispatchClaimed, rows.DispatchStarted]
    refused, _ = advance(notified, q.CompleteDispatch(D0, NOW))
    assert refused.reason is Reason.CLAIM_LOST
    row = notified.row()
    assert row is not None and row.began is not None and row.claim is not None
    assert (row.began.channel, row.claim.owner, row.claim.leased_until) == ("mail", "contract", 0)
    bare = after(QUEUED, q.MarkDelivery(D0, RowPhase.STARTED)).row()
    assert bare is not None and (row.attempts, bare.attempts) == (1, 1), "one attempt, whoever had begun it"
    assert after(notified.later(10**9), q.Sweep()).log == notified.log
    assert after(notified, q.MarkDelivery(D0, RowPhase.COMPLETED)).state.completed == 1


def test_a_delivery_is_deferred_once_for_one_reason() -> None:
    """However often it is tried, the log says it once; leaving the queue forgets it."""
    deferring = q.DeferDelivery(D0, "leader_notification_deferred")
    place = after(QUEUED, deferring, deferring, deferring)
    assert len(place.events(rows.DispatchDeferred)) == 1
    row = place.row()
    assert row is not None and row.deferred == "leader_notification_deferred" and row.not_before == 0
    claimed = after(place, take()).row()
    assert claimed is not None and claimed.deferred is None


def test_old_logs_fold() -> None:
    """Events without the members of today have their defaults: no token, no lease, no instant."""
    old = {
        "dispatch.queued": {"dispatch": "d0", "kind": "turn", "turn": "t0", "key": "k", "input": "x"}
        | {"priority": "normal", "attempts_max": 3, "on_lost": "requeue", "overlap": "queue"},
        "dispatch.claimed": {"dispatch": "d0", "owner": "runtime:r", "generation": 1, "attempts": 1, "turn": "t0"},
        "dispatch.started": {"dispatch": "d0"},
        "dispatch.requeued": {"dispatch": "d0", "why": "lost", "not_before": None, "attempts": 1},
    }
    state = q.Queue("turn")
    for seq, (tag, payload) in enumerate(old.items(), 1):
        kept = evolve_kept(tag, payload, seq)
        state = q.evolve_queue(state, CODEC.decode(kept), seq)
    (row,) = state.rows.values()
    assert (row.phase, row.claim, row.turns, state.latest) == (RowPhase.QUEUED, None, ("t0",), "")


def evolve_kept(tag: str, payload: Any, seq: int) -> Any:
    kept = kept_of(rows.DispatchStarted(D0), seq)
    kept.type, kept.payload = tag, CODEC.encode_state(payload)
    return kept


def test_the_slots_of_a_round_are_those_of_the_page() -> None:
    """Seven slots: one immediate, three high, two normal, one low; the cursor goes round."""
    assert Counter(fairness.SLOTS) == {"immediate": 1, "high": 3, "normal": 2, "low": 1}
    assert set(fairness.SLOTS) == set(fairness.PRIORITIES)
    cursor, round_ = 0, []
    for _ in range(14):
        slot = fairness.next_slot(fairness.PRIORITIES, cursor)
        assert slot is not None
        round_.append(fairness.SLOTS[slot])
        cursor = fairness.behind(slot)
    assert tuple(round_) == fairness.SLOTS * 2 and cursor == 0
    assert fairness.next_slot((), 3) is None
    assert all(a != "low" or b == "immediate" for a, b in pairwise(round_))
