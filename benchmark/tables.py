"""A table is data: one TOML file plans the jobs of a paper's table, and renders it from result rows.

Everything here is a pure function of the TOML files, the result rows and the cards handed in: the
same input gives the same bytes. pandas and rich are imported where they are used, so that a listing
of what there is stays fast.
"""

from __future__ import annotations

import csv
import html
import io
import itertools
import math
import re
import statistics
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmark.api import TASKS, Cell, MethodCard, MetricCard, UserError, cells
from benchmark.config import PRESETS, nearest
from benchmark.records import KEY, MEASURED, VERSIONS, is_stand_in, shared_protocol
from benchmark.registry import stem

if TYPE_CHECKING:
    import pandas as pd

_PACKAGE = Path(__file__).resolve().parent
# A wheel carries the results inside the package, a checkout beside it.
RESULTS = (_PACKAGE if (_PACKAGE / "results").is_dir() else _PACKAGE.parent) / "results"
FORMATS = ("term", "md", "csv", "tex", "html")
Format = Literal["term", "md", "csv", "tex", "html"]
# Rows that differ in one of these answer different questions and never meet in one column.
ONE_PER_COMPARISON = ("preset", "dataset", "dataset_version", "protocol", "precision")
ONE_PER_COLUMN = (*ONE_PER_COMPARISON, "metric", "metric_version")
ONE_PER_METHOD = ("method_version", "protocol")  # of which a protocol holds what answered, too
TERM_WIDTH = 100
COSTS = (  # column of the results, header, format
    ("parameters", "parameters", "{:,.0f}"),
    ("train_seconds", "training, s", "{:.0f}"),
    ("peak_memory_mb", "peak memory, MB", "{:,.0f}"),
    ("sample_seconds", "sampling 1,000 rows, s", "{:.2g}"),
)
STAND_IN = "a stand-in: untrained weights in the model's layout, which say nothing of the model"
ONE_SEED = "One seed: ± is the standard error over rows, not over trainings"


# ---------------------------------------------------------------------------------------------- the file


@dataclass(frozen=True)
class Job:
    """One training and what it is scored on: every metric on every cell, but for the pairs in `skip`."""

    method: str
    dataset: str
    preset: str
    seed: int
    cells: tuple[Cell, ...]
    metrics: tuple[str, ...]
    skip: frozenset[tuple[Cell, str]] = frozenset()

    @property
    def scores(self) -> tuple[tuple[Cell, str], ...]:
        """The (cell, metric) pairs that are asked for, in order."""
        pairs = ((cell, metric) for cell in self.cells for metric in self.metrics)
        return tuple(pair for pair in pairs if pair not in self.skip)


@dataclass(frozen=True)
class Column:
    """One number per method: the mean of `metric` over the cells of `task`, or over the cells that are listed.

    `paper`: what selects the column's numbers in results/paper.csv; empty where the paper has none. In a file its
    `table` is the file's id where none is named.
    `block`: columns of one block stand together; the empty one is the table proper.
    `better`: "higher", "lower", "neither", or empty for the metric's own direction.
    `least`: preset -> what every method's number must reach, or the table is refused. Such a column is a condition: the
    caption states it, at every preset, and no block prints it.
    """

    header: str
    metric: str
    digits: int
    task: str = ""
    listed: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = ()
    paper: Mapping[str, str] = field(default_factory=dict)
    block: str = ""
    better: str = ""
    least: Mapping[str, float] = field(default_factory=dict)

    def cells(self, dataset: str, modalities: Sequence[str]) -> tuple[Cell, ...]:
        """The column's cells on a dataset; a listed cell may want a known factor, as in "factor:all".

        Raises UserError where a listed cell names no modality of the dataset.
        """
        if self.task:
            return tuple(cells(dataset, modalities, self.task))
        for name in (name for given, want in self.listed for name in given + want):
            if name not in modalities and not name.startswith("factor:"):
                raise UserError(
                    f"column {self.header!r}: {dataset} has no modality {name!r}{nearest(name, modalities)}"
                )
        return tuple(Cell(dataset, given, want) for given, want in self.listed)


