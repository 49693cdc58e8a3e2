"""Judges of the scene `work`: work that outlives a process, seen from outside, by what was answered and by the logs.

`Books` is what callers were answered, with the logs as the store has them when all is over. The rows of a queue are
followed here anew, by the events alone: who held what, until when, and who had to be next. Nothing is asked of the
machines, which would be wrong together with the judge. Source: docs/dispatch.md, docs/workers.md, docs/runs.md and
docs/contract.md.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from attrs import define, field, frozen

from turnlane.core.ids import split_stream
from turnlane.core.ports import EventStore

from .report import Violation
from .seen import Logged, read_log

LEADER: Final = "leader"
MARKER: Final = "contract"
"""Holds what a mark says is notified, and takes the place of whoever held it."""
ENDS: Final = ("dispatch.completed", "dispatch.failed", "dispatch.cancelled")
LEAVES: Final[Mapping[str, tuple[str, ...]]] = {
    "start": ("dispatch.started",),
    "renew": ("dispatch.renewed",),
    "complete": ("dispatch.completed",),
    "fail": ("dispatch.failed", "dispatch.requeued"),
    "release": ("dispatch.requeued",),
}
"""What a call of a holder that was answered leaves in the log, while it is the holder."""
WITHDRAWN_NS: Final = 40_000_000_000
"""How long it may take, with a host that is down or stands still, until what a stopped worker holds is taken away."""


@frozen
class Said:
    """A holder was told that what it did is so."""

    verb: str
    dispatch: str
    generation: int


@define(eq=False)
class Books:
    """What was answered to anybody, and what is there at the end."""

    enqueued: dict[str, str] = field(factory=dict)
    """Key -> dispatch."""
    said: list[Said] = field(factory=list)
    begun: Counter[tuple[str, int]] = field(factory=Counter)
    """Dispatch and generation -> how often a worker was told to begin."""
    appended: dict[tuple[str, str], tuple[int, int | None]] = field(factory=dict)
    """Run and key -> seq, and the seq that was expected before it."""
    executed: dict[str, Mapping[str, Any]] = field(factory=dict)
    """Key of a contract command -> its answer."""
    asked: list[tuple[str, Mapping[str, Any], str, Any]] = field(factory=list)
    """Calls with a key that were answered: method, members, and where in the answer stands what it named."""
    mistaken: list[Violation] = field(factory=list)
    """What a caller saw to be wrong by itself."""
    logs: dict[str, list[Logged]] = field(factory=dict)
    listed: Sequence[Mapping[str, Any]] = ()
    """The contract's list, whole."""
    snapshot: Mapping[str, Any] = field(factory=dict)

    def wrong(self, rule: str, message: str) -> None:
        self.mistaken.append(Violation(rule, message))

    def read(self, store: EventStore) -> None:
        after = ""
        while names := store.streams("default/", after, 256):
            self.logs.update((stream, read_log(store, stream)) for stream in names)
            after = names[-1]

    def of(self, kind: str) -> Iterator[tuple[str, list[Logged]]]:
        """(name, log) of every stream of a kind."""
        for stream, log in self.logs.items():
            if split_stream(stream)[1] == kind:  # type: ignore[arg-type]
                yield split_stream(stream)[2], log  # type: ignore[arg-type]


# rows


@define(slots=True)
class _Row:
    dispatch: str
    position: int
    priority: str
    target: str | None
    attempts_max: int
    on_lost: str
    phase: str = "queued"
    generation: int = 0
    attempts: int = 0
    holder: tuple[str, str | None] = ("", None)
    """Owner, and the key of its claim."""
    held_at: int = 0
    until: str | None = None
    """None: held without an end."""
    not_before: str = ""
    elsewhere: bool = True
    begun: int = 0

    def lapsed(self, at: str) -> bool:
        return self.until is not None and self.until <= at

    def claimable(self, at: str) -> bool:
        if self.phase == "queued":
            due = self.not_before <= at
        else:
            due = self.lapsed(at) and (self.phase == "claimed" or self.on_lost == "requeue")
        return due and self.attempts < self.attempts_max


