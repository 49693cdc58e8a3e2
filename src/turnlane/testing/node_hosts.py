"""Where agents live: the contract of a node host.

A node host turns acts (`nodes.py`) into an agent: `open_host(acts)` gives a context manager around an async function
of a turn that performs these acts, in this process, in another one, or on another machine. The contract puts that
agent into a real runtime in memory and looks from outside: the log, what an attachment was given, how turns ended,
and what the process holds afterwards. It runs on the clock of its caller: virtual for a host in this process, real for
one elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import trio
from attrs import define, field

import turnlane
from turnlane.core.limits import DEFAULT_LIMITS, Limits
from turnlane.core.observations import AgentFailed, NodeDisowned
from turnlane.journal.memory import MemoryStore
from turnlane.runtime.agent import Agent

from .checkers import Answer, Attached, Seen, read_logs, violations
from .contracts import clause_named, opened
from .fakes import CountingIds, FakeClock
from .nodes import LIE, Act, ask, crash, effect, flood, hang, ignore_cancel, lie, say, steer
from .report import Violation
from .seen import got_of
from .world import Resources

T = TypeVar("T")
OpenHost = Callable[[tuple[Act, ...]], Any]

CLAUSE_SECONDS_MAX: Final = 60.0
"""A clause of the contract that takes longer has failed."""
SECRET: Final = "canary-7f3a"
LOOK_SECONDS: Final = 0.01


async def in_place(function: Callable[..., T], /, *args: object) -> T:
    """The port `Hop` without a thread: a checkpoint before and after, so that a cancel may come at either."""
    await trio.lowlevel.checkpoint()
    answer = function(*args)
    await trio.lowlevel.cancel_shielded_checkpoint()
    return answer


@define(slots=True, eq=False)
class Stage:
    """A runtime in memory, and what it showed to the outside. What it kept outlives it, and may be opened again."""

    limits: Limits = DEFAULT_LIMITS
    clock: Any = field(factory=FakeClock)
    store: MemoryStore = field(factory=MemoryStore)
    ids: CountingIds = field(factory=CountingIds)
    seen: Seen = field(factory=Seen)
    failed: list[BaseException] = field(factory=list)
    """What agents raised."""
    disowned: list[str] = field(factory=list)
    """Turns whose agent did not end within the ladder."""

    @asynccontextmanager
    async def runtime(self, agents: Mapping[str, Agent]) -> AsyncIterator[turnlane.Runtime]:
        self.store = self.store.reopened()
        async with turnlane.open_runtime(
            store=self.store,
            agents=agents,
            limits=self.limits,
            clock=self.clock,
            ids=self.ids,
            commit_hop=in_place,
            read_hop=in_place,
            observer=self,
        ) as runtime:
            yield runtime

    def observe(self, value: object) -> None:
        """The port `Observer`."""
        if isinstance(value, AgentFailed):
            self.failed.append(value.error)
        elif isinstance(value, NodeDisowned):
            self.disowned.append(value.turn)

    async def follow(self, session: turnlane.Session, pause: float = 0.0) -> None:
        """Read a session until it ends; `pause` makes a slow reader."""
        line = Attached(session.id)
        self.seen.attached.append(line)
        async with session.attach("earliest") as events:
            async for item in events:
                if (got := got_of(item)) is not None:
                    line.got.append(got)
                if pause:
                    await trio.sleep(pause)

    async def cancel(self, session: turnlane.Session, turn: turnlane.TurnHandle) -> None:
        """A hard cancel, whose answer the checkers hold against the log."""
        answer = await turn.cancel()
        if answer.fence_seq is not None:
            self.seen.answers.append(Answer(session.id, turn.id, answer.fence_seq))

    def judged(self) -> list[Violation]:
        """What the checkers find, once the runtime is closed."""
        self.store = self.store.reopened()
        return violations(read_logs(self.store, self.seen))


# the contract


@define(slots=True, eq=False)
class _Hosts:
    """What a clause works with: hosts in one runtime, each the agent of its own sessions."""

    stage: Stage
    runtime: turnlane.Runtime
    nursery: trio.Nursery
    sessions: list[turnlane.Session] = field(factory=list)

    async def session(self, agent: str = "host", name: str = "s-1") -> turnlane.Session:
        session = await self.runtime.open_session(name, profile=agent)
        self.nursery.start_soon(self.stage.follow, session)
        self.sessions.append(session)
        return session


Clause = Callable[[OpenHost, Limits], Awaitable[None]]


@asynccontextmanager
async def _hosted(open_host: OpenHost, limits: Limits, **acts: Sequence[Act]) -> AsyncIterator[_Hosts]:
    """A host for each word, in one runtime; judged when everything has ended."""
    stage = Stage(limits)
    async with AsyncExitStack() as hosts:
        agents = {name: await hosts.enter_async_context(opened(open_host(tuple(one)))) for name, one in acts.items()}
        async with stage.runtime(agents) as runtime, trio.open_nursery() as nursery:
            here = _Hosts(stage, runtime, nursery)
            yield here
            for session in here.sessions:
                await session.close()
    found = stage.judged()
    assert not found, "; ".join(map(str, found))


async def said(session: turnlane.Session, turn: turnlane.TurnHandle | None = None) -> list[Any]:
    """The outputs in the log, of one turn or of all."""
    outputs = [event for event in (await session.read()).events if event.type == "turn.output"]
    return [event.data["data"] for event in outputs if turn is None or event.turn == turn.id]


async def _until(look: Callable[[], Awaitable[T]]) -> T:
    """Look until there is something to see; from outside there is nothing to wait for."""
    while not (seen := await look()):  # noqa: ASYNC110
        await trio.sleep(LOOK_SECONDS)
    return seen


async def _has_said(session: turnlane.Session, turn: turnlane.TurnHandle, count: int) -> None:
    """Wait until a turn has made so many outputs."""

    async def look() -> bool:
        return len(await said(session, turn)) >= count

    await _until(look)


async def _asked(session: turnlane.Session) -> str:
    """Wait for a question."""

    async def look() -> Sequence[str]:
        waiting: Sequence[str] = session.status()["pending_requests"]
        return waiting

    return (await _until(look))[0]


async def _all_ended(hosts: _Hosts) -> None:
    """Wait until no agent runs any more, in the ladder or disowned."""

    async def look() -> bool:
        return not hosts.runtime.permits.taken

    await _until(look)


async def _ends(turn: turnlane.TurnHandle, outcome: str) -> turnlane.TurnOutcome:
    ended = await turn.outcome()
    assert ended.outcome == outcome, f"the turn should be {outcome} and is {ended.outcome} ({ended.reason})"
    return ended


async def check_node_host(open_host: OpenHost, *, limits: Limits = DEFAULT_LIMITS) -> None:
    """All clauses of a node host; each with hosts of its own. Inside trio.

    `open_host(acts)` gives a context manager (plain or async) around an agent that performs these acts in each of its
    turns. `limits` holds how long the ladder of a cancel is: give a host that is far away more time.
    """
    for clause in NODE_HOST_CLAUSES:
        with clause_named(clause):
            try:
                with trio.fail_after(CLAUSE_SECONDS_MAX):
                    await clause(open_host, limits)
            except trio.TooSlowError:
                raise AssertionError(f"it did not end within {CLAUSE_SECONDS_MAX:g} s") from None
            except BaseExceptionGroup as group:
                broken = group.subgroup(AssertionError)
                if broken is None or group.subgroup(trio.Cancelled) is not None:
                    raise
                raise first_of(broken) from group


def first_of(error: BaseException) -> BaseException:
    """The error itself, or the first in its group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _outputs_come_in_order_and_once(open_host: OpenHost, limits: Limits) -> None:
    """What a node says is in the log and at every reader, in order and once, and the turn completes."""
    acts = [say("one"), say({"two": [2, None, "\N{SNOWMAN}"]}), flood(40), say("")]
    expected = ["one", {"two": [2, None, "\N{SNOWMAN}"]}, *(f"{n} " for n in range(40)), ""]
    async with _hosted(open_host, limits, host=acts) as hosts:
        session = await hosts.session()
        for _ in range(2):
            turn = await session.start_turn("go")
            await _ends(turn, "completed")
            assert (given := await said(session, turn)) == expected, f"expected {expected}, got {given}"


