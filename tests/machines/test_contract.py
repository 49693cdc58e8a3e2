"""The compatibility contract without a runtime: how commands are read, and what each of them comes to."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from attrs import define, field, frozen
from tests.contract_lines import LINES, SIGNALS

from turnlane.core.ids import DispatchId
from turnlane.core.instants import Instant, WallInstant, wall_text
from turnlane.core.limits import DEFAULT_LIMITS, Limits
from turnlane.core.ports import Lease
from turnlane.core.reasons import Reason, Rejected
from turnlane.core.step import Step
from turnlane.machines import authority, contract, contract_list, contract_marks, contract_rooms
from turnlane.machines.contract_rooms import Asked, CompactRecords, Known
from turnlane.machines.contract_schema import schema
from turnlane.machines.dispatch import DispatchRemoved
from turnlane.machines.queue_state import CancelDispatch, ClaimDispatch, Queue, evolve_queue
from turnlane.machines.turn import Stamp, TurnBlocked
from turnlane.machines.worker import WorkerAssigned, WorkerRecovered, WorkerStalled

LIMITS = DEFAULT_LIMITS
NOON = 1_774_000_000_000_000
SCHEMA = schema()


def read(text: Any) -> Any:
    return contract.read_command(text, LIMITS)


def refused(text: Any) -> Rejected:
    answer = read(text)
    assert isinstance(answer, Rejected), answer
    return answer


def said(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def valid(name: str, value: Any) -> bool:
    return bool(
        jsonschema_rs.Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": SCHEMA["$defs"]}).is_valid(value)
    )


# a house without a runtime


@define
class House:
    """The three streams of the contract, one log, and the list that is folded of it."""

    wall: int = NOON
    lease: Lease = field(factory=lambda: Lease("leader"))
    queue: Queue = field(factory=Queue)
    marks: contract_marks.Marks = field(factory=contract_marks.Marks)
    log: list[tuple[str, str, Any, int]] = field(factory=list)
    accepted: set[str] = field(factory=set)
    removed: set[str] = field(factory=set)

    def stamp(self) -> Stamp:
        return Stamp(Instant(0), WallInstant(self.wall), len(self.log), 1)

    def known(self) -> Known:
        return Known(frozenset(self.accepted), {}, frozenset(self.removed))

    def do(self, given: Any) -> Step | Rejected:
        command = read(given if isinstance(given, str) else said(given))
        if isinstance(command, Rejected):
            return command
        if isinstance(command, contract.AcquireAuthority | contract.RenewAuthority):
            return self.lead(command)
        if isinstance(command, contract.RequestReplay):
            return self.replay(command.cursor)
        if isinstance(command, contract.CaptureSnapshot):
            return self.mark(contract_marks.NoteSnapshot())
        return self.ask(Asked(command, self.known()))

    def lead(self, command: Any) -> Step | Rejected:
        step = contract_rooms.decide_leader(self.lease, command, self.stamp(), LIMITS)
        for event in () if isinstance(step, Rejected) else step.events:
            self.lease = authority.evolve(self.lease, event)
            self.log.append(("authority", "leader", event, self.wall))
        return step

    def ask(self, command: Any) -> Step | Rejected:
        step = contract_rooms.decide_rows(self.queue, command, self.stamp(), LIMITS)
        for event in () if isinstance(step, Rejected) else step.events:
            self.log.append(("dispatch", "contract", event, self.wall))
            self.queue = evolve_queue(self.queue, event, len(self.log))
            if isinstance(event, DispatchRemoved):
                self.removed.update(event.request_ids)
            elif hasattr(event, "dispatch"):
                self.accepted.add(event.dispatch)
        return step

    def mark(self, command: Any) -> Step | Rejected:
        step = contract_marks.decide(self.marks, command, self.stamp(), LIMITS)
        for event in () if isinstance(step, Rejected) else step.events:
            self.marks = contract_marks.evolve(self.marks, event, len(self.log))
            self.log.append(("contract", "marks", event, self.wall))
        return step

    def replay(self, cursor: str | None) -> Step | Rejected:
        if cursor is None:
            return self.mark(contract_marks.StartReplay(None))
        head, floor = len(self.log), self.folded()[0].floor
        start = contract_marks.start_of(self.marks, cursor, floor, head, 1)
        if isinstance(start, Rejected):
            return start
        left = sum(start < one.position <= head and one.replayed for one in self.entries())
        return self.mark(contract_marks.StartReplay(cursor, start, head, left))

    def following(self) -> contract_list.Entry | None:
        marks = self.marks
        return next(
            (one for one in self.entries() if one.replayed and marks.place < one.position <= marks.through), None
        )

    def apply(self, name: str) -> Step | Rejected:
        following = self.following()
        position = contract.position_of(name, 1)
        return self.mark(contract_marks.ApplyReplay(name, position, None if following is None else following.position))

    def folded(self) -> tuple[contract_list.Fold, list[contract_list.Entry]]:
        fold, entries = contract_list.Fold(), list[contract_list.Entry]()
        for position, (kind, name, event, wall) in enumerate(self.log, 1):
            fold, entry = contract_list.seen(fold, kind, name, event, position, wall_text(WallInstant(wall)))
            entries += [] if entry is None else [entry]
            if about := contract_list.leaves(kind, name, event):
                fold, entries = contract_list.left(fold, entries, about)
        return fold, entries

    def entries(self) -> list[contract_list.Entry]:
        return self.folded()[1]

    def bodies(self) -> list[Any]:
        return [dict(entry.body) for entry in self.entries()]

    def snapshot(self) -> contract.Snapshot:
        lease = contract_rooms.authority_of(self.lease, WallInstant(self.wall))
        marks = self.marks
        replay = contract.Replay(marks.cursor, marks.left, marks.last_applied, False)
        return contract.snapshot(lease, contract_rooms.backlog_of(self.queue), replay)


QUEUE_1 = {"command": "QueueDispatch", "request_id": "r", "target": "t"}
NOTIFY_1 = {"command": "MarkNotified", "request_id": "r", "channel": "c"}
DELIVER_1 = {"command": "MarkDelivered", "request_id": "r"}
FAIL_1 = {"command": "MarkFailed", "request_id": "r", "reason": "why"}
REMOVE_1 = {"command": "RemoveDispatchRecords", "request_ids": ["r"]}


def authority_command(name: str, owner: str, lease_id: str, until: int) -> dict[str, str]:
    text = wall_text(WallInstant(until))
    return {"command": name, "owner": owner, "lease_id": lease_id, "leased_until": text}


# reading


@pytest.mark.parametrize("line", [command for command, _ in LINES])
def test_an_example_line_is_read_and_spelled_again_as_it_was(line: str) -> None:
    command = read(line)
    again = contract.command_json(command)
    assert again == {"cursor": None, **json.loads(line)} if "RequestReplay" in line else again == json.loads(line)
    assert read(json.loads(line)) == command == read(line.encode())


def test_the_example_lines_give_the_events_of_the_page_byte_for_byte() -> None:
    house = House()
    for command, event in LINES:
        step = house.do(command)
        assert isinstance(step, Step), step
        assert said(house.bodies()[-1]) == event
    assert len(house.bodies()) == len(LINES)


WRONG: dict[str, list[Any]] = {
    "text": [None, 1, True, 1.5, [], {}, ["x"]],
    "instant": [None, 1, "", "tomorrow", "2026-03-19T02:00:00", "2026-02-30T00:00:00Z", "2026-03-19", "9" * 40],
    "texts": [None, "r", {}, [], [1], ["a", "a"], ["x" * 129], [str(n) for n in range(257)]],
    "json": ["x" * 16_385, list(range(5_000))],
}


def mutations(line: str) -> list[tuple[str, str]]:
    """Texts that differ from a valid command in one way, and the word that the refusal has to name."""
    value = json.loads(line)
    cls = contract.BY_NAME[value["command"]]
    found = [
        (said({**value, "more": 1}), "more"),
        (said({**value, "command": "Nothing"}), "Nothing"),
        (said({**value, "command": contract.documentation_name(value["command"])}), "expected one of"),
        (said({**value, "command": 7}), "command"),
        (said({name: one for name, one in value.items() if name != "command"}), "command"),
        (line + "x", "JSON"),
        (line + line, "JSON"),
        (line[:-1], "JSON"),
        (f"[{line}]", "object"),
        (line[:-1] + f',"command":"{value["command"]}"}}', "command"),
        (line[:-1] + ',"":NaN}', "NaN"),
        ("\ufeff" + line, "JSON"),
    ]
    for name, (attribute, member) in contract.members(cls).items():
        if name in value:
            found += [(said({**value, name: wrong}), name) for wrong in WRONG[member.kind] if not _right(member, wrong)]
            found.append((line[:-1] + f',"{name}":{said(value[name])}}}', name))
            if member.kind == "text":
                found.append((said({**value, name: "x" * (member.most_in(LIMITS) + 1)}), name))
                found.append((line[:-1].replace(f'"{name}"', f'"{name} "') + "}", name))
        if name in value and attribute.default is not contract.ABSENT:
            found.append((said({one: held for one, held in value.items() if one != name}), name))
    return found


def _right(member: contract.Member, wrong: Any) -> bool:
    return wrong is None and member.nullable


@pytest.mark.parametrize("line", [command for command, _ in LINES])
def test_every_mutation_of_a_valid_command_is_refused_with_the_member_that_is_wrong(line: str) -> None:
    for text, word in mutations(line):
        refusal = refused(text)
        assert refusal.reason in (Reason.INVALID_COMMAND, Reason.INVALID_DISPATCH_ID)
        assert word in refusal.message, (text, refusal.message)
        assert len(refusal.message) < 600


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b'{"command":"\xff"}', "invalid JSON: the text is no UTF-8 at byte 12"),
        ('{"command":"MarkDelivered","request_id":"\\ud800"}', "invalid JSON: a text has half of a surrogate pair"),
        ("[" * 100_000, "expected at most 65536 bytes, got 100000"),
        ("[" * 60_000, "invalid JSON"),
        (said({**QUEUE_1, "metadata": 1 << 64}), 'invalid JSON: an integer has more than 64 bits (member "metadata")'),
        ('{"a":{"b":[1,1e400]}}', 'invalid JSON: a number is beyond 1.8e308 (member "b")'),
        (json.dumps({**QUEUE_1, "metadata": 1}).replace("1}", "1e999}"), "invalid JSON"),
        (json.dumps({**QUEUE_1, "metadata": 1}).replace("1}", "9" * 5_000 + "}"), "invalid JSON"),
        (said({**QUEUE_1, "metadata": json.loads("[" * 70 + "]" * 70)}), "nested too deep"),
        (said({**QUEUE_1, "metadata": "x" * 70_000}), "at most 65536 bytes"),
        ({**QUEUE_1, "metadata": {1, 2}}, "invalid JSON"),
        ({**QUEUE_1, "metadata": float("nan")}, "invalid JSON"),
        ("null", "invalid command: expected a JSON object, got null"),
        ("", "invalid JSON"),
        ('{"command":"MarkDelivered","request_id":"a","request_id":"a"}', 'member "request_id" stands twice'),
        (
            '{"command":"MarkDelivered","request_id":5}',
            'invalid command: member "request_id" of MarkDelivered: expected text of 1 to 128 characters, got a number',
        ),
        (
            '{"command":"MarkNotified","request_id":"a"}',
            'invalid command: member "channel" of MarkNotified is missing: expected text of 1 to 128 characters',
        ),
        (
            '{"command":"CaptureSnapshot","x":1}',
            'invalid command: unknown member "x" of CaptureSnapshot: expected no other member',
        ),
    ],
)
def test_what_is_no_command_is_refused_and_said_why(given: Any, message: str) -> None:
    refusal = refused(given)
    assert refusal.reason is Reason.INVALID_COMMAND
    assert message in refusal.message


@pytest.mark.parametrize("name", [tag for tag in contract.EVENTS.values() if "." in tag])
def test_a_signal_sent_as_a_command_is_refused(name: str) -> None:
    assert f'unknown command "{name}"' in refused({"command": name, "owner": "x", "phase": "idle"}).message


@pytest.mark.parametrize("name", ["QueueDispatch", "MarkNotified", "MarkDelivered", "MarkFailed"])
def test_an_empty_request_id_has_a_reason_of_its_own(name: str) -> None:
    rest = {"QueueDispatch": {"target": ""}, "MarkNotified": {"channel": "c"}, "MarkFailed": {"reason": "r"}}
    refusal = refused({"command": name, "request_id": "", **rest.get(name, {})})
    assert refusal.reason is Reason.INVALID_DISPATCH_ID
    assert refusal.message == 'dispatch error: invalid dispatch request id: ""'
    assert refused({"command": "RemoveDispatchRecords", "request_ids": [""]}).reason is Reason.INVALID_DISPATCH_ID


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2026-03-19T02:00:00Z", "2026-03-19T02:00:00.000000Z"),
        ("2026-03-19t02:00:00.5z", "2026-03-19T02:00:00.500000Z"),
        ("2026-03-19T02:00:00+02:00", "2026-03-19T00:00:00.000000Z"),
        ("2026-03-19T23:30:00.1234567-01:15", "2026-03-20T00:45:00.123456Z"),
        ("1969-12-31T23:59:59Z", "1969-12-31T23:59:59.000000Z"),
    ],
)
def test_an_instant_is_read_with_its_offset(text: str, shown: str) -> None:
    at = contract.instant_of(text)
    assert at is not None and wall_text(at) == shown


def test_bounds_are_counted_in_characters_and_the_bound_itself_is_taken() -> None:
    for name, most in (("request_id", 128), ("channel", 128)):
        assert not isinstance(read({**NOTIFY_1, name: "é" * most}), Rejected)
        assert isinstance(read({**NOTIFY_1, name: "é" * (most + 1)}), Rejected)
    assert not isinstance(read({**FAIL_1, "reason": "x" * LIMITS.contract_reason_chars_max}), Rejected)
    assert not isinstance(read({**QUEUE_1, "target": "x" * LIMITS.target_chars_max}), Rejected)
    fits = "x" * (LIMITS.contract_metadata_bytes_max - 2)
    assert not isinstance(read({**QUEUE_1, "metadata": fits}), Rejected)
    assert isinstance(read({**QUEUE_1, "metadata": fits + "x"}), Rejected)
    ids = [str(number) for number in range(LIMITS.contract_ids_max)]
    assert not isinstance(read({**REMOVE_1, "request_ids": ids}), Rejected)
    small = Limits(contract_command_bytes_max=10)
    assert isinstance(contract.read_command('{"command":"CaptureSnapshot"}', small), Rejected)


# the schema


def test_the_schema_in_the_docs_is_the_one_that_is_made() -> None:
    file = Path(__file__).parents[2] / "docs" / "contract.schema.json"
    assert file.read_text() == json.dumps(SCHEMA, indent=2, ensure_ascii=False) + "\n"
    assert jsonschema_rs.meta.is_valid(SCHEMA)


def test_schema_and_parser_agree_on_the_example_lines_and_their_mutations() -> None:
    for command, event in LINES:
        value, shown = json.loads(command), json.loads(event)
        assert valid(value["command"], value) and valid(shown["event"], shown)
        assert not valid(value["command"], {**value, "more": 1})
        for name in value:
            rest = {one: held for one, held in value.items() if one != name}
            assert valid(value["command"], rest) is (name in ("metadata", "cursor"))
    for signal in SIGNALS:
        assert valid(json.loads(signal)["event"], json.loads(signal))
    shown = contract.snapshot_json(House().snapshot())
    assert valid("Snapshot", shown) and not valid("Snapshot", {**shown, "more": 1})


def test_the_schema_names_commands_events_and_what_goes_beyond_them() -> None:
    assert len(SCHEMA["commands"]) == 8 and SCHEMA["commands"][0] == "acquire-authority"
    assert len(SCHEMA["events"]) == 14 and SCHEMA["events"][-1] == "worker.recovered"
    assert SCHEMA["extensions"] == ["remove-dispatch-records", "dispatch-records-removed"]
    assert set(SCHEMA["$defs"]) == {*contract.BY_NAME, *contract.EVENTS.values(), "Snapshot"}


# deliveries: every state, every command

STATES: dict[str, list[Any]] = {
    "never": [],
    "pending": [QUEUE_1],
    "notified": [QUEUE_1, NOTIFY_1],
    "delivered": [QUEUE_1, NOTIFY_1, DELIVER_1],
    "failed": [QUEUE_1, FAIL_1],
    "removed": [QUEUE_1, FAIL_1, REMOVE_1],
}
_UNKNOWN, _TRANSITION, _TWICE = Reason.UNKNOWN_DISPATCH, Reason.INVALID_TRANSITION, Reason.DUPLICATE_DISPATCH
_OPEN = (_TWICE, "notified", _TRANSITION, "failed", _TRANSITION)
_ENDED = (_TWICE, _TRANSITION, _TRANSITION, _TRANSITION, "removed")
_GONE = (_UNKNOWN, _UNKNOWN, _UNKNOWN)
CELLS: dict[str, tuple[Reason | str, ...]] = {
    "never": ("pending", *_GONE, _UNKNOWN),
    "pending": _OPEN,
    "notified": (_TWICE, _TRANSITION, "delivered", "failed", _TRANSITION),
    "delivered": _ENDED,
    "failed": _ENDED,
    "removed": (_TWICE, *_GONE, "removed"),
}
ASKED = {"Queue": QUEUE_1, "Notified": NOTIFY_1, "Delivered": DELIVER_1, "Failed": FAIL_1, "Remove": REMOVE_1}


def counted(house: House) -> str:
    backlog = contract.snapshot_json(house.snapshot())["backlog"]
    return next((name for name, number in backlog.items() if number), "removed" if house.accepted else "never")


@pytest.mark.parametrize(("state", "command"), [(state, name) for state in STATES for name in ASKED])
def test_every_pair_of_state_and_command_gives_its_cell(state: str, command: str) -> None:
    house = House()
    for earlier in STATES[state]:
        assert isinstance(house.do(earlier), Step)
    assert counted(house) == state
    cell, before, log = CELLS[state][list(ASKED).index(command)], house.snapshot(), len(house.log)
    step = house.do(ASKED[command])
    if isinstance(cell, str):
        assert isinstance(step, Step) and counted(house) == cell
        assert len(house.bodies()) == len(STATES[state]) + 1
    else:
        assert isinstance(step, Rejected) and step.reason is cell
        assert step.message.startswith("dispatch error: ") and step.message.count("r")
        assert (house.snapshot(), len(house.log)) == (before, log)


def test_refusals_of_marks_say_from_where_to_where() -> None:
    house = House()
    house.do(QUEUE_1)
    for command, message in (
        (DELIVER_1, "dispatch error: invalid transition for r: pending -> delivered"),
        (QUEUE_1, "dispatch error: duplicate dispatch request id: r"),
        (REMOVE_1, "dispatch error: invalid transition for r: pending -> removed"),
        ({**DELIVER_1, "request_id": "q"}, "dispatch error: dispatch record not found: q"),
    ):
        step = house.do(command)
        assert isinstance(step, Rejected) and step.message == message


def test_a_mark_ends_the_claim_of_a_worker_and_its_token_is_dead() -> None:
    house = House()
    house.do(QUEUE_1)
    house.ask(ClaimDispatch("worker", "0" * 64))
    assert counted(house) == "pending"
    assert isinstance(house.do(NOTIFY_1), Step)
    (row,) = house.queue.rows.values()
    assert row.claim is not None and row.claim.owner == "contract" and row.generation == 2
    assert [body["event"] for body in house.bodies()] == ["DispatchQueued", "DispatchNotified"]


def test_removal_is_all_or_nothing() -> None:
    house = House()
    for command in (QUEUE_1, FAIL_1, {**QUEUE_1, "request_id": "open"}):
        house.do(command)
    for names in (["r", "open"], ["r", "never"]):
        before = len(house.log)
        assert isinstance(house.do({**REMOVE_1, "request_ids": names}), Rejected)
        assert len(house.log) == before and house.snapshot().backlog.failed == 1


def test_a_record_shows_its_instants_apart() -> None:
    house = House()
    seen = []
    for command in (QUEUE_1, NOTIFY_1, DELIVER_1):
        house.do(command)
        house.wall += 1_000_000
        (row,) = {**house.queue.rows, **house.queue.ended}.values()
        seen.append(contract_rooms.record_of(row))
    at = [wall_text(WallInstant(NOON + number * 1_000_000)) for number in range(3)]
    last = seen[-1]
    assert [one["state"] for one in seen] == ["pending", "notified", "delivered"]
    assert (last["created_at"], last["notified_at"], last["delivered_at"]) == tuple(at)
    assert last["failed_at"] is last["reason"] is None and last["channel"] == "c"


def test_a_delivery_that_was_cancelled_counts_as_failed_and_says_why() -> None:
    house = House()
    house.do(QUEUE_1)
    house.ask(CancelDispatch(DispatchId("r")))
    assert counted(house) == "failed"
    assert house.bodies()[-1] == {"event": "DispatchFailed", "request_id": "r", "reason": "cancelled: user_cancel"}


# the list and the snapshot


def from_list(bodies: list[Any]) -> dict[str, Any]:
    """The snapshot as somebody makes it who has only the list."""
    state: dict[str, str] = {}
    lease: dict[str, Any] = {}
    cursor = None
    for body in bodies:
        match body["event"]:
            case "AuthorityAcquired" | "AuthorityRenewed":
                lease = {name: body[name] for name in ("owner", "lease_id", "leased_until")}
            case "DispatchQueued":
                state[body["request_id"]] = "pending"
            case "DispatchNotified" | "DispatchDelivered" | "DispatchFailed" as name:
                state[body["request_id"]] = name.removeprefix("Dispatch").lower()
            case "DispatchRecordsRemoved":
                for name in body["request_ids"]:
                    state.pop(name, None)
            case "ReplayRequested":
                cursor = body["cursor"]
    names = ("pending", "notified", "delivered", "failed")
    return {
        "lease": lease,
        "backlog": {name: sum(one == name for one in state.values()) for name in names},
        "cursor": cursor,
    }


def from_state(house: House) -> dict[str, Any]:
    shown = contract.snapshot_json(house.snapshot())
    lease = {name: shown["authority"][name] for name in ("owner", "lease_id", "leased_until")}
    return {
        "lease": {} if lease["owner"] is None else lease,
        "backlog": shown["backlog"],
        "cursor": shown["replay"]["cursor"],
    }


def compact(house: House) -> None:
    ended = tuple(sorted(house.queue.ended))
    if ended:
        house.ask(CompactRecords(ended, house.known()))
    house.mark(contract_marks.NoteCompaction())


SMALL = [
    QUEUE_1,
    NOTIFY_1,
    DELIVER_1,
    FAIL_1,
    REMOVE_1,
    {**QUEUE_1, "request_id": "q"},
    {**FAIL_1, "request_id": "q"},
    {"command": "RequestReplay", "cursor": "name"},
    authority_command("AcquireAuthority", "w", "l", NOON + 9_000_000),
    None,
]


def test_the_list_folded_from_empty_gives_the_snapshot_after_any_commands_and_compactions() -> None:
    shapes = set()
    for commands in itertools.product(SMALL, repeat=4):
        house = House()
        for command in commands:
            if command is None:
                compact(house)
            else:
                house.do(command)
        assert from_list(house.bodies()) == from_state(house), commands
        seqs = [entry.seq for entry in house.entries()]
        assert seqs == sorted(set(seqs))
        shapes.add(len(seqs))
    assert shapes == {0, 1, 2, 3, 4}


def test_a_compaction_takes_what_has_ended_and_the_older_marks_and_keeps_the_numbers() -> None:
    house = House()
    for command in (QUEUE_1, {**QUEUE_1, "request_id": "open"}, FAIL_1, {"command": "RequestReplay"}):
        house.do(command)
    for line in ('{"command":"CaptureSnapshot"}', '{"command":"RequestReplay","cursor":"n"}'):
        house.do(line)
    before = {entry.seq: entry for entry in house.entries()}
    compact(house)
    left = house.entries()
    assert [(entry.seq, entry.body["event"]) for entry in left] == [
        (2, "DispatchQueued"),
        (5, "SnapshotCaptured"),
        (6, "ReplayRequested"),
    ]
    assert all(before[entry.seq] == entry for entry in left)
    assert house.snapshot().backlog == contract.Backlog(1, 0, 0, 0)
    assert house.folded()[0].floor == 4
    compact(house)
    assert house.entries() == left


def test_signals_are_made_of_what_sessions_workers_and_the_queue_keep() -> None:
    house = House()
    house.log += [
        ("session", "s-1", TurnBlocked("t", "user", "needs-user-clarification"), NOON),  # type: ignore[arg-type]
        ("worker", "worker-2", WorkerAssigned("", "", "", "worker-2", "17", 1), NOON),
        ("worker", "worker-2", WorkerStalled("", "", "", "worker-2", "stdout-stale"), NOON),
        ("worker", "worker-2", WorkerRecovered("", "", "", "worker-2", "relaunch"), NOON),
    ]
    house.do(authority_command("AcquireAuthority", "leader", "l", NOON + 9_000_000))
    house.log.append(("session", "s-1", TurnBlocked("t", "system", "sandbox-denied"), NOON))  # type: ignore[arg-type]
    told = [said(body) for body in house.bodies()]
    assert told[0] == SIGNALS[1].replace('"leader"', '"runtime"')
    assert told[1:4] == list(SIGNALS[3:])
    assert told[5] == SIGNALS[2]


def test_a_delivery_that_is_put_off_is_said_once_and_shown_until_it_leaves_pending() -> None:
    house = House()
    house.do({**QUEUE_1, "target": "leader"})
    assert contract_rooms.waiting_for_leader(house.queue, "leader") == ("r",)
    for _ in range(3):
        house.ask(contract_rooms.put_off("r"))  # type: ignore[arg-type]
    assert contract_rooms.deferred(house.queue, "leader")
    assert contract_rooms.waiting_for_leader(house.queue, "leader") == ()
    assert house.bodies()[1:] == [
        {"event": "run.blocked_on_system", "owner": "runtime", "reason": "leader_notification_deferred"}
    ]
    house.do(NOTIFY_1)
    assert not contract_rooms.deferred(house.queue, "leader")


# authority


@frozen
class Case:
    lease: str
    command: str
    owner: str
    lease_id: str
    until: int
    answer: Any
    epoch: int


S = 1_000_000
LIVE, PAST = NOON + 10 * S, NOON - S
CASES = [
    Case("free", "AcquireAuthority", "w1", "l1", LIVE, "AuthorityAcquired", 1),
    Case("free", "AcquireAuthority", "w1", "l1", PAST, "AuthorityAcquired", 1),
    Case("free", "RenewAuthority", "w1", "l1", LIVE, Reason.LEASE_NOT_HELD, 0),
    Case("live", "AcquireAuthority", "w1", "l1", LIVE, "AuthorityAcquired", 1),
    Case("live", "AcquireAuthority", "w1", "l1", LIVE - S, Reason.LEASE_NOT_EXTENDED, 1),
    Case("live", "AcquireAuthority", "w1", "l2", LIVE - S, "AuthorityAcquired", 2),
    Case("live", "AcquireAuthority", "w2", "l1", LIVE, Reason.LEASE_HELD, 1),
    Case("live", "RenewAuthority", "w1", "l2", LIVE + S, "AuthorityRenewed", 1),
    Case("live", "RenewAuthority", "w1", "l1", LIVE, "AuthorityRenewed", 1),
    Case("live", "RenewAuthority", "w1", "l1", LIVE - 1, Reason.LEASE_NOT_EXTENDED, 1),
    Case("live", "RenewAuthority", "w2", "l1", LIVE + S, Reason.LEASE_OWNER_MISMATCH, 1),
    Case("stale", "AcquireAuthority", "w1", "l1", LIVE + 99 * S, "AuthorityAcquired", 2),
    Case("stale", "AcquireAuthority", "w2", "l1", LIVE + 99 * S, "AuthorityAcquired", 2),
    Case("stale", "RenewAuthority", "w1", "l1", LIVE + 99 * S, "AuthorityRenewed", 2),
    Case("stale", "RenewAuthority", "w2", "l1", LIVE + 99 * S, Reason.LEASE_OWNER_MISMATCH, 1),
    Case("lost", "AcquireAuthority", "w2", "l1", LIVE, "AuthorityAcquired", 2),
    Case("lost", "RenewAuthority", "w1", "l1", LIVE, "AuthorityRenewed", 2),
    Case("lost", "RenewAuthority", "w2", "l1", LIVE, Reason.LEASE_OWNER_MISMATCH, 1),
]


@pytest.mark.parametrize("case", CASES, ids=lambda one: f"{one.lease}-{one.command}-{one.owner}-{one.lease_id}")
def test_every_pair_of_lease_and_command_gives_its_row(case: Case) -> None:
    house = House()
    if case.lease != "free":
        house.do(authority_command("AcquireAuthority", "w1", "l1", LIVE))
    if case.lease == "stale":
        house.wall = LIVE
    if case.lease == "lost":
        house.lead(authority.LoseLease("gone"))
    assert house.snapshot().authority.stale is (case.lease in ("stale", "lost"))
    before = (house.snapshot(), len(house.log))
    step = house.do(authority_command(case.command, case.owner, case.lease_id, case.until))
    assert house.lease.epoch == case.epoch
    if isinstance(case.answer, Reason):
        assert isinstance(step, Rejected) and step.reason is case.answer
        assert step.message.startswith("authority error: ")
        assert (house.snapshot(), len(house.log)) == before
        return
    assert isinstance(step, Step) and len(step.events) == 1
    wanted = {"event": case.answer, **authority_command("", case.owner, case.lease_id, case.until)}
    assert house.bodies()[-1] == {name: value for name, value in wanted.items() if name != "command"}
    seen = house.snapshot().authority
    assert (seen.owner, seen.lease_id) == (case.owner, case.lease_id)
    assert seen.stale is (case.until <= house.wall)


def test_a_lease_runs_out_at_its_instant_and_names_its_last_owner() -> None:
    house = House()
    house.do(authority_command("AcquireAuthority", "w1", "l1", LIVE))
    house.wall = LIVE - 1
    assert house.snapshot().readiness.ready
    house.wall = LIVE
    shown = house.snapshot()
    assert (shown.authority.owner, shown.authority.stale_reason) == ("w1", "lease_expired")
    assert shown.readiness.reasons == ("authority lease is stale: lease_expired",)
    house.lead(authority.LoseLease("the host is gone"))
    assert house.snapshot().authority.stale_reason == "the host is gone"


# replay


def test_a_replay_gives_each_event_of_its_range_once_and_in_order() -> None:
    house = House()
    for command, _ in LINES[:7]:
        house.do(command)
    wanted = [entry.position for entry in house.entries()]
    house.do({"command": "RequestReplay", "cursor": "name"})
    house.do({**QUEUE_1, "request_id": "later"})
    assert house.marks.left == len(wanted)
    applied = list[int]()
    while (entry := house.following()) is not None:
        name = contract.event_id(1, entry.position)
        ahead = house.apply(contract.event_id(1, entry.position + 1))
        assert isinstance(ahead, Rejected) and ahead.reason is Reason.REPLAY_OUT_OF_ORDER
        for seen in (False, True, True):
            step = house.apply(name)
            assert isinstance(step, Step) and step.answer.seen is seen and bool(step.events) is not seen
        applied.append(entry.position)
        assert house.snapshot().replay.last_replayed_event_id == name
    assert applied == wanted and house.marks.left == 0
    assert house.marks.names == {"name": house.marks.through}
    late = house.apply(contract.event_id(1, len(house.log) + 5))
    assert isinstance(late, Rejected) and late.reason is Reason.REPLAY_OUT_OF_ORDER
    house.do({"command": "RequestReplay", "cursor": "name"})
    assert house.following() is not None and house.following().body["request_id"] == "later"  # type: ignore[union-attr]


def test_what_a_replay_applied_last_is_applied_again_by_one_that_begins_with_it() -> None:
    """Under a new name everything is replayed anew; the first event is not taken for a repeated confirmation."""
    house = House()
    house.do(QUEUE_1)
    name = contract.event_id(1, house.entries()[0].position)
    for cursor in ("one", "two"):
        house.do({"command": "RequestReplay", "cursor": cursor})
        for seen in (False, True):
            step = house.apply(name)
            assert isinstance(step, Step) and step.answer.seen is seen, cursor
        assert house.marks.left == 0
    house.do({"command": "RequestReplay", "cursor": None})
    step = house.apply(name)
    assert isinstance(step, Step) and step.answer.seen, "it stays what was applied last"


def test_an_event_before_the_range_was_not_applied_by_this_replay() -> None:
    house = House()
    house.do(QUEUE_1)
    house.do({**QUEUE_1, "request_id": "q"})
    house.do({"command": "RequestReplay", "cursor": contract.event_id(1, 1)})
    step = house.apply(contract.event_id(1, 1))
    assert isinstance(step, Rejected) and step.reason is Reason.REPLAY_OUT_OF_ORDER
    assert isinstance(house.apply(contract.event_id(1, 2)), Step)


def test_the_last_replay_that_was_asked_for_wins_and_null_drops_it() -> None:
    house = House()
    house.do(QUEUE_1)
    house.do({"command": "RequestReplay", "cursor": "a"})
    house.do({"command": "RequestReplay", "cursor": "b"})
    assert (house.marks.cursor, house.marks.left, house.marks.names) == ("b", 1, {})
    house.do({"command": "RequestReplay", "cursor": None})
    assert (house.marks.cursor, house.marks.left) == (None, 0)
    assert house.snapshot().replay == contract.Replay()


@pytest.mark.parametrize(
    ("cursor", "reason"),
    [
        (contract.event_id(2, 1), Reason.INVALID_CURSOR),
        (contract.event_id(1, 99), Reason.INVALID_CURSOR),
        ("tl1.x", Reason.INVALID_CURSOR),
        (contract.event_id(1, 0), Reason.STALE_CURSOR),
        (contract.event_id(1, 1), Reason.STALE_CURSOR),
        (contract.event_id(1, 2), None),
        (contract.event_id(1, 3), None),
    ],
)
def test_a_place_of_another_log_ahead_of_it_or_before_its_floor_is_refused(cursor: str, reason: Reason | None) -> None:
    house = House()
    house.do(QUEUE_1)
    house.do(FAIL_1)
    compact(house)
    assert house.folded()[0].floor == 2
    step = house.do({"command": "RequestReplay", "cursor": cursor})
    if reason is None:
        assert isinstance(step, Step)
        return
    assert isinstance(step, Rejected) and step.reason is reason and step.message.startswith("replay error: ")
    assert set(step.data) >= {"head"}


def test_so_many_saved_places_are_remembered_and_the_oldest_goes_first() -> None:
    marks, few = contract_marks.Marks(), Limits(contract_cursors_max=2)
    for name in ("a", "b", "c", "a"):
        marks = contract_marks.evolve(marks, contract_marks.ReplayRequested(name, 0, 5, 0), 1)
        marks = contract_marks.bounded(marks, few)
    assert list(marks.names) == ["c", "a"]


def test_what_was_never_asked_for_cannot_be_applied_in_a_log_either() -> None:
    with pytest.raises(KeyError):
        contract_marks.evolve(contract_marks.Marks(), contract_marks.ReplayApplied("x", 1, 0), 1)


# readiness and its text


def test_readiness_is_what_its_definition_says_for_all_combinations() -> None:
    leases = {
        (): contract.SnapshotAuthority("w", "l", "x"),
        ("authority lease not acquired",): contract.SnapshotAuthority(),
        ("authority lease is stale: why",): contract.SnapshotAuthority("w", "l", "x", True, "why"),
    }
    for (first, lease), pending, house in itertools.product(leases.items(), (0, 3), ((), ("runtime is draining",))):
        second = (f"replay has {pending} pending events",) if pending else ()
        wanted = (*first, *second, *house)
        value = contract.readiness(lease, contract.Replay(pending_events=pending), house)
        assert value == contract.Readiness(not wanted, wanted)
        assert contract.readiness_text(value) == (f"blocked({'; '.join(wanted)})" if wanted else "ready")


def test_the_snapshot_has_its_members_in_order_and_a_line_of_text() -> None:
    house = House()
    assert contract.snapshot_text(house.snapshot()) == (
        "schema=1 authority=owner=none lease_id=none leased_until=none stale=false stale_reason=none "
        "backlog=pending=0 notified=0 delivered=0 failed=0 replay=cursor=none pending_events=0 "
        "last_replayed_event_id=none deferred_leader_notification=false "
        "readiness=blocked(authority lease not acquired)"
    )
    house.wall = contract.instant_of("2026-03-19T01:00:00Z") or 0
    house.do(LINES[0][0])
    house.do(LINES[2][0])
    assert said(contract.snapshot_json(house.snapshot())) == (
        '{"schema_version":1,"authority":{"owner":"w1","lease_id":"l1","leased_until":"2026-03-19T02:00:00Z",'
        '"stale":false,"stale_reason":null},"backlog":{"pending":1,"notified":0,"delivered":0,"failed":0},'
        '"replay":{"cursor":null,"pending_events":0,"last_replayed_event_id":null,'
        '"deferred_leader_notification":false},"readiness":{"ready":true,"reasons":[]}}'
    )
