"""Receipt and replay artifact: the worked vector byte for byte, every default, what changes them and what does not."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from typing import Any, Final

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from run_world import CODEC, PARAMS_HASH, RUN, VECTOR, at, history

from turnlane.core.canonical import canonical_json, payload_hash, sha256_hex, sha256_prefixed
from turnlane.core.instants import Instant, WallInstant, WallNanos
from turnlane.core.reasons import Reason, Rejected
from turnlane.machines.artifacts import (
    DIALECTS,
    CheckedReplay,
    check_replay,
    receipt,
    replay,
    replay_lines,
    trajectory_hash,
)
from turnlane.machines.run import Creation, Numbered, Owner, Run, RunEvent, RunPhase, event_of

TRAJECTORY: Final = "sha256:94f12fe2f404fb225fde7874fb2e97747268b99d0592cfe27b419d881e4bd58a"

# the worked vector


def test_the_hashes_of_the_worked_vector() -> None:
    """Payloads, params, trajectory and receipt."""
    run, events = VECTOR
    assert [payload_hash(event.payload) for _, event in events] == [
        "sha256:cf40aa17d3f50914072dc3aff5d5303a7e58348da8e2b98f7b109f45fe564a6e",
        "sha256:d93a5d558a07858c2ded8e975965ac64adeed57aba74838dedea21877d637809",
        "sha256:b5b99dc878d1cd2c7dd1ae560ab8bdd05c0da64e001ad80138ceb969fc7d0a07",
        "sha256:8115ac5d59076ed28115a538d1b9e10efa6ecfce9dcc178efaec71dc0ffc661c",
    ]
    assert payload_hash(events[1][1].payload["params"]) == PARAMS_HASH
    assert trajectory_hash(events) == TRAJECTORY
    assert receipt(run, events).sha256 == "85457ad37561e7d5bb6b5dd88d2a033e286774f2000e270648c7eb2d85051a8d"


def test_the_receipt_of_the_worked_vector() -> None:
    """Members in their order; the hash over all of them but itself."""
    body = receipt(*VECTOR).body
    assert body == (
        b'{"schema":"openagents.receipt.v1","session_id":"0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e0f","trajectory_hash":"%s",'
        b'"policy_bundle_id":"bundle.docs.v3","created_at":"2026-04-02T08:30:00.250+00:00","event_count":4,"first_seq":1,'
        b'"last_seq":4,"metrics":{"tool_calls":1,"tool_latency_ms_total":41,"verification_passed":null,'
        b'"payments_msats_total":0},"tool_calls":[{"tool":"grep","params_hash":"%s","output_hash":"sha256:%s",'
        b'"latency_ms":41,"side_effects":["fs.read"]}],"verification":[],"payments":[],"canonical_json_sha256":'
        b'"85457ad37561e7d5bb6b5dd88d2a033e286774f2000e270648c7eb2d85051a8d"}'
    ) % (TRAJECTORY.encode(), PARAMS_HASH.encode(), 32 * b"ab")
    members = json.loads(body)
    own = members.pop("canonical_json_sha256")
    assert own == sha256_hex(canonical_json(members))


def test_the_replay_artifacts_of_the_worked_vector() -> None:
    """Both dialects: sizes, hashes, and the last line of one."""
    canonical, typed = (replay(*VECTOR, dialect) for dialect in DIALECTS)
    assert (len(canonical), len(typed)) == (2_424, 1_875)
    assert sha256_prefixed(canonical) == "sha256:068ef2af2a699a6a1d97c728fe386bb0ed16110a7ec137eb86fb3a859836729f"
    assert sha256_prefixed(typed) == "sha256:387c25c084f4ea4989212058bb3c08aab48df855a7ed6e3993d5636740cf05d8"
    assert canonical.splitlines()[-1] == (
        b'{"confidence":1.0,"event":"SessionEnd","status":"success","t":"2026-04-02T08:30:03.000000001+00:00",'
        b'"total_latency_ms":41,"total_tool_calls":1}'
    )


def test_the_trajectory_is_the_canonical_array_of_its_events() -> None:
    """Grown event by event it is the hash of the whole; of no event that of `[]`."""
    _, events = VECTOR
    array = []
    for (seq, event), second in zip(events, ("00.250", "01.000750", "02", "03.000000001"), strict=True):
        recorded_at = f"2026-04-02T08:30:{second}+00:00"
        array.append(
            {
                "seq": seq,
                "event_type": event.event_type,
                "payload": event.payload,
                "idempotency_key": event.key,
                "recorded_at": recorded_at,
            }
        )
    assert canonical_json(array).startswith(
        b'[{"event_type":"run.started","idempotency_key":null,"payload":{"source":"runtime"},'
        b'"recorded_at":"2026-04-02T08:30:00.250+00:00","seq":1},'
    )
    for length in range(5):
        assert trajectory_hash(events[:length]) == sha256_prefixed(canonical_json(array[:length]))


# one event, its entries and its defaults


def artifacts_of(event_type: str, payload: Any, key: str | None = None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The receipt of a run of one event, and what stands between start and end in its replay."""
    run, events = history(Creation(at("00")), event_of(event_type, payload, at("01"), key))
    lines = [json.loads(line) for line in replay(run, events).splitlines()]
    assert [line["event"] for line in lines[:3]] == ["ReplayHeader", "SessionStart", "RuntimeEvent"]
    assert check_replay(replay(run, events)) == CheckedReplay("event", 1, trajectory_hash(events))
    return json.loads(receipt(run, events).body), lines[3:]