async def _a_crash_ends_its_own_turn(open_host: OpenHost, limits: Limits) -> None:
    """A node that raises fails its turn, keeps what it said, tells nobody its text, and serves the next turn."""
    async with _hosted(open_host, limits, host=[say("before"), crash(SECRET)], other=[steer()]) as hosts:
        session, neighbour = await hosts.session(), await hosts.session("other", "s-2")
        going_on = await neighbour.start_turn("go")
        for _ in range(2):
            turn = await session.start_turn("go")
            ended = await _ends(turn, "failed")
            assert await said(session, turn) == ["before"], f"what was said stays: {await said(session, turn)}"
            shown = f"{ended} {[event.data for event in (await session.read()).events]} {session.status()}"
            assert SECRET not in shown, "the text of an error stays where it was raised"
        await neighbour.steer("still there?", going_on.id)
        await _ends(going_on, "completed")
        assert await said(neighbour) == ["still there?"], "a turn of another session goes on"


async def _a_cancel_is_obeyed(open_host: OpenHost, limits: Limits) -> None:
    """A node that waits ends within the ladder when its turn is cancelled, hard or soft, or has timed out."""
    async with _hosted(open_host, limits, host=[say("before"), hang()]) as hosts:
        session = await hosts.session()
        for outcome, how in (("cancelled", "hard"), ("cancelled", "soft"), ("timed_out", "deadline")):
            turn = await session.start_turn("go", deadline=0.5 if how == "deadline" else None)
            if how != "deadline":
                await _has_said(session, turn, 1)
                await turn.cancel(mode=how)
            await _ends(turn, outcome)
        await _all_ended(hosts)
        late = hosts.stage.disowned
        assert not late, (
            f"{len(late)} of 3 nodes did not end within {limits.cancel_ask_ms + limits.cancel_insist_ms} ms"
        )


