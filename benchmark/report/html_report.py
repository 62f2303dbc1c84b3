"""One HTML file about a results folder: tables, claims, curves, samples, and the rows behind every number.

The file needs nothing beside itself and runs nothing: pictures and sounds are data: URIs, and its content policy
forbids scripts and whatever would come from elsewhere. Equal rows and files make equal bytes.
"""

from __future__ import annotations

import base64
import io
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmark import registry
from benchmark.api import TASKS, Cell, Inapplicable, UserError, cells
from benchmark.engine.execution import things_of
from benchmark.engine.train import read_log
from benchmark.files import write_file
from benchmark.progress import Report
from benchmark.records.results_file import KEY, dicts_of
from benchmark.records.run_identity import Run
from benchmark.records.selection import Settings
from benchmark.report import listening_sheets, sample_plots
from benchmark.report.plots import png, why_none
from benchmark.tables.claims import claims_about, html_claims, verdicts_of
from benchmark.tables.layout import Page, headed, page_of
from benchmark.tables.render import html_body
from benchmark.tables.summary import by_method, column_rows
from benchmark.tables.table_file import Table, load_table, table_files
from benchmark.templates import render

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

ITEMS = 4  # rows of a table of generated things
SAMPLES_DPI = 80  # of pictures, so that those of ten methods stay a few megabytes

# Methods keep their colour through a chapter; the hues can be told apart on white and on black.
COLOURS = ("#3b82c4", "#d97706", "#2a9d6f", "#c2497d", "#7c6fd0", "#8a8d2b", "#c8553d", "#2aa5b8")
INK, QUIET, LINE = "#010203", "#040506", "#070809"  # in a drawing; the page's own colours take their places
PAGE_COLOURS = {INK: "currentColor", QUIET: "var(--quiet)", LINE: "var(--line)"}


@dataclass(frozen=True)
class Shown:
    """A table with rows: its summary and page, or why it is `refused` in one line."""

    table: Table
    summary: pd.DataFrame | None = None
    page: Page | None = None
    refused: str = ""


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """What there is of one preset, whose numbers meet no other's.

    `rows`: result rows; `left_out`: how many of the folder are of other settings or older code; `claims`: as
    `check_claims` answers, of the datasets that have rows, or why that is refused; `runs`: those behind the rows that
    are on this machine.
    """

    preset: str
    rows: pd.DataFrame
    left_out: int
    tables: Sequence[Shown]
    claims: pd.DataFrame | str
    runs: Sequence[Run] = ()


@dataclass(frozen=True)
class Section:
    """A heading of a `level` (2 or 3) and the HTML below it, as `render` returns it, or why it is `refused`; `short`:
    the heading in the contents."""

    level: int
    title: str
    body: str = ""
    short: str = ""
    refused: str = ""


class Group(NamedTuple):
    """Result rows under a heading; `anchor` is the id of their place on the page, if numbers link to it."""

    heading: str
    rows: Sequence[Mapping[str, Any]]
    anchor: str = ""


class Sample(NamedTuple):
    """What is shown under a title: the address of a `picture`, a table of `things`, or why it is `refused`."""

    title: str
    picture: str = ""
    things: str = ""
    refused: str = ""


def chapter_of(settings: Settings) -> Chapter:
    """What there is of the settings' preset. Raises UserError where no row is by this code and these settings."""
    rows = settings.rows()
    datasets = rows["dataset"].str.partition(":")[0]
    try:
        found = [claim for claim in claims_about((), settings.preset) if claim.dataset in set(datasets)]
        claims: pd.DataFrame | str = verdicts_of(rows, found, settings.preset)
    except UserError as refusal:
        claims = str(refusal)
    measured = {dataset: set(methods) for dataset, methods in rows["method"].groupby(datasets)}
    shown = [_shown_of(table, rows, settings) for table in _tables_of(measured, settings.preset)]
    return Chapter(
        preset=settings.preset,
        rows=rows,
        left_out=settings.left_out(rows),
        tables=[each for each in shown if _is_run(each)],
        claims=claims,
        runs=settings.runs_behind(rows),
    )


