"""What `sweep` and `explore` promise of themselves."""

from __future__ import annotations

import functools
import random
import signal
import sys
import threading

import pytest
import trio
import trio.lowlevel
import trio_programs as programs

from turnlane.core import marks
from turnlane.testing import PORT_FAILURES, NotDeterministic, Violation, explore, sweep
from turnlane.testing.runs import Plan, perform
from turnlane.testing.sweep import next_choices, points_at


def test_every_point_is_hit_once_by_each_fault():
    hit = []

    async def scenario(world):
        for number in range(4):
            try:
                await trio.sleep(1)
            except trio.Cancelled:
                hit.append(number)
                raise

    report = sweep(scenario, faults=("cancel", "deadline"))
    assert report.ok, str(report)
    assert hit == [0, 1, 2, 3, 0, 1, 2, 3]
    # Two recordings, four points for each fault, and for each the run that ended before its fault.
    assert (report.points, report.runs, report.missed) == (4, 2 + 2 * 5, 0)


@pytest.mark.parametrize("fault", ["cancel", "deadline", "error"])
def test_every_point_of_every_task_is_hit_exactly_once_and_the_sweep_ends(monkeypatch, fault):
    engine, plans = sys.modules["turnlane.testing.search"], []

    def noted(scenario, plan, **how):
        run = perform(scenario, plan, **how)
        plans.append((plan.hits, len(run.injector.applied)))
        return run

    monkeypatch.setattr(engine, "perform", noted)
    report = sweep(programs.conversation, faults=(fault,), seeds=[3])
    assert report.ok, str(report)
    injected = [(hits[0].kind, hits[0].point, applied) for hits, applied in plans if hits]
    assert injected == [(fault, n, 1) for n in range(1, report.points + 1)] + [(fault, report.points + 1, 0)]
    assert report.points > 30
    assert report.runs == len(plans) == 2 + report.points + 1


def test_a_sweep_refuses_to_run_inside_trio():
    async def inside():
        sweep(programs.conversation)

    with pytest.raises(RuntimeError, match="must not be called from inside trio"):
        trio.run(inside)


def test_a_sweep_that_hits_nothing_fails():
    async def no_await(world):
        pass

    report = sweep(no_await)
    assert not report.ok
    assert "nothing was tried" in str(report)


def test_a_scope_that_is_never_opened_fails_the_sweep():
    assert not sweep(programs.conversation, scope="payment").ok


def test_a_scenario_that_fails_alone_is_said_to_be_broken_without_any_fault():
    async def broken(world):
        await trio.sleep(1)
        raise KeyError("gone")

    report = sweep(broken)
    assert not report.ok
    assert report.runs == 2
    assert "broken without any fault" in str(report)
    assert report.findings[0].checker == "no_stray_exception"


def test_a_scenario_with_unseeded_chance_is_refused():
    async def by_chance(world):
        for _ in range(20):
            if random.random() < 0.5:
                await trio.sleep(1)
            else:
                await trio.sleep(2)

    with pytest.raises(NotDeterministic, match="unseeded `random`"):
        sweep(by_chance)


def test_a_history_that_differs_is_refused_although_the_trace_is_equal():
    async def by_chance(world):
        await trio.sleep(1)
        world.note("drew", value=random.random())

    with pytest.raises(NotDeterministic):
        sweep(by_chance)


def test_one_plan_gives_one_trace_and_one_history():
    seen = {
        (run.digest(), run.history)
        for run in (perform(programs.conversation, Plan(seed=3), recording=True) for _ in range(100))
    }
    assert len(seen) == 1
    assert perform(programs.conversation, Plan(seed=4), recording=True).digest() not in {digest for digest, _ in seen}


def test_a_cancel_lands_at_the_await_that_was_counted():
    async def scenario(world):
        event = trio.Event()

        async def other():
            await trio.sleep(1)
            await trio.sleep(2)
            event.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            await trio.lowlevel.checkpoint()
            await event.wait()
        await trio.lowlevel.checkpoint()

    steps = perform(scenario, Plan(), recording=True).injector.steps
    # The last await of the nursery's end only yields: the children are done, and a cancel lands at the await behind it.
    end_of_nursery = steps[5].where
    parked = [(n, step) for n, step in enumerate(steps, 1) if step.lines and step.where != end_of_nursery]
    assert len(parked) >= 4
    for point, step in parked:
        assert step.where in perform(scenario, Plan(hits=(_hit("cancel", point),))).injector.landed, (point, step)


def _hit(kind, point, scope="scenario"):
    from turnlane.testing.faults import Hit

    return Hit(kind, point, scope)