@define(eq=False)
class _Rows:
    """Follows the rows of one stream, event by event. Instants are texts of one width, which compare as they are."""

    open: dict[str, _Row] = field(factory=dict)
    ended: dict[str, str] = field(factory=dict)
    left: defaultdict[tuple[str, int], set[str]] = field(factory=lambda: defaultdict(set))
    """Dispatch and generation -> types of what happened under it."""
    holds: list[tuple[str, str, int, int]] = field(factory=list)
    """Dispatch, owner, and from when to when."""
    found: list[Violation] = field(factory=list)

    def wrong(self, rule: str, event: Logged, message: str) -> None:
        self.found.append(Violation(rule, f"{event.data['dispatch']}: {message}, at seq {event.seq}"))

    def follow(self, event: Logged) -> None:
        data, name = event.data, event.data["dispatch"]
        if event.type == "dispatch.queued":
            if name in self.open or name in self.ended:
                self.wrong("ends_once", event, "it is queued a second time")
            self.open[name] = _Row(
                name, event.seq, data["priority"], data.get("target"), data["attempts_max"], data["on_lost"]
            )
            return
        if (row := self.open.get(name)) is None:
            self.wrong("ends_once", event, f"{event.type} after {self.ended.get(name, 'nothing')}")
            return
        if event.type in ("dispatch.claimed", "dispatch.requeued", *ENDS) and row.phase != "queued":
            self.holds.append((name, row.holder[0], row.held_at, event.at))
        if event.type == "dispatch.claimed":
            self._claimed(row, event)
        self.left[name, row.generation].add(event.type)
        match event.type:
            case "dispatch.renewed":
                row.until = max(row.until or "", data["leased_until"])
            case "dispatch.started":
                row.phase, row.begun, row.elsewhere = "started", row.begun + 1, data.get("elsewhere", False)
                row.until = data.get("leased_until") or row.until
                if row.begun > row.attempts_max:
                    self.wrong("attempts_bounded", event, f"begun {row.begun} times of {row.attempts_max}")
            case "dispatch.deferred":
                row.not_before = data.get("not_before") or row.not_before
            case "dispatch.requeued":
                if data["why"] == "lost" and row.elsewhere and not row.lapsed(data["at"]):
                    self.wrong("live_claim_stays", event, f"lost at {data['at']}, its lease lasts until {row.until}")
                row.phase, row.until, row.attempts = "queued", None, data["attempts"]
                row.not_before = data.get("not_before") or ""
            case _ if event.type in ENDS:
                self.ended[name] = event.type
                del self.open[name]

    def _claimed(self, row: _Row, event: Logged) -> None:
        data, at = event.data, event.data["at"]
        if data["generation"] != row.generation + 1:
            self.wrong("generation_rises", event, f"generation {data['generation']} after {row.generation}")
        taken, holder = data.get("slot") is not None, (data["owner"], data.get("key"))
        if taken:
            if not row.claimable(at):
                state = f"{row.phase} until {row.until or row.not_before}, attempts {row.attempts}/{row.attempts_max}"
                self.wrong("live_claim_stays", event, f"it was {state}, and is claimed at {at}")
            if data["attempts"] != row.attempts + 1:
                self.wrong("attempts_bounded", event, f"attempt {data['attempts']} after {row.attempts}")
            self._in_order(row, event)
        elif (row.phase != "claimed" or holder != row.holder) and holder[0] != MARKER:
            self.wrong("live_claim_stays", event, f"it was {row.phase}, of {row.holder}, and goes to {holder}")
        row.phase, row.generation, row.attempts = "claimed", data["generation"], data["attempts"]
        row.holder, row.held_at, row.until = holder, event.at, data.get("leased_until")

    def _in_order(self, row: _Row, event: Logged) -> None:
        for other in self.open.values():
            first = other.priority == row.priority and other.position < row.position and other.target != LEADER
            if first and other.claimable(event.data["at"]):
                self.wrong("first_goes_first", event, f"{other.dispatch} of {other.position} was before it")
                return


