"""Stories as text: a comment, a command, a line, and what came of it. To read them, open the files beside this one.

    seq tag details        an event that was kept
    ! wish                 an effect that the runtime would grant
    = answer               what the caller hears
    refused reason         a no: nothing was kept

With --turnlane-rewrite, what comes of the commands is written anew; the diff is the review.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from attrs import define, field

from turnlane.codec import TAGS, Codec
from turnlane.core.ids import DispatchId, EffectId, RequestId, SessionId, TurnId
from turnlane.core.instants import Instant, WallInstant, wall_after_ms
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.reasons import Deferred, Reason, Rejected
from turnlane.core.step import Kept, Lane, Step
from turnlane.machines import dispatch as queue
from turnlane.machines import effects_ledger, requests
from turnlane.machines import session as rules
from turnlane.machines import turn as turns
from turnlane.machines.delivery import CaughtUp, Item, Reader, Send, Skip, singly
from turnlane.machines.fence import FenceView, refuses
from turnlane.machines.overlap import Policy
from turnlane.machines.plan import Bundle, Plan, Profile, freeze
from turnlane.testing.scenarios import Arguments, Verb, run_scenario

HERE: Final = Path(__file__).parent
EPOCH: Final = 1
CODEC: Final = Codec()

_ENDS: Final = (turns.CommitTurn, turns.FailTurn, turns.LoseAuthority)

DETAILS: Final[dict[type, Callable[[Any], str]]] = {
    rules.SessionCreated: lambda e: e.session + (f" below {e.parent}/{e.parent_turn}" if e.parent else ""),
    rules.SessionDraining: lambda e: "",
    rules.SessionEnded: lambda e: e.reason,
    rules.GateDecided: lambda e: f"{e.kind} {e.reason}",
    rules.TurnKeyCancelled: lambda e: e.key or e.turn_id or "",
    queue.DispatchQueued: lambda e: f"{e.dispatch} for {e.turn} ({e.overlap})",
    queue.DispatchClaimed: lambda e: f"{e.dispatch} attempt {e.attempts} as {e.turn}",
    queue.DispatchRequeued: lambda e: f"{e.dispatch} after {e.why}",
    queue.DispatchMerged: lambda e: f"{e.dispatch} {'without' if e.removed else 'with'} {e.key}",
    queue.DispatchFailed: lambda e: f"{e.dispatch} {e.reason}",
    queue.DispatchCancelled: lambda e: f"{e.dispatch} {e.reason}",
    turns.TurnOutput: lambda e: f"{e.turn} {e.data!r}",
    turns.TurnSteered: lambda e: f"{e.turn} {e.input!r}",
    turns.TurnBlocked: lambda e: f"{e.turn} on {e.on}",
    turns.TurnCancelAccepted: lambda e: f"{e.turn} {e.mode} {e.reason} by {e.origin}",
    turns.SubsessionStarted: lambda e: f"{e.turn} {e.child}",
    turns.TurnAborted: lambda e: (
        f"{e.turn} {e.outcome} {e.reason} by {e.origin}, fence {e.fence_seq}" + (", flushes" if e.flushed else "")
    ),
    turns.TurnCommitted: lambda e: f"{e.turn} {e.outcome}, fence {e.fence_seq}",
    requests.RequestOpened: lambda e: f"{e.request} {e.prompt!r}",
    requests.RequestResolved: lambda e: f"{e.request} {e.resolution}" + (f" {e.answer!r}" if e.answer else ""),
    effects_ledger.EffectUnknown: lambda e: f"{e.effect} {e.cause}",
}


@define
class Place:
    """One session: its state, its log, its exit and its readers."""

    state: rules.Session
    view: FenceView
    log: list[Kept] = field(factory=list)
    readers: dict[str, Reader] = field(factory=dict)


@define
class Stage:
    """All sessions of a story. A command names the one it is about (`child: open`); without a name it is `s1`."""

    wall: WallInstant = WallInstant(1_795_000_000_000_000)
    places: dict[str, Place] = field(factory=dict)

    # verbs

    def do_open(self, name: str, below: str = "", overlap: str = "queue") -> list[str]:
        place = self.places[name] = Place(rules.Session(SessionId(name)), FenceView(EPOCH))
        command = rules.CreateSession(place.state.session, overlap=Policy(overlap))
        if below:
            parent = self.places[below.split("/")[0]]
            turn = TurnId(below.split("/")[1])
            ancestors = ((parent.state.session, turn), *parent.state.ancestors)
            command = rules.CreateSession(
                place.state.session, parent=parent.state.session, parent_turn=turn, ancestors=ancestors
            )
            place.view.ancestors = ((parent.view, turn), *parent.view.ancestors)
        return self.decide(place, command)

    def do_start(
        self, place: Place, turn: str, given: str, overlap: str = "", key: str = "", gate: str = "", expects: str = ""
    ) -> list[str]:
        number = turn.lstrip("t")
        refusal = Rejected(Reason(gate), "the gate says no") if gate else None
        command = rules.StartTurn(
            key or f"k{number}",
            given,
            TurnId(turn),
            DispatchId(f"d{number}"),
            self.plan(place, turn),
            refusal,
            overlap=Policy(overlap) if overlap else None,
            expected_turn=TurnId(expects) if expects else None,
        )
        return self.decide(place, command)

    def do_pump(self, place: Place, fresh: str = "t99") -> list[str]:
        row = queue.next_row(place.state.rows, self.wall)
        turn = fresh if row is None or row.attempts else row.turn
        return self.decide(place, rules.OpenQueued(TurnId(fresh), self.plan(place, turn)))

    def do_output(self, place: Place, turn: str, data: str) -> list[str]:
        """As at the exit: the fence first, then the journal."""
        if (reason := refuses(place.view, EPOCH, TurnId(turn))) is not None:
            return [f"refused {reason.value}"]
        return self.decide(place, turns.RecordOutput(TurnId(turn), EPOCH, "text", data))

    def do_steer(self, place: Place, turn: str, given: str) -> list[str]:
        return self.decide(place, turns.SteerTurn(TurnId(turn), given))

    def do_cancel(
        self,
        place: Place,
        turn: str = "",
        key: str = "",
        mode: str = "hard",
        scope: str = "turn",
        reason: str = "user_cancel",
        by: str = "client:a",
    ) -> list[str]:
        command = turns.CancelTurn(TurnId(turn) if turn else None, key or None, scope, mode, Reason(reason), by)
        return self.decide(place, command)

    def do_commit(self, place: Place, turn: str) -> list[str]:
        return self.decide(place, turns.CommitTurn(TurnId(turn)))

    def do_fail(self, place: Place, turn: str, reason: str) -> list[str]:
        return self.decide(place, turns.FailTurn(TurnId(turn), Reason(reason), "node:agent"))

    def do_ask(self, place: Place, turn: str, request: str, prompt: str) -> list[str]:
        return self.decide(place, requests.OpenRequest(RequestId(request), TurnId(turn), "approval", prompt))

    def do_answer(self, place: Place, request: str, value: str) -> list[str]:
        return self.decide(place, requests.AnswerRequest(RequestId(request), value))

    def do_intend(self, place: Place, turn: str, effect: str, name: str) -> list[str]:
        intend = effects_ledger.IntendEffect(EffectId(effect), TurnId(turn), name, "aa", name)
        return self.decide(place, intend)

    def do_below(self, place: Place, turn: str, child: str) -> list[str]:
        return self.decide(place, rules.StartSubSession(TurnId(turn), SessionId(child)))

    def do_timer(self, place: Place, key: str) -> list[str]:
        return self.decide(place, rules.TimerFired(key))

    def do_close(self, place: Place, mode: str, reason: str = "session_closed", by: str = "host") -> list[str]:
        return self.decide(place, rules.CloseSession(mode, Reason(reason), by))

    def do_recover(self, place: Place) -> list[str]:
        return self.decide(place, turns.LoseAuthority())

    def do_wait(self, place: Place, ms: str) -> list[str]:
        self.wall = wall_after_ms(self.wall, int(ms))
        return []

    def do_attach(self, place: Place, reader: str, at: str = "now") -> list[str]:
        start = len(place.log) if at == "now" else int(at)
        place.readers[reader] = Reader(start, start, len(place.log))
        return []

    def do_read(self, place: Place, reader: str, most: str = "64") -> list[str]:
        """What one read of at most so many items sends."""
        return [self.sent(item) for item in self.items(place, place.readers[reader], int(most))]

    def do_state(self, place: Place) -> list[str]:
        """Phase of the session, its open turn, and who waits."""
        state = place.state
        waiting = [row for row in state.rows.values() if row.phase is queue.RowPhase.QUEUED]
        rows = " ".join(f"{row.turn}[{'+'.join(part.key for part in row.parts)}]" for row in waiting)
        return [f"{state.phase.value}, open {state.turn.turn if state.turn else '-'}, waiting {rows or '-'}"]

    # the parts of the shell that a story needs

    def plan(self, place: Place, turn: str) -> Plan:
        plan = freeze(
            Bundle(Profile("default", "agent"), {}),
            turn=TurnId(turn),
            session=place.state.session,
            epoch=EPOCH,
            limits=DEFAULT_LIMITS,
        )
        assert isinstance(plan, Plan)
        return plan

    def decide(self, place: Place, command: Any) -> list[str]:
        stamp = turns.Stamp(Instant(0), self.wall, len(place.log), EPOCH)
        step = rules.decide(place.state, command, stamp, DEFAULT_LIMITS)
        if isinstance(step, Rejected | Deferred):
            return [f"refused {step.reason.value}"]
        lines = []
        for event in step.events:
            place.state = rules.evolve_session(place.state, event, len(place.log) + 1)
            lines.append(self.keep(place, event))
        place.view.open_turn = None if place.state.turn is None else place.state.turn.turn
        lines += [f"! {wish_of(effect)}" for effect in step.effects if not isinstance(effect, turns.DropTimer)]
        if step.answer is not None and not isinstance(command, _ENDS):  # nobody waits for the answer of an end
            lines += answer_of(step)
        return lines

    def keep(self, place: Place, event: Any) -> str:
        seq = len(place.log) + 1
        place.log.append(CODEC.kept(event, seq, EPOCH, Instant(0), self.wall))
        if isinstance(event, turns.TurnClosed):
            place.view.recently_closed = (*place.view.recently_closed, event.turn)
        if isinstance(event, turns.TurnAborted) and event.flushed:
            place.view.cancelled = (*place.view.cancelled, event.turn)
        details = DETAILS.get(type(event), lambda e: str(getattr(e, "turn", "") or getattr(e, "dispatch", "")))
        return f"{seq} {TAGS[type(event)]} {details(event)}".rstrip()

    @staticmethod
    def items(place: Place, reader: Reader, most: int) -> list[Item]:
        window = place.log[reader.after : reader.after + most]
        last = window[-1].seq if window else reader.after
        ahead: Sequence[Kept] = ()
        if reader.wants_control_ahead(last, len(place.log)):
            ahead = [kept for kept in place.log[reader.control_seq :] if kept.lane is Lane.CONTROL][:most]
        return singly(reader.next(window, ahead, most, 1 << 30))

    @staticmethod
    def sent(item: Item) -> str:
        match item:
            case Send(event=event):
                return f"{event.seq} {event.type}"
            case Skip():
                return f"skipped {item.from_seq}-{item.to_seq} ({item.count}) of {item.turn}: {item.reason.value}"
            case CaughtUp():
                return "caught up"


def wish_of(effect: Any) -> str:
    match effect:
        case turns.StartPlan(plan=plan, input=given):
            return f"start {plan.turn} with {given!r}"
        case turns.StopTurn(turn=turn, reason=reason):
            return f"stop {turn}: {reason.value}"
        case turns.AskNodes(turn=turn):
            return f"ask the agent of {turn} to finish"
        case turns.SteerNode(turn=turn, input=given):
            return f"give {turn} {given!r}"
        case turns.DeliverAnswer(turn=turn, request=request, answer=answer):
            return f"tell {turn} the answer of {request}: {answer!r}"
        case turns.ArmTimer(key=key):
            return f"arm {key}"
        case turns.PauseTimer(key=key):
            return f"pause {key}"
        case turns.ResumeTimer(key=key):
            return f"resume {key}"
        case rules.CancelDescendants(turn=turn):
            return f"end every session below {turn}"
        case rules.DetachAll(reason=reason):
            return f"detach all: {reason.value}"
    raise AssertionError(effect)


def answer_of(step: Step) -> list[str]:
    match step.answer:
        case rules.Done() | effects_ledger.EffectKnown() | requests.AnswerAccepted():
            return []
        case rules.OpenAnswer(created=created, phase=phase):
            return [f"= {'created' if created else 'there'}, {phase}"]
        case rules.StartAnswer() as start:
            place = f"at {start.seq}" if start.position is None else f"{start.position}"
            return [f"= {start.phase} {place}, turn {start.turn}{', merged' if start.merged else ''}"]
        case rules.SteerAnswer(turn=turn):
            return [f"= steered {turn}"]
        case rules.CloseAnswer(phase=phase):
            return [f"= {phase}"]
        case turns.CancelAnswer() as cancel:
            fence = "" if cancel.fence_seq is None else f", fence {cancel.fence_seq}"
            end = "" if cancel.outcome is None else f", {cancel.outcome} {cancel.reason}"
            return [f"= {cancel.state}{fence}{end}"]
        case Rejected(reason=reason) | Deferred(reason=reason):
            return [f"refused {reason.value}"]
    raise AssertionError(step.answer)


def verb_of(method: Callable[..., list[str]]) -> Verb:
    """A `do_` of the stage is given the session that the command is about; `open` makes it."""

    def verb(stage: Stage, arguments: Arguments) -> str:
        about = arguments.subject or "s1"
        first = about if method is Stage.do_open else stage.places[about]
        return "\n".join(method(stage, first, *arguments.words, **arguments.named))

    return verb


VERBS: Final = {name[3:]: verb_of(method) for name, method in vars(Stage).items() if name.startswith("do_")}
STORIES: Final = sorted(HERE.glob("*.txt"))


@pytest.mark.parametrize("story", STORIES, ids=[story.stem for story in STORIES])
def test_the_story_comes_as_it_is_told(story: Path, pytestconfig: pytest.Config) -> None:
    """Each command brings about exactly the lines below it."""
    run_scenario(story, VERBS, state=Stage, rewrite=pytestconfig.getoption("--turnlane-rewrite", default=False))


def test_there_are_stories() -> None:
    """A runner that finds nothing to run is broken."""
    assert len(STORIES) >= 4
