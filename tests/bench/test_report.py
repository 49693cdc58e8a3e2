"""The report: what stands first, what is escaped, what stands in the place of plots; nothing in it measures."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import bench.report as room
import pytest
from bench.findings import Checked, Curves, Found, Remark, Row, at_least, at_most
from bench.report import Part, Report, as_html, figure, numbers, rare, row_lines, write
from bench.rounds import Ratio

LINES = Curves("How it grows", "events", "us", {"ours": [(1, 2.5), (100, 3)], "other": [(1, 2)]}, logarithmic=True)


def row(name: str, median: float, **more: object) -> Row:
    return Row("hops", name, Ratio(median, median / 2, median * 2, 5), **more)  # type: ignore[arg-type]


def made(*findings: Found, trouble: str = "", noise: tuple[float, ...] = (0.001, 0.0015)) -> Report:
    """A report of two benchmarks; the second found nothing."""
    parts = (Part("hops", "Hops.", 2.4, findings, noise), Part("peers", "Peers.", 600.0, trouble=trouble))
    return Report("2031-05-06 07:08+00:00", 5, {"CPU": "a slow one"}, {"trio": "0.35.0"}, parts)


FULL = made(
    row("good / bare", 1.5, aim=at_most(2), remark="3 us against 2 us"),
    row("poor / bare", 2.5, aim=at_most(2)),
    row("no aim / bare", 0.004),
    LINES,
    LINES,
    Remark("a remark"),
    Checked("logs", 0, ["9 events"]),
    Checked("readers", 3, ["in 2 runs"], ["seq 7 came twice"]),
    trouble="exit status 1: RuntimeError: planted",
)


@pytest.fixture(params=["html", "md"])
def page(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    path = tmp_path / f"report.{request.param}"
    write(FULL, path)
    return path.read_text()


def test_the_head_says_what_counts_then_what_failed_and_missed_then_the_rows(page: str) -> None:
    """Nobody has to look for a missed aim, and no absolute figure stands before the warning."""
    wanted = [
        "Absolute figures",
        "3 rows, 2 of them judged by an aim: 1 met, 1 missed. 1 of 2 benchmarks came to their end.",
        "Outside checkers found 3 violations (2 checks).",
        "FAILED: peers: exit status 1: RuntimeError: planted",
        "VIOLATED: hops: readers: 3 violations (in 2 runs): seq 7 came twice",
        "MISSED ~: poor / bare: 2.50 x (1.25 to 5.00, 5 rounds), aim ",
        "the median was 1.25 times its fastest, the slowest 1.50 times",
        "good / bare",
        "9 events",
        "a remark",
        "a slow one",
        "0.35.0",
    ]
    places = [page.index(words) for words in wanted]

    assert places == sorted(places)


def test_plots_are_drawn_or_their_numbers_stand_there(page: str) -> None:
    """With matplotlib there is a picture of each, without it a table and a word about it."""
    assert page.count("<svg") + page.count("![") == (2 if room.can_plot() else 0)
    assert (room.NO_PLOTS.partition(":")[0] in page) is not room.can_plot()


@pytest.mark.parametrize("ending", ["html", "md"])
def test_without_matplotlib_the_numbers_stand_there(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the page says why."""
    monkeypatch.setattr(room, "can_plot", lambda: False)
    path = tmp_path / f"report.{ending}"

    write(FULL, path)

    assert "matplotlib is not installed" in path.read_text()
    assert "<svg" not in path.read_text() and "![" not in path.read_text()
    assert re.search(r"100\W.*3\b", path.read_text(), re.DOTALL)
    assert list(tmp_path.iterdir()) == [path]


def test_numbers_have_a_row_for_each_place_and_a_gap_where_a_line_has_none() -> None:
    """Long lines are thinned."""
    table = numbers(LINES)
    long = numbers(Curves("long", "x", "y", {"one": [(x, x) for x in range(1_000)]}))

    assert table.columns == ("events", "ours", "other")
    assert table.groups[""] == [("1", "2.5", "2"), ("100", "3", "")]
    assert 1 < len(long.groups[""]) <= room.POINTS_MAX


HOSTILE = (
    """<script>alert("1")</script> & 'q' | pipe ` $x$ \\ *b* [l](http://x.invalid) \n second <img src=x onerror=y>"""
)
HOSTILE_REPORT = Report(
    HOSTILE,
    5,
    {HOSTILE: HOSTILE},
    {"a" + HOSTILE: HOSTILE},
    (
        Part(
            HOSTILE,
            HOSTILE,
            1.0,
            (
                Row(HOSTILE, HOSTILE, Ratio(2, 1, 3, 1), at_least(5), HOSTILE),
                Curves(HOSTILE, HOSTILE, HOSTILE, {HOSTILE: [(1, 2), (2, 3)], "other": [(1, 1)]}),
                Remark(HOSTILE),
                Checked(HOSTILE, 1, [HOSTILE], [HOSTILE]),
            ),
            trouble=HOSTILE,
        ),
    ),
)


