"""The plugin runs scenarios itself, leaves every other test alone, and shows the shrunk finding."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import turnlane

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
            "turnlane: level default, seeds 1, trio * (seam holds)",
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