async def _who_is_cancelled_is_silent(open_host: OpenHost, limits: Limits) -> None:
    """What a node says after its cancel is refused: it is not in the log, not at a reader, not in the next turn."""
    async with _hosted(open_host, limits, host=[say("before"), lie("after_cancel")]) as hosts:
        session = await hosts.session()
        for _ in range(3):
            turn = await session.start_turn("go")
            await _has_said(session, turn, 1)
            await hosts.stage.cancel(session, turn)
            await _ends(turn, "cancelled")
        await _all_ended(hosts)
        given = await said(session)
        assert given == ["before"] * 3, f"nothing is said after a cancel: {given}"
    lines = [got for line in hosts.stage.seen.attached for got in line.got]
    assert not [got for got in lines if LIE in str(got.data)], "nothing said after a cancel is delivered"


async def _who_does_not_obey_is_left_behind(open_host: OpenHost, limits: Limits) -> None:
    """A node that ignores its cancel holds nobody up: the next turn runs, and the late words are not heard."""
    patience = limits.cancel_total_ms_max * 3
    async with _hosted(open_host, limits, host=[say("before"), ignore_cancel(patience), say("after")]) as hosts:
        session = await hosts.session()
        turn = await session.start_turn("go")
        await _has_said(session, turn, 1)
        await hosts.stage.cancel(session, turn)
        following = await session.start_turn("go")
        await _ends(turn, "cancelled")
        await _ends(following, "completed")
        await _all_ended(hosts)
        assert await said(session, turn) == ["before"], f"late words are not heard: {await said(session, turn)}"
        assert await said(session, following) == ["before", "after"], "the next turn is as any other"


async def _steering_reaches_the_node(open_host: OpenHost, limits: Limits) -> None:
    """Steering input comes to the running turn, each once and in order."""
    async with _hosted(open_host, limits, host=[steer(), steer(), steer()]) as hosts:
        session = await hosts.session()
        turn = await session.start_turn("go")
        for number in range(3):
            await session.steer({"n": number}, turn.id)
        await _ends(turn, "completed")
        given = await said(session)
        assert given == [{"n": 0}, {"n": 1}, {"n": 2}], f"steering comes in order and once: {given}"