TOOL: Final = {"tool": "t", "params_hash": "p", "output_hash": "o", "latency_ms": 2**63 - 1}
VERIFICATION: Final = {"command": "c", "exit_code": -(2**31)}
PAYMENT: Final = {"rail": "r", "asset_id": "a", "amount_msats": 2**64 - 1, "payment_proof": None}


def test_the_entries_of_a_receipt() -> None:
    """What is optional has a default; what is optional and of another kind counts as absent."""
    misfit = {"side_effects": "x", "cwd": 1, "duration_ms": 1.0, "job_hash": 1, "status": None}
    for extra in ({}, misfit):
        calls = artifacts_of("tool", TOOL | extra)[0]
        assert calls["tool_calls"] == [TOOL | {"side_effects": []}]
        assert calls["metrics"]["tool_calls"] == 1 and calls["metrics"]["tool_latency_ms_total"] == 2**63 - 1
        checks = artifacts_of("verification", VERIFICATION | extra)[0]
        assert checks["verification"] == [VERIFICATION | {"cwd": None, "duration_ms": None}]
        assert checks["metrics"]["verification_passed"] is False
        paid = artifacts_of("payment", PAYMENT | extra)[0]
        assert paid["payments"] == [
            PAYMENT
            | {"job_hash": None, "status": "released", "session_id": RUN, "policy_bundle_id": "runtime.default"}
            | {"trajectory_hash": paid["trajectory_hash"]}
        ]
        assert paid["metrics"]["payments_msats_total"] == 2**64 - 1
        assert not any("malformed_events" in one for one in (calls, checks, paid))
    full = {"side_effects": ["a", 1, None, "b"], "cwd": "/", "duration_ms": 5, "job_hash": "j", "status": "held"}
    assert artifacts_of("tool", TOOL | full)[0]["tool_calls"][0]["side_effects"] == ["a", "b"]
    check = artifacts_of("verification", VERIFICATION | full | {"exit_code": 0})[0]
    assert check["verification"] == [{"command": "c", "exit_code": 0, "cwd": "/", "duration_ms": 5}]
    assert check["metrics"]["verification_passed"] is True
    (payment,) = artifacts_of("payment", PAYMENT | full)[0]["payments"]
    assert (payment["job_hash"], payment["status"]) == ("j", "held")


WRONG: Final[dict[str, tuple[Any, ...]]] = {
    "tool": (None, 1, []),
    "params_hash": (None, 1),
    "output_hash": (None, {}),
    "latency_ms": (None, "1", 1.0, True, -1, 2**63),
    "command": (None, ["ls"]),
    "exit_code": (None, "0", 0.0, False, 2**31, -(2**31) - 1),
    "rail": (None, 1),
    "asset_id": (None, 1),
    "amount_msats": (None, "1", 1.0, True, -1, 2**64),
    "payment_proof": (),
}
"""For each required member what it must not be; all of them must be there."""


