"""Log lines: one per observation, fields in order, nothing of content, and a writer that never waits."""

from __future__ import annotations

import io
import json
import os
import threading
from typing import Any

from attrs import evolve, frozen
from hypothesis import given
from hypothesis import strategies as st

from turnlane.core.instants import Instant, WallInstant
from turnlane.core.observations import ActorFell, AgentFailed, NodeDisowned
from turnlane.core.reasons import Reason
from turnlane.machines.pressure import FlowHold, LaneShed, PressureHigh
from turnlane.observe import AccessDenied, HttpServed, Observers, ServingFailed, TurnEnded
from turnlane.observe.logs import FIELDS, LogLines, StderrWriter


class HandClock:
    def __init__(self) -> None:
        self.ms = 0

    def now(self) -> Instant:
        return Instant(self.ms * 1_000_000)

    def wall(self) -> WallInstant:
        return WallInstant(1_795_252_800_000_000 + self.ms * 1_000)


def logging(**more: Any) -> tuple[LogLines, list[str], HandClock]:
    lines: list[str] = []
    clock = HandClock()
    return LogLines(lines.append, clock, lambda: "inc_1", "r-1", **{"level": "debug", **more}), lines, clock


ENDED = TurnEnded("s-1", "t-9", "d-1", "failed", Reason.NODE_TIMEOUT_OR_FAILURE, 12.3456, None, 4, 160)


def test_a_line_has_its_fields_in_the_order_of_the_manual() -> None:
    log, lines, _ = logging()
    log.observe(ENDED)
    said = json.loads(lines[0])
    assert said == {
        "at": "2026-11-21T09:20:00.000000Z",
        "level": "error",
        "event": "turn.closed",
        "reason": "node_timeout_or_failure",
        "runtime": "r-1",
        "session": "s-1",
        "turn": "t-9",
        "dispatch": "d-1",
        "epoch": 4,
        "seq": 160,
        "duration_ms": 12.346,
        "message": "outcome=failed",
    }
    assert list(said) == [name for name in FIELDS if name in said]


def test_a_terminal_gets_text_for_people() -> None:
    log, lines, _ = logging(human=True)
    log.observe(NodeDisowned("s-1", "t-9", "default"))
    assert lines == [
        "09:20:00.000 warning  node.disowned session=s-1 turn=t-9 an agent did not end within the ladder agent=default"
    ]


def test_levels_below_the_chosen_one_are_not_written() -> None:
    log, lines, _ = logging(level="warning")
    log.observe(evolve(ENDED, outcome="completed"))
    log.observe(HttpServed("/metrics", "GET", 200, 0.1))
    log.observe(FlowHold("s", "data"))
    log.observe(LaneShed("default/session/s", "data", Reason.SHED, 3))
    assert [json.loads(line)["event"] for line in lines] == ["lane.shed"]
    assert json.loads(lines[0])["count"] == 3


def _deep(secret: str) -> None:
    local = secret * 2
    try:
        raise KeyError(secret)
    except KeyError as error:
        raise ValueError(f"{secret} {local}") from error


def _raised(secret: str, grouped: bool = False) -> Exception:
    try:
        _deep(secret)
    except ValueError as error:
        return ExceptionGroup(secret, [error]) if grouped else error
    raise AssertionError


def test_errors_are_told_by_types_and_frames_with_an_incident_and_never_by_text_or_locals() -> None:
    for human in (False, True):
        for error in (_raised("sesame"), _raised("sesame", grouped=True)):
            log, lines, _ = logging(human=human)
            log.observe(AgentFailed("s-1", "t-9", error))
            log.observe(ActorFell("s-1", Reason.INTERNAL, error))
            log.observe(ServingFailed("inc_7", "http", error))
            assert "sesame" not in "".join(lines)
            assert all("_deep" in line and "ValueError" in line and "KeyError" in line for line in lines)
            assert ["inc_1" in line for line in lines] == [True, True, False] and "inc_7" in lines[2]


def test_an_actor_that_fell_without_an_error_is_told_too() -> None:
    log, lines, _ = logging()
    log.observe(ActorFell("s-1", Reason.STALE_EPOCH_REJECT, None))
    assert json.loads(lines[0])["reason"] == "stale_epoch_reject" and "error" not in json.loads(lines[0])


@given(st.text())
def test_no_line_holds_a_control_character_or_grows_without_bound(text: str) -> None:
    for human in (False, True):
        log, lines, _ = logging(human=human)
        log.observe(AccessDenied("operator", f"/{text}\x1b[31m\n\x00\u202e", Reason.INVALID_TOKEN, text * 100, text))
        assert lines[0].isprintable()
        assert len(lines[0]) < 8_000


def test_equal_warnings_are_written_once_a_second_and_the_next_says_how_many_were_left_out() -> None:
    log, lines, clock = logging()
    for ms in (0, 10, 999, 1_000, 1_001, 5_000):
        clock.ms = ms
        log.observe(AccessDenied("operator", "/metrics", Reason.INVALID_TOKEN, None))
        log.observe(NodeDisowned(f"s-{ms}", "t", "a"))
    denied = [json.loads(line) for line in lines if "access.denied" in line]
    assert [one.get("suppressed") for one in denied] == [None, 2, 1]
    assert sum("node.disowned" in line for line in lines) == 6, "of other sessions: not equal"


def test_what_is_suppressed_is_remembered_within_a_bound() -> None:
    log, _, _ = logging()
    for number in range(10_000):
        log.observe(PressureHigh(f"default/session/{number}", "data", 192))
    assert len(log._written) <= 4_096


def test_an_unknown_value_gives_its_name_and_nothing_else() -> None:
    @frozen
    class Strange:
        input: str = "sesame"

    log, lines, _ = logging()
    log.observe(Strange())
    assert json.loads(lines[0])["message"] == "Strange" and "sesame" not in lines[0]


def test_the_daemon_s_own_words_are_lines_too() -> None:
    log, lines, _ = logging()
    log.say("warning", "daemon.started", "auth is off", count=2)
    said = json.loads(lines[0])
    assert (said["event"], said["count"], said["message"]) == ("daemon.started", 2, "auth is off")


def test_the_writer_writes_every_line_in_order_and_closes() -> None:
    file = io.StringIO()
    writer = StderrWriter(file)
    for number in range(1_000):
        writer.write(str(number))
    writer.close()
    assert file.getvalue().split() == [str(number) for number in range(1_000)]


def test_a_pipe_that_nobody_reads_holds_up_nothing() -> None:
    read, write = os.pipe()
    with os.fdopen(write, "w") as file:
        writer = StderrWriter(file, lines_max=100)
        for number in range(2_000):
            writer.write(f"{number} " + "x" * 1_000)
        assert writer.shed > 0
        writer.close(0.01)
        found: list[bytes] = []
        drained = threading.Thread(target=lambda: found.extend(iter(lambda: os.read(read, 65_536), b"")))
        drained.start()
        writer.close(5)
    drained.join(5)
    os.close(read)
    text = b"".join(found)
    assert b"1999 " in text and b"log.shed" in text


def test_what_one_observer_raises_keeps_the_others_from_nothing() -> None:
    class Broken:
        def observe(self, value: object) -> None:
            raise ZeroDivisionError

    log, lines, _ = logging()
    observers = Observers(Broken(), log)
    try:
        observers.observe(ENDED)
    except ZeroDivisionError:
        pass
    else:
        raise AssertionError("the error is for the runtime to count")
    assert len(lines) == 1
