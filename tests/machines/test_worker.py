"""A worker without a runtime: every move of its table, every sequence of commands up to a length, every bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Final

import msgspec
import pytest
from attrs import evolve as having
from attrs import frozen

from turnlane.codec import Codec, encode_json
from turnlane.core.instants import NANOS_PER_MS, Instant, WallInstant, wall_after_ms, wall_text
from turnlane.core.limits import DEFAULT_LIMITS
from turnlane.core.owners import USER_ID_MAX, Owner, owner_of, owner_of_texts
from turnlane.core.reasons import Reason, Rejected
from turnlane.core.step import DUE_NEVER, DUE_NOW, Step
from turnlane.machines import worker as rules
from turnlane.machines.session_state import TimerFired
from turnlane.machines.turn import ArmTimer, DropTimer, Stamp
from turnlane.machines.worker import Status, Worker

CODEC: Final = Codec()
DECODE: Final = msgspec.json.Decoder(Worker).decode
LIMITS: Final = DEFAULT_LIMITS
WALL: Final = WallInstant(1_795_000_000_000_000)
STALE_MS: Final = LIMITS.worker_heartbeat_stale_ms
ADA: Final = Owner(7)
EVE: Final = Owner(8)


@frozen
class World:
    """A worker, its log, and the wall clock. Frozen, so that one world has many futures."""

    worker: Worker = Worker()
    log: tuple[Any, ...] = ()
    wall: WallInstant = WALL

    def later(self, ms: int) -> World:
        return having(self, wall=wall_after_ms(self.wall, ms))

    def do(self, command: Any) -> tuple[Any, World]:
        """Decide, write, read back, fold: what a corridor does."""
        answer = rules.decide(self.worker, command, Stamp(Instant(0), self.wall, len(self.log), 1), LIMITS)
        if not isinstance(answer, Step):
            return answer, self
        worker, log = self.worker, self.log
        for event in answer.events:
            record = CODEC.kept(event, len(log) + 1, 1, Instant(0), self.wall)
            log = (*log, CODEC.decode(record))
            worker = rules.evolve(worker, log[-1], len(log))
        return answer, World(worker, log, self.wall)

    def after(self, *commands: Any) -> World:
        world = self
        for command in commands:
            answer, world = world.do(command)
            assert isinstance(answer, Step), answer
        return world

    def names(self) -> list[str]:
        return [type(event).__name__.removeprefix("Worker").lower() for event in self.log]


def register(owner: Owner = ADA, **more: Any) -> rules.RegisterWorker:
    return rules.RegisterWorker("lab:east-2", owner, **more)


def say(status: str, owner: Owner = ADA) -> rules.SetWorkerStatus:
    return rules.SetWorkerStatus(owner, Status(status))


TIMER: Final = TimerFired("stall")
BEAT: Final = rules.Heartbeat(ADA)
STALL: Final = rules.ReportStall(ADA, "unplugged")
RECOVERY: Final = rules.ReportRecovery(ADA, "plugged in")

UNKNOWN: Final = World()
RUNNING: Final = World().after(register())
PLACES: Final[Mapping[str, World]] = {
    "unknown": UNKNOWN,
    "running": RUNNING,
    "stopping": RUNNING.after(say("stopping")),
    "stopped": RUNNING.after(say("stopped")),
    "failed": RUNNING.after(say("failed")),
    "starting": RUNNING.after(say("failed"), say("starting")),
}

# the table


MOVES: Final = """
          starting  running   stopping  stopped  failed