@dataclass(frozen=True)
class Table:
    """A table of the paper: rows, columns and seeds; see results/tables/table5.toml.

    `stand_in`: whether the dataset stands in for the one of preset `paper`.
    `references`: methods that are other people's checkpoints, shown among the measured where they have rows.
    `imported`: label of each row that has the paper's numbers alone, since nothing public can be run.
    `plots`: pairs of headers, of which a report draws the first across and the second up.
    """

    id: str
    title: str
    dataset: str
    methods: tuple[str, ...]
    sanity: tuple[str, ...]
    seeds: Mapping[str, int]
    columns: tuple[Column, ...]
    stand_in: bool = False
    references: tuple[str, ...] = ()
    imported: Mapping[str, str] = field(default_factory=dict)
    plots: tuple[tuple[str, str], ...] = ()

    @property
    def of_paper(self) -> bool:
        """Whether the paper prints numbers of it."""
        return any(column.paper for column in self.columns)

    @property
    def competing(self) -> tuple[str, ...]:
        """Methods, then references."""
        return self.methods + self.references

    @property
    def rows(self) -> tuple[str, ...]:
        """Those, then the sanity rows."""
        return self.competing + self.sanity

    def only(self, methods: Sequence[str]) -> Table:
        """The table of these rows alone, unlisted methods included; the whole table where `methods` is empty."""
        if not methods:
            return self
        names = [stem(method) for method in methods]
        listed = [name for name in self.methods if name in names]
        further = [name for name in dict.fromkeys(names) if name not in self.rows]
        sanity, references = (
            tuple(name for name in group if name in names) for group in (self.sanity, self.references)
        )
        return replace(self, methods=(*listed, *further), sanity=sanity, references=references, imported={})

    def jobs(
        self,
        preset: str,
        modalities: Sequence[str],
        methods: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[Job]:
        """One job per seed and row, seed by seed, so that an interrupted plan leaves whole tables of fewer seeds.

        `methods`, `seeds`: instead of the table's own; a method may be the path of a user's file.
        Raises UserError where the table states no seeds for the preset.
        """
        if preset not in self.seeds:
            raise UserError(f"{self.id}: no seeds for preset {preset!r}{nearest(preset, self.seeds)}")
        asked = [(cell, column.metric) for column in self.columns for cell in column.cells(self.dataset, modalities)]
        return [
            job_of(method, self.dataset, preset, seed, asked)
            for seed in seeds or range(self.seeds[preset])
            for method in methods or self.rows
        ]


def job_of(method: str, dataset: str, preset: str, seed: int, pairs: Iterable[tuple[Cell, str]]) -> Job:
    """The job that asks exactly these (cell, metric) pairs, once each, in order of cells, then metrics."""
    wanted = dict.fromkeys(pairs)
    asked = tuple(dict.fromkeys(cell for cell, _ in wanted))
    metrics = tuple(dict.fromkeys(metric for _, metric in wanted))
    skip = frozenset((cell, metric) for cell in asked for metric in metrics) - wanted.keys()
    return Job(method, dataset, preset, seed, asked, metrics, skip)


def load_table(source: str | Path, metrics: Collection[str], preset: str = "paper") -> Table:
    """Read `results/tables/<source>.toml`, or the file of that path, strictly; `metrics` are the known names.

    A table whose `dataset` lists one per preset is that of `preset`.
    Raises UserError, naming file and key, for an unknown table, key, task, metric or preset, a wrong
    type, a missing key, two columns of one header, and a plot of a header that no column has.
    """
    path = Path(source)
    if path.suffix != ".toml":
        known = [file.stem for file in sorted((RESULTS / "tables").glob("*.toml"))]
        if str(source) not in known:
            raise UserError(f"unknown table {str(source)!r}{nearest(str(source), known)}")
        path = RESULTS / "tables" / f"{source}.toml"
    raw = read_toml(path)
    if "columns" in raw:
        raw["column"] = _columns_of(raw.pop("columns"), path)
    checked(
        raw,
        {
            "id": str,
            "title": str,
            "dataset": str | dict,
            "methods": list,
            "sanity": list,
            "seeds": dict,
            "column": list,
        },
        path.name,
        {"references": list, "imported": dict, "plot": list},
    )
    for name, count in raw["seeds"].items():
        if name not in PRESETS:
            raise UserError(f"{path.name}: seeds: unknown preset {name!r}{nearest(name, PRESETS)}")
        if not isinstance(count, int) or count < 1:
            raise UserError(f"{path.name}: seeds: {name} = {count!r}: write a whole number of at least 1")
    columns = tuple(
        _column(entry, f"{path.name}: column {place}", metrics, raw["id"])
        for place, entry in enumerate(raw["column"], 1)
    )
    headers = [column.header for column in columns]
    if twice := [header for header in headers if headers.count(header) > 1]:
        raise UserError(f"{path.name}: two columns have the header {twice[0]!r}: give each its own")
    for plot in raw.get("plot", []):
        checked(plot, {"x": str, "y": str}, f"{path.name}: plot")
        for header in plot.values():
            known_name(header, headers, "column", f"{path.name}: plot")
    dataset = dataset_at(raw["dataset"], preset, path.name)
    return Table(
        raw["id"],
        raw["title"],
        dataset,
        tuple(raw["methods"]),
        tuple(raw["sanity"]),
        raw["seeds"],
        columns,
        dataset != dataset_at(raw["dataset"], "paper", path.name),
        tuple(raw.get("references", ())),
        raw.get("imported", {}),
        tuple((plot["x"], plot["y"]) for plot in raw.get("plot", [])),
    )


def dataset_at(dataset: str | Mapping[str, str], preset: str, where: str) -> str:
    """The dataset that a file names for a preset, where it does not name one for all.

    Raises UserError for an unknown preset, and for one that the file leaves out.
    """
    if isinstance(dataset, str):
        return dataset
    for name in (*dataset, preset):
        known_name(name, PRESETS, "preset", f"{where}: dataset")
    known_name(preset, dataset, "preset", f"{where}: dataset")
    return dataset[preset]


def _columns_of(other: Any, path: Path) -> list[Any]:
    """The columns that this table shares: all of another table beside it, or a list of picks from several.

    A pick names a table and headers of it, and may give them a `block`; the paper's numbers of that table are not this
    one's, and stay behind.
    """
    where = f"{path.name}: columns"
    if not isinstance(other, list):
        known = [file.stem for file in sorted(path.parent.glob("*.toml")) if "column" in read_toml(file)]
        known_name(other, known, "table", where)
        return list(read_toml(path.parent / f"{other}.toml")["column"])
    found = []
    for pick in other:
        checked(pick, {"table": str, "headers": list}, where, {"block": str})
        there = {column["header"]: column for column in _columns_of(pick["table"], path)}
        for header in pick["headers"]:
            known_name(header, there, f"column of {pick['table']}", where)
            column = {key: value for key, value in there[header].items() if key not in ("paper", "block")}
            found.append(column | ({"block": pick["block"]} if "block" in pick else {}))
    return found


def _column(raw: Mapping[str, Any], where: str, metrics: Collection[str], table: str) -> Column:
    checked(
        raw,
        {"header": str, "metric": str, "digits": int},
        where,
        {"task": str, "cells": list, "paper": dict, "block": str, "better": str, "least": dict},
    )
    if ("task" in raw) == ("cells" in raw):
        raise UserError(f"{where}: write either task or cells")
    if "task" in raw:
        known_name(raw["task"], TASKS, "task", where)
    known_name(raw["metric"], metrics, "metric", where)
    known_name(raw.get("better", "lower"), ("higher", "lower", "neither"), "direction", f"{where}: better")
    checked(
        raw.get("paper", {}), {}, f"{where}: paper", dict.fromkeys(("table", "task", "given", "target", "metric"), str)
    )
    checked(raw.get("least", {}), {}, f"{where}: least", dict.fromkeys(PRESETS, float))
    for cell in raw.get("cells", []):
        checked(cell, {"given": list, "want": list}, f"{where}: cells")
    listed = tuple((tuple(cell["given"]), tuple(cell["want"])) for cell in raw.get("cells", []))
    return Column(
        raw["header"],
        raw["metric"],
        raw["digits"],
        raw.get("task", ""),
        listed,
        {"table": table, **raw["paper"]} if "paper" in raw else {},
        raw.get("block", ""),
        raw.get("better", ""),
        raw.get("least", {}),
    )


def read_toml(path: Path) -> dict[str, Any]:
    """Raises UserError for a file that is absent or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None


def checked(
    raw: Mapping[str, Any], required: Mapping[str, Any], where: str, optional: Mapping[str, Any] | None = None
) -> None:
    """Raises UserError, naming file and key, unless `raw` has the required keys, no unknown one, and their types."""
    kinds: dict[str, Any] = {**required, **(optional or {})}
    for key, value in raw.items():
        if key not in kinds:
            raise UserError(f"{where}: unknown key {key!r}{nearest(key, kinds)}")
        if not isinstance(value, kinds[key]) or isinstance(value, bool):
            kind = getattr(kinds[key], "__name__", str(kinds[key]))
            raise UserError(f"{where}: {key} = {value!r} is not of type {kind}")
    for key in required:
        if key not in raw:
            raise UserError(f"{where}: lacks the key {key!r}")


def known_name(name: str, known: Collection[str], what: str, where: str) -> None:
    """Raises UserError, with the nearest match, for a name that is not known."""
    if name not in known:
        raise UserError(f"{where}: unknown {what} {name!r}{nearest(name, known)}")


# ---------------------------------------------------------------------------------------------- the numbers


def load_paper(path: Path = RESULTS / "paper.csv") -> pd.DataFrame:
    """The paper's numbers as printed: table, method, task, given, target, metric, value, better."""
    import pandas as pd

    return pd.read_csv(path, keep_default_na=False, dtype={"given": str, "target": str})


def column_rows(
    frame: pd.DataFrame, preset: str, wanted: Sequence[Cell], metric: str, methods: Sequence[str]
) -> list[dict[str, Any]]:
    """The result rows of one column: one per method, cell and seed; an error row gives way to an answer.

    Raises UserError, naming both rows, where rows that are not comparable meet (see `guard`), and
    where one key has two answers.
    """
    sought = {(cell.dataset, "+".join(cell.given), "+".join(cell.want)) for cell in wanted}
    chosen = frame[(frame["preset"] == preset) & (frame["metric"] == metric) & frame["method"].isin(methods)]
    chosen = chosen.assign(given=chosen["given"].fillna("").astype(str))
    rows = [row for row in chosen.to_dict("records") if (_name(row), row["given"], row["want"]) in sought]
    guard([row for row in rows if row["status"] == "ok"])
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["status"].startswith("error")):  # stable: answers come first
        first = found.setdefault(tuple(row[name] for name in KEY), row)
        if first is not row and not row["status"].startswith("error"):
            raise UserError(
                f"{preset}: two rows for {_named(row)}, {row['given'] or 'nothing'} -> {row['want']}, "
                f"{metric} (runs {first['run_id']} and {row['run_id']}): leave one"
            )
    return sorted(found.values(), key=lambda row: tuple(row[name] for name in KEY))


