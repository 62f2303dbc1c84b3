"""Searches that every method gets alike: the same grid and number of trials, on the validation split, by its own score.

A search is a file `results/NAME.toml`, and each of its trials is a line of `results/NAME.csv`. `tuning` says
whether another value of the searched fields would have served a method better than the shared recipe does;
`budget` says how the errors fall with the number of updates. The test split is never touched.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark import registry
from benchmark.api import Cell, UserError, cells
from benchmark.config import resolve
from benchmark.engine import execution
from benchmark.engine.evaluate import evaluate_cell
from benchmark.engine.train import Diverged
from benchmark.files import RESULTS, files_in, lock, write_file
from benchmark.progress import Report
from benchmark.records import run_identity
from benchmark.records.job import Job
from benchmark.toml_files import checked_seed, known_name, read_toml

LEAST = 1e-6  # below which an error counts as this: its logarithm is asked for
ERRORS = {"one_to_one": "one_to_one", "many_to_one": "many_to_one", "coherence": "uncond"}  # column: its task
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


def on_validation(data: Any) -> Any:
    """The dataset with its validation split where its test split was: nothing that gets it can look at the latter.

    Of the same class, so that what is trained once for a dataset, such as its verifier, is not trained for this one.
    """

    def split_of(split: str) -> str:
        return "validation" if split == "test" else split

    held_out = copy.copy(data)
    held_out.count = lambda split: data.count(split_of(split))
    held_out.rows = lambda split, indices: data.rows(split_of(split), indices)
    held_out.split_of = held_out.fresh_split = lambda cell: "validation"
    return held_out


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search file: what is varied, and the points, each a tuple of `field=value`.

    fields: the grid's; none where the file lists `changes`, each a point of its own. metrics: the metric of each error
    column; of a rate, the error is what it lacks to one. given, want: the modalities that conditional cells give and
    want; all where empty. methods: that are searched where the user names none; all where empty.
    """

    path: Path
    dataset: str
    seed: int
    fixed: tuple[str, ...]
    fields: tuple[str, ...]
    points: tuple[tuple[str, ...], ...]
    metrics: Mapping[str, str]
    given: tuple[str, ...] = ()
    want: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()

    @property
    def lines(self) -> Path:
        """Where its trials land."""
        return self.path.with_suffix(".csv")


def load_search(name: str, folder: Path = RESULTS) -> Search:
    """The search of a name. Raises UserError for an unknown name and for a broken file."""
    known = [path.stem for path in files_in(folder, ".toml") if {"grid", "changes"} & read_toml(path).keys()]
    known_name(name, known, "search", str(folder))
    path = folder / f"{name}.toml"
    content = read_toml(path)
    try:
        grid: Mapping[str, Sequence[Any]] = {} if "changes" in content else content["grid"]
        points = content["changes"] if "changes" in content else _crossed(grid)
        return Search(
            path=path,
            dataset=content["dataset"],
            seed=checked_seed(content["seed"], str(path)),
            fixed=tuple(content["fixed"]),
            fields=tuple(grid),
            points=tuple(map(tuple, points)),
            metrics={column: content["metrics"][column] for column in ERRORS},
            given=tuple(content.get("given", ())),
            want=tuple(content.get("want", ())),
            methods=tuple(content.get("methods", ())),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: a search needs dataset, seed, fixed, metrics, and changes or [grid] ({error})"
        ) from None


def _crossed(grid: Mapping[str, Sequence[Any]]) -> list[list[str]]:
    """Every combination of the fields' values, the last field's changing fastest."""
    return [
        [f"{field}={value}" for field, value in zip(grid, values, strict=True)]
        for values in itertools.product(*grid.values())
    ]


def tune(
    search: Search, methods: Sequence[str], preset: str, device: str, runs: Path, report: Report
) -> Iterator[dict[str, Any]]:
    """Run the trials that the search's file lacks and yield each of its lines; resumes after a crash.

    The score is the geometric mean of the three errors, or of those that the method supports.
    """
    for method, point in itertools.product(methods, search.points):
        job = Job(method, search.dataset, preset, search.seed, (), tuple(dict.fromkeys(search.metrics.values())))
        run = run_identity.prepare(job, runs, _overrides(search, job, point))
        done = [line for line in read_lines(search.lines) if line["run_id"] == run.run_id]
        if not done:
            with execution.guarded(run, device):
                done = [_trial(run, search, " ".join(point), device, report)]
            with (path := runs / "tuning.lock").open("ab") as file:  # two searches may share the file
                lock(file.fileno(), path, "--runs")
                _write(search.lines, [*_others(read_lines(search.lines), done[0]), *done])
        yield done[0]


def _overrides(search: Search, job: Job, point: Sequence[str]) -> list[str]:
    """What is set for a method at a point: its own fields that scale with a varied one are multiplied as that is."""
    card = registry.card("method", job.method)
    usual = resolve(registry.card("dataset", search.dataset), card, job.preset).config.values()
    asked = dict(text.partition("=")[::2] for text in (*search.fixed, *point))
    scaled = [
        f"{name}={usual[name] * float(asked[rule['scales_with']]) / usual[rule['scales_with']]}"
        for name, rule in card.fields.items()
        if rule.get("scales_with") in asked and name not in asked
    ]
    return [*search.fixed, *point, *scaled]


