"""Planted bugs of the queue and of what happens inside turns: order, deadlines, questions, tool calls, room.

See `planted.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from attrs import evolve

from turnlane.core.canonical import digest_of
from turnlane.core.ids import EffectId
from turnlane.core.reasons import Reason
from turnlane.core.step import Step
from turnlane.machines import dispatch as queue
from turnlane.machines import effects_ledger, ends, overlap, requests, starts, within
from turnlane.machines import session as rules
from turnlane.machines import turn as turns
from turnlane.machines.overlap import Action, Policy, Situation
from turnlane.runtime import lineage, session
from turnlane.runtime.agent import Effect, Turn
from turnlane.runtime.pool import Permits, Window
from turnlane.runtime.session import SessionActor
from turnlane.runtime.timers import Timers
from turnlane.runtime.turn import TurnActor

from .planted import Patch, in_owners, planted_bug


def _decides(patch: Patch, change: Any) -> None:
    """Whatever is decided passes through `change(state, command, decision)`."""

    def changed(real: Any) -> Any:
        return lambda state, command, *rest: change(state, command, real(state, command, *rest))

    in_owners(patch, decide=changed)


def _acts_otherwise(patch: Patch, policy: Policy, action: Action) -> None:
    """A start of this policy that meets a running turn is treated in another way."""
    changed = {**overlap.ACTIONS, (policy, Situation.BUSY): action}
    patch.set(overlap, "ACTIONS", changed)


def _without_event(step: Any, kind: type) -> Any:
    if not isinstance(step, Step):
        return step
    return evolve(step, events=tuple(event for event in step.events if not isinstance(event, kind)))


# the queue


@planted_bug(found_by="queue_in_order", within=10, arena="fair")
def last_come_first_served(patch: Patch) -> None:
    """Of the starts that wait, the newest is taken."""

    def next_row(rows: Any, wall: Any, *ring: Any) -> Any:
        ready = [row for row in rows.values() if row.phase is queue.RowPhase.QUEUED and row.not_before <= wall]
        return ready[-1] if ready else None

    patch.set(queue, "next_row", next_row)


@planted_bug(found_by="queue_in_order", within=10, arena="fair")
def interrupt_leaves_the_old_turn_running(patch: Patch) -> None:
    """A start that interrupts waits until the turn has ended by itself."""
    _acts_otherwise(patch, Policy.INTERRUPT, Action.WAIT)


@planted_bug(found_by="queue_in_order", within=10, arena="fair")
def reject_waits(patch: Patch) -> None:
    """A start that wants no queue is put into it."""
    _acts_otherwise(patch, Policy.REJECT, Action.WAIT)


@planted_bug(found_by="queue_in_order", within=60, arena="nodes")
def latest_replaces_nothing(patch: Patch) -> None:
    """Of several starts of which the last counts, all run."""
    _acts_otherwise(patch, Policy.LATEST, Action.WAIT)


@planted_bug(found_by="refused_leave_nothing", within=40, arena="fair")
def refused_start_waits_all_the_same(patch: Patch) -> None:
    """Who is told that a turn is in flight is put into the queue nevertheless."""
    real = starts.start

    def start(state: Any, command: Any, now: Any, limits: Any) -> Any:
        answer = real(state, command, now, limits)
        if getattr(answer, "reason", None) is not Reason.TURN_IN_FLIGHT:
            return answer
        queued = starts._enqueue(state, command, Policy.QUEUE, now, limits)
        return evolve(queued, answer=answer) if isinstance(queued, Step) else answer

    patch.set(rules, "start", start)


@planted_bug(found_by="inputs_are_performed", within=20, arena="nodes")
def merged_input_lost(patch: Patch) -> None:
    """Of inputs that were merged into one turn, the turn is given the first."""
    patch.set(queue.Row, "input", property(lambda row: row.parts[0].input))


@planted_bug(found_by="rows_end_as_their_turns", within=60, arena="storm")
def lost_start_not_tried_again(patch: Patch) -> None:
    """A start whose host died is given up at once."""
    real = queue.lost
    patch.set(queue, "lost", lambda row, wall, limits: real(evolve(row, attempts=row.attempts_max), wall, limits))


@planted_bug(found_by="rows_end_as_their_turns", within=20, arena="nodes")
def cancelled_start_comes_back(patch: Patch) -> None:
    """A turn that was cancelled goes back into the queue and runs again."""
    real = queue.end_with

    def end_with(row: Any, outcome: str, *rest: Any) -> Any:
        return real(row, "abandoned" if outcome == "cancelled" else outcome, *rest)

    patch.set(queue, "end_with", end_with)


@planted_bug(found_by="dispatches_end_with_turns", within=20, arena="fair")
def row_started_twice(patch: Patch) -> None:
    """A turn completes, its row stays started, and is taken once more."""
    _decides(patch, lambda state, command, step: _without_event(step, queue.DispatchCompleted))
    real = queue.next_row

    def next_row(rows: Any, wall: Any, *ring: Any) -> Any:
        started = (row for row in rows.values() if row.phase is queue.RowPhase.STARTED and row.attempts == 1)
        return next(started, None) or real(rows, wall, *ring)

    patch.set(queue, "next_row", next_row)


@planted_bug(found_by="rows_end_as_their_turns", within=10, arena="fair")
def row_outlives_its_turn(patch: Patch) -> None:
    """A turn completes and its row stays started."""
    _decides(patch, lambda state, command, step: _without_event(step, queue.DispatchCompleted))


@planted_bug(found_by="sessions_end_empty", within=40, arena="takeover")
def close_leaves_the_queue(patch: Patch) -> None:
    """A session is closed over the starts that still wait."""

    def change(state: Any, command: Any, step: Any) -> Any:
        left_open = isinstance(command, rules.CloseSession) and state.turn is None
        return _without_event(step, queue.DispatchCancelled) if left_open else step

    _decides(patch, change)


@planted_bug(found_by="sessions_end_empty", within=60, arena="fair")
def drain_never_ends(patch: Patch) -> None:
    """A session that drains stays there when its last turn has ended."""
    for room in (ends, starts, within):
        patch.set(room, "drained", lambda state, events, effects: (events, effects))


# deadlines


def _never_armed(patch: Patch, prefix: str) -> None:
    real = Timers.arm

    def arm(self: Timers, owner: str, key: str, *args: Any, **how: Any) -> None:
        if not key.startswith(prefix):
            real(self, owner, key, *args, **how)

    patch.set(Timers, "arm", arm)


@planted_bug(found_by="deadlines_hold", within=40, arena="fair")
def deadline_never_fires(patch: Patch) -> None:
    """The timer of a turn's budget is not armed."""
    _never_armed(patch, "budget:")