def test_each_registered_scope_is_hit_in_turn():
    ended = []

    async def scenario(world):
        for name in ("first", "second"):
            with world.scope(name) as scope:
                await trio.sleep(1)
            ended.append((name, scope.cancelled_caught))
        await trio.sleep(1)

    report = sweep(scenario, scope="all")
    assert report.ok, str(report)
    assert ("first", True) in ended
    assert ("second", True) in ended


def test_product_code_registers_its_scopes_through_a_mark():
    async def scenario(world):
        with trio.CancelScope() as scope:
            marks.scope_hook("turn", scope)
            await trio.sleep(1)
        world.note("after", cancelled=scope.cancelled_caught)
        await trio.sleep(1)

    seen = []
    report = sweep(scenario, scope="turn", check=[lambda world: seen.extend(world.history.of("after"))])
    assert report.ok, str(report)
    assert report.points == 1
    assert [entry.fields["cancelled"] for entry in seen].count(True) == 1


def test_children_of_a_nursery_opened_deep_inside_are_watched():
    async def runtime(task_status=trio.TASK_STATUS_IGNORED):
        async with trio.open_nursery() as inner:
            task_status.started(inner)
            await trio.sleep_forever()

    async def deep(hits):
        try:
            await trio.sleep(1)
        except trio.Cancelled:
            hits.append(1)
            raise

    hits = []

    async def scenario(world):
        async with trio.open_nursery() as outer:
            inner = await outer.start(runtime)
            inner.start_soon(deep, hits)
            await trio.sleep(2)
            outer.cancel_scope.cancel()

    assert sweep(scenario).ok
    assert hits


def test_pairs_hit_a_second_time_behind_the_first():
    cancels = []

    async def scenario(world):
        for name in ("a", "b", "c"):
            with world.scope(name) as scope:
                await trio.sleep(1)
            cancels.append(scope.cancel_called)
        cancels.append(None)

    assert sweep(scenario, faults=("cancel",), scope="b", pairs=2).ok
    single = sweep(programs.conversation, sizes=(2,))
    double = sweep(programs.conversation, sizes=(2,), pairs=3)
    assert double.ok, str(double)
    assert double.runs > 2 * single.runs


def test_a_second_cancel_by_another_caller_arrives_in_the_cleanup():
    async def scenario(world):
        try:
            with world.scope("work"):
                await trio.sleep(1)
        finally:
            await trio.sleep(1)
            world.note("cleaned")

    def cleaned(world):
        assert world.history.of("cleaned")

    assert sweep(scenario, scope="work", check=[cleaned]).ok
    report = sweep(scenario, scope="work", faults=("cancel_twice",), pairs=2, check=[cleaned])
    assert not report.ok
    assert report.findings[0].fault == "cancel_twice"


def test_an_interrupt_arrives_and_is_no_stray_exception():
    before = signal.getsignal(signal.SIGINT)

    async def scenario(world):
        try:
            await trio.sleep(1)
            await trio.sleep(1)
        except KeyboardInterrupt:
            world.note("interrupted")
            raise

    interrupted = []
    report = sweep(scenario, faults=("interrupt",), check=[lambda w: interrupted.append(len(w.history))])
    assert report.ok, str(report)
    assert sum(interrupted) == report.points == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_each_call_of_a_port_fails_in_turn():
    class Store:
        async def append(self, item):
            await trio.sleep(1)

    async def scenario(world):
        store = world.port("store", Store())
        for item in range(3):
            try:
                await store.append(item)
            except OSError as error:
                world.note("failed", item=item, error=error.errno)

    failed = []
    report = sweep(
        scenario, faults=("port:store.append:storage_full",), check=[lambda w: failed.append(len(w.history))]
    )
    assert report.ok, str(report)
    assert failed == [0, 0, 1, 1, 1, 0]
    failed.clear()
    assert sweep(scenario, faults=("port:store.append:timeout!",), check=[lambda w: failed.append(len(w.history))]).ok
    assert failed == [0, 0, 3, 2, 1, 0]


def test_a_fault_or_failure_with_an_unknown_name_is_refused_before_anything_runs():
    for wrong in ("cancell", "port:store:timeout", "port:store.append:nonsense"):
        with pytest.raises(ValueError, match=r"no fault named|is not port"):
            sweep(programs.conversation, faults=(wrong,))
    assert "timeout" in PORT_FAILURES


def test_an_error_raised_from_an_injected_one_is_expected_and_one_raised_beside_it_is_not():
    async def translates(world):
        try:
            await trio.sleep(1)
        except Exception as error:
            raise OSError("translated") from error

    async def stumbles(world):
        try:
            await trio.sleep(1)
        except Exception:
            {}["missing"]

    assert sweep(translates, faults=("error",)).ok
    report = sweep(stumbles, faults=("error",))
    assert [finding.checker for finding in report.findings] == ["no_stray_exception"]