async def _an_answer_reaches_the_node(open_host: OpenHost, limits: Limits) -> None:
    """A question is opened, its answer reaches the node; without one, its expiry does."""
    async with _hosted(open_host, limits, host=[ask("may I?"), ask("and now?", 0.2)]) as hosts:
        session = await hosts.session()
        turn = await session.start_turn("go")
        await session.answer(await _asked(session), "accept")
        await _ends(turn, "completed")
        first, second = await said(session)
        assert first == {"resolution": "answered", "value": "accept"}, f"an answer reaches the node: {first}"
        assert second == {"resolution": "expired", "value": "decline"}, f"an expiry reaches the node: {second}"


async def _a_tool_is_called_once_a_key(open_host: OpenHost, limits: Limits) -> None:
    """A tool call is in the ledger before it is made, with its result after it, and is not made again under its key."""
    async with _hosted(open_host, limits, host=[effect("pay", "key-1")]) as hosts:
        session = await hosts.session()
        for _ in range(2):
            await _ends(await session.start_turn("go"), "completed")
        first, second = await said(session)
        assert (first["run"], second["run"]) == (True, False), f"the tool is called once: {first}, {second}"
        assert first["result"] == second["result"], "the second call gets the result of the first"
        ledger = [event.type for event in (await session.read()).events if event.type.startswith("effect.")]
        assert ledger == ["effect.intended", "effect.completed"], f"the ledger has one intent and its end: {ledger}"


async def _turns_do_not_mix(open_host: OpenHost, limits: Limits) -> None:
    """Turns of several sessions run at once in one host, and each hears and says its own."""
    async with _hosted(open_host, limits, host=[steer(), say("between"), steer()]) as hosts:
        sessions = [await hosts.session(name=f"s-{number}") for number in range(4)]
        turns = [await session.start_turn("go") for session in sessions]
        both = list(zip(sessions, turns, strict=True))
        for session, turn in both:
            await session.steer(f"first of {session.id}", turn.id)
        for session, turn in reversed(both):
            await _has_said(session, turn, 2)
            await session.steer(f"second of {session.id}", turn.id)
            await _ends(turn, "completed")
        for session in sessions:
            given = await said(session)
            own = [f"first of {session.id}", "between", f"second of {session.id}"]
            assert given == own, f"{session.id} was to say {own} and said {given}"


async def _leaving_gives_everything_back(open_host: OpenHost, limits: Limits) -> None:
    """Leaving the host leaves no task, thread, descriptor or process, also after a cancelled turn and a crash."""

    async def one_life() -> None:
        async with _hosted(open_host, limits, host=[say("before"), hang()], falls=[crash()]) as hosts:
            session, falling = await hosts.session(), await hosts.session("falls", "s-2")
            turn = await session.start_turn("go")
            await _has_said(session, turn, 1)
            await _ends(await falling.start_turn("go"), "failed")
            await hosts.stage.cancel(session, turn)

    await one_life()  # what is made once for the process is made now
    before, children = Resources.now(), _children()
    await one_life()
    await one_life()
    more = Resources.settled(before).more_than(before)
    assert not more, "; ".join(violation.message for violation in more)
    left = _children() - children
    assert not left, f"{len(left)} processes are left"


def _children() -> set[int]:
    """Processes that this one started and has not seen the end of. Linux only; empty elsewhere."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it ended meanwhile
        if parent == os.getpid():
            found.add(int(stat.parent.name))
    return found


NODE_HOST_CLAUSES: Final[tuple[Clause, ...]] = (
    _outputs_come_in_order_and_once,
    _a_crash_ends_its_own_turn,
    _a_cancel_is_obeyed,
    _who_is_cancelled_is_silent,
    _who_does_not_obey_is_left_behind,
    _steering_reaches_the_node,
    _an_answer_reaches_the_node,
    _a_tool_is_called_once_a_key,
    _turns_do_not_mix,
    _leaving_gives_everything_back,
)