@planted_bug(found_by="deadlines_hold", within=40, arena="nodes")
def deadline_fires_for_the_next_turn(patch: Patch) -> None:
    """The timer of a turn that has ended stays armed, and ends whatever turn runs then."""
    real_drop, real_timer = Timers.drop, rules._timer

    def drop(self: Timers, owner: str, key: str) -> None:
        if not key.startswith("budget:"):
            real_drop(self, owner, key)

    def timer(state: Any, key: str, *rest: Any) -> Any:
        if key.startswith("budget:") and state.turn is not None:
            key = f"budget:{state.turn.turn}"
        return real_timer(state, key, *rest)

    patch.set(Timers, "drop", drop)
    patch.set(rules, "_timer", timer)


@planted_bug(found_by="deadlines_hold", within=60, arena="nodes")
def soft_cancel_never_ends(patch: Patch) -> None:
    """A turn that is asked to end is neither told nor bounded."""
    _never_armed(patch, "soft:")
    patch.set(TurnActor, "ask", lambda self: None)


@planted_bug(found_by="deadlines_hold", within=40, arena="nodes")
def question_never_expires(patch: Patch) -> None:
    """The deadline of a question passes and nothing happens."""
    _never_armed(patch, "request:")


# questions


@planted_bug(found_by="first_answer_wins", within=100, arena="nodes")
def second_answer_accepted(patch: Patch) -> None:
    """A question that was answered takes another answer."""
    real = requests.answering

    def answering(known: Any, command: Any, *rest: Any) -> Any:
        asked = known.get(command.request)
        opened = {**known, command.request: evolve(asked, resolution=None)} if asked is not None else known
        return real(opened, command, *rest)

    patch.set(requests, "answering", answering)


@planted_bug(found_by="first_answer_wins", within=20, arena="nodes")
def question_outlives_its_turn(patch: Patch) -> None:
    """A turn ends and its open questions are not taken back."""

    def change(state: Any, command: Any, step: Any) -> Any:
        ending = isinstance(step, Step) and any(isinstance(event, turns.TurnAborted) for event in step.events)
        if not ending:
            return step
        events = [event for event in step.events if not isinstance(event, requests.RequestResolved)]
        gone = len(step.events) - len(events)
        for event in events:
            if isinstance(event, turns.TurnAborted):
                event.fence_seq -= gone
        answer = step.answer
        if isinstance(answer, turns.CancelAnswer) and answer.fence_seq is not None:
            answer = evolve(answer, fence_seq=answer.fence_seq - gone)
        return evolve(step, events=tuple(events), answer=answer)

    _decides(patch, change)


# tool calls


@planted_bug(found_by="effect_once", within=40, arena="nodes")
def call_made_before_its_intent(patch: Patch) -> None:
    """The tool is called first, and its intent is kept afterwards."""

    @asynccontextmanager
    async def effect(self: Turn, name: str, arguments: Any, key: str | None = None, **_: Any) -> AsyncIterator[Effect]:
        call = Effect(True)
        yield call
        effect_id = EffectId(self._actor.actor.runtime.ports.ids.new("effect"))
        digest = digest_of([name, arguments]).hex()
        await self._submit(effects_ledger.IntendEffect(effect_id, self.id, key or effect_id, digest, name))
        await self._submit(effects_ledger.SettleEffect(effect_id, self.id, "completed", call.result))

    patch.set(Turn, "effect", effect)