def broken(payload: dict[str, Any]) -> list[Any]:
    absent = [{name: value for name, value in payload.items() if name != gone} for gone in payload]
    return [None, [], "x", 1, *absent, *(payload | {name: value} for name in payload for value in WRONG[name])]


@pytest.mark.parametrize("event_type", ["tool", "verification", "payment"])
def test_what_lacks_a_required_member_is_listed_and_not_counted(event_type: str) -> None:
    """Each member missing, each of the wrong kind, each out of range; the replay gives its defaults instead."""
    good = {"tool": TOOL, "verification": VERIFICATION, "payment": PAYMENT}[event_type]
    for payload in broken(good):
        body, lines = artifacts_of(event_type, payload)
        assert body["malformed_events"] == [{"seq": 1, "event_type": event_type, "reason_code": "invalid_payload"}]
        assert list(body)[-2] == "malformed_events"
        assert (body["tool_calls"], body["verification"], body["payments"]) == ([], [], [])
        assert list(body["metrics"].values()) == [0, 0, None, 0]
        assert bool(lines[:-1]) == isinstance(payload, dict)


def test_all_verifications_must_pass() -> None:
    """One that failed decides; one that is malformed does not count."""
    for codes, passed in (((0, 0), True), ((0, 1), False), (("x", 0), True), (("x",), None)):
        entries = [event_of("verification", {"command": "c", "exit_code": code}, at("01"), None) for code in codes]
        body = json.loads(receipt(*history(Creation(), *entries)).body)
        assert body["metrics"]["verification_passed"] is passed


def test_tools_and_payments_are_summed() -> None:
    """A tool that is malformed counts in the replay, whose lines have defaults, and not in the receipt."""
    payloads = [TOOL | {"latency_ms": 40}, TOOL | {"latency_ms": 2}, {"latency_ms": 100}]
    tools = [event_of("tool", payload, at("01"), None) for payload in payloads]
    payments = [event_of("payment", PAYMENT, at("01"), None)] * 2
    run, events = history(Creation(), *tools, *payments)
    metrics = json.loads(receipt(run, events).body)["metrics"]
    end = json.loads(replay(run, events).splitlines()[-1])
    assert (metrics["tool_calls"], metrics["tool_latency_ms_total"]) == (2, 42)
    assert metrics["payments_msats_total"] == 2 * (2**64 - 1)
    assert (end["total_tool_calls"], end["total_latency_ms"]) == (3, 142)


def test_the_lines_of_a_tool() -> None:
    """A call and its result, by key or by seq, with their defaults."""
    _, (call, result, end) = artifacts_of("tool", {})
    t = "2026-04-02T08:30:01+00:00"
    named = {"t": t, "id": "runtime.seq:1"}
    assert call == named | {
        "event": "ToolCall",
        "tool": "unknown",
        "params": {},
        "params_hash": payload_hash({}),
        "step_id": "runtime.seq:1",
    }
    assert result == named | {
        "event": "ToolResult",
        "output_hash": "sha256:unknown",
        "exit_code": None,
        "step_utility": 0.0,
        "latency_ms": 0,
    }
    assert (end["total_tool_calls"], end["total_latency_ms"]) == (1, 0)
    given_all = TOOL | {"params": [1], "step_id": "s", "exit_code": 3, "step_utility": 0.1, "latency_ms": 2**64 - 1}
    _, (call, result, end) = artifacts_of("tool", given_all, "key")
    assert (call["id"], call["step_id"], call["params"], call["params_hash"]) == ("key", "s", [1], "p")
    assert (result["id"], result["exit_code"], result["latency_ms"]) == ("key", 3, 2**64 - 1)
    assert result["step_utility"] == struct.unpack("<f", struct.pack("<f", 0.1))[0] != 0.1
    assert end["total_latency_ms"] == 2**64 - 1
    misfit = {"params": None, "params_hash": 1, "step_id": 1, "exit_code": 2**31, "latency_ms": 2**64}
    _, (call, result, _) = artifacts_of("tool", misfit | {"step_utility": True})
    assert (call["params"], call["params_hash"], call["step_id"]) == (None, payload_hash(None), "runtime.seq:1")
    assert (result["exit_code"], result["latency_ms"], result["step_utility"]) == (None, 0, 0.0)


