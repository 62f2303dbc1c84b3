"""Planted defects: bench check finds each of them, and raises no alarm where nothing is wrong."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
import torch

from benchmark import registry
from benchmark.api import cells
from benchmark.engine import execution
from benchmark.files import RESULTS
from benchmark.records import regression, results_file, run_identity
from benchmark.records.job import job_of
from models.components.experts import product
from models.components.routes import full_and_leave_one_out
from models.muni import MUNI
from tests import ROOT
from tests.records.false_alarms import leave_one_out_false_alarms

DEFECTS = sorted((ROOT / "tests" / "records" / "defects").glob("*.py"))
NAMES = ["prior_on_all_subsets", "product_drops_an_expert", "sampler_wrong_sign"]
TASKS = ("one_to_one", "many_to_one", "uncond")
TINY = ["updates=60", "train_rows=500", "evaluation_rows=128", "unconditional_rows=128", "batch_rows=32"]
# Of the statistical rule at preset cpu, on the measured rows.
FALSE_ALARMS_PER_RUN, FALSE_ALARMS_PER_CELL = 0.2, 0.005


def metric_cards() -> dict:
    return {name: registry.card("metric", name) for name in registry.index("metric")}


def measured(method: str, runs: Path) -> pandas.DataFrame:
    """The rows of a tiny run of table5's tasks, one seed."""
    modalities = registry.card("dataset", "gaussian_mixture").modalities
    pairs = [
        (cell, metric)
        for task in TASKS
        for cell in cells("gaussian_mixture", modalities, task)
        for metric in ("shared_mse", "swd")
    ]
    prepared = run_identity.prepare(job_of(method, "gaussian_mixture", "smoke", 0, pairs), runs, TINY)
    assert execution.execute([prepared], "cpu", lambda *_: None) == []
    return results_file.load(prepared.results)


def as_muni(frame: pandas.DataFrame) -> pandas.DataFrame:
    """A defect is filed under the name of what it was planted in."""
    return frame.assign(method="muni", method_version=registry.card("method", "muni").version)


def by_task(verdicts: pandas.DataFrame) -> dict[str, set[str]]:
    """Task -> its verdicts."""
    task = verdicts["given"].map(lambda given: TASKS[2] if not given else TASKS[int("+" in given)])
    return {name: set(part["verdict"]) for name, part in verdicts.groupby(task)}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> pandas.DataFrame:
    return measured("muni", tmp_path_factory.mktemp("sound"))


def test_the_defects_are_what_their_names_say() -> None:
    assert [path.stem for path in DEFECTS] == NAMES
    prior, experts, sampler = (registry.load("method", str(path)) for path in DEFECTS)
    assert all(issubclass(method, MUNI) for method in (prior, experts, sampler))
    assert (prior.aggregate, experts.routes, sampler.routes) == (product, MUNI.routes, MUNI.routes)
    mean, log_variance = torch.randn(7, 3, 4), torch.randn(7, 3, 4)
    subsets = torch.tensor([[bool(n >> k & 1) for k in range(3)] for n in range(1, 8)])
    left = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1], [0, 1, 1]]).bool()
    for found, expected in zip(
        experts.aggregate(mean, log_variance, subsets), product(mean, log_variance, left), strict=True
    ):
        assert torch.equal(found, expected)
    assert (1,) not in full_and_leave_one_out(3)  # so that a prior on singles is a defect


@pytest.mark.parametrize("defect", NAMES)
def test_the_paired_rule_finds_the_defect(defect: str, sound: pandas.DataFrame, tmp_path: Path) -> None:
    fresh = as_muni(measured(str(ROOT / "tests" / "records" / "defects" / f"{defect}.py"), tmp_path))
    verdicts = regression.compare(sound, fresh, metric_cards())
    assert set(verdicts["rule"]) == {"paired"}
    assert regression.exit_code(verdicts) == 1
    found = by_task(verdicts)
    assert found["uncond"] == {"worse"} if defect == "sampler_wrong_sign" else found["uncond"] & {"worse", "better"}
    assert all(verdict & {"worse", "better"} for verdict in found.values())


def test_the_paired_rule_raises_no_alarm_on_the_same_code(sound: pandas.DataFrame, tmp_path: Path) -> None:
    verdicts = regression.compare(sound, measured("muni", tmp_path), metric_cards())
    assert set(verdicts["verdict"]) == {"same"}
    assert regression.exit_code(verdicts) == 0


