"""The primitives of the runtime keep their promises in every order of tasks that trio can produce.

Each scene is a few tasks around one real primitive, and `explore(mode="dfs")` runs all orders of all their steps. What
happens is noted in the history of the run, and a judge reads it from outside. Where a cancel may come, a task of the
scene does it. Time is virtual and binary (eighths of a second), so that what falls due together is judged together.

A search that finds nothing is worth what it finds when something is there: each primitive has a planted bug which the
order of spawning hides and the search must find, by the judge that is named.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from attrs import evolve, frozen

from turnlane.codec import Codec
from turnlane.core.ids import DispatchId, SessionId, TurnId
from turnlane.core.instants import Instant, WallInstant
from turnlane.core.limits import DEFAULT_LIMITS, Limits
from turnlane.core.ports import StoreError
from turnlane.core.reasons import Fenced, Rejected
from turnlane.core.step import Appended, Batch, Kept, Lane, Step
from turnlane.journal import MemoryStore, StoreCursors
from turnlane.machines import fence
from turnlane.machines import session as rules
from turnlane.machines import turn as turns
from turnlane.machines.delivery import Send, singly
from turnlane.machines.fence import FenceView
from turnlane.machines.plan import Bundle, Profile, freeze
from turnlane.machines.session import Session, decide, evolve_session
from turnlane.machines.turn import Stamp
from turnlane.runtime.agent import Turn
from turnlane.runtime.attaching import attach
from turnlane.runtime.counts import Counts
from turnlane.runtime.egress import Egress, LiveDigest
from turnlane.runtime.lanes import Doorbell, Lanes
from turnlane.runtime.mailbox import Envelope, Mailbox, StartWish
from turnlane.runtime.owner import StreamOwner
from turnlane.runtime.pool import Permits, Share, Window
from turnlane.runtime.residents import SESSION
from turnlane.runtime.tail import Tail
from turnlane.runtime.timers import Timers
from turnlane.runtime.writer import JournalWriter
from turnlane.testing import Report, World, explore
from turnlane.testing.contracts import STREAM, batch

from .harness import in_place

DEEP = os.environ.get("TURNLANE_LEVEL", "default") != "default"

pause = trio.lowlevel.checkpoint
Part = Callable[[], Awaitable[None]]
Judge = Callable[[World], None]


async def together(*parts: Part) -> None:
    async with trio.open_nursery() as nursery:
        for number, part in enumerate(parts):
            nursery.start_soon(part, name=f"{part.__name__}-{number}")


def later(part: Part, pauses: int = 1) -> Part:
    """The part, begun some batches of tasks later."""

    async def begins_later() -> None:
        for _ in range(pauses):
            await pause()
        await part()

    return begins_later


def noted(world: World, kind: str) -> list[dict[str, Any]]:
    return [entry.fields for entry in world.history.of(kind)]


# doorbell


async def a_counter_is_watched(world: World) -> None:
    """The watcher looks, thinks, and sleeps until it is rung; that it ends is what is shown."""
    bell, count = Doorbell(), 0

    async def rings() -> None:
        nonlocal count
        for _ in range(1 + world.size):
            count += 1
            bell.ring()
            await pause()

    async def watches() -> None:
        while (seen := count) < 2 + 2 * world.size:
            world.note("seen", count=seen)
            await pause()
            await bell.wait()

    await together(watches, rings, rings)


async def a_wait_is_given_up(world: World) -> None:
    """One ring, one sleeper whose wait may be cancelled: the ring ends the first wait or the second."""
    bell, patience = Doorbell(), trio.CancelScope()

    async def waits() -> None:
        with patience:
            await bell.wait()
            world.note("woken", wait=1)
            return
        await bell.wait()
        world.note("woken", wait=2)

    async def rings() -> None:
        bell.ring()

    async def gives_up() -> None:
        patience.cancel(reason="impatient")

    await together(waits, rings, later(gives_up))


async def two_wait_at_one_bell(world: World) -> None:
    """A bell has one sleeper: a second is told, and does not push the first out."""
    bell = Doorbell()

    async def waits() -> None:
        try:
            await bell.wait()
        except AssertionError:
            world.note("refused")
        else:
            world.note("woken", wait=1)

    async def rings() -> None:
        while len(world.history) < 2:
            bell.ring()
            await pause()

    await together(waits, waits, rings)


def one_is_woken(world: World) -> None:
    assert noted(world, "woken"), "nobody was woken"


# lanes

NARROW = Limits(
    data_items_max=1, data_high_items=1, data_low_items=0, control_items_max=4, control_high_items=4,
    control_low_items=0, control_reserved_items=1, commit_batches_max=4,
)  # fmt: skip


async def two_lanes_are_offered_to(world: World, *, impatient: bool = False) -> None:
    """A lane of data that holds one item, a control lane beside it, and a receiver that sleeps when both are empty."""
    lanes: Lanes[str] = Lanes("scene", NARROW, lambda _: None)
    senders, patience = 2 if world.size > impatient else 1, trio.CancelScope()

    def sends(lane: Lane, *items: str) -> Part:
        async def sends_items() -> None:
            nonlocal senders
            for item in items:
                world.note("offered", item=item, accepted=lanes.offer(lane, item))
                await pause()
            senders -= 1
            lanes.bell.ring()

        return sends_items

    async def receives() -> None:
        while senders or not lanes.empty():
            item = lanes.take()
            if item is None:
                await lanes.bell.wait()
            else:
                world.note("taken", item=item, control_left=lanes.items(Lane.CONTROL))
                await pause()

    async def receives_until_cancelled() -> None:
        with patience:
            await receives()
        await receives()

    async def cancels() -> None:
        patience.cancel(reason="impatient")

    controls = [later(sends(Lane.CONTROL, *("c1", "c2")[: world.size]), 2)]
    await together(
        receives_until_cancelled,
        *(controls if world.size > impatient else []),
        sends(Lane.DATA, "d1", "d2"),
        *([later(cancels)] if impatient else []),
    )
    world.note("books", accepted=sum(lane.accepted_total for lane in lanes.status()))


async def a_receiver_is_cancelled(world: World) -> None:
    """The same; the receiver is cancelled somewhere, and another goes on in its place."""
    await two_lanes_are_offered_to(world, impatient=True)


def what_was_accepted_is_taken(world: World) -> None:
    accepted = Counter(offer["item"] for offer in noted(world, "offered") if offer["accepted"])
    taken = Counter(take["item"] for take in noted(world, "taken"))
    assert accepted == taken, f"accepted {dict(accepted)}, taken {dict(taken)}"


def each_lane_keeps_its_order(world: World) -> None:
    taken = [take["item"] for take in noted(world, "taken")]
    for lane in "cd":
        of_lane = [item for item in taken if item.startswith(lane)]
        assert of_lane == sorted(of_lane), f"taken {taken}"


def control_goes_first(world: World) -> None:
    late = [take for take in noted(world, "taken") if take["item"].startswith("d") and take["control_left"]]
    assert not late, f"data was taken while control waited: {late}"


def the_books_agree(world: World) -> None:
    accepted = sum(offer["accepted"] for offer in noted(world, "offered"))
    assert noted(world, "books") == [{"accepted": accepted}], f"accepted {accepted}, {noted(world, 'books')}"


LANES_HOLD: tuple[Judge, ...] = (
    what_was_accepted_is_taken, each_lane_keeps_its_order, control_goes_first, the_books_agree
)  # fmt: skip


# permits and the window

ROOM = 64
"""The least window that `Limits` allows; all of it is taken before the scene begins."""


async def producers_share_the_window(world: World, *, impatient: bool = False) -> None:
    """Producers come to a full window as `Turn.output` does, one of them later; a committer makes room for each."""
    window = Window(Limits(data_inflight_max=ROOM, data_runnable_max=1), inflight=ROOM)
    patience = trio.CancelScope()

    async def produces() -> None:
        share = Share()
        if not window.lets(share):
            await window.enter(share)
        window.accepted()
        world.note("accepted", inflight=window.inflight)

    async def produces_while_patient() -> None:
        with patience:
            await produces()
        if patience.cancelled_caught:
            world.note("gave_up")

    async def gives_up() -> None:
        patience.cancel(reason="impatient")

    async def commits() -> None:
        while len(noted(world, "accepted") + noted(world, "gave_up")) < 1 + len(others):
            await pause()
            if window.full:
                window.committed(1)
                world.note("committed")
            await window.admit()

    others = [produces] * (world.size - impatient)
    await together(commits, later(produces_while_patient), *([later(gives_up, 2)] if impatient else []), *others)
    world.note("left", waiting=window.waiting, inflight=window.inflight - ROOM)


async def a_waiting_producer_is_cancelled(world: World) -> None:
    """The same, and one who waits is cancelled: what it was promised goes to another."""
    await producers_share_the_window(world, impatient=True)


def the_window_is_bounded(world: World) -> None:
    """With a slack of one slice (`data_runnable_max`, here 1): a newcomer may step in before the one who was woken."""
    over = [one["inflight"] for one in noted(world, "accepted") if one["inflight"] > ROOM]
    assert not over, f"{over} in flight, at most {ROOM}"


def no_room_leaks(world: World) -> None:
    expected = len(noted(world, "accepted")) - len(noted(world, "committed"))
    assert noted(world, "left") == [{"waiting": 0, "inflight": expected}], f"{noted(world, 'left')}, not {expected}"


async def starts_take_permits(world: World) -> None:
    """Three starts for one permit: counted, on their way to the disk, permitted, ended; as the session's actor does."""
    permits = Permits(1)

    async def starts() -> None:
        if permits.counted() >= permits.most:
            world.note("refused")
            return
        permits.opening["acme"] += 1
        try:
            await pause()
            permits.take("acme")
        finally:
            permits.opening["acme"] -= 1
        world.note("runs", taken=permits.taken, of_tenant=permits.counted_of("acme"))
        await pause()
        permits.give_back("acme")

    await together(starts, later(starts), later(starts))
    world.note("left", counted=permits.counted(), tenants=dict(permits.by_tenant))