def guard(rows: Sequence[Mapping[str, Any]], alike: Sequence[str] = ONE_PER_COLUMN) -> None:
    """Raises UserError, naming two rows, unless all rows are `alike` and each method has one version and checkpoint."""
    firsts: dict[tuple[str, str], tuple[Any, Mapping[str, Any]]] = {}
    for row in rows:
        stated = [(name, "", shared_protocol(row[name]) if name == "protocol" else row[name]) for name in alike]
        stated += [(name, row["method"], row[name]) for name in ONE_PER_METHOD]
        for name, method, value in stated:
            before, first = firsts.setdefault((name, method), (value, row))
            if before != value:
                raise UserError(
                    f"{row['metric']}: {name} {first[name]} ({_named(first)}) and {row[name]} "
                    f"({_named(row)}) cannot share a column: run one of them again, or remove its rows"
                )


def _name(row: Mapping[str, Any]) -> str:
    """The dataset's name without its variant; `guard` sees to it that variants do not meet."""
    return str(row["dataset"]).partition(":")[0]


def _named(row: Mapping[str, Any]) -> str:
    return f"{row['method']} seed {row['seed']}"


def seed_means(rows: Iterable[Mapping[str, Any]], cell_count: int) -> tuple[dict[int, float], str]:
    """One method's mean over cells, per seed, and why other seeds have none ("" if all have).

    `rows` are one method's rows from `column_rows`; a seed counts when all `cell_count` cells have
    a number, because a mean over fewer cells is another quantity.
    """
    by_seed: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_seed.setdefault(int(row["seed"]), []).append(row)
    means: dict[int, float] = {}
    reasons: dict[str, list[int]] = {}
    for seed, group in sorted(by_seed.items()):
        bad = [row["status"] for row in group if row["status"] != "ok"]
        lost = cell_count - len(group)
        if bad or lost:
            reason = bad[0] if bad else f"missing: {lost} of {cell_count} cells"
            reasons.setdefault(reason, []).append(seed)
        else:
            means[seed] = math.fsum(row["value"] for row in group) / cell_count
    if not means and len(reasons) == 1:
        return means, next(iter(reasons))
    return means, "; ".join(f"{reason} (seeds {_ranges(seeds)})" for reason, seeds in reasons.items())


