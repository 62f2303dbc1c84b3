"""A planted defect that bench check has to find: where several experts are given, the product lacks one of them.

bench run --method tests/records/defects/product_drops_an_expert.py --preset cpu --seed 0-2
"""

import torch
from torch import Tensor

from benchmark.api import MethodCard
from models.components.experts import product
from models.muni import MUNI

CARD = MethodCard(version=1, label="MUNI with a product that drops an expert", paper="none: a planted defect")


def all_but_the_first(
    mean: Tensor, log_variance: Tensor, given: Tensor, detach_own: bool = False
) -> tuple[Tensor, Tensor]:
    """The product of the given experts without the first of them, unless it is the only one."""
    first = given & (given.cumsum(-1) == 1)
    several = given.sum(-1, keepdim=True) > 1
    return product(mean, log_variance, torch.where(several, given & ~first, given), detach_own)


class ProductDropsAnExpert(MUNI):
    """MUNI's product has every given expert."""

    aggregate = staticmethod(all_but_the_first)


METHOD = ProductDropsAnExpert
