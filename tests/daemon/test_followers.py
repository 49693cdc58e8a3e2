"""Live delivery by event streams: catching up and live are one path, and every way in which a stream ends, in time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from live_world import (
    NOW,
    RUN_STREAM,
    RUN_TOPIC,
    SETTINGS,
    WORKER_STREAM,
    WORKER_TOPIC,
    Event,
    World,
    asking,
    bearer,
    body,
    frames,
    next_frames,
    seqs,
    smaller,
    tokens,
    told,
)

from turnlane.core.ids import Seq
from turnlane.core.owners import Owner
from turnlane.core.ports import StoreError
from turnlane.core.reasons import Reason
from turnlane.core.step import Step
from turnlane.daemon.followers import Follower
from turnlane.daemon.live import PAGES_HELD_MAX
from turnlane.daemon.live_messages import Answer
from turnlane.daemon.live_queries import LiveRequest
from turnlane.machines import revocation
from turnlane.machines.revocation import Revocations, RevokeTokens
from turnlane.machines.turn import Stamp


async def rest(follower: Follower, within_s: float = 10_000) -> list[Event]:
    """Everything up to the end of the stream."""
    found: list[Event] = []
    with trio.fail_after(within_s):
        async for chunk in follower:
            found += frames(chunk)
    return found


def ended(events: list[Event]) -> tuple[str, int]:
    assert events[-1].name == "closed", events
    return events[-1].data["reason_code"], events[-1].data["next_cursor"]


def revoke(world: World, **ids: tuple[str, ...]) -> None:
    stamp = Stamp(world.clock.now(), world.clock.wall(), 0, 1)
    step = revocation.decide(Revocations(), RevokeTokens(**ids), stamp, world.limits)
    assert isinstance(step, Step)
    world.live.revoked(revocation.evolve(Revocations(), step.events[0], 1))


# catching up and following


async def test_a_stream_says_hello_catches_up_and_goes_on(autojump_clock: Any) -> None:
    world = World()
    world.append(3)
    follower = await world.follow(1)
    (hello,) = await next_frames(follower)
    hint = hello.data.pop("recommended_reconnect_backoff_ms")
    assert 400 <= hint <= 650 and hello.retry == hint and hello.name == "hello"
    assert hello.data == {
        "topic": RUN_TOPIC,
        "after_seq": 1,
        "head_cursor": 3,
        "oldest_available_cursor": 0,
        "log_epoch": "e1",
    }
    two, three, caught_up = await next_frames(follower)
    assert (two.name, two.id, three.id, seqs([two, three])) == ("message", 2, 3, [2, 3])
    assert (caught_up.name, caught_up.data) == ("caught_up", {"next_cursor": 3})
    polled = body(await world.poll(1))
    assert [two.data, three.data] == polled["messages"], "the messages are those of a poll"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_append_later, world)
        assert seqs(await next_frames(follower)) == [4, 5]
    assert follower.headers["content-type"] == "text/event-stream"


async def _append_later(world: World) -> None:
    await trio.sleep(1)
    world.append(2)


async def test_without_a_cursor_a_stream_begins_at_the_head(autojump_clock: Any) -> None:
    world = World()
    world.append(3)
    follower = await world.follow()
    hello, caught_up = await next_frames(follower)
    assert (hello.data["after_seq"], caught_up.name, caught_up.data) == (3, "caught_up", {"next_cursor": 3})
    world.append(1)
    assert seqs(await next_frames(follower)) == [4]


@pytest.mark.parametrize(
    ("after", "header", "expected"),
    [
        (None, "2", 2),
        (2, "2", 2),
        (2, " ", 2),
        (2, None, 2),
        (2, "3", "cursor_conflict"),
        (None, "x", "invalid_query"),
        (None, "-1", "invalid_query"),
        (2, "9007199254740992", "invalid_query"),
    ],
)
async def test_a_cursor_comes_by_header_or_query(after: int | None, header: str | None, expected: Any) -> None:
    world = World()
    world.append(3)
    found = await world.live.follow(asking(after, last_event_id=header))
    if isinstance(found, Follower):
        assert found.cursor == expected
    else:
        assert told(found) == (400, "invalid_request", expected)


@pytest.mark.parametrize("tail_ms", ["0", "-1", "x", "1.5", "3600001", ""])
async def test_a_tail_is_a_positive_number_within_its_bound(tail_ms: str) -> None:
    assert told(await World().live.follow(asking(tail_ms=tail_ms))) == (400, "invalid_request", "invalid_query")


async def test_a_stale_cursor_is_refused_before_the_stream_begins() -> None:
    world = World()
    world.append(3_000)
    assert told(await world.live.follow(asking(1_975))) == (410, "stale_cursor", "retention_floor_breach")
    assert isinstance(await world.live.follow(asking(1_976)), Follower)
    assert world.live.status().followers == 1


async def test_a_stream_whose_cursor_is_ahead_waits_for_the_log(autojump_clock: Any) -> None:
    world = World()
    world.append(1)
    follower = await world.follow(3)
    hello, caught_up = await next_frames(follower)
    assert (hello.data["head_cursor"], caught_up.data["next_cursor"]) == (1, 3)
    world.append(3)
    assert seqs(await next_frames(follower)) == [4]


ACTS = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 5), st.sampled_from([0, 40, 300])),
    st.tuples(st.just("silent"), st.integers(1, 3), st.just(0)),
    st.tuples(st.just("read"), st.integers(1, 4), st.just(0)),
    st.tuples(st.just("reconnect"), st.just(0), st.just(0)),
    st.tuples(st.just("restart"), st.just(0), st.just(0)),
)
SMALL = smaller(
    live_window_items_max=1_000, tail_bytes_max=200, tails_bytes_max=300, sse_page_bytes_max=500, outbound_items_max=4
)


@settings(max_examples=150)
@given(st.lists(ACTS, min_size=4, max_size=20))
async def test_nothing_is_lost_or_repeated_where_history_meets_live(acts: list[tuple[str, int, int]]) -> None:
    """For any history of writes, reads, reconnects with the last id, and restarts: each event once and in order."""
    world = World(limits=SMALL)
    follower = await world.follow(0)
    given_: list[Seq] = [0]
    announced = 0
    for act, number, size in [*acts, ("append", 1, 0)]:
        match act:
            case "append":
                announced = world.append(number, size=size)
            case "silent":
                world.append(number, announce=False)
            case "read":
                for _ in range(number):
                    if given_[-1] < announced:
                        given_ += seqs(await next_frames(follower, 5))
            case _:
                follower.close()
                if act == "restart":
                    world.restart()
                follower = await world.follow(last_event_id=str(given_[-1]))
    head = world.store.head(RUN_STREAM).seq
    with trio.fail_after(5):
        while given_[-1] < head:
            given_ += seqs(await next_frames(follower, 5))
    assert given_ == list(range(head + 1))


async def test_a_page_is_bounded_by_bytes(autojump_clock: Any) -> None:
    world = World(limits=smaller(sse_page_bytes_max=2_000))
    world.append(20, size=500)
    follower = await world.follow(0)
    await next_frames(follower)
    assert [len(seqs(await next_frames(follower))) for _ in range(3)] == [3, 3, 3]


async def test_silence_is_broken_by_a_comment(autojump_clock: Any) -> None:
    """Every `sse_keepalive_ms` without a frame, counted from the last one, whatever else is done meanwhile."""
    world = World(limits=smaller(sse_recheck_ms=7_000))
    follower = await world.follow()
    await next_frames(follower)
    begun = trio.current_time()
    for number in (1, 2):
        assert await next_frames(follower) == [Event("", None)]
        assert trio.current_time() - begun == pytest.approx(15 * number)
    await trio.sleep(10)
    world.append(1)
    assert seqs(await next_frames(follower)) == [1]
    await next_frames(follower)
    assert trio.current_time() - begun == pytest.approx(55)


async def test_a_topic_that_has_no_stream_is_quiet_until_its_end(autojump_clock: Any) -> None:
    world = World()
    follower = await world.follow(topic="runtime.codex_worker_events", tail_ms=20_000)
    events = await rest(follower)
    assert [event.name for event in events] == ["hello", "caught_up", "", "closed"]
    assert ended(events) == ("tail_elapsed", 0)


# the ends


async def test_a_tail_ends_by_itself(autojump_clock: Any) -> None:
    world = World()
    world.append(2)
    begun = trio.current_time()
    events = await rest(await world.follow(1, tail_ms=5_000))
    assert ended(events) == ("tail_elapsed", 2) and trio.current_time() - begun == pytest.approx(5)
    assert world.live.status().followers == 0
    assert (await world.live.metrics())["delivery_metrics"]["recent_disconnect_causes"] == []


@pytest.mark.parametrize(("life", "ends"), [(10, 15), (300, 300), (9_999, 300)])
@pytest.mark.parametrize("busy", [False, True])
async def test_a_stream_ends_when_its_token_would_be_refused(
    life: int, ends: int, busy: bool, autojump_clock: Any
) -> None:
    """At the expiry with the skew, or at the greatest age, within 1,000 ms; quiet or busy."""
    world = World()
    follower = await world.follow(0, authorization=bearer(exp=NOW + life))
    async with trio.open_nursery() as nursery:
        if busy:
            nursery.start_soon(_write_on, world)
        events = await rest(follower)
        nursery.cancel_scope.cancel()
    assert ended(events)[0] == "token_expired"
    over = world.clock.wall() - (NOW + ends) * 1_000_000
    assert 0 < over <= 1_000_000
    assert (await world.live.metrics())["delivery_metrics"]["recent_disconnect_causes"] == ["token_expired"]


async def _write_on(world: World) -> None:
    while True:
        world.append(1)
        await trio.sleep(0.5)


@pytest.mark.parametrize("ids", [{"session_ids": ("app-1",)}, {"device_ids": ("phone",)}, {"jtis": ("token_1",)}])
async def test_a_revocation_ends_the_streams_that_it_concerns_at_once(ids: Any, autojump_clock: Any) -> None:
    world = World()
    mine, other = await world.follow(), await world.follow(
        authorization=bearer(oa_session_id="app-2", oa_device_id="tablet", jti="token_2")
    )  # fmt: skip
    found: dict[str, Any] = {}

    async def read(name: str, follower: Follower) -> None:
        found[name] = await rest(follower), trio.current_time()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, "mine", mine)
        nursery.start_soon(read, "other", other)
        await trio.sleep(7)
        at = trio.current_time()
        revoke(world, **ids)
        await trio.sleep(2)
        other.end(Reason.DRAINING)
    assert ended(found["mine"][0]) == ("token_revoked", 0) and found["mine"][1] - at < 1
    assert ended(found["other"][0])[0] == "draining"


async def test_a_revocation_between_two_frames_ends_the_stream_with_the_next(autojump_clock: Any) -> None:
    """Also while a page is being read: nothing of it leaves any more."""
    gate = trio.Event()
    gate.set()

    async def slow(function: Any, /, *args: object) -> Any:
        await gate.wait()
        return function(*args)

    world = World(hop=slow)
    world.append(5)
    follower = await world.follow(0)
    await next_frames(follower)
    gate = trio.Event()
    found: list[Event] = []
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            found.extend(await next_frames(follower))

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        revoke(world, jtis=("token_1",))
        gate.set()
    assert ended(found) == ("token_revoked", 0) and len(found) == 1


@pytest.mark.parametrize("end", ["revoked", "drained"])
async def test_an_end_that_is_ordered_while_a_stream_is_being_opened_is_not_missed(end: str) -> None:
    gate = trio.Event()

    async def slow(function: Any, /, *args: object) -> Any:
        await gate.wait()
        return function(*args)

    world = World(hop=slow)
    found: list[Any] = []
    async with trio.open_nursery() as nursery:

        async def open_() -> None:
            found.append(await world.live.follow(asking(0)))

        nursery.start_soon(open_)
        await trio.testing.wait_all_tasks_blocked()
        revoke(world, jtis=("token_1",)) if end == "revoked" else world.live.drain()
        gate.set()
    assert told(found[0])[2] == ("token_revoked" if end == "revoked" else "draining")


async def test_rights_are_judged_again_every_half_minute(autojump_clock: Any) -> None:
    """An owner that changed, scopes that changed, a key that is gone: each ends the stream with its reason."""
    for reason in ("owner_mismatch", "scope_changed", "token_revoked"):
        world = World()
        follower = await world.follow(0)
        begun = trio.current_time()
        await trio.sleep(1)
        if reason == "owner_mismatch":
            world.owners[RUN_STREAM] = Owner(user_id=8)
        elif reason == "scope_changed":
            narrow = await _reader_of(world, oa_sync_scopes=["runtime.worker_lifecycle_events"])
            world.live.tokens.check = lambda *_, narrow=narrow: narrow  # type: ignore[method-assign]
        else:
            world.live.tokens = tokens(revoked_jtis=["token_1"])
        events = await rest(follower)
        assert ended(events)[0] == reason and trio.current_time() - begun == pytest.approx(30)


async def _reader_of(world: World, **changed: Any) -> Any:
    follower = await world.follow(0, topic=WORKER_TOPIC, authorization=bearer(**changed))
    follower.close()
    return follower.reader


async def test_a_stream_whose_window_has_passed_is_closed_with_what_a_410_says(autojump_clock: Any) -> None:
    world = World()
    follower = await world.follow(0)
    await next_frames(follower)
    world.append(3_000)
    (closed,) = await rest(follower)
    assert ended([closed]) == ("stale_cursor", 0)
    refused = body(await world.poll(0))["details"]
    assert closed.data == {"reason_code": "stale_cursor", "next_cursor": 0, **refused}


async def test_a_drain_ends_all_streams_and_lets_none_begin(autojump_clock: Any) -> None:
    world = World()
    follower = await world.follow(0)
    await next_frames(follower)
    world.live.drain()
    assert ended(await rest(follower)) == ("draining", 0)
    refused = await world.live.follow(asking(0))
    assert told(refused) == (503, "draining", "draining") and isinstance(refused, Answer)
    assert (await world.poll()).status == 200


async def test_of_two_ends_the_first_is_told(autojump_clock: Any) -> None:
    world = World()
    follower = await world.follow(0)
    await next_frames(follower)
    revoke(world, jtis=("token_1",))
    world.live.drain()
    assert ended(await rest(follower)) == ("token_revoked", 0)


async def test_a_driver_that_fails_ends_the_stream(autojump_clock: Any) -> None:
    world = World()
    world.append(1)
    follower = await world.follow(0)
    await next_frames(follower)
    world.store.break_with("gone")
    assert ended(await rest(follower)) == ("fanout_unavailable", 0)
    assert list(world.live.counts.causes) == ["fanout_error"]


# who does not read


class Peer:
    """A peer that takes `credit` chunks and then none. `cut` says that a write was given up."""

    def __init__(self, credit: float = float("inf"), *, broken: bool = False) -> None:
        self.credit, self.broken, self.cut = credit, broken, False
        self.events: list[Event] = []

    async def send(self, chunk: bytes) -> None:
        if not self.credit:
            if self.broken:
                raise trio.BrokenResourceError
            try:
                await trio.sleep_forever()
            finally:
                self.cut = True
        self.credit -= 1
        self.events += frames(chunk)


async def test_a_peer_that_takes_nothing_is_left_after_the_bound(autojump_clock: Any) -> None:
    world = World()
    world.append(5)
    peer = Peer(credit=1)
    begun = trio.current_time()
    await (await world.follow(0)).serve(peer.send)
    assert peer.cut and trio.current_time() - begun == pytest.approx(30)
    assert world.live.status().followers == 0 and list(world.live.counts.causes) == ["slow_consumer_evicted"]


async def test_a_reader_that_comes_back_too_late_hears_why(autojump_clock: Any) -> None:
    world = World()
    follower = await world.follow(0)
    await next_frames(follower)
    await trio.sleep(30.1)
    assert ended(await rest(follower)) == ("slow_consumer_evicted", 0)


@pytest.mark.parametrize("why", ["revoked", "expired"])
async def test_a_stalled_write_does_not_keep_a_stream_whose_rights_ended(why: str, autojump_clock: Any) -> None:
    """Within 1,000 ms also when the peer takes nothing: then the write is cut."""
    world = World()
    world.append(5)
    peer = Peer(credit=1)
    follower = await world.follow(0, authorization=bearer(exp=NOW + 5))
    over = 10.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follower.serve, peer.send)
        if why == "revoked":
            over = 3.0
            await trio.sleep(over)
            revoke(world, jtis=("token_1",))
    assert peer.cut and trio.current_time() - over <= 1
    expected = "token_revoked" if why == "revoked" else "slow_consumer_evicted"
    assert list(world.live.counts.causes) == [expected]


async def test_a_healthy_peer_hears_the_end_of_its_rights(autojump_clock: Any) -> None:
    world = World()
    peer = Peer()
    follower = await world.follow(0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follower.serve, peer.send)
        await trio.sleep(1)
        world.append(2)
        await trio.sleep(1)
        revoke(world, jtis=("token_1",))
    assert seqs(peer.events) == [1, 2] and ended(peer.events) == ("token_revoked", 2) and not peer.cut


async def test_a_peer_that_is_gone_is_counted_and_told_to_the_caller(autojump_clock: Any) -> None:
    world = World()
    with pytest.raises(trio.BrokenResourceError):
        await (await world.follow(0)).serve(Peer(credit=0, broken=True).send)
    assert world.live.status().followers == 0 and list(world.live.counts.causes) == ["send_failed"]


async def test_a_follower_that_never_reads_disturbs_nobody(autojump_clock: Any) -> None:
    """A thousand events on its topic and on another: every honest neighbour has each of them in the instant."""
    world = World(limits=smaller(followers_per_principal_max=1_000))
    deaf = [Peer(credit=0) for _ in range(20)]
    honest = [(Peer(), RUN_TOPIC), (Peer(), WORKER_TOPIC)]
    async with trio.open_nursery() as nursery:
        for peer in deaf:
            nursery.start_soon((await world.follow(0)).serve, peer.send)
        for peer, topic in honest:
            nursery.start_soon((await world.follow(0, topic=topic)).serve, peer.send)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(20):
            world.append(5)
            world.append(5, stream=WORKER_STREAM)
            await trio.sleep(0.2)
            assert [len(seqs(peer.events)) for peer, _ in honest] == [5 * (number + 1)] * 2
        nursery.cancel_scope.cancel()
    assert not any(peer.events for peer in deaf) and world.live.status().followers == 0


async def test_a_hot_topic_delays_a_quiet_one_by_a_page_of_each_of_its_followers() -> None:
    """Followers take turns: between two pages of one every other that has something to say has said a page."""
    world = World(limits=smaller(outbound_items_max=2, live_window_items_max=5_000))
    world.append(400)
    order: list[str] = []

    @asynccontextmanager
    async def following(name: str, topic: str) -> AsyncIterator[None]:
        follower = await world.follow(0, topic=topic)

        async def run() -> None:
            async for chunk in follower:
                if seqs(frames(chunk)):
                    order.append(name)

        nursery.start_soon(run)
        yield

    async with trio.open_nursery() as nursery:
        async with following("hot", RUN_TOPIC), following("warm", RUN_TOPIC), following("quiet", WORKER_TOPIC):
            while len(order) < 60:
                await trio.lowlevel.checkpoint()
            world.append(1, stream=WORKER_STREAM)
            told_at = len(order)
            while "quiet" not in order:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert order.index("quiet") - told_at <= 8
    assert all(set(order[at : at + 6]) >= {"hot", "warm"} for at in range(0, 54, 6))


# how many, how fast


async def test_streams_are_bounded_by_principal_and_by_process(autojump_clock: Any) -> None:
    world = World(limits=smaller(followers_per_principal_max=2, followers_max=3))
    mine = [await world.follow(0) for _ in range(2)]
    refused = await world.live.follow(asking(0))
    assert told(refused) == (429, "rate_limited", "too_many_followers") and isinstance(refused, Answer)
    assert body(refused)["retry_after_ms"] >= 400
    await world.follow(0, authorization=bearer(oa_device_id="tablet"))
    assert told(await world.live.follow(asking(0, authorization=bearer(oa_device_id="watch"))))[0] == 429
    mine[0].close()
    mine[0].close()
    short = await world.follow(0, tail_ms=1)
    assert told(await world.live.follow(asking(0)))[0] == 429
    assert ended(await rest(short)) == ("tail_elapsed", 0)
    await world.follow(0)
    open_ = World(limits=smaller(followers_per_principal_max=1), settings=evolve(SETTINGS, auth=False))
    for _ in range(3):
        assert isinstance(await open_.live.follow(LiveRequest(RUN_TOPIC)), Follower), "nobody is told apart"


async def test_many_that_come_at_once_do_not_pass_the_bound_together(autojump_clock: Any) -> None:
    gate = trio.Event()

    async def slow(function: Any, /, *args: object) -> Any:
        await gate.wait()
        return function(*args)

    world = World(limits=smaller(followers_per_principal_max=2), hop=slow)
    found: list[Any] = []

    async def ask() -> None:
        found.append(await world.live.follow(asking(0)))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
    assert sum(isinstance(one, Follower) for one in found) == 2 == world.live.status().followers


async def test_above_its_rate_a_topic_wakes_its_followers_once_a_second(autojump_clock: Any) -> None:
    """No event is lost and no write refused: what is written in the second is there at the start of the next."""
    classes = {name: evolve(of, publish_per_second=3) for name, of in SETTINGS.classes.items()}
    world = World(settings=evolve(SETTINGS, classes=classes))
    await trio.sleep(1 - world.clock.now() % 1_000_000_000 / 1e9)
    peer = Peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon((await world.follow(0)).serve, peer.send)
        heard = []
        for _ in range(10):
            await trio.testing.wait_all_tasks_blocked()
            world.append(1)
            await trio.sleep(0.05)
            heard.append(len(seqs(peer.events)))
        assert heard == [1, 2, 3, 3, 3, 3, 3, 3, 3, 3]
        await trio.sleep(0.51)
        assert seqs(peer.events) == list(range(1, 11))
        nursery.cancel_scope.cancel()
    (row,) = (await world.live.metrics())["topic_windows"]
    assert row["publish_rate_limited_count"] == 7
    assert row["last_violation_reason"] == "khala_publish_rate_limited"


async def test_the_pace_of_a_topic_pushes_no_follower_out_of_the_window(autojump_clock: Any) -> None:
    """Many windows in a second: who is held is let go when half a window has gathered, and misses nothing."""
    classes = {name: evolve(of, publish_per_second=1) for name, of in SETTINGS.classes.items()}
    world = World(limits=smaller(live_window_items_max=10), settings=evolve(SETTINGS, classes=classes))
    peer = Peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon((await world.follow(0)).serve, peer.send)
        for number in range(300):
            await trio.testing.wait_all_tasks_blocked()
            world.append(1)
            await trio.sleep(0.001)
            assert number + 1 - len(seqs(peer.events)) <= 5
        nursery.cancel_scope.cancel()
    assert seqs(peer.events) == list(range(1, len(seqs(peer.events)) + 1))


async def test_followers_at_the_same_place_are_told_by_one_rendering(autojump_clock: Any) -> None:
    """What is shared is the work: each gets its frames, and each is counted."""
    world = World()
    made: list[int] = []
    render = world.live._renderers["run_events"]

    def counting(topic: Any, event: Any) -> Any:
        made.append(event.seq)
        return render(topic, event)

    world.live._renderers = {**world.live._renderers, "run_events": counting}
    world.append(3)
    for number in range(4):
        follower = await world.follow(0, authorization=bearer(oa_device_id=f"d-{number}"))
        await next_frames(follower)
        assert seqs(await next_frames(follower)) == [1, 2, 3]
        follower.close()
    assert made == [1, 2, 3] and world.live.counts.messages == {"run_events": 12}
    for head in range(4, 40):
        world.append(1)
        assert body(await world.poll(head - 1, authorization=bearer(jti=f"p-{head}")))["messages"]
        await trio.sleep(1)
    assert len(world.live._rendered) == PAGES_HELD_MAX


async def test_what_nobody_announced_is_heard_after_a_silence(autojump_clock: Any) -> None:
    """As in a shadow, where another process writes."""
    world = World()
    world.append(1)
    follower = await world.follow(0)
    while not seqs(await next_frames(follower)):
        pass
    world.append(2, announce=False)
    began = trio.current_time()
    assert seqs(await next_frames(follower)) == [2, 3]
    assert trio.current_time() - began == pytest.approx(world.limits.sse_keepalive_ms / 1000)
    assert [event.name for event in await next_frames(follower)] == [""], "and then it is quiet again"


async def test_rights_that_cannot_be_judged_again_end_a_stream(autojump_clock: Any) -> None:
    """It is told that the driver failed, and comes back by its cursor; nobody is denied."""

    class Broken:
        async def owner_of(self, stream: str) -> Owner | None:
            raise StoreError(Reason.JOURNAL_BROKEN, "gone")

    world = World()
    world.append(1)
    follower = await world.follow(0)
    world.live._owners = Broken()
    assert ended(await rest(follower)) == ("fanout_unavailable", 1)
    assert not world.live.counts.denied
