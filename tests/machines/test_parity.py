"""Parity: each fact alone is found, the gate counts, and two live runs of one script are the same run."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnlane.core.canonical import payload_hash, sha256_prefixed
from turnlane.core.ids import RunId
from turnlane.core.instants import WallNanos
from turnlane.machines import artifacts, run, shadow
from turnlane.machines.shadow import COMPONENTS, FIELDS, Identity, Kind, Parity, Severity, Side, Source, Thresholds
from turnlane.machines.shadow import Unusable as Bad

ID = "0199f3a2-7b10-7c44-9d2e-5a6b7c8d9e0f"
OTHER_ID = "0199f3a2-7b10-7c44-9d2e-000000000001"
STARTED_AT = 1_775_118_600_250_000_000

Script = Sequence[tuple[str, Any, str | None]]
SCRIPT: Script = (
    ("run.started", {"source": "runtime"}, None),
    ("tool", {"tool": "grep", "params": {"for": "x"}, "output_hash": "sha256:ab", "latency_ms": 4}, "tool-1"),
    ("step", {"score": 1.0, "of": ["a", "b"]}, None),
    ("run.finished", {"status": "succeeded"}, "end"),
)


def projection_hash(name: str, status: str, seq: int, count: int) -> str:
    body = f'{{"run_id":"{name}","status":"{status}","last_seq":{seq},"event_count":{count}}}'
    return sha256_prefixed(body.encode())


def recorded(
    script: Script = SCRIPT,
    name: str = ID,
    start: int = STARTED_AT,
    pace: Callable[[int], int] = lambda n: n * 1_000_000_000,
    dialect: str = "event",
) -> dict[str, bytes]:
    """The files of a run that followed a script, as the endpoints give them, and its manifest."""
    state, events = run.Run(RunId(name)), []
    for seq, (kind, payload, key) in enumerate(script, 1):
        at = WallNanos(start + pace(seq))
        event: Any
        if kind == "run.started":
            event = run.RunStarted(payload, at, key, run.Creation(WallNanos(start)) if seq == 1 else None)
        elif kind == "run.finished":
            event = run.RunFinished(payload, at, key)
        else:
            event = run.RunNoted(kind, payload, at, key)
        state = run.evolve_run(state, event, seq)
        events.append((seq, event))
    last, status = len(events), state.phase.value
    summary = {
        "run_id": name,
        "status": status,
        "last_seq": last,
        "event_count": last,
        "projection_hash": projection_hash(name, status, last, last),
    }
    checkpoint = {"topic": f"run:{name}:events", "last_seq": last, "last_event_type": script[-1][0]}
    manifest = {"run_id": name, **{f"{part}_path": f"{part}.x" for part in shadow.PARTS[Kind.RUN]}}
    return {
        "manifest": json.dumps(manifest).encode(),
        "receipt": artifacts.receipt(state, events).body,
        "replay": artifacts.replay(state, events, dialect),
        "summary": json.dumps({"summary": summary}).encode(),
        "checkpoint": json.dumps({"checkpoint": checkpoint}).encode(),
    }


def side(files: Mapping[str, bytes], kind: Kind = Kind.RUN, where: str = "here") -> Side:
    manifest = shadow.read_manifest(Source(f"{where}/manifest", files["manifest"]), kind)
    return Side(manifest, {part: Source(f"{where}/{part}", files[part]) for part in shadow.PARTS[kind]})


def compared(left: Mapping[str, bytes], right: Mapping[str, bytes], kind: Kind = Kind.RUN, **how: Any) -> Parity:
    return shadow.compare(kind, side(left, kind, "left"), side(right, kind, "right"), Thresholds(**how))


def found(parity: Parity) -> dict[str, Severity]:
    return {diff.name: diff.severity for diff in parity.diffs}


def changed(files: Mapping[str, bytes], part: str, path: Sequence[str], to: Any) -> dict[str, bytes]:
    """The files with one member of one of them set, or taken away with `...`."""
    value = json.loads(files[part])
    inner = value
    for name in path[:-1]:
        inner = inner[name]
    if to is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = to
    return {**files, part: json.dumps(value).encode()}


# each fact


BASE = recorded()
WHERE: Mapping[str, tuple[str, Sequence[str]]] = {
    "run_id": ("manifest", ["run_id"]),
    "session_id": ("receipt", ["session_id"]),
    "trajectory_hash": ("receipt", ["trajectory_hash"]),
    "receipt_event_count": ("receipt", ["event_count"]),
    "receipt_last_seq": ("receipt", ["last_seq"]),
    "summary_status": ("summary", ["summary", "status"]),
    "summary_last_seq": ("summary", ["summary", "last_seq"]),
    "summary_event_count": ("summary", ["summary", "event_count"]),
    "summary_projection_hash": ("summary", ["summary", "projection_hash"]),
    "checkpoint_last_seq": ("checkpoint", ["checkpoint", "last_seq"]),
    "checkpoint_last_event_type": ("checkpoint", ["checkpoint", "last_event_type"]),
}
SEVERITIES = {
    "run_id": "critical",
    "session_id": "critical",
    "trajectory_hash": "critical",
    "replay_hash": "warning",
    "replay_runtime_event_count": "warning",
    "receipt_event_count": "warning",
    "receipt_last_seq": "warning",
    "summary_status": "critical",
    "summary_last_seq": "critical",
    "summary_event_count": "warning",
    "summary_projection_hash": "warning",
    "checkpoint_last_seq": "critical",
    "checkpoint_last_event_type": "warning",
}
"""Written out once more: the table of the manual."""


def test_the_table_is_that_of_the_manual() -> None:
    """Names, severities and order."""
    assert [(name, severity.value) for name, severity in FIELDS.items()] == list(SEVERITIES.items())


def test_a_recording_is_the_same_as_itself() -> None:
    """With either identity there is nothing to report."""
    for identity in Identity:
        assert compared(BASE, recorded(), identity=identity).diffs == ()


@pytest.mark.parametrize("field", WHERE)
def test_each_field_alone_is_found_with_its_severity(field: str) -> None:
    """One member of one file differs, and one diff says so, whichever side it is on."""
    part, path = WHERE[field]
    other = changed(BASE, part, path, "something else")

    for left, right in ((BASE, other), (other, BASE)):
        parity = compared(left, right)
        assert found(parity) == {field: Severity(SEVERITIES[field])}
        assert "something else" in (parity.diffs[0].left, parity.diffs[0].right)


def test_a_replay_that_is_only_spelled_otherwise_is_a_warning_by_its_hash() -> None:
    """The bytes are hashed as they are."""
    other = {**BASE, "replay": BASE["replay"].replace(b'"confidence":1.0', b'"confidence": 1.0')}

    assert found(compared(BASE, other)) == {"replay_hash": Severity.WARNING}


def test_the_events_of_a_replay_are_counted_by_line_in_both_dialects() -> None:
    """A text that only holds the word is no event."""
    quotes = recorded((*SCRIPT[:1], ("note", {"event": "RuntimeEvent", "text": '"event":"RuntimeEvent"'}, None)))
    typed = recorded((*SCRIPT[:1], ("note", {"type": "RuntimeEvent"}, None)), dialect="type")
    fewer = {**BASE, "replay": b"\n".join(BASE["replay"].splitlines()[:-2]) + b"\n\n  \n"}

    assert compared(quotes, quotes).facts["replay_runtime_event_count"] == (2, 2)
    assert compared(typed, typed).facts["replay_runtime_event_count"] == (2, 2)
    assert found(compared(BASE, fewer)).keys() == {"replay_hash", "replay_runtime_event_count"}


VALUES = (3, 3.0, "3", True, 1, None, [3], {"3": 3})


@pytest.mark.parametrize("one, other", list(itertools.combinations(VALUES, 2)))
def test_facts_are_compared_as_json_values(one: Any, other: Any) -> None:
    """A number and its text are two things, and so are true and 1."""
    left = changed(BASE, "summary", ["summary", "last_seq"], one)
    right = changed(BASE, "summary", ["summary", "last_seq"], other)

    assert found(compared(left, right)).keys() == {"summary_last_seq"}
    assert compared(left, left).diffs == ()


def test_diffs_stand_in_the_order_of_the_table() -> None:
    """Whatever differs, however much of it."""
    other = BASE
    for part, path in reversed(WHERE.values()):
        other = changed(other, part, path, "x")
    other = {**other, "replay": other["replay"] + BASE["replay"].splitlines()[3] + b"\n"}

    assert list(found(compared(BASE, other))) == list(FIELDS)


# mapped identity


def live(script: Script, name: str, start: int, pace: Callable[[int], int]) -> dict[str, bytes]:
    """A live run: its id and its times are its own, and they stand in its payloads too."""
    own = [(kind, json.loads(json.dumps(payload).replace("RUN", name)), key) for kind, payload, key in script]
    return recorded(own, name, start, pace)


LIVE: Script = (
    ("run.started", {"source": "runtime"}, None),
    ("note", {"about": "RUN", "all": ["RUN", {"x": "RUN"}], "not": "in RUN"}, None),
    ("tool", {"tool": "t", "params": {"run": "RUN"}, "params_hash": "HASH", "output_hash": "o"}, "k"),
    ("run.finished", {"status": "failed"}, None),
)
WHOLE: Script = tuple(
    (kind, {name: value for name, value in payload.items() if name not in ("not", "params_hash")}, key)
    for kind, payload, key in LIVE
)


@pytest.mark.parametrize("paces", [(1_000, 7_000_003), (1_000_000_000, 1)])
def test_two_live_runs_of_one_script_are_the_same_run_when_mapped(paces: tuple[int, int]) -> None:
    """Other ids, other times, in payloads too; strict says that they differ, mapped that they do not."""
    left = live(WHOLE, ID, STARTED_AT, lambda n: n * paces[0])
    right = live(WHOLE, OTHER_ID, STARTED_AT + 86_400_000_000_123, lambda n: n * n * paces[1])

    assert {"run_id", "session_id", "trajectory_hash"} <= found(compared(left, right)).keys()
    mapped = compared(left, right, identity=Identity.MAPPED)
    assert mapped.diffs == ()
    assert mapped.facts["run_id"] == mapped.facts["session_id"] == ("run", "run")
    assert mapped.facts["summary_projection_hash"][0] == projection_hash("run", "failed", 4, 4)


def test_a_hash_of_what_was_mapped_is_mapped_with_it_and_a_wrong_one_stays() -> None:
    """`params_hash` beside `params` holds the run's id in another form."""

    def hashed(name: str, wrong: bool) -> Script:
        params = {"run": name}
        return (*SCRIPT[:1], ("tool", {"params": params, "params_hash": payload_hash([] if wrong else params)}, None))

    def pair(*wrong: bool) -> Parity:
        left, right = recorded(hashed(ID, wrong[0])), recorded(hashed(OTHER_ID, wrong[1]), OTHER_ID)
        return compared(left, right, identity=Identity.MAPPED)

    assert pair(False, False).diffs == ()
    assert found(pair(False, True)).keys() == {"trajectory_hash", "replay_hash"}


