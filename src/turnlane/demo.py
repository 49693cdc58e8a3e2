"""`turnlane demo`: the main job in one process, over real sockets, checked from outside.

A daemon on a temporary state directory, a client, and between them a relay that can cut the line. One session is
followed from its first event to its last through everything that goes wrong here: a barge-in, twenty cancels, a cut in
mid-stream, the daemon gone in mid-turn. What the client got is then compared with what lies in the log, read from the
closed store by code that shares nothing with the daemon but the file. No figure is a constant: each is counted or
measured, and a wrong one is exit code 1.
"""

from __future__ import annotations

import json as jsons
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import trio
from attrs import asdict, define, evolve, field, frozen

from .client import Bounds, Event, Events, Session, Skipped, TurnHandle, connect
from .core.ids import DEFAULT_TENANT, SessionId, session_stream
from .core.step import Kept
from .daemon.config import read_settings
from .daemon.daemon import Bound, run_daemon
from .daemon.keys import find_local_tokens
from .daemon.settings import Settings
from .embed import journal_of
from .journal import LmdbStore
from .runtime.agent import Turn

CANCELS: Final = 20
SESSION: Final = "demo"
TERMINALS: Final = ("turn.committed", "turn.aborted")
_BACKOFF_MS: Final = 50
"""The demo's client comes back sooner than others do, so that `resume` shows the work and not the politeness."""
_PATIENCE_S: Final = 20.0
_SPEECH: Final = (
    "A session takes turns, and each turn streams what it produces while it is still at work. "
    "It may be stopped at any moment, it ends exactly once, and its log tells what happened."
)


async def agent(turn: Turn) -> None:
    """Says its text word by word; with `note` it asks first and then writes it down."""
    given = turn.input
    if "note" in given:
        answer = await turn.ask(f"May I write {given['note']!r} into the notebook?")
        if not answer.accepted:
            await turn.output("Then I leave it.")
            return
        async with turn.effect("write_note", {"note": given["note"]}) as effect:
            effect.result = {"characters": len(given["note"])}
        await turn.output("It is written.")
        return
    for word in given["say"].split():
        await turn.output(f"{word} ")
        await trio.sleep(given.get("pace_ms", 10) / 1000)


# the line that can be cut


