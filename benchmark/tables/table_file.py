"""A table is data: a TOML file names its rows, columns and seeds, and plans the jobs that answer it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmark import files
from benchmark.api import TASKS, Cell, UserError, cells
from benchmark.config import PRESETS, nearest
from benchmark.files import files_in
from benchmark.records.job import Job, job_of
from benchmark.registry import stem
from benchmark.toml_files import checked, known_name, read_toml

MOST_SEEDS = 10_000  # of a table, or of a range of them


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
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


def table_files(folder: Path | None = None) -> dict[str, Path]:
    """Name -> file of every table in a folder; of the suite's own where none is given."""
    return {path.stem: path for path in files_in(folder or files.RESULTS / "tables", ".toml")}


def load_table(source: str | Path, metrics: Collection[str], preset: str = "paper") -> Table:
    """Read `results/tables/<source>.toml`, or the file of that path, strictly; `metrics` are the known names.

    A table whose `dataset` lists one per preset is that of `preset`.
    Raises UserError, naming file and key, for an unknown table, key, task, metric or preset, a wrong
    type, a missing key, two columns of one header, and a plot of a header that no column has.
    """
    path = Path(source)
    if path.suffix != ".toml":
        known = table_files()
        if str(source) not in known:
            raise UserError(f"unknown table {str(source)!r}{nearest(str(source), known)}")
        path = known[str(source)]
    raw = read_toml(path)
    if "columns" in raw:
        raw["column"] = _columns_of(raw.pop("columns"), path)
    _check_table(raw, path.name, metrics)
    dataset = dataset_at(raw["dataset"], preset, path.name)
    return Table(
        id=raw["id"],
        title=raw["title"],
        dataset=dataset,
        methods=tuple(raw["methods"]),
        sanity=tuple(raw["sanity"]),
        seeds=raw["seeds"],
        columns=tuple(_column(entry, raw["id"]) for entry in raw["column"]),
        stand_in=dataset != dataset_at(raw["dataset"], "paper", path.name),
        references=tuple(raw.get("references", ())),
        imported=raw.get("imported", {}),
        plots=tuple((plot["x"], plot["y"]) for plot in raw.get("plot", [])),
    )


def _check_table(raw: Mapping[str, Any], where: str, metrics: Collection[str]) -> None:
    """Raises UserError, naming file and key, for what `load_table` refuses, the datasets of presets apart."""
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
        where,
        {"references": list, "imported": dict, "plot": list},
    )
    for name, count in raw["seeds"].items():
        if name not in PRESETS:
            raise UserError(f"{where}: seeds: unknown preset {name!r}{nearest(name, PRESETS)}")
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_SEEDS:
            raise UserError(f"{where}: seeds: {name} = {count!r}: write a whole number from 1 to {MOST_SEEDS}")
    for place, entry in enumerate(raw["column"], 1):
        _check_column(entry, f"{where}: column {place}", metrics)
    headers = [entry["header"] for entry in raw["column"]]
    if twice := [header for header in headers if headers.count(header) > 1]:
        raise UserError(f"{where}: two columns have the header {twice[0]!r}: give each its own")
    for plot in raw.get("plot", []):
        checked(plot, {"x": str, "y": str}, f"{where}: plot")
        for header in plot.values():
            known_name(header, headers, "column", f"{where}: plot")


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
        beside = {name: read_toml(file) for name, file in table_files(path.parent).items()}
        known = {name: raw["column"] for name, raw in beside.items() if "column" in raw}
        known_name(other, known, "table", where)
        return list(known[other])
    found = []
    for pick in other:
        checked(pick, {"table": str, "headers": list}, where, {"block": str})
        there = {column["header"]: column for column in _columns_of(pick["table"], path)}
        for header in pick["headers"]:
            known_name(header, there, f"column of {pick['table']}", where)
            column = {key: value for key, value in there[header].items() if key not in ("paper", "block")}
            found.append(column | ({"block": pick["block"]} if "block" in pick else {}))
    return found


def _check_column(raw: Mapping[str, Any], where: str, metrics: Collection[str]) -> None:
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


def _column(raw: Mapping[str, Any], table: str) -> Column:
    return Column(
        header=raw["header"],
        metric=raw["metric"],
        digits=raw["digits"],
        task=raw.get("task", ""),
        listed=tuple((tuple(cell["given"]), tuple(cell["want"])) for cell in raw.get("cells", [])),
        paper={"table": table, **raw["paper"]} if "paper" in raw else {},
        block=raw.get("block", ""),
        better=raw.get("better", ""),
        least=raw.get("least", {}),
    )