def test_an_id_inside_of_a_text_is_not_mapped() -> None:
    """Only where it is the whole text."""
    left, right = live(LIVE[:2], ID, STARTED_AT, lambda n: n), live(LIVE[:2], OTHER_ID, STARTED_AT, lambda n: n)

    assert found(compared(left, right, identity=Identity.MAPPED)).keys() == {"trajectory_hash", "replay_hash"}


def _changes(script: Script) -> dict[str, Script]:
    """Every change of one event, every exchange of two neighbours, every event less or twice."""
    changes: dict[str, Script] = {}
    for place, (kind, payload, key) in enumerate(script):
        rest = script[:place], script[place + 1 :]
        changes[f"key {place}"] = (*rest[0], (kind, payload, f"{key}-other"), *rest[1])
        changes[f"payload {place}"] = (*rest[0], (kind, {**payload, "more": 1}, key), *rest[1])
        if 0 < place < len(script) - 1:
            changes[f"type {place}"] = (*rest[0], ("other", payload, key), *rest[1])
            changes[f"less {place}"] = (*rest[0], *rest[1])
            changes[f"twice {place}"] = (*rest[0], script[place], *script[place:])
        if 0 < place < len(script) - 2:
            changes[f"order {place}"] = (*rest[0], script[place + 1], script[place], *script[place + 2 :])
    changes["end"] = (*script[:-1], ("run.finished", {"status": "canceled"}, script[-1][2]))
    return changes


