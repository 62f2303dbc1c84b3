"""Which result rows a command reads: those of the runs that its settings name, or the committed ones."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark import files, registry
from benchmark.api import UserError
from benchmark.config import PRESETS
from benchmark.records import results_file
from benchmark.records.job import Job
from benchmark.records.results_file import Results
from benchmark.records.run_identity import Run, prepare

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What names a command's runs: a preset's recipe with `overrides`, in a folder of runs.

    own: methods that the user names, of which some may be files. reference: the committed rows are read instead of the
    folder's. shared: the folder's rows, where the command has other settings that read them, too.
    """

    preset: str
    runs: Path
    overrides: Sequence[str] = ()
    own: Sequence[str] = ()
    reference: bool = False
    shared: Results | None = None

    @functools.cached_property
    def results(self) -> Results:
        """The folder's rows, which all runs of these settings share."""
        return self.shared or Results(self.runs / "results.csv")

    def prepare(self, job: Job) -> Run:
        """The job as a run of the folder. Raises UserError for anything unknown."""
        return prepare(job, self.runs, self.overrides, self.results)

    def rows(self) -> pd.DataFrame:
        """The rows by the code as it is now: other overrides and older code made other runs.

        Raises UserError where there are none.
        """
        if self.reference:
            return reference(self.preset)
        frame = self._of_preset()
        frame = rows_of(self.runs_behind(frame), frame)
        if frame.empty:
            raise UserError(
                f"{self.runs / 'results.csv'} has no rows of preset {self.preset} by this code and these settings: "
                "run bench reproduce first"
            )
        return frame

    def left_out(self, rows: pd.DataFrame) -> int:
        """How many rows of the preset the folder has besides these."""
        return 0 if self.reference else len(self._of_preset()) - len(rows)

    def runs_behind(self, rows: pd.DataFrame) -> list[Run]:
        """The runs that the rows' methods, datasets and seeds would make now; none of committed rows."""
        if self.reference:
            return []
        own = {registry.stem(name): name for name in self.own}
        metrics = tuple(name for name in rows["metric"].unique() if registry.known("metric", name))
        asked = rows[["method", "seed", "dataset"]].drop_duplicates()
        asked = asked.assign(dataset=[name.partition(":")[0] for name in asked["dataset"]])  # without their variants
        asked = asked.drop_duplicates()
        return [
            self.prepare(Job(own.get(job.method, job.method), job.dataset, self.preset, job.seed, (), metrics))
            for job in asked.itertuples(index=False)
            if (job.method in own or registry.known("method", job.method)) and job.dataset in registry.index("dataset")
        ]

    def _of_preset(self) -> pd.DataFrame:
        frame = local(self.results)
        return frame[frame["preset"] == self.preset]


def rows_of(runs: Sequence[Run], frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of exactly these runs: an override or changed code makes other runs."""
    ids = {metric: {run.row_id(metric) for run in runs} for metric in frame["metric"].unique()}
    frame = frame[frame["run_id"].isin(set().union(*ids.values()))]  # of many rows the few that remain to be looked at
    return frame[[row in ids[metric] for row, metric in zip(frame["run_id"], frame["metric"], strict=True)]]


def local(results: Results) -> pd.DataFrame:
    """The rows of a folder of runs, each as it was written last. Raises UserError where there is no such file."""
    return results_file.latest(results.frame(must_exist=True))


def reference(preset: str) -> pd.DataFrame:
    """The committed rows of a preset. Raises UserError where there are none."""
    if not reference_path(preset).exists():
        raise UserError(f"no reference rows of preset {preset}: bench bless --preset {preset} makes them from yours")
    return results_file.load(reference_path(preset), must_exist=True)


def reference_path(preset: str) -> Path:
    """Where the committed rows of a preset are."""
    return files.RESULTS / "reference" / f"{preset}.csv"


def presets_with_rows(results: Results, committed: bool) -> list[str]:
    """Raises UserError where a folder of runs has no rows; `committed`: of the committed ones instead."""
    if committed:
        return [name for name in PRESETS if reference_path(name).exists()]
    found = set(results.frame(must_exist=True)["preset"])
    if not found:
        raise UserError(f"{results.path} has no rows: run bench reproduce first")
    return [name for name in PRESETS if name in found]