starting  =         running   stopping  -        failed
running   -         =         stopping  stopped  failed
stopping  -         -         =         stopped  failed
stopped   starting  running   -         =        -
failed    starting  running   -         -        =
"""
"""The table of the page: what a worker says (columns) in each status (rows)."""


def moves() -> list[tuple[str, str, str]]:
    header, *lines = (line.split() for line in MOVES.splitlines() if line)
    return [(line[0], said, word) for line in lines for said, word in zip(header, line[1:], strict=True)]


@pytest.mark.parametrize(("place", "said", "expected"), moves())
def test_a_status_moves_as_the_table_says(place: str, said: str, expected: str) -> None:
    """Legal moves are kept, `=` too; every other is refused with what would be legal, and changes nothing."""
    world = PLACES[place].later(5)
    answer, later = world.do(say(said))

    if expected == "-":
        assert answer.reason is Reason.ILLEGAL_IN_PHASE and answer.data == {"status": place}
        assert later is world
        return
    assert later.worker.status.value == (place if expected == "=" else expected)
    assert later.worker.last_seq == world.worker.last_seq + 1
    assert (later.log[-1].status, later.log[-1].reason) == (later.worker.status.value, "status_transition")


EVENTS: Final[Mapping[type, Any]] = {
    rules.WorkerStarted: rules.WorkerStarted(
        wall_text(WALL), "", "", "lab:east-2", "register", ADA, None, None, "in_memory", None
    ),
    rules.WorkerHeartbeat: rules.WorkerHeartbeat(wall_text(WALL), "", "", None),
    **{kind: kind(wall_text(WALL), "", "", "word") for kind in rules.SAYS.values()},  # type: ignore[call-arg]
    rules.WorkerAssigned: rules.WorkerAssigned(wall_text(WALL), "", "", "lab:east-2", "d-1", 1),
    rules.WorkerReleased: rules.WorkerReleased(wall_text(WALL), "", "", "lab:east-2", "d-1", "completed"),
    rules.WorkerStalled: rules.WorkerStalled(wall_text(WALL), "", "", "lab:east-2", "heartbeat_stale"),
    rules.WorkerRecovered: rules.WorkerRecovered(wall_text(WALL), "", "", "lab:east-2", "heartbeat"),
}


@pytest.mark.parametrize("kind", EVENTS)
@pytest.mark.parametrize("place", PLACES)
def test_the_worker_folds_exactly_the_moves_of_its_table(place: str, kind: type) -> None:
    """An event that LEGAL lists leads to the status it names; every other is a corrupt log."""
    worker = PLACES[place].worker
    row = rules.LEGAL[worker.status if worker.known else None]
    if kind not in row:
        with pytest.raises(KeyError):
            rules.evolve(worker, EVENTS[kind], 9)
        return
    assert rules.evolve(worker, EVENTS[kind], 9).status is row[kind]


def test_the_table_has_a_place_for_every_event() -> None:
    assert set(EVENTS) == {kind for row in rules.LEGAL.values() for kind in row}
    assert {
        status: row[kind] for status, row in rules.LEGAL.items() for kind in row if kind is rules.WorkerStarted
    } == {
        None: Status.RUNNING,
        Status.STARTING: Status.STARTING,
        Status.RUNNING: Status.RUNNING,
        Status.STOPPING: Status.STOPPING,
        Status.STOPPED: Status.RUNNING,
        Status.FAILED: Status.RUNNING,
    }


ANSWERS: Final = """
                unknown    starting          running           stopping          stopped           failed
