"""Rounds and findings: what a ratio is, which side goes first, what is kept of a run that ends early."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.findings import (
    Checked,
    Curves,
    Found,
    Remark,
    Row,
    Scale,
    Sheet,
    at_least,
    at_most,
    checked,
    from_json,
    run,
    to_json,
)
from bench.rounds import NOISE, Ratio, figures, ratio

TWO = Ratio(2.0, 1.5, 2.5, 3)


def test_a_ratio_is_the_median_and_the_spread_of_its_rounds() -> None:
    """The order of the rounds does not matter."""
    assert Ratio.of([3.0, 1.0, 2.0]) == Ratio(2.0, 1.0, 3.0, 3)


def test_a_ratio_of_no_rounds_is_refused() -> None:
    """There is nothing to say."""
    with pytest.raises(ValueError, match="at least one round"):
        Ratio.of([])


def test_both_sides_run_once_for_nothing_then_take_turns() -> None:
    """Which goes first changes with each round."""
    ran = []

    def side() -> float:
        ran.append("side")
        return 6.0

    def other() -> float:
        ran.append("other")
        return 3.0

    found = figures(side, other, 3)

    assert ran == ["side", "other", "side", "other", "other", "side", "side", "other"]
    assert found == Ratio(2.0, 2.0, 2.0, 3)


def test_the_fixed_loop_is_timed_once_a_round() -> None:
    """A report says how noisy the machine was all along."""
    before = len(NOISE)

    ratio(lambda: None, lambda: None, 4)

    assert len(NOISE) - before == 4
    assert all(taken > 0 for taken in NOISE)


@pytest.mark.parametrize(
    ("aim", "verdict"),
    [(at_most(2), "met"), (at_most(1.99), "MISSED"), (at_least(2), "met"), (at_least(2.01), "MISSED"), (None, "")],
)
def test_an_aim_is_met_by_the_median_at_its_bound(aim: object, verdict: str) -> None:
    """The spread does not count, the bound itself does."""
    assert Row("area", "ours / other", TWO, aim).verdict == verdict  # type: ignore[arg-type]


def test_a_row_says_ratio_aim_and_verdict_on_one_line() -> None:
    """And the absolute figures below it."""
    first, second = str(Row("area", "ours / other", TWO, at_most(1), "3 us against 2 us")).splitlines()

    assert " ".join(first.split()) == "ours / other 2.00 x (1.50 to 2.50, 3 rounds) aim <= 1 x: MISSED"
    assert second.strip() == "3 us against 2 us"


def test_a_size_scales_and_never_below_the_least() -> None:
    """At a tenth there is still something to run."""
    assert Scale(size=0.1).items(2_000) == 200
    assert Scale(size=0.001).items(100, least=8) == 8


SHEET = Sheet(
    (
        Row("area", "ours / other", TWO, at_least(1), "remark"),
        Row("area", "without an aim", TWO),
        Curves("title", "across", "up", {"line": ((1.0, 2.0), (2.0, 0.5)), "none": ()}, logarithmic=True),
        Remark("text"),
        Checked("logs", 2, ["7 events"], ["a gap"]),
    ),
    (0.001, 0.002),
    "RuntimeError: planted",
)


def test_a_sheet_comes_back_from_its_json() -> None:
    """Every kind of finding, and the noise."""
    assert from_json(to_json(SHEET)) == SHEET


@pytest.mark.parametrize(
    "text", ["", "{", "3", '{"findings": 3}', '{"findings": [{"kind": "cat"}]}', '{"noise": ["x"]}']
)
def test_what_is_no_sheet_is_refused(text: str) -> None:
    """A file cut short by a kill, too."""
    with pytest.raises(ValueError):
        from_json(text)


def breaking(_: Scale) -> Iterator[Found]:
    yield Remark("found")
    raise RuntimeError("planted")


def test_a_run_that_breaks_has_kept_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is written with each finding, which is printed as it is found."""
    kept = tmp_path / "kept.json"
    monkeypatch.setattr("sys.argv", ["bench", "--json", str(kept)])

    with pytest.raises(RuntimeError, match="planted"):
        run("about", breaking)

    assert from_json(kept.read_text()).findings == (Remark("found"),)
    assert capsys.readouterr().out == "found\n"


def violating_and_hanging(_: Scale) -> Iterator[Found]:
    checked("readers", 2, "in a run")
    yield Remark("found")
    raise TimeoutError("the readers did not get everything")


def test_violations_are_counted_although_the_benchmark_then_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the file, with the error, and as the last lines."""
    kept = tmp_path / "kept.json"
    monkeypatch.setattr("sys.argv", ["bench", "--json", str(kept)])

    with pytest.raises(TimeoutError):
        run("about", violating_and_hanging)

    sheet = from_json(kept.read_text())
    assert sheet.findings == (Remark("found"), Checked("readers", 2, ["in a run"]))
    assert sheet.trouble.startswith("TimeoutError: the readers did not get everything (test_findings.py:")
    assert capsys.readouterr().out.splitlines()[-1] == "VIOLATED: readers: 2 violations (in a run)"


def violating(_: Scale) -> Iterator[Found]:
    checked("logs", 3, examples=["a", "b", "c"])
    checked("logs", 1, "4 events", ["d"])
    yield Row("area", "one / two", TWO)


def test_a_violation_is_the_exit_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With the first examples."""
    monkeypatch.setattr("sys.argv", ["bench"])

    with pytest.raises(SystemExit) as ended:
        run("about", violating)

    assert ended.value.code == 1
    assert "VIOLATED: logs: 4 violations (4 events): a | b | c\n" in capsys.readouterr().out


def test_a_path_that_cannot_be_written_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a single benchmark, too."""
    monkeypatch.setattr("sys.argv", ["bench", "--json", "/nosuch/x.json"])

    with pytest.raises(SystemExit) as ended:
        run("about", breaking)

    assert ended.value.code == 2


@pytest.mark.parametrize(("words", "status"), [(["P99"], 2), (["P1", "P2"], 0)])
def test_parts_go_by_their_names(
    words: list[str], status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that there are, are named where one is asked for that is not there."""
    monkeypatch.setattr("sys.argv", ["bench", *words, "--size=0.5"])

    with pytest.raises(SystemExit) as ended:
        run("about", lambda chosen: iter([Remark(" ".join(chosen.only))]), ("P1", "P2", "P3"))

    out, err = capsys.readouterr()
    assert ended.value.code == status
    assert out == "P1 P2\n" if not status else "there is no P99 here; there are P1, P2, P3" in err


@pytest.mark.parametrize("bad", ["--rounds=0", "--size=0", "--size=101", "--size=nan"])
def test_a_scale_out_of_bounds_is_refused(bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything runs."""
    monkeypatch.setattr("sys.argv", ["bench", bad])

    with pytest.raises(SystemExit) as ended:
        run("about", breaking)

    assert ended.value.code == 2
