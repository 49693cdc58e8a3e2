"""One report of what all benchmarks found: a list of blocks, written as one HTML page or as Markdown.

What is said is decided once, in `blocks`; the two forms only differ in how a block looks. The page is one file, needs
no script, follows the reader's dark or light, and escapes whatever a benchmark said. Plots are drawn by matplotlib;
where it is not installed, the numbers stand in their place. Nothing here measures anything.
"""

from __future__ import annotations

import html
import importlib.util
import io
import itertools
import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from .findings import MISSED, STOPPED, Checked, Curves, Found, Remark, Row
from .rounds import Ratio

HEAD: Final = (
    "What counts here are ratios: two sides took turns in one run, and a row has the median over the rounds and the "
    "spread from the lowest to the highest. Absolute figures, in remarks, plots and below, are for orientation only: "
    "they belong to this machine on this day, and are no claim about any other."
)
NO_PLOTS: Final = "matplotlib is not installed: numbers stand in place of plots (`pip install '.[bench]'`)."
POINTS_MAX: Final = 40
"""Rows of a table of numbers; of longer lines it has every n-th point."""


@frozen
class Part:
    """One benchmark of the tour: what it found before it ended, and how it ended."""

    name: str
    about: str
    took_s: float
    findings: tuple[Found, ...] = ()
    noise: tuple[float, ...] = ()
    trouble: str = ""
    """Why it did not come to its end; empty when it did."""
    size: float = 1.0

    @property
    def violated(self) -> list[Checked]:
        return [found for found in self.findings if isinstance(found, Checked) and found.violations]


@frozen
class Report:
    """All of one tour."""

    began: str
    rounds: int
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    parts: tuple[Part, ...]

    @property
    def rows(self) -> list[Row]:
        return [found for part in self.parts for found in part.findings if isinstance(found, Row)]

    @property
    def curves(self) -> list[Curves]:
        """Those that have a point to show."""
        found = [found for part in self.parts for found in part.findings if isinstance(found, Curves)]
        return [curves for curves in found if any(curves.lines.values())]

    @property
    def missed(self) -> list[Row]:
        return [row for row in self.rows if row.verdict == MISSED]

    @property
    def failed(self) -> list[Part]:
        return [part for part in self.parts if part.trouble]

    @property
    def violated(self) -> list[Part]:
        return [part for part in self.parts if part.violated]

    @property
    def stopped(self) -> bool:
        return any(part.trouble == STOPPED for part in self.parts)

    def grave(self) -> Iterator[str]:
        """What nobody should have to look for."""
        for part in self.failed:
            yield f"FAILED: {part.name}: {part.trouble}"
        for part in self.violated:
            yield from (f"VIOLATED: {part.name}: {one}" for one in part.violated)
        for row in self.missed:
            edge = ", on the edge" if row.on_the_edge else ""
            yield f"MISSED{' ~' if edge else ''}: {row.name}: {told(row.ratio)}, aim {row.aim}{edge}"

    @property
    def fastest_s(self) -> float | None:
        """The shortest time of the fixed loop in any part: what the others are compared with."""
        return min((taken for part in self.parts for taken in part.noise), default=None)

    def summary(self) -> str:
        judged = sum(row.judged for row in self.rows)
        counts = f"{judged - len(self.missed)} met, {len(self.missed)} missed"
        smaller = sum(row.aim is not None and not row.judged for row in self.rows)
        more = f" {smaller} hold at a larger size only and are not judged." if smaller else ""
        done = f"{len(self.parts) - len(self.failed)} of {len(self.parts)} benchmarks came to their end."
        checks = [found for part in self.parts for found in part.findings if isinstance(found, Checked)]
        found = sum(one.violations for one in checks)
        looked = f" Outside checkers found {found or 'no'} violation{'' if found == 1 else 's'} ({len(checks)} checks)."
        return f"{len(self.rows)} rows, {judged} of them judged by an aim: {counts}.{more} {done}{looked}"

    def noise(self) -> str:
        """How much the machine swayed, in one sentence."""
        if self.fastest_s is None:
            return "No noise was measured."
        of_all = [taken / self.fastest_s for part in self.parts for taken in part.noise]
        median, slowest = statistics.median(of_all), max(of_all)
        return (
            f"A loop that never changes was timed {len(of_all)} times, between the rounds of all: the median was "
            f"{median:.2f} times its fastest, the slowest {slowest:.2f} times."
        )