register        started    started           started           started           started           started
another's       started    owner_mismatch    owner_mismatch    owner_mismatch    owner_mismatch    owner_mismatch
heartbeat       not_found  heartbeat         heartbeat         heartbeat         heartbeat         heartbeat
eve's beat      not_found  owner_mismatch    owner_mismatch    owner_mismatch    owner_mismatch    owner_mismatch
eve's status    not_found  owner_mismatch    owner_mismatch    owner_mismatch    owner_mismatch    owner_mismatch
eve's stall     not_found  owner_mismatch    owner_mismatch    owner_mismatch    owner_mismatch    owner_mismatch
eve's recovery  not_found  owner_mismatch    owner_mismatch    owner_mismatch    owner_mismatch    owner_mismatch
assign          not_found  assigned          assigned          assigned          assigned          assigned
release         not_found  duplicate         duplicate         duplicate         duplicate         duplicate
early timer     nothing    armed             armed             armed             nothing           nothing
late timer      nothing    stalled           stalled           stalled           nothing           nothing
other timer     nothing    nothing           nothing           nothing           nothing           nothing
stall           not_found  stalled           stalled           stalled           illegal_in_phase  illegal_in_phase
operator stall  not_found  stalled           stalled           stalled           illegal_in_phase  illegal_in_phase
recovery        not_found  duplicate         duplicate         duplicate         duplicate         duplicate
"""

COMMANDS: Final[Mapping[str, Any]] = {
    "register": register(),
    "another's": register(EVE),
    "heartbeat": BEAT,
    "eve's beat": rules.Heartbeat(EVE),
    "eve's status": say("running", EVE),
    "eve's stall": rules.ReportStall(EVE, "x"),
    "eve's recovery": rules.ReportRecovery(EVE, "x"),
    "assign": rules.AssignClaim("d-1", 1),
    "release": rules.ReleaseClaim("d-1", 1, "completed"),
    "early timer": TIMER,
    "late timer": TIMER,
    "other timer": TimerFired("sweep"),
    "stall": STALL,
    "operator stall": rules.ReportStall(None, "silent"),
    "recovery": RECOVERY,
}


def answers() -> list[tuple[str, str, str]]:
    header, *lines = (line for line in ANSWERS.splitlines() if line)
    found = []
    for line in lines:
        found += [(line[:16].strip(), *pair) for pair in zip(header.split(), line[16:].split(), strict=True)]
    return found


@pytest.mark.parametrize(("name", "place", "expected"), answers())
def test_every_command_is_answered_in_every_status(name: str, place: str, expected: str) -> None:
    """Kept, a duplicate, nothing, or refused with the reason of the table; what is refused changes nothing."""
    world = PLACES[place].later(STALE_MS + 1 if name == "late timer" else STALE_MS)
    answer, later = world.do(COMMANDS[name])

    if isinstance(answer, Rejected):
        assert answer.reason.value == expected and answer.message and later is world
    elif expected in ("nothing", "armed", "duplicate"):
        assert answer.events == () and later.worker == world.worker
        assert answer.effects == ((ArmTimer("stall", after_ms=1),) if expected == "armed" else ())
        assert (answer.answer is not None and answer.answer.duplicate) is (expected == "duplicate")
    else:
        assert later.names()[len(world.log) :] == [expected]
        assert answer.answer == rules.WorkerAnswer("lab:east-2", later.worker.last_seq)


# every sequence


CHOICES: Final[dict[str, Callable[[World, int], Any]]] = {
    "register": lambda world, n: register(metadata={f"k{n}": n}),
    "beat": lambda world, n: rules.Heartbeat(ADA, {"n": n, "none": None}),
    "stranger": lambda world, n: rules.Heartbeat(EVE),
    "timer": lambda world, n: TIMER,
    "stall": lambda world, n: STALL,
    "recovery": lambda world, n: RECOVERY,
    "assign": lambda world, n: rules.AssignClaim("d-1", n),
    "release": lambda world, n: rules.ReleaseClaim("d-1", max(world.worker.assigned.values(), default=0), "failed"),
    **{f"say {status.value}": lambda world, n, s=status: rules.SetWorkerStatus(ADA, s) for status in Status},
}


def judge(world: World, answer: Any, before: World) -> None:
    """What holds after any command whatever."""
    worker = world.worker
    if isinstance(answer, Rejected):
        assert world.worker is before.worker and world.log is before.log
        return
    assert worker.last_seq == len(world.log)
    assert worker.stalled_since is None or worker.status not in rules.ENDED
    assert (worker.stopped_at is not None) is (worker.status in rules.ENDED)
    brackets = [name for name in world.names() if name in ("stalled", "recovered", "stopped", "failed")]
    for one, two in pairwise(brackets):
        assert (one, two) != ("stalled", "stalled"), "one stall an absence"
        assert two != "recovered" or one == "stalled", "one recovery an absence"
    for event in answer.events:
        told = event.heartbeat_state
        assert (
            told == "fresh"
            if isinstance(event, rules.WorkerHeartbeat | rules.WorkerRecovered)
            and (event.status not in ("stopped", "failed"))
            else told in ("fresh", "stale", "stopped", "failed")
        )
    if answer.events:
        assert answer.events[-1].status == worker.status.value
        assert answer.events[-1].heartbeat_state == rules.liveness(worker, world.wall, LIMITS).heartbeat_state


def timer_after(armed: bool, answer: Any) -> bool:
    for effect in getattr(answer, "effects", ()):
        if isinstance(effect, ArmTimer | DropTimer):
            armed = isinstance(effect, ArmTimer)
    return armed


def test_every_sequence_of_commands_keeps_the_rules() -> None:
    """After each command: the fold is what is served, refusals change nothing, stalls and recoveries take turns.

    Between two commands either no time passes or so much that the worker is stale. The timer is armed exactly while
    the worker may stall.
    """
    seen = 0

    def visit(world: World, armed: bool, depth: int) -> None:
        nonlocal seen
        seen += 1
        folded = Worker()
        for seq, event in enumerate(world.log, 1):
            folded = rules.evolve(folded, event, seq)
        assert folded == world.worker == DECODE(encode_json(world.worker))
        may_stall = world.worker.known and world.worker.status not in rules.ENDED and not world.worker.stalled
        assert armed is may_stall
        if depth == 3:
            return
        for wait in (0, STALE_MS + 1):
            for name, choice in CHOICES.items():
                if name == "timer" and not armed:
                    continue
                before = world.later(wait)
                answer, after = before.do(choice(before, depth + 1))
                judge(after, answer, before)
                visit(after, timer_after(armed and name != "timer", answer), depth + 1)

    visit(RUNNING, True, 0)
    assert seen > 10_000


def test_the_status_of_events_is_that_of_the_fold() -> None:
    """A live reader that folds nothing sees what one sees that folds everything."""
    world = RUNNING
    for wait, command in (
        (10, rules.AssignClaim("d-1", 1)),
        (STALE_MS, TIMER),
        (5, BEAT),
        (STALE_MS + 5, STALL),
        (1, say("running")),
        (1, rules.ReleaseClaim("d-1", 1, "expired")),
        (1, say("failed")),
        (STALE_MS * 2, BEAT),
        (1, register()),
    ):
        world = world.later(wait).after(command)
    folded = Worker()
    for seq, event in enumerate(world.log, 1):
        folded = rules.evolve(folded, event, seq)
        kind, payload = rules.live_message("lab:east-2", seq, event)
        lively = rules.liveness(folded, rules.wall_from_text(event.at), LIMITS)
        assert payload["status"] == folded.status.value and payload["latest_seq"] == seq
        assert payload["heartbeat_state"] == lively.heartbeat_state
        tag = CODEC.kept(event, seq, 1, Instant(0), WALL).type
        assert kind == tag if type(event) in rules.OWN_KINDS else kind == f"worker.{folded.status.value}"


# stalls


@pytest.mark.parametrize(
    ("age_ms", "state"), [(0, "fresh"), (STALE_MS - 1, "fresh"), (STALE_MS, "fresh"), (STALE_MS + 1, "stale")]
)
def test_a_heartbeat_is_stale_above_the_threshold_only(age_ms: int, state: str) -> None:
    """Below and at the threshold it is fresh; parts of a millisecond do not count."""
    lively = rules.liveness(RUNNING.worker, WallInstant(WALL + age_ms * 1_000 + 999), LIMITS)

    assert lively == rules.Liveness(age_ms, STALE_MS, state)


def test_liveness_of_the_silent_the_ended_and_the_early() -> None:
    """No heartbeat is missing, an ended worker says how it ended, and a clock that stepped back makes an age of 0."""
    silent = having(RUNNING.worker, last_heartbeat_at=None)

    assert rules.liveness(silent, WALL, LIMITS) == rules.Liveness(None, STALE_MS, "missing")
    for status in ("stopped", "failed"):
        assert rules.liveness(PLACES[status].worker, WALL, LIMITS).heartbeat_state == status
    assert rules.liveness(RUNNING.worker, WallInstant(WALL - 9_000_000), LIMITS).heartbeat_age_ms == 0


def test_an_absence_makes_one_stall_and_one_recovery_over_any_number_of_restarts() -> None:
    """The timer that each life arms anew finds the stall kept; the first heartbeat recovers, the second does not."""
    world = RUNNING.later(STALE_MS + 1).after(TIMER)
    for _ in range(3):
        assert not any(
            isinstance(effect, ArmTimer) for effect in rules.recovered_effects(world.worker, world.wall, LIMITS)
        )
        world = world.later(STALE_MS).after(TIMER)
    world = world.after(BEAT, BEAT).later(STALE_MS).after(TIMER, BEAT)

    assert world.names() == ["started", "stalled", "recovered", "heartbeat", "heartbeat", "heartbeat"]
    assert world.worker.stalled_since is None


def test_a_timer_that_comes_early_waits_for_the_rest() -> None:
    """Armed by the age of the wall clock plus one millisecond, whatever the monotonic clock believed."""
    world = RUNNING.later(50).after(BEAT).later(STALE_MS - 7)
    answer, after = world.do(TIMER)

    assert answer.effects == (ArmTimer("stall", after_ms=8),) and after.log == world.log
    assert after.later(8).after(TIMER).names()[-1] == "stalled"


def test_who_restarts_is_alive_and_who_ends_has_not_recovered() -> None:
    """An ended worker drops its timer and its stall without a recovery; coming back counts as a heartbeat."""
    stalled = RUNNING.later(STALE_MS + 1).after(TIMER)
    answer, stopped = stalled.later(1).do(say("stopped"))
    back = stopped.later(2).after(say("running"))

    assert answer.effects == (
        DropTimer("stall"),
        rules.TellQueue("lab:east-2", Status.STOPPED, False),
        rules.WithdrawClaims("lab:east-2", "worker_stopped"),
    )
    assert stopped.worker.stopped_at == stopped.worker.last_heartbeat_at == stopped.wall
    assert stopped.names() == ["started", "stalled", "stopped"] and stopped.worker.stalled_since is None
    assert (back.worker.stopped_at, back.worker.last_heartbeat_at) == (None, back.wall)
    again = stopped.later(9).after(say("stopped"))
    assert again.worker.stopped_at == stopped.wall, "it stopped when it stopped"


@pytest.mark.parametrize(
    ("command", "recovery"),
    [(BEAT, "heartbeat"), (register(), "register"), (say("running"), "state_transition"), (RECOVERY, "plugged in")],
)
def test_a_stalled_worker_recovers_by_what_is_heard_of_it(command: Any, recovery: str) -> None:
    """The recovery comes first and names its cause; the timer is armed anew and the queue is told."""
    world = RUNNING.later(STALE_MS + 1).after(TIMER).later(10)
    answer, after = world.do(command)

    assert isinstance(answer.events[0], rules.WorkerRecovered) and answer.events[0].recovery == recovery
    assert answer.effects == (
        ArmTimer("stall", after_ms=STALE_MS + 1),
        rules.TellQueue("lab:east-2", Status.RUNNING, False),
    )
    assert after.worker.last_heartbeat_at == world.wall


def test_going_away_is_no_recovery() -> None:
    """A stalled worker that says `stopping` stays stalled, and has no timer."""
    answer, after = RUNNING.later(STALE_MS + 1).after(TIMER).do(say("stopping"))

    assert [type(event) for event in answer.events] == [rules.WorkerStopping] and after.worker.stalled
    assert not any(isinstance(effect, ArmTimer) for effect in answer.effects)


def test_a_status_leaves_the_heartbeat_alone() -> None:
    """Among starting, running and stopping a status is a word, not a sign of life."""
    world = RUNNING.later(77)
    answer, after = world.do(say("stopping"))

    assert after.worker.last_heartbeat_at == WALL and after.worker.updated_at == world.wall
    assert answer.effects == (
        ArmTimer("stall", after_ms=STALE_MS + 1 - 77),
        rules.TellQueue("lab:east-2", Status.STOPPING, False),
    )


# after a restart


@pytest.mark.parametrize("silent_ms", [0, STALE_MS, STALE_MS * 9])
def test_nobody_stalls_in_the_first_moments_after_a_start(silent_ms: int) -> None:
    """The timer is armed for the rest of the threshold, and never for less than the grace."""
    effects = rules.recovered_effects(RUNNING.worker, wall_after_ms(WALL, silent_ms), LIMITS)
    after_ms = max(LIMITS.worker_recovery_grace_ms, STALE_MS + 1 - silent_ms)

    assert effects == (rules.TellQueue("lab:east-2", Status.RUNNING, False), ArmTimer("stall", after_ms=after_ms))


def test_a_start_wakes_the_workers_that_need_it() -> None:
    """Who may stall, is stalled, or ended with claims in hand; who ended with empty hands sleeps on."""
    holding = RUNNING.after(rules.AssignClaim("d-1", 1), say("failed"))

    assert rules.due(RUNNING.worker) == rules.due(RUNNING.after(STALL).worker) == rules.due(holding.worker) == DUE_NOW
    assert rules.due(PLACES["stopped"].worker) == rules.due(Worker()) == DUE_NEVER
    assert rules.recovered_effects(PLACES["stopped"].worker, WALL, LIMITS) == ()
    assert rules.recovered_effects(holding.worker, WALL, LIMITS)[-1] == rules.WithdrawClaims(
        "lab:east-2", "worker_failed"
    )


# claims


def test_a_claim_that_is_noted_after_the_end_of_its_worker_is_withdrawn_all_the_same() -> None:
    """It was given before; the note of it came later than the word of the worker."""
    ended = RUNNING.after(say("failed"))
    answer, held = ended.do(rules.AssignClaim("d-1", 1))
    assert answer.effects == (rules.WithdrawClaims("lab:east-2", "worker_failed"),)
    again, _ = held.do(rules.AssignClaim("d-1", 1))
    assert again.effects == ()


def test_a_claim_is_noted_once_and_only_its_own_end_releases_it() -> None:
    """Repeats and late generations are duplicates; a later generation takes the place of an earlier one."""
    world = RUNNING.after(rules.AssignClaim("d-1", 1), rules.AssignClaim("d-1", 1), rules.AssignClaim("d-1", 2))
    world = world.after(rules.AssignClaim("d-1", 1), rules.ReleaseClaim("d-1", 1, "expired"))
    assert world.names() == ["started", "assigned", "assigned"] and world.worker.assigned == {"d-1": 2}

    gone = world.after(rules.ReleaseClaim("d-1", 2, "completed"), rules.ReleaseClaim("d-1", 2, "completed"))
    assert gone.names()[3:] == ["released"] and gone.worker.assigned == {}
    answer, _ = world.do(rules.ReleaseClaim("d-1", 2, "bored"))
    assert answer.reason is Reason.INVALID_PARAMS


def test_only_a_running_worker_that_is_heard_of_and_has_room_may_claim() -> None:
    """Everyone else is `worker_not_available`, with status and stall."""
    few = having(LIMITS, worker_claims_max=2)
    one = RUNNING.after(rules.AssignClaim("d-1", 1))
    full = one.after(rules.AssignClaim("d-2", 1))

    assert rules.unavailable(RUNNING.worker, few) is None and rules.unavailable(one.worker, few) is None
    for place in ("starting", "stopping", "stopped", "failed"):
        refused = rules.unavailable(PLACES[place].worker, few)
        assert refused is not None and refused.data == {"status": place, "stalled": False}
    refused = rules.unavailable(RUNNING.after(STALL).worker, few)
    assert refused is not None and refused.data == {"status": "running", "stalled": True}
    assert (refused := rules.unavailable(full.worker, few)) is not None
    assert refused.reason is Reason.WORKER_NOT_AVAILABLE and refused.reason.temporary


# registration, metadata, words


def test_a_second_registration_replaces_and_merges() -> None:
    """References and adapter are replaced, null too; metadata is merged; the start stays, an ended worker runs."""
    first = World().after(register(workspace_ref="w", codex_home_ref="h", adapter="box", metadata={"a": 1, "b": 2}))
    again = first.after(say("failed")).later(10).after(register(adapter=" ", metadata={"b": None}))

    assert again.worker == Worker(
        "lab:east-2",
        ADA,
        Status.RUNNING,
        metadata={"a": 1, "b": None},
        started_at=WALL,
        last_heartbeat_at=again.wall,
        updated_at=again.wall,
        last_seq=3,
    )
    assert (first.worker.workspace_ref, first.worker.codex_home_ref, first.worker.adapter) == ("w", "h", "box")
    assert RUNNING.worker.adapter == "in_memory"


@pytest.mark.parametrize(
    ("stored", "patch", "result"),
    [
        (None, None, None),
        (None, {}, {}),
        (None, {"a": 1}, {"a": 1}),
        ({"a": {"b": 1}}, {"a": {"c": 2}}, {"a": {"c": 2}}),
        ({"a": 1}, {"a": None}, {"a": None}),
        ({"a": 1}, None, {"a": 1}),
        ([1], None, [1]),
        ("x", None, "x"),
        ([1], {"a": 1}, Reason.METADATA_NOT_OBJECT),
        (0, {}, Reason.METADATA_NOT_OBJECT),
        (None, [1], Reason.METADATA_NOT_OBJECT),
        ({"a": 1}, "x", Reason.METADATA_NOT_OBJECT),
        ({"a": 1}, False, Reason.METADATA_NOT_OBJECT),
        ({}, {"a": float("nan")}, Reason.INVALID_PARAMS),
    ],
)
def test_metadata_is_merged_at_its_top(stored: Any, patch: Any, result: Any) -> None:
    """By heartbeat and by registration alike; a refusal keeps what was stored."""
    world = World().after(register(metadata=stored))
    for command in (rules.Heartbeat(ADA, patch), register(metadata=patch)):
        answer, after = world.do(command)
        if isinstance(result, Reason):
            assert answer.reason is result and after is world
        else:
            assert after.worker.metadata == result


def test_metadata_is_bounded_after_the_merge() -> None:
    """The result counts, not the patch; exactly the bound is kept."""
    room = LIMITS.worker_metadata_bytes_max - len(b'{"a":""}')
    exact = World().after(register(metadata={"a": "x" * room}))
    answer, after = exact.do(rules.Heartbeat(ADA, {"b": 1}))

    assert answer.reason is Reason.PAYLOAD_TOO_LARGE and after is exact
    assert exact.after(rules.Heartbeat(ADA, {"a": 1}), rules.Heartbeat(ADA, {"b": 1})).worker.metadata == {
        "a": 1,
        "b": 1,
    }
    answer, _ = World().do(register(metadata=["x" * room + "xxxxx"]))
    assert answer.reason is Reason.PAYLOAD_TOO_LARGE


@pytest.mark.parametrize("member", ["workspace_ref", "codex_home_ref", "adapter"])
def test_what_a_registration_refers_to_has_a_bounded_length(member: str) -> None:
    """At `worker_ref_chars_max` it is kept, above it nothing is, and the message says which and how long."""
    most = DEFAULT_LIMITS.worker_ref_chars_max
    kept, _ = RUNNING.do(rules.RegisterWorker("w", ADA, **{member: "x" * most}))
    assert isinstance(kept, Step)
    refused, _ = RUNNING.do(rules.RegisterWorker("w", ADA, **{member: "x" * (most + 1)}))
    assert (refused.reason, refused.data) == (Reason.INVALID_PARAMS, {"path": member, "limit": most})


@pytest.mark.parametrize("word", ["", "x" * 201])
@pytest.mark.parametrize("command", [rules.ReportStall, rules.ReportRecovery])
def test_a_report_has_a_word_of_bounded_length(command: Any, word: str) -> None:
    """1 to 200 characters; a status may go without, but not with more."""
    world = RUNNING if command is rules.ReportStall else RUNNING.after(STALL)
    answer, _ = world.do(command(ADA, word))
    assert answer.reason is Reason.INVALID_PARAMS

    given = RUNNING.after(rules.SetWorkerStatus(ADA, Status.STOPPING, "nightly"))
    assert given.log[-1].reason == "nightly"
    answer, _ = RUNNING.do(rules.SetWorkerStatus(ADA, Status.STOPPING, "x" * 201))
    assert answer.reason is Reason.INVALID_PARAMS


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, "codexw_1"),
        ("  ", "codexw_1"),
        (" lab:east-2 ", "lab:east-2"),
        ("\N{SNOWMAN}" * 200, "\N{SNOWMAN}" * 200),
        ("x" * 201, None),
        ("a/b", None),
        ("a\x00b", None),
        ("a\x7fb", None),
        ("a\x9fb", None),
        ("a\ud800", None),
        (7, None),
    ],
)
def test_a_worker_id_is_trimmed_and_bounded(given: Any, expected: str | None) -> None:
    """A blank one is replaced by a fresh one; control characters and `/` are refused."""
    found = rules.worker_id_of(given, "codexw_1", LIMITS)

    if expected is None:
        assert isinstance(found, Rejected) and found.reason is Reason.INVALID_WORKER_ID
    else:
        assert found == expected


def test_a_worker_is_shown_whole() -> None:
    """Every member of the page, times with Z, claims in order; liveness beside it."""
    world = World().after(register(Owner(None, "g-1"), metadata=[1]))
    world = world.after(rules.AssignClaim("d-2", 1), rules.AssignClaim("d-1", 3)).later(1_500)

    assert rules.worker_json(world.worker, world.wall, LIMITS) == {
        "worker": {
            "worker_id": "lab:east-2",
            "owner": {"user_id": None, "guest_scope": "g-1"},
            "workspace_ref": None,
            "codex_home_ref": None,
            "adapter": "in_memory",
            "status": "running",
            "latest_seq": 3,
            "metadata": [1],
            "started_at": wall_text(WALL),
            "stopped_at": None,
            "last_heartbeat_at": wall_text(WALL),
            "updated_at": wall_text(WALL),
            "stalled_since": None,
            "assigned": ["d-1", "d-2"],
        },
        "liveness": {"heartbeat_age_ms": 1_500, "heartbeat_stale_after_ms": STALE_MS, "heartbeat_state": "fresh"},
    }


def test_the_messages_of_assignments_and_stalls_have_members_of_their_own() -> None:
    """The four that are not about the status keep their tag; generations stay inside."""
    world = RUNNING.after(rules.AssignClaim("d-1", 4), rules.ReleaseClaim("d-1", 4, "withdrawn"), STALL, RECOVERY)
    shared = {"worker_id": "lab:east-2", "status": "running", "heartbeat_state": "fresh"}

    assert [rules.live_message("lab:east-2", seq, event) for seq, event in enumerate(world.log, 1)] == [
        ("worker.running", {**shared, "latest_seq": 1}),
        ("worker.assigned", {**shared, "latest_seq": 2, "worker": "lab:east-2", "task_id": "d-1"}),
        (
            "worker.released",
            {**shared, "latest_seq": 3, "worker": "lab:east-2", "task_id": "d-1", "reason": "withdrawn"},
        ),
        ("worker.stalled", {**shared, "latest_seq": 4, "worker": "lab:east-2", "reason": "unplugged"}),
        ("worker.recovered", {**shared, "latest_seq": 5, "worker": "lab:east-2", "recovery": "plugged in"}),
    ]


# owners


@pytest.mark.parametrize(
    ("user_id", "scope", "owner"),
    [
        (0, None, Owner(0)),
        (USER_ID_MAX, "  ", Owner(USER_ID_MAX)),
        (None, " g ", Owner(None, "g")),
        (None, "g" * LIMITS.guest_scope_chars_max, Owner(None, "g" * LIMITS.guest_scope_chars_max)),
        (None, None, None),
        (None, " ", None),
        (1, "g", None),
        (-1, None, None),
        (USER_ID_MAX + 1, None, None),
        (True, None, None),
        (1.0, None, None),
        ("1", None, None),
        (None, 5, None),
        (None, "g\ud800", None),
        (None, "g" * (LIMITS.guest_scope_chars_max + 1), None),
    ],
)
def test_an_owner_is_a_user_or_a_guest(user_id: Any, scope: Any, owner: Owner | None) -> None:
    """Exactly one of the two; everything else is `invalid_owner`."""
    found = owner_of(user_id, scope, LIMITS)

    if owner is None:
        assert isinstance(found, Rejected) and found.reason is Reason.INVALID_OWNER
    else:
        assert found == owner


def test_owners_are_equal_by_what_they_are() -> None:
    """A user never equals a guest, whatever the scope is called; a query spells a user id in digits."""
    assert owner_of(None, " g ", LIMITS) == owner_of(None, "g", LIMITS) != owner_of(None, "G", LIMITS)
    assert owner_of(7, None, LIMITS) == owner_of_texts("7", "", LIMITS) == owner_of_texts(" 7 ", None, LIMITS)
    assert owner_of(7, None, LIMITS) != owner_of(None, "7", LIMITS)
    assert owner_of_texts("", "g", LIMITS) == owner_of(None, "g", LIMITS)
    for wrong in ("-1", "x", "1.0", "\N{ARABIC-INDIC DIGIT ONE}", "9" * 5_000):
        refused = owner_of_texts(wrong, None, LIMITS)
        assert isinstance(refused, Rejected) and refused.reason is Reason.INVALID_OWNER


# the rate of heartbeats


def test_heartbeats_are_metered() -> None:
    """A burst of twenty, then ten a second; a refusal says when there is room and costs nothing."""
    bucket, now = None, 1_000
    for _ in range(LIMITS.worker_heartbeats_burst_max):
        bucket = rules.beat(bucket, Instant(now), LIMITS)
        assert isinstance(bucket, rules.Beats)
    refused = rules.beat(bucket, Instant(now + 40 * NANOS_PER_MS), LIMITS)
    assert isinstance(refused, Rejected) and refused.reason is Reason.HEARTBEAT_RATE
    assert refused.retry_after_ms == 1_000 // LIMITS.worker_heartbeats_per_second_max - 40
    assert isinstance(rules.beat(bucket, Instant(now + 100 * NANOS_PER_MS), LIMITS), rules.Beats)
    rested = rules.beat(bucket, Instant(now + 10**15), LIMITS)
    assert isinstance(rested, rules.Beats) and rested.level == (LIMITS.worker_heartbeats_burst_max - 1) * 1_000
