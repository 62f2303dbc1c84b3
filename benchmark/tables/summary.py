"""Result rows to the numbers of a table: which rows may share a column, means over cells and seeds, and the paper's.

A pure function of the rows and the table: the same input gives the same numbers. pandas is imported where it is used,
so that a listing of what there is stays fast.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.api import Cell, UserError
from benchmark.files import RESULTS
from benchmark.records.results_file import KEY, MEASURED, VERSIONS, dicts_of, shared_protocol
from benchmark.tables.table_file import Column, Table

if TYPE_CHECKING:
    import pandas as pd

# Rows that differ in one of these answer different questions and never meet in one column.
ONE_PER_COMPARISON = ("preset", "dataset", "dataset_version", "protocol", "precision")
ONE_PER_COLUMN = (*ONE_PER_COMPARISON, "metric", "metric_version")
ONE_PER_METHOD = ("method_version", "protocol")  # of which a protocol holds what answered, too


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
    cells = dicts_of(chosen[["dataset", "given", "want"]])
    rows = dicts_of(chosen[[(_name(cell), cell["given"], cell["want"]) in sought for cell in cells]])
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
    names = {*alike, "method", *ONE_PER_METHOD}
    differing: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for row in rows:
        differing.setdefault(tuple(row[name] for name in names), row)
    for row in differing.values():
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


def by_method(rows: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each method that has any."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["method"], []).append(row)
    return found


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
        rows = by_method(column_rows(frame, preset, wanted, column.metric, table.rows))
        for method in table.rows:
            own = rows.get(method, [])
            entry: dict[str, Any] = {"preset": preset, "method": method, "column": column.header}
            entry |= {"metric": column.metric, "cells": len(wanted)}
            summary.append(entry | _summary(own, len(wanted), table.seeds.get(preset, 1)))
    return pd.DataFrame(summary)


def _summary(rows: Sequence[Mapping[str, Any]], cell_count: int, planned: int) -> dict[str, Any]:
    means, reason = seed_means(rows, cell_count)
    values = list(means.values())
    used = [row for row in rows if row["seed"] in means] or rows
    entry: dict[str, Any] = {
        "value": mean(values),
        "stderr": math.nan,
        "stderr_over": "",
        "seeds": _ranges(means),
        "status": "ok" if values else reason or "missing: not run",
        "note": "",
    }
    if len(values) > 1:
        entry |= {"stderr": statistics.stdev(values) / math.sqrt(len(values)), "stderr_over": "seeds"}
    elif values and not any(math.isnan(row["stderr"]) for row in used):
        entry |= {"stderr": mean([row["stderr"] for row in used]), "stderr_over": "rows"}
    if 0 < len(values) < planned:
        entry["note"] = f"{len(values)} of {planned} seeds" + (f": {reason}" if reason else "")
    for name in ("n", *VERSIONS, "torch", "device"):
        entry[name] = "; ".join(dict.fromkeys(str(row[name]) for row in used))
    for name in MEASURED:
        entry[name] = mean([row[name] for row in used if not math.isnan(row[name])])
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


def mean(values: Sequence[float]) -> float:
    """NaN of nothing."""
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