def rows_are_held_in_turn(books: Books) -> Iterable[Violation]:
    """Live claims stay, generations rise by one, attempts are counted and bounded, the first goes first, ends are ends;
    whoever was told that what it did is so, held the row then; and who has stopped holds nothing any more."""
    left: dict[tuple[str, int], set[str]] = {}
    gone = {
        name: event.at
        for name, log in books.of("worker")
        for event in log
        if event.type in ("worker.stopped", "worker.failed")
    }
    for _, log in (*books.of("dispatch"), *books.of("session")):
        rows = _Rows()
        for event in log:
            if event.type.startswith("dispatch.") and "dispatch" in event.data:
                rows.follow(event)
        yield from rows.found
        for dispatch, owner, since, until in rows.holds:
            if owner in gone and until - max(since, gone[owner]) > WITHDRAWN_NS:
                late = (until - gone[owner]) / 1e9
                yield Violation("stopped_holds_nothing", f"{dispatch}: {owner} held it {late:g} s after its end")
        left.update(rows.left)
    for said in books.said:
        if not left.get((said.dispatch, said.generation), set()).intersection(LEAVES[said.verb]):
            what = f"{said.dispatch}: {said.verb} was answered to generation {said.generation}, which did no such thing"
            yield Violation("late_is_refused", what)
    for (dispatch, generation), count in books.begun.items():
        if count > 1:
            yield Violation("begun_once", f"{dispatch}: generation {generation} was told to begin {count} times")


def all_ends(books: Books) -> Iterable[Violation]:
    """What was accepted is in the log and ended there, once (`rows_are_held_in_turn`), and each under its own id."""
    ended = {
        event.data["dispatch"]
        for _, log in (*books.of("dispatch"), *books.of("session"))
        for event in log
        if event.type in ENDS
    }
    keys: dict[str, str] = {}
    for key, dispatch in books.enqueued.items():
        if dispatch not in ended:
            yield Violation("ends", f"{dispatch} was accepted under {key} and never ended")
        if (other := keys.setdefault(dispatch, key)) != key:
            yield Violation("ends_once", f"{dispatch} is the answer to {other} and to {key}")


# runs


def runs_have_no_gap(books: Books) -> Iterable[Violation]:
    """A run is numbered without gaps; a key stands in it once, where it was answered, behind what was expected."""
    places: dict[tuple[str, str], list[int]] = {}
    for run, log in books.of("run"):
        if [event.seq for event in log] != [*range(1, len(log) + 1)]:
            yield Violation("appended_once", f"{run}: {[event.seq for event in log]}")
        for event in log:
            if event.data.get("key") is not None:
                places.setdefault((run, event.data["key"]), []).append(event.seq)
    for (run, key), at in places.items():
        if len(at) > 1:
            yield Violation("appended_once", f"{run}: {key} stands at {at}")
    for (run, key), (seq, expected) in books.appended.items():
        if (there := places.get((run, key))) != [seq]:
            yield Violation("appended_once", f"{run}: {key} was answered as {seq} and stands at {there}")
        if expected is not None and seq != expected + 1:
            yield Violation("expected_seq_holds", f"{run}: {key} expected {expected} before it and is {seq}")


# the contract