def _tables_of(measured: Mapping[str, set[str]], preset: str) -> Iterator[Table]:
    """The paper's tables, then the others, of the datasets that have rows; with methods that have rows and no table.

    `measured`: dataset -> its methods that have rows. A few methods of another table's are not this one.
    """
    every = [load_table(name, registry.index("metric"), preset) for name in table_files()]
    listed = {name for table in every for name in table.rows}
    for table in sorted(every, key=lambda table: not table.of_paper):
        methods = measured.get(table.dataset, set())
        if methods and (table.of_paper or 2 * len(methods.intersection(table.methods)) >= len(table.methods)):
            yield replace(table, methods=table.methods + tuple(sorted(methods - listed)))


def _shown_of(table: Table, rows: pd.DataFrame, settings: Settings) -> Shown:
    try:
        return Shown(table, *page_of(rows, table, settings.preset, settings.own))
    except UserError as refusal:
        return Shown(table, refused=str(refusal))


def _is_run(shown: Shown) -> bool:
    """Whether it is refused, or any of its numbers was asked for."""
    return shown.summary is None or bool((shown.summary["status"] != "missing: not run").any())


def write_report(
    title: str, chapters: Sequence[Chapter], out: Path, *, samples: bool, device: str, report: Report
) -> int:
    """Write the page and return its size in bytes. `samples`: draw what trained runs generate, too.

    Raises UserError where the file cannot be written.
    """
    sections = [section for chapter in chapters for section in _sections(chapter, samples, device, report)]
    report("report", 1, 1, str(out))
    rows, presets = sum(len(chapter.rows) for chapter in chapters), [chapter.preset for chapter in chapters]
    page = render("report/report.html.jinja", title=title, sections=sections, rows=rows, presets=presets)
    content = page.encode("utf-8", "backslashreplace")
    write_file(out, content, "name another file with --out")
    return len(content)


def _sections(chapter: Chapter, samples: bool, device: str, report: Report) -> Iterator[Section]:
    def say(done: int, detail: str) -> None:
        report(f"report, preset {chapter.preset}", done, 4, detail)

    looks = _looks(chapter)
    yield Section(2, f"Preset {chapter.preset}", _facts(chapter))
    names, seen = itertools.count(1), set()
    behind = []
    say(0, "tables")
    for shown in chapter.tables:
        if shown.page is None:
            yield Section(3, shown.table.title, refused=shown.refused)
            continue
        rows = _rows_behind(chapter, shown.table, names)
        seen |= {_key(row) for group in rows.values() for row in group.rows}
        links = {number: group.anchor for number, group in rows.items()}
        yield Section(3, shown.page.title, html_body(shown.page, links), shown.table.title)
        behind.append((shown.table.title, list(rows.values())))
    say(1, "plots")
    yield from _plots(chapter, looks)
    if isinstance(chapter.claims, str):
        yield Section(3, "Claims", refused=chapter.claims)
    elif len(chapter.claims):
        yield Section(3, "Claims", html_claims(chapter.claims))
    say(2, "training curves")
    yield from _training(chapter.runs, looks)
    say(3, "samples")
    if samples:
        yield from _samples(chapter.runs, device, report)
    say(4, "done")
    others = [row for row in dicts_of(chapter.rows) if _key(row) not in seen]
    yield Section(3, "The rows behind the numbers", _rows_page(behind, others), "Rows")


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (*(row[name] for name in KEY), row["run_id"])


class Look(NamedTuple):
    """How a method is drawn."""

    colour: str
    line: str
    marker: str


def _looks(chapter: Chapter) -> dict[str, Look]:
    """Of each method with rows that competes in a table, and of those in no table."""
    sanity = {method for shown in chapter.tables for method in shown.table.sanity}
    methods = sorted(set(chapter.rows["method"]) - sanity)
    ways = itertools.cycle(itertools.product(("-o", "--s", ":D"), COLOURS))
    return {method: Look(colour, way[:-1], way[-1]) for method, (way, colour) in zip(methods, ways, strict=False)}


# ---------------------------------------------------------------------------------------------- the numbers