@pytest.mark.parametrize("change", _changes(WHOLE))
def test_any_change_of_content_or_order_is_found_when_mapped(change: str) -> None:
    """Every change of one event, every exchange of neighbours, every event less or twice is critical."""
    left = live(WHOLE, ID, STARTED_AT, lambda n: n)
    right = live(_changes(WHOLE)[change], OTHER_ID, STARTED_AT + 5, lambda n: n * 3)

    assert found(compared(left, right, identity=Identity.MAPPED))["trajectory_hash"] is Severity.CRITICAL


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["RUN", "a", "2026-04-02T08:30:00Z", "t0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abtx"), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(JSON, max_size=4), st.lists(JSON, max_size=4))
def test_mapped_parity_is_equality_of_scripts(one: list[Any], other: list[Any]) -> None:
    """Of two scripts that name their own run, with instants that are the same on both sides or not there at all."""
    timeless = [json.loads(json.dumps(script).replace('"t":', '"u":')) for script in (one, other)]
    scripts = [(*SCRIPT[:1], *(("note", payload, None) for payload in script)) for script in timeless]
    left = live(scripts[0], ID, STARTED_AT, lambda n: n * 1_000)
    right = live(scripts[1], OTHER_ID, STARTED_AT + 77, lambda n: n * 2_000)

    parity = compared(left, right, identity=Identity.MAPPED)

    assert (parity.diffs == ()) == (payload_hash(scripts[0]) == payload_hash(scripts[1]))