def contract_is_one_list(books: Books) -> Iterable[Violation]:
    """Numbered from 1 without a gap, in the order of the log; each command that was answered is one event of it."""
    seqs, places = [one["seq"] for one in books.listed], [one["event_id"] for one in books.listed]
    if seqs != [*range(1, len(seqs) + 1)] or sorted(set(places)) != places:
        yield Violation("contract_is_one_list", f"seqs {seqs[:3]}..{seqs[-3:]}, {len(seqs)} events")
    there = {one["event_id"]: one for one in books.listed}
    for key, answer in books.executed.items():
        one = there.get(answer["event_id"])
        if one is None or (one["seq"], one["body"]) != (answer["seq"], answer["event"]):
            yield Violation("contract_is_one_list", f"{key} was answered {answer}, the list says {one}")
    told = Counter(answer["event_id"] for answer in books.executed.values())
    for place, times in told.items():
        if times > 1:
            yield Violation("contract_is_one_list", f"{there.get(place)} was the answer to {times} commands")
    leases = Counter(one["body"]["lease_id"] for one in books.listed if "lease_id" in one["body"])
    for lease, times in leases.items():  # a lease id is that of one command
        if times > 1:
            yield Violation("contract_is_one_list", f"one command left {times} events: lease {lease}")


MOVES: Final = {
    "DispatchQueued": "pending",
    "DispatchNotified": "notified",
    "DispatchDelivered": "delivered",
    "DispatchFailed": "failed",
}


def snapshot_is_the_list(books: Books) -> Iterable[Violation]:
    """What the list folds to, once no worker holds anything."""
    states, authority, cursor = dict[str, str](), (None, None, None), None
    for one in books.listed:
        body = one["body"]
        match body["event"]:
            case "AuthorityAcquired" | "AuthorityRenewed":
                authority = (body["owner"], body["lease_id"], body["leased_until"])
            case "DispatchRecordsRemoved":
                for name in body["request_ids"]:
                    states.pop(name, None)
            case "ReplayRequested":
                cursor = body["cursor"]
            case kind if kind in MOVES:
                states[body["request_id"]] = MOVES[kind]
    counts = Counter(states.values())
    folded: dict[str, dict[str, Any]] = {
        "backlog": {state: counts[state] for state in MOVES.values()},
        "authority": dict(zip(("owner", "lease_id", "leased_until"), authority, strict=True)),
        "replay": {"cursor": cursor},
    }
    for part, members in folded.items():
        told = {name: books.snapshot[part][name] for name in members}
        if told != members:
            yield Violation("snapshot_is_the_list", f"{part}: it says {told}, the list {members}")


def one_leads_at_a_time(books: Books) -> Iterable[Violation]:
    """Another owner is granted the lease only after the former one's date."""
    for name, log in books.of("authority"):
        owner, until = None, 0
        for event in log:
            data = event.data
            if event.type == "authority.granted" and name == LEADER and data["owner"] != owner and data["at"] < until:
                yield Violation("one_leads_at_a_time", f"{data['owner']} leads while {owner} does, at seq {event.seq}")
            if event.type in ("authority.granted", "authority.renewed"):
                owner, until = data["owner"], data["leased_until"]


def replay_goes_in_order(books: Books) -> Iterable[Violation]:
    """Each event of the range once, in the order of the list, up to the end or to the next request."""
    for _, log in books.of("contract"):
        due: list[str] = []
        for event in log:
            if event.type == "replay.requested":
                due = _range(books, event)
            elif event.type == "replay.applied":
                if due[:1] != [event.data["event_id"]]:
                    yield Violation("replay_goes_in_order", f"{event.data['event_id']} at {event.seq}, due {due[:2]}")
                    return
                del due[0]


def _range(books: Books, requested: Logged) -> list[str]:
    start, through = requested.data["start"], requested.data["through"]
    return [
        one["event_id"]
        for one in books.listed
        if start < int(one["event_id"].rsplit(".", 1)[1], 16) <= through
        and one["body"]["event"] not in ("ReplayRequested", "SnapshotCaptured")
    ]


WORK: Final = (rows_are_held_in_turn, runs_have_no_gap, one_leads_at_a_time)
AT_THE_END: Final = (all_ends, contract_is_one_list, snapshot_is_the_list, replay_goes_in_order)
"""What can be said of a scene that was played to its end."""


def judged(books: Books) -> list[Violation]:
    """Everything that is wrong."""
    checks = (*WORK, *(AT_THE_END if books.snapshot else ()))
    return [*books.mistaken, *(violation for check in checks for violation in check(books))]
