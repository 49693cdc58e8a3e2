"""The calculators: plan and seed, admission against a naive model, watermarks, backoff."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import pytest
from attrs import asdict, evolve, fields
from hypothesis import given
from hypothesis import strategies as st

from turnlane.core.canonical import canonical_json
from turnlane.core.ids import DEFAULT_TENANT, DispatchId, SessionId, Tenant, TurnId
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.reasons import Deferred, Reason, Rejected
from turnlane.machines.admission import OFF, Counts, Quotas, Rate, admit, quotas_of, retry_after_ms
from turnlane.machines.dispatch import backoff_ms
from turnlane.machines.plan import Bundle, Plan, Profile, freeze, seed_of
from turnlane.machines.pressure import FlowHold, FlowResume, Level, PressureHigh, Watermarks

PROFILE: Final = Profile("support", "agent-a", 4, 30_000, "cancel", "acked", False)
VARIED: Final[dict[str, Any]] = {
    "name": "sales",
    "agent": "agent-b",
    "version": 5,
    "turn_budget_ms": None,
    "on_detach": "continue",
    "history_cut": "none",
    "steerable": True,
}
"""Another value for each field of the profile."""

BUNDLE: Final = Bundle(PROFILE, {"profile": "local:settings:ab"})


def frozen_plan(bundle: Bundle = BUNDLE, **changes: Any) -> Plan:
    values: dict[str, Any] = {"turn": TurnId("t1"), "session": SessionId("s1"), "epoch": 3, "limits": DEFAULT_LIMITS}
    plan = freeze(bundle, **{**values, **changes})
    assert isinstance(plan, Plan)
    return plan


def test_equal_bundles_give_equal_plans() -> None:
    """Freezing twice gives the same plan, hash and seed, and a later change of the bundle reaches neither."""
    provenance = {"profile": "local:settings:ab"}
    plan = frozen_plan(Bundle(PROFILE, provenance))
    assert plan == frozen_plan()
    provenance["profile"] = "elsewhere"
    assert plan == frozen_plan()


def test_the_hash_covers_every_field() -> None:
    """Any changed field is another plan hash; turn, session, epoch and provenance leave the shape as it is."""
    plan = frozen_plan()
    own = asdict(plan)
    for derived in ("plan_hash", "plan_shape_hash", "seed"):
        own.pop(derived)
    assert plan.plan_hash == hashlib.sha256(canonical_json(own)).hexdigest()
    particular = {"turn", "session", "epoch", "provenance"}
    shape = {name: value for name, value in own.items() if name not in particular}
    assert plan.plan_shape_hash == hashlib.sha256(canonical_json(shape)).hexdigest()
    assert {field.name for field in fields(Plan)} == own.keys() | {"plan_hash", "plan_shape_hash", "seed"}


@pytest.mark.parametrize(
    ("changes", "same_shape"),
    [
        ({"turn": TurnId("t2")}, True),
        ({"session": SessionId("s2")}, True),
        ({"epoch": 4}, True),
        ({"bundle": Bundle(PROFILE, {"profile": "local:settings:cd"})}, True),
        ({"deadline_ms": 30_000}, False),
        ({"deadline_ms": 29_999}, False),
        ({"on_detach": "continue"}, False),
        *(
            ({"bundle": Bundle(evolve(PROFILE, **{name: value}), BUNDLE.provenance)}, False)
            for name, value in VARIED.items()
        ),
    ],
    ids=repr,
)
def test_every_change_gives_another_hash(changes: dict[str, Any], same_shape: bool) -> None:
    """One change, another hash and seed; the shape hash compares plans of different turns."""
    plan, other = frozen_plan(), frozen_plan(**changes)
    assert other.plan_hash != plan.plan_hash and other.seed != plan.seed
    assert (other.plan_shape_hash == plan.plan_shape_hash) == same_shape


def test_the_seed_is_that_of_the_page() -> None:
    """First eight bytes, big endian, of SHA-256 over hash, bar and epoch, the top bit cleared; a fixed vector."""
    plan = frozen_plan()
    head = hashlib.sha256(f"{plan.plan_hash}|3".encode()).digest()[:8]
    assert plan.seed == int.from_bytes(head, "big") % 2**63 == seed_of(plan.plan_hash, 3)
    assert seed_of("abc", 7) == 6_680_023_407_465_897_986
    with pytest.raises(AssertionError):
        seed_of("", 1)


@given(st.text("0123456789abcdef", min_size=1, max_size=64), st.integers(0, 2**53))
def test_a_seed_has_63_bits(plan_hash: str, epoch: int) -> None:
    """Every seed fits a signed 64-bit integer."""
    assert 0 <= seed_of(plan_hash, epoch) < 2**63


@pytest.mark.parametrize("deadline_ms", [0, -1, DEFAULT_LIMITS.turn_budget_ms_cap + 1])
def test_a_deadline_out_of_range_is_refused(deadline_ms: int) -> None:
    """The refusal names path and range."""
    refused = freeze(
        BUNDLE, turn=TurnId("t"), session=SessionId("s"), epoch=1, limits=DEFAULT_LIMITS, deadline_ms=deadline_ms
    )
    assert isinstance(refused, Rejected) and refused.reason is Reason.INVALID_PARAMS
    assert refused.data == {"path": "params.deadline_ms", "expected": f"1..{DEFAULT_LIMITS.turn_budget_ms_cap}"}


# admission


class NaiveRate:
    """Every instant, one by one."""

    def __init__(self) -> None:
        self.seconds: list[int] = []

    def count(self, second: int) -> int:
        return sum(second - 60 < at <= second for at in self.seconds)

    def room_after_ms(self, second: int, limit: int) -> int:
        return next(wait for wait in range(1, 62) if self.count(second + wait) + 1 <= limit) * 1_000


@given(st.lists(st.tuples(st.integers(0, 25), st.integers(1, 4)), max_size=40), st.integers(1, 12))
def test_a_rate_counts_the_last_sixty_seconds(steps: list[tuple[int, int]], limit: int) -> None:
    """The window of buckets equals a list of instants, and says when there is room again."""
    rate, naive, second = Rate(), NaiveRate(), 0
    for gap, times in steps:
        second += gap
        for _ in range(times):
            rate.add(second)
            naive.seconds.append(second)
        assert rate.count(second) == naive.count(second)
        if rate.count(second) + 1 > limit:
            assert rate.room_after_ms(second, limit) == naive.room_after_ms(second, limit)


def test_a_rate_that_nobody_asks_does_not_grow() -> None:
    """Counting alone keeps at most sixty buckets."""
    rate = Rate()
    for second in range(1_000):
        rate.add(second)
    assert len(rate.buckets) <= 60


COUNT = st.integers(0, 4)


@given(
    host=st.integers(0, 3),
    tenant=COUNT,
    tenant_rate=COUNT,
    session_rate=COUNT,
    draining=st.booleans(),
    blocked=st.none() | st.just("journal_broken"),
    open_max=COUNT,
    rate_max=COUNT,
    session_max=COUNT,
    refusals=st.integers(0, 40),
)
def test_admission_refuses_the_first_excess(
    host: int,
    tenant: int,
    tenant_rate: int,
    session_rate: int,
    draining: bool,
    blocked: str | None,
    open_max: int,
    rate_max: int,
    session_max: int,
    refusals: int,
) -> None:
    """Equal passes, one more refuses, zero is off, and the first key in the fixed order answers."""
    limits = evolve(DEFAULT_LIMITS, turns_active_max=3)
    rates = []
    for observed in (tenant_rate, session_rate):
        rate = Rate()
        for _ in range(observed):
            rate.add(100)
        rates.append(rate)
    counts = Counts(host, tenant, rates[0], rates[1], 100, blocked, draining)
    answer = admit(counts, Quotas(open_max, 7, rate_max, session_max), limits, refusals)
    expected: list[tuple[bool, type, Reason]] = [
        (draining, Deferred, Reason.DRAINING),
        (blocked is not None, Rejected, Reason.ADMISSION_CAPACITY_REJECT),
        (host + 1 > 3, Deferred, Reason.ADMISSION_CAPACITY_DEFER),
        (open_max > 0 and tenant + 1 > open_max, Deferred, Reason.ADMISSION_CAPACITY_DEFER),
        (rate_max > 0 and tenant_rate + 1 > rate_max, Rejected, Reason.CP_ADMISSION_REJECT_QUOTA),
        (session_max > 0 and session_rate + 1 > session_max, Rejected, Reason.CP_ADMISSION_REJECT_QUOTA),
    ]
    first = next(((kind, reason) for excess, kind, reason in expected if excess), None)
    assert (None if answer is None else (type(answer), answer.reason)) == first
    if answer is not None:
        assert answer.retry_after_ms is not None and answer.retry_after_ms % 10 == 0 and answer.retry_after_ms > 0


def test_waiting_time_doubles_up_to_its_bound() -> None:
    """250 ms, doubled for each refusal of the same key, at most ten seconds."""
    assert [retry_after_ms(n, DEFAULT_LIMITS) for n in range(7)] == [250, 500, 1_000, 2_000, 4_000, 8_000, 10_000]
    assert retry_after_ms(10**6, DEFAULT_LIMITS) == 10_000


def test_quotas_are_for_named_tenants() -> None:
    """The default tenant has none, a named one the defaults, one with a row of its own that row."""
    own = Quotas(1, 2, 3, 4)
    assert quotas_of(DEFAULT_TENANT, {}, DEFAULT_LIMITS) == OFF
    assert quotas_of(Tenant("acme"), {}, DEFAULT_LIMITS) == Quotas(32, 120, 600, 60)
    assert quotas_of(Tenant("acme"), {"acme": own}, DEFAULT_LIMITS) == own
    assert quotas_of(DEFAULT_TENANT, {DEFAULT_TENANT: own}, DEFAULT_LIMITS) == own


# watermarks


@given(st.integers(0, 5), st.integers(1, 5), st.integers(0, 5), st.lists(st.booleans(), max_size=200))
def test_hold_and_resume_alternate(low: int, more: int, room: int, moves: list[bool]) -> None:
    """One signal a crossing, hold first: a hold when an offer reaches high, a resume when a take reaches low."""
    marks = Watermarks(low, low + more, low + more + room)
    level, items, flow = Level(marks, "s-1", "data"), 0, []
    for offer in moves:
        if offer and items < marks.items_max:
            items += 1
            level, signals = level.after_offer(items)
        elif not offer and items:
            items -= 1
            level, signals = level.after_take(items)
        else:
            continue
        for signal in signals:
            match signal:
                case PressureHigh():
                    assert offer and signal == PressureHigh("s-1", "data", items) and items >= marks.high
                case FlowHold():
                    assert signals[0] == PressureHigh("s-1", "data", items)
                    flow.append("hold")
                case FlowResume():
                    assert not offer and items <= marks.low
                    flow.append("resume")
        assert level.pressed == (bool(flow) and flow[-1] == "hold")
        assert not (items >= marks.high and not level.pressed) and not (items <= marks.low and level.pressed)
    assert flow == (["hold", "resume"] * len(flow))[: len(flow)]


@pytest.mark.parametrize(("low", "high", "most"), [(1, 1, 2), (2, 1, 3), (0, 3, 2), (-1, 1, 2)])
def test_watermarks_are_in_order(low: int, high: int, most: int) -> None:
    """A lane whose marks cannot work never starts."""
    with pytest.raises(AssertionError):
        Watermarks(low, high, most)


# backoff


@given(st.text(min_size=1, max_size=40), st.integers(1, 100))
def test_backoff_is_reproducible_and_bounded(dispatch: str, attempts: int) -> None:
    """The same row and attempt wait equally long: at most base x 2^(n-1), capped, less up to a quarter."""
    name = DispatchId(dispatch)
    wait = backoff_ms(name, attempts, DEFAULT_LIMITS)
    full = min(1_000 * 2 ** (attempts - 1), 60_000)
    assert wait == backoff_ms(name, attempts, DEFAULT_LIMITS)
    assert full * 3 // 4 <= wait <= full


def test_backoff_is_not_in_step() -> None:
    """Rows lost together do not all come back together."""
    assert len({backoff_ms(DispatchId(f"d{n}"), 3, DEFAULT_LIMITS) for n in range(100)}) > 80