def permits_are_bounded(world: World) -> None:
    runs = noted(world, "runs")
    assert runs and all(run == {"taken": 1, "of_tenant": 1} for run in runs), runs
    assert noted(world, "left") == [{"counted": 0, "tenants": {}}], noted(world, "left")


# the writer


def writer_of(world: World, store: MemoryStore, hop: Any = in_place) -> JournalWriter:
    limits = evolve(DEFAULT_LIMITS, commit_batches_max=2)
    world.store = store  # type: ignore[attr-defined]
    return JournalWriter(store, hop, world.clock, limits, Window(limits), lambda _: None)


def submits(world: World, writer: JournalWriter, name: str, heads: Counter[str], stream: str = STREAM) -> Part:
    """A part that submits one event behind what was submitted before it. What it hears is noted."""

    async def submits_one() -> None:
        try:
            writer.submit(
                batch(heads[stream], stream=stream),
                lambda outcome: world.note("answered", name=name, kept=isinstance(outcome, Appended)),
            )
        except StoreError:
            world.note("refused", name=name)
        else:
            heads[stream] += 1
            world.note("submitted", name=name)

    return submits_one


def log_of(world: World) -> list[tuple[str, Kept]]:
    """What a store that is opened anew has kept, over all streams."""
    world.store = world.store.reopened()  # type: ignore[attr-defined]
    return world.store.read_all(0, 100)  # type: ignore[attr-defined, no-any-return]