def _facts(chapter: Chapter) -> str:
    """Where the rows come from, as a list of terms."""
    rows = chapter.rows
    ok = int((rows["status"] == "ok").sum())
    count = f"{len(rows)}: {ok} numbers, {len(rows) - ok} with a reason why there is none"
    facts = {"rows": count}
    if chapter.left_out:
        facts["left out"] = f"{chapter.left_out} rows of this preset, of other settings or of older code"
    for term, column in (
        ("datasets", "dataset"),
        ("methods", "method"),
        ("seeds", "seed"),
        ("torch", "torch"),
        ("machines", "device"),
        ("commits", "commit"),
    ):
        values = sorted(set(rows[column]))
        facts[term] = (", " if column != "device" else "; ").join(str(value) for value in values if value != "")
    return render("report/report_facts.html.jinja", facts=facts)


def _rows_behind(chapter: Chapter, table: Table, names: Iterator[int]) -> dict[tuple[str, str], Group]:
    """(method, header of a column) -> the rows of each of a table's numbers, with an id of their own."""
    modalities = registry.card("dataset", table.dataset).modalities
    found = {}
    for column in table.columns:
        wanted = column.cells(table.dataset, modalities)
        rows = by_method(column_rows(chapter.rows, chapter.preset, wanted, column.metric, table.rows))
        for method in table.rows:
            if own := rows.get(method):
                heading = f"{registry.label(method)}, {column.header}: {column.metric}"
                found[method, column.header] = Group(heading, own, f"rows-{chapter.preset}-{next(names)}")
    return found


def _rows_page(tables: Sequence[tuple[str, Sequence[Group]]], others: Sequence[Mapping[str, Any]]) -> str:
    by_number: dict[str, list[Mapping[str, Any]]] = {}
    for row in others:
        by_number.setdefault(f"{row['dataset']}: {registry.label(row['method'])}, {row['metric']}", []).append(row)
    rest = [("rows of no table", list(itertools.starmap(Group, by_number.items())))] if by_number else []
    return render("report/report_rows.html.jinja", tables=[*tables, *rest])


# ---------------------------------------------------------------------------------------------- the plots


def _plots(chapter: Chapter, looks: Mapping[str, Look]) -> Iterator[Section]:
    """Of each table that names a pair of columns: one over the other, a point per method."""
    for shown in chapter.tables:
        for x, y in shown.table.plots if shown.page is not None else ():
            points = _points(shown, x, y)
            if len(points) < 2:
                continue
            title = f"{y} against {x}: {shown.table.title}, {shown.table.dataset}"
            note = "Means and standard errors as in the table. An axis' arrow says whether higher or lower is better."
            name = f"plot {chapter.preset} {title}"
            yield Section(3, title, _plot(name, _scatter, note, shown, x, y, looks))


def _points(shown: Shown, x: str, y: str) -> dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Competing method -> its cells of both columns, where it has numbers in both."""
    assert shown.summary is not None
    found = {(cell["method"], cell["column"]): cell for cell in shown.summary.to_dict("records")}
    return {
        method: (found[method, x], found[method, y])
        for method in shown.table.competing
        if found[method, x]["status"] == found[method, y]["status"] == "ok"
    }


def _plot(name: str, draw: Callable[..., Figure], note: str, *arguments: Any) -> str:
    """A drawing with a note below it, or one line where matplotlib is not there."""
    if missing := why_none():
        return render("report/report_plot.html.jinja", missing=missing)
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.family": "sans-serif"}):
        drawing = _svg(draw(*arguments), name)
    return render("report/report_plot.html.jinja", missing="", name=name, drawing=drawing, note=note)


def _svg(figure: Figure, name: str) -> str:
    """Inline, in the page's own ink, without what names other sites."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawn = buffer.getvalue()
    drawn = re.sub(r"<metadata>.*?</metadata>\s*", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    for colour, own in PAGE_COLOURS.items():
        drawn = drawn.replace(colour, own)
    prefix = re.sub(r"\W+", "-", name)  # ids such as figure_1 are in every drawing
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", drawn)


def _scatter(shown: Shown, x: str, y: str, looks: Mapping[str, Look]) -> Figure:
    from matplotlib.figure import Figure

    points = _points(shown, x, y)
    figure = Figure((7.2, 4.6), layout="constrained")
    ax = figure.subplots()
    ax.margins(0.12)
    for method, (across, up) in points.items():
        ax.errorbar(
            across["value"],
            up["value"],
            xerr=_error(across),
            yerr=_error(up),
            fmt=looks[method].marker,
            color=looks[method].colour,
            markersize=6,
            elinewidth=1.2,
            capsize=2.5,
        )
    for axis, header, place in ((ax.xaxis, x, 0), (ax.yaxis, y, 1)):
        column = next(column for column in shown.table.columns if column.header == header)
        card = registry.card("metric", column.metric)
        axis.set_label_text(headed(column, card))
        positive = all(pair[place]["value"] > 0 for pair in points.values())
        if positive and card.scale == "log":
            (ax.set_xscale, ax.set_yscale)[place]("log", nonpositive="mask")
            _plain_ticks(axis)
    _quieten(ax, "")
    figure.draw_without_rendering()  # where the points come to lie
    _name_points(
        ax, {registry.label(method): (across["value"], up["value"]) for method, (across, up) in points.items()}
    )
    return figure


def _plain_ticks(axis: Axis) -> None:
    """Numbers as people write them on a logarithmic axis, as many as there is room for."""
    low, high = axis.get_view_interval()
    named = "123456789" if high < 3 * low else "235"
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in named else "")


