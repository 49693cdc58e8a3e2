"""Planted bugs of work that outlives a process: queues and claims, workers elsewhere, runs, the contract.

A function here plants one bug; its docstring says what no longer holds. Hunted in the scene `work`. See `planted.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import evolve

from turnlane.core.ids import StreamName, split_stream
from turnlane.core.instants import WallInstant
from turnlane.core.reasons import Rejected
from turnlane.core.step import Step
from turnlane.machines import claims, contract_list, contract_marks, contract_rooms, holds, queue_state, run
from turnlane.machines import dispatch as rows
from turnlane.machines.dispatch import RowPhase
from turnlane.runtime import contract, contract_log, streams
from turnlane.runtime import dispatch as deliveries
from turnlane.runtime import worker as workers

from .planted import Patch, planted_bug


def _in_queues(patch: Patch, change: Callable[[Any, rows.Row, Any], rows.Row]) -> None:
    """Rows of queues and sessions are folded in another way: `change(event, row before, row after)`."""
    real = patch.real(rows, "_changed")
    patch.set(rows, "_changed", lambda row, event, phase: change(event, row, real(row, event, phase)))


def _judged(patch: Patch, command: type, change: Callable[..., Any]) -> None:
    """A command about rows has another judge: `change(real, state, command, wall, limits)`."""
    judges = dict(patch.real(claims, "_JUDGES"))
    real = judges[command]
    judges[command] = lambda *args: change(real, *args)
    patch.set(claims, "_JUDGES", judges)


def _in_streams(patch: Patch, kind: str, **changed: Callable[[Any], Any]) -> None:
    """Streams of a kind ask other rules: each named rule is what `changed` makes of the real one."""
    owner, fold = patch.real(streams, "StreamOwner"), patch.real(streams, "fold_stream")

    def ours(stream: str, rules: Any) -> Any:
        if _kind(stream) != kind:
            return rules
        return evolve(rules, **{name: change(getattr(rules, name)) for name, change in changed.items()})

    patch.set(
        streams, "StreamOwner", lambda stream, rules, *rest, **how: owner(stream, ours(stream, rules), *rest, **how)
    )
    patch.set(
        streams,
        "fold_stream",
        lambda store, encoder, rules, stream, *rest: fold(store, encoder, ours(stream, rules), stream, *rest),
    )


def _kind(stream: str) -> str:
    return split_stream(StreamName(stream))[1]


# claims


@planted_bug(found_by="late_is_refused", within=20, arena="work")
def claim_token_not_compared(patch: Patch) -> None:
    """Any token will do, as long as somebody holds the row."""
    patch.set(holds, "is_holder", lambda row, token: row.claim is not None and token is not None)


@planted_bug(found_by="late_is_refused", within=40, arena="work")
def reclaim_keeps_the_old_token(patch: Patch) -> None:
    """Who takes a row whose lease ran out is given a token, and the row keeps the one before."""

    def change(event: Any, before: rows.Row, after: rows.Row) -> rows.Row:
        if isinstance(event, rows.DispatchClaimed) and before.claim is not None and after.claim is not None:
            return evolve(after, claim=evolve(after.claim, token_sha256=before.claim.token_sha256))
        return after

    _in_queues(patch, change)


@planted_bug(found_by="generation_rises", within=10, arena="work")
def generation_begins_anew(patch: Patch) -> None:
    """A row that goes back to the queue forgets how often it was claimed."""

    def change(event: Any, before: rows.Row, after: rows.Row) -> rows.Row:
        return evolve(after, generation=0) if isinstance(event, rows.DispatchRequeued) else after

    _in_queues(patch, change)


@planted_bug(found_by="begun_once", within=60, arena="work")
def start_begins_anew(patch: Patch) -> None:
    """A holder that asks again whether it may begin is not told that it has."""

    def start(real: Any, *args: Any) -> Any:
        step = real(*args)
        if isinstance(step, Rejected) or not step.answer.started:
            return step
        return evolve(step, answer=evolve(step.answer, duplicate=False))

    _judged(patch, queue_state.StartDispatch, start)


@planted_bug(found_by="live_claim_stays", within=10, arena="work")
def live_claim_is_taken(patch: Patch) -> None:
    """A claim counts as lapsed a second before its lease ends."""
    real = rows.lapsed
    patch.set(rows, "lapsed", lambda row, wall: real(row, wall + 1_000_000))


@planted_bug(found_by="live_claim_stays", within=20, arena="work")
def renewal_is_not_kept(patch: Patch) -> None:
    """The holder is told a new end of its lease, and the row keeps the old one."""

    def change(event: Any, before: rows.Row, after: rows.Row) -> rows.Row:
        return before if isinstance(event, rows.DispatchRenewed) else after

    _in_queues(patch, change)


@planted_bug(found_by="attempts_bounded", within=10, arena="work")
def attempts_not_counted(patch: Patch) -> None:
    """A claim charges no attempt, so there is always another one."""

    def claim(real: Any, state: Any, *args: Any) -> Any:
        step = real(state, *args)
        if isinstance(step, Rejected) or not step.events:
            return step
        (event,) = step.events
        return evolve(step, events=(evolve(event, attempts=state.rows[event.dispatch].attempts),))

    _judged(patch, queue_state.ClaimDispatch, claim)


@planted_bug(found_by="first_goes_first", within=20, arena="work")
def requeued_row_loses_its_place(patch: Patch) -> None:
    """What was given back, or failed for now, waits behind all that came since."""
    real = rows.evolved

    def evolved(before: rows.Rows, event: Any, seq: Any) -> rows.Rows:
        after = real(before, event, seq)
        if not isinstance(event, rows.DispatchRequeued):
            return after
        rest = {name: row for name, row in after.items() if name != event.dispatch}
        return {**rest, event.dispatch: after[event.dispatch]}

    patch.set(rows, "evolved", evolved)


@planted_bug(found_by="live_claim_stays", within=20, arena="work")
def backoff_is_forgotten(patch: Patch) -> None:
    """What failed and is to be tried again is there at once."""

    def change(event: Any, before: rows.Row, after: rows.Row) -> rows.Row:
        return evolve(after, not_before=WallInstant(0)) if isinstance(event, rows.DispatchRequeued) else after

    _in_queues(patch, change)


@planted_bug(found_by="late_is_refused", within=40, arena="work")
def end_is_answered_and_not_kept(patch: Patch) -> None:
    """A row that is complete by its holder's word is marked so in the answer alone."""

    def complete(real: Any, state: Any, command: Any, *args: Any) -> Any:
        step = real(state, command, *args)
        return step if isinstance(step, Rejected) or len(state.rows) % 5 else evolve(step, events=())

    _judged(patch, queue_state.CompleteDispatch, complete)