async def under_a_writer(writer: JournalWriter, *parts: Part) -> None:
    """The parts beside the writer's task, which is closed when all have ended."""

    async def closes_at_the_end() -> None:
        await together(*parts)
        writer.close()

    await together(writer.run, closes_at_the_end)


async def some_submit(world: World) -> None:
    writer, heads = writer_of(world, MemoryStore()), Counter[str]()
    parts = [submits(world, writer, f"b{number}", heads) for number in range(1 + world.size)]
    await under_a_writer(writer, *parts, later(submits(world, writer, "other", heads, STREAM + "/other")))


async def the_writer_is_closed_among_submits(world: World) -> None:
    writer, heads = writer_of(world, MemoryStore()), Counter[str]()

    async def closes() -> None:
        writer.close()

    first, second = (submits(world, writer, name, heads) for name in ("b0", "b1"))
    await together(writer.run, first, later(closes), later(second))


async def the_store_breaks_among_submits(world: World) -> None:
    store = MemoryStore()
    writer, heads = writer_of(world, store), Counter[str]()

    async def breaks() -> None:
        store.break_with("a sync failed")

    parts = [later(submits(world, writer, f"b{number}", heads), number // 2) for number in range(1 + world.size)]
    await under_a_writer(writer, *parts, later(breaks, 2))


async def an_append_is_in_doubt(world: World, *, kept: bool = False) -> None:
    store = MemoryStore()
    store.doubt(1, kept=kept)
    writer, heads = writer_of(world, store), Counter[str]()
    await under_a_writer(writer, *[later(submits(world, writer, f"b{number}", heads), number) for number in range(3)])


async def an_append_that_was_kept_is_in_doubt(world: World) -> None:
    await an_append_is_in_doubt(world, kept=True)


async def a_caller_of_the_writer_is_cancelled(world: World) -> None:
    """A write beside the groups, whose caller may be cancelled: it happens, whoever stops waiting for it."""
    heads, inside, patience = Counter[str](), Counter[str](), trio.CancelScope()

    async def hop(function: Any, *args: Any) -> Any:
        inside["hops"] += 1
        world.note("hop", together=inside["hops"])
        answer = await in_place(function, *args)
        inside["hops"] -= 1
        return answer

    writer = writer_of(world, MemoryStore(), hop)

    async def calls() -> None:
        with patience:
            await writer.call(world.note, "called")

    async def gives_up() -> None:
        patience.cancel(reason="impatient")

    await under_a_writer(writer, calls, later(gives_up, 2), submits(world, writer, "b0", heads))
    assert noted(world, "called") == [{}], "what was accepted did not happen once"


def each_is_answered_once(world: World) -> None:
    submitted = [one["name"] for one in noted(world, "submitted")]
    answered = [one["name"] for one in noted(world, "answered")]
    assert sorted(submitted) == sorted(answered), f"submitted {submitted}, answered {answered}"
    kept = [one["name"] for one in noted(world, "answered") if one["kept"]]
    assert kept == [name for name in submitted if name in kept], f"submitted {submitted}, kept {kept}"


def answers_tell_what_is_kept(world: World) -> None:
    told = sum(one["kept"] for one in noted(world, "answered"))
    kept = len(log_of(world))
    assert told == kept, f"{told} answered as kept, {kept} events in the log"


def one_write_at_a_time(world: World) -> None:
    assert all(hop["together"] == 1 for hop in noted(world, "hop")), "two writes of the store at once"


WRITER_HOLDS: tuple[Judge, ...] = (each_is_answered_once, answers_tell_what_is_kept, one_write_at_a_time)


# timers

EIGHTH_MS, EIGHTH_S = 125, 0.125
"""Binary, so that a timer and a sleep of the same length end in the same batch of tasks."""


class Clockwork:
    """The timers of a scene; what is asked of them and what fires is noted."""

    def __init__(self, world: World) -> None:
        self.world, self.timers = world, Timers(world.clock, DEFAULT_LIMITS)  # type: ignore[arg-type]

    def arm(self, key: str, eighths: int) -> None:
        self.timers.arm("scene", key, self._fired, after_ms_=eighths * EIGHTH_MS)
        self._note("armed", key, eighths)

    def drop(self, key: str) -> None:
        self.timers.drop("scene", key)
        self._note("dropped", key)

    def pause(self, key: str) -> None:
        self.timers.pause("scene", key)
        self._note("paused", key)

    def resume(self, key: str) -> None:
        self.timers.resume("scene", key)
        self._note("resumed", key)

    def _fired(self, key: str) -> None:
        self._note("fired", key)

    def _note(self, what: str, key: str, eighths: int = 0) -> None:
        self.world.note("timer", what=what, key=key, eighths=eighths, at=trio.current_time() / EIGHTH_S)

    async def runs(self) -> None:
        with trio.move_on_after(EIGHTH_S * 16):
            await self.timers.run()


def at(eighths: int, *acts: Callable[[], None]) -> Part:
    async def acts_then() -> None:
        await trio.sleep(eighths * EIGHTH_S)
        for act in acts:
            act()
            await pause()

    return acts_then


async def a_timer_is_dropped_and_armed_as_it_falls_due(world: World) -> None:
    clock = Clockwork(world)
    clock.arm("a", 1)
    await together(clock.runs, at(1, lambda: clock.drop("a")), at(1, lambda: clock.arm("a", 2)))


async def an_earlier_timer_is_armed(world: World) -> None:
    clock = Clockwork(world)
    others = [at(0, lambda: clock.arm("next", 1))] * (world.size - 1)
    await together(
        at(0, lambda: clock.arm("late", 3)),
        at(0, lambda: clock.drop("late"), lambda: clock.arm("early", 1)),
        *others,
        clock.runs,
    )


async def a_timer_is_paused_as_it_falls_due(world: World) -> None:
    clock = Clockwork(world)
    clock.arm("a", 1)
    clock.arm("b", 2)
    await together(
        clock.runs, at(1, lambda: clock.pause("a"), lambda: clock.resume("a")), at(2, lambda: clock.resume("a"))
    )


def timers_follow_their_book(world: World) -> None:
    """What was asked, replayed as one would by hand: who is armed, until when, and who fires first."""
    due: dict[str, float] = {}
    left: dict[str, float] = {}
    for entry in noted(world, "timer"):
        key, now = entry["key"], entry["at"]
        match entry["what"]:
            case "armed":
                due.pop(key, None)
                left.pop(key, None)
                due[key] = now + entry["eighths"]
            case "dropped":
                due.pop(key, None)
                left.pop(key, None)
            case "paused" if key in due:
                left[key] = max(0, due.pop(key) - now)
            case "resumed" if key in left:
                due[key] = now + left.pop(key)
            case "fired":
                assert key in due, f"{key} fired at {now} and was not armed"
                assert now == due[key], f"{key} fired at {now}, due at {due[key]}"
                assert due[key] == min(due.values()), f"{key} fired before one that was due earlier: {due}"
                del due[key]
    assert not due, f"never fired: {due}"


# the exit

TURN = TurnId("turn_1")
SESSION_STREAM = "default/session/scene"
CODEC = Codec()


@cache
def a_session_with_an_open_turn() -> tuple[Session, tuple[Any, ...]]:
    """The state and its events; only values, so that all runs may share them."""
    session = SessionId("scene")
    plan = freeze(Bundle(Profile("default", "agent"), {}), turn=TURN, session=session, epoch=1, limits=DEFAULT_LIMITS)
    commands = (
        rules.CreateSession(session),
        rules.StartTurn("k", "hello", TURN, DispatchId("dispatch_1"), plan),
    )
    state, events = Session(session), []
    for command in commands:
        step = decide(state, command, Stamp(Instant(0), WallInstant(0), len(events), 1), DEFAULT_LIMITS)
        assert isinstance(step, Step), step
        for event in step.events:
            events.append(event)
            state = evolve_session(state, event, len(events))
    assert state.turn is not None
    return state, tuple(events)


def kept_of(event: Any, seq: int) -> Kept:
    return CODEC.kept(event, seq, 1, Instant(0), WallInstant(0))


class Exit:
    """A session's owner with an open turn, its exit, its journal: what stands between an agent and the world."""

    def __init__(self, world: World) -> None:
        self.world, (state, events) = world, a_session_with_an_open_turn()
        head, store = len(events), MemoryStore()
        store.append([Batch(SESSION_STREAM, 0, 1, [kept_of(event, seq) for seq, event in enumerate(events, 1)])])
        self.writer = writer_of(world, store)
        self.digest = LiveDigest()
        holder = SimpleNamespace(
            perform=lambda _: None, stamp=lambda stamp: evolve(stamp, live_digest=self.digest.of(TURN))
        )
        self.owner = StreamOwner(
            SESSION_STREAM, SESSION, state, head, 1, self.writer, CODEC, world.clock, self.writer.limits,
            holder, FenceView(1, open_turn=TURN), Tail(self.writer.limits, head), lambda *_: None, keys_complete=True,
        )  # fmt: skip
        self.egress = Egress(self.owner, lambda: [lambda frame: world.note("live", output=frame.output_seq)], Counts())
        runtime = SimpleNamespace(limits=self.writer.limits, window=self.writer.window)
        turn = SimpleNamespace(
            actor=SimpleNamespace(egress=self.egress, runtime=runtime), input="hello", asked=False, digest=self.digest,
            plan=SimpleNamespace(turn=TURN, session="scene", epoch=1), outputs_in_flight=0, output_ended=lambda: None,
        )  # fmt: skip
        self.turn = Turn(turn)  # type: ignore[arg-type]

    async def speaks(self) -> None:
        try:
            for text in range(self.world.size):
                self.world.note("accepted", text=text, seq=await self.turn.output(text))
        except Fenced as no:
            self.world.note("fenced", reason=no.reason.value)

    async def shows(self) -> None:
        try:
            await self.turn.live(b"frame")
        except Fenced as no:
            self.world.note("fenced", reason=no.reason.value)

    async def cancels(self) -> None:
        answer = await self.owner.handle(turns.CancelTurn(TURN))
        self.world.note("cancelled", fence_seq=answer.fence_seq)


async def an_output_meets_a_cancel(world: World) -> None:
    way = Exit(world)
    await under_a_writer(way.writer, way.speaks, later(way.cancels), later(way.speaks))


async def live_output_meets_a_cancel(world: World) -> None:
    way = Exit(world)
    await under_a_writer(way.writer, way.shows, way.shows, later(way.cancels))


async def kept_and_live_output_meet_a_cancel(world: World) -> None:
    way = Exit(world)
    await under_a_writer(way.writer, way.shows, later(way.speaks), later(way.cancels))


def nothing_passes_the_fence(world: World) -> None:
    """In the log: above `fence_seq` only the end; below it all that was accepted."""
    (fence_seq,) = {answer["fence_seq"] for answer in noted(world, "cancelled")}
    log = log_of(world)
    beyond = [kept.type for _, kept in log if kept.seq > fence_seq]
    assert beyond[:2] == ["turn.aborted", "turn.closed"] and "turn.output" not in beyond, f"beyond the fence: {beyond}"
    kept = {kept.seq for _, kept in log if kept.type == "turn.output"}
    accepted = {one["seq"] for one in noted(world, "accepted")}
    assert kept == accepted, f"accepted as {accepted}, in the log as {kept}"


def no_live_output_after_the_end(world: World) -> None:
    """The digest of the terminal counts what went out, and nothing goes out behind the answer to the cancel."""
    kinds = [entry.kind for entry in world.history]
    assert "live" not in kinds[kinds.index("cancelled") :], kinds
    log = log_of(world)
    digests = [CODEC.decode(kept).items for _, kept in log if kept.type == "output.digest"]
    live = len(noted(world, "live"))
    assert digests == ([live] if live else []), f"{live} frames went out, the log has {digests}"


# the mailbox


async def a_session_goes_idle_between_posts(world: World) -> None:
    """The actor serves, lets its lane go when nothing waits, and is rung again; a submitter may stop waiting."""
    mailbox, patience = Mailbox("scene", NARROW, lambda _: None), trio.CancelScope()

    async def serves() -> None:
        while len(noted(world, "served")) < 2:
            await mailbox.bell.wait()
            while (envelope := mailbox.take()) is not None:
                await pause()
                envelope.reply(world.note("served", name=envelope.command.key))
            await pause()  # its nursery ends, as in `SessionActor.run`
            mailbox.rest()
            if not mailbox.empty:
                mailbox.bell.ring()

    async def posts() -> None:
        envelope = mailbox.post(Envelope(StartWish("a", "hello")))
        with patience:
            await envelope.answered.wait()

    async def posts_again() -> None:
        await mailbox.post(Envelope(StartWish("b", "hello"))).answered.wait()

    async def gives_up() -> None:
        patience.cancel(reason="impatient")

    others = [later(gives_up, 2)] * (world.size - 1)
    await together(serves, posts, later(posts_again, 3), *others)


async def a_mailbox_is_full(world: World) -> None:
    """Room for three plain commands and one in reserve: a start too many is told, a cancel never is."""
    mailbox, posted = Mailbox("scene", NARROW, lambda _: None), 0

    def post(name: str, command: Any) -> None:
        nonlocal posted
        posted += 1
        full = isinstance(mailbox.post(Envelope(command)).answer, Rejected)
        world.note("posted", name=name, full=full)

    async def posts() -> None:
        for number in range(4):
            post(f"s{number}", StartWish(f"s{number}", "hello"))
            if number == 1:
                await pause()

    async def cancels() -> None:
        post("cancel", turns.CancelTurn(TURN))

    async def serves() -> None:
        while posted < 5 or not mailbox.empty:
            envelope = mailbox.take()
            if envelope is None:
                await mailbox.bell.wait()
                continue
            world.note("served", name=getattr(envelope.command, "key", "cancel"))
            await pause()

    await together(later(serves, 2), later(cancels), posts)


def each_accepted_is_served_in_order(world: World) -> None:
    accepted = [one["name"] for one in noted(world, "posted") if not one["full"]]
    served = [one["name"] for one in noted(world, "served")]
    assert accepted == served, f"accepted {accepted}, served {served}"


def a_cancel_is_never_refused(world: World) -> None:
    assert {"name": "cancel", "full": True} not in noted(world, "posted"), "a cancel was refused for load"


# tail and attachment

HEAD = 4


async def readers_join_a_stream_that_grows(world: World) -> None:
    """Two events are there, two more are committed while readers attach; each reads to the end, then leaves."""
    store = MemoryStore()
    store.append([batch(0, 2)])
    tail = Tail(DEFAULT_LIMITS, 2)
    ports = SimpleNamespace(
        store=store, read_hop=in_place, ids=world.ids, cursors=StoreCursors(store.log_epoch, store.cursor_key)
    )
    runtime: Any = SimpleNamespace(ports=ports, limits=DEFAULT_LIMITS, attachments=Counter(), attaches=0, epoch=1)
    actor: Any = SimpleNamespace(
        stream=STREAM,
        tenant="default",
        owner=SimpleNamespace(tail=tail, epoch=1),
        attachments={},
        runtime=runtime,
        authority=SimpleNamespace(refusal=lambda: None),
    )

    async def resident(actor: Any) -> Any:
        return actor

    runtime.resident = resident

    async def commits() -> None:
        for head in (2, 3):
            new = batch(head)
            assert isinstance((await in_place(store.append, [new]))[0], Appended)
            for bell in tail.publish(new.events):
                bell.ring()

    def reads(number: int, place: str) -> Part:
        async def reads_to_the_end() -> None:
            attachment = await attach(runtime, actor, place, role="observer")
            world.note("attached", reader=number, after=attachment.reader.after)
            while attachment.reader.after < HEAD:
                for item in singly(await attachment.next(items_max=1)):
                    if isinstance(item, Send):
                        world.note("read", reader=number, seq=item.event.seq)
            tail.detach(attachment.bell)

        return reads_to_the_end

    places = ("earliest", "now")[: world.size]
    await together(*(reads(number, place) for number, place in enumerate(places)), later(commits, 2))


def no_gap_no_repeat(world: World) -> None:
    for one in noted(world, "attached"):
        read = [item["seq"] for item in noted(world, "read") if item["reader"] == one["reader"]]
        assert read == list(range(one["after"] + 1, HEAD + 1)), f"attached after {one['after']}, read {read}"


# the table of scenes


@frozen
class Scene:
    play: Callable[[World], Awaitable[None]]
    judges: tuple[Judge, ...] = ()
    larger: int = 1
    """The size that is tried as well from level ci on."""

    def explored(self, size: int = 1, **how: Any) -> Report:
        return explore(self.play, check=self.judges, sizes=(size,), **how)


SCENES = (
    Scene(a_counter_is_watched, larger=2),
    Scene(a_wait_is_given_up, (one_is_woken,)),
    Scene(two_wait_at_one_bell, (one_is_woken,)),
    Scene(two_lanes_are_offered_to, LANES_HOLD, larger=2),
    Scene(a_receiver_is_cancelled, LANES_HOLD, larger=2),
    Scene(producers_share_the_window, (the_window_is_bounded, no_room_leaks), larger=2),
    Scene(a_waiting_producer_is_cancelled, (the_window_is_bounded, no_room_leaks), larger=2),
    Scene(starts_take_permits, (permits_are_bounded,)),
    Scene(some_submit, WRITER_HOLDS, larger=2),
    Scene(the_writer_is_closed_among_submits, WRITER_HOLDS),
    Scene(the_store_breaks_among_submits, WRITER_HOLDS, larger=2),
    Scene(an_append_is_in_doubt, WRITER_HOLDS),
    Scene(an_append_that_was_kept_is_in_doubt, WRITER_HOLDS),
    Scene(a_caller_of_the_writer_is_cancelled, WRITER_HOLDS),
    Scene(a_timer_is_dropped_and_armed_as_it_falls_due, (timers_follow_their_book,)),
    Scene(an_earlier_timer_is_armed, (timers_follow_their_book,), larger=2),
    Scene(a_timer_is_paused_as_it_falls_due, (timers_follow_their_book,)),
    Scene(an_output_meets_a_cancel, (nothing_passes_the_fence,)),
    Scene(live_output_meets_a_cancel, (no_live_output_after_the_end,)),
    Scene(kept_and_live_output_meet_a_cancel, (nothing_passes_the_fence, no_live_output_after_the_end)),
    Scene(a_session_goes_idle_between_posts, larger=2),
    Scene(a_mailbox_is_full, (each_accepted_is_served_in_order, a_cancel_is_never_refused)),
    Scene(readers_join_a_stream_that_grows, (no_gap_no_repeat,), larger=2),
)
BY_NAME = {scene.play.__name__: scene for scene in SCENES}


SIZED = [(scene, size) for scene in SCENES for size in range(1, 1 + (scene.larger if DEEP else 1))]


@pytest.mark.parametrize(("scene", "size"), SIZED, ids=[f"{scene.play.__name__}-{size}" for scene, size in SIZED])
def test_a_primitive_holds_in_every_order(scene: Scene, size: int) -> None:
    report = scene.explored(size, mode="dfs")
    print(f"{scene.play.__name__}, size {size}: {report.runs - 1} schedules, {report.seconds:.1f} s")
    assert report.ok, str(report)
    assert report.runs > 2, "there was one order only"


# planted bugs


def forgets_a_ring_while_nobody_sleeps(patch: pytest.MonkeyPatch) -> None:
    def ring(self: Doorbell) -> None:
        if self._sleeper is not None:
            self._ringing = True
            sleeper, self._sleeper = self._sleeper, None
            trio.lowlevel.reschedule(sleeper)

    patch.setattr(Doorbell, "ring", ring)


def clears_the_bell_before_its_checkpoint(patch: pytest.MonkeyPatch) -> None:
    real = Doorbell.wait

    async def wait(self: Doorbell) -> None:
        if self._ringing:
            self._ringing = False
            await pause()
        else:
            await real(self)

    patch.setattr(Doorbell, "wait", wait)


def takes_data_first(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("turnlane.runtime.lanes._IN_ORDER", (Lane.DATA, Lane.CONTROL, Lane.TELEMETRY))


def counts_what_a_full_lane_refuses(patch: pytest.MonkeyPatch) -> None:
    real = Lanes.offer

    def offer(self: Lanes[Any], lane: Lane, item: Any) -> bool:
        accepted = real(self, lane, item)
        self._lane(lane).accepted += not accepted
        return accepted

    patch.setattr(Lanes, "offer", offer)


def takes_room_before_it_waits(patch: pytest.MonkeyPatch) -> None:
    """The place is taken before the await, and a cancel there never gives it back."""
    real = Window.enter

    async def enter(self: Window, share: Share) -> None:
        self.accepted()
        await real(self, share)
        self.inflight -= 1

    patch.setattr(Window, "enter", enter)


def forgets_who_is_on_the_way(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Permits, "counted", lambda self: self.taken)


def answers_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    real = JournalWriter._commit_group

    async def commit_group(self: JournalWriter) -> None:
        for ticket in [one for waiting in self._waiting._streams.values() for one in waiting]:
            ticket.done(Appended(ticket.batch.expected + len(ticket.batch.events), 0))
            ticket.done = lambda outcome: None
        await real(self)

    patch.setattr(JournalWriter, "_commit_group", commit_group)


def leaves_what_waits_when_closed(patch: pytest.MonkeyPatch) -> None:
    async def run(self: JournalWriter) -> None:
        while not self._closing:
            if self._waiting.items:
                await self._commit_group()
            else:
                await self._bell.wait()

    patch.setattr(JournalWriter, "run", run)


def fires_what_was_dropped(patch: pytest.MonkeyPatch) -> None:
    """Trusts the heap alone."""

    def fire_due(self: Timers) -> None:
        while self._heap and self._heap[0][0] <= self.clock.now():
            timer = self._heap.pop(0)[2]
            self._armed.pop((timer.owner, timer.key), None)
            timer.fire(timer.key)

    patch.setattr(Timers, "_fire_due", fire_due)


def sleeps_through_an_earlier_timer(patch: pytest.MonkeyPatch) -> None:
    """Rings only where the heap was empty."""
    real = Timers._push

    def push(self: Timers, timer: Any) -> None:
        bell, self._bell = self._bell, Doorbell() if self._heap else self._bell
        real(self, timer)
        self._bell = bell

    patch.setattr(Timers, "_push", push)


def checks_the_fence_before_it_waits(patch: pytest.MonkeyPatch) -> None:
    async def output(self: Turn, data: Any, type: str = "text") -> int:
        egress = self._actor.actor.egress
        egress.check(self.id, self.plan.epoch)
        await pause()
        return egress.owner.record(turns.TurnOutput(self.id, type, data))

    patch.setattr(Turn, "output", output)


def holds_nothing_until_the_commit(patch: pytest.MonkeyPatch) -> None:
    real = fence.refuses
    patch.setattr(fence, "refuses", lambda view, epoch, turn: real(evolve(view, held=None), epoch, turn))


def drops_the_lane_although_something_waits(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Mailbox, "rest", lambda self: setattr(self, "_lanes", None))


def lets_starts_take_the_reserve(patch: pytest.MonkeyPatch) -> None:
    def admits(self: Mailbox, envelope: Envelope) -> bool:
        return len(self._waiting) < self.limits.control_items_max and self._lane().offer(Lane.CONTROL, envelope)

    patch.setattr(Mailbox, "_admits", admits)


def skips_what_the_tail_does_not_hold(patch: pytest.MonkeyPatch) -> None:
    """Catching up joins live at the first event that is in memory, wherever that is."""

    def since(self: Tail, after: int, items_max: int) -> Any:
        return [kept for kept in self._events if kept.seq > after][:items_max] or (None if after < self.head else ())

    patch.setattr(Tail, "since", since)


PLANTED: list[tuple[Callable[[pytest.MonkeyPatch], None], Callable[[World], Awaitable[None]], str]] = [
    (forgets_a_ring_while_nobody_sleeps, a_counter_is_watched, "ends"),
    (clears_the_bell_before_its_checkpoint, a_wait_is_given_up, "ends"),
    (takes_data_first, two_lanes_are_offered_to, "control_goes_first"),
    (counts_what_a_full_lane_refuses, two_lanes_are_offered_to, "the_books_agree"),
    (takes_room_before_it_waits, a_waiting_producer_is_cancelled, "no_room_leaks"),
    (forgets_who_is_on_the_way, starts_take_permits, "permits_are_bounded"),
    (answers_before_the_commit, the_store_breaks_among_submits, "answers_tell_what_is_kept"),
    (leaves_what_waits_when_closed, the_writer_is_closed_among_submits, "each_is_answered_once"),
    (fires_what_was_dropped, a_timer_is_dropped_and_armed_as_it_falls_due, "timers_follow_their_book"),
    (sleeps_through_an_earlier_timer, an_earlier_timer_is_armed, "timers_follow_their_book"),
    (checks_the_fence_before_it_waits, an_output_meets_a_cancel, "nothing_passes_the_fence"),
    (holds_nothing_until_the_commit, live_output_meets_a_cancel, "no_live_output_after_the_end"),
    (drops_the_lane_although_something_waits, a_session_goes_idle_between_posts, "ends"),
    (lets_starts_take_the_reserve, a_mailbox_is_full, "a_cancel_is_never_refused"),
    (skips_what_the_tail_does_not_hold, readers_join_a_stream_that_grows, "no_gap_no_repeat"),
]


@pytest.mark.parametrize(("plant", "play", "judge"), PLANTED, ids=lambda value: getattr(value, "__name__", ""))
def test_every_order_finds_what_the_order_of_spawning_hides(
    plant: Any, play: Any, judge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = BY_NAME[play.__name__]
    plant(monkeypatch)
    one_order, every_order = scene.explored(mode="shuffle", runs=1), scene.explored(mode="dfs")
    found = sorted({finding.checker for finding in every_order.findings})
    print(f"{plant.__name__}: {every_order.runs} runs, found by {found}; order of spawning: {one_order.ok}")
    assert judge in found, str(every_order)
    assert one_order.ok, str(one_order)