def test_instants_are_ranked_as_instants_whatever_their_spelling() -> None:
    """`Z` and `+00:00` are one instant; two that were one on the other side are a change of order."""
    spelled = (
        *SCRIPT[:1],
        ("note", {"t": "2026-04-02T08:30:05Z", "created_at": "2026-04-02T08:30:05.000+00:00"}, None),
    )
    otherwise = (*SCRIPT[:1], ("note", {"t": "2026-04-02T08:30:05+00:00", "created_at": "2026-04-02T08:30:05Z"}, None))
    apart = (*SCRIPT[:1], ("note", {"t": "2026-04-02T08:30:05Z", "created_at": "2026-04-02T08:30:06Z"}, None))
    other = (*SCRIPT[:1], ("note", {"t": "tomorrow", "created_at": 5}, None))

    def mapped(left: Script, right: Script) -> set[str]:
        return set(found(compared(recorded(left), recorded(right), identity=Identity.MAPPED)))

    assert mapped(spelled, otherwise) == set()
    assert mapped(spelled, apart) == mapped(spelled, other) == {"trajectory_hash", "replay_hash"}


def test_a_side_whose_own_ids_differ_keeps_them() -> None:
    """The manifest names another run than the receipt: nothing is papered over."""
    other = changed(BASE, "receipt", ["session_id"], OTHER_ID)

    parity = compared(BASE, other, identity=Identity.MAPPED)

    assert found(parity).keys() == {"run_id", "session_id"}


def test_a_projection_hash_that_is_wrong_stays_wrong_when_mapped() -> None:
    """It is computed anew only where it was right."""
    other = changed(BASE, "summary", ["summary", "projection_hash"], "sha256:00")

    assert found(compared(BASE, other, identity=Identity.MAPPED)).keys() == {"summary_projection_hash"}


@pytest.mark.parametrize(
    "broken, file, member",
    [
        (recorded(dialect="type"), "right/replay", "event"),
        (changed(BASE, "receipt", ["trajectory_hash"], "sha256:00"), "right/receipt", "trajectory_hash"),
        ({**BASE, "replay": b"".join(BASE["replay"].splitlines(keepends=True)[:-1])}, "right/replay", ""),
        ({**BASE, "replay": BASE["replay"].replace(b'"score":1.0', b'"score":2.0')}, "right/replay", ""),
    ],
)
def test_mapped_takes_only_a_replay_that_proves_its_receipt(
    broken: Mapping[str, bytes], file: str, member: str
) -> None:
    """Dialect event, whole, and of the trajectory that the receipt says: else there is no answer."""
    with pytest.raises(Bad) as error:
        compared(BASE, broken, identity=Identity.MAPPED)

    assert (error.value.file, error.value.member) == (file, member)
    assert compared(BASE, broken).diffs  # strict compares it as it stands


# delivery


def delivery(**parts: Any) -> dict[str, bytes]:
    """The files of a delivery, and its manifest."""
    window = {"topic": "run:1:events", "topic_class": "run", "oldest_sequence": 1, "head_sequence": 9, "depth": 3}
    values: dict[str, Any] = {
        "control_status": {"data": {"service": "s", "memberships": [1]}, "at": "x"},
        "control_route_split_status": {"data": {"mode": "rust"}},
        "khala_poll": {"messages": [{"sequence": 1, "published_at": "now"}], "next": 1},
        "khala_metrics": {"driver": "memory", "topic_windows": [{**window, "topic": "b"}, window], "polls": 4},
        **parts,
    }
    manifest = {"scenario_id": "s-1", **{f"{part}_path": part for part in COMPONENTS}}
    return {"manifest": json.dumps(manifest).encode(), **{k: json.dumps(v).encode() for k, v in values.items()}}


