"""Which experts infer a row's latent: candidate subsets with weights, and a draw per row among those observed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import torch
from torch import Tensor

from benchmark.runtime import Draws

Subsets = dict[tuple[int, ...], float]  # modality indices -> weight; the weights of one law need not sum to one


@dataclass(frozen=True)
class Route:
    """What one training step asks of each row; every field is (rows, modalities), boolean.

    given: the experts that infer the latent from which modalities are decoded.
    targets: the modalities whose reconstruction is scored.
    prior: the experts that infer the latent on which the prior is trained; none: the row has no prior term.
    """

    given: Tensor
    targets: Tensor
    prior: Tensor


def all_subsets(modalities: int) -> Subsets:
    """Every non-empty subset, uniformly over subsets (not over sizes): MoPoE's mixture and MUNI's reconstruction."""
    return {s: 1.0 for size in range(1, modalities + 1) for s in combinations(range(modalities), size)}


def full_set(modalities: int) -> Subsets:
    return {tuple(range(modalities)): 1.0}


def singles(modalities: int) -> Subsets:
    return {(m,): 1.0 for m in range(modalities)}


def full_and_leave_one_out(modalities: int) -> Subsets:
    """The M + 1 subsets on which MUNI trains its prior (Eq. 15)."""
    return full_set(modalities) | {s: 1.0 for s in combinations(range(modalities), modalities - 1)}


def subsampled_elbo_terms(modalities: int) -> Subsets:
    """MVAE's sum of M + 2 bounds: all, each single, and one random subset of 2 to M - 1, its size drawn first."""
    terms = full_set(modalities) | singles(modalities)
    for size in range(2, modalities):
        of_size = list(combinations(range(modalities), size))
        terms |= {s: 1.0 / len(of_size) / (modalities - 2) for s in of_size}
    return terms


def routed_objective(
    observed: Tensor, draws: Draws, prior_law: Callable[[int], Subsets] = full_and_leave_one_out
) -> Route:
    """MUNI's routes (Eq. 12), whichever way experts are aggregated: every target from every subset; the prior on the
    full set and the leave-one-out subsets, drawn apart. Of a pair out of three modalities that is the pair alone."""
    modalities = observed.shape[1]
    return Route(
        given=draw_subsets(all_subsets(modalities), observed, draws, "reconstruction subset"),
        targets=observed,
        prior=draw_subsets(prior_law(modalities), observed, draws, "prior subset"),
    )


def draw_subsets(law: Subsets, observed: Tensor, draws: Draws, name: str) -> Tensor:
    """One subset per row, from the law restricted to what the row observed; (rows, modalities), boolean.

    Rows that observed no subset of the law get the empty set.
    """
    masks, weights = _candidates(tuple(law.items()), observed.shape[1], observed.device)
    possible = ~(masks[None] & ~observed[:, None]).any(-1)  # (rows, candidates)
    cumulative = (possible * weights).cumsum(-1)
    threshold = draws.uniform(name)[:, None] * cumulative[:, -1:]
    choice = (cumulative <= threshold).sum(-1).clamp(max=len(law) - 1)
    return masks.index_select(0, choice) & possible.any(-1, keepdim=True)


@cache
def _candidates(
    law: tuple[tuple[tuple[int, ...], float], ...], modalities: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """A law as tensors on the device, made once: masks (candidates, modalities) and weights (candidates,)."""
    masks = [[modality in subset for modality in range(modalities)] for subset, _ in law]
    return torch.tensor(masks, device=device), torch.tensor([weight for _, weight in law], device=device)
