"""The plugin runs scenarios itself, leaves every other test alone, and shows the shrunk finding."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest

import turnlane
from turnlane.testing.plugin import LEVELS, explored, swept
from turnlane.testing.runs import Plan
from turnlane.testing.tokens import Token, versions

pytest_plugins = ["pytester"]

PROGRAM = """
    import pytest
    import trio
    from turnlane.testing import explored, swept

    worlds = []

    def nothing_is_lost(world):
        assert world.history.of("left")[-1].fields["items"] == 2

    async def carry(world, keep):
        inbox, outbox = [1, 2], []
        try:
            while inbox:
                item = inbox[0] if keep else inbox.pop(0)
                await trio.sleep(1)
                outbox.append(item)
                if keep:
                    inbox.pop(0)
        finally:
            world.note("left", items=len(inbox) + len(outbox))

    @swept(faults=("cancel", "deadline"), check=[nothing_is_lost])
    async def test_keeps(world, state_dir):
        assert not list(state_dir.iterdir())
        (state_dir / "used").touch()
        worlds.append(world)
        await carry(world, keep=True)

    @swept(check=[nothing_is_lost])
    async def test_loses(world):
        await carry(world, keep=False)

    @explored(runs=3)
    async def test_in_every_order(world):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 1)
            nursery.start_soon(trio.sleep, 1)

    async def test_with_a_world(world):
        before = trio.current_time()
        await trio.sleep(1000)
        assert trio.current_time() == before + 1000
        world.note("slept", seed=world.seed)

    async def test_left_to_pytest_trio(autojump_clock):
        await trio.sleep(1000)

    def test_plain(world, state_dir, leak_guard):
        assert world.dice("x").random() < 1
        assert state_dir.is_dir()

    def test_worlds_were_fresh():
        assert len(worlds) > 5
        assert len({id(world) for world in worlds}) == len(worlds)