class Elements(HTMLParser):
    """Every element and every attribute of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]


@pytest.mark.parametrize("report", [FULL, HOSTILE_REPORT], ids=["full", "hostile"])
def test_the_page_is_one_file_without_scripts_whatever_a_benchmark_says(report: Report) -> None:
    """It loads nothing, runs nothing, and no two elements have one id."""
    elements = Elements()
    elements.feed(as_html(report))
    ids = Counter(value for name, value in elements.attributes if name == "id")

    assert not {"script", "img", "link", "iframe", "object", "b"} & set(elements.tags)
    assert not [name for name, _ in elements.attributes if name.startswith("on") or name == "src"]
    assert not [value for name, value in elements.attributes if "href" in name and not value.startswith("#")]
    assert not [identity for identity, count in ids.items() if count > 1]


def test_markdown_keeps_its_tables_and_links_whatever_a_benchmark_says(tmp_path: Path) -> None:
    """Each row has the cells of its head, and each picture is beside the page."""
    path = tmp_path / "report.md"
    write(HOSTILE_REPORT, path)
    text = path.read_text()

    for table in re.findall(r"(?m)(?:^\|.*\n)+", text):
        widths = {len(re.findall(r"(?<!\\)\|", line.replace("\\\\", ""))) for line in table.splitlines()}
        assert len(widths) == 1, table
    pictures = re.findall(r"(?m)^!\[.*\]\((\S+)\)$", text)
    assert len(pictures) == (1 if room.can_plot() else 0)
    assert all((tmp_path / picture).is_file() for picture in pictures)
    assert not re.search(r"(?<!\\)<(?=[a-z/])", text)


def test_lines_that_cannot_be_drawn_do_not_stop_a_report(tmp_path: Path) -> None:
    """No points, no positive ones, nothing finite; one point alone."""
    nan, inf = float("nan"), float("inf")
    odd: list[dict[str, list[tuple[float, float]]]] = [
        {},
        {"none": []},
        {"zero": [(0, 0)], "none": []},
        {"odd": [(1, nan), (2, inf), (3, -1)]},
        {"_one": [(5, 5)]},
        {"tiny": [(1e-9, 1e-12), (1e9, 1e12)]},
        {"near": [(1, 100), (2, 101)]},
    ]
    curves = [Curves("odd", "x", "y", lines, logarithmic) for lines in odd for logarithmic in (False, True)]
    curves += [Curves("tail", room.PERCENTILE, "ms", {"of": points}) for points in ([(100, 1)], [(50, 1), (99.9, 7)])]

    write(made(*curves), tmp_path / "report.html")
    write(made(*curves), tmp_path / "report.md")

    assert (tmp_path / "report.html").read_text().count("<figcaption>") == 12


def test_percentiles_stand_as_far_apart_as_they_are_rare() -> None:
    """A tenth of what is above is one step; the greatest value of all has no tail and stands one further."""
    assert rare([0, 90, 99, 100]) == pytest.approx({0: 0.0, 90: 1.0, 99: 2.0, 100: 3.0})
    assert rare([100]) == {100: 1.0}


def test_a_report_of_nothing_can_be_written(tmp_path: Path) -> None:
    """When every benchmark failed there is still a page that says so."""
    write(made(trouble="not done after 600 s", noise=()), tmp_path / "report.html")

    text = (tmp_path / "report.html").read_text()
    assert "There is none." in text
    assert "No noise was measured." in text
    assert "not done after 600 s" in text


def test_the_table_for_the_documents_has_the_rows_and_nothing_else() -> None:
    """`~` where the spread lies on both sides of the aim."""
    assert row_lines(FULL).splitlines() == [
        "| area | ours / other | median | spread | rounds | aim | verdict | bench |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- | --- |",
        "| hops | good / bare | 1.50 x | 0.750 to 3.00 | 5 | <= 2 x | met ~ | hops |",
        "| hops | poor / bare | 2.50 x | 1.25 to 5.00 | 5 | <= 2 x | MISSED ~ | hops |",
        "| hops | no aim / bare | 0.0040 x | 0.0020 to 0.0080 | 5 |  |  | hops |",
    ]


def test_an_aim_of_a_larger_size_is_shown_and_not_judged() -> None:
    """A small run flips verdicts: there the row says its size, and is neither met nor missed."""
    small = row("a session / 4 KiB", 1.04, aim=at_most(1, from_size=1), size=0.1)
    report = made(small, row("the same", 1.04, aim=at_most(1, from_size=1), size=1.0))

    assert [one.name for one in report.missed] == ["the same"]
    assert "2 rows, 1 of them judged by an aim: 0 met, 1 missed. 1 hold at a larger size only" in report.summary()
    assert "| <= 1 x | at size 0.1 | hops |" in row_lines(report)
    assert "at size 0.1" in str(small)


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0.00"), (0.00412, "0.0041"), (0.5, "0.500"), (99.994, "99.99"), (12_345.6, "12,346")]
)
def test_figures_have_about_three_digits(value: float, shown: str) -> None:
    """Small ratios do not become nothing."""
    assert figure(value) == shown
