"""What stands in a table, in every format alike: its blocks of rows and entries, footnotes and the caption."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmark import registry
from benchmark.api import DatasetCard, MethodCard, MetricCard
from benchmark.config import resolve
from benchmark.records.results_file import is_stand_in
from benchmark.tables.summary import conditions, load_paper, mean, paper_values, refuse, summarise
from benchmark.tables.table_file import Column, Table
from benchmark.toml_files import known_name

if TYPE_CHECKING:
    import pandas as pd

COSTS = (  # column of the results, header, format
    ("parameters", "parameters", "{:,.0f}"),
    ("train_seconds", "training, s", "{:.0f}"),
    ("peak_memory_mb", "peak memory, MB", "{:,.0f}"),
    ("sample_seconds", "sampling 1,000 rows, s", "{:.2g}"),
)
STAND_IN = "a stand-in: untrained weights in the model's layout, which say nothing of the model"
ONE_SEED = "One seed: ± is the standard error over rows, not over trainings"


@dataclass(frozen=True)
class Entry:
    """One printed number: `text` without marks, the number itself, and footnote numbers. `column`: the header of the
    column whose result rows are behind it; empty where there are none."""

    text: str
    value: float | None = None
    stderr: float | None = None
    status: str = "ok"
    best: bool = False
    notes: tuple[int, ...] = ()
    column: str = ""


@dataclass(frozen=True)
class Row:
    method: str
    label: str
    notes: tuple[int, ...]
    sanity: bool
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Block:
    """Rows of one heading. `group`: so many neighbouring columns are never parted."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[Row, ...]
    group: int = 1


@dataclass(frozen=True, kw_only=True)
class Page:
    """What every format prints of a table at a preset: blocks, numbered footnotes and the caption's lines."""

    table: str
    preset: str
    title: str
    blocks: tuple[Block, ...]
    footnotes: tuple[str, ...]
    caption: tuple[str, ...]


def page_of(frame: pd.DataFrame, table: Table, preset: str, own: Sequence[str] = ()) -> tuple[pd.DataFrame, Page]:
    """The table's summary of result rows and its page, with the cards of the suite; `own`: files of the user's methods.

    Raises UserError as `summarise` and `compose` do.
    """
    card = registry.card("dataset", table.dataset)
    summary = summarise(frame, table, preset, card.modalities)
    metrics = {name: registry.card("metric", name) for name in registry.index("metric")}
    known = [name for name in (*table.rows, *own) if registry.known("method", name) or ".py" in name]
    methods = {registry.stem(name): registry.card("method", name) for name in known}
    notes = _notes(card, preset)
    return summary, compose(summary, table, load_paper(), metrics=metrics, methods=methods, notes=notes)


def _notes(card: DatasetCard, preset: str) -> list[str]:
    """What a reader of a table has to know of its data, and at the paper's scale which values are assumed."""
    notes = list(card.notes)
    if preset == "paper":
        source = resolve(card, None, preset).source
        assumed = [field for field, text in source.items() if text.startswith("assumed")]
        notes.append(f"Assumed, since the paper's values are lost or it has none: {', '.join(assumed)}.")
    return notes


def direction(column: Column, card: MetricCard) -> str:
    """Which numbers of the column are better: "higher", "lower" or "neither"."""
    return column.better or ("higher" if card.higher_is_better else "lower")


def headed(column: Column, card: MetricCard) -> str:
    """The column's header, with an arrow that says which of its numbers are better."""
    return column.header + {"higher": " ↑", "lower": " ↓", "neither": ""}[direction(column, card)]


def compose(
    summary: pd.DataFrame,
    table: Table,
    paper: pd.DataFrame,
    *,
    metrics: Mapping[str, MetricCard],
    methods: Mapping[str, MethodCard],
    notes: Sequence[str] = (),
) -> Page:
    """The table's page, a pure function of what is handed in. `metrics`, `methods`: cards by name; `notes`: further
    caption lines.

    At preset `paper` each column stands beside the paper's number and the difference (ours - paper);
    at any other preset the title says that they are not comparable, and the paper's numbers form a
    block of their own. Raises UserError for a metric without a card and a condition that is not met.
    """
    for column in table.columns:
        known_name(column.metric, metrics, "metric", table.id)
    refuse(summary, table)
    return _Composer(summary, table, paper, metrics, methods).page(notes)


