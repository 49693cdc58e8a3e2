"""Judges that look from outside: frames and answers at clients, and the log read through the store's port.

A checker reads nothing private of a runtime: it would be wrong together with it. `Seen` is what one run showed to the
outside; each checker takes it and gives the rules it finds broken. `DEFAULT` is all of them.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from ..core.step import Lane
from ..machines import dispatch as queue
from ..machines.session import Session, open_requests
from .conduct import CONDUCT
from .report import Violation
from .seen import TERMINALS, is_below
from .seen import Answer as Answer
from .seen import Attached as Attached
from .seen import Checker as Checker
from .seen import Got as Got
from .seen import Logged as Logged
from .seen import Seen as Seen
from .seen import read_logs as read_logs
from .world import quiescent as quiescent

# the rules


def gapless(seen: Seen) -> Iterable[Violation]:
    """The log of a stream is gapless from its floor to its head."""
    for stream, log in seen.logs.items():
        for before, after in itertools.pairwise(log):
            if after.seq != before.seq + 1:
                yield Violation("gapless", f"{stream}: seq {after.seq} follows {before.seq}")


def one_terminal(seen: Seen) -> Iterable[Violation]:
    """Each admitted turn has exactly one terminal, its close directly after it, and nothing behind its close."""
    for stream, log in seen.logs.items():
        opened: dict[str, int] = {}
        terminals: dict[str, list[Logged]] = defaultdict(list)
        closed: set[str] = set()
        running: str | None = None
        for index, event in enumerate(log):
            turn = event.turn
            if turn is not None and turn in closed:
                yield Violation("one_terminal", f"{stream}: {event.type} of {turn} at {event.seq}, after its close")
            if event.type == "turn.opened" and turn is not None:
                if running is not None:
                    yield Violation("one_terminal", f"{stream}: {turn} opened while {running} is open")
                opened[turn], running = event.seq, turn
            if event.type in TERMINALS and turn is not None:
                terminals[turn].append(event)
                behind = log[index + 1] if index + 1 < len(log) else None
                if behind is None or behind.type != "turn.closed" or behind.turn != turn:
                    yield Violation("one_terminal", f"{stream}: the terminal of {turn} is not followed by its close")
            if event.type == "turn.closed" and turn is not None:
                closed.add(turn)
                running = None
        for turn in opened:
            count = len(terminals[turn])
            if count > 1 or (count == 0 and seen.settled):
                yield Violation("one_terminal", f"{stream}: {turn} has {count} terminals")
        for turn in terminals.keys() - opened.keys():
            yield Violation("one_terminal", f"{stream}: {turn} ended but never opened")


def refused_leave_nothing(seen: Seen) -> Iterable[Violation]:
    """A refused start has no turn event."""
    for stream, log in seen.logs.items():
        for event in log:
            if event.turn in seen.refused_turns:
                yield Violation("refused_leave_nothing", f"{stream}: {event.type} of refused {event.turn}")


def fence_has_its_number(seen: Seen) -> Iterable[Violation]:
    """`fence_seq` is the seq before the terminal, and every answer to a cancel named it."""
    for stream, log in seen.logs.items():
        for event in log:
            if event.type in TERMINALS and event.data["fence_seq"] != event.seq - 1:
                yield Violation("fence_has_its_number", f"{stream}: {event.data['fence_seq']} at {event.seq}")
    for answer in seen.answers:
        terminal = _terminal(seen.log_of(answer.session), answer.turn)
        if terminal is None or terminal.data["fence_seq"] != answer.fence_seq:
            yield Violation("fence_has_its_number", f"{answer.turn}: the answer says {answer.fence_seq}")


def quiet_after_fence(seen: Seen) -> Iterable[Violation]:
    """Past `fence_seq` nothing of the turn but terminal and close: not in the log, not on any attachment."""
    for answer in seen.answers:
        for event in seen.log_of(answer.session):
            late = event.turn == answer.turn and event.seq > answer.fence_seq
            if late and event.type not in (*TERMINALS, "turn.closed"):
                yield Violation("quiet_after_fence", f"log: {event.type} of {answer.turn} at {event.seq}")
    for attached in seen.attached:
        over: set[str] = set()
        for got in attached.got:
            if got.turn in over and got.type != "turn.closed" and got.skipped is None:
                yield Violation("quiet_after_fence", f"delivered: {got.type} of {got.turn} after its terminal")
            if got.type in TERMINALS and got.turn is not None:
                over.add(got.turn)


def no_gap_no_repeat(seen: Seen) -> Iterable[Violation]:
    """What came and what was announced as skipped covers the log once; each event equals the log's."""
    for attached in seen.attached:
        log = {event.seq: event for event in seen.log_of(attached.session)}
        yield from _covered(attached, log)
        yield from _in_lane_order(attached)


