"""The paper's explanation, measured: what the latent of each subset of modalities knows about each known factor.

Sufficiency and minimality: held-out R^2 of a ridge regression and of a small network from the latent of every
non-empty subset to every factor. Coherence: the share of the shared variance that a prior sample leaves to the
decoders' noise. What each number means, its floor and its ceiling: docs/gaussian_mixture.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmark import registry
from benchmark.api import Cell, Inapplicable, Score, UserError
from benchmark.config import Config, resolve
from benchmark.engine.train import autocast
from benchmark.runtime import Draws, copied

PROBES = ("probe_linear", "probe_mlp")
# The network's fixed budget; it is the same for every method, subset and factor.
HIDDEN, PASSES, BATCH, RATE, DECAY = 128, 10, 256, 2e-3, 0.1


def criteria_cells(dataset: str, modalities: Sequence[str], factors: Sequence[str]) -> Iterator[tuple[Cell, str]]:
    """Every (cell, metric name) of the criteria: two probes per subset and factor, and the prior's residual."""
    for size in range(1, len(modalities) + 1):
        for given in combinations(modalities, size):
            for factor in factors:
                yield from ((Cell(dataset, given, (f"factor:{factor}",)), probe) for probe in PROBES)
    yield Cell(dataset, (), tuple(modalities)), "residual_dependence"


def cells_of_dataset(dataset: str) -> Iterator[tuple[Cell, str]]:
    """The criteria's cells on a dataset, by its registered name. Raises UserError unless its factors are known."""
    card = registry.card("dataset", dataset)
    preset = next(name for name in card.recipe if name != "shared")  # the factors are the same in all
    config = resolve(card, None, preset).config
    data = registry.load("dataset", dataset, config.own_values)(config, "cpu")
    yield from criteria_cells(registry.stem(dataset), card.modalities, known_factors(data, dataset))


def known_factors(data: Any, dataset: str) -> list[str]:
    """Names of the factors behind a dataset's rows. Raises UserError where they are not known."""
    if not hasattr(data, "factors"):
        raise UserError(f"the criteria need known factors, which {dataset} does not have: choose gaussian_mixture")
    return list(data.means)


def evaluate_criteria(
    method: Any, data: Any, config: Config, device: str, seed: int, dataset: str = "gaussian_mixture"
) -> Iterator[tuple[Cell, str, Score | str]]:
    """Yields every (cell, metric name, score), or the reason why a cell has none, in the order of `criteria_cells`.

    method: offers `infer(given, draws)` and `sample_prior(rows, draws)`, latents (rows, size), and
    `decode(latents, want, draws)`; one that offers none keeps no latent, and every cell says so.
    data: a known world, with `factors`, `layout` and `shared`. Raises UserError for any other.
    """
    factors = known_factors(data, dataset)
    names = [modality.name for modality in data.modalities]
    # As many rows as a conditional cell has, for the prior's samples too: their ratio needs no more.
    rows = data.rows_of(Cell(dataset, (names[0],), (names[1],)))
    scores: dict[tuple[Cell, str], Score | str] = {}
    for given, found in _probe(method, data, config, device, seed, names, rows).items():
        for factor in factors:
            cell = Cell(dataset, given, (f"factor:{factor}",))
            for probe in PROBES:
                scores[cell, probe] = found if isinstance(found, str) else _explained(cell, probe, data, config, *found)
    uncond = Cell(dataset, (), tuple(names))
    scores[uncond, "residual_dependence"] = _residual(method, data, config, device, seed, uncond, rows)
    for cell, metric in criteria_cells(dataset, names, factors):
        yield cell, metric, scores[cell, metric]


Truth = dict[str, Tensor]  # factor -> (rows, size)


def _explained(cell: Cell, probe: str, data: Any, config: Config, truth: Truth, predictions: dict[str, Truth]) -> Score:
    factor = cell.want[0].removeprefix("factor:")
    metric = registry.load("metric", probe, config.own_values)(cell, data)
    metric.update(copied({cell.want[0]: truth[factor]}), copied({cell.want[0]: predictions[probe][factor]}))
    return metric.compute()


@torch.no_grad()
def _residual(method: Any, data: Any, config: Config, device: str, seed: int, cell: Cell, rows: int) -> Score | str:
    if not hasattr(method, "sample_prior"):
        return "keeps no latent"
    metric = registry.load("metric", "residual_dependence", config.own_values)(cell, data)
    draws = Draws("criteria", "prior", seed, rows=rows, device=device)
    with autocast(config, device):
        latent = method.sample_prior(rows, draws)
        once, again = (copied(method.decode(latent.clone(), cell.want, draws)) for _ in range(2))
    metric.update({}, {name: torch.stack([once[name], again[name]], 1) for name in cell.want})
    return metric.compute()


