"""FlowBind's public checkpoint: flows between features of a sentence, a picture and a sound, and a shared latent.

It runs in a Python of its own; docs/external/flowbind.md says how to set it up.

    bench run --method flowbind --dataset image_text_audio --preset paper
"""

from __future__ import annotations

from baselines.published.adapter import ByRunner
from benchmark.api import MethodCard

CARD = MethodCard(
    version=1,
    label="FlowBind",
    paper="Cha, Kim, Kwon, Hong: FlowBind: Efficient Any-to-Any Generation with Bidirectional Flows, arXiv 2512.15420",
    stages=(),
    deviations=("a copy of the withdrawn stable-diffusion-2-1-unclip-small draws its pictures",),
)


class FlowBind(ByRunner):
    """Nothing is trained. What is known of the model is in published/workers/flowbind.toml."""

    name = "flowbind"


METHOD = FlowBind
