"""The ceiling of the encoder's weight (models.components.flow.elbo_weight): which share of the prior's pull it keeps.

python docs/experiments/encoder_weight.py [RUNS]

First in closed form, for an exact prior N(0, variance). Then for `muni` after 1,500 updates on the mixture at preset
cpu: the pull on the mean and on the log-variance of the latent from all modalities, by the times from which it comes.
Last, what other ceilings change (errors on validation rows). Four minutes on a core; the trainings stay in RUNS.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmark.api import cells
from benchmark.engine import execution
from benchmark.engine.evaluate import evaluate_cell
from benchmark.engine.tune import on_validation
from benchmark.records.job import job_of
from benchmark.records.run_identity import Run, prepare
from benchmark.runtime import Draws
from models.components.experts import sampled
from models.components.flow import elbo_weight, matching_loss

ROWS, REPEATS = 128, 64  # of the test split; of the noise, each in four signs
LOGITS = torch.linspace(-9, 6, 121)  # of t; below, t is under 0.00012
UPDATES, CEILINGS, TASKS = 1500, (100.0, 1000.0, 10_000.0), ("one_to_one", "many_to_one", "uncond")
VARIANCES = (1.0, 0.25, 0.05, 0.01, 0.001)


def weights(logit: Tensor) -> tuple[Tensor, Tensor]:
    """What a loss at these logits weighs in the likelihood, and under the ceiling: density times weight."""
    density = torch.exp(-0.5 * logit.square()) / (2 * torch.pi) ** 0.5
    whole = (1 - torch.sigmoid(logit)).square()
    return whole, elbo_weight(torch.sigmoid(logit)) * density


def kept_of_normal(variance: float) -> float:
    """Of the pull on mean and on variance alike: both are the squared slope of the exact velocity's error in z."""
    logit = torch.linspace(-20, 20, 40_001, dtype=torch.float64)
    t = torch.sigmoid(logit)
    slope = t / ((1 - t).square() * variance + t.square())
    density = torch.exp(-0.5 * logit.square()) / (2 * torch.pi) ** 0.5
    whole = (1 - t).square()
    cut = torch.minimum(whole, 100 * density)
    return float((cut * slope.square()).sum() / (whole * slope.square()).sum())


def pulls(method: torch.nn.Module, mean: Tensor, log_variance: Tensor) -> list[tuple[Tensor, Tensor]]:
    """At each logit the gradient of the prior's loss in mean and log-variance, (rows, latent), averaged over noise."""
    found = []
    rows, size = mean.shape
    draws = Draws("encoder weight", rows=rows * REPEATS, block=rows * REPEATS)
    noises = [draws.normal(name, size).view(REPEATS, rows, size) for name in ("latent", "prior noise")]
    for logit in LOGITS:
        leaves = [each.detach().clone().requires_grad_(True) for each in (mean, log_variance)]
        t = torch.sigmoid(logit).expand(1, REPEATS * rows)
        for one in (1, -1):
            for other in (1, -1):
                z = sampled(leaves[0], leaves[1], one * noises[0])
                loss = matching_loss(method.prior, z.view(1, -1, size), other * noises[1].view(1, -1, size), t)
                (loss.sum() / (4 * REPEATS)).backward()
        found.append((leaves[0].grad, leaves[1].grad))
    return found


def trained(ceiling: float, runs: Path) -> tuple[Any, Any, Any]:
    """`muni` after UPDATES updates under a ceiling; the dataset with its validation rows as test split; the run."""
    run = prepare(job_of("muni", "gaussian_mixture", "cpu", 0, []), runs / f"{ceiling:g}", [f"updates={UPDATES}"])
    run.directory.mkdir(parents=True, exist_ok=True)
    with mock.patch("models.components.latent.elbo_weight", partial(elbo_weight, ceiling=ceiling)):
        method, data, _ = execution.train_only(run, "cpu", lambda *_: None)
    return method, on_validation(data), run


def main(runs: Path) -> None:
    print("share of the pull kept, exact prior N(0, variance):")
    for variance in VARIANCES:
        print(f"  variance {variance:<7g} {kept_of_normal(variance):.3f}")
    for ceiling in CEILINGS:
        method, data, run = trained(ceiling, runs)
        with torch.no_grad():
            x, observed = method.observe(data.rows("test", torch.arange(ROWS)))
            mean, log_variance = method.aggregate(*method.encode(x), observed)
        low, middle, high = (float(torch.exp(log_variance / 2).quantile(part)) for part in (0.1, 0.5, 0.9))
        deviations = f"{low:.3g}, {middle:.3g}, {high:.3g} (10, 50, 90 %)"
        print(f"muni, {UPDATES} updates, ceiling {ceiling:g}: standard deviations of the latent {deviations}")
        print("  errors:", ", ".join(f"{task} {error_of(method, data, run, task):.3f}" for task in TASKS))
        if ceiling == CEILINGS[0]:
            found = pulls(method, mean, log_variance)
            for number, name in enumerate(("mean", "log-variance")):
                shares(name, torch.stack([each[number] for each in found]).flatten(1))


def error_of(method: Any, data: Any, run: Run, task: str) -> float:
    """Shared error of the task's cells on validation rows, mean over cells."""
    asked = list(cells("gaussian_mixture", run.dataset_card.modalities, task))
    found = [next(evaluate_cell(method, data, cell, ["shared_mse"], run.config, 0, "cpu")) for cell in asked]
    return sum(each.score.value for each in found) / len(found)


def shares(name: str, pull: Tensor) -> None:
    """The share that the ceiling keeps of the pull from times at and above each of a few."""
    whole, cut = weights(LOGITS)
    for least in (-4, -5, -6, -7, -9):
        seen = least <= LOGITS
        everything, kept = (whole * seen) @ pull, (cut * seen) @ pull
        share = float(kept @ everything / everything.square().sum())
        since = torch.sigmoid(torch.tensor(1.0 * least))
        print(f"  pull on the {name}, t from {since:.4f}: {share:.2f} kept of {everything.norm():.3g}")


if __name__ == "__main__":
    arguments: Sequence[str] = sys.argv[1:]
    if arguments:
        main(Path(arguments[0]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
