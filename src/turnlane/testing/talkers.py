"""Talkers: clients of the simulated world that use everything a client can, drawn from a seed.

A talker holds a conversation over the wire, or as a program inside the host's process; both speak to handles of one
shape. What it is answered and given goes into `Seen`, which is what checkers look at; it judges nothing by itself.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import define, field, frozen

from turnlane.client import Disconnected, OutcomeUnknown
from turnlane.core.ids import DEFAULT_TENANT
from turnlane.core.reasons import Reason, Refused
from turnlane.machines.requests import APPROVALS

from .checkers import Answer, Attached
from .hosts import Host, Life
from .nodes import Act, acting, random_acts, say, wait
from .seen import got_of

if TYPE_CHECKING:
    from .world import World


def stream_of(session: str) -> str:
    """Sessions of the simulated world are of the default tenant."""
    return f"{DEFAULT_TENANT}/session/{session}"


PAUSES_S: Final = (0.0, 0.001, 0.01, 0.1, 0.5, 2.0)
PATIENCE_S: Final = 20.0
"""How long a talker waits for anything before it does something else."""
OVER_S: Final = 45.0
"""By how much a turn outlasts what bounds it that means to: more than a host may be late without a fault."""
ANSWERED_SHARE: Final = 0.3
"""How often a question that was heard is answered next; the others wait until they expire or their turn ends."""
AGAIN_S: Final = 1.0
"""Before it asks again where it was not let in: who asks at once, asks for ever within one instant."""
OVERLAPS: Final = (None, "queue", "queue", "merge", "interrupt", "steer", "reject", "latest")


@frozen
class Started:
    """A start that was answered: asking again under its key must give the same turn."""

    session: str
    given: Any
    how: Mapping[str, Any]
    turn: str


@define(eq=False)
class Talker:
    """One client: `steps` more things to do, in sessions that it shares with others."""

    world: World
    host: Host
    name: str
    inside: bool
    follows: bool
    """Whether it reads what happens, or only acts and asks how it ended."""
    steps: int
    sessions: tuple[str, ...]
    dice: random.Random = field(init=False)
    session: str = field(init=False)
    line: Attached = field(init=False)
    cursor: str | None = None
    turns: list[str] = field(factory=list)
    questions: list[str] = field(factory=list)
    started: list[Started] = field(factory=list)
    _slow: bool = False
    _attached: trio.CancelScope = field(factory=trio.CancelScope)
    _rounds: Any = field(factory=itertools.count)

    def __attrs_post_init__(self) -> None:
        self.dice = self.world.dice(f"talker/{self.name}")
        self.move_to(self.dice.choice(self.sessions))

    def move_to(self, session: str) -> None:
        """Another session: a new line of deliveries."""
        self.session, self.cursor = session, None
        self.line = Attached(session)
        self.world.seen.attached.append(self.line)
        self.turns.clear()
        self.questions.clear()

    # how it is connected

    async def run(self) -> None:
        """Until its steps are done, whatever becomes of the host meanwhile."""
        while self.steps > 0:
            try:
                if self.inside:
                    await self.host.run_inside(self._inside)
                else:
                    async with self.host.connect(self.name) as client:
                        await self._talk(client)
            except (Disconnected, Refused) as error:  # not let in, or thrown out for good
                self.world.note("turned away", talker=self.name, why=type(error).__name__)
                await trio.sleep(AGAIN_S)

    async def _inside(self, life: Life) -> None:
        try:
            await self._talk(life.runtime)
        except RuntimeError as error:
            if not str(error).startswith("closed"):
                raise

    async def _talk(self, api: Any) -> None:
        while self.steps > 0:
            try:
                session = await api.open_session(self.session, key=self.world.ids.new("key"))
            except (Refused, OutcomeUnknown) as error:
                if not await self._goes_on(error):
                    return
                await trio.sleep(AGAIN_S)
                continue
            async with trio.open_nursery() as nursery:
                if self.follows:
                    nursery.start_soon(self._follow, session)
                here = self.session
                while self.steps > 0 and self.session == here:
                    self.steps -= 1
                    if not await self._step(session):
                        return nursery.cancel_scope.cancel()
                nursery.cancel_scope.cancel()

    async def _goes_on(self, error: Refused | OutcomeUnknown) -> bool:
        """After a no; False when this life of the host takes nothing more."""
        reason = error.reason.value if isinstance(error, Refused) else "outcome_unknown"
        self.world.note("no", talker=self.name, reason=reason)
        if reason in ("session_ended", "session_draining", "corrupt_stream"):
            self.move_to(f"{self.name}-{next(self._rounds)}")
        elif reason in ("journal_broken", "draining", "deauthorized_drain"):
            await trio.sleep(AGAIN_S)
            return not self.inside
        return True

    # what it is given

    async def _follow(self, session: Any) -> None:
        line = self.line
        while line is self.line:
            place: Any = "earliest" if self.cursor is None else {"type": "cursor", "cursor": self.cursor}
            try:
                with trio.CancelScope() as self._attached:
                    async with session.attach(place, client=self.name) as events:
                        async for item in events:
                            self._take(line, item)
                            if self._slow:
                                await trio.sleep(0.05)
            except Refused as refused:
                self.world.note("attach refused", talker=self.name, reason=refused.reason.value)
                if refused.reason.value == "journal_broken":
                    return
            except OutcomeUnknown:
                self.world.note("attach unknown", talker=self.name)
            except Disconnected:
                return
            await trio.sleep(0.1)

    def _take(self, line: Attached, item: Any) -> None:
        if (got := got_of(item)) is None:
            return
        line.got.append(got)
        self.cursor = item.cursor
        if got.type == "request.opened":
            self.questions.append(got.data["request"])

    # what it does

    async def _step(self, session: Any) -> bool:
        (name,) = self.dice.choices(_NAMES, _WEIGHTS)
        if self.questions and self.dice.random() < ANSWERED_SHARE:
            name = "answer"
        try:
            with trio.move_on_after(PATIENCE_S):
                await STEPS[name][1](self, session)
        except (Refused, OutcomeUnknown) as error:
            return await self._goes_on(error)
        return True

    async def start(self, session: Any) -> None:
        dice = self.dice
        acts: tuple[Act, ...] = random_acts(dice, dice.choice((2, 3, 5))) if self.world.happens("node_fault") else ()
        acts = acts or tuple(say(f"{number} ") for number in range(dice.choice((1, 1, 2, 3, 8))))
        how: dict[str, Any] = {"overlap": dice.choice(OVERLAPS), "key": self.world.ids.new("key")}
        if dice.random() < 0.1:
            how["deadline"] = deadline = dice.choice((0.05, 1.0, 10.0))
            acts += (wait(dice.choice((0.0, deadline / 2, deadline + OVER_S))),)
        elif dice.random() < 0.05:
            acts += (wait(2 * OVER_S),)
        if dice.random() < 0.2:
            how["turn_id"] = self.world.ids.new("named")
        given = acting(*acts)
        self.world.seen.keys.add(how["key"])
        try:
            handle = await session.start_turn(given, **how)
        except Refused as refused:
            # A journal that broke in the middle leaves open what was kept; asking again under the key would tell.
            if "turn_id" in how and refused.reason is not Reason.JOURNAL_BROKEN:
                self.world.seen.refused_turns.add(how["turn_id"])
            raise
        answer = handle.answer
        self.world.note("started", talker=self.name, turn=handle.id, phase=answer.phase, overlap=how["overlap"])
        self._acknowledged(session, answer.seq)
        if answer.seq is not None:
            kind = "turn.steered" if how["overlap"] == "steer" else "turn.opened"
            self.world.seen.promised.append((session.id, answer.seq, kind, handle.id))
        self.turns.append(handle.id)
        self.started.append(Started(session.id, given, how, handle.id))

    async def start_many(self, session: Any) -> None:
        """A row of short turns that wait for one another; the first may be one that misbehaves."""
        dice = self.dice
        acts: tuple[Act, ...] = random_acts(dice, dice.choice((2, 3, 5))) if self.world.happens("node_fault") else ()
        for _ in range(dice.choice((4, 8, 16))):
            given, acts = acting(*(acts or [say("short")])), ()
            how = {"overlap": "queue", "key": self.world.ids.new("key")}
            self.world.seen.keys.add(how["key"])
            handle = await session.start_turn(given, **how)
            self._acknowledged(session, handle.answer.seq)
            self.turns.append(handle.id)
        await self.outcome(session)

    async def start_again(self, session: Any) -> None:
        """The same key with the same content: the same turn, and no second one."""
        if known := [one for one in self.started if one.session == session.id]:
            one = self.dice.choice(known[-8:])
            handle = await session.start_turn(one.given, **one.how)
            self.world.seen.repeated.append((session.id, one.how["key"], one.turn, handle.id))

    async def reattach(self, _: Any) -> None:
        """Leave and come back where it was."""
        self._attached.cancel(reason="comes back")

    def _acknowledged(self, session: Any, seq: int | None) -> None:
        if seq is not None:
            self.world.seen.acknowledged.append((stream_of(session.id), seq))

    async def cancel(self, session: Any) -> None:
        turn = self.dice.choice(self.turns[-3:]) if self.turns and self.dice.random() < 0.8 else None
        mode = "soft" if self.dice.random() < 0.4 else "hard"
        scope = "session" if self.dice.random() < 0.05 else "turn"
        answer = await session.cancel(turn if scope == "turn" else None, mode=mode, scope=scope)
        self.world.note("cancel", talker=self.name, turn=answer.turn, state=answer.state, fence=answer.fence_seq)
        if answer.fence_seq is not None and answer.turn is not None:
            self.world.seen.answers.append(Answer(session.id, answer.turn, answer.fence_seq))

    async def steer(self, session: Any) -> None:
        if self.turns:
            seq = await session.steer({"text": f"more {self.steps}"}, turn := self.turns[-1])
            self._acknowledged(session, seq)
            self.world.seen.promised.append((session.id, seq, "turn.steered", turn))

    async def answer(self, session: Any) -> None:
        if self.questions:
            request = self.questions.pop()
            said: list[Exception] = []

            async def says(word: str) -> None:
                try:
                    self._acknowledged(session, await session.answer(request, word))
                except (Refused, OutcomeUnknown) as error:
                    said.append(error)

            async with trio.open_nursery() as nursery:  # two opinions at once: one is too late
                for word in self.dice.sample(APPROVALS, 2):
                    nursery.start_soon(says, word)
            if said:
                raise said[-1]

    async def outcome(self, session: Any) -> None:
        """Wait until a turn has ended, or is known never to begin."""
        if self.turns:
            turn = self.turns[-1]
            try:
                told = await session.outcome(turn)
            except Refused as refused:
                if refused.reason is Reason.CANCELLED_BEFORE_START:
                    self.world.seen.outcomes.append((session.id, turn, None, 0))
                raise
            self.world.seen.outcomes.append((session.id, turn, told.outcome, told.fence_seq))

    async def pause(self, _: Any) -> None:
        await trio.sleep(self.dice.choice(PAUSES_S))

    async def look(self, session: Any) -> None:
        """What the session says of itself."""
        status = session.status() if self.inside else await session.read_status()
        self.world.seen.statuses.append((stream_of(session.id), status))
        self.questions += status["pending_requests"]

    async def read_slowly(self, _: Any) -> None:
        self._slow = not self._slow

    async def ask_for_nothing(self, session: Any) -> None:
        """A wish that must be refused and change nothing."""
        await session.steer({"text": "to nobody"}, f"turn_of_{self.name}")

    async def close(self, session: Any) -> None:
        await session.close(self.dice.choice(("now", "drain")))


Does = Callable[[Talker, Any], Awaitable[None]]

STEPS: Final[Mapping[str, tuple[int, Does]]] = {
    "start": (40, Talker.start),
    "start many": (40, Talker.start_many),
    "outcome": (12, Talker.outcome),
    "pause": (12, Talker.pause),
    "cancel": (12, Talker.cancel),
    "start again": (4, Talker.start_again),
    "steer": (4, Talker.steer),
    "answer": (10, Talker.answer),
    "reattach": (3, Talker.reattach),
    "look": (3, Talker.look),
    "read slowly": (2, Talker.read_slowly),
    "ask for nothing": (2, Talker.ask_for_nothing),
    "close": (1, Talker.close),
}
"""What a talker does -> how often, out of the sum of all."""

_NAMES: Final = tuple(STEPS)
_WEIGHTS: Final = tuple(weight for weight, _ in STEPS.values())