class _Composer:
    """Turns a summary into a page, numbering the footnotes as they come up."""

    def __init__(
        self,
        summary: pd.DataFrame,
        table: Table,
        paper: pd.DataFrame,
        metrics: Mapping[str, MetricCard],
        methods: Mapping[str, MethodCard],
    ) -> None:
        self.table, self.metrics, self.methods = table, metrics, methods
        self.columns = [column for column in table.columns if not column.least]
        self.summary = summary
        self.cells = {(row["method"], row["column"]): row for row in summary.to_dict("records")}
        self.paper = {column.header: paper_values(paper, column) for column in self.columns}
        self.preset = str(summary["preset"].iloc[0])
        self.error_kinds = {cell["stderr_over"] for cell in self.cells.values()}
        self.footnotes: dict[str, int] = {}

    def page(self, notes: Sequence[str]) -> Page:
        table, printed = self.table, any(column.paper for column in self.columns)
        comparable = printed and self.preset == "paper"
        proper = [column for column in self.columns if not column.block]
        blocks = [self.beside_paper(proper) if comparable else self.ours("measured", proper)]
        for title in dict.fromkeys(column.block for column in self.columns if column.block):
            blocks.append(self.ours(title, [column for column in self.columns if column.block == title]))
        blocks.append(self.ratios())
        if printed and not comparable:
            blocks.append(self.papers(proper))
        blocks.append(self.cost())
        title = table.title if comparable else f"{table.title} at preset {self.preset}"
        if printed and not comparable:
            where = f"on {table.dataset} at preset" if table.stand_in else "at preset"
            title = f"{table.title} protocol {where} {self.preset}: not comparable with the paper's numbers"
        return Page(
            table=table.id,
            preset=self.preset,
            title=title,
            blocks=tuple(block for block in blocks if block.rows),
            footnotes=tuple(self.footnotes),
            caption=self.caption() + tuple(notes),
        )

    def better(self, column: Column) -> str:
        return direction(column, self.metrics[column.metric])

    def header(self, column: Column) -> str:
        return headed(column, self.metrics[column.metric])

    def note(self, text: str) -> tuple[int, ...]:
        return (self.footnotes.setdefault(text, len(self.footnotes) + 1),) if text else ()

    def row(self, method: str, entries: Iterable[Entry], deviations: bool = False) -> Row:
        card = self.methods.get(method)  # a method whose file is gone keeps its name and its rows
        listed = card.deviations if card and deviations else ()
        marks = tuple(mark for text in listed for mark in self.note(text))
        label = card.label if card else self.table.imported.get(method, method)
        return Row(method, label, marks, method in self.table.sanity, tuple(entries))

    def measured(self) -> list[str]:
        """The table's rows, but for references without any number."""
        done = {method for (method, _), cell in self.cells.items() if cell["status"] != "missing: not run"}
        return [method for method in self.table.rows if method in done or method not in self.table.references]

    def entry(self, method: str, column: Column) -> Entry:
        cell = self.cells[method, column.header]
        if cell["status"] != "ok":
            return Entry("—", status=cell["status"], notes=self.note(cell["status"]), column=column.header)
        marks = self.note(cell["note"]) + self.note(STAND_IN if _stand_in(cell) else "")
        stderr = None if math.isnan(cell["stderr"]) else cell["stderr"]
        text = f"{cell['value']:.{column.digits}f}"
        if stderr is not None:
            text += f" ±{stderr:.{column.digits}f}"
        if cell["stderr_over"] == "rows" and "seeds" in self.error_kinds:
            marks += self.note(ONE_SEED)
        best = method in self.best(column)
        return Entry(text, cell["value"], stderr, best=best, notes=marks, column=column.header)

    def best(self, column: Column) -> set[str]:
        """The best method and those within one standard error of the difference from it; sanity rows and stand-ins do
        not compete."""
        found = {method: self.cells[method, column.header] for method in self.table.competing}
        found = {method: cell for method, cell in found.items() if cell["status"] == "ok" and not _stand_in(cell)}
        if not found or self.better(column) == "neither":
            return set()
        sign = -1 if self.better(column) == "higher" else 1
        top = min(found.values(), key=lambda cell: sign * cell["value"])

        def tied(cell: Mapping[str, Any]) -> bool:
            errors = [0.0 if math.isnan(each["stderr"]) else each["stderr"] for each in (cell, top)]
            return abs(cell["value"] - top["value"]) <= math.hypot(*errors)

        return {method for method, cell in found.items() if cell is top or tied(cell)}

    def ours(self, title: str, columns: Sequence[Column]) -> Block:
        rows = (
            self.row(method, [self.entry(method, column) for column in columns], deviations=not columns[0].block)
            for method in self.measured()
        )
        return Block(title, tuple(map(self.header, columns)), tuple(rows))

    def beside_paper(self, columns: Sequence[Column]) -> Block:
        """Three columns for each: ours, the paper's, ours - paper."""
        headers = tuple(text for column in columns for text in (self.header(column), "paper", "difference"))
        rows = []
        for method in self.table.rows:
            entries: list[Entry] = []
            for column in columns:
                ours, printed = self.entry(method, column), self.printed(method, column)
                difference = Entry("—")
                if ours.value is not None and printed.value is not None:
                    gap = ours.value - printed.value
                    difference = Entry(f"{gap:+.{column.digits}f}".replace("-", "−"), gap)
                entries += [ours, printed, difference]
            rows.append(self.row(method, entries, deviations=True))
        for method in self.table.imported:
            alone = [(Entry("—"), self.printed(method, column), Entry("—")) for column in columns]
            rows.append(self.row(method, itertools.chain.from_iterable(alone)))
        return Block("measured beside the paper", headers, tuple(rows), group=3)

    def printed(self, method: str, column: Column) -> Entry:
        value = self.paper[column.header].get(method)
        return Entry("—") if value is None else Entry(f"{value:.{column.digits}f}", value)

    def papers(self, columns: Sequence[Column]) -> Block:
        columns = [column for column in columns if column.paper]
        rows = [
            self.row(method, (self.printed(method, column) for column in columns))
            for method in (*self.table.competing, *self.table.imported)
            if any(method in self.paper[column.header] for column in columns)
        ]
        return Block("the paper's numbers, at its own scale", tuple(map(self.header, columns)), tuple(rows))

    def ratios(self) -> Block:
        """Values over the `chance` row's, for distances that chance gets wrong: shuffling leaves a marginal right."""
        chance = {
            column.header: self.cells["chance", column.header]["value"]
            for column in self.columns
            if "chance" in self.table.sanity and self.better(column) == "lower" and not self.floor(column)
        }
        columns = [column for column in self.columns if chance.get(column.header, math.nan) > 0]
        rows = []
        for method in self.measured() if columns else ():
            if method in self.table.sanity or any(_stand_in(self.cells[method, column.header]) for column in columns):
                continue
            ratios = {
                column.header: self.cells[method, column.header]["value"] / chance[column.header] for column in columns
            }
            rows.append(self.row(method, (_quantity(ratio, "{:.2g}", header) for header, ratio in ratios.items())))
        return Block("ratio to the chance row", tuple(f"{column.header} ÷" for column in columns), tuple(rows))

    def floor(self, column: Column) -> bool:
        """Whether the `chance` row is as good as a perfect sampler, by the metric's own words, or about as good as real
        rows are."""
        if self.metrics[column.metric].chance.startswith("the floor"):
            return True
        if "real" not in self.table.sanity:
            return False
        chance, real = (self.cells[row, column.header]["value"] for row in ("chance", "real"))
        return bool(chance < 2 * real)

    def cost(self) -> Block:
        """What each method took: means over seeds, and over cells where a cell has a cost of its own."""
        rows = []
        for method in self.table.competing:
            cells = [self.cells[method, column.header] for column in self.columns]
            versions = ", ".join(dict.fromkeys(cell["method_version"] for cell in cells if cell["method_version"]))
            if versions:
                costs = [_quantity(_mean_of(name, cells), pattern) for name, _, pattern in COSTS]
                rows.append(self.row(method, (Entry(versions), *costs)))
        return Block("cost", ("version", *(header for _, header, _ in COSTS)), tuple(rows))

    def caption(self) -> tuple[str, ...]:
        shown = self.summary["column"].isin([column.header for column in self.columns])
        used = self.summary[shown & (self.summary["status"] == "ok")]

        def values(name: str, separator: str = ", ") -> str:
            several = (text.split("; ") for text in used[name] if text)
            return separator.join(dict.fromkeys(itertools.chain.from_iterable(several))) or "none"

        versions = dict.fromkeys(f"{row['metric']} v{row['metric_version']}" for row in used.to_dict("records"))
        lines = [
            f"Preset {self.preset}; seeds {values('seeds')}; {values('n')} rows per cell; "
            f"{self.table.dataset} v{values('dataset_version')}; {', '.join(versions) or 'no metric yet'}.",
            f"Protocol {values('protocol')}; precision {values('precision')}; torch {values('torch')}; "
            f"{values('device', '; ')}.",
        ]
        if "seeds" in self.error_kinds:
            lines.append("Mean over cells, then over seeds, ± standard error over seeds.")
        elif "rows" in self.error_kinds:
            lines.append(f"Mean over cells. {ONE_SEED}.")
        lines.append("Best in bold (* in a terminal), with ties inside one standard error of the difference.")
        if stated := [phrase for phrase, _ in conditions(self.summary, self.table)]:
            lines.append(f"{'; '.join(stated)}.")
        return tuple(lines)


def _mean_of(name: str, cells: Iterable[Mapping[str, Any]]) -> float:
    """Over the cells that have it."""
    return mean([cell[name] for cell in cells if not math.isnan(cell[name])])


def _stand_in(cell: Mapping[str, Any]) -> bool:
    return any(map(is_stand_in, str(cell["protocol"]).split("; ")))


def _quantity(value: float, pattern: str, column: str = "") -> Entry:
    return Entry("—") if math.isnan(value) else Entry(pattern.format(value), value, column=column)