@pytest.mark.parametrize("utility", ["1", None, 1e39, -1e300, 2**64 - 1, 1])
def test_a_step_utility_is_a_number_of_single_precision(utility: Any) -> None:
    """An integer becomes a double; what is none, or out of its range, is 0.0."""
    _, (_, result, _) = artifacts_of("tool", {"step_utility": utility})
    fits = isinstance(utility, int)
    assert result["step_utility"] == (float(utility) if fits else 0.0) and type(result["step_utility"]) is float


def test_the_lines_of_a_verification_and_of_a_payment() -> None:
    """One line each, with their defaults."""
    _, (line, _) = artifacts_of("verification", {})
    named = {"t": "2026-04-02T08:30:01+00:00"}
    plain = {"event": "Verification", "commands": ["unknown"], "exit_codes": [-1], "verification_delta": 0}
    assert line == named | plain
    _, (line, _) = artifacts_of("verification", VERIFICATION | {"verification_delta": -5})
    assert line == named | plain | {"commands": ["c"], "exit_codes": [-(2**31)], "verification_delta": -5}
    plain = {"event": "Payment", "rail": "unknown", "asset_id": "unknown", "amount_msats": 0, "payment_proof": None}
    plain |= {"job_hash": None, "status": "released"}
    _, (line, _) = artifacts_of("payment", {})
    assert line == named | plain
    given_all = PAYMENT | {"payment_proof": {"b": 1, "a": [2.0]}, "job_hash": "j", "status": "held"}
    _, (line, _) = artifacts_of("payment", given_all)
    assert line == named | plain | given_all


def test_the_dialect_type_expands_nothing() -> None:
    """Discriminator, order of members, and tool calls that are always 0."""
    run, events = history(Creation(at("00")), event_of("tool", TOOL | {"z": 1e-7, "a": 1}, at("01"), "k"))
    assert replay(run, events, "type") == (
        b'{"type":"ReplayHeader","replay_version":1,"producer":"openagents-runtime",'
        b'"created_at":"2026-04-02T08:30:00+00:00"}\n'
        b'{"type":"SessionStart","ts":"2026-04-02T08:30:00+00:00","session_id":"%s",'
        b'"policy_bundle_id":"runtime.default"}\n'
        b'{"type":"RuntimeEvent","ts":"2026-04-02T08:30:01+00:00","session_id":"%s","seq":1,"runtime_event_type":"tool",'
        b'"payload_hash":"%s","payload":{"tool":"t","params_hash":"p","output_hash":"o",'
        b'"latency_ms":9223372036854775807,"z":1e-7,"a":1}}\n'
        b'{"type":"SessionEnd","ts":"2026-04-02T08:30:01+00:00","session_id":"%s","status":"incomplete","confidence":0.5,'
        b'"total_tool_calls":0}\n'
    ) % (RUN.encode(), RUN.encode(), payload_hash(events[0][1].payload).encode(), RUN.encode())


@pytest.mark.parametrize(
    ("phase", "status", "confidence"),
    [
        (RunPhase.CREATED, "incomplete", 0.5),
        (RunPhase.RUNNING, "incomplete", 0.5),
        (RunPhase.CANCELLING, "incomplete", 0.5),
        (RunPhase.SUCCEEDED, "success", 1.0),
        (RunPhase.FAILED, "failure", 0.0),
        (RunPhase.CANCELLED, "cancelled", 0.0),
    ],
)
def test_a_replay_says_how_the_run_ended(phase: RunPhase, status: str, confidence: float) -> None:
    """In every phase and both dialects; without events the instants are those of the creation."""
    run = Run(RUN, phase, Creation(at("00.250"), metadata={"policy_bundle_id": 5}))
    for dialect, instant in zip(DIALECTS, ("t", "ts"), strict=True):
        _, start, end = map(json.loads, replay_lines(run, (), dialect))
        assert (end["status"], end["confidence"]) == (status, confidence)
        assert start[instant] == end[instant] == "2026-04-02T08:30:00.250+00:00"
        assert start["policy_bundle_id"] == "runtime.default"  # a text or nothing
    body = json.loads(receipt(run, ()).body)
    assert (body["event_count"], body["first_seq"], body["last_seq"]) == (0, 0, 0)
    assert body["trajectory_hash"] == sha256_prefixed(b"[]")


