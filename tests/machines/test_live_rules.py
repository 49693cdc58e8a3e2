"""The rules of live delivery: topics and rights, windows and cursors, readers, pace, revocations."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from turnlane.core.instants import Instant, WallInstant
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.owners import Owner
from turnlane.core.ports import LiveWindow
from turnlane.core.reasons import Reason, Rejected
from turnlane.core.step import Step
from turnlane.machines import revocation
from turnlane.machines.live import CLASSES, SCOPES, Reader, Topic, forbids, owns, topic_of, topic_of_stream
from turnlane.machines.live_readers import (
    ConsumerKey,
    Consumers,
    Entered,
    Guarded,
    Pace,
    jitter_ms,
    published,
    reconnect_ms,
)
from turnlane.machines.live_windows import judge_cursor, lag, page_limit, window_of
from turnlane.machines.revocation import Revocations, Revoked, RevokeTokens, TokenRevoked
from turnlane.machines.turn import Stamp

LIMITS = DEFAULT_LIMITS
RUN = "0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e0f"
MS = 1_000_000


def topic(name: str) -> Topic:
    found = topic_of(name, LIMITS)
    assert isinstance(found, Topic), found
    return found


# topics


@pytest.mark.parametrize(
    ("name", "kind", "inside"),
    [
        (f"run:{RUN}:events", "run_events", RUN),
        (f"  run:{RUN}:events\n", "run_events", RUN),
        (f"run:{RUN.upper()}:events", "run_events", RUN),
        (f"run:{RUN.replace('-', '')}:events", "run_events", RUN),
        (f"run:{{{RUN}}}:events", "run_events", RUN),
        (f"run:urn:uuid:{RUN}:events", "run_events", RUN),
        ("run:no-uuid:events", "run_events", None),
        (f"run:{RUN}0:events", "run_events", None),
        (f"run:{'z' * 32}:events", "run_events", None),
        ("worker:lab:east-2:lifecycle", "worker_lifecycle", "lab:east-2"),
        ("worker:lifecycle:lifecycle", "worker_lifecycle", "lifecycle"),
        ("worker:a/b:lifecycle", "worker_lifecycle", None),
        ("worker:a\x00b:lifecycle", "worker_lifecycle", None),
        (f"worker:{'w' * 200}:lifecycle", "worker_lifecycle", "w" * 200),
        (f"worker:{'w' * 201}:lifecycle", "worker_lifecycle", None),
        ("runtime.codex_worker_events", "codex_worker_events", None),
        ("run::events", "fallback", None),
        ("run:events", "fallback", None),
        ("run: :events", "fallback", None),
        ("worker:lifecycle", "fallback", None),
        ("worker::lifecycle", "fallback", None),
        (f"run:{RUN}", "fallback", None),
        (f"run:{RUN}:events:", "fallback", None),
        (f"run:{RUN}:lifecycle", "fallback", None),
        (f"RUN:{RUN}:events", "fallback", None),
        ("session:s-1:events", "fallback", None),
        ("runtime.codex_worker_events.x", "fallback", None),
    ],
)
def test_a_topic_is_a_name_of_one_form_with_one_stream_or_none(name: str, kind: str, inside: str | None) -> None:
    found = topic(name)
    assert (found.name, found.kind, found.id) == (name.strip(), kind, inside)
    stream = found.stream()
    assert (stream is None) == (inside is None)
    if stream is not None:
        back = topic_of_stream(stream)
        assert back is not None and (back.kind, back.id, back.stream()) == (kind, inside, stream)


def test_a_blank_or_overlong_name_is_no_topic() -> None:
    for name in ("", "  ", "\t\n", "x" * 513):
        found = topic_of(name, LIMITS)
        assert isinstance(found, Rejected) and found.reason is Reason.INVALID_TOPIC
    assert topic("x" * 512).kind == "fallback"


def test_a_session_is_no_topic() -> None:
    assert topic_of_stream("default/session/s-1") is None


# rights: the whole table

NAMES = {
    "run_events": f"run:{RUN}:events",
    "worker_lifecycle": "worker:w-1:lifecycle",
    "codex_worker_events": "runtime.codex_worker_events",
    "fallback": "session:s-1:events",
}
ALL_SCOPES = ("runtime.run_events", "runtime.codex_worker_events", "runtime.worker_lifecycle_events")
GRANTS = {
    ("run_events", "runtime.run_events"),
    ("worker_lifecycle", "runtime.codex_worker_events"),
    ("worker_lifecycle", "runtime.worker_lifecycle_events"),
    ("codex_worker_events", "runtime.codex_worker_events"),
    ("codex_worker_events", "runtime.worker_lifecycle_events"),
}
"""The table of the page, cell by cell."""


@pytest.mark.parametrize("kind", NAMES)
def test_every_cell_of_scope_and_topic_is_as_the_table_says(kind: str) -> None:
    """Every set of scopes, with and without a list of topics that holds this one."""
    assert set(NAMES) == set(CLASSES) and set(SCOPES) == set(NAMES) - {"fallback"}
    for count in range(4):
        for held in itertools.combinations((*ALL_SCOPES, "runtime.else"), count):
            granted = any((kind, scope) in GRANTS for scope in held)
            for listed in ((), (NAMES[kind],), (NAMES[kind], "other"), ("other",), (NAMES[kind].upper(),)):
                reader = Reader(scopes=frozenset(held), topics=frozenset(listed))
                expected = None if granted else Reason.MISSING_SCOPE
                if kind == "fallback" or (listed and NAMES[kind] not in listed):
                    expected = Reason.FORBIDDEN_TOPIC
                assert forbids(reader, topic(NAMES[kind])) is expected, (held, listed)


OWNERS = {
    "user 1": Owner(user_id=1),
    "user 2": Owner(user_id=2),
    "user 0": Owner(user_id=0),
    "guest a": Owner(guest_scope="a"),
    "guest 1": Owner(guest_scope="1"),
    "nobody": Owner(),
    "absent": None,
}
READERS: dict[str, tuple[Reader, str | None]] = {
    "user 1": (Reader(user_id=1), "user 1"),
    "user 0": (Reader(user_id=0), "user 0"),
    "user 1 of a": (Reader(user_id=1, org_id="a"), "user 1"),
    "guest a": (Reader(org_id="a"), "guest a"),
    "guest a, spaced": (Reader(org_id=" a "), "guest a"),
    "guest 1": (Reader(org_id="1"), "guest 1"),
    "blank": (Reader(org_id=" "), None),
    "none": (Reader(), None),
}


@pytest.mark.parametrize("unowned", ["deny", "scope"])
@pytest.mark.parametrize("kind", ["run_events", "worker_lifecycle"])
def test_every_cell_of_reader_and_owner_is_as_the_table_says(kind: str, unowned: str) -> None:
    """A user never equals a guest; what has no owner or is not there is read by scope where that is set."""
    for (who, (reader, stands_for)), (whose, owner) in itertools.product(READERS.items(), OWNERS.items()):
        expected = whose == stands_for
        if whose in ("nobody", "absent"):
            expected = unowned == "scope" and kind == "run_events"
        assert owns(reader, topic(NAMES[kind]), owner, unowned) == expected, (who, whose)


def test_without_authentication_everything_that_is_a_topic_is_read() -> None:
    everyone = Reader(everyone=True)
    for kind, name in NAMES.items():
        assert forbids(everyone, topic(name)) is (Reason.FORBIDDEN_TOPIC if kind == "fallback" else None)
        assert all(owns(everyone, topic(name), owner, "deny") for owner in OWNERS.values())
    assert owns(Reader(), topic(NAMES["codex_worker_events"]), None, "deny")


# windows and cursors


def test_a_window_is_arithmetic_on_floor_and_head() -> None:
    """Every small case: what is in it is what the log still has of the last `w` events."""
    for head, w in itertools.product(range(8), range(1, 6)):
        for floor in range(1, head + 2):
            window = window_of(floor, head, w)
            inside = [seq for seq in range(1, head + 1) if seq >= floor and seq > head - w]
            assert window.depth == len(inside)
            if not head:
                assert (window.oldest_cursor, window.head_cursor, window.dropped) == (None, None, 0)
            else:
                assert (window.oldest_cursor, window.head_cursor) == (window.oldest - 1, head)
                assert window.dropped == head - len(inside)
            if inside:
                assert (inside[0], inside[-1]) == (window.oldest, head)


def test_a_cursor_is_judged_by_the_floor_first_and_then_by_the_budget() -> None:
    """Every small case; at the boundary it is served; both reasons in their order when both hold."""
    for head, floor, after, budget in itertools.product(range(8), range(1, 9), range(10), range(6)):
        if floor > head + 1:
            continue
        window = window_of(floor, head, 4)
        expected = []
        if head and after < window.oldest - 1:
            expected.append(Reason.RETENTION_FLOOR_BREACH)
        if head and head - after > budget:
            expected.append(Reason.REPLAY_BUDGET_EXCEEDED)
        stale = judge_cursor(window, after, budget)
        assert (list(stale.reasons) if stale else []) == expected
        changed = judge_cursor(window, after, budget, other_epoch=True)
        assert changed is not None and changed.reasons == (Reason.CURSOR_EPOCH_CHANGED,)
        assert changed.lag == (lag(window, after) or 0) == (max(0, head - after) if head else 0)
    assert lag(LiveWindow(1, 0), 3) is None


@pytest.mark.parametrize(
    ("asked", "active", "expected"),
    [
        (None, 0, (100, False, False)),
        (0, 0, (1, False, False)),
        (1, 5, (1, False, False)),
        (200, 1, (200, False, False)),
        (201, 1, (200, True, False)),
        (None, 2, (50, True, True)),
        (50, 2, (50, False, False)),
        (51, 2, (50, True, True)),
        (1 << 52, 9, (50, True, True)),
    ],
)
def test_a_page_is_as_long_as_asked_capped_and_shared(asked: int | None, active: int, expected: Any) -> None:
    limit = page_limit(asked, active, LIMITS)
    assert (limit.applied, limit.capped, limit.fair) == expected


# readers

ME = (7, None, "phone")
KEY = ConsumerKey(ME, "default/run/r")


def test_the_guard_passes_at_the_interval_and_a_knock_moves_no_timer() -> None:
    """Refused polls are answered with what is left, rounded up, and the jitter; who knocks on is served in time."""
    consumers = Consumers(LIMITS)
    extra = jitter_ms(KEY, 3, LIMITS)
    assert isinstance(consumers.enter(KEY, 3, Instant(1_000 * MS)), Entered)
    for at_ms, left in ((1_000, 250), (1_001, 249), (1_249, 1)):
        assert consumers.enter(KEY, 3, Instant(at_ms * MS)) == Guarded(left + extra)
    assert consumers.enter(KEY, 3, Instant(1_250 * MS - 1)) == Guarded(1 + extra)
    assert isinstance(consumers.enter(KEY, 3, Instant(1_250 * MS)), Entered)
    assert isinstance(consumers.enter(KEY, 3, Instant(1_251 * MS)), Guarded)
    off = Consumers(evolve(LIMITS, poll_min_interval_ms=0))
    assert all(isinstance(off.enter(KEY, 3, Instant(0)), Entered) for _ in range(3))


def test_the_hint_is_the_same_for_the_same_reader_and_cursor_and_spread_over_others() -> None:
    hints = [reconnect_ms(ConsumerKey((n, None, None), "t"), c, LIMITS) for n in range(60) for c in range(5)]
    assert min(hints) >= 400 and max(hints) <= 650 and len(set(hints)) > 100
    assert hints == [reconnect_ms(ConsumerKey((n, None, None), "t"), c, LIMITS) for n in range(60) for c in range(5)]
    assert reconnect_ms(KEY, 1, evolve(LIMITS, reconnect_jitter_ms=0)) == 400


def test_topics_of_one_principal_are_counted_before_the_poll_registers_itself() -> None:
    consumers = Consumers(LIMITS)
    counted = [consumers.enter(ConsumerKey(ME, f"t-{n % 3}"), 0, Instant(n * 300 * MS)) for n in range(6)]
    assert counted == [Entered(0), Entered(1), Entered(2), Entered(3), Entered(3), Entered(3)]
    assert consumers.enter(ConsumerKey((8, None, "phone"), "t-0"), 0, Instant(9_000 * MS)) == Entered(0)


def test_idle_and_surplus_consumers_are_forgotten() -> None:
    """The least recently polled first; idle ones at any poll; the counts of principals go with them."""
    limits = evolve(LIMITS, consumers_max=3)
    consumers = Consumers(limits)
    for n in range(10):
        consumers.enter(ConsumerKey((n, None, None), "t"), 0, Instant(n * MS))
        assert len(consumers) == min(n + 1, 3) == len(consumers._topics)
    consumers.forget_idle(Instant((60_000 + 8) * MS))
    assert len(consumers) == 2
    assert consumers.enter(ConsumerKey((9, None, None), "u"), 0, Instant((60_000 + 9) * MS)) == Entered(1)
    assert consumers.enter(ConsumerKey((9, None, None), "v"), 0, Instant((120_000 + 9) * MS + 1)) == Entered(0)
    assert (len(consumers), consumers._topics) == (1, {(9, None, None): 1})


def test_who_polled_last_is_forgotten_last() -> None:
    consumers = Consumers(evolve(LIMITS, consumers_max=2))
    for at_ms, name in ((0, "a"), (1, "b"), (300, "a"), (301, "c")):
        consumers.enter(ConsumerKey(ME, name), 0, Instant(at_ms * MS))
    assert isinstance(consumers.enter(ConsumerKey(ME, "a"), 0, Instant(302 * MS)), Guarded), "a is known"
    assert isinstance(consumers.enter(ConsumerKey(ME, "b"), 0, Instant(302 * MS)), Entered), "b is not"


FREE = evolve(LIMITS, poll_min_interval_ms=0, lag_threshold_items=2)


def polls(steps: list[tuple[int, int]], limits: Any = FREE) -> list[tuple[int, bool]]:
    """What each poll (cursor, lag) of one reader comes to."""
    consumers = Consumers(limits)
    found = []
    for at, (after, behind) in enumerate(steps):
        assert isinstance(consumers.enter(KEY, after, Instant(at)), Entered)
        found.append(consumers.judge(KEY, after, behind))
    return found


def test_a_reader_that_is_far_behind_and_stands_still_is_refused_and_starts_clean() -> None:
    assert polls([(5, 9)] * 5) == [(1, False), (2, False), (3, True), (1, False), (2, False)]
    assert polls([(5, 9), (4, 9), (3, 9)]) == [(1, False), (2, False), (3, True)]
    assert polls([(5, 2)] * 4) == [(0, False)] * 4
    assert polls([(5, 9), (5, 9), (6, 9), (6, 9)]) == [(1, False), (2, False), (0, False), (1, False)]
    assert polls([(5, 9), (5, 9), (5, 1), (5, 9)]) == [(1, False), (2, False), (0, False), (1, False)]
    assert polls([(5, 9)] * 2, evolve(FREE, strikes_max=2)) == [(1, False), (2, True)]


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 9)), max_size=30), st.integers(2, 4))
def test_no_reader_that_advances_is_ever_refused(moves: list[tuple[int, int]], strikes_max: int) -> None:
    """At whatever distance and page size, and whatever it was told in between."""
    steps = list(zip(itertools.accumulate(step for step, _ in moves), (behind for _, behind in moves), strict=True))
    assert not any(refused for _, refused in polls(steps, evolve(FREE, strikes_max=strikes_max)))


def test_every_short_history_of_polls_is_judged_by_its_last_steps() -> None:
    """All histories of five polls: refused exactly after `max_strikes` in a row that were far behind without moving."""
    for cursors in itertools.product((1, 2, 3), repeat=5):
        for lags in itertools.product((0, 9), repeat=5):
            strikes, last, expected = 0, None, []
            for after, behind in zip(cursors, lags, strict=True):
                strikes = strikes + 1 if behind > 2 and (last is None or after <= last) else 0
                last = after
                expected.append((strikes, strikes == 3))
                if strikes == 3:
                    strikes, last = 0, None
            assert polls(list(zip(cursors, lags, strict=True))) == expected


# pace


def test_a_topic_over_its_rate_holds_its_followers_to_the_next_second() -> None:
    """Within a second of the clock; the events are counted by the head; what is announced twice counts once."""
    second = 1_000 * MS
    pace = published(Pace(), 100, Instant(5 * second))
    assert pace.published == 1
    for head in (101, 101, 99, 103):
        pace = published(pace, head, Instant(5 * second + 1))
    assert pace.published == 4
    assert pace.held_until(Instant(5 * second + 2), 4) is None
    assert pace.held_until(Instant(5 * second + 2), 3) == 6 * second
    assert pace.held_until(Instant(6 * second), 3) is None
    assert published(pace, 104, Instant(6 * second)).published == 1


# revocations


def stamp(wall_s: int) -> Stamp:
    return Stamp(Instant(0), WallInstant(wall_s * 1_000_000), 0, 1)


def revoke(state: Revocations, wall_s: int, **ids: Any) -> Revocations:
    step = revocation.decide(state, RevokeTokens(**ids), stamp(wall_s), LIMITS)
    assert isinstance(step, Step)
    for event in step.events:
        state = revocation.evolve(state, event, 1)
    return state


def test_a_revocation_is_remembered_as_long_as_a_token_could_live_and_then_dropped() -> None:
    """300 s of age, twice the skew, a minute; an entry that is over goes when the next one is folded."""
    state = revoke(Revocations(), 1_000, session_ids=("s",), jtis=("j",))
    kept = WallInstant(1_370 * 1_000_000)
    assert revocation.remembered_s(LIMITS) == 370
    assert state.revokes(kept, session="s", device=None, jti=None)
    assert state.revokes(kept, session=None, device="s", jti="j")
    assert not state.revokes(WallInstant(kept + 1), session="s", device=None, jti="j")
    assert not state.revokes(kept, session="j", device="j", jti="s")
    assert not state.revokes(kept, session=None, device=None, jti=None)
    assert len(revoke(state, 1_200, device_ids=("d",))) == 3
    later = revoke(state, 1_371, device_ids=("d",))
    assert (len(later), later.sessions) == (1, {})


def test_a_second_revocation_prolongs_and_never_shortens() -> None:
    state = revoke(revoke(Revocations(), 1_100, jtis=("j",)), 1_000, jtis=("j",))
    assert state.jtis == {"j": 1_470 * 1_000_000}


def test_a_revocation_answers_what_it_holds_each_id_once() -> None:
    command = RevokeTokens(session_ids=("b", "a", "b"), jtis=("j",), reason="lost phone")
    step = revocation.decide(Revocations(), command, stamp(1_000), LIMITS)
    assert isinstance(step, Step)
    at, until = "1970-01-01T00:16:40.000000Z", "1970-01-01T00:22:50.000000Z"
    assert step.events == (TokenRevoked("sync", ("b", "a"), (), ("j",), "lost phone", at, until),)
    assert step.answer == Revoked(("b", "a"), (), ("j",), "lost phone", at)


@pytest.mark.parametrize("ids", [{}, {"jtis": ("",)}, {"device_ids": ("d", " ")}, {"session_ids": ("s",) * 1_001}])
def test_a_revocation_names_at_least_one_id_and_not_too_many(ids: Any) -> None:
    refused = revocation.decide(Revocations(), RevokeTokens(**ids), stamp(1), LIMITS)
    assert isinstance(refused, Rejected) and refused.reason is Reason.INVALID_REQUEST


def test_the_list_of_revocations_is_bounded_and_makes_room_in_time() -> None:
    limits = evolve(LIMITS, revocations_max=3)
    state = revoke(Revocations(), 1_000, jtis=("a", "b"))
    more = RevokeTokens(jtis=("c", "d"))
    refused = revocation.decide(state, more, stamp(1_001), limits)
    assert isinstance(refused, Rejected) and refused.reason is Reason.OVERLOADED and refused.retry_after_ms
    assert isinstance(revocation.decide(state, more, stamp(1_371), limits), Step)