def measured_at_cpu(folder: Path) -> pandas.DataFrame:
    return results_file.latest(results_file.load(folder / "cpu.csv", must_exist=True))


@pytest.mark.parametrize("defect", NAMES)
def test_the_statistical_rule_finds_the_defect(defect: str) -> None:
    reference, planted = measured_at_cpu(RESULTS / "reference"), measured_at_cpu(ROOT / "tests" / "records" / "defects")
    fresh = as_muni(planted[planted["method"] == defect])
    assert not fresh.empty, f"tests/records/defects/cpu.csv has no rows of {defect}"
    verdicts = regression.compare(reference, fresh, metric_cards(), rule="statistical")
    verdicts = verdicts[verdicts["method"] == "muni"]
    worse = verdicts[verdicts["verdict"] == "worse"]
    assert len(worse) > 0 and regression.exit_code(verdicts) == 1
    # Where it shows: all the more in what the defect spoils.
    tasks = {"prior_on_all_subsets": {"uncond"}, "product_drops_an_expert": {"many_to_one"}}.get(defect, set(TASKS))
    assert tasks <= {task for task, found in by_task(verdicts).items() if "worse" in found}


def test_left_out_real_seeds_raise_no_alarm() -> None:
    found = leave_one_out_false_alarms(measured_at_cpu(RESULTS / "reference"), metric_cards())
    assert found.per_run <= FALSE_ALARMS_PER_RUN and found.per_cell <= FALSE_ALARMS_PER_CELL, found.alarms


# The last stage of .ci/run, in a copy of the tree.

SIGN = ("x.sub_(velocity(x, t), alpha=1 / steps)", "x.add_(velocity(x, t), alpha=1 / steps)")
BENCH = """#!/bin/sh
case $1 in reproduce) set -- "$@" --method muni ;; esac
exec {python} -m benchmark.cli.commands "$@"
"""


def last_stage() -> str:
    """The command of .ci/run's last stage."""
    return (ROOT / ".ci" / "run").read_text().rstrip().splitlines()[-1]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the checkout with a smaller smoke preset, a table of muni alone and our environment in place."""
    copy = tmp_path / "tree"
    for name in ("benchmark", "models", "baselines", "data_prep", "results", ".ci"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "reference"))
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, copy)
    replace(copy / "data_prep" / "gaussian_mixture.py", '"updates": (200,', '"updates": (40,')
    replace(copy / "data_prep" / "gaussian_mixture.py", '"train_rows": (20_000,', '"train_rows": (500,')
    (copy / ".venv" / "bin").mkdir(parents=True)
    (copy / ".venv" / "bin" / "bench").write_text(BENCH.format(python=sys.executable))
    (copy / ".venv" / "bin" / "bench").chmod(0o755)
    (copy / ".venv" / ".core").touch()
    return copy


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path} has {text.count(old)} times {old}"
    path.write_text(text.replace(old, new))


def smoke(tree: Path) -> subprocess.CompletedProcess[str]:
    """`make smoke`, as .ci/run ends with it."""
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_WAIT_POLICY": "PASSIVE"}
    command = ["make", "smoke", "VENV=.venv", "RUNS=fresh"]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)


def test_ci_ends_with_the_regression_check_and_its_status() -> None:
    script, makefile = (ROOT / ".ci" / "run").read_text(), (ROOT / "Makefile").read_text()
    assert re.search(r"^set -euo pipefail$", script, re.MULTILINE)
    assert last_stage().startswith("make smoke ")
    recipe = re.search(r"^smoke:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe
    removed, reproduced, checked = recipe[1].splitlines()
    assert "rm -rf $(RUNS)" in removed
    assert "bench reproduce table5 --preset smoke" in reproduced and "bench check --preset smoke" in checked
    assert not re.search(r"^\t-|\|\|", recipe[1], re.MULTILINE)  # nothing swallows a failure


def test_a_planted_defect_turns_ci_red(tree: Path) -> None:
    without = smoke(tree)
    assert without.returncode == 2 and "no reference rows of preset smoke" in without.stderr
    (tree / "results" / "reference").mkdir()
    shutil.copy(tree / "fresh" / "results.csv", tree / "results" / "reference" / "smoke.csv")
    check = [".venv/bin/bench", "check", "--preset", "smoke", "--runs", "fresh"]
    assert subprocess.run(check, cwd=tree, capture_output=True, check=False).returncode == 0
    replace(tree / "models" / "components" / "flow.py", *SIGN)
    red = smoke(tree)
    assert red.returncode != 0 and "worse" in red.stdout, red.stdout + red.stderr
