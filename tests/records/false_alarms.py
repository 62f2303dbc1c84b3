"""How often the statistical rule of `bench check` alarms on real seeds of one code, among which nothing has changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pandas
from pandas import DataFrame

from benchmark.api import MetricCard
from benchmark.records.regression import compare


class FalseAlarms(NamedTuple):
    """`per_run`: share of the left-out seeds with an alarm in any cell; `per_cell`: share of the comparisons."""

    per_run: float
    per_cell: float
    runs: int
    alarms: DataFrame


def leave_one_out_false_alarms(reference: DataFrame, cards: Mapping[str, MetricCard]) -> FalseAlarms:
    """Each reference seed in turn is the candidate against all others.

    A seed of the frame is one run. Its comparisons have one reference seed less than a real check, and the runs
    share their reference seeds, so that a collapsed seed can raise alarms in its own run only. Raises ValueError
    where there are fewer than three seeds.
    """
    seeds = sorted(set(reference["seed"]))
    if len(seeds) < 3:
        raise ValueError(f"the reference has {len(seeds)} seeds, leaving one out needs 3 or more")
    parts = []
    for seed in seeds:
        left_out = reference["seed"] == seed
        verdicts = compare(reference[~left_out], reference[left_out], cards, rule="statistical")
        parts.append(verdicts[verdicts["p"].notna()].assign(left_out_seed=seed))
    compared = pandas.concat(parts, ignore_index=True)
    alarms = compared[compared["verdict"] != "same"].reset_index(drop=True)
    return FalseAlarms(
        alarms["left_out_seed"].nunique() / len(seeds), len(alarms) / max(1, len(compared)), len(seeds), alarms
    )