@planted_bug(found_by="ends", within=20, arena="work")
def sweep_does_not_come(patch: Patch) -> None:
    """Nobody looks after what a worker began and never ended."""
    patch.set(rows, "next_lapse", lambda rows: None)


@planted_bug(found_by="key_once", within=20, arena="work")
def key_of_a_delivery_forgotten(patch: Patch) -> None:
    """A delivery that is enqueued again under its key is another one."""
    real = deliveries.QueuePlace.ask

    async def ask(self: Any, command: Any, keyed: Any) -> Any:
        return await real(self, command, None)

    patch.set(deliveries.QueuePlace, "ask", ask)


@planted_bug(found_by="ends_once", within=20, arena="work")
def ended_row_stays_after_recovery(patch: Patch) -> None:
    """A stream that is folded anew has its ended rows among those that wait."""
    real = streams.fold_stream

    def fold(store: Any, encoder: Any, rules: Any, stream: str, *rest: Any) -> Any:
        state, *more = real(store, encoder, rules, stream, *rest)
        if isinstance(state, queue_state.Queue) and state.ended:
            back = {name: evolve(row, phase=RowPhase.QUEUED, end=None) for name, row in state.ended.items()}
            state = evolve(state, rows={**back, **state.rows}, ended={})
        return state, *more

    patch.set(streams, "fold_stream", fold)


# workers


@planted_bug(found_by="stopped_holds_nothing", within=20, arena="work")
def stopped_worker_keeps_its_claims(patch: Patch) -> None:
    """Who stops or fails holds on to what it has until its lease ends."""
    patch.set(workers.Workers, "withdraw", lambda self, *_: None)


# runs