def _error(cell: Mapping[str, Any]) -> float | None:
    return None if math.isnan(cell["stderr"]) else cell["stderr"]


def _name_points(ax: Axes, points: Mapping[str, tuple[float, float]], gap: float = 13.0) -> None:
    """Write each name above and right of its point, lifted further where it would lie on another."""
    places = {name: ax.transData.transform(point) for name, point in points.items()}
    taken: list[tuple[float, float, float]] = []
    for name, (x, y) in sorted(places.items(), key=lambda place: (place[1][1], place[0])):
        width, at = 8.0 * len(name), float(y) + gap
        while any(abs(at - other) < gap and x < right and left < x + width for left, right, other in taken):
            at += 1.0
        taken.append((x, x + width, at))
        ax.annotate(
            name,
            points[name],
            (5, (at - y) * 72 / ax.figure.dpi),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=INK,
            arrowprops={"arrowstyle": "-", "color": QUIET, "linewidth": 0.6} if at - y > 1.5 * gap else None,
        )


def _training(runs: Sequence[Run], looks: Mapping[str, Look]) -> Iterator[Section]:
    """Per dataset, the curves of all methods and seeds."""
    curves: dict[str, list[tuple[Run, list[dict[str, float]]]]] = {}
    for run in runs:
        if curve := list(read_log(run.directory)):
            curves.setdefault(run.dataset_card.label, []).append((run, curve))
    for dataset, found in curves.items():
        note = (
            "A line per seed, a point the mean of the updates since the one before. What the loss consists of differs "
            "between methods: only lines of one method can be compared."
        )
        name = f"training {found[0][0].job.preset} {dataset}"
        yield Section(3, f"Training on {dataset}", _plot(name, _draw_curves, note, found, looks))


def _draw_curves(curves: Sequence[tuple[Run, Sequence[Mapping[str, float]]]], looks: Mapping[str, Look]) -> Figure:
    """Each logged part of the loss on an axis of its own, three in a row; the colours are named below."""
    from matplotlib.figure import Figure

    logged = (name for _, curve in curves for line in curve for name in line if name != "update")
    parts = list(dict.fromkeys(logged))
    across = min(3, len(parts))
    down = math.ceil(len(parts) / across)
    figure = Figure((3.6 * across, 2.7 * down + 0.6), layout="constrained")
    grid = list(figure.subplots(down, across, squeeze=False).flat)
    for ax in grid[len(parts) :]:
        ax.set_axis_off()
    handles: dict[str, Any] = {}
    for ax, part in zip(grid, parts, strict=False):
        for run, curve in curves:
            points = [(line["update"], line[part]) for line in curve if part in line]
            if not points:
                continue
            look = looks[registry.stem(run.job.method)]
            marker = look.marker if len(points) == 1 else ""
            style = {"color": look.colour, "linestyle": look.line, "marker": marker}
            (handle,) = ax.plot(*zip(*points, strict=True), linewidth=1.2, markersize=4, **style)
            handles.setdefault(run.method_card.label, handle)
        ax.set_xlabel("updates")
        _quieten(ax, part)
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=9, labelcolor=INK
    )
    return figure