# blocks


@frozen
class Heading:
    text: str


@frozen
class Text:
    text: str
    grave: bool = False


@frozen
class Table:
    """Rows in groups; a group without a title stands alone. The first columns are words, `numbers` are figures."""

    columns: tuple[str, ...]
    groups: Mapping[str, Sequence[tuple[str, ...]]]
    numbers: frozenset[str] = frozenset()
    group: str = ""


@frozen
class Plot:
    curves: Curves


Block = Heading | Text | Table | Plot


def blocks(report: Report) -> Iterator[Block]:
    """What the report says, in order."""
    yield Text(HEAD)
    grave = list(report.grave())
    yield Text(report.summary(), grave=bool(grave))
    for line in grave:
        yield Text(line, grave=True)
    yield Text(report.noise())
    yield Heading("Rows")
    yield row_table(report) if report.rows else Text("There is none.")
    if report.curves:
        yield Heading("Plots")
        if not can_plot():
            yield Text(NO_PLOTS)
        yield from map(Plot, report.curves)
    checks = {
        part.name: [
            (found.name, f"{found.violations}", "; ".join([*found.looked, *found.examples]))
            for found in part.findings
            if isinstance(found, Checked)
        ]
        for part in report.parts
    }
    if any(checks.values()):
        yield Heading("Outside checkers")
        groups = {name: told for name, told in checks.items() if told}
        yield Table(("what was checked", "violations", "remark"), groups, frozenset({"violations"}), group="benchmark")
    remarks = {
        part.name: [(found.text,) for found in part.findings if isinstance(found, Remark)] for part in report.parts
    }
    if any(remarks.values()):
        yield Heading("Remarks")
        yield Table(("remark",), {name: said for name, said in remarks.items() if said}, group="benchmark")
    yield Heading("Where and when")
    sizes = dict.fromkeys(f"{part.size:g}" for part in report.parts)
    about = {"began": report.began, "rounds": f"{report.rounds} a pair", "size": f"{', '.join(sizes)} of the full one"}
    if len(sizes) > 1:
        about["sizes"] = ", ".join(f"{part.name} {part.size:g}" for part in report.parts)
    facts = {"the run": about, "the machine": report.machine, "versions": report.versions}
    yield Table(("fact", "here"), {title: list(known.items()) for title, known in facts.items()}, group="of")
    yield Heading("Noise")
    yield noise_table(report)


def row_table(report: Report) -> Table:
    areas: dict[str, list[tuple[str, ...]]] = {}
    for part in report.parts:
        for row in part.findings:
            if isinstance(row, Row):
                median, spread, rounds = cells_of(row.ratio)
                aim = "" if row.aim is None else str(row.aim)
                verdict = f"{row.verdict} ~" if row.on_the_edge else row.verdict
                module = part.name.rpartition(".")[2]
                areas.setdefault(row.area, []).append(
                    (row.name, median, spread, rounds, aim, verdict, module, row.remark)
                )
    columns = ("ours / other", "median", "spread", "rounds", "aim", "verdict", "bench", "remark")
    return Table(columns, areas, frozenset({"median", "spread", "rounds", "aim"}), group="area")


def cells_of(ratio: Ratio) -> tuple[str, str, str]:
    """Median, spread, rounds."""
    return f"{figure(ratio.median)} x", f"{figure(ratio.low)} to {figure(ratio.high)}", str(ratio.rounds)


