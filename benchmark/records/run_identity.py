"""What a run is: its resolved configuration, its ids and folder, and which of its numbers are missing.

Imports no torch, so that commands that list and print can ask it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark import registry
from benchmark.api import Cell, DatasetCard, MethodCard
from benchmark.config import Config, digest, resolve
from benchmark.records import results_file
from benchmark.records.job import Job
from benchmark.records.results_file import Results

# The core's files that a trained weight depends on, and those that a score depends on besides.
_TRAINS = ("engine/train.py", "engine/optimizer.py", "runtime.py", "engine/process_group.py")
_SCORES = ("engine/evaluate.py", "engine/criteria.py")


@dataclass(frozen=True)
class Run:
    """A job with everything resolved: what it is, where it lives, and what its rows will say.

    Runs that differ in how they are scored alone share a `training_id`, and with it a directory and its checkpoint.
    `rows`: the local results file's, which the runs of one command share, so that it is parsed once.
    """

    job: Job
    method_card: MethodCard
    dataset_card: DatasetCard
    config: Config
    sources: str
    what: tuple[Any, ...]  # besides the configuration, all that its ids depend on
    run_id: str
    training_id: str
    directory: Path
    rows: Results = field(compare=False, repr=False)

    @property
    def results(self) -> Path:
        """The local results file."""
        return self.rows.path

    def row_id(self, metric: str) -> str:
        """The `run_id` of a metric's rows: the run's own, unless `--set` changed a field of that metric."""
        changed = self.config.changed(registry.stem(metric))
        return digest([self.run_id, changed]) if changed else self.run_id


def prepare(job: Job, runs: Path, overrides: Sequence[str] = (), rows: Results | None = None) -> Run:
    """Resolve a job without touching torch's state or the disk; `rows`: of the other runs in that folder.

    Raises UserError for anything unknown.
    """
    method_card: MethodCard = registry.card("method", job.method)
    dataset_card: DatasetCard = registry.card("dataset", job.dataset)
    metrics = {registry.stem(metric): registry.card("metric", metric) for metric in job.metrics}
    config = resolve(dataset_card, method_card, job.preset, overrides, metrics).config
    code = digest(
        [
            registry.sources(registry.locate("method", job.method)),
            registry.sources(registry.locate("dataset", job.dataset), with_card=False),
            *(registry.sources(registry.ROOT / "benchmark" / file) for file in _TRAINS),
        ]
    )
    name, data = registry.stem(job.method), registry.stem(job.dataset)
    what = (name, data, job.seed, method_card.version, dataset_card.version, code)
    run_id, training_id = digest([config.values(), *what]), training_id_of(config, what)
    runs = runs.absolute()  # a plug-in that goes to another folder does not move them
    directory = runs / job.preset / data / name / folder_name(job, training_id)
    rows = rows or Results(runs / "results.csv")
    return Run(job, method_card, dataset_card, config, code, what, run_id, training_id, directory, rows)


def folder_name(job: Job, training_id: str) -> str:
    return f"seed{job.seed}-{training_id}"


def training_id_of(config: Config, what: Sequence[Any]) -> str:
    return digest([config.training_values(), *what])


def missing(run: Run) -> list[tuple[Cell, str]]:
    """The (cell, metric) pairs that the results file lacks for this very run; errors are tried again, and numbers of
    older scoring code are computed anew."""
    ids = {metric: run.row_id(metric) for metric in run.job.metrics}
    found = results_file.latest(run.rows.of_runs(ids.values()))
    current = {registry.stem(metric): sources_behind(run, metric) for metric in run.job.metrics}
    found = found[found["sources"] == found["metric"].map(current)]
    done = {each: results_file.done_keys(found, each) for each in set(ids.values())}
    return [(cell, metric) for cell, metric in run.job.scores if key_of(run, cell, metric) not in done[ids[metric]]]


def failures(run: Run) -> list[str]:
    """Why numbers are missing, where rows of this very run say so; each reason once."""
    lacking = {key_of(run, cell, metric) for cell, metric in missing(run)}
    found = results_file.latest(results_file.load(run.results))
    rows = found[(found["run_id"] == run.run_id) & found["status"].str.startswith("error")]
    keys = rows[list(results_file.KEY)].itertuples(index=False, name=None)
    return list(dict.fromkeys(why for key, why in zip(keys, rows["status"], strict=True) if key in lacking))


def sources_behind(run: Run, metric: str) -> str:
    """Hash of all the code behind a number: the run's, the scoring's and the metric's."""
    scoring = (registry.sources(registry.ROOT / "benchmark" / file) for file in _SCORES)
    return digest([run.sources, *scoring, registry.sources(registry.locate("metric", metric))])


def key_of(run: Run, cell: Cell, metric: str) -> tuple[str | int, ...]:
    variant = f":{run.config.variant}" if run.config.variant else ""
    return (
        run.job.preset,
        registry.stem(run.job.dataset) + variant,
        "+".join(cell.given),
        "+".join(cell.want),
        registry.stem(run.job.method),
        registry.stem(metric),
        run.job.seed,
    )