def summarise(frame: pd.DataFrame, table: Table, preset: str, modalities: Sequence[str]) -> pd.DataFrame:
    """One row per method and column of the table, with what the caption needs.

    `value`: mean over the column's cells per seed, then over seeds. `stderr`: over seeds; with one
    seed the mean of the cells' standard errors over rows (an upper bound: the cells share test rows),
    and `stderr_over` says which. `status`: "ok", or "n/a: why", "error: why", "missing: why".
    `note`: why seeds are fewer than the table plans. Raises UserError as `column_rows` does.
    """
    import pandas as pd

    summary = []
    for column in table.columns:
        wanted = column.cells(table.dataset, modalities)
        rows = column_rows(frame, preset, wanted, column.metric, table.rows)
        for method in table.rows:
            own = [row for row in rows if row["method"] == method]
            entry: dict[str, Any] = {"preset": preset, "method": method, "column": column.header}
            entry |= {"metric": column.metric, "cells": len(wanted)}
            summary.append(entry | _summary(own, len(wanted), table.seeds.get(preset, 1)))
    return pd.DataFrame(summary)


def _summary(rows: Sequence[Mapping[str, Any]], cell_count: int, planned: int) -> dict[str, Any]:
    means, reason = seed_means(rows, cell_count)
    values = list(means.values())
    used = [row for row in rows if row["seed"] in means] or rows
    entry: dict[str, Any] = {
        "value": _mean(values),
        "stderr": math.nan,
        "stderr_over": "",
        "seeds": _ranges(means),
        "status": "ok" if values else reason or "missing: not run",
        "note": "",
    }
    if len(values) > 1:
        entry |= {"stderr": statistics.stdev(values) / math.sqrt(len(values)), "stderr_over": "seeds"}
    elif values and not any(math.isnan(row["stderr"]) for row in used):
        entry |= {"stderr": _mean([row["stderr"] for row in used]), "stderr_over": "rows"}
    if 0 < len(values) < planned:
        entry["note"] = f"{len(values)} of {planned} seeds" + (f": {reason}" if reason else "")
    for name in ("n", *VERSIONS, "torch", "device"):
        entry[name] = "; ".join(dict.fromkeys(str(row[name]) for row in used))
    for name in MEASURED:
        entry[name] = _mean([row[name] for row in used if not math.isnan(row[name])])
    return entry