def told(ratio: Ratio) -> str:
    return "{} ({}, {} rounds)".format(*cells_of(ratio))


def noise_table(report: Report) -> Table:
    rows = []
    for part in report.parts:
        swayed = [taken / (report.fastest_s or 1) for taken in part.noise]
        median, slowest = (f"{statistics.median(swayed):.2f}", f"{max(swayed):.2f}") if swayed else ("", "")
        rows.append((part.name, f"{part.took_s:.0f} s", str(len(swayed)), median, slowest, part.trouble or "done"))
    columns = ("benchmark", "took", "timings", "median / fastest", "slowest / fastest", "end")
    return Table(columns, {"": rows}, frozenset(columns[1:-1]))


def numbers(curves: Curves) -> Table:
    """The points of the lines, one row for each place across."""
    lines = {name: dict(points) for name, points in curves.lines.items()}
    places = sorted({x for points in lines.values() for x in points})
    shown = places[:: -(-len(places) // POINTS_MAX) or 1]
    rows = [(f"{x:g}", *(f"{points[x]:.4g}" if x in points else "" for points in lines.values())) for x in shown]
    columns = (curves.across, *lines)
    return Table(columns, {"": rows}, frozenset(columns))


def figure(value: float) -> str:
    """Three digits or so, from hundredths to thousands."""
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if size >= 1 or size == 0 else f"{value:.3f}" if size >= 0.1 else f"{value:#.2g}"


# plots

INK: Final = "#123456"
"""Drawn with, then replaced: on the page it is the colour of the text around it."""
COLOURS: Final = ("#4e8fd0", "#e8862e", "#4fa65a", "#d9575c", "#a678b8", "#3fb0ac", "#a98467", "#c9a227")
MARKS: Final = "os^Dvph*"
PERCENTILE: Final = "percentile"
"""What stands across when the places are percentiles."""
LEGEND_CHARS: Final = 96
DECADES: Final = 30


def can_plot() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def plot(curves: Curves, ink: str, paper: str = "none") -> str:
    """One `<svg>`, whose text stays text. A logarithmic one is so upwards, and across where that spans decades.

    Percentiles stand as far apart as they are rare.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    settings: dict[Any, Any] = dict.fromkeys(inked, INK) | {
        "axes.facecolor": "none",
        "svg.fonttype": "none",
        "svg.hashsalt": "the same picture from the same numbers",
        "text.parse_math": False,
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.alpha": 0.15,
    }
    lines = {name: points for name, points in curves.lines.items() if points}
    across = sorted({x for points in lines.values() for x, _ in points})
    places = rare(across) if curves.across == PERCENTILE else {x: x for x in across}
    with rc_context(settings):
        drawing = Figure(figsize=(7.6, 3.6), layout="constrained")
        axes = drawing.add_subplot()
        for number, (name, points) in enumerate(lines.items()):
            mark = MARKS[number % len(MARKS)] if len(points) <= POINTS_MAX else None
            colour = COLOURS[number % len(COLOURS)]
            xs, ys = [places[x] for x, _ in points], [y for _, y in points]
            axes.plot(xs, ys, label=name, color=colour, marker=mark, markersize=4.5, linewidth=1.8)
        axes.set(xlabel=curves.across, ylabel=curves.up)
        axes.grid(True)
        if curves.across == PERCENTILE:
            axes.set_xticks([places[x] for x in across], [f"{x:g}" for x in across])
        else:
            _scale(axes.xaxis, across, curves.logarithmic, DECADES)
        _scale(axes.yaxis, [y for points in lines.values() for _, y in points], curves.logarithmic, 1)
        if len(lines) > 1:
            columns = max(1, min(8, LEGEND_CHARS // (max(map(len, lines)) + 6)))
            drawing.legend(frameon=False, loc="outside upper left", ncols=columns)
        buffer = io.StringIO()
        drawing.savefig(buffer, format="svg", metadata={"Date": None}, facecolor=paper)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace(INK, ink)


def rare(percentiles: Sequence[float]) -> dict[float, float]:
    """Where each percentile stands: a step further when ten times fewer are above it; the greatest of all one more."""
    places = {one: -math.log10(1 - one / 100) for one in percentiles if one < 100}
    return places | {one: max(places.values(), default=0.0) + 1 for one in percentiles if one >= 100}


def _scale(axis: Any, values: Sequence[float], logarithmic: bool, least_span: float) -> None:
    """Plain numbers at the ticks. Logarithmic where asked and where it spans that much."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    plain = FuncFormatter(lambda value, _: f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:g}")
    above = [value for value in values if 0 < value < math.inf]
    span = max(above) / min(above) if above else 0.0
    if logarithmic and span >= least_span:
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        if 3 <= span < DECADES:
            axis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
        axis.set_minor_formatter(plain if span < DECADES else NullFormatter())
    axis.set_major_formatter(plain)


def own_ids(svg: str, prefix: str) -> str:
    """The same picture with ids that no other on the page has."""
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)


