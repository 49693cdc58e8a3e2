"""The lease machine: every interleaving to a bounded length, its table, and what a holder may do by its own clock."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from turnlane.codec import Codec
from turnlane.core.instants import Instant, WallInstant, after_ms
from turnlane.core.limits import DEFAULT_LIMITS, Limits
from turnlane.core.ports import Lease, LeasePhase
from turnlane.core.reasons import Reason, Rejected
from turnlane.machines.authority import (
    EPOCH_MAX,
    LEGAL,
    AcquireLease,
    AuthorityDrainOrdered,
    AuthorityGranted,
    AuthorityLost,
    AuthorityReleased,
    AuthorityRenewed,
    Confirmed,
    HolderView,
    LoseLease,
    ReleaseLease,
    RenewLease,
    Term,
    decide,
    evolve,
    fenced_at,
    holder_view,
    renew_at,
    stale,
    stale_reason,
    stream_of,
)

S = 1_000_000
TTL = Term(5_000)
FREE, HELD, LOST = LeasePhase.FREE, LeasePhase.HELD, LeasePhase.LOST


def apply(lease: Lease, command: Any, at: int) -> tuple[Lease, Any]:
    step = decide(lease, command, WallInstant(at), DEFAULT_LIMITS)
    if isinstance(step, Rejected):
        return lease, step
    for event in step.events:
        lease = evolve(lease, event)
    return lease, step


def held(at: int = 0, **how: Any) -> Lease:
    return apply(Lease("runtime"), AcquireLease("a", "1", Term(**how) if how else TTL), at)[0]


# every interleaving

OWNERS = {"a": "1", "b": "2"}
STEPS = (-7, 3, 6)
"""Seconds: back, on within a lease, on beyond it."""
MOVES = [
    *[("acquire", owner, lease) for owner, lease in (("a", "1"), ("a", "1'"), ("b", "2"))],
    *[("renew", owner) for owner in OWNERS],
    *[("release", owner) for owner in OWNERS],
    ("lose",),
    ("told",),
    *[("clock", seconds) for seconds in STEPS],
]


def test_every_interleaving_has_one_believed_owner_and_rising_epochs_and_refusals_that_change_nothing() -> None:
    """A world is the lease, the clock, and the epoch that each owner was last granted: all that they know."""
    start = (Lease("runtime"), 100 * S, (("a", 0), ("b", 0)))
    seen, edge, judged = {start}, [start], 0
    for _ in range(7):
        found = []
        for lease, now, known in edge:
            for move in MOVES:
                judged += 1
                world = after(lease, now, dict(known), move)
                if world not in seen:
                    seen.add(world)
                    found.append(world)
        edge = found
    print(f"{judged} moves, {len(seen)} worlds")
    assert judged > 50_000


def after(lease: Lease, now: int, known: dict[str, int], move: tuple[Any, ...]) -> Any:
    if move[0] == "clock":
        return lease, now + move[1] * S, tuple(sorted(known.items()))
    owner = move[1] if len(move) > 1 else ""
    command: Any = {
        "acquire": lambda: AcquireLease(owner, move[2], TTL),
        "renew": lambda: RenewLease(owner, known[owner], TTL),
        "release": lambda: ReleaseLease(owner, known[owner]),
        "lose": lambda: LoseLease("operator"),
        "told": lambda: LoseLease("hand-over", 2_000),
    }[move[0]]()
    new, step = apply(lease, command, now)
    lasts = lease.phase is HELD and not stale(lease, WallInstant(now))
    if isinstance(step, Rejected):
        assert new is lease, "a refusal changes nothing"
        assert move[0] != "acquire" or lasts, f"what nobody holds is refused: {step}"
        return lease, now, tuple(sorted(known.items()))
    granted = [event for event in step.events if isinstance(event, AuthorityGranted)]
    assert new.epoch == lease.epoch + len(granted), "the epoch rises with a grant, by one, and with nothing else"
    assert new.seen_at >= lease.seen_at
    if granted:
        assert not lasts or lease.owner == owner, "nobody is granted what another one holds"
        assert (granted[0].takeover_of is None) == (not stale(lease, WallInstant(now)))
        known[owner] = new.epoch
    if move[0] in ("renew", "release"):
        assert known[owner] == lease.epoch and lease.owner == owner, "only the last grant renews and releases"
    if move[0] == "renew":
        assert lasts and new.leased_until >= lease.leased_until and lease.draining is None
    believed = [name for name, epoch in known.items() if epoch and epoch == new.epoch and name == new.owner]
    assert len(believed) <= 1, "at most one owner has the epoch that counts"
    return new, now, tuple(sorted(known.items()))


# the table


@pytest.mark.parametrize(("phase", "event"), list(product(LeasePhase, LEGAL[HELD])))
def test_a_move_that_is_not_in_the_table_is_a_corrupt_log(phase: LeasePhase, event: type) -> None:
    lease = {FREE: Lease("runtime"), HELD: held(), LOST: apply(held(), LoseLease("x"), 0)[0]}[phase]
    at = WallInstant(1)
    made = {
        AuthorityGranted: AuthorityGranted("runtime", "b", "2", 9, at, at),
        AuthorityRenewed: AuthorityRenewed("runtime", "a", "1", 1, at, at),
        AuthorityDrainOrdered: AuthorityDrainOrdered("runtime", "x", at, at),
        AuthorityReleased: AuthorityReleased("runtime", "a", 1, at),
        AuthorityLost: AuthorityLost("runtime", "a", 1, "x", at),
    }[event]
    if event in LEGAL[phase]:
        assert evolve(lease, made).phase is LEGAL[phase][event]
    else:
        with pytest.raises(KeyError):
            evolve(lease, made)


@pytest.mark.parametrize(
    ("lease", "command", "at", "reason"),
    [
        (held(), AcquireLease("b", "2", TTL), 1, Reason.LEASE_HELD),
        (held(), RenewLease("b", 1, TTL), 1, Reason.LEASE_OWNER_MISMATCH),
        (held(), RenewLease("a", 0, TTL), 1, Reason.STALE_EPOCH_REJECT),
        (held(), RenewLease("a", 2, TTL), 1, Reason.STALE_EPOCH_REJECT),
        (held(), RenewLease("a", 1, TTL), 5 * S, Reason.LEASE_EXPIRED),
        (apply(held(), LoseLease("x"), 0)[0], RenewLease("a", 1, TTL), 1, Reason.LEASE_LOST),
        (apply(held(), LoseLease("x", 3_000), 0)[0], RenewLease("a", 1, TTL), 1, Reason.LEASE_LOST),
        (apply(held(), LoseLease("x", 3_000), 0)[0], AcquireLease("a", "1", TTL), 1, Reason.LEASE_LOST),
        (apply(held(), LoseLease("x", 3_000), 0)[0], AcquireLease("b", "2", TTL), 1, Reason.LEASE_HELD),
        (Lease("runtime"), RenewLease("a", 0, TTL), 1, Reason.LEASE_NOT_HELD),
        (Lease("runtime"), LoseLease("x"), 1, Reason.LEASE_NOT_HELD),
        (Lease("runtime"), ReleaseLease("a", 0), 1, Reason.STALE_EPOCH_REJECT),
        (held(), ReleaseLease("b", 1), 1, Reason.LEASE_OWNER_MISMATCH),
        (held(), LoseLease(""), 1, Reason.INVALID_PARAMS),
        (held(), LoseLease("x", 0), 1, Reason.INVALID_PARAMS),
        (held(), LoseLease("x", DEFAULT_LIMITS.lose_grace_ms_max + 1), 1, Reason.INVALID_PARAMS),
        (held(), RenewLease("a", 1, Term()), 1, Reason.INVALID_PARAMS),
        (held(), RenewLease("a", 1, Term(5_000, WallInstant(9))), 1, Reason.INVALID_PARAMS),
        (held(), RenewLease("a", 1, TTL, ""), 1, Reason.INVALID_PARAMS),
        (Lease("runtime"), AcquireLease("a", "1", Term(DEFAULT_LIMITS.lease_ttl_ms_min - 1)), 1, Reason.INVALID_PARAMS),
        (Lease("runtime"), AcquireLease("a", "1", Term(DEFAULT_LIMITS.lease_ttl_ms_max + 1)), 1, Reason.INVALID_PARAMS),
        (Lease("runtime", epoch=EPOCH_MAX), AcquireLease("a", "1", TTL), 1, Reason.INVALID_PARAMS),
    ],
)
def test_each_no_of_the_table_has_its_reason(lease: Lease, command: Any, at: int, reason: Reason) -> None:
    _, step = apply(lease, command, at)
    assert isinstance(step, Rejected) and step.reason is reason, step


@pytest.mark.parametrize(
    ("lease", "command", "at", "name"),
    [
        (held(), AcquireLease("b", "2", TTL), 1, "leased_until"),
        (held(), RenewLease("a", 1, TTL), 5 * S, "leased_until"),
        (apply(held(), LoseLease("x", 5_000), 0)[0], RenewLease("a", 1, TTL), 1, "until"),
    ],
)
def test_a_no_says_an_instant_as_text(lease: Lease, command: Any, at: int, name: str) -> None:
    """As every other instant that a client sees."""
    _, step = apply(lease, command, at)
    assert isinstance(step, Rejected) and step.data[name] == "1970-01-01T00:00:05.000000Z"


def test_a_lease_reads_as_stale_from_the_instant_it_runs_out_and_says_why() -> None:
    lease = held()
    assert [stale(lease, WallInstant(at)) for at in (0, 5 * S - 1, 5 * S, 9 * S)] == [False, False, True, True]
    assert [stale_reason(lease, WallInstant(at)) for at in (0, 5 * S)] == [None, "lease_expired"]
    lost, _ = apply(lease, LoseLease("operator"), 1)
    assert stale_reason(lost, WallInstant(1)) == "operator"
    assert not stale(Lease("runtime"), WallInstant(9 * S)), "what nobody holds is not stale"


def test_an_instant_may_be_named_also_one_that_has_passed_and_is_written_back_as_it_was_given() -> None:
    past, _ = apply(Lease("leader"), AcquireLease("w1", "l1", Term(until=WallInstant(5), as_given="long ago")), 7)
    assert (past.phase, past.as_given, stale(past, WallInstant(7))) == (HELD, "long ago", True)
    lease = held(until=WallInstant(90 * S), as_given="then")
    longer, _ = apply(lease, RenewLease("a", 1, Term(until=WallInstant(99 * S), as_given="later"), "1'"), 1)
    assert (longer.leased_until, longer.as_given, longer.lease_id) == (99 * S, "later", "1'")
    same, step = apply(longer, RenewLease("a", 1, Term(until=WallInstant(50 * S), as_given="sooner")), 2)
    assert (same, step.events, step.answer) == (longer, (), True), "never back, and nothing is kept"


def test_what_was_done_before_is_said_to_be_a_repeat() -> None:
    lease = held()
    free, first = apply(lease, ReleaseLease("a", 1), 1)
    assert (first.answer, apply(free, ReleaseLease("a", 1), 2)[1].answer) == (False, True)
    lost, first = apply(lease, LoseLease("x"), 1)
    again, second = apply(lost, LoseLease("y"), 1)
    assert (first.answer, second.answer, again.lost_reason) == (False, True, "x")
    told, first = apply(lease, LoseLease("x", 3_000), 1)
    again, second = apply(told, LoseLease("y", 3_000), 2)
    assert (len(first.events), second.events, second.answer, again) == (1, (), True, told), "told once"
    sooner, third = apply(told, LoseLease("y", 1_000), 2)
    assert (len(third.events), sooner.leased_until, sooner.draining) == (1, 1_000_002, "x")


def test_events_of_a_lease_are_kept_and_read_like_all_others() -> None:
    lease, events = Lease("leader"), []
    commands = [
        AcquireLease("a", "1", Term(until=WallInstant(9 * S), as_given="t")),
        RenewLease("a", 1, Term(20_000)),
        LoseLease("x", 2_000),
        AcquireLease("b", "2", TTL),
        ReleaseLease("b", 2),
        AcquireLease("a", "3", TTL),
        LoseLease("y"),
    ]
    for number, command in enumerate(commands):
        step = decide(lease, command, WallInstant(number * 4 * S), DEFAULT_LIMITS)
        assert not isinstance(step, Rejected), (command, step)
        for event in step.events:
            events.append(Codec().kept(event, len(events) + 1, 1, Instant(0), WallInstant(0)))
            lease = evolve(lease, event)
    assert {kept.type for kept in events} >= {
        "authority.granted",
        "authority.renewed",
        "authority.drain_ordered",
        "authority.released",
        "authority.lost",
    }
    folded = Lease("leader")
    for kept in events:
        folded = evolve(folded, Codec().decode(kept), kept.seq)
    assert folded == lease


# the holder


@pytest.mark.parametrize("ttl_ms", [DEFAULT_LIMITS.lease_ttl_ms_min, 5_000, DEFAULT_LIMITS.lease_ttl_ms_max])
def test_a_holder_is_active_then_late_then_fenced_counted_from_before_it_asked(ttl_ms: int) -> None:
    limits, confirmed = DEFAULT_LIMITS, Confirmed(Instant(7), ttl_ms)
    margin_ms = max(limits.lease_margin_ms_min, ttl_ms // 10)
    expected = [
        (0, HolderView.ACTIVE),
        (ttl_ms / 2 - 0.001, HolderView.ACTIVE),
        (ttl_ms / 2, HolderView.RENEWING_LATE),
        (ttl_ms - margin_ms - 0.001, HolderView.RENEWING_LATE),
        (ttl_ms - margin_ms, HolderView.FENCED),
        (ttl_ms * 9, HolderView.FENCED),
    ]
    for ms, view in expected:
        assert holder_view(confirmed, Instant(7 + int(ms * 1_000_000)), limits) is view, ms
    assert fenced_at(confirmed, limits) == after_ms(Instant(7), ttl_ms - margin_ms)
    assert renew_at(confirmed) == after_ms(Instant(7), ttl_ms // 3)
    assert holder_view(None, Instant(0), limits) is HolderView.FENCED, "nothing is assumed"


@pytest.mark.parametrize(
    "wrong",
    [
        {"lease_ttl_ms": 500},
        {"lease_ttl_ms": 70_000},
        {"lease_margin_ms_min": 600},
        {"lease_retry_ms": 0},
        {"lease_retry_ms": 400},
    ],
)
def test_limits_with_which_no_lease_could_be_held_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(AssertionError):
        Limits(**wrong)


# a session's own lease

SCOPE = "default/session/s"
ABOVE = {
    "never granted": None,
    "free": Lease("runtime", epoch=7, owner="a"),
    "held": Lease("runtime", "a", "1", 7, leased_until=WallInstant(9 * S), phase=HELD),
    "run out": Lease("runtime", "a", "1", 7, leased_until=WallInstant(1), phase=HELD),
    "lost": Lease("runtime", "a", "1", 7, leased_until=WallInstant(9 * S), phase=LOST, lost_reason="x"),
}


@pytest.mark.parametrize("owner", ["a", "b"])
@pytest.mark.parametrize("above", ABOVE)
def test_a_session_is_the_runtimes_until_its_first_grant_which_is_above_all_its_epochs(above: str, owner: str) -> None:
    lease = Lease(SCOPE)
    new, step = apply(lease, AcquireLease(owner, "1", TTL, ABOVE[above]), S)
    if above == "held" and owner == "b":
        assert new is lease and step.reason is Reason.LEASE_HELD and step.data["owner"] == "a"
        return
    assert (new.phase, new.owner, new.epoch) == (HELD, owner, 1 if above == "never granted" else 8)
    again, _ = apply(new, ReleaseLease(owner, new.epoch), S)
    taken, _ = apply(again, AcquireLease("c", "2", TTL, ABOVE["held"]), S)
    assert (taken.owner, taken.epoch) == ("c", new.epoch + 1), "after its first grant it goes alone"


def test_a_scope_covers_a_stream_alone_only_where_it_is_a_sessions() -> None:
    names = {"runtime": None, "leader": None, SCOPE: SCOPE, "t/session/a/b": "t/session/a/b", "session/s": None}
    names |= {"default/run/1": None, "": None}
    assert {name: stream_of(name) for name in names} == names
