"""A token holds one run: it survives the mail, notices a wrong letter, and replays in a new process."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import pytest
import trio
import trio_programs as programs

from turnlane.testing import BadToken, explore, replay, sweep
from turnlane.testing.faults import Hit
from turnlane.testing.runs import Plan, perform
from turnlane.testing.tokens import PREFIX, TOKEN_LETTERS_MAX, Token, decode, rerun, resolve, scenario_name, versions

HITS = (Hit("cancel", 7), Hit("cancel", 12, "caller"), Hit("port:store.append:storage_full!", 3))
PLANS = [
    Plan(),
    Plan(seed=2**31, size=1, hits=HITS[:1]),
    Plan(seed=5, hits=HITS, points_max=1234),
    Plan(mode="dfs", choices=(0, 3, 119), clock="real"),
    Plan(mode="pct:3:57", seed=12, rates_off=("delay", "crash")),
]


def found():
    report = sweep(programs.transfer_that_loses, seeds=[9], check=[programs.nothing_is_lost])
    return report, report.findings[0]


@pytest.mark.parametrize("plan", PLANS)
def test_a_token_gives_back_what_was_put_in(plan):
    token = Token("package.module:scenario", plan, "0123abcd", versions())
    text = str(token)
    assert decode(text) == token
    assert text.startswith(PREFIX)
    assert text.removeprefix(PREFIX).isalnum()
    assert len(text) <= TOKEN_LETTERS_MAX


def test_a_long_name_is_held_as_its_hash_and_the_token_stays_short():
    token = Token("a.module.with.a.long.path" * 20 + ":scenario", PLANS[2], "0123abcd", versions())
    assert len(str(token)) <= TOKEN_LETTERS_MAX
    assert decode(str(token)).scenario.startswith("~")


def test_a_wrong_missing_or_swapped_letter_is_noticed():
    text = str(Token("module:scenario", Plan(), "0123abcd", versions()))
    middle = len(text) // 2
    for wrong in (text[:-1], text + "A", text[:middle] + ("A" if text[middle] != "A" else "B") + text[middle + 1 :]):
        with pytest.raises(BadToken):
            decode(wrong)
    for nonsense in ("", "tlr1-", "tlr2-abc", "tlr1-!!", "hello"):
        with pytest.raises(BadToken):
            decode(nonsense)


def test_a_replay_gives_the_same_history_100_times_of_100():
    _, finding = found()
    histories = {rerun(finding.token, check=[programs.nothing_is_lost])[1].history for _ in range(100)}
    assert histories == {finding.history}


def found_by_order(mode):
    report = explore(programs.claim_with_an_await_inside, mode=mode, runs=50, check=[programs.one_owner])
    return report, report.findings[0]


@pytest.mark.parametrize("found", [found, *(partial(found_by_order, mode) for mode in ("shuffle", "pct:3", "dfs"))])
def test_a_replay_in_a_new_process_gives_the_same_history(found):
    report, finding = found()
    command = report.command.format(token=finding.token).split()
    assert command[:3] == ["python", "-m", "turnlane.testing"]
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True, env=environment)
        assert done.returncode == 1, done.stderr
        assert done.stdout.startswith(finding.history + "\n\n")
        assert "changed since" not in done.stdout
        assert finding.message in done.stdout


def test_a_dfs_finding_is_replayed_by_its_choices():
    _, finding = found_by_order("dfs")
    again = replay(finding.token, check=[programs.one_owner])
    assert not again.ok
    assert again.findings[0] == finding


def test_a_replay_says_that_the_scenario_or_a_version_has_changed():
    name = scenario_name(programs.transfer_that_keeps)
    report = replay(str(Token(name, Plan(), "00000000", ("0", "0", "0"))))
    assert report.ok
    assert "the scenario has changed since" in str(report)
    assert "warning: seen with 0 0 0" in str(report)


def test_a_scenario_inside_a_function_must_be_given():
    async def local(world):
        await trio.sleep(1)

    token = str(Token(scenario_name(local), Plan(), perform(local, Plan(), recording=True).digest(), versions()))
    with pytest.raises(LookupError, match="pass it"):
        replay(token)
    report = replay(token, scenario=local)
    assert report.ok
    assert [note.partition(";")[0] for note in report.notes] == ["judged only by the default checkers"]
    with pytest.raises(LookupError, match="not of"):
        replay(token, scenario=programs.conversation)


def test_the_command_line_says_what_is_wrong_with_a_token():
    done = subprocess.run(
        [sys.executable, "-m", "turnlane.testing", "replay", "tlr1-abc"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "checksum" in done.stderr


def test_a_replay_without_the_judge_of_its_finding_says_so():
    _, finding = found()
    assert "judged only by the default checkers" in str(replay(finding.token))
    assert "judged only" not in str(replay(finding.token, check=[programs.nothing_is_lost]))


def test_a_replay_whose_fault_does_not_land_is_not_ok():
    name = scenario_name(programs.transfer_that_keeps)
    report = replay(str(Token(name, Plan(hits=(Hit("cancel", 50_000),)), "00000000", versions())))
    assert not report.ok
    assert report.missed == 1
    assert "the fault did not land: the run ended before its point" in str(report)


def test_a_name_that_cannot_be_resolved_is_answered_with_what_to_do():
    for name, said in {
        "one_seat_each": "--check takes MODULE:NAME",
        "no_such_module:x": "give its folder with --path",
        "trio_programs:x": "trio_programs has no 'x'",
        "__main__:no_such_scenario": "put it into a module",
    }.items():
        with pytest.raises((LookupError, ImportError), match=said):
            resolve(name)
    token = str(Token(scenario_name(programs.conversation), Plan(hits=(Hit("kill", 1),)), "00000000", versions()))
    with pytest.raises(ValueError, match="--recover MODULE:NAME"):
        replay(token)


def test_the_finding_of_a_script_is_replayed_by_its_command(tmp_path):
    script = tmp_path / "seats.py"
    script.write_text("""
import trio
from turnlane.testing import sweep

async def scenario(world):
    try:
        await trio.sleep(1)
    finally:
        world.note("left", lost=trio.current_effective_deadline() < 0)

def nothing_is_lost(world):
    assert not world.history.of("left")[-1].fields["lost"]

if __name__ == "__main__":
    print(sweep(scenario, check=[nothing_is_lost]))
""")
    told = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout
    command = told.rpartition("again: ")[2].split()
    assert "seats:nothing_is_lost" in command
    again = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True)
    assert again.returncode == 1, again.stderr
    assert "changed since" not in again.stdout