# HTML

STYLE: Final = """
:root { color-scheme: light dark; --ink: #1d2329; --soft: #5b6670; --paper: #fdfdfc; --line: #dfe2e5;
  --band: #f1f3f4; --bad: #b3261e; --good: #1f7a3d }
@media (prefers-color-scheme: dark) { :root { --ink: #dfe3e6; --soft: #98a3ad; --paper: #15181b; --line: #30363c;
  --band: #1f2429; --bad: #ff8a80; --good: #7ccf93 } }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif }
h1 { font-size: 1.7rem; margin: 0 0 1rem } h2 { font-size: 1.2rem; margin: 2.4rem 0 .7rem }
p { max-width: 56rem; margin: .5rem 0 } .grave { color: var(--bad); font-weight: 600 }
.wide { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-size: .9rem }
th, td { text-align: left; vertical-align: top; padding: .32rem .5rem; border-bottom: 1px solid var(--line) }
thead th { color: var(--soft); font-weight: 500; white-space: nowrap }
th.group { background: var(--band); font-weight: 600 }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.name { min-width: 17rem } .remark { color: var(--soft); font-size: .84rem; min-width: 14rem; overflow-wrap: anywhere;
  white-space: pre-line }
.fact { color: var(--soft); width: 10rem } .met { color: var(--good) } .missed { color: var(--bad); font-weight: 700 }
figure { margin: 1.4rem 0 2rem } figcaption { font-weight: 600; margin-bottom: .3rem }
figure svg { display: block; width: 100%; max-width: 50rem; height: auto; color: var(--ink) }
figure svg text { font-family: inherit !important }
details { color: var(--soft); margin-top: .4rem } details table { width: auto; color: var(--ink) }
"""
GRAVE: Final = ' class="grave"'
CLASSES: Final = {"ours / other": "name"} | {name: name for name in ("remark", "fact", "met", "missed")}
"""Of a cell, by its column, or by its verdict."""


def as_html(report: Report) -> str:
    """The whole page."""
    body = "\n".join(map(_html, blocks(report), itertools.count()))
    title = f"turnlane, measured {report.began}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _html(block: Block, number: int) -> str:
    match block:
        case Heading(text):
            return f"<h2>{html.escape(text)}</h2>"
        case Text(text, grave):
            return f"<p{GRAVE if grave else ''}>{html.escape(text)}</p>"
        case Table():
            return _html_table(block)
        case Plot(curves):
            title = html.escape(curves.title)
            table = _html_table(numbers(curves))
            if not can_plot():
                return f"<figure><figcaption>{title} ({html.escape(curves.up)})</figcaption>{table}</figure>"
            drawn = own_ids(plot(curves, "currentColor"), f"p{number}")
            points = f"<details><summary>numbers ({html.escape(curves.up)})</summary>{table}</details>"
            return f"<figure><figcaption>{title}</figcaption>{drawn}{points}</figure>"


