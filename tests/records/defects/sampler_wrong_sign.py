"""A planted defect that bench check has to find: the steps of the sampler go the wrong way.

bench run --method tests/records/defects/sampler_wrong_sign.py --preset cpu --seed 0-2
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmark.api import MethodCard, Modality
from benchmark.config import Config
from models.muni import MUNI

CARD = MethodCard(version=1, label="MUNI with a sampler of the wrong sign", paper="none: a planted defect")


def backwards(network: nn.Module, inputs: object, velocity: Tensor) -> Tensor:
    """The velocity as it is in training, where gradients are taken, and its negative in sampling."""
    return velocity if torch.is_grad_enabled() else -velocity


class SamplerWrongSign(MUNI):
    """Training is sound. A step x - (-v) / steps is a step x + v / steps."""

    def __init__(self, modalities: Sequence[Modality], config: Config) -> None:
        super().__init__(modalities, config)
        for network in (self.families[0].decoder, self.prior):
            network.register_forward_hook(backwards)


METHOD = SamplerWrongSign