# what changes an artifact, and what does not

TEXT: Final = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
VALUES: Final = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
KINDS: Final = st.sampled_from(["tool", "verification", "payment", "x", "run.heartbeat"])
PAYLOADS: Final = VALUES | st.builds(
    lambda base, more: base | more,
    st.sampled_from([TOOL, VERIFICATION, PAYMENT]),
    st.dictionaries(TEXT, VALUES, max_size=2),
)
EVENTS: Final = st.lists(
    st.builds(event_of, KINDS, PAYLOADS, st.integers(0, 10**18).map(WallNanos), st.none() | TEXT),
    min_size=1,
    max_size=5,
)
CREATION: Final = Creation(at("00.250"), "w-1", Owner(7), {"policy_bundle_id": "b", "more": 1}, "k")


def everything(run: Run, events: tuple[Numbered, ...]) -> list[bytes]:
    return [receipt(run, iter(events)).body, *(replay(run, iter(events), dialect) for dialect in DIALECTS)]


def backwards(value: Any) -> Any:
    """The same value with the members of its objects the other way round."""
    if isinstance(value, dict):
        return {name: backwards(value[name]) for name in reversed(list(value))}
    return [backwards(inner) for inner in value] if isinstance(value, list) else value


@given(EVENTS)
def test_two_builds_of_one_run_are_the_same_bytes(events: list[RunEvent]) -> None:
    """Also of events that went through the log, and of creation data that no artifact shows."""
    run, numbered = history(CREATION, *events)
    through_the_log = tuple(
        (seq, CODEC.decode(CODEC.kept(event, seq, 1, Instant(0), WallInstant(0)))) for seq, event in numbered
    )
    others = evolve(CREATION, worker_id="w-2", owner=None, key=None, metadata={"policy_bundle_id": "b"})
    assert everything(run, numbered) == everything(run, through_the_log) == everything(*history(others, *events))
    body = json.loads(receipt(run, numbered).body)
    assert body["trajectory_hash"] == trajectory_hash(numbered)
    for dialect in DIALECTS:
        checked = check_replay(replay(run, numbered, dialect))
        assert checked == CheckedReplay(dialect, len(events), trajectory_hash(numbered) if dialect == "event" else None)


@given(EVENTS)
def test_the_order_of_members_changes_no_hash(events: list[RunEvent]) -> None:
    """Trajectory, the hash of the receipt and the canonical replay do not see it."""
    run, numbered = history(CREATION, *events)
    turned = tuple((seq, evolve(event, payload=backwards(event.payload))) for seq, event in numbered)
    assert trajectory_hash(turned) == trajectory_hash(numbered)
    assert receipt(run, turned).sha256 == receipt(run, numbered).sha256
    assert replay(run, turned) == replay(run, numbered)


CHANGES: Final[dict[str, Callable[[RunEvent], RunEvent]]] = {
    "payload": lambda event: evolve(event, payload=[event.payload]),
    "type": lambda event: evolve(event, event_type=event.event_type + "x"),  # type: ignore[call-arg]
    "key": lambda event: evolve(event, key=None if event.key is not None else "k"),
    "instant": lambda event: evolve(event, recorded_at=WallNanos(event.recorded_at + 1)),
}


@pytest.mark.parametrize("change", CHANGES)
@given(EVENTS, st.data())
def test_any_change_of_an_event_changes_the_artifacts(change: str, events: list[RunEvent], data: st.DataObject) -> None:
    """One member of one event; the key shows in the dialect `event` and in the receipt."""
    place = data.draw(st.integers(0, len(events) - 1))
    changed = [CHANGES[change](event) if index == place else event for index, event in enumerate(events)]
    before, after = everything(*history(CREATION, *events)), everything(*history(CREATION, *changed))
    assert [one != other for one, other in zip(before, after, strict=True)] == [True, True, change != "key"]