def test_checkers_are_objects_functions_or_async_functions():
    seen = []

    class Object:
        name = "object"

        def check(self, world):
            seen.append("object")
            return [Violation("rule", "said the object")] if world.history.of("bad") else []

    async def inside(world):
        seen.append("async")
        await trio.sleep(100)
        assert not world.history.of("bad"), "said the function"

    async def scenario(world):
        try:
            await trio.sleep(1)
        except trio.Cancelled:
            world.note("bad")

    report = sweep(scenario, check=[Object(), inside])
    assert {finding.checker for finding in report.findings} == {"object", "inside"}
    assert {f.message.splitlines()[0] for f in report.findings} == {"rule: said the object", "said the function"}
    assert {"object", "async"} == set(seen)


def test_every_run_has_its_own_directory_and_it_is_gone_afterwards():
    folders = []

    async def scenario(world):
        assert list(world.state_dir.iterdir()) == []
        (world.state_dir / "file").write_text("kept")
        folders.append(world.state_dir)
        await trio.sleep(1)

    async def recover(world):
        assert (world.state_dir / "file").read_text() == "kept"

    assert sweep(scenario, recover=recover).ok
    assert len(set(folders)) == len(folders)
    assert not any(folder.exists() for folder in folders)


def test_an_error_of_the_recovery_is_a_finding_with_a_token():
    async def scenario(world):
        try:
            await trio.sleep(1)
        except trio.Cancelled:
            world.note("left", items=0)
            raise

    async def recover(world):
        assert not world.history.of("left"), "something is left"

    report = sweep(scenario, recover=recover)
    assert [finding.message.splitlines()[0] for finding in report.findings] == [
        "recover: AssertionError: something is left"
    ]


def test_a_budget_that_ends_a_sweep_makes_it_incomplete_and_not_ok():
    report = sweep(programs.conversation, runs_max=5)
    assert (report.ok, report.incomplete, report.runs) == (False, True, 5)
    assert sweep(programs.conversation, runs_max=5, allow_incomplete=True).ok


def test_points_are_chosen_by_number_by_sample_and_by_line():
    steps = perform(programs.conversation, Plan(), recording=True).injector.steps
    count = len(steps)
    chosen = {
        at: list(points_at(at, steps, "scenario", 0)) for at in ("every", "every:3", "first:2", "last:2", "sample:5")
    }
    assert chosen["every"] == list(range(1, count + 1))
    assert chosen["every:3"] == list(range(1, count + 1, 3))
    assert chosen["first:2"] == [1, 2]
    assert chosen["last:2"] == [count - 1, count]
    assert len(set(chosen["sample:5"])) == 5
    line = steps[0].where.line
    by_line = list(points_at(f"lines:trio_programs.py:{line}-{line}", steps, "scenario", 0))
    assert 0 < len(by_line) < count
    with pytest.raises(ValueError, match="is not every"):
        points_at("often", steps, "scenario", 0)


def test_dfs_tries_every_order_exactly_once():
    orders = []

    async def three(world):
        order = []
        orders.append(order)
        async with trio.open_nursery() as nursery:
            for name in "abc":
                nursery.start_soon(_note, order, name)

    async def _note(order, name):
        order.append(name)

    report = explore(three, mode="dfs", check=())
    assert report.ok, str(report)
    assert len({"".join(order) for order in orders}) == 6


def test_dfs_refuses_a_tree_that_is_too_large():
    async def many(world):
        async with trio.open_nursery() as nursery:
            for _ in range(9):
                nursery.start_soon(trio.sleep, 1)

    with pytest.raises(ValueError, match="more than schedules_max"):
        explore(many, mode="dfs")


@pytest.mark.parametrize("mode", ["random", "pct", "pct:0", "pct:3:7", ""])
def test_a_mode_that_does_not_exist_is_refused(mode):
    with pytest.raises(ValueError, match="no mode"):
        explore(programs.conversation, mode=mode)


def test_a_scenario_may_cancel_by_itself_as_one_of_its_tasks():
    ended = set()

    async def scenario(world):
        done = []

        async def works():
            await trio.lowlevel.checkpoint()
            done.append("work")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(works)
            nursery.start_soon(trio.lowlevel.checkpoint)
            for _ in range(2):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        ended.add(tuple(done))

    report = explore(scenario, mode="dfs")
    assert report.ok, str(report)
    assert ended == {(), ("work",)}


def test_the_tree_of_choices_is_walked_depth_first():
    path, seen = (0, 0), [(0, 0)]
    while path:
        path, _ = next_choices(path, (2, 3))
        seen.append(path)
    assert seen == [(0, 0), (0, 1), (0, 2), (1,), (1, 1), (1, 2), ()]


