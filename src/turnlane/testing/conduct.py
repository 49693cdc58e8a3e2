"""Judges of conduct: whether turns were opened in order, did what they were told, and ended when and as they should.

Like all checkers they read only what is outside (see `checkers.py`, which collects them in `DEFAULT`). Instants are
those of the log. `SLACK_NS` is what a host may be late without a fault of its own: paused, down, or behind a slow disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from attrs import define, field

from ..core.ids import session_stream, split_stream
from ..core.instants import wall_from_text
from .report import Violation
from .seen import TERMINALS, Checker, Logged, Seen

SLACK_NS: Final = 30_000_000_000
SOFT_NS: Final = 2_000_000_000
RETRY_NS: Final = 3_000_000_000
"""How long a host that had no room for the end of a lost turn may need to write it."""
STEPPED_US: Final = 10_000
"""Wall and monotonic time of one host may differ by so much before somebody has set the clock."""

ENDS_AS: Final[Mapping[str, tuple[str, ...]]] = {
    "completed": ("dispatch.completed",),
    "cancelled": ("dispatch.cancelled",),
    "failed": ("dispatch.failed",),
    "timed_out": ("dispatch.failed",),
    "abandoned": ("dispatch.requeued", "dispatch.failed"),
}
"""Outcome of a turn -> what becomes of its row."""
AT_ONCE: Final = ("interrupt", "reject")
"""Policies under which a start never waits."""


@define(slots=True)
class _Row:
    seq: int
    overlap: str
    attempts_max: int
    inputs: list[tuple[str, Any]] = field(factory=list)
    attempts: int = 0
    waits: bool = True
    set_back: bool = False
    """Deferred or requeued: it keeps its place, but not before an instant."""


def _rows(log: Sequence[Logged]) -> Iterator[tuple[Logged, str, dict[str, _Row]]]:
    """Each event of the queue with its dispatch and the rows before it."""
    rows: dict[str, _Row] = {}
    for event in log:
        if not event.type.startswith("dispatch."):
            continue
        dispatch, data = event.data["dispatch"], event.data
        yield event, dispatch, rows
        row = rows.get(dispatch)
        match event.type:
            case "dispatch.queued":
                inputs = [(data["key"], data["input"])]
                rows[dispatch] = _Row(event.seq, data["overlap"], data["attempts_max"], inputs)
            case "dispatch.merged" if row is not None:
                row.inputs = [one for one in row.inputs if not (data.get("removed") and one[0] == data["key"])]
                row.inputs += [] if data.get("removed") else [(data["key"], data["parts"])]
            case "dispatch.claimed" if row is not None:
                row.waits, row.attempts = False, data["attempts"]
            case "dispatch.requeued" | "dispatch.deferred" if row is not None:
                row.waits = row.set_back = True
            case "dispatch.completed" | "dispatch.failed" | "dispatch.cancelled":
                rows.pop(dispatch, None)


def _by_workers(log: Sequence[Logged]) -> bool:
    """Whether the rows of a session are claimed by others than its host: `work_checkers.py` follows those."""
    return any(event.type == "dispatch.claimed" and event.data.get("token_sha256") for event in log)


def queue_in_order(seen: Seen) -> Iterable[Violation]:
    """Starts that wait are taken in order; who interrupts or refuses to wait does not; of `latest` the last waits."""
    for stream, log in seen.logs.items():
        if _by_workers(log):
            continue
        for event, dispatch, rows in _rows(log):
            if event.type != "dispatch.claimed" or dispatch not in rows:
                continue
            row = rows[dispatch]
            if event.seq == row.seq + 1:
                continue  # opened as it came
            earlier = [one.seq for one in rows.values() if one.waits and not one.set_back and one.seq < row.seq]
            if earlier and not row.set_back:
                yield Violation("queue_in_order", f"{stream}: the start of {row.seq} went before that of {earlier[0]}")
            if row.overlap in AT_ONCE and row.attempts == 0:
                yield Violation("queue_in_order", f"{stream}: the {row.overlap} start of {row.seq} waited")
            later = [one.seq for one in rows.values() if one.overlap == "latest" and one.waits and one.seq > row.seq]
            if row.overlap == "latest" and later and not row.set_back:
                yield Violation("queue_in_order", f"{stream}: {row.seq} was superseded by {later[0]} and ran")


def rows_end_as_their_turns(seen: Seen) -> Iterable[Violation]:
    """How a turn ends says what becomes of its row; who lost its host is tried again as often as was said."""
    for stream, log in seen.logs.items():
        for event, dispatch, rows in () if _by_workers(log) else _rows(log):
            row = rows.get(dispatch)
            if row is None or event.type in ("dispatch.merged", "dispatch.deferred"):
                continue
            if event.type == "dispatch.failed" and event.data["reason"] in ("claim_lost", "attempts_exhausted"):
                if row.attempts < row.attempts_max:
                    message = f"{stream}: {dispatch} was given up after {row.attempts} of {row.attempts_max} attempts"
                    yield Violation("rows_end_as_their_turns", message)
            elif event.type == "dispatch.claimed" and row.attempts >= row.attempts_max:
                yield Violation("rows_end_as_their_turns", f"{stream}: {dispatch} is tried once more than was said")
        yield from _rows_of_terminals(stream, log)


def _rows_of_terminals(stream: str, log: Sequence[Logged]) -> Iterator[Violation]:
    dispatches: dict[str | None, str] = {}
    outcomes: dict[str, str] = {}
    retried = ("dispatch.requeued", "dispatch.claimed") if _by_workers(log) else ()
    for event in log:
        if event.type == "turn.opened":
            dispatches[event.turn] = event.data["dispatch"]
        elif event.type in TERMINALS and event.turn in dispatches:
            outcomes[dispatches[event.turn]] = event.data["outcome"]
        elif event.type.startswith("dispatch.") and (outcome := outcomes.pop(event.data["dispatch"], None)):
            if event.type not in (*ENDS_AS[outcome], *retried):
                message = f"{stream}: a turn ended {outcome}, and its row has {event.type}"
                yield Violation("rows_end_as_their_turns", message)
        elif event.type == "session.ended":
            for dispatch, outcome in outcomes.items():
                yield Violation("rows_end_as_their_turns", f"{stream}: {dispatch} ended {outcome}, its row did not")


def sessions_end_empty(seen: Seen) -> Iterable[Violation]:
    """A session that ends leaves no row and no turn; one that drains ends with the last of them."""
    for stream, log in seen.logs.items():
        open_turn: str | None = None
        draining = False
        waits: set[str] = set()
        for index, event in enumerate(log):
            if event.type == "turn.opened":
                open_turn = event.turn
            elif event.type == "turn.closed":
                open_turn = None
            elif event.type == "dispatch.queued":
                waits.add(event.data["dispatch"])
            elif event.type in ("dispatch.completed", "dispatch.failed", "dispatch.cancelled"):
                waits.discard(event.data["dispatch"])
            elif event.type == "session.draining":
                draining = True
            elif event.type == "session.ended":
                draining = False
                if waits or open_turn:
                    left = sorted(waits) or open_turn
                    yield Violation("sessions_end_empty", f"{stream}: ended over {left}")
            following = log[index + 1].type if index + 1 < len(log) else "nothing"
            if draining and not waits and open_turn is None and following != "session.ended" and seen.settled:
                yield Violation("sessions_end_empty", f"{stream}: drained at {event.seq}, and {following} follows")
                draining = False


def inputs_are_performed(seen: Seen) -> Iterable[Violation]:
    """A turn that committed has said everything that its inputs told it to say, in order."""
    for stream, log in seen.logs.items():
        inputs = {
            event.seq: [given for _, given in rows[dispatch].inputs]
            for event, dispatch, rows in _rows(log)
            if event.type == "dispatch.claimed" and dispatch in rows
        }
        wanted: list[Any] = []
        said: list[Any] = []
        for event in log:
            if event.seq in inputs:
                wanted = [said for given in inputs[event.seq] for said in _told_to_say(given)]
            elif event.type == "turn.opened":
                said = []
            elif event.type == "turn.output":
                said.append(event.data["data"])
            elif event.type == "turn.committed" and (missing := _missing(wanted, said)):
                yield Violation("inputs_are_performed", f"{stream}: {event.turn} never said {missing[0]!r}")


def _told_to_say(given: Any) -> list[Any]:
    acts = given.get("acts", []) if isinstance(given, dict) else []
    return [act[1] for act in acts if act[0] == "say"]


def _missing(wanted: Sequence[Any], said: Iterable[Any]) -> Sequence[Any]:
    """What of `wanted` does not come in `said` in order."""
    left = list(reversed(wanted))
    for one in said:
        if left and left[-1] == one:
            left.pop()
    return left[::-1]


def deadlines_hold(seen: Seen) -> Iterable[Violation]:
    """Budgets, soft cancels and the deadlines of questions end what they bound: not late, and not before."""
    for stream, log in seen.logs.items():
        opened: Logged | None = None
        soft: Logged | None = None
        blocked = False
        asked: dict[str, Logged] = {}
        for event in log:
            if event.type == "turn.opened":
                opened, soft, blocked = event, None, False
            elif event.type == "turn.blocked":
                blocked = True
            elif event.type == "turn.cancel_accepted" and event.data["mode"] == "soft":
                soft = event
            elif event.type == "request.opened":
                asked[event.data["request"]] = event
            elif event.type == "request.resolved" and (question := asked.pop(event.data["request"], None)):
                yield from _question_late(stream, question, event)
            elif event.type in TERMINALS and opened is not None:
                yield from _turn_late(stream, opened, soft, event, blocked)


def _turn_late(stream: str, opened: Logged, soft: Logged | None, end: Logged, blocked: bool) -> Iterator[Violation]:
    budget, lasted = opened.data["budget"], end.at - opened.at
    if end.data["reason"] == "turn_budget_exhausted" and (budget is None or lasted < budget * 1_000_000):
        yield Violation("deadlines_hold", f"{stream}: {end.turn} timed out after {lasted / 1e9:.3f} s of {budget} ms")
    if budget is not None and not blocked and lasted > budget * 1_000_000 + SLACK_NS:
        yield Violation(
            "deadlines_hold", f"{stream}: {end.turn} lasted {lasted / 1e9:.3f} s, its budget is {budget} ms"
        )
    if soft is not None and end.at > soft.at + SOFT_NS + SLACK_NS:
        message = f"{stream}: {end.turn} ended {(end.at - soft.at) / 1e9:.3f} s after its soft cancel"
        yield Violation("deadlines_hold", message)


def _question_late(stream: str, question: Logged, end: Logged) -> Iterator[Violation]:
    stepped = abs((end.wall - question.wall) - (end.at - question.at) // 1_000) > STEPPED_US
    late_us = end.wall - wall_from_text(question.data["deadline"])
    if not stepped and late_us * 1_000 > SLACK_NS:
        request = question.data["request"]
        yield Violation("deadlines_hold", f"{stream}: {request} was resolved {late_us / 1e6:.3f} s after its deadline")
    if not stepped and late_us < 0 and end.data["resolution"] == "expired":
        yield Violation("deadlines_hold", f"{stream}: {question.data['request']} expired before its deadline")


def recovered_in_time(seen: Seen) -> Iterable[Violation]:
    """When a host begins, what an earlier one left open is ended at once, whether somebody asks for it or not."""
    began: dict[int, int] = {}
    for log in seen.logs.values():
        for event in log:
            began[event.epoch] = min(event.at, began.get(event.epoch, event.at))
    for stream, log in seen.logs.items():
        opened: Logged | None = None
        elsewhere = False  # who works elsewhere goes on, whatever becomes of the host
        for event in log:
            if event.type == "dispatch.started":
                elsewhere = event.data.get("elsewhere", False)
            elif event.type == "turn.opened":
                opened = None if elsewhere else event
            elif event.type in TERMINALS and opened is not None and event.epoch > opened.epoch:
                late_ns, outcome = event.at - began[event.epoch], event.data["outcome"]
                # A cancel comes first only where the disk had no room for the end of what was lost.
                if late_ns > {"abandoned": SLACK_NS, "cancelled": RETRY_NS}.get(outcome, -1):
                    message = f"{stream}: {event.turn} of an earlier life was {outcome} after {late_ns / 1e9:.1f} s"
                    yield Violation("recovered_in_time", message)


def children_end_with_parents(seen: Seen) -> Iterable[Violation]:
    """A sub-session ends before its turn commits, and soon after it is aborted."""
    for stream, log in seen.logs.items():
        if not log or (parent := log[0].data.get("parent")) is None:
            continue
        turn = log[0].data["parent_turn"]
        above = seen.logs.get(session_stream(split_stream(stream)[0], parent), [])  # type: ignore[arg-type]
        terminal = next((event for event in above if event.turn == turn and event.type in TERMINALS), None)
        end = next((event for event in log if event.type == "session.ended"), None)
        if terminal is None or not seen.settled:
            continue
        if end is None or end.at > terminal.at + (SLACK_NS if terminal.type == "turn.aborted" else 0):
            yield Violation("children_end_with_parents", f"{stream} outlived {turn} of {parent}")


def answers_are_true(seen: Seen) -> Iterable[Violation]:
    """The seq of an answer is that of the event it speaks of; a turn ended as those who waited were told."""
    for session, seq, kind, turn in seen.promised:
        found = next((event for event in seen.log_of(session) if event.seq == seq), None)
        if found is not None and (found.type, found.turn) != (kind, turn):
            yield Violation("answers_are_true", f"{session}: {seq} was said to be {kind} of {turn}, it is {found.type}")
    for session, turn, outcome, fence_seq in seen.outcomes:
        ends = [event for event in seen.log_of(session) if event.turn == turn and event.type in TERMINALS]
        told = [(event.data["outcome"], event.data["fence_seq"]) for event in ends]
        if (told and outcome is None) or (outcome is not None and (outcome, fence_seq) not in told):
            yield Violation("answers_are_true", f"{session}: {turn} was said to be {outcome}, it is {told}")


CONDUCT: Final[tuple[Checker, ...]] = (
    queue_in_order,
    rows_end_as_their_turns,
    sessions_end_empty,
    inputs_are_performed,
    deadlines_hold,
    recovered_in_time,
    children_end_with_parents,
    answers_are_true,
)