def _probe(
    method: Any, data: Any, config: Config, device: str, seed: int, names: Sequence[str], rows: int
) -> dict[tuple[str, ...], str | tuple[Truth, dict[str, Truth]]]:
    """Per subset: the test rows' factors and each probe's predictions of them, or why there are none."""
    subsets = [given for size in range(1, len(names) + 1) for given in combinations(names, size)]
    if not hasattr(method, "infer"):
        return dict.fromkeys(subsets, "keeps no latent")
    taken = {
        "validation": torch.arange(data.probe_rows, device=device),
        "test": torch.arange(rows, device=device),
    }
    answers: dict[tuple[str, ...], Any] = {}
    latents: dict[str, list[Tensor]] = {split: [] for split in taken}
    for given in subsets:
        try:
            found = {split: _infer(method, data, config, device, seed, given, split, at) for split, at in taken.items()}
        except Inapplicable as reason:
            answers[given] = str(reason)
            continue
        answers[given] = None
        for split, latent in found.items():
            latents[split].append(latent)
    inferred = [given for given in subsets if answers[given] is None]
    if not inferred:
        return answers
    truth = {split: copied(data.factors(split, at.clone())) for split, at in taken.items()}
    fitted = fit_probes(torch.stack(latents["validation"]), truth["validation"], torch.stack(latents["test"]), seed)
    return answers | {given: (truth["test"], predictions) for given, predictions in zip(inferred, fitted, strict=True)}


@torch.no_grad()
def _infer(
    method: Any, data: Any, config: Config, device: str, seed: int, given: tuple[str, ...], split: str, at: Tensor
) -> Tensor:
    batch = copied(data.rows(split, at.clone()))
    draws = Draws("criteria", split, "+".join(given), seed, rows=len(at), device=device)
    with autocast(config, device):
        latent = method.infer({name: batch[name] for name in given}, draws).double().clone()
    if not torch.isfinite(latent).all():
        raise ValueError(f"latents of {'+'.join(given)} hold NaN or infinite values")
    return latent


def fit_probes(latents: Tensor, truth: Truth, test_latents: Tensor, seed: int) -> list[dict[str, Truth]]:
    """Fit on (subsets, rows, size) latents of validation rows; predict at test latents.

    Returns per subset {"probe_linear" | "probe_mlp": {factor: (test rows, factor size)}}, float64. The test rows'
    factors are no argument, so no probe can see them.
    """
    centre, scale = latents.mean(1, keepdim=True), latents.std(1, keepdim=True).clamp(min=1e-6)
    latents, test_latents = (latents - centre) / scale, (test_latents - centre) / scale
    sizes = [values.shape[1] for values in truth.values()]
    targets = torch.cat(list(truth.values()), 1).to(latents)
    mean, spread = targets.mean(0), targets.std()
    targets = (targets - mean) / spread
    weights = ridge(latents, targets.expand(len(latents), -1, -1))
    linear = test_latents @ weights
    residuals = targets - latents @ weights
    curved = linear + network(latents.float(), residuals.float(), sizes, test_latents.float(), seed).double()
    predictions = {"probe_linear": linear * spread + mean, "probe_mlp": curved * spread + mean}
    return [
        {probe: dict(zip(truth, values[subset].split(sizes, 1), strict=True)) for probe, values in predictions.items()}
        for subset in range(len(latents))
    ]


def ridge(inputs: Tensor, targets: Tensor, penalty: float = 1e-6) -> Tensor:
    """Weights (subsets, size, outputs) from standardised inputs (subsets, rows, size), centred targets. The penalty,
    relative to the inputs' variance, only keeps unused latent dimensions from making the system singular."""
    gram = inputs.mT @ inputs
    gram.diagonal(dim1=1, dim2=2).add_(penalty * inputs.shape[1])
    return torch.linalg.solve(gram, inputs.mT @ targets)


def network(inputs: Tensor, targets: Tensor, sizes: Sequence[int], test_inputs: Tensor, seed: int) -> Tensor:
    """One hidden layer per (subset, factor), trained at once on the ridge's residuals; predictions at `test_inputs`.

    The output layer starts at zero, that is at the ridge. Each factor has a network of its own, so that factors
    which cannot be predicted take no capacity from those which can.
    """
    subsets, rows, size = inputs.shape
    factors, device = len(sizes), inputs.device
    filled = torch.arange(max(sizes)) < torch.tensor(sizes).unsqueeze(1)  # outputs are padded to the largest factor
    draws = Draws("criteria", "network", seed, rows=subsets, device=device)
    into = (draws.normal("into", size, factors * HIDDEN) / size**0.5).requires_grad_()
    bias = (2 * draws.uniform("bias", 1, factors * HIDDEN) - 1).requires_grad_()
    out = torch.zeros(subsets, factors, HIDDEN, max(sizes), device=device, requires_grad=True)

    def predict(inputs: Tensor) -> Tensor:
        hidden = functional.gelu(torch.baddbmm(bias, inputs, into)).unflatten(2, (factors, HIDDEN))
        return (hidden.transpose(1, 2) @ out).transpose(1, 2)[:, :, filled.to(device)]

    optimiser = torch.optim.AdamW([into, bias, out], lr=RATE, weight_decay=DECAY)
    steps = -(-PASSES * rows // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    batches = Draws("criteria", "batches", seed, rows=steps * BATCH, device=device).integers("row", rows)
    for batch in batches.view(steps, BATCH):
        loss = (predict(inputs[:, batch]) - targets[:, batch]).square().sum() / BATCH
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        return predict(test_inputs)