"""


@pytest.fixture
def suite(pytester, monkeypatch):
    monkeypatch.delenv("TURNLANE_LEVEL", raising=False)
    pytester.makeini("[pytest]\ntrio_mode = true\nfilterwarnings = error\n")
    pytester.makepyfile(PROGRAM)
    return pytester


def test_each_kind_of_test_is_run_by_the_right_plugin(suite):
    result = suite.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=6, failed=1)
    result.stdout.fnmatch_lines(
        [
            "turnlane: level default, seeds 1, trio * (seam holds), crash *",
            "*nothing_is_lost: *",
            "*cancel at point 1, test_each*.py:*(carry)*seed 0, size 1",
            "*again: pytest 'test_each*::test_loses' --turnlane-replay=tlr1-*",
        ]
    )


def test_a_token_replays_one_test_and_prints_its_history(suite):
    first = suite.runpytest_inprocess("-p", "no:cacheprovider", "-k", "loses")
    token = re.search(r"--turnlane-replay=(tlr1-\w+)", first.stdout.str()).group(1)
    again = suite.runpytest_inprocess("-p", "no:cacheprovider", f"--turnlane-replay={token}")
    again.assert_outcomes(failed=1, deselected=6)
    again.stdout.fnmatch_lines(["*left items=1*"])
    assert "changed since" not in again.stdout.str()


def test_the_options_override_counts_and_the_budget_makes_a_sweep_incomplete(suite):
    suite.runpytest_inprocess("-k", "keeps", "--turnlane-seeds=3").assert_outcomes(passed=1, deselected=6)
    spent = suite.runpytest_inprocess("-k", "keeps", "--turnlane-seconds=0")
    spent.assert_outcomes(failed=1, deselected=6)
    spent.stdout.fnmatch_lines(["*a budget ended the search*"])


def test_the_level_comes_from_the_environment_and_must_be_known(suite, monkeypatch):
    monkeypatch.setenv("TURNLANE_LEVEL", "ci")
    result = suite.runpytest_inprocess("-k", "order")
    result.assert_outcomes(passed=1, deselected=6)
    result.stdout.fnmatch_lines(["turnlane: level ci, seeds 10,*"])
    monkeypatch.setenv("TURNLANE_LEVEL", "heroic")
    assert suite.runpytest_inprocess("-k", "order").ret == pytest.ExitCode.USAGE_ERROR


def test_an_async_fixture_in_a_swept_test_is_an_error_that_names_it(pytester):
    pytester.makeini("[pytest]\ntrio_mode = true\n")
    pytester.makepyfile(
        """
        import pytest
        from turnlane.testing import swept

        @pytest.fixture
        async def connection():
            yield 1

        @swept()
        async def test_it(world, connection): ...
        """
    )
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*'connection'*make it a factory*"])


def test_a_failure_in_a_plain_test_with_a_world_shows_its_own_traceback(pytester):
    pytester.makepyfile("async def test_it(world):\n    assert 1 == 2, 'its own words'\n")
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*AssertionError: its own words*"])


def test_a_test_that_leaks_is_named_by_the_leak_guard(pytester):
    pytester.makeini("[pytest]\nturnlane_leak_guard = true\n")
    pytester.makepyfile("import os\n\ndef test_it():\n    os.pipe()\n")
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*2 more open descriptors than before*"])


def test_a_mark_that_a_long_level_never_reaches_fails_the_run(pytester):
    pytester.makepyfile(
        """
        from turnlane.core.marks import sometimes

        async def test_it(world):
            sometimes(False, "the_moon_is_full_in_the_plugin_test")
        """
    )
    assert pytester.runpytest_subprocess().ret == pytest.ExitCode.OK
    result = pytester.runpytest_subprocess("--turnlane-level=nightly")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*never reached sometimes('the_moon_is_full_in_the_plugin_test')*"])


def test_a_test_that_may_use_hypothesis_or_is_not_async_is_refused_as_a_scenario(pytester):
    pytester.makepyfile(
        """
        from hypothesis import given, strategies
        from turnlane.testing import explored, swept

        @swept()
        @given(strategies.integers())
        async def test_given(world, number): ...

        @explored()
        def test_plain(world): ...
        """
    )
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*call sweep() in the body of a @given test*", "*is an async function*"])


def test_the_decorators_set_the_mark_and_take_the_arguments_of_the_searches(pytester):
    pytester.makepyfile(
        """
        import trio
        from turnlane.testing import explored, swept

        @swept(faults=("cancel",), scope="inner", at="first:1", seeds=2)
        async def test_swept(world):
            with world.scope("inner"):
                await trio.sleep(world.seed)

        @explored(mode="pct:2", runs=5)
        async def test_explored(world):
            await trio.sleep(1)

        def test_marks():
            for test, kind in ((test_swept, "sweep"), (test_explored, "explore")):
                (mark,) = test.pytestmark
                assert (mark.name, mark.kwargs["kind"]) == ("turnlane", kind)
        """
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=3)
    pytester.runpytest_inprocess("-m", "turnlane").assert_outcomes(passed=2, deselected=1)


def test_the_fixtures_are_listed_with_what_they_give(pytester):
    result = pytester.runpytest_inprocess("--fixtures")
    for name in ("world", "state_dir", "leak_guard"):
        result.stdout.fnmatch_lines([f"{name}*--*"])


COVERED = """
    import trio

    async def both(first):
        if first:
            await trio.sleep(1)
        await trio.sleep(2)
