"""The search that every method gets: the same grid and number of trials, on the validation split, by its own score.

Tables show the shared recipe; this says whether another value of the searched fields would have served a
method better. Every trial is a line of results/tuning.csv, and the test split is never touched.
"""

from __future__ import annotations

import csv
import fcntl
import io
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark import registry, runner
from benchmark.api import Batch, Cell, UserError, cells
from benchmark.evaluate import evaluate_cell
from benchmark.files import write_atomic
from benchmark.tables import RESULTS, job_of, read_toml

COLUMNS = (
    "method",
    "dataset",
    "preset",
    "seed",
    "overrides",
    "score",
    "one_to_one",
    "many_to_one",
    "coherence",
    "train_seconds",
    "method_version",
    "dataset_version",
    "run_id",
    "commit",
    "torch",
    "device",
)


class OnValidation:
    """A dataset whose validation split stands where its test split was: nothing below can look at the latter."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def count(self, split: str) -> int:
        return self._data.count("validation" if split == "test" else split)

    def rows(self, split: str, indices: Any) -> Batch:
        return self._data.rows("validation" if split == "test" else split, indices)


def grid(path: Path) -> tuple[str, int, list[str], list[tuple[str, ...]]]:
    """Dataset, seed, fixed overrides and the trials' overrides of a search file. Raises UserError for a broken one."""
    content = read_toml(path)
    try:
        fields: Mapping[str, Sequence[Any]] = content["grid"]
        points = [
            tuple(f"{name}={value}" for name, value in zip(fields, values, strict=True))
            for values in itertools.product(*fields.values())
        ]
        return content["dataset"], content["seed"], list(content["fixed"]), points
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: a search needs dataset, seed, fixed and [grid] ({error})") from None


def tune(
    methods: Sequence[str],
    preset: str,
    device: str,
    runs: Path,
    report: runner.Report,
    search: Path = RESULTS / "tuning.toml",
    out: Path = RESULTS / "tuning.csv",
) -> Iterator[dict[str, Any]]:
    """Run the trials that `out` lacks and yield each of its lines; resumes after a crash.

    The score is the geometric mean of the three shared-coordinate errors that the method supports.
    """
    dataset, seed, fixed, points = grid(search)
    lines = _read(out)
    for method, point in itertools.product(methods, points):
        run = runner.prepare(job_of(method, dataset, preset, seed, []), runs, [*fixed, *point])
        done = [line for line in lines if line["run_id"] == run.run_id]
        if not done:
            line = _trial(run, " ".join(point), device, report)
            with (runs / "tuning.lock").open("a") as lock:  # two searches may share the file
                fcntl.flock(lock, fcntl.LOCK_EX)
                _write(out, [*_read(out), line])
            done = [line]
        yield done[0]


def _trial(run: runner.Run, overrides: str, device: str, report: runner.Report) -> dict[str, Any]:
    method, data, progress = runner.train_only(run, device, report)
    names = registry.card("dataset", run.job.dataset).modalities
    errors = {}
    for column, task in (("one_to_one", "one_to_one"), ("many_to_one", "many_to_one"), ("coherence", "uncond")):
        if task in run.method_card.tasks:
            asked = list(cells(registry.stem(run.job.dataset), names, task))
            errors[column] = sum(_error(method, OnValidation(data), cell, run, device) for cell in asked) / len(asked)
    score = math.exp(sum(map(math.log, errors.values())) / len(errors))
    return {
        "method": registry.stem(run.job.method),
        "dataset": registry.stem(run.job.dataset),
        "preset": run.job.preset,
        "seed": run.job.seed,
        "overrides": overrides,
        "score": f"{score:.6g}",
        **{
            name: f"{errors[name]:.6g}" if name in errors else "" for name in ("one_to_one", "many_to_one", "coherence")
        },
        "train_seconds": f"{progress.seconds:.0f}" if progress else "",
        "method_version": run.method_card.version,
        "dataset_version": run.dataset_card.version,
        "run_id": run.run_id,
        **runner.machine(device),
    }


def _error(method: Any, data: Any, cell: Cell, run: runner.Run, device: str) -> float:
    (result,) = evaluate_cell(method, data, cell, ["shared_mse"], run.config, run.job.seed, device)
    assert result.score is not None
    return result.score.value


def best(lines: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Method -> its best trial."""
    found: dict[str, Mapping[str, Any]] = {}
    for line in lines:
        if line["method"] not in found or float(line["score"]) < float(found[line["method"]]["score"]):
            found[line["method"]] = line
    return found


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = list(csv.DictReader(io.StringIO(path.read_text())))
    if lines and tuple(lines[0]) != COLUMNS:
        raise UserError(f"{path}: not the trials of a search: its columns are {', '.join(lines[0])}")
    return lines


def _write(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_atomic(path, text.getvalue().encode())
