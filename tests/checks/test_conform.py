"""Every built-in plug-in conforms, the page's examples conform and run, and planted faults are named."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmark import registry
from benchmark.api import UserError, cells
from benchmark.checks.conform import Check, conform
from benchmark.engine.execution import execute
from benchmark.records import results_file
from benchmark.records.job import Job
from benchmark.records.run_identity import prepare
from tests import ROOT
from tests.data_prep import house_numbers

PAGE = ROOT / "docs" / "add_a_method.md"
EXAMPLES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text(), re.DOTALL))
BUILT_IN = [(kind, name) for kind in registry.FOLDERS for name in registry.index(kind)]
METHOD, DATASET, METRIC = "joint_flow.py", "two_rings.py", "sign_agreement.py"


@pytest.fixture
def example(tmp_path: Path):
    """Writes an example of the page, with planted changes, and returns its path."""

    def write(name: str, *changes: tuple[str, str]) -> str:
        source = EXAMPLES[name]
        for old, new in changes:
            assert source.count(old) == 1, f"{old!r} must stand once in {name}"
            source = source.replace(old, new)
        (tmp_path / name).write_text(source)
        return str(tmp_path / name)

    return write


def faults(kind: str | None, name: str) -> list[Check]:
    found = list(conform(kind, name))
    assert len(found) > 5
    return [check for check in found if check.passed is False]


def first_fault(name: str) -> Check:
    return next((check for check in conform(None, name) if check.passed is False), Check("none", None, "none"))


@pytest.mark.parametrize(("kind", "name"), BUILT_IN)
def test_every_built_in_plug_in_conforms(kind, name, tmp_path, monkeypatch):
    if name == "mnist_svhn":
        monkeypatch.setenv("MUNI_BENCH_DATA", str(house_numbers.write(tmp_path).parent))
    if kind == "dataset" and "cpu" not in registry.card(kind, name).recipe:
        pytest.skip("needs weights: tests/data_prep/test_image_text_audio.py has it on tiny ones")
    if hasattr(
        registry.load(kind, name), "absent"
    ):  # with a checkpoint: tests/baselines/test_published.py and the models' own
        assert [check.passed for check in conform(kind, name)] == [True, None]
        return
    assert faults(kind, name) == []


# ------------------------------------------------------------------------------------------ the page


def test_the_page_holds_one_example_of_each_kind():
    assert list(EXAMPLES) == [METHOD, DATASET, METRIC]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_of_the_page_conform(name, example):
    assert faults(None, example(name)) == []


def run(method: str, dataset: str, metrics: tuple[str, ...], runs: Path, updates: int) -> dict[tuple[str, str], float]:
    """Train and score, as `bench run` does; (task, metric) -> value."""
    names = registry.card("dataset", dataset).modalities
    tasks = registry.card("method", method).tasks
    asked = [cell for task in tasks for cell in islice(cells(registry.stem(dataset), names, task), 1)]
    job = Job(method, dataset, "smoke", 0, tuple(asked), metrics)
    prepared = prepare(job, runs, [f"updates={updates}"])
    assert execute([prepared], "cpu", lambda *progress: None) == []
    rows = results_file.load(prepared.results)
    assert set(rows["status"]) == {"ok"}
    given = rows["given"].fillna("")
    return {
        (text, metric): float(value)
        for text, metric, value in zip(given + "->" + rows["want"], rows["metric"], rows["value"], strict=True)
    }


def test_the_example_method_and_metric_run_and_learn(example, runs):
    metric = example(METRIC)
    found = run(example(METHOD), "gaussian_mixture", (metric,), runs, updates=300)
    assert set(found) == {
        ("x1->x2", "sign_agreement"),
        ("x2+x3->x1", "sign_agreement"),
        ("x1->x2+x3", "sign_agreement"),
        ("->x1+x2+x3", "sign_agreement"),
    }
    assert found["x1->x2", "sign_agreement"] > 0.6  # chance is 0.53
    assert found["x2+x3->x1", "sign_agreement"] > 0.6


def test_a_built_in_method_runs_on_the_example_dataset(example, runs):
    found = run("muni", example(DATASET), ("swd",), runs, updates=200)
    assert set(found) == {("left->right", "swd"), ("->left+right", "swd")}
    assert all(0.01 < value < 0.5 for value in found.values())  # the rings' radii are 1 and 2


def test_a_dropped_file_is_found_with_no_other_edit(tmp_path):
    """In a copy of the tree, by name, in a process of its own."""
    for folder in ("benchmark", "models", "baselines", "data_prep"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, folder in ((METHOD, "baselines"), (DATASET, "data_prep"), (METRIC, "benchmark/metrics")):
        (tmp_path / folder / name).write_text(EXAMPLES[name])
    program = (
        "from benchmark import registry; from benchmark.checks.conform import conform\n"
        "assert 'joint_flow' in registry.index('method')\n"
        "for name in ('joint_flow', 'two_rings', 'sign_agreement'):\n"
        "    print(name, sum(check.passed is False for check in conform(None, name)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert answer.stdout.split() == ["joint_flow", "0", "two_rings", "0", "sign_agreement", "0"], answer.stderr


# ------------------------------------------------------------------------------------------ planted faults

IN_LOSS = "targets = observed & ~given\n"
IN_SAMPLE = "generated = euler("
SAMPLE_NOISE = ('noise = draws.normal("noise", self.count, self.size)\n        generated', "generated")


def in_loss(code: str) -> tuple[str, str]:
    return IN_LOSS, IN_LOSS + f"        {code}\n"


def in_sample(code: str) -> tuple[str, str]:
    return IN_SAMPLE, f"{code}\n        {IN_SAMPLE}"


def sample_noise(code: str) -> tuple[str, str]:
    return SAMPLE_NOISE[0], f"noise = {code}\n        {SAMPLE_NOISE[1]}"


def card(words: str) -> tuple[str, str]:
    return 'paper="an example, from no paper"', f'paper="an example, from no paper", {words}'


SHAPE = "(rows, self.count, self.size"
SAMPLE = "sample is a function of weights, batch and draws"
LOSS = "loss is a function of weights, batch and draws"
SCALAR = "loss is a finite scalar to descend"
ANSWERS = "answers every declared task"

BROKEN_METHODS = {
    "computed card": (("version=1", "version=1 + int('0')"), "card is literal", "must hold literals only"),
    "positional card": (("MethodCard(version=1", "MethodCard(1"), "card is literal", "write CARD = MethodCard"),
    "missing field": (('version=1, label="joint flow"', "version=1"), "card is literal", "'label'"),
    "no card": (("CARD =", "ABOUT ="), "card is literal", "has no CARD"),
    "syntax error": (("def velocity(", "def velocity["), "card is literal", "not valid Python"),
    "empty label": (('"joint flow"', '" "'), "card is complete", "label is empty"),
    "tuple of one": (card('deviations=("a")'), "card is complete", "for a tuple of one"),
    "unknown task": (card('tasks=("uncnd",)'), "card is complete", "unknown task 'uncnd': did you mean 'uncond'"),
    "shares": (card('stages=(("one", 0.5), ("two", 0.4))'), "card is complete", "add up to 0.9, not to 1"),
    "no share": (card('stages=("one", "two")'), "card is complete", "positive share"),
    "overrides": (card('overrides={"latentsize": 3}'), "card is complete", "no field 'latentsize': did you mean"),
    "variants": (
        card('variants={"loud": {"volume": 11}}'),
        "builds",
        "variants: JointFlow has no attribute 'volume'",
    ),
    "field out of bounds": (
        card('fields={"strength": {"value": 1.0, "cpu": 3.0, "most": 2, "source": "assumed"}}'),
        "card is literal",
        r"fields\['strength'\]: cpu = 3.0: must be at most 2",
    ),
    "field of nobody": (
        card('fields={"strength": {"value": 1.0, "source": "assumed"}}'),
        "builds",
        "fields: JointFlow does not declare 'strength': write strength: float",
    ),
    "no handle": (("METHOD =", "MODEL ="), "builds", "lacks METHOD"),
    "no sample": (("def sample(", "def generate("), "builds", "no sample()"),
    "no module": (("(nn.Module)", ""), "builds", "no torch.nn.Module, yet is trained"),
    "unseeded weights": (
        (
            "inputs = 2",
            "self.weight = nn.Parameter(torch.from_numpy(__import__('numpy').random."
            "default_rng().random(3)))\n        inputs = 2",
        ),
        "builds",
        "different weights",
    ),
    "wrong shape": (
        ("reshape(rows, *m.shape)", "reshape(rows, *m.shape, 1)"),
        ANSWERS,
        r"shape \(7, 64, 1\), not \(7, 64\)",
    ),
    "missing modality": (("if m.name in want", "if m.name in want[1:]"), ANSWERS, "returned no 'x2'"),
    "no dict": (
        ("return {\n            m.name:", "return want, {\n            m.name:"),
        ANSWERS,
        "a tuple, not a dict",
    ),
    "NaN": (("* m.scale + m.center", "* m.scale + float('nan')"), ANSWERS, "'x2' that is not finite"),
    "wrong units": (("* m.scale + m.center", "* 256 + m.center"), ANSWERS, "answer in raw units"),
    "undeclared crash": (
        in_sample("raise RuntimeError('planted')"),
        ANSWERS,
        r"RuntimeError: planted \(joint_flow.py:\d+\)",
    ),
    "exit": (in_sample("raise SystemExit(0)"), ANSWERS, "SystemExit: 0"),
    "changed settings": (
        in_loss("torch.set_flush_denormal(True)"),
        "leaves the process as it was",
        r"loss\(\) of 'joint' changes torch's subnormal numbers for the whole process",
    ),
    "global generator": (sample_noise(f"torch.randn{SHAPE})"), SAMPLE, "depends on a global generator"),
    "forked generator": (
        in_sample(f"with torch.random.fork_rng(devices=[]): noise = torch.randn{SHAPE})"),
        SAMPLE,
        "depends on a global generator",
    ),
    "fresh entropy": (
        in_sample("noise = noise + float(__import__('numpy').random.default_rng().random())"),
        SAMPLE,
        "differs between two equal calls",
    ),
    "kept state": (
        in_loss("self.kept = 1.0"),
        in_sample("noise = noise + getattr(self, 'kept', 0)"),
        SAMPLE,
        r"changes after a call of loss\(\)",
    ),
    "ignored seed": (
        sample_noise(f"torch.randn{SHAPE}, generator=torch.Generator().manual_seed(0))"),
        "sample follows the seed",
        "ignores the seed",
    ),
    "batch statistics": (
        in_sample("x = x - x.mean(0); noise = noise - noise.mean(0)"),
        "sample does not depend on the batch size",
        "rows 0 to 255 of 512 differ",
    ),
    "noise by call": (
        sample_noise(
            "draws.normal('noise', 1, 1) * torch.arange(rows).view(-1, 1, 1) / 500 "
            "+ draws.normal('more', self.count, self.size)"
        ),
        "sample does not depend on the batch size",
        "rows 256 to 511 of 512 differ",
    ),
    "loss per row": (("(error * targets).sum()", "(error * targets).sum(1)"), SCALAR, "not a scalar"),
    "loss alone": (('return loss, {"flow": loss.detach()}', "return loss"), SCALAR, r"no \(loss, parts\)"),
    "infinite loss": (("clamp(min=1)\n", "clamp(min=1) / 0\n"), SCALAR, "is inf"),
    "detached loss": (("error = (velocity -", "error = (velocity.detach() -"), SCALAR, "has no gradient"),
    "attached part": (('"flow": loss.detach()', '"flow": loss'), SCALAR, "not a detached scalar"),
    "global generator in loss": (
        ('draws.uniform("given", self.count)', "torch.rand(draws.rows, self.count)"),
        LOSS,
        "loss.* depends on a global generator",
    ),
    "full rows only": (
        in_loss("batch['x2']"),
        "rows that miss a modality train",
        r"KeyError: 'x2' \(joint_flow.py:\d+\)",
    ),
    "NaN for partial rows": (
        ("* targets).sum() /", "* targets).sum() * (1 if len(batch) == 3 else float('nan')) /"),
        "rows that miss a modality train",
        "is nan for rows without x1",
    ),
    "dead weight": (
        ("inputs = 2", "self.unused = nn.Linear(2, 2, bias=False)\n        inputs = 2"),
        "the gradient reaches every weight",
        "unused.weight",
    ),
    "unsaved weight": (
        ("inputs = 2", "self.shift = torch.randn(1)\n        inputs = 2"),
        in_sample("noise = noise + self.shift"),
        "a saved state samples the same",
        "after saving",
    ),
    "generator in passing": (
        in_sample("torch.rand(1)"),
        "leaves global generators alone",
        r"sample\(\) for .* moves torch's global generator",
    ),
    "numpy in passing": (
        in_loss("__import__('numpy').random.rand()"),
        "leaves global generators alone",
        r"loss\(\) of 'joint' moves numpy's global generator",
    ),
    "random in passing": (in_loss("__import__('random').random()"), "leaves global generators alone", "moves Python's"),
    "file": (
        in_loss("open('cache.txt', 'w').close()"),
        "writes no files",
        r"loss\(\) of 'joint' writes the file cache",
    ),
    "native file": (in_sample("torch.save(noise, 'noise.pt')"), "writes no files", r"sample\(\) for .*noise.pt"),
    "file at home": (
        in_sample("__import__('pathlib').Path('~/notes').expanduser().touch()"),
        "writes no files",
        "notes",
    ),
    "file elsewhere": (in_loss("__import__('tempfile').NamedTemporaryFile().close()"), "writes no files", "/tmp"),
}


@pytest.mark.parametrize("fault", BROKEN_METHODS)
def test_a_broken_method_is_named(fault, example):
    *changes, title, message = BROKEN_METHODS[fault]
    found = first_fault(example(METHOD, *changes))
    assert found.name == title, found
    assert re.search(message, found.message), found


CARD_LABEL = ('modalities=("left", "right"),', 'modalities=("left", "right"), labels=("half",),')
HAS_LABEL = ("class TwoRings:\n", "class TwoRings:\n    labels = {'half': 2}\n\n")
HOLDS_LABEL = ('"left": (ring', '"half": (angle > math.pi).long(), "left": (ring')
BROKEN_DATASETS = {
    "a label beside the modalities": (CARD_LABEL, HAS_LABEL, HOLDS_LABEL, "none", "none"),
    "a label that the card does not name": (
        HAS_LABEL,
        "modalities are those of the card",
        r"the data's labels are \('half',\), the card's \(\)",
    ),
    "a label that rows do not hold": (
        CARD_LABEL,
        HAS_LABEL,
        "rows are finite and of the stated shapes",
        r"rows of 'train' hold \['left', 'right'\]: not every modality",
    ),
    "a label that is no class": (
        CARD_LABEL,
        HAS_LABEL,
        ('"left": (ring', '"half": 1 + (angle > math.pi).long(), "left": (ring'),
        "rows are finite and of the stated shapes",
        "half of 'train' holds what is no class from 0 to 1",
    ),
    "no source": (
        ('"learning_rate": (1e-3, "assumed")', '"learning_rate": 1e-3'),
        "card is complete",
        "where it comes from",
    ),
    "wrong type": (('"updates": (200,', '"updates": ("many",'), "card is complete", "'many' is no int"),
    "missing field": (('"private_size": (2, "assumed"),', ""), "card is complete", "lacks private_size"),
    "unknown field": (('"latent_size"', '"latents"'), "card is complete", "no field 'latents'"),
    "unfair preset": (
        ('"updates": (200, "budget")', '"updates": (200, "budget"), "clip_norm": (2.0, "budget")'),
        "card is complete",
        "clip_norm.*presets differ in sizes",
    ),
    "one modality": (('modalities=("left", "right")', 'modalities=("left",)'), "card is complete", "two or more"),
    "crash": (("self.cell_rows =", "self.none.cell_rows ="), "builds", r"AttributeError: .* \(two_rings.py:\d+\)"),
    "empty split": (
        ("return self.counts[split]", "return self.counts[split] * (split != 'validation')"),
        "builds",
        r"count\('validation'\) = 0",
    ),
    "other names": (
        ('modalities=("left", "right")', 'modalities=("right", "left")'),
        "modalities are those of the card",
        "the card's",
    ),
    "wrong shape": (
        ('Modality("left", (2,)', 'Modality("left", (3,)'),
        "rows are finite and of the stated shapes",
        r"\(1024, 2\), not \(1024, 3\)",
    ),
    "NaN": (
        ("ring = torch.stack(", "angle[5] = float('nan')\n        ring = torch.stack("),
        "rows are finite and of the stated shapes",
        "left of 'train' holds NaN",
    ),
    "by position": (
        ("x[indices] for", "x[indices] + torch.arange(len(indices))[:, None] for"),
        "a row is a function of its index",
        "changes with the order",
    ),
    "by call": (
        (
            "return {name: x[indices]",
            "self.calls = getattr(self, 'calls', 0) + 1\n        return {name: x[indices] + self.calls",
        ),
        "a row is a function of its index",
        "changes",
    ),
    "global generator": (
        ('draws.uniform("angle")', "torch.rand(self.counts[split])"),
        "rows do not depend on any generator",
        "differ in a dataset made anew",
    ),
    "one split": (
        ('"two_rings", split,', '"two_rings",'),
        "splits are disjoint",
        "of 'validation' is also a row of 'train'",
    ),
    "too many rows": (
        ("return self.cell_rows[bool(cell.given)]", "return 5000"),
        "cells ask for rows of the test split",
        "= 5000, and the test split has 1024 rows",
    ),
    "no scale": (("scale=1.4", "scale=140"), "center and scale standardise", "standardised right"),
    "no center": (("center=3.0, ", ""), "center and scale standardise", "standardised right"),
    "generator in passing": (
        ("angle = 2", "torch.rand(1)\n        angle = 2"),
        "leaves global generators alone",
        "building it moves torch's global generator",
    ),
}


@pytest.mark.parametrize("fault", BROKEN_DATASETS)
def test_a_broken_dataset_is_named(fault, example):
    *changes, title, message = BROKEN_DATASETS[fault]
    found = first_fault(example(DATASET, *changes))
    assert found.name == title, found
    assert re.search(message, found.message), found


MEAN_OF = 'return mean_of(self.per_row, CARD.min_rows, f"sign_agreement of {self.cell}")'
APPEND = "self.per_row.append("
STACK = "torch.stack([same.double().mean(1) for same in agree]).mean(0)"


def compute(code: str) -> tuple[str, str]:
    return MEAN_OF, f"from benchmark.api import Score\n        rows = torch.cat(self.per_row)\n        return {code}"


BROKEN_METRICS = {
    "scale": (('scale="logit"', 'scale="logits"'), "card is complete", "choose from linear, log, logit"),
    "task": (('"uncond"),', '"unconditional"),'), "card is complete", "unknown task 'unconditional'"),
    "never applies": (('not hasattr(data, "shared")', "True"), "applies to its tasks", "try it on another dataset"),
    "sometimes applies": (
        ('not hasattr(data, "shared")', "len(cell.given) == 2"),
        "applies to its tasks",
        r"x2\+x3 -> x1: .*: leave the task out of the card",
    ),
    "crash": (("self.coordinates = [", "self.coordinates = [][1] + ["), "applies to its tasks", "IndexError"),
    "no score": ((MEAN_OF, MEAN_OF + ".value"), "scores are finite", "a float, not a Score"),
    "NaN score": (compute("Score(float('nan'), None, len(rows))"), "scores are finite", "scores nan"),
    "wrong n": (compute("Score(rows.mean().item(), None, 1)"), "scores are finite", "n = 1 for 1024 rows"),
    "direction": (
        ("higher_is_better=True", "higher_is_better=False"),
        "real rows beat shuffled ones",
        "the card says that lower is better",
    ),
    "no difference": ((STACK, "0.5 + 0 * " + STACK), "real rows beat shuffled ones", "which is no difference"),
    "last block": (
        (APPEND, "self.per_row.clear()\n        " + APPEND),
        "blocks of rows do not matter",
        "fed in blocks of 100",
    ),
    "block means": (
        compute("Score(sum(block.mean().item() for block in self.per_row) / len(self.per_row), None, len(rows))"),
        "blocks of rows do not matter",
        "fed in blocks of 100 rows",
    ),
    "row order": (
        compute("Score((rows * torch.linspace(0, 2, len(rows))).mean().item(), None, len(rows))"),
        "the order of rows does not matter",
        "in another order together",
    ),
    "hidden NaN": (
        ("finite(generated[j], j)[:, at_j]", "generated[j].double()[:, at_j]"),
        "NaN and infinite rows are refused",
        "a generated row of nan gives the score",
    ),
    "few rows": (
        compute("Score(rows.mean().item(), 0.5 / len(rows) ** 0.5, len(rows))"),
        "too few rows are refused",
        "1 rows give the score",
    ),
    "standard deviation": (
        ("CARD = MetricCard", "from dataclasses import replace\n\nCARD = MetricCard"),
        (
            MEAN_OF,
            MEAN_OF.replace("return", "score =")
            + "\n        return replace(score, stderr=score.stderr * score.n**0.5)",
        ),
        "the standard error is the spread of repetitions",
        "times the spread",
    ),
    "chance": (
        ("positive[factor] for", "0 * positive[factor] + 0.6 for"),
        "chance and ceiling are what the sanity rows score",
        r"chance\(\) says 0.52",
    ),
    "ceiling": (
        ("return 1.0", "return 0.9"),
        "chance and ceiling are what the sanity rows score",
        r"ceiling\(\) says 0.9, and its sanity rows score 1",
    ),
    "generator": (
        (APPEND, "torch.rand(1)\n        " + APPEND),
        "leaves global generators alone",
        r"update\(\) for .* moves torch's global generator",
    ),
    "file": ((APPEND, "open('cache.txt', 'w').close()\n        " + APPEND), "writes no files", "cache.txt"),
}


@pytest.mark.parametrize("fault", BROKEN_METRICS)
def test_a_broken_metric_is_named(fault, example):
    *changes, title, message = BROKEN_METRICS[fault]
    found = first_fault(example(METRIC, *changes))
    assert found.name == title, found
    assert re.search(message, found.message), found


# ------------------------------------------------------------------------------------------ what is no fault


def test_a_task_that_a_method_does_not_declare_is_not_asked(example):
    crash = in_sample("assert not given")
    assert first_fault(example(METHOD, crash)).name == ANSWERS
    assert faults(None, example(METHOD, crash, card('tasks=("uncond",)'))) == []


def test_needs_full_rows_excuses_from_partial_rows(example):
    path = example(METHOD, in_loss("batch['x2']"), card("needs_full_rows=True"))
    assert faults(None, path) == []


def test_a_loss_that_rises_is_a_warning_and_no_fault(example):
    path = example(
        METHOD,
        ("import euler,", "import scale_gradient, euler,"),
        ('return loss, {"flow"', 'return scale_gradient(loss, torch.tensor(-1.0)), {"flow"'),
    )
    found = next(check for check in conform(None, path) if check.name == "training lowers the loss")
    assert found.passed is None and "warning: 20 updates" in found.message


def test_a_metric_that_shuffling_cannot_hurt_says_so(example):
    path = example(
        METRIC, ("return torch.stack([(p**2 + (1 - p) ** 2).mean() for p in by_pair]).mean().item()", "return 1.0")
    )
    (skipped,) = [check for check in conform(None, path) if check.name == "real rows beat shuffled ones"]
    assert skipped.passed is None and "as good as real" in skipped.message


def test_conform_leaves_the_process_as_it_was(example):
    path = example(METHOD, in_loss("torch.rand(1)"))
    before = os.getcwd(), os.environ.get("HOME"), random.getstate(), np.random.get_state()[1].tobytes()
    list(conform(None, path))
    list(conform(None, example(DATASET)))
    assert before == (os.getcwd(), os.environ.get("HOME"), random.getstate(), np.random.get_state()[1].tobytes())
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    list(conform(None, example(DATASET)))
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_relative_path_and_a_stated_kind_are_taken(example, monkeypatch):
    path = Path(example(DATASET))
    monkeypatch.chdir(path.parent)
    assert faults("dataset", path.name) == []
    assert "the dataset's world is not known" in list(conform("method", "chance", path.name))[-1].message
    example(METHOD)
    assert all(check.passed is not False for check in conform(None, METHOD, path.name))
    (refused,) = conform("metric", path.name)
    assert not refused.passed and "holds a dataset, not a metric" in refused.message


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (None, "muny", "no method, dataset or metric 'muny': did you mean 'muni'?"),
        ("metric", "swdd", "unknown metric 'swdd': did you mean 'swd'?"),
        (None, "nowhere.py", "no file nowhere.py"),
    ],
)
def test_an_unknown_name_is_the_users_error(kind, name, message):
    with pytest.raises(UserError, match=re.escape(message)):
        next(conform(kind, name))