"""


@pytest.fixture
def covered(pytester):
    pytester.makepyfile(covered=COVERED)
    pytester.makepyfile(
        """
        from covered import both
        from turnlane.testing import swept

        @swept()
        async def test_it(world):
            await both(first=False)
        """
    )
    return pytester


def test_awaits_that_were_never_hit_are_named_and_fail_the_run(covered):
    result = covered.runpytest_inprocess("--turnlane-await-cov=covered")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["turnlane: 50.0 % is below 100 %; await points hit: 1 of 2", "turnlane:   not *covered.py:5 await"]
    )


def test_a_lower_minimum_or_an_allow_list_excuses_them(covered, tmp_path):
    assert covered.runpytest_inprocess("--turnlane-await-cov=covered", "--turnlane-await-min=50").ret == 0
    allowed = tmp_path / "allowed"
    allowed.write_text("covered.py:5 only for the first\n")
    result = covered.runpytest_inprocess("--turnlane-await-cov=covered", f"--turnlane-await-allow={allowed}")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["turnlane: await points hit: 1 of 2"])
    result = covered.runpytest_inprocess("--turnlane-await-cov=covered", "--turnlane-jobs=2", "--turnlane-await-min=51")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert covered.runpytest_inprocess().ret == 0


def test_jobs_share_the_points_of_every_sweep(pytester):
    pytester.makepyfile(
        """
        import os
        import trio
        from turnlane.testing import explored, swept

        here = os.getpid()

        def runs_elsewhere(world):
            assert not world.hit or os.getpid() != here

        @swept(check=[runs_elsewhere])
        async def test_swept(world):
            world.hit = True
            await trio.sleep(1)
            await trio.sleep(1)
            world.hit = False

        @explored(runs=2)
        async def test_explored(world):
            await trio.sleep(1)
        """
    )
    result = pytester.runpytest_inprocess("--turnlane-jobs=2")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["turnlane: *, jobs 2"])
    pytester.runpytest_inprocess().assert_outcomes(failed=1, passed=1)


def test_the_header_says_how_processes_are_killed_and_a_required_shim_must_be_there(pytester, monkeypatch):
    pytester.makepyfile("import os\n\ndef test_it():\n    assert os.environ.get('TURNLANE_CRASH') != 'off'\n")
    monkeypatch.setenv("CC", "no-such-compiler")
    pytester.runpytest_inprocess().stdout.fnmatch_lines(["turnlane: *, crash ports (no C compiler)"])
    refused = pytester.runpytest_inprocess("--turnlane-crash=require")
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines(["*--turnlane-crash=require: *C compiler*"])
    off = pytester.runpytest_inprocess("--turnlane-crash=off")
    off.assert_outcomes(failed=1)
    off.stdout.fnmatch_lines(["turnlane: *, crash off"])
    assert "TURNLANE_CRASH" not in os.environ
    assert pytester.runpytest_inprocess("--turnlane-crash=maybe").ret == pytest.ExitCode.USAGE_ERROR


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_shim_that_can_be_compiled_is_said_to_be_there(pytester):
    pytester.makepyfile("def test_it(): ...")
    for wanted in ("auto", "require"):
        pytester.runpytest_inprocess(f"--turnlane-crash={wanted}").stdout.fnmatch_lines(["turnlane: *, crash shim"])


def test_a_test_can_ask_whether_scenario_files_are_rewritten(pytester):
    pytester.makepyfile("def test_it(pytestconfig):\n    assert pytestconfig.getoption('--turnlane-rewrite')\n")
    pytester.runpytest_inprocess("--turnlane-rewrite").assert_outcomes(passed=1)
    pytester.runpytest_inprocess().assert_outcomes(failed=1)


def test_a_scenario_that_never_comes_back_is_ended_by_its_timeout(pytester):
    pytester.makeini("[pytest]\nturnlane_timeout = 0.3\n")
    pytester.makepyfile(
        """
        import trio
        from turnlane.testing import swept

        @swept()
        async def test_busy(world):
            try:
                await trio.sleep(1)
            except trio.Cancelled:
                while True:
                    pass

        @swept()
        async def test_short(world):
            await trio.sleep(1000)
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:timeout")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["did not end within * s (ini option turnlane_timeout)"])


def test_a_timeout_of_pytest_timeout_stands_alone(pytester):
    pytester.makeini("[pytest]\nturnlane_timeout = 0.01\ntimeout = 60\n")
    pytester.makepyfile("import time\n\nasync def test_it(world):\n    time.sleep(0.1)\n")
    pytester.runpytest_inprocess().assert_outcomes(passed=1)