@define(slots=True, eq=False)
class Relay:
    """Passes bytes on to the daemon, wherever it is now. `cut` resets every connection, as a failing network does."""

    port: int = 0
    target: int = 0
    _streams: set[trio.SocketStream] = field(factory=set)

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self._pass, listeners)
            task_status.started()

    async def _pass(self, near: trio.SocketStream) -> None:
        try:
            far = await trio.open_tcp_stream("127.0.0.1", self.target)
        except OSError:
            return
        both = {near, far}
        self._streams |= both
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._one_way, near, far, nursery.cancel_scope)
                nursery.start_soon(self._one_way, far, near, nursery.cancel_scope)
        finally:
            self._streams -= both
            await trio.aclose_forcefully(far)

    async def _one_way(self, source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in source:
                await sink.send_all(data)
        scope.cancel(reason="one end is gone")

    def cut(self) -> None:
        for stream in self._streams:
            with suppress(OSError):
                stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            stream.socket.close()


# what the client saw


@define(slots=True, eq=False)
class Notebook:
    """Every item the client gave, in the order it came, and a way to wait for one."""

    items: list[Any] = field(factory=list)
    _more: trio.Event = field(factory=trio.Event)

    async def follow(self, events: Events) -> None:
        async for item in events:
            self.items.append(item)
            self._more.set()
            self._more = trio.Event()

    async def until(self, wanted: Callable[[Any], bool], start: int = 0) -> Any:
        """The first item from place `start` on that is wanted. Fails when it does not come in time."""
        place = start
        with trio.fail_after(_PATIENCE_S):
            while True:
                for item in self.items[place:]:
                    if wanted(item):
                        return item
                place = len(self.items)
                await self._more.wait()

    async def outputs(self, turn: str, count: int) -> None:
        with trio.fail_after(_PATIENCE_S):
            while self.heard(turn) < count:
                await self._more.wait()

    def heard(self, turn: str) -> int:
        return sum(isinstance(one, Event) and one.type == "turn.output" and one.turn == turn for one in self.items)

    def text(self, turn: str) -> str:
        mine = [one for one in self.items if isinstance(one, Event) and one.type == "turn.output" and one.turn == turn]
        return "".join(one.data["data"] for one in mine).strip()


@frozen
class Figures:
    """What was counted and measured. The first four have to be 0, 0, 0 and 1."""

    events_lost: int
    events_repeated: int
    outputs_after_fence: int
    terminals_per_turn: int
    """The worst of all turns; 1 is the only good value."""
    events: int
    outputs: int
    announced_skips: int
    turns: int
    connections: int
    cancels: int
    cancel_to_fence_ms_median: float
    cancel_to_fence_ms_max: float
    resume_ms: float
    restart_ms: float

    @property
    def right(self) -> bool:
        counted = self.events_lost, self.events_repeated, self.outputs_after_fence, self.terminals_per_turn
        return counted == (0, 0, 0, 1)

    def lines(self) -> list[str]:
        return [
            f"events lost {self.events_lost}, repeated {self.events_repeated}, "
            f"outputs after a fence {self.outputs_after_fence}, terminals per turn {self.terminals_per_turn}",
            f"cancel to fence {self.cancel_to_fence_ms_median:.1f} ms median, {self.cancel_to_fence_ms_max:.1f} ms max "
            f"({self.cancels} cancels); resume {self.resume_ms:.0f} ms; restart {self.restart_ms:.0f} ms",
        ]


def examine(log: Sequence[Kept], items: Sequence[Any], repeated: int, fences: dict[str, int]) -> dict[str, int]:
    """Compare the log with what came. `repeated` events came twice over the wire and were left out by the client;
    `fences` are the answers to cancels, by turn. Knows nothing of how either came to be."""
    events = [item for item in items if isinstance(item, Event)]
    skips = [item for item in items if isinstance(item, Skipped)]
    got = Counter(event.seq for event in events)
    announced = {seq for skip in skips for seq in range(skip.from_seq, skip.to_seq + 1)}
    outputs = [kept for kept in log if kept.type == "turn.output"]
    skipped = {kept.seq for kept in outputs} & announced
    ends = {kept.turn: kept for kept in log if kept.type in TERMINALS}
    fence_of = {turn: jsons.loads(kept.payload)["fence_seq"] for turn, kept in ends.items()}
    late = sum(kept.seq > fence_of.get(kept.turn, kept.seq) for kept in outputs)
    ended: set[str | None] = set()
    for event in events:
        if event.type in TERMINALS:
            ended.add(event.turn)
        elif event.type == "turn.output":
            fence = min(fence_of.get(event.turn, event.seq), fences.get(event.turn or "", event.seq))
            late += event.turn in ended or event.seq > fence
    opened = [kept.turn for kept in log if kept.type == "turn.opened"]
    terminals = Counter(kept.turn for kept in log if kept.type in TERMINALS)
    seen = Counter(event.turn for event in events if event.type in TERMINALS)
    per_turn = [count for turn in opened for count in (terminals[turn], seen[turn])]
    return {
        "events_lost": sum(kept.seq not in got and kept.seq not in skipped for kept in log),
        "events_repeated": sum(count - 1 for count in got.values()) + len(skipped & set(got)) + repeated,
        "outputs_after_fence": late,
        "terminals_per_turn": max(per_turn, key=lambda count: abs(count - 1), default=0),
        "events": len(log),
        "outputs": len(outputs),
        "announced_skips": len(skipped),
        "turns": len(opened),
    }


# the play


@define(slots=True, eq=False)
class Demo:
    folder: Path
    say: Callable[[float, str], None]
    relay: Relay = field(factory=Relay)
    notebook: Notebook = field(factory=Notebook)
    fences: dict[str, int] = field(factory=dict)
    cancel_ms: list[float] = field(factory=list)
    _began: float = field(factory=trio.current_time)
    _life: trio.CancelScope = field(factory=trio.CancelScope)
    _over: trio.Event = field(factory=trio.Event)

    def tell(self, text: str) -> None:
        self.say(trio.current_time() - self._began, text)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def settings(self) -> Settings:
        flags = {"state": self.state, "listen": "127.0.0.1:0", "operator.listen": "127.0.0.1:0", "gc": False}
        found = read_settings(None, {}, flags)
        assert isinstance(found, Settings), found
        return found

    @property
    def environ(self) -> dict[str, str]:
        return {"XDG_RUNTIME_DIR": str(self.folder)}

    async def daemon(self, task_status: trio.TaskStatus[Bound]) -> None:
        """One life of the daemon; `_life.cancel()` ends it as abruptly as a cancel can."""
        self._life, self._over = trio.CancelScope(), trio.Event()
        try:
            with self._life:
                await run_daemon(
                    self.settings(), {"demo": agent}, signals=False, environ=self.environ, task_status=task_status
                )
        finally:
            self._over.set()

    async def begin(self, nursery: trio.Nursery) -> str:
        """Start a daemon, put it behind the relay; its session token."""
        bound: Bound = await nursery.start(self.daemon)
        self.relay.target = bound.listen[0].port
        found = find_local_tokens(str(bound.listen[0]), self.environ)
        assert found is not None, "the daemon leaves a token for the tools of its user"
        self.tell(f"the daemon listens on {bound.url}")
        return found.session_token.reveal().decode()

    async def end(self) -> None:
        self._life.cancel(reason="the demo ends this life of the daemon")
        await self._over.wait()

    async def play(self) -> Figures:
        bounds = evolve(Bounds(), backoff_base_ms=_BACKOFF_MS)
        async with trio.open_nursery() as nursery:
            await nursery.start(self.relay.serve)
            token = await self.begin(nursery)
            url = f"ws://127.0.0.1:{self.relay.port}"
            async with connect(url, token, client_name="demo", bounds=bounds) as client:
                session = await client.open_session(SESSION)
                async with session.attach("earliest") as events:
                    nursery.start_soon(self.notebook.follow, events)
                    await self.conversation(session)
                    await self.barge_in(session)
                    await self.cancels(session)
                    await self.approval(session)
                    resume_ms = await self.lost_connection(session)
                    restart_ms = await self.restart(session, nursery)
                    await self.all_seen(session)
                    repeated, connections = events.following.repeated, client.connections
                    nursery.cancel_scope.cancel()
        with LmdbStore.open(journal_of(self.state), readonly=True, create=False, allow_remote=True) as store:
            log = _read_all(store)
        counted = examine(log, self.notebook.items, repeated, self.fences)
        return Figures(
            **counted,
            connections=connections,
            cancels=len(self.cancel_ms),
            cancel_to_fence_ms_median=statistics.median(self.cancel_ms),
            cancel_to_fence_ms_max=max(self.cancel_ms),
            resume_ms=resume_ms,
            restart_ms=restart_ms,
        )

    async def conversation(self, session: Session) -> None:
        turn = await session.start_turn({"say": _SPEECH, "pace_ms": 15})
        await self.notebook.outputs(turn.id, 3)
        self.tell(f"turn 1 streams: {self.notebook.text(turn.id)} ...")
        outcome = await turn.outcome()
        self.tell(
            f"turn 1 {outcome.outcome}: {self.notebook.heard(turn.id)} outputs, {self.notebook.text(turn.id)[-40:]!r}"
        )

    async def barge_in(self, session: Session) -> None:
        turn = await session.start_turn({"say": _SPEECH, "pace_ms": 15})
        await self.notebook.outputs(turn.id, 6)
        self.tell(f"turn 2 streams: {self.notebook.text(turn.id)} ...")
        fence, ms = await self.cancel(turn, "barge_in")
        following = await session.start_turn({"say": "I am listening again.", "pace_ms": 5})
        self.tell(f"barge-in: cancelled, the fence is at seq {fence}, {ms:.1f} ms after the request; turn 3 runs")
        outcome = await following.outcome()
        self.tell(f"turn 3 {outcome.outcome}: {self.notebook.text(following.id)!r}")

    async def cancels(self, session: Session) -> None:
        for _ in range(CANCELS):
            turn = await session.start_turn({"say": _SPEECH, "pace_ms": 2})
            await self.notebook.outputs(turn.id, 3)
            await self.cancel(turn, "user_cancel")
        median, worst = statistics.median(self.cancel_ms), max(self.cancel_ms)
        self.tell(
            f"{CANCELS} more turns cancelled in mid-stream: {median:.1f} ms median to the fence, {worst:.1f} ms max"
        )

    async def cancel(self, turn: TurnHandle, reason: str) -> tuple[int, float]:
        asked = trio.current_time()
        answer = await turn.cancel(reason)
        ms = (trio.current_time() - asked) * 1000
        assert answer.state == "cancelled" and answer.fence_seq is not None, answer
        self.cancel_ms.append(ms)
        self.fences[turn.id] = answer.fence_seq
        return answer.fence_seq, ms

    async def approval(self, session: Session) -> None:
        turn = await session.start_turn({"note": "the fence has a number"})
        asked = await self.notebook.until(lambda item: _is(item, "request.opened", turn.id))
        self.tell(f"the agent asks: {asked.data['prompt']}")
        await session.answer(asked.data["request"], "accept")
        outcome = await turn.outcome()
        self.tell(f"accepted; {self.notebook.text(turn.id)!r}, turn {outcome.outcome}")

    async def lost_connection(self, session: Session) -> float:
        turn = await session.start_turn({"say": _SPEECH, "pace_ms": 25})
        await self.notebook.outputs(turn.id, 6)
        place, cut_at = len(self.notebook.items), trio.current_time()
        heard = self.notebook.heard(turn.id)
        self.relay.cut()
        self.tell(f"the line is cut after {heard} outputs")
        await self.notebook.until(lambda item: _is(item, "turn.output", turn.id), place)
        ms = (trio.current_time() - cut_at) * 1000
        self.tell(f"back after {ms:.0f} ms, the stream goes on where it stood")
        outcome = await turn.outcome()
        said = "word for word" if self.notebook.text(turn.id) == _SPEECH else "WITH GAPS"
        self.tell(f"turn {outcome.outcome}: all {self.notebook.heard(turn.id)} outputs are here, {said}")
        return ms

    async def restart(self, session: Session, nursery: trio.Nursery) -> float:
        turn = await session.start_turn({"say": _SPEECH, "pace_ms": 25})
        await self.notebook.outputs(turn.id, 6)
        place, gone_at = len(self.notebook.items), trio.current_time()
        await self.end()
        self.tell("the daemon is gone in mid-turn; a new one opens the same state directory")
        await self.begin(nursery)
        end = await self.notebook.until(lambda item: _is(item, "turn.aborted", turn.id), place)
        ms = (trio.current_time() - gone_at) * 1000
        self.tell(f"its turn ended once: {end.data['outcome']} ({end.data['reason']}); its input is queued again")
        again = await self.notebook.until(lambda item: _is(item, "turn.opened", None), place)
        assert again.turn is not None and again.turn != turn.id, again
        outcome = await session.outcome(again.turn)
        self.tell(f"the second try {outcome.outcome}: {self.notebook.heard(again.turn)} outputs")
        return ms

    async def all_seen(self, session: Session) -> None:
        """Until nothing runs and the client has the last event of the log."""
        head = (await session.read_status())["head_seq"]
        await self.notebook.until(lambda item: isinstance(item, Event) and item.seq >= head)


def _is(item: Any, kind: str, turn: str | None) -> bool:
    return isinstance(item, Event) and item.type == kind and turn in (None, item.turn)


def _read_all(store: LmdbStore) -> list[Kept]:
    stream, found = session_stream(DEFAULT_TENANT, SessionId(SESSION)), list[Kept]()
    while page := store.read(stream, found[-1].seq if found else 0, 1_000).events:
        found += page
    return found


@asynccontextmanager
async def _staged(say: Callable[[float, str], None]) -> AsyncIterator[Demo]:
    with tempfile.TemporaryDirectory(prefix="turnlane-demo-") as folder:
        yield Demo(Path(folder), say)


async def _play(json: bool) -> Figures:
    def say(at: float, text: str) -> None:
        if not json:
            sys.stdout.write(f"{at:7.3f} s  {text}\n")
            sys.stdout.flush()

    async with _staged(say) as demo:
        return await demo.play()


def run(*, json: bool = False) -> int:
    """Play it; 0 when every figure is as it has to be, else 1."""
    figures = trio.run(_play, json)
    told = {**asdict(figures), "ok": figures.right}
    lines = [jsons.dumps(told, separators=(",", ":"))] if json else ["", *figures.lines()]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if figures.right else 1