def _quieten(ax: Axes, title: str) -> None:
    ax.set_title(title, fontsize=10, color=INK)
    ax.spines[:].set_color(LINE)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(which="both", colors=QUIET, labelsize=8)
    ax.xaxis.label.set(color=QUIET, fontsize=9)
    ax.yaxis.label.set(color=QUIET, fontsize=9)
    ax.grid(color=LINE, linewidth=0.5)
    ax.set_axisbelow(True)


# ---------------------------------------------------------------------------------------------- the samples


def _samples(runs: Sequence[Run], device: str, report: Report) -> Iterator[Section]:
    """Per dataset, what the trained methods generate with their first seed; what cannot be shown says why."""
    first: dict[tuple[str, str], Run] = {}
    for run in sorted(runs, key=lambda run: run.job.seed):
        if run.method_card.stages and run.directory.is_dir():
            first.setdefault((run.job.dataset, run.job.method), run)
    shown = {run.run_id for run in first.values()}
    for dataset in dict.fromkeys(run.job.dataset for run in runs):
        own = [run for run in runs if run.run_id in shown and run.job.dataset == dataset]
        if not own:
            continue
        things = hasattr(registry.load("dataset", dataset), "render")
        body = _things(own, device, report) if things else _pictures(own, device, report)
        yield Section(3, f"Samples of {own[0].dataset_card.label}", body)


def _things(runs: Sequence[Run], device: str, report: Report) -> str:
    """A table per direction of the pictures, sounds and sentences that scoring left on the disk."""
    first, data, refused = runs[0], None, ""
    report("originals", 0, 1, registry.stem(first.job.dataset))
    try:
        data = registry.load("dataset", first.job.dataset, first.config.own_values)(first.config, device)
    except UserError as reason:
        refused = f"Without the real ones: {reason}"
    report("originals", 1, 1, registry.stem(first.job.dataset))
    name, modalities = registry.stem(first.job.dataset), first.dataset_card.modalities
    directions = [cell for task in ("uncond", *TASKS[:-1]) for cell in cells(name, modalities, task)]
    samples = []
    for cell in directions:
        kept = [(run, things_of(run, cell, read_only=True)) for run in runs]
        rows = min((len(each) for _, each in kept if len(each)), default=0)
        rows = min(ITEMS, rows)
        if not rows:
            continue
        made = [
            listening_sheets.Column(f"{run.method_card.label}, seed {run.job.seed}", each.read(0, rows, cell.want))
            for run, each in kept
            if len(each)
        ]
        real = listening_sheets.originals(data, cell, rows) if data is not None else []
        rate = max(each.sample_rate for _, each in kept)
        if data is not None:
            rate = rate or data.sample_rate
        table = listening_sheets.table_of([*real, *made], rate, _data_uri)
        samples.append(Sample(cell.question, things=table))
    note = "" if samples else "Nothing that was generated is kept here: bench sheets generates some."
    return render("report/report_samples.html.jinja", refused=refused, note=note, samples=samples)


def _data_uri(name: str, content: bytes) -> str:
    kind = {".png": "image/png", ".wav": "audio/wav"}[Path(name).suffix]
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _pictures(runs: Sequence[Run], device: str, report: Report) -> str:
    """A picture per method of what it generates from nothing."""
    samples: list[Sample] = []
    if missing := why_none():
        return render("report/report_samples.html.jinja", refused="", note=f"No pictures: {missing}", samples=samples)
    for number, run in enumerate(runs):
        report(f"samples of {registry.stem(run.job.dataset)}", number, len(runs), registry.stem(run.job.method))
        try:
            picture = sample_plots.sampled_picture(run, (), None, device)
        except (UserError, Inapplicable) as reason:
            samples.append(Sample(run.method_card.label, refused=str(reason)))
            continue
        if picture is not None:
            about = f"{run.method_card.label}, seed {run.job.seed}: {_from_nothing(run)}"
            samples.append(Sample(about, picture=_data_uri("picture.png", png(picture, SAMPLES_DPI))))
    report(f"samples of {registry.stem(runs[0].job.dataset)}", 1, 1, "done")
    return render("report/report_samples.html.jinja", refused="", note="", samples=samples)


def _from_nothing(run: Run) -> str:
    return Cell(registry.stem(run.job.dataset), (), run.dataset_card.modalities).question
