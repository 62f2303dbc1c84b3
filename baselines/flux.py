"""FLUX.1-dev: pictures of captions, a reference row of Tables 8 and 9.

bench run --method flux --dataset image_text_audio --task one_to_one --preset paper
"""

from __future__ import annotations

from baselines.published.in_process import Painter, Specialist
from benchmark.api import MethodCard

CARD = MethodCard(
    version=1,
    label="FLUX.1-dev",
    paper="Black Forest Labs (2024); MUNI (2026), Table 8",
    tasks=("one_to_one",),
    stages=(),
    deviations=("settings are those of its model card: the paper states none",),
)


class Flux(Specialist):
    name = "flux"
    model = Painter


METHOD = Flux