@given(EVENTS)
def test_any_change_of_the_run_changes_the_artifacts(events: list[RunEvent]) -> None:
    """Its id, its creation instant, its bundle; an event more or less; two events the other way round."""
    run, numbered = history(CREATION, *events)
    before = everything(run, numbered)
    bundle, later = evolve(CREATION, metadata={"policy_bundle_id": "c"}), evolve(CREATION, created_at=at("00.251"))
    others = [
        everything(evolve(run, run_id="0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e00"), numbered),
        everything(*history(bundle, *events)),
        everything(*history(later, *events)),
        everything(*history(CREATION, *events, events[0])),
    ]
    if len(events) > 1:
        others.append(everything(evolve(run, last_seq=run.last_seq - 1), numbered[:-1]))
        if canonical_json(events[0].payload) != canonical_json(events[1].payload):
            others.append(everything(*history(CREATION, events[1], events[0], *events[2:])))
    for other in others:
        assert all(one != changed for one, changed in zip(before, other, strict=True))


def test_events_that_are_not_the_whole_run_are_a_mistake() -> None:
    """The builders see that the last event is missing, rather than sign a part for the whole."""
    run, events = VECTOR
    for build in (receipt, replay, lambda run, events: replay(run, events, "type")):
        with pytest.raises(AssertionError):
            build(run, events[:-1])


def test_doubles_beyond_the_json_of_others_are_refused() -> None:
    """What no check let in does not get into a hash either."""
    with pytest.raises(ValueError):
        trajectory_hash([(1, event_of("x", math.nan, at("00"), None))])


# the check of a replay artifact


def lines_of(dialect: str = "event") -> list[bytes]:
    return replay(*VECTOR, dialect).splitlines(keepends=True)


def altered(line: bytes, **members: Any) -> bytes:
    return canonical_json({k: v for k, v in (json.loads(line) | members).items() if v is not ...}) + b"\n"


def test_a_replay_artifact_holds_together() -> None:
    """Both dialects, with blank lines, and without the newline at the end."""
    for dialect, hashed in zip(DIALECTS, (TRAJECTORY, None), strict=True):
        lines = lines_of(dialect)
        for text in (b"".join(lines), b"\n \r\n".join(lines), b"".join(lines).rstrip(), b"\n" + b"".join(lines)):
            assert check_replay(text) == CheckedReplay(dialect, 4, hashed)