def conditions(summary: pd.DataFrame, table: Table) -> list[tuple[str, bool]]:
    """Each condition of the table as a phrase that states the least number of any method, and whether it is met."""
    found = []
    for column in (column for column in table.columns if column.least):
        rows = summary[(summary["column"] == column.header) & (summary["status"] == "ok")].to_dict("records")
        if not rows:
            found.append((f"{column.header}: not measured", True))
            continue
        lowest = min(rows, key=lambda row: row["value"])
        bound = column.least.get(lowest["preset"])
        asked = f"no bound at preset {lowest['preset']}" if bound is None else f"at least {bound:g}"
        number = f"{column.header} {lowest['value']:.{column.digits}f}"
        found.append(
            (f"{number} ({lowest['cells']} cells of {lowest['n']} rows; {asked})", lowest["value"] >= (bound or 0))
        )
    return found


def refuse(summary: pd.DataFrame, table: Table) -> None:
    """Raises UserError where a condition of the table is not met: its numbers would not mean what they say."""
    if failed := [phrase for phrase, met in conditions(summary, table) if not met]:
        metrics = dict.fromkeys(column.metric for column in table.columns if column.least)
        advice = " and ".join(f"bench info {metric}" for metric in metrics)
        raise UserError(f"{table.id} is refused: {'; '.join(failed)}: what mends it is in {advice}")


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _ranges(seeds: Iterable[int]) -> str:
    """0, 1, 2, 5 -> "0-2, 5"."""
    runs: list[list[int]] = []
    for seed in sorted(seeds):
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def paper_values(paper: pd.DataFrame, column: Column) -> dict[str, float]:
    """Method -> the paper's number of a column; empty for a column without `paper`.

    Raises UserError where the column's key selects nothing, or two numbers of one method.
    """
    if not column.paper:
        return {}
    rows = paper
    for name, value in column.paper.items():
        rows = rows[rows[name] == value]
    if rows.empty or rows["method"].duplicated().any():
        fault = "no number" if rows.empty else "several numbers of one method"
        raise UserError(f"column {column.header!r}: its paper key selects {fault} of paper.csv: {dict(column.paper)}")
    return dict(zip(rows["method"], rows["value"].astype(float), strict=True))