def _covered(attached: Attached, log: Mapping[int, Logged]) -> Iterable[Violation]:
    seqs: set[int] = set()
    for got in attached.got:
        if got.seq is not None:
            if got.seq in seqs:
                yield Violation("no_gap_no_repeat", f"{attached.session}: seq {got.seq} came twice")
            seqs.add(got.seq)
            known = log.get(got.seq)
            if known is None or (known.type, known.turn) != (got.type, got.turn) or known.data != got.data:
                yield Violation("no_gap_no_repeat", f"{attached.session}: seq {got.seq} is not the log's")
        elif got.skipped is not None:
            first, last, count = got.skipped
            hidden = {seq for seq in range(first, last + 1) if seq in log and log[seq].lane == Lane.DATA.value}
            if hidden & seqs or len(hidden) != count:
                yield Violation("no_gap_no_repeat", f"{attached.session}: skipped {got.skipped}, hides {len(hidden)}")
            seqs |= hidden
    top = max(seqs, default=attached.after)
    missing = [seq for seq in range(attached.after + 1, top + 1) if seq not in seqs]
    if missing and not _may_still_come(attached, log, missing):
        yield Violation("no_gap_no_repeat", f"{attached.session}: {missing[:5]} of {len(missing)} never came")


def _may_still_come(attached: Attached, log: Mapping[int, Logged], missing: Sequence[int]) -> bool:
    """Only data that control overtook may be missing at the end of a line, and only above what data came."""
    data = max((got.seq for got in attached.got if got.seq and got.lane == Lane.DATA.value), default=attached.after)
    return all(seq in log and log[seq].lane == Lane.DATA.value and seq > data for seq in missing)


def _in_lane_order(attached: Attached) -> Iterable[Violation]:
    last: dict[str, int] = {}
    for got in attached.got:
        if got.seq is not None:
            if got.seq <= last.get(got.lane, 0):
                yield Violation("no_gap_no_repeat", f"{attached.session}: lane {got.lane} went back to {got.seq}")
            last[got.lane] = got.seq


def acknowledged_is_kept(seen: Seen) -> Iterable[Violation]:
    """Every seq that an answer promised is in the log."""
    heads = {stream: log[-1].seq if log else 0 for stream, log in seen.logs.items()}
    for stream, seq in seen.acknowledged:
        if seq > heads.get(stream, 0):
            yield Violation("acknowledged_is_kept", f"{stream}: {seq} was promised, the head is {heads.get(stream)}")


def key_once(seen: Seen) -> Iterable[Violation]:
    """The same start under the same key is the same turn, and stands in the log once, under a key that was given."""
    for session, key, first, again in seen.repeated:
        if first != again:
            yield Violation("key_once", f"{session}: key {key} gave {first}, then {again}")
    for stream, log in seen.logs.items():
        queued = Counter(
            event.data["key"] for event in log if event.type == "dispatch.queued" and event.data.get("key")
        )
        for key, times in queued.items():
            if times > 1:
                yield Violation("key_once", f"{stream}: key {key} was queued {times} times")
            if seen.keys and key not in seen.keys and not is_below(log):
                yield Violation("key_once", f"{stream}: nobody asked under key {key}")


def nothing_lost(seen: Seen) -> Iterable[Violation]:
    """A turn that committed has every output that was accepted from it; one that was aborted has no others."""
    if seen.accepted is None:
        return
    for stream, log in seen.logs.items():
        kept = Counter(event.turn for event in log if event.type == "turn.output")
        for event in log:
            if event.type in TERMINALS and event.turn is not None:
                accepted, there = seen.accepted.get(event.turn, 0), kept[event.turn]
                if there > accepted or (there < accepted and event.type == "turn.committed"):
                    message = f"{stream}: {event.turn} had {accepted} outputs accepted, {there} are kept"
                    yield Violation("nothing_lost", message)


def first_answer_wins(seen: Seen) -> Iterable[Violation]:
    """A question is resolved once, while its turn is open."""
    for stream, log in seen.logs.items():
        asked: dict[str, str | None] = {}
        resolved: set[str] = set()
        for event in log:
            if event.type == "request.opened":
                asked[event.data["request"]] = event.turn
            elif event.type == "request.resolved":
                if event.data["request"] in resolved:
                    yield Violation("first_answer_wins", f"{stream}: {event.data['request']} was resolved twice")
                resolved.add(event.data["request"])
            elif event.type == "turn.closed":
                for request in [one for one, turn in asked.items() if turn == event.turn and one not in resolved]:
                    yield Violation("first_answer_wins", f"{stream}: {request} was never resolved")


