"""Every planted bug is found by the checker that watches its rule, and leaves nothing behind."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from turnlane.machines import fence
from turnlane.testing import planted, work_checkers, work_scene
from turnlane.testing.checkers import DEFAULT
from turnlane.testing.planted import CATALOGUE, HEAD, Patch, catalogue, hunt, planted_bug
from turnlane.testing.report import Violation

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "planted-bugs.md").read_text()
DEEP = os.environ.get("TURNLANE_LEVEL", "default") != "default"
QUICK = (
    "fence_ignored",
    "checkpoint_between_decision_and_hold",
    "answered_before_the_commit",
    "store_numbers_by_itself",
    "terminal_written_twice",
    "snapshot_of_an_earlier_nap",
    "key_forgotten_on_restart",
    "door_gives_the_same_epoch_twice",
    "last_come_first_served",
    "outcome_of_a_call_lost",
    "permit_leaks",
    "start_answers_with_the_wrong_seq",
    "claim_token_not_compared",
    "generation_begins_anew",
    "stopped_worker_keeps_its_claims",
    "expected_seq_is_not_looked_at",
    "list_counts_what_it_does_not_show",
    "control_waits_behind_data",
    "cursor_one_too_high",
    "cursor_not_verified",
    "tenant_left_out_of_a_key",
    "secret_in_the_end_of_a_turn",
    "checksum_not_verified",
)
OURS = tuple(catalogue())


@pytest.fixture
def own() -> Iterator[None]:
    """What a test adds to the catalogue leaves it again."""
    before = dict(CATALOGUE)
    yield
    CATALOGUE.clear()
    CATALOGUE.update(before)


@pytest.mark.parametrize("name", OURS if DEEP else QUICK)
def test_a_planted_bug_is_found_by_its_checker(name: str) -> None:
    hunted = hunt(name)
    print(f"{name}: {hunted.seeds} of {hunted.bug.within} seeds, {hunted.message}; others: {hunted.others}")
    assert hunted.seeds is not None, hunted.others


def test_there_are_enough_and_each_says_what_it_breaks() -> None:
    assert len(OURS) >= 50
    assert all(bug.about.endswith(".") and bug.within <= 100 for bug in CATALOGUE.values())


def test_no_checker_is_idle() -> None:
    watched = {bug.found_by for bug in CATALOGUE.values()}
    assert {checker.__name__ for checker in DEFAULT} <= watched
    rules = re.findall(
        r'(?:wrong|Violation)\("([a-z_]+)", ', "".join(map(inspect.getsource, (work_checkers, work_scene)))
    )
    assert set(rules) <= watched, "what the scene `work` judges"


def test_a_bug_that_has_lost_its_place_names_it(own: None) -> None:
    @planted_bug(found_by="one_terminal", within=1)
    def lost_its_place(patch: Patch) -> None:
        """Nothing."""
        patch.set(fence, "refuses_no_more", None)

    with pytest.raises(AttributeError, match="refuses_no_more"), planted.planted("lost_its_place"):
        pass


def test_the_code_is_as_before_after_the_block_and_after_an_error(own: None) -> None:
    real = fence.refuses
    with planted.planted("held_turn_may_speak"):
        assert fence.refuses is not real
    assert fence.refuses is real
    with pytest.raises(ZeroDivisionError), planted.planted("held_turn_may_speak"):
        raise ZeroDivisionError
    assert fence.refuses is real

    @planted_bug(found_by="one_terminal", within=1)
    def breaks_while_it_is_planted(patch: Patch) -> None:
        """Half of it is in place when the other half fails."""
        patch.set(fence, "refuses", None)
        patch.set(fence, "is_not_there", None)

    with pytest.raises(AttributeError), planted.planted("breaks_while_it_is_planted"):
        pass
    assert fence.refuses is real


def test_every_patch_is_taken_out_again() -> None:
    for name in OURS:
        patch = Patch()
        CATALOGUE[name].plant(patch)
        places = [(undo.args[0], undo.args[1]) for undo in patch._undo]
        planted_there = [vars(target).get(attribute) for target, attribute in places]
        patch.undo()
        assert places, name
        assert all(
            vars(target).get(attribute) is not value
            for (target, attribute), value in zip(places, planted_there, strict=True)
        ), name


class Till:
    """Somebody's own program."""

    cents = 0

    def pay(self, cents: int) -> None:
        self.cents += cents


def test_a_program_hunts_bugs_of_its_own(own: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def pay_thrice(seed: int) -> SimpleNamespace:
        till = Till()
        for _ in range(3):
            till.pay(seed)
        wrong = [Violation("money_adds_up", f"{till.cents}")] if till.cents != 3 * seed else []
        return SimpleNamespace(violations=wrong)

    monkeypatch.setattr(planted, "ARENAS", {**planted.ARENAS, "till": pay_thrice})

    @planted_bug(found_by="money_adds_up", within=5, arena="till")
    def payment_forgotten(patch: Patch) -> None:
        """The last payment is all there is."""
        patch.set(Till, "pay", lambda self, cents: setattr(self, "cents", cents))

    assert hunt("payment_forgotten").seeds == 2, "zero cents, thrice, are zero cents"
    assert not pay_thrice(1).violations


def test_the_page_is_the_catalogue() -> None:
    rows = [line.split(" | ") for line in PAGE.splitlines() if line.count(" | ") == 5 and line.startswith("| `")]
    told = {name.removeprefix("| ").strip("`"): rest for name, *rest in rows}
    assert HEAD in PAGE
    assert list(told) == list(OURS)
    for name, (about, found_by, arena, _, within) in told.items():
        bug = CATALOGUE[name]
        expected = (bug.about, f"`{bug.found_by}`", bug.arena, f"{bug.within} |")
        assert (about, found_by, arena, within) == expected, f"{name}: make the page anew, as it says at its top"


def test_what_the_page_names_elsewhere_is_there() -> None:
    rows = [line.split(" | ") for line in PAGE.splitlines() if line.startswith("| `tests/")]
    assert len(rows) > 40
    for path, what, _ in rows:
        source = (ROOT / path.removeprefix("| ").strip("`")).read_text()
        name = what.strip("`")
        assert any(f"{word}{name}" in source for word in ("def ", "class ", '"', "import ", "    ", "(")), (path, name)