# ---------------------------------------------------------------------------------------------- the page


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


@dataclass(frozen=True)
class Page:
    """What every format prints: blocks, numbered footnotes and the caption's lines."""

    title: str
    blocks: tuple[Block, ...]
    footnotes: tuple[str, ...]
    caption: tuple[str, ...]


def render(
    summary: pd.DataFrame,
    table: Table,
    paper: pd.DataFrame,
    format: Format,
    *,
    metrics: Mapping[str, MetricCard],
    methods: Mapping[str, MethodCard],
    notes: Sequence[str] = (),
    color: bool = False,
) -> str:
    """The table as text, ending in a newline; a pure function of its arguments.

    At preset `paper` each column stands beside the paper's number and the difference (ours - paper);
    at any other preset the title says that they are not comparable, and the paper's numbers form a
    block of their own. `color`: for a terminal. Raises UserError for an unknown format, and as `compose` does.
    """
    writers = {
        "term": lambda page: _term(page, color),
        "md": _markdown,
        "tex": _latex,
        "html": _html,
        "csv": lambda page: _csv(page, table.id, str(summary["preset"].iloc[0])),
    }
    if format not in writers:
        raise UserError(f"unknown format {format!r}{nearest(format, FORMATS)}")
    return writers[format](compose(summary, table, paper, metrics=metrics, methods=methods, notes=notes))


