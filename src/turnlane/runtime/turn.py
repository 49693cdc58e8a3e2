"""TurnActor: the tasks of one turn, and how they end.

The agent runs in the runtime's node nursery under a cancel scope of its own; the supervisor, a child of the session's
actor, waits for it. So disowning an agent that will not end is a mark, and the turn's nursery really empties. The
ladder (ask, insist, force) runs after the terminal is kept, never before the answer to a cancel.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import trio
from attrs import define, field

from ..core import marks
from ..core.ids import AnyRequestId
from ..core.observations import TurnUnwound
from ..core.reasons import Fenced, Reason
from ..machines import session as rules
from ..machines import turn as turns
from ..machines.plan import Plan
from .agent import Turn
from .egress import LiveDigest
from .lineage import join_descendants

if TYPE_CHECKING:
    from .session import SessionActor


_CANCELS = frozenset(
    {"user_cancel", "barge_in", "interrupted", "parent_ended", "session_closed", "detached", "operator_cancel"}
)


@define(slots=True, eq=False)
class TurnActor:
    """Supervises the tasks of one open turn."""

    actor: SessionActor
    plan: Plan
    input: Any
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    digest: LiveDigest = field(factory=LiveDigest)
    asked: bool = False
    """A soft cancel is under way: finish the output in flight, start nothing new."""
    outputs_in_flight: int = 0
    steering: deque[Any] = field(factory=lambda: deque(maxlen=turns.STEERED_KEPT))
    answers: dict[AnyRequestId, list[Any]] = field(factory=dict)
    waiting: Counter[AnyRequestId] = field(factory=Counter)
    """How many wait for the answer: one question may be asked twice."""
    state: dict[str, Any] = field(factory=dict)
    node_cancelled: bool = False
    output_lost: bool = False
    disowned: bool = False
    _ended_reason: Reason | None = None
    _wake: trio.Event = field(factory=trio.Event)
    _node_done: trio.Event = field(factory=trio.Event)
    _stopped: trio.Event = field(factory=trio.Event)
    _steered: trio.Event = field(factory=trio.Event)
    _answered: trio.Event = field(factory=trio.Event)
    _failure: turns.FailTurn | None = None

    async def supervise(self) -> None:
        """Run the agent, tell the session how it ended, and take its tasks down when the turn is over."""
        runtime = self.actor.runtime
        runtime.start_node(self._run_node, f"agent of {self.plan.turn}")
        try:
            await self._wake.wait()
            if self._node_done.is_set() and not self._stopped.is_set():
                await self._propose_end()
                await self._stopped.wait()
        finally:
            stopped_at = self.actor.runtime.ports.clock.now()
            await self._ladder()
            if self._ended_reason is not None and self._ended_reason.value in _CANCELS:
                unwind_ms = (self.actor.runtime.ports.clock.now() - stopped_at) / 1e6
                self.actor.runtime.observe(TurnUnwound(self.plan.session, self.plan.turn, "host", unwind_ms))
            self.actor.ring()

    async def _run_node(self) -> None:
        """The agent, under its own scope and behind its own barrier: what it raises ends this turn and nothing else."""
        runtime = self.actor.runtime
        turn = Turn(self)
        try:
            with self.scope:
                marks.scope_hook("turn", self.scope)
                await runtime.agent_of(self.plan.agent)(turn)
            if self.scope.cancelled_caught and not self.asked and not self._stopped.is_set():
                self.node_cancelled = True  # by whomever: an agent that was cut short has not completed its turn
        except BaseException as error:
            if not _contained(error):
                raise
            self._failure = self._failed(error)
        finally:
            runtime.permits.give_back(self.actor.tenant)
            runtime.node_ended(self)
            self._node_done.set()
            self._wake.set()

    def _failed(self, error: BaseException) -> turns.FailTurn:
        if not self._stopped.is_set() and not isinstance(error, Fenced):
            self.actor.runtime.note_agent_error(self.plan, error)
        first = error
        while isinstance(first, BaseExceptionGroup) and first.exceptions:
            first = first.exceptions[0]
        return turns.FailTurn(
            self.plan.turn, Reason.NODE_TIMEOUT_OR_FAILURE, f"node:{self.plan.node}", type(first).__name__
        )

    async def _propose_end(self) -> None:
        """The agent is done: sub-sessions end first, then the turn commits or fails."""
        if self._failure is None and not self.node_cancelled:
            await join_descendants(self.actor.runtime, self.actor)
        if self._stopped.is_set():
            return
        if self.node_cancelled:
            detail = "node_cancelled"
            self._failure = turns.FailTurn(
                self.plan.turn, Reason.NODE_TIMEOUT_OR_FAILURE, f"node:{self.plan.node}", detail
            )
        self.actor.post(self._failure or turns.CommitTurn(self.plan.turn))

    async def _ladder(self) -> None:
        """Ask, then insist, then force. The last rung cannot fail: the agent is disowned, it cannot reach the exit."""
        if self._node_done.is_set():
            return
        limits = self.actor.runtime.limits
        with trio.move_on_after(limits.cancel_total_ms_max / 1000, shield=True):
            for patience_ms in (limits.cancel_ask_ms, limits.cancel_insist_ms):
                if self._node_done.is_set():
                    return
                self.scope.cancel(reason="the turn has ended")
                with trio.move_on_after(patience_ms / 1000):
                    await self._node_done.wait()
        marks.sometimes(not self._node_done.is_set(), "turn.disowned")
        if not self._node_done.is_set():
            self.disowned = True
            self.actor.runtime.disown(self)
            self.actor.post(rules.NoteDegraded("node_forced"))

    # what the session tells the turn

    def end(self, reason: Reason, completed: bool) -> None:
        """The terminal is kept: the tasks have to go."""
        self._ended_reason = reason
        self._stopped.set()
        self._wake.set()

    def ask(self) -> None:
        """Soft cancel: the output in flight may finish, then the agent's scope is cancelled."""
        self.asked = True
        marks.sometimes(self.outputs_in_flight, "turn.soft_cancel_met_an_output")
        if not self.outputs_in_flight:
            self.scope.cancel(reason="soft cancel")

    def output_ended(self) -> None:
        """One output call is over; a soft cancel that waited for the last of them goes on."""
        self.outputs_in_flight -= 1
        if self.asked and not self.outputs_in_flight:
            self.scope.cancel(reason="soft cancel")

    def cancel_node(self) -> None:
        """Cancel the agent alone: its step ends as cancelled, and the turn fails for want of a continuation."""
        self.node_cancelled = True
        self.scope.cancel(reason="node cancelled")

    def steer(self, key: str, given: Any) -> None:
        self.steering.append(given)
        self._steered.set()

    def deliver(self, request: AnyRequestId, resolution: str, answer: Any) -> None:
        self.answers[request] = [resolution, answer]
        self._answered.set()

    # waits of the agent

    async def next_steering(self) -> Any:
        while not self.steering:
            if self._steered.is_set():
                self._steered = trio.Event()
            await self._steered.wait()
        return self.steering.popleft()

    async def answer_to(self, request: AnyRequestId) -> tuple[str, Any]:
        self.waiting[request] += 1
        try:
            while request not in self.answers:
                if self._answered.is_set():
                    self._answered = trio.Event()
                await self._answered.wait()
            resolution, answer = self.answers[request]
            return resolution, answer
        finally:
            self.waiting[request] -= 1
            if not self.waiting[request]:
                del self.waiting[request]
                self.answers.pop(request, None)


def _contained(error: BaseException) -> bool:
    """Whether an agent's exception stays within its turn. Ctrl-C and cancels of ours never do."""
    if isinstance(error, BaseExceptionGroup):
        return all(_contained(inner) for inner in error.exceptions)
    return isinstance(error, Exception | SystemExit)