ALIKE = delivery(
    control_status={"at": "x", "data": {"service": "s"}},
    khala_poll={"messages": [{"sequence": 1, "published_at": "later"}], "next": 1},
    khala_metrics={
        "driver": "memory",
        "topic_windows": [
            {"topic": "b", "topic_class": "run", "oldest_sequence": 1, "head_sequence": 9},
            {"topic": "run:1:events", "topic_class": "run", "oldest_sequence": 1, "head_sequence": 9, "depth": 0},
        ][::-1],
        "polls": 99,
    },
)
UNLIKE = {
    "control_status": {"data": {"service": "other"}, "at": "x"},
    "control_route_split_status": {"data": {"mode": "legacy"}},
    "khala_poll": {"messages": [{"sequence": 2, "published_at": "now"}], "next": 1},
    "khala_metrics": {"driver": "nats", "topic_windows": []},
}


def test_what_differs_between_any_two_moments_is_no_difference() -> None:
    """Memberships, instants of publication, counters, the order of windows and of members."""
    assert compared(delivery(), ALIKE, Kind.DELIVERY).diffs == ()


@pytest.mark.parametrize("component", COMPONENTS)
def test_each_component_alone_is_found_with_its_severity(component: str) -> None:
    """The report says which, with both hashes, among all that were compared."""
    parity = compared(delivery(), delivery(**{component: UNLIKE[component]}), Kind.DELIVERY)
    told = shadow.report(parity, "now")

    severity = "critical" if component in ("control_status", "khala_poll") else "warning"
    assert found(parity) == {component: Severity(severity)}
    assert told["schema"] == "openagents.shadow.control_khala_parity.v1"
    assert told["scenario_id"] == "s-1"
    assert [row["component"] for row in told["comparisons"]] == list(COMPONENTS)
    assert [row["component"] for row in told["comparisons"] if not row["matched"]] == [component]
    row = next(row for row in told["comparisons"] if row["component"] == component)
    assert told["diffs"][0] | {"message": ""} == {
        "severity": severity,
        "component": component,
        "field": "$",
        "legacy": row["legacy_hash"],
        "rust": row["rust_hash"],
        "message": "",
    }
    assert row["legacy_hash"] != row["rust_hash"]


def test_two_scenarios_are_not_compared() -> None:
    """The answer would say nothing about either."""
    other = {**delivery(), "manifest": delivery()["manifest"].replace(b"s-1", b"s-2")}

    with pytest.raises(Bad, match=r"right/manifest: scenario_id: "):
        compared(delivery(), other, Kind.DELIVERY)


# what cannot be read


def _without() -> list[tuple[Kind, Mapping[str, bytes], str, str]]:
    """Every file of both kinds with each member that is read taken away, and where it is said."""
    rows = []
    for name in ("run_id", *(f"{part}_path" for part in shadow.PARTS[Kind.RUN])):
        rows.append((Kind.RUN, changed(BASE, "manifest", [name], ...), "manifest", name))
    for part, path in list(WHERE.values())[1:]:
        rows.append((Kind.RUN, changed(BASE, part, path, ...), part, ".".join(path)))
    for part in ("summary", "checkpoint"):
        rows.append((Kind.RUN, changed(BASE, part, [part], ...), part, part))
        rows.append((Kind.RUN, changed(BASE, part, [part], 3), part, part))
    for name in ("scenario_id", *(f"{part}_path" for part in COMPONENTS)):
        rows.append((Kind.DELIVERY, changed(delivery(), "manifest", [name], ...), "manifest", name))
        rows.append((Kind.DELIVERY, changed(delivery(), "manifest", [name], ""), "manifest", name))
        rows.append((Kind.DELIVERY, changed(delivery(), "manifest", [name], 4), "manifest", name))
    for part, name in (("khala_poll", "messages"), ("khala_metrics", "topic_windows"), ("khala_metrics", "driver")):
        rows.append((Kind.DELIVERY, changed(delivery(), part, [name], ...), part, name))
    for part, name in (("khala_poll", "messages"), ("khala_metrics", "topic_windows")):
        for value in ({}, None, [1], ["x"]):
            rows.append((Kind.DELIVERY, changed(delivery(), part, [name], value), part, name))
    for name in shadow.WINDOW:
        window = {"topic": 1, "topic_class": 1, "oldest_sequence": 1, "head_sequence": 1}
        del window[name]
        files = changed(delivery(), "khala_metrics", ["topic_windows"], [window])
        rows.append((Kind.DELIVERY, files, "khala_metrics", f"topic_windows[0].{name}"))
    return rows