@pytest.mark.parametrize("mode", ["shuffle", "pct:3"])
def test_a_drawn_order_may_carry_a_cancel_at_a_drawn_point(mode):
    report = explore(
        programs.transfer_that_loses, mode=mode, runs=30, faults=("cancel",), check=[programs.nothing_is_lost]
    )
    assert not report.ok
    assert report.findings[0].fault == "cancel"


def test_the_error_of_an_instrument_is_raised_by_the_sweep(monkeypatch):
    from turnlane.testing.injector import Injector

    def broken(self, task):
        raise ZeroDivisionError

    monkeypatch.setattr(Injector, "_step_of", broken)
    with pytest.raises(ZeroDivisionError):
        sweep(programs.conversation)


def test_a_thread_that_is_left_behind_is_found():
    stop = threading.Event()

    async def scenario(world):
        thread = threading.Thread(target=stop.wait)
        world.cleanup(lambda: (stop.set(), thread.join(), stop.clear()))
        thread.start()
        await trio.sleep(1)

    report = sweep(scenario)
    assert [finding.checker for finding in report.findings] == ["quiescent"]
    assert "threads" in report.findings[0].message


def test_a_thread_at_work_is_waited_for_on_the_virtual_clock():
    async def scenario(world):
        await trio.to_thread.run_sync(threading.Event().wait, 0.02)

    report = sweep(scenario, faults=("cancel",), at="first:1")
    assert report.ok, str(report)


def test_the_real_clock_can_be_asked_for():
    async def scenario(world):
        await trio.sleep(0.001)

    assert sweep(scenario, clock="real").ok


def test_rare_branches_become_common_except_in_the_plain_seed():
    drawn = []

    async def scenario(world):
        drawn.append((world.seed, marks.buggify("flush_early") or marks.buggify("short_read")))
        await trio.sleep(1)

    assert sweep(scenario, seeds=30).ok
    assert any(true for seed, true in drawn if seed)
    assert not any(true for seed, true in drawn if not seed)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"seeds": 0}, ValueError, "seeds: there must be at least one"),
        ({"faults": ()}, ValueError, "faults: there must be at least one"),
        ({"workers": 0}, ValueError, "workers: there must be at least one"),
        *(({"at": at}, ValueError, "is not every, every:N") for at in ("every:0", "every:abc", "lines:a.py", 3, [1])),
        ({"faults": "cancel"}, TypeError, r'faults is a sequence of names: \("cancel",\)'),
        ({"check": programs.nothing_is_lost}, TypeError, r"check=\[nothing_is_lost\]"),
        ({"check": ["x"]}, TypeError, "'x' in check is no judge"),
    ],
)
def test_what_would_try_nothing_or_cannot_be_read_is_refused_before_anything_runs(arguments, error, said):
    async def scenario(world):
        raise AssertionError("it ran")

    with pytest.raises(error, match=said):
        sweep(scenario, **arguments)


def test_an_exploration_of_no_run_is_refused():
    with pytest.raises(ValueError, match="runs: there must be at least one"):
        explore(programs.conversation, runs=0)


def test_a_scenario_is_an_async_function_of_the_world_however_it_is_made():
    class Walk:
        async def __call__(self, world):
            await trio.sleep(1)

    async def walk(seconds, world):
        await trio.sleep(seconds)

    for scenario in (Walk(), functools.partial(walk, 1)):
        assert sweep(scenario).ok
    for wrong in (lambda world: None, walk, 3):
        for search in (sweep, explore):
            with pytest.raises(TypeError, match="a scenario is an async function of the world"):
                search(wrong)


def test_a_judge_that_breaks_is_a_finding_with_a_token():
    def broken(world):
        return world.no_such_thing

    async def broken_too(world):
        await trio.sleep(1)
        raise KeyError("gone")

    async def scenario(world):
        await trio.sleep(1)

    report = sweep(scenario, check=[broken, broken_too])
    assert {finding.checker: finding.message.partition(":")[0] for finding in report.findings} == {
        "broken": "raised AttributeError",
        "broken_too": "raised KeyError",
    }
    assert all(finding.token for finding in report.findings)


def test_a_sweep_that_hit_nothing_says_which_name_nothing_had():
    class Store:
        async def append(self, item):
            await trio.sleep(1)

    async def scenario(world):
        with world.scope("request"):
            await world.port("store", Store()).append(1)

    said = str(sweep(scenario, scope="requst"))
    assert "scope 'requst' was never opened around an await; opened were: request" in said
    said = str(sweep(scenario, faults=("port:store.apend:error",)))
    assert "port operation 'store.apend' was never called; called were: store.append" in said


def test_a_finding_of_an_order_says_that_it_is_the_order():
    said = str(explore(programs.claim_with_an_await_inside, runs=50, check=[programs.one_owner]))
    assert "in this order of tasks" in said
    assert "no fault" not in said
    assert "broken without any fault" not in str(explore(programs.conversation, runs=2, check=[programs.one_owner]))