def compose(
    summary: pd.DataFrame,
    table: Table,
    paper: pd.DataFrame,
    *,
    metrics: Mapping[str, MetricCard],
    methods: Mapping[str, MethodCard],
    notes: Sequence[str] = (),
) -> Page:
    """The page that every format prints. `metrics`, `methods`: cards by name; `notes`: further caption lines.

    Raises UserError for a metric without a card and a condition that is not met.
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
        caption = self.caption() + tuple(notes)
        return Page(title, tuple(block for block in blocks if block.rows), tuple(self.footnotes), caption)

    def better(self, column: Column) -> str:
        return column.better or ("higher" if self.metrics[column.metric].higher_is_better else "lower")

    def header(self, column: Column) -> str:
        return column.header + {"higher": " ↑", "lower": " ↓", "neither": ""}[self.better(column)]

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

            def mean(name: str, cells: Sequence[Mapping[str, Any]] = cells) -> float:
                return _mean([cell[name] for cell in cells if not math.isnan(cell[name])])

            if versions:
                costs = [_quantity(mean(name), pattern) for name, _, pattern in COSTS]
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


def _stand_in(cell: Mapping[str, Any]) -> bool:
    return any(map(is_stand_in, str(cell["protocol"]).split("; ")))


def _quantity(value: float, pattern: str, column: str = "") -> Entry:
    return Entry("—") if math.isnan(value) else Entry(pattern.format(value), value, column=column)


# ---------------------------------------------------------------------------------------------- the formats


def _marks(notes: tuple[int, ...]) -> str:
    return ",".join(map(str, notes))


def _term(page: Page, color: bool) -> str:
    """At most TERM_WIDTH characters a line: a block that is wider is printed in parts."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    def shown(text: str, notes: tuple[int, ...], best: bool = False) -> Text:
        return Text(text + ("*" if best else "") + (f" [{_marks(notes)}]" if notes else ""), "bold" if best else "")

    buffer = io.StringIO()
    console = Console(
        file=buffer,
        width=TERM_WIDTH,
        force_terminal=color,
        no_color=not color,
        highlight=False,
        color_system="standard" if color else None,
        _environ={},
    )
    console.print(Text(page.title, "bold"))
    for block in page.blocks:
        labels = [shown(row.label, row.notes) for row in block.rows]
        body = [[shown(entry.text, entry.notes, entry.best) for entry in row.entries] for row in block.rows]
        widths = [
            max(len(header), *(len(line[place]) for line in body)) + 2 for place, header in enumerate(block.headers)
        ]
        room = TERM_WIDTH - max(map(len, labels)) - 3
        for part in _parts(widths, block.group, room):
            grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
            grid.add_column("", no_wrap=True)
            for place in part:
                grid.add_column(block.headers[place], justify="right", no_wrap=True)
            for row, following, label, line in zip(block.rows, (*block.rows[1:], None), labels, body, strict=True):
                last = following is not None and following.sanity and not row.sanity
                grid.add_row(label, *(line[place] for place in part), end_section=last)
            console.print(Text(block.title, "italic"))
            console.print(grid)
    for number, text in enumerate(page.footnotes, 1):
        console.print(Text(f"[{number}] {text}"))
    for text in page.caption:
        console.print(Text(text))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _parts(widths: Sequence[int], group: int, room: int) -> list[list[int]]:
    """Places of the columns, in parts that fit into `room`; groups stay whole."""
    parts: list[list[int]] = [[]]
    for start in range(0, len(widths), group):
        places = list(range(start, start + group))
        if parts[-1] and sum(widths[place] for place in parts[-1] + places) > room:
            parts.append([])
        parts[-1] += places
    return parts


def _markdown(page: Page) -> str:
    def safe(text: str) -> str:
        return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")

    def marked(text: str, notes: tuple[int, ...]) -> str:
        return text + (f"<sup>{_marks(notes)}</sup>" if notes else "")

    lines = [f"**{safe(page.title)}**", ""]
    for block in page.blocks:
        lines.append(f"| {' | '.join(map(safe, (block.title, *block.headers)))} |")
        lines.append("|---" + "|---:" * len(block.headers) + "|")
        for row in block.rows:
            name = f"*{safe(row.label)}*" if row.sanity else safe(row.label)
            entries = (marked(f"**{entry.text}**" if entry.best else entry.text, entry.notes) for entry in row.entries)
            lines.append(f"| {' | '.join((marked(name, row.notes), *entries))} |")
        lines.append("")
    lines += [f"{number}. {safe(text)}" for number, text in enumerate(page.footnotes, 1)]
    lines += [""] * bool(page.footnotes) + [" ".join(map(safe, page.caption))]
    return "\n".join(lines) + "\n"


