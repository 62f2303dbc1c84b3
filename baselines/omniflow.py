"""OmniFlow: one transformer whose rectified flows go between captions, pictures and sounds (Li et al., CVPR 2025).

It runs in a Python of its own: docs/external/omniflow.md.

    bench run --method omniflow --dataset image_text_audio --task one_to_one --preset paper
"""

from __future__ import annotations

from baselines.published.adapter import ByRunner
from benchmark.api import MethodCard

CARD = MethodCard(
    version=1,
    label="OmniFlow",
    paper="Li et al. (2025), arXiv 2412.01169",
    stages=(),
    deviations=(
        "its released pipeline has the six directions of one modality to another alone",
        "neither paper says which of the two checkpoints it is, or how it was sampled",
    ),
)


class OmniFlow(ByRunner):
    name = "omniflow"


METHOD = OmniFlow