def _html_table(table: Table) -> str:
    def row(tag: str, cells: Sequence[str]) -> str:
        shown = []
        for column, cell in zip(table.columns, cells, strict=True):
            kind = CLASSES.get(cell.lower() if column == "verdict" else column, "")
            if column in table.numbers:
                kind = "number"
            marked = f' class="{kind}"' if kind else ""
            shown.append(f"<{tag}{marked}>{html.escape(cell)}</{tag}>")
        return f"<tr>{''.join(shown)}</tr>"

    lines = ['<div class="wide"><table>', f"<thead>{row('th', table.columns)}</thead>"]
    for title, rows in table.groups.items():
        over = f'<tr><th class="group" colspan="{len(table.columns)}">{html.escape(title)}</th></tr>' if title else ""
        lines.append(f"<tbody>{over}{''.join(row('td', cells) for cells in rows)}</tbody>")
    return "\n".join([*lines, "</table></div>"])


# Markdown


def as_markdown(report: Report, pictures: Mapping[int, str]) -> str:
    """The page; `pictures` has the file of each plot, by its place among the curves. Without one, its numbers."""
    lines = [f"# turnlane, measured {_plain(report.began)}"]
    places = iter(range(len(report.curves)))
    for block in blocks(report):
        match block:
            case Heading(text):
                lines.append(f"## {_plain(text)}")
            case Text(text, grave):
                lines.append(f"**{_plain(text)}**" if grave else _plain(text))
            case Table():
                lines.append(_markdown_table(block))
            case Plot(curves):
                place = next(places)
                lines.append(f"### {_plain(curves.title)}")
                picture = pictures.get(place)
                lines.append(f"![{_plain(curves.title)}]({picture})" if picture else f"Cells: {_plain(curves.up)}.")
                if picture is None:
                    lines.append(_markdown_table(numbers(curves)))
    return "\n\n".join(lines) + "\n"


def _markdown_table(table: Table) -> str:
    """A group's title is the first cell of its rows."""
    before = (table.group,) if table.group else ()
    columns = (*before, *table.columns)
    lines = [columns, tuple("---:" if name in table.numbers else "---" for name in columns)]
    for title, rows in table.groups.items():
        lines += [(*([title] if before else []), *cells) for cells in rows]
    return "\n".join(f"| {' | '.join(map(_plain, line))} |" for line in lines)


def _plain(text: str) -> str:
    """On one line, with nothing that Markdown or HTML would take for its own."""
    return re.sub(r"([\\|*\[\]]|<(?=[A-Za-z/!?]))", r"\\\1", " ".join(text.split()))


def row_lines(report: Report) -> str:
    """The Markdown table of docs/performance.md: its rows and nothing else."""
    wanted = ("ours / other", "median", "spread", "rounds", "aim", "verdict", "bench")
    full = row_table(report)
    at = [full.columns.index(name) for name in wanted]
    groups = {area: [tuple(cells[place] for place in at) for cells in rows] for area, rows in full.groups.items()}
    return _markdown_table(Table(wanted, groups, full.numbers, full.group))


# files


def write(report: Report, path: Path) -> None:
    """Write it as the ending of the name says: `.html`, or `.md` with its plots in a folder beside it."""
    if path.suffix == ".html":
        path.write_text(as_html(report))
        return
    pictures: dict[int, str] = {}
    if report.curves and can_plot():
        folder = path.with_name(f"{path.stem}-plots")
        folder.mkdir(exist_ok=True)
        for number, curves in enumerate(report.curves):
            slug = re.sub(r"[^a-z0-9]+", "-", curves.title.lower()).strip("-")[:60]
            picture = folder / f"{number + 1:02}-{slug or 'plot'}.svg"
            picture.write_text(plot(curves, "#1d2329", "white"))
            pictures[number] = f"{folder.name}/{picture.name}"
    path.write_text(as_markdown(report, pictures))