@pytest.mark.parametrize("kind, files, part, member", _without())
def test_a_missing_member_is_no_answer_and_is_named(
    kind: Kind, files: Mapping[str, bytes], part: str, member: str
) -> None:
    """Incomplete is not different: it is unusable, on either side, and file and member are told."""
    good = BASE if kind is Kind.RUN else delivery()
    for left, right, where in ((good, files, "right"), (files, good, "left")):
        with pytest.raises(Bad) as error:
            compared(left, right, kind)
        assert (error.value.file, error.value.member) == (f"{where}/{part}", member)


NOT_JSON = [b"", b"{", b"[1", b'{"a":NaN}', b'{"a":"\xff"}', b'{"a":"\\ud800"}', b"[" * 100_000, b'{"a":1e999}', b"nul"]


@pytest.mark.parametrize("text", NOT_JSON)
@pytest.mark.parametrize("part", ["manifest", *shadow.PARTS[Kind.RUN]])
def test_what_is_not_json_is_no_answer(part: str, text: bytes) -> None:
    """In every file, every line of a replay included."""
    if part == "replay":
        broken = [BASE["replay"] + text + b"\n"] if text else []
    else:
        broken = [text]
    for data in broken:
        with pytest.raises(Bad) as error:
            compared(BASE, {**BASE, part: data})
        assert error.value.file == f"right/{part}"


@pytest.mark.parametrize("text", [b"3", b"[]", b'"x"', b"null"])
@pytest.mark.parametrize("part", ["manifest", *shadow.PARTS[Kind.RUN]])
def test_json_that_is_no_object_is_no_answer(part: str, text: bytes) -> None:
    """A line of a replay is an object too."""
    with pytest.raises(Bad, match="JSON object"):
        compared(BASE, {**BASE, part: text})


@given(st.integers(0, 3), st.sampled_from(shadow.PARTS[Kind.RUN]), st.data())
def test_any_damage_gives_a_report_or_no_answer_and_nothing_else(_: int, part: str, data: st.DataObject) -> None:
    """One byte of one file is changed, under both identities: no other exception comes out."""
    text = bytearray(BASE[part])
    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    for identity in Identity:
        try:
            shadow.report(compared(BASE, {**BASE, part: bytes(text)}, identity=identity), "now")
        except Bad as error:
            assert error.file


# thresholds and the gate


@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize("most", range(4))
@pytest.mark.parametrize("warnings", range(4))
@pytest.mark.parametrize("critical", range(4))
def test_the_gate_for_every_count_and_threshold(critical: int, warnings: int, most: int, blocks: bool) -> None:
    """Critical first, then warnings, else allow; what does not block counts neither way."""
    allowed, reason = shadow.gate(critical, warnings, Thresholds(most, blocks))

    assert allowed == ((not critical or not blocks) and warnings <= most)
    assert reason.startswith(f"{critical} critical" if blocks and critical else f"{warnings} warning")


def test_the_reasons_of_the_gate_are_numbers_that_people_read() -> None:
    """As the manual shows them."""
    assert shadow.gate(0, 1, Thresholds()) == (False, "1 warning, 0 allowed")
    assert shadow.gate(0, 2, Thresholds(3)) == (True, "2 warnings, 3 allowed")
    assert shadow.gate(2, 9, Thresholds()) == (False, "2 critical, 0 allowed")
    assert shadow.gate(2, 0, Thresholds(0, False)) == (True, "0 warnings, 0 allowed; 2 critical, not counted")


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("severity", Severity)
def test_a_severity_of_the_thresholds_is_the_one_that_counts(field: str, severity: Severity) -> None:
    """Ignored is still listed, and counted apart."""
    other = BASE
    for part, path in WHERE.values():
        other = changed(other, part, path, "x")
    other = {**other, "replay": other["replay"] + BASE["replay"].splitlines()[3] + b"\n"}

    told = shadow.report(compared(BASE, other, severity={field: severity}), "now")

    words = {**SEVERITIES, field: severity.value}
    assert {row["field"]: row["severity"] for row in told["diffs"]} == words
    count = {word: list(words.values()).count(word) for word in ("critical", "warning", "ignore")}
    assert told["totals"] == {
        "critical": count["critical"],
        "warning": count["warning"],
        "ignored": count["ignore"],
    }


