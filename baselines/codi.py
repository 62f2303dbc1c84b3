"""CoDi: one latent diffusion model per modality, conditioned on a shared space of all of them (Tang et al., 2023).

It runs in a Python of its own: docs/external/codi.md.

    bench run --method codi --dataset image_text_audio --task many_to_one --preset paper
"""

from __future__ import annotations

from baselines.published.adapter import ByRunner
from benchmark.api import MethodCard

CARD = MethodCard(
    version=1,
    label="CoDi",
    paper="Tang et al. (2023), arXiv 2305.11846",
    stages=(),
    deviations=(
        "its published code does not let outputs that are made together see each other: they share the input alone",
        "its published code mirrors a picture that is given with probability one half",
        "MUNI does not say how it was sampled: steps and guidance are defaults of the published code",
    ),
)


class CoDi(ByRunner):
    name = "codi"


METHOD = CoDi