def _keep_no_keys(patch: Patch, beginning: str) -> None:
    """What must be found again when memory has forgotten it is not kept."""
    real = SessionActor._extra_keys

    def extra_keys(self: SessionActor, event: Any, state: Any) -> Any:
        return (key for key in real(self, event, state) if not key.key.startswith(beginning))

    patch.set(SessionActor, "_extra_keys", extra_keys)


@planted_bug(found_by="effect_once", within=60, arena="nodes")
def call_repeated_although_it_completed(patch: Patch) -> None:
    """The result of a call under the same key is not looked for beyond memory: the call is made again."""
    _keep_no_keys(patch, session.EFFECT_KEY)


@planted_bug(found_by="effect_once", within=20, arena="storm")
def call_repeated_although_it_may_have_happened(patch: Patch) -> None:
    """A call that was cut short and may have happened is made again."""
    real = effects_ledger.intending

    def intending(effects: Any, command: Any, limits: Any) -> Any:
        before = effects.get(command.effect_key)
        known = {key: one for key, one in effects.items() if one is not before or one.phase != "unknown"}
        return real(known, command, limits)

    patch.set(effects_ledger, "intending", intending)


@planted_bug(found_by="effect_once", within=20, arena="nodes")
def outcome_of_a_call_lost(patch: Patch) -> None:
    """A call is made, and that it was made is not kept."""

    def change(state: Any, command: Any, step: Any) -> Any:
        done = isinstance(command, effects_ledger.SettleEffect) and command.outcome == "completed"
        return Step(answer=step.answer) if done and isinstance(step, Step) else step

    _decides(patch, change)


# sub-sessions


@planted_bug(found_by="children_end_with_parents", within=100, arena="nodes")
def child_outlives_a_cancelled_parent(patch: Patch) -> None:
    """A turn is cancelled and the sessions below it go on."""
    for room in (lineage, session):
        patch.set(room, "end_descendants", lambda runtime, actor: None)


@planted_bug(found_by="children_end_with_parents", within=20, arena="nodes")
def turn_commits_over_its_children(patch: Patch) -> None:
    """A turn commits while a session below it is still open."""
    from turnlane.runtime import turn as supervisor

    async def join(runtime: Any, actor: Any) -> None:
        await trio.lowlevel.checkpoint()

    patch.set(supervisor, "join_descendants", join)


# room


@planted_bug(found_by="ends", within=10, arena="narrow")
def window_leaks(patch: Patch) -> None:
    """Of each group one event keeps its place in the window on accepted data."""
    real = Window.committed
    patch.set(Window, "committed", lambda self, items: real(self, items - 1))


@planted_bug(found_by="ends", within=10, arena="narrow")
def permit_leaks(patch: Patch) -> None:
    """The permit of a turn is not given back."""
    patch.set(Permits, "give_back", lambda self, tenant: None)


@planted_bug(found_by="ends", within=10, arena="narrow")
def start_on_its_way_never_arrives(patch: Patch) -> None:
    """A start that was let in counts as on its way for ever."""

    real = SessionActor._handle

    async def handle(self: SessionActor, command: Any, keyed: Any) -> Any:
        answer = await real(self, command, keyed)
        self.runtime.permits.opening[self.tenant] += isinstance(command, rules.StartTurn | rules.OpenQueued)
        return answer

    patch.set(SessionActor, "_handle", handle)


@planted_bug(found_by="ends", within=20, arena="narrow")
def pump_looks_once(patch: Patch) -> None:
    """When a turn has ended, the next start is not taken until something else happens."""
    real = SessionActor._pump

    async def pump(self: SessionActor) -> bool:
        if self.state.turn is None and self.mailbox.empty and not self._queued % 2:
            return False
        return await real(self)

    patch.set(SessionActor, "_pump", pump)


@planted_bug(found_by="answers_are_true", within=10, arena="fair")
def start_answers_with_the_wrong_seq(patch: Patch) -> None:
    """The seq of a start's answer is that of the event before its turn opened."""
    real = starts._seq_of_opened
    patch.set(starts, "_seq_of_opened", lambda events, head: real(events, head) - 1)


@planted_bug(found_by="answers_are_true", within=60, arena="sleepy")
def old_turn_never_was(patch: Patch) -> None:
    """How a turn ended is forgotten when memory has no room for it."""
    _keep_no_keys(patch, session.TURN_KEY)


@planted_bug(found_by="answers_are_true", within=60, arena="nodes")
def steering_reaches_another_turn(patch: Patch) -> None:
    """Steering goes to whatever turn is open, not to the one that was named."""
    real = patch.real(rules, "steer")

    def steer(state: Any, turn: Any, *rest: Any) -> Any:
        return real(state, turn if state.turn is None else state.turn.turn, *rest)

    patch.set(rules, "steer", steer)