def effect_once(seen: Seen) -> Iterable[Violation]:
    """A tool is called only after its intent is kept, never again under a key whose call was made or may have been.

    Each intent has its outcome before its turn closes, and one that the turn completed over is known.
    """
    intents: Counter[str] = Counter()
    for stream, log in seen.logs.items():
        called: dict[str, Logged] = {}
        done: dict[str, str] = {}
        for event in log:
            kind, of = event.type.removeprefix("effect."), event.data.get("effect", "")
            if event.type == "effect.intended":
                intents[event.data["name"]] += 1
                called[of], key = event, event.data["effect_key"]
                if key in done and not (done[key] == "unknown" and event.data["retry_safe"]):
                    yield Violation("effect_once", f"{stream}: {key} ({done[key]}) was intended again at {event.seq}")
            elif event.type.startswith("effect.") and of in called:
                key = called.pop(of).data["effect_key"]
                done.pop(key, None)
                if kind in ("completed", "unknown"):
                    done[key] = kind
                if kind == "unknown" and event.data["cause"] == "completed":
                    yield Violation("effect_once", f"{stream}: {of} is unknown although its turn completed")
            elif event.type == "turn.closed":
                for left in [one for one, intent in called.items() if intent.turn == event.turn]:
                    yield Violation("effect_once", f"{stream}: {left} has no outcome")
                    del called[left]
    for name, calls in (seen.calls or {}).items():
        if calls > intents[name]:
            yield Violation("effect_once", f"{name} was called {calls} times on {intents[name]} intents")


def old_epoch_mute(seen: Seen) -> Iterable[Violation]:
    """In a log the epoch never falls: who was replaced appends nothing. An epoch is of one owner."""
    owners: dict[int, str] = {}
    for stream, log in seen.logs.items():
        for before, after in itertools.pairwise(log):
            if after.epoch < before.epoch:
                message = f"{stream}: seq {after.seq} is of epoch {after.epoch}, after {before.epoch}"
                yield Violation("old_epoch_mute", message)
        for event in log:
            if event.type == "dispatch.claimed" and not event.data.get(
                "token_sha256"
            ):  # else a worker's, not the host's
                first = owners.setdefault(event.epoch, event.data["owner"])
                if first != event.data["owner"]:
                    yield Violation("old_epoch_mute", f"epoch {event.epoch} is of {first} and {event.data['owner']}")


def log_equals_state(seen: Seen) -> Iterable[Violation]:
    """What a session says of itself is what its log says, up to the head that it names."""
    told: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for stream, status in seen.statuses:
        told[stream].append(status)
    for stream, statuses in told.items():
        log = seen.logs.get(stream, [])
        steps = zip([0, *(event.seq for event in log)], seen.folded(stream), strict=False)
        seq, state = next(steps)
        for status in sorted(statuses, key=lambda status: status["head_seq"]):
            while seq < status["head_seq"] and (step := next(steps, None)) is not None:
                seq, state = step
            if seq == status["head_seq"]:  # else the log does not fold so far, and `log_folds` says so
                yield from _equal(stream, status, state)


def _equal(stream: str, status: Mapping[str, Any], state: Session) -> Iterable[Violation]:
    turn = None if state.turn is None else state.turn.turn
    folded = (state.phase.value, turn, queue.queued(state.rows), [one.request for one in open_requests(state)])
    told = (status["phase"], (status["turn"] or {}).get("turn"), status["queued"], status["pending_requests"])
    if told != folded:
        yield Violation("log_equals_state", f"{stream} at {status['head_seq']}: it says {told}, its log {folded}")


def dispatches_end_with_turns(seen: Seen) -> Iterable[Violation]:
    """A row is started at most once at a time, and when its turn ends it ends or goes back to the queue."""
    for stream, log in seen.logs.items():
        started: dict[str, str | None] = {}
        for event in log:
            dispatch = event.data.get("dispatch") if isinstance(event.data, dict) else None
            if event.type == "dispatch.started" and dispatch is not None:
                if started.get(dispatch):
                    yield Violation("dispatches_end_with_turns", f"{stream}: {dispatch} was started twice")
                started[dispatch] = "started"
            elif event.type == "dispatch.claimed" and not event.data.get("token_sha256"):
                continue  # by the host; a worker may take what another one had, whose lease ran out
            elif event.type.startswith("dispatch.") and dispatch is not None:
                started[dispatch] = None
        if seen.settled:
            for dispatch in [dispatch for dispatch, state in started.items() if state]:
                yield Violation("dispatches_end_with_turns", f"{stream}: {dispatch} stayed started")


def log_folds(seen: Seen) -> Iterable[Violation]:
    """Every log folds: no event that its state does not allow."""
    for stream, log in seen.logs.items():
        followed = len(seen.folded(stream)) - 1
        if followed < len(log):
            event = log[followed]
            yield Violation("log_folds", f"{stream}: {event.type} at {event.seq} does not follow")


def _terminal(log: Sequence[Logged], turn: str) -> Logged | None:
    return next((event for event in log if event.turn == turn and event.type in TERMINALS), None)


DEFAULT: Final[tuple[Checker, ...]] = (
    gapless,
    one_terminal,
    refused_leave_nothing,
    fence_has_its_number,
    quiet_after_fence,
    no_gap_no_repeat,
    acknowledged_is_kept,
    key_once,
    nothing_lost,
    first_answer_wins,
    effect_once,
    old_epoch_mute,
    log_equals_state,
    dispatches_end_with_turns,
    log_folds,
    *CONDUCT,
)


def violations(seen: Seen, checkers: Sequence[Checker] = DEFAULT) -> list[Violation]:
    """Everything the checkers find."""
    return [violation for checker in checkers for violation in checker(seen)]