TOML = b"""
schema = "turnlane.shadow_thresholds.v1"
max_warnings = 2
block_on_critical = false
identity = "mapped"

[severity]
replay_hash = "ignore"
receipt_last_seq = "critical"
"""


def test_a_thresholds_file_is_toml_or_json() -> None:
    """Both say the same; what is left out has its default."""
    import tomllib

    for data in (TOML, b"\n " + json.dumps(tomllib.loads(TOML.decode())).encode()):
        assert shadow.read_thresholds(Source("t", data), Kind.RUN) == Thresholds(
            2,
            False,
            {"replay_hash": Severity.IGNORE, "receipt_last_seq": Severity.CRITICAL},
            Identity.MAPPED,
        )
    least = b'schema = "turnlane.shadow_thresholds.v1"'
    assert shadow.read_thresholds(Source("t", least), Kind.RUN) == Thresholds()


@pytest.mark.parametrize(
    "line, member",
    [
        ("", "schema"),
        ('schema = "other"', "schema"),
        ('schema = "turnlane.shadow_thresholds.v2"', "schema"),
        ("max_warnings = -1", "max_warnings"),
        ("max_warnings = true", "max_warnings"),
        ("max_warnings = 1.0", "max_warnings"),
        ('max_warnings = "1"', "max_warnings"),
        ("block_on_critical = 1", "block_on_critical"),
        ('block_on_critical = "true"', "block_on_critical"),
        ('identity = "loose"', "identity"),
        ("identity = 3", "identity"),
        ("max_warning = 3", "max_warning"),
        ("severity = 3", "severity"),
        ('severity.replay_hsh = "ignore"', "severity.replay_hsh"),
        ('severity.khala_poll = "ignore"', "severity.khala_poll"),
        ('severity.replay_hash = "none"', "severity.replay_hash"),
        ("severity.replay_hash = [1]", "severity.replay_hash"),
        ("= 3", ""),
    ],
)
def test_a_threshold_that_is_not_understood_is_refused(line: str, member: str) -> None:
    """A slip in a name would change the gate unseen."""
    schema = "" if not line or line.startswith("schema") else 'schema = "turnlane.shadow_thresholds.v1"\n'
    with pytest.raises(Bad) as error:
        shadow.read_thresholds(Source("t", f"{schema}{line}\n".encode()), Kind.RUN)

    assert (error.value.file, error.value.member) == ("t", member)


def test_components_of_a_delivery_have_severities_too() -> None:
    """By their names."""
    data = TOML.replace(b"replay_hash", b"khala_poll").replace(b"receipt_last_seq", b"khala_metrics")

    assert set(shadow.read_thresholds(Source("t", data), Kind.DELIVERY).severity) == {"khala_poll", "khala_metrics"}


def test_the_report_of_a_run_is_that_of_the_manual() -> None:
    """Members and their order."""
    other = {**BASE, "replay": BASE["replay"] + b"\n"}

    told = shadow.report(compared(BASE, other), "2026-04-02T09:00:00+00:00")

    assert json.dumps(told) == json.dumps(
        {
            "schema": "openagents.runtime.shadow_parity.v1",
            "generated_at": "2026-04-02T09:00:00+00:00",
            "identity": "strict",
            "legacy_run_id": ID,
            "rust_run_id": ID,
            "diffs": [
                {
                    "severity": "warning",
                    "field": "replay_hash",
                    "legacy": sha256_prefixed(BASE["replay"]),
                    "rust": sha256_prefixed(other["replay"]),
                    "message": "replay_hash is not the same on both sides",
                }
            ],
            "totals": {"critical": 0, "warning": 1, "ignored": 0},
            "thresholds": {"max_warnings": 0, "block_on_critical": True},
            "gate": {"decision": "block", "reason": "1 warning, 0 allowed"},
        }
    )