@planted_bug(found_by="expected_seq_holds", within=10, arena="work")
def expected_seq_is_not_looked_at(patch: Patch) -> None:
    """An event is appended whatever its writer thought came before."""

    def decide(real: Any) -> Any:
        def judge(state: Any, command: Any, *rest: Any) -> Any:
            if isinstance(command, run.AppendRunEvent):
                command = evolve(command, expected_previous_seq=None)
            return real(state, command, *rest)

        return judge

    _in_streams(patch, "run", decide=decide)


@planted_bug(found_by="appended_once", within=10, arena="work")
def event_of_a_run_is_kept_twice(patch: Patch) -> None:
    """An event stands in its run two times in a row."""

    def decide(real: Any) -> Any:
        def judge(state: Any, command: Any, *rest: Any) -> Any:
            step = real(state, command, *rest)
            if isinstance(step, Rejected) or not isinstance(command, run.AppendRunEvent):
                return step
            return evolve(step, events=(*step.events, *(evolve(event) for event in step.events)))

        return judge

    _in_streams(patch, "run", decide=decide)


@planted_bug(found_by="key_once", within=20, arena="work")
def key_of_a_run_forgotten_on_restart(patch: Patch) -> None:
    """Keys of a run are looked for in memory alone."""
    real = patch.real(streams, "StreamOwner")

    def owner(stream: str, *rest: Any, **how: Any) -> Any:
        return real(stream, *rest, **{**how, "keys_complete": how["keys_complete"] or _kind(stream) == "run"})

    patch.set(streams, "StreamOwner", owner)


# the contract


@planted_bug(found_by="contract_refuses", within=20, arena="work")
def removed_id_is_still_a_record(patch: Patch) -> None:
    """A mark finds what was removed from the records."""
    patch.set(contract, "GONE_KEY", "\x01never/")


@planted_bug(found_by="snapshot_is_the_list", within=20, arena="work")
def removal_leaves_the_counts(patch: Patch) -> None:
    """Records leave the list and are counted for ever."""

    def evolve_queue(real: Any) -> Any:
        def follow(state: Any, event: Any, seq: Any) -> Any:
            after = real(state, event, seq)
            if isinstance(event, rows.DispatchRemoved):
                return evolve(after, completed=state.completed, failed=state.failed, cancelled=state.cancelled)
            return after

        return follow

    _in_streams(patch, "dispatch", evolve=evolve_queue)


@planted_bug(found_by="key_once", within=20, arena="work")
def key_of_a_command_forgotten(patch: Patch) -> None:
    """A command that is sent again under its key is another one."""
    real = contract.Contract._execute
    patch.set(contract.Contract, "_execute", lambda self, command, key: real(self, command, None))


@planted_bug(found_by="contract_is_one_list", within=10, arena="work")
def list_counts_what_it_does_not_show(patch: Patch) -> None:
    """The numbers of the list count the events of its streams."""
    real = contract_list.seen

    def seen(fold: Any, kind: str, name: str, event: Any, *rest: Any) -> Any:
        after, entry = real(fold, kind, name, event, *rest)
        hidden = entry is None and event is not None
        return (evolve(after, next_seq=after.next_seq + 1) if hidden else after), entry

    for room in (contract_list, contract_log, contract):
        patch.set(room, "seen", seen)


@planted_bug(found_by="one_leads_at_a_time", within=10, arena="work")
def lease_of_a_living_leader_is_given_away(patch: Patch) -> None:
    """Who acquires gets the lease, whoever leads."""
    patch.set(contract_rooms, "stale", lambda lease, at: True)


@planted_bug(found_by="replay_goes_in_order", within=40, arena="work")
def replay_applies_out_of_order(patch: Patch) -> None:
    """Any event of the range may be confirmed, not only the next one."""
    real = contract_marks._apply

    def apply(state: Any, command: Any) -> Any:
        inside = command.position is not None and state.place < command.position <= state.through
        return real(state, evolve(command, following=command.position) if inside else command)

    patch.set(contract_marks, "_apply", apply)


@planted_bug(found_by="replay_goes_in_order", within=100, arena="work")
def replay_begins_with_what_was_applied_last(patch: Patch) -> None:
    """A replay whose first event is the one that was applied last never gets past it."""
    real = contract_marks._apply

    def apply(state: Any, command: Any) -> Any:
        if command.event_id == state.last_applied:
            return Step(answer=contract_marks.Applied(command.event_id, True, state.left))
        return real(state, command)

    patch.set(contract_marks, "_apply", apply)