E, T = lines_of("event"), lines_of("type")
BAD: Final[dict[str, tuple[list[bytes], int, Reason]]] = {
    "nothing": ([], 1, Reason.UNREADABLE),
    "blanks": ([b"\n", b" \t\r\n"], 1, Reason.UNREADABLE),
    "no JSON": ([E[0], E[1], b"{\n", *E[2:]], 3, Reason.UNREADABLE),
    "no object": ([E[0], b"[]\n", *E[1:]], 2, Reason.UNREADABLE),
    "not UTF-8": ([E[0], b'"\xff"\n', *E[1:]], 2, Reason.UNREADABLE),
    "no header": (E[1:], 1, Reason.SCHEMA_MISMATCH),
    "header of neither dialect": ([b'{"kind":"ReplayHeader"}\n', *E[1:]], 1, Reason.SCHEMA_MISMATCH),
    "another version": ([altered(E[0], replay_version=2), *E[1:]], 1, Reason.VERSION_MISMATCH),
    "a version that is a bool": ([altered(E[0], replay_version=True), *E[1:]], 1, Reason.VERSION_MISMATCH),
    "no version": ([altered(E[0], replay_version=...), *E[1:]], 1, Reason.VERSION_MISMATCH),
    "no start": ([E[0], *E[2:]], 2, Reason.SCHEMA_MISMATCH),
    "no end": (E[:-1], len(E) - 1, Reason.SCHEMA_MISMATCH),
    "header alone": (E[:1], 1, Reason.SCHEMA_MISMATCH),
    "end at once": ([E[0], E[-1]], 2, Reason.SCHEMA_MISMATCH),
    "header as the end": ([*E[:-1], E[0]], len(E), Reason.SCHEMA_MISMATCH),
    "the same seq twice": ([*E[:3], E[2], *E[3:]], 4, Reason.SEQ_NOT_INCREASING),
    "seqs backwards": ([*E[:2], E[3], E[2], *E[4:]], 4, Reason.SEQ_NOT_INCREASING),
    "seq 0": ([*E[:2], altered(E[2], seq=0), *E[3:]], 3, Reason.SEQ_NOT_INCREASING),
    "no seq": ([*E[:2], altered(E[2], seq=...), *E[3:]], 3, Reason.SEQ_NOT_INCREASING),
    "a seq that is a double": ([*E[:2], altered(E[2], seq=1.0), *E[3:]], 3, Reason.SEQ_NOT_INCREASING),
    "another payload": ([*E[:2], altered(E[2], payload={"source": "me"}), *E[3:]], 3, Reason.EXPECTATION_MISMATCH),
    "another hash": ([*E[:2], altered(E[2], payload_hash="sha256:00"), *E[3:]], 3, Reason.EXPECTATION_MISMATCH),
    "no hash": ([*E[:2], altered(E[2], payload_hash=...), *E[3:]], 3, Reason.UNREADABLE),
    "no payload": ([*E[:2], altered(E[2], payload=...), *E[3:]], 3, Reason.UNREADABLE),
    "no type": ([*E[:2], altered(E[2], runtime_event_type=...), *E[3:]], 3, Reason.UNREADABLE),
    "no instant": ([*E[:2], altered(E[2], t=...), *E[3:]], 3, Reason.UNREADABLE),
    "a key that is no text": ([*E[:2], altered(E[2], idempotency_key=5), *E[3:]], 3, Reason.UNREADABLE),
    "half a pair in a payload": (
        [*E[:2], altered(E[2], payload="@").replace(b"@", b"\\ud800"), E[-1]],
        3,
        Reason.UNREADABLE,
    ),
    "half a pair in a key": (
        [*E[:2], altered(E[2], idempotency_key="@").replace(b"@", b"\\ud800"), E[-1]],
        3,
        Reason.UNREADABLE,
    ),
    "a double that is none": (
        [*E[:2], altered(E[2], payload="@").replace(b'"@"', b"1e999"), E[-1]],
        3,
        Reason.UNREADABLE,
    ),
    "a result without its call": ([*E[:4], *E[5:]], 5, Reason.SCHEMA_MISMATCH),
    "a result before its call": ([*E[:4], E[5], E[4], *E[6:]], 5, Reason.SCHEMA_MISMATCH),
    "a result of another call": ([*E[:5], altered(E[5], id="other"), *E[6:]], 6, Reason.SCHEMA_MISMATCH),
    "seqs of the other dialect": ([*T[:3], T[2], *T[3:]], 4, Reason.SEQ_NOT_INCREASING),
    "a hash of the other dialect": ([*T[:2], altered(T[2], payload=1), *T[3:]], 3, Reason.EXPECTATION_MISMATCH),
    "dialects mixed": ([T[0], *E[1:]], 2, Reason.SCHEMA_MISMATCH),
}


@pytest.mark.parametrize("name", BAD)
def test_a_replay_artifact_that_does_not_hold_together_is_refused_with_its_line(name: str) -> None:
    """Everything that the page lists, and what is no such file at all."""
    lines, line, reason = BAD[name]
    refusal = check_replay(b"".join(lines))
    assert isinstance(refusal, Rejected)
    assert (refusal.reason, refusal.data) == (reason, {"line": line})
    assert refusal.message.startswith(f"line {line}: ")


def test_a_replay_artifact_that_is_cut_short_is_refused() -> None:
    """At every byte but the last, which is only the newline."""
    for dialect in DIALECTS:
        text = replay(*VECTOR, dialect)
        for size in range(len(text) - 1):
            assert isinstance(check_replay(text[:size]), Rejected), size
        assert isinstance(check_replay(text[:-1]), CheckedReplay)
