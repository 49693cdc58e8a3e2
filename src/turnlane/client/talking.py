"""The conversation of one person in one session: what comes is shown, what is typed is a turn, an answer, a cancel.

Four tasks: one shows what comes, one reads lines, one hears Ctrl-C, one watches the connection. Where the person
stopped reading is kept in a small file of the user's, so that the next `talk` goes on behind it. When nobody sits there
lines are taken one at a time: the next when the turn of the last has ended or asks something, so a script of lines
gives the same conversation each time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import trio
from attrs import define, field

from ..core import marks
from ..core.given import Event, Skipped
from ..core.reasons import Reason, Refused
from .client import Client
from .desk import Places, Question
from .lines import BadLine
from .screen import Screen, plain_text
from .session import Events, Session
from .values import OutcomeUnknown, Recovered, StaleCursor

LEAVE_WITHIN_S: Final = 2.0
CANCEL_WITHIN_S: Final = 2.0
ENDED_REMEMBERED_MAX: Final = 256
LOOK_S: Final = 0.05
LOST_AFTER_S: Final = 0.3
"""A connection that is back before this is not worth a line."""

LEFT: Final = 0
ANSWER_IS_NO: Final = 1
CUT_SHORT: Final = 130


@define(slots=True, eq=False)
class Talk:
    """One person, one session. `interactive`: lines are taken while a turn runs."""

    client: Client
    session: Session
    screen: Screen
    places: Places
    url: str
    interactive: bool
    overlap: str | None = None
    running: str | None = None
    mine: dict[str, str] = field(factory=dict)
    """Turns that were started here and have not ended, with their dispatches."""
    keys: set[str] = field(factory=set)
    questions: dict[str | int, Question] = field(factory=dict)
    code: int | None = None
    caught_up: bool = False
    _events: Events | None = None
    _ended: deque[str] = field(factory=lambda: deque(maxlen=ENDED_REMEMBERED_MAX))
    _pending: set[str | int] = field(factory=set)
    _changed: trio.Event = field(factory=trio.Event)
    _interrupted_at: float = float("-inf")
    _nursery: trio.Nursery | None = None

    @marks.on_cancel("resumable")
    async def run(self, events: Events, lines: AsyncIterator[str], interrupts: AsyncIterator[Any]) -> int:
        """Until the person leaves, the input ends, or the session does. Returns the exit code."""
        self._attached(events)
        cursor = events.cursor
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._type, lines)
                self._nursery.start_soon(self._hear, interrupts)
                self._nursery.start_soon(self._watch, events)
                async for item in events:
                    self._show(item)
                    cursor = events.cursor
                    if self.caught_up and isinstance(item, Event) and item.type == "turn.closed":
                        self.places.note(self.url, self.session.id, cursor)
                self.screen.notice("the session has ended")
                self.leave(LEFT)
        finally:
            self.places.note(self.url, self.session.id, cursor)
            self.screen.end_line()
        if self.screen.broken:
            raise BrokenPipeError
        return LEFT if self.code is None else self.code

    def leave(self, code: int) -> None:
        if self.code is None:
            self.code = code
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel(reason="the person leaves")

    def _attached(self, events: Events) -> None:
        self._events = events
        turn = events.attached.turn
        if turn is not None:
            self.running = turn.get("turn")
        for request in events.attached.pending_requests:
            self._pending.add(request["request"])
            self.questions[request["request"]] = Question.of(request)

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # what comes

    def _show(self, item: Any) -> None:
        match item:
            case Event():
                self._show_event(item)
            case Skipped(reason=reason, count=count) if reason != Reason.TURN_CANCELLED.value:
                self.screen.notice(f"{count} outputs skipped: {reason}")
            case Recovered(away_s=away_s, pending_requests=pending, turn=turn):
                self.screen.finish_notice(f"connected again after {away_s:.1f} s, nothing was missed")
                self.running = None if turn is None else turn.get("turn")
                for request in pending:
                    self.questions.setdefault(request["request"], Question.of(request))
                self._show_question()
            case StaleCursor():
                self.screen.notice("the log no longer reaches back to where you were: going on from its beginning")
        self._change()

    def _show_event(self, event: Event) -> None:
        data = event.data
        match event.type:
            case "turn.output":
                self.screen.output(plain_text(data["data"]))
            case "dispatch.queued" if data.get("key") in self.keys:
                self.keys.discard(data["key"])
            case "dispatch.queued":
                self.screen.line(f"> {plain_text(data.get('input'))}")
            case "turn.opened":
                self.running = event.turn
            case "turn.committed":
                self.screen.end_line()
            case "turn.aborted":
                self.screen.notice(_end_of(data))
            case "turn.closed":
                self._turn_over(event.turn or "")
            case "dispatch.cancelled" | "dispatch.failed":
                self._dispatch_over(str(data.get("dispatch")), str(data.get("reason")))
            case "request.opened":
                self._asked(data)
            case "request.resolved":
                self._resolved(data)

    def _turn_over(self, turn: str) -> None:
        self._ended.append(turn)
        self.mine.pop(turn, None)
        if self.running == turn:
            self.running = None
        if self.caught_up and self.running is None and not self.questions:
            self.screen.prompt()

    def _dispatch_over(self, dispatch: str, reason: str) -> None:
        """A start that waited and will never be a turn."""
        for turn in [turn for turn, its in self.mine.items() if its == dispatch]:
            del self.mine[turn]
            self.screen.notice(f"not started: {reason}")

    def _asked(self, data: Mapping[str, Any]) -> None:
        request = data["request"]
        live = self.caught_up or (self._events is not None and self._events.following.caught_up)
        if live or request in self._pending:
            self.questions.setdefault(request, Question.of(data))
            self._show_question()

    def _resolved(self, data: Mapping[str, Any]) -> None:
        question = self.questions.pop(data["request"], None)
        if question is not None and question.shown and data["resolution"] != "answered":
            self.screen.notice(f"the question is closed: {data['resolution']}")
        self._show_question()

    def _show_question(self) -> None:
        """The oldest open question, once."""
        question = next(iter(self.questions.values()), None)
        if question is not None and not question.shown:
            question.shown = True
            self.screen.line(question.text())
            self.screen.prompt()

    # what is typed

    async def _type(self, lines: AsyncIterator[str]) -> None:
        try:
            await self._until(lambda: self.caught_up)
            self.screen.prompt()
            async for line in lines:
                self.screen.typed()
                await self._take(line)
                if not self.interactive:
                    await self._until(self._settled)
        except BadLine as bad:
            self.screen.notice(str(bad))
            self.leave(ANSWER_IS_NO)
            return
        await self._until(self._settled)
        if self.questions:
            self.screen.notice("the input has ended with a question open: it can be answered from elsewhere")
        self.leave(ANSWER_IS_NO if self.questions else LEFT)

    def _settled(self) -> bool:
        """Nothing runs that would say more, or it asks something."""
        return bool(self.questions) or not (self.mine or self.running)

    async def _take(self, line: str) -> None:
        try:
            if self.questions:
                await self._answer(next(iter(self.questions.values())), line)
            elif line.startswith("+") and self.running is not None:
                await self.session.steer({"text": line[1:].strip() or line}, self.running)
            elif line.strip():
                await self._start(line)
            else:
                self.screen.prompt()
        except (Refused, OutcomeUnknown) as error:
            self.screen.notice(str(error))

    async def _start(self, line: str) -> None:
        key = self.client.new_key()
        self.keys.add(key)
        turn = await self.session.start_turn({"text": line}, key=key, overlap=self.overlap)
        if turn.id not in self._ended:
            self.mine[turn.id] = turn.answer.dispatch
        if turn.answer.phase == "queued":
            self.screen.notice(f"waits at place {turn.answer.position}")

    async def _answer(self, question: Question, line: str) -> None:
        answer = question.answer(line)
        if answer is None:
            self.screen.notice(question.hint())
            self.screen.prompt()
            return
        try:
            await self.session.answer(question.request, answer)
        finally:
            self.questions.pop(question.request, None)

    # Ctrl-C

    async def _hear(self, interrupts: AsyncIterator[Any]) -> None:
        assert self._nursery is not None
        async for _ in interrupts:
            now = trio.current_time()
            if now - self._interrupted_at <= LEAVE_WITHIN_S:
                self.leave(CUT_SHORT if self.mine or self.running else LEFT)
                return
            self._interrupted_at = now
            if self.running is None:
                self.screen.notice("Ctrl-C again leaves")
                self.screen.prompt()
            else:
                self._nursery.start_soon(self._cancel, self.running)

    async def _cancel(self, turn: str) -> None:
        """The fence is shown when the terminal comes, in its place behind the last output. A person who leaves at once
        has still cancelled: the request is given a moment.
        """
        with trio.CancelScope(shield=True) as leaving:
            leaving.deadline = trio.current_time() + CANCEL_WITHIN_S
            try:
                answer = await self.session.cancel(turn, reason="barge_in")
                if answer.state == "already_ended":
                    self.screen.notice("the turn had ended before; Ctrl-C again leaves")
            except (Refused, OutcomeUnknown) as error:
                self.screen.notice(str(error))

    # the connection

    async def _watch(self, events: Events) -> None:
        told = False
        while True:
            if self.screen.broken:
                self.leave(LEFT)
            if not self.caught_up and events.caught_up:
                self.caught_up = True
                self._show_question()
                self._change()
            if not self.client.connected and not told:
                await trio.sleep(LOST_AFTER_S)
                told = not self.client.connected
                if told:
                    self.screen.begin_notice("connection lost, turns go on")
            elif self.client.connected:
                told = False
            await trio.sleep(LOOK_S)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()


def _end_of(data: Mapping[str, Any]) -> str:
    """`cancelled, fence 162`; how else a turn ended comes with its reason."""
    if data.get("outcome") == "cancelled":
        return f"cancelled, fence {data.get('fence_seq')}"
    return f"{data.get('outcome')}: {data.get('reason')}"