def test_the_long_levels_draw_orders_by_priorities_and_add_second_faults():
    assert {name: (level.mode, level.pairs) for name, level in LEVELS.items()} == {
        "default": ("shuffle", 0),
        "ci": ("shuffle", 0),
        "nightly": ("pct:3", 12),
        "release": ("pct:3", 12),
    }


def test_the_plugin_itself_imports_neither_trio_nor_the_rooms():
    run_alone(
        "import turnlane.testing.plugin",
        "assert 'trio' not in sys.modules",
        "rooms = [name for name in sys.modules if name.startswith('turnlane.testing.')]",
        "assert rooms == ['turnlane.testing.plugin'], rooms",
    )


def test_importing_the_kit_is_cheap_and_sweep_is_the_function_however_it_was_imported():
    run_alone(
        "import turnlane.testing as kit",
        "assert 'trio' not in sys.modules",
        "from turnlane.testing.sweep import points_at",
        "from turnlane.testing import sweep",
        "assert callable(sweep) and kit.sweep is sweep",
        "assert all(hasattr(kit, name) for name in dir(kit))",
    )


def run_alone(*lines):
    """In a fresh process, with a stand-in for the parent package, whose own imports are not the matter here."""
    parent = [
        "import sys, types",
        "parent = sys.modules['turnlane'] = types.ModuleType('turnlane')",
        f"parent.__path__ = {list(turnlane.__path__)!r}",
    ]
    subprocess.run([sys.executable, "-c", "\n".join([*parent, *lines])], check=True)


def test_a_wrong_option_is_a_usage_error_before_any_test(suite):
    for option, said in {
        "--turnlane-jobs=0": "give a number above 0",
        "--turnlane-seeds=0": "give a number above 0",
        "--turnlane-await-min=101": "give a percentage from 0 to 100",
        "--turnlane-replay=tlr1-abc": "checksum",
        "--turnlane-await-cov=nope": "no package named 'nope'",
        "--turnlane-await-allow=no_such_file": "No such file",
    }.items():
        result = suite.runpytest_inprocess("-p", "no:cacheprovider", option)
        assert result.ret == pytest.ExitCode.USAGE_ERROR, option
        assert said in result.stderr.str() + result.stdout.str(), option


def test_a_token_of_no_collected_test_is_a_usage_error(suite):
    token = Token("elsewhere:test_it", Plan(), "00000000", versions())
    result = suite.runpytest_inprocess("-p", "no:cacheprovider", f"--turnlane-replay={token}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "no collected test is elsewhere:test_it" in result.stderr.str() + result.stdout.str()


@pytest.mark.parametrize("mark", [swept, explored])
def test_a_mark_without_parentheses_is_refused(mark):
    with pytest.raises(TypeError, match=rf"write @{mark.__name__}\(\)"):

        @mark
        async def scenario(world):
            pass


def test_what_the_kit_refuses_is_one_sentence_of_the_test(suite):
    suite.makepyfile(
        test_refused="""
        from turnlane.testing import swept

        @swept(at="every:0")
        async def test_refused(world):
            pass
        """
    )
    result = suite.runpytest_inprocess("-p", "no:cacheprovider", "test_refused.py")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["'every:0' is not every, every:N*"])
    assert "Traceback" not in result.stdout.str()
    assert "sweep.py" not in result.stdout.str()


def test_a_replay_prints_its_report_once(suite):
    first = suite.runpytest_inprocess("-p", "no:cacheprovider", "-k", "loses")
    token = re.search(r"--turnlane-replay=(tlr1-\w+)", first.stdout.str()).group(1)
    again = suite.runpytest_inprocess("-p", "no:cacheprovider", f"--turnlane-replay={token}").stdout.str()
    told, summary, _ = again.partition("short test summary info")
    assert told.count(":test_loses: FAILED;") == 1 and summary
    assert "Captured stdout" in told