def _others(lines: Sequence[Mapping[str, Any]], trial: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The lines of other trials; one of the same trial by older code goes."""
    return [line for line in lines if any(line[name] != trial[name] for name in ("method", "preset", "overrides"))]


def _trial(run: run_identity.Run, search: Search, overrides: str, device: str, report: Report) -> dict[str, Any]:
    """Train and score one point; one that diverges has an infinite score."""
    errors: dict[str, float] = {}
    score, seconds = math.inf, ""
    with contextlib.suppress(Diverged):
        method, data, progress = execution.train_only(run, device, report)
        held_out = on_validation(data)
        for column, task in ERRORS.items():
            if task in run.method_card.tasks:
                asked, metric = list(_cells(search, task)), search.metrics[column]
                found = [_error(method, held_out, cell, metric, run, device) for cell in asked]
                errors[column] = sum(found) / len(found)
        score = math.exp(sum(math.log(max(error, LEAST)) for error in errors.values()) / len(errors))
        seconds = f"{progress.seconds:.0f}" if progress else ""
    return {
        "method": registry.stem(run.job.method),
        "dataset": registry.stem(run.job.dataset),
        "preset": run.job.preset,
        "seed": run.job.seed,
        "overrides": overrides,
        "score": f"{score:.6g}",
        **{name: f"{errors[name]:.6g}" if name in errors else "" for name in ERRORS},
        "train_seconds": seconds,
        "method_version": run.method_card.version,
        "dataset_version": run.dataset_card.version,
        "run_id": run.run_id,
        **execution.machine(device),
    }


def _cells(search: Search, task: str) -> Iterator[Cell]:
    """The cells that an error is averaged over."""
    names = registry.card("dataset", search.dataset).modalities
    for cell in cells(registry.stem(search.dataset), names, task, every_subset=bool(search.given)):
        if not cell.given or (
            set(cell.given) <= set(search.given or names) and set(cell.want) <= set(search.want or names)
        ):
            yield cell


def _error(method: Any, data: Any, cell: Cell, metric: str, run: run_identity.Run, device: str) -> float:
    kept = execution.kept_things(run, data, cell, method, "validation")
    (result,) = evaluate_cell(method, data, cell, [metric], run.config, run.job.seed, device, kept=kept)
    assert result.score is not None, result.reason
    value = result.score.value
    return 1 - value if registry.card("metric", metric).higher_is_better else value


def render(search: Search, lines: Sequence[Mapping[str, Any]], preset: str) -> str:
    """Markdown of a preset's trials: of one field, or of changes, the errors along them, with the seconds of training;
    of a grid of several fields, the score of the shared recipe beside each method's own best. Trials of other points
    than the search's are left out, so that every method is shown with the same ones."""
    points = [" ".join(point) for point in search.points]
    lines = [line for line in lines if line["preset"] == preset and line["overrides"] in points]
    if not lines:
        return f"No trials of preset {preset} yet: bench tune {search.path.stem} --preset {preset}\n"
    by_method: dict[str, Trials] = {}
    for line in lines:
        by_method.setdefault(line["method"], {})[line["overrides"]] = line
    if len(search.fields) <= 1:
        values = [_short(point.partition("=")[2]) if search.fields else point or "nothing" for point in points]
        header = [*(search.fields or ("changed",)), *values]
        rows = [
            [
                f"{registry.label(method)}, {shown.replace('_', ' ')}",
                *(_number(trials, point, shown) for point in points),
            ]
            for method, trials in by_method.items()
            for shown in (*ERRORS, "train_seconds")
        ]
    else:
        header = ["method", "shared recipe", "own best", "at", "own best / shared"]
        rows = [_beside_best(method, trials, _usual(search, method, preset)) for method, trials in by_method.items()]
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in [header, rule, *rows]) + f"\n{_caption(search, lines)}\n"


def _usual(search: Search, method: str, preset: str) -> str:
    """The point of the shared recipe, and of what the method's card says."""
    card = registry.card("method", method) if registry.known("method", method) else None
    values = resolve(registry.card("dataset", search.dataset), card, preset).config.values()
    return " ".join(f"{field}={values.get(field)}" for field in search.fields)


def _short(number: str) -> str:
    """For a table's header."""
    with contextlib.suppress(ValueError):
        return f"{float(number):.4g}" if len(number) > 8 else number
    return number


Trials = dict[str, Mapping[str, Any]]  # overrides -> the line of that trial


def _beside_best(method: str, trials: Trials, shared: str) -> list[str]:
    best = min(trials, key=lambda point: float(trials[point]["score"]))
    ratio = float(trials[best]["score"]) / float(trials[shared]["score"]) if shared in trials else math.nan
    at = "the shared recipe" if best == shared else best
    return [registry.label(method), _number(trials, shared), _number(trials, best), at, f"{ratio:.2f}"]


def _caption(search: Search, lines: Sequence[Mapping[str, Any]]) -> str:
    rates = any(registry.card("metric", metric).higher_is_better for metric in search.metrics.values())
    said = [
        f"Preset {lines[0]['preset']}, with {', '.join(search.fixed) or 'nothing else changed'}",
        f"seed {search.seed}",
        "validation split",
        *(["of a rate, what it lacks to one"] if rates else []),
        *(", ".join(sorted({str(line[column]) for line in lines})) for column in ("torch", "device")),
    ]
    return f"{'; '.join(said)}."


def _number(trials: Trials, point: str, column: str = "score") -> str:
    value = trials[point][column] if point in trials else ""
    return "—" if value == "" else f"{float(value):.3g}"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a search. Raises UserError for a file of other columns."""
    if not path.exists():
        return []
    lines = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    if lines and tuple(lines[0]) != COLUMNS:
        raise UserError(f"{path}: not the trials of a search: its columns are {', '.join(lines[0])}")
    return lines


def _write(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_file(path, text.getvalue().encode())