def _csv(page: Page, table: str, preset: str) -> str:
    """One line per printed number, at full precision."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["table", "preset", "block", "method", "column", "value", "stderr", "status", "best", "notes"])
    for block in page.blocks:
        for row in block.rows:
            owner = ""
            for place, (header, entry) in enumerate(zip(block.headers, row.entries, strict=True)):
                owner = header if place % block.group == 0 else owner  # whose "paper" and "difference" these are
                name = header if header == owner else f"{owner} {header}"
                notes = "; ".join(page.footnotes[number - 1] for number in entry.notes)
                value = entry.text if entry.value is None and entry.text != "—" else _number(entry.value)
                writer.writerow(
                    [
                        table,
                        preset,
                        block.title,
                        row.method,
                        name,
                        value,
                        _number(entry.stderr),
                        entry.status,
                        int(entry.best),
                        notes,
                    ]
                )
    return buffer.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None else repr(float(value))


_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "→": r"$\to$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "±": r"$\pm$",
    "—": "---",
    "−": "$-$",
    "÷": r"$\div$",
    "×": r"$\times$",
    "∈": r"$\in$",
}


def _latex(page: Page) -> str:
    """Needs the package booktabs."""

    def safe(text: str) -> str:
        return "".join(_TEX.get(character, character) for character in text)

    def marked(text: str, notes: tuple[int, ...]) -> str:
        return text + (rf"\textsuperscript{{{_marks(notes)}}}" if notes else "")

    lines = [r"\begin{table}", r"\centering", rf"\caption{{{safe(page.title)}. {safe(' '.join(page.caption))}}}"]
    for block in page.blocks:
        lines += [
            rf"\begin{{tabular}}{{l{'r' * len(block.headers)}}}",
            r"\toprule",
            " & ".join(map(safe, (block.title, *block.headers))) + r" \\",
            r"\midrule",
        ]
        for place, row in enumerate(block.rows):
            if place and row.sanity and not block.rows[place - 1].sanity:
                lines.append(r"\midrule")
            texts = [rf"\textbf{{{safe(entry.text)}}}" if entry.best else safe(entry.text) for entry in row.entries]
            shown = [marked(text, entry.notes) for text, entry in zip(texts, row.entries, strict=True)]
            lines.append(" & ".join((marked(safe(row.label), row.notes), *shown)) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", r"\par\medskip"]
    lines += [rf"\textsuperscript{{{number}}}\,{safe(text)}\par" for number, text in enumerate(page.footnotes, 1)]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


HTML_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;margin:2rem;max-width:70rem}"
    "table{border-collapse:collapse;margin:1.2rem 0;font-variant-numeric:tabular-nums}"
    "th,td{padding:.2rem .8rem;text-align:right}th:first-child,td:first-child{text-align:left}"
    "thead th{border-bottom:1px solid}tr.sanity{font-style:italic;opacity:.75}small{display:block}"
    ".scroll{overflow-x:auto}"
)


def _html(page: Page) -> str:
    lines = [
        "<!doctype html>",
        '<html lang="en">',
        f'<head><meta charset="utf-8"><title>{html.escape(page.title)}</title>',
        f"<style>{HTML_STYLE}</style></head>",
        "<body>",
        f"<h1>{html.escape(page.title)}</h1>",
        html_body(page),
        "</body>",
        "</html>",
    ]
    return "\n".join(lines) + "\n"


def html_body(page: Page, anchor: Callable[[str, str], str] = lambda method, column: "") -> str:
    """The page below its title. `anchor`: of a method and a column's header, the id of the element that shows the rows
    behind a number; empty for no link."""
    safe = html.escape

    def marked(text: str, notes: tuple[int, ...]) -> str:
        return text + (f"<sup>{_marks(notes)}</sup>" if notes else "")

    def shown(method: str, entry: Entry) -> str:
        text = f"<b>{safe(entry.text)}</b>" if entry.best else safe(entry.text)
        target = anchor(method, entry.column) if entry.column else ""
        return marked(f'<a href="#{safe(target)}">{text}</a>' if target else text, entry.notes)

    lines = []
    for block in page.blocks:
        headers = "".join(f"<th>{safe(text)}</th>" for text in (block.title, *block.headers))
        lines += ['<div class="scroll"><table>', f"<thead><tr>{headers}</tr></thead>", "<tbody>"]
        for row in block.rows:
            texts = [marked(safe(row.label), row.notes)] + [shown(row.method, entry) for entry in row.entries]
            kind = ' class="sanity"' if row.sanity else ""
            lines.append(f"<tr{kind}>{''.join(f'<td>{text}</td>' for text in texts)}</tr>")
        lines += ["</tbody>", "</table></div>"]
    lines += [f"<small><sup>{number}</sup> {safe(text)}</small>" for number, text in enumerate(page.footnotes, 1)]
    lines.append(f"<p>{safe(' '.join(page.caption))}</p>")
    return "\n".join(lines)


def fill_blocks(page: str, blocks: Mapping[str, str]) -> str:
    """The text with what stands between `<!-- NAME -->` and `<!-- /NAME -->` replaced, for each name of `blocks`.

    Raises UserError where a name has no such pair of markers, or more than one.
    """
    for name, content in blocks.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
            raise UserError(f"the page needs {begin} and, below it, {end}, once each")
        between = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        text = f"{begin}\n{content.strip()}\n{end}"
        page = between.sub(lambda _, text=text: text, page)  # type: ignore[misc]
    return page
