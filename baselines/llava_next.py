"""LLaVA-NeXT: captions of pictures, a reference row of Tables 8 and 9.

bench run --method llava_next --dataset image_text_audio --task one_to_one --preset paper
"""

from __future__ import annotations

from functools import partial

from baselines.published.in_process import Captioner, Specialist
from benchmark.api import MethodCard

CARD = MethodCard(
    version=1,
    label="LLaVA-NeXT",
    paper="Liu et al. (2024); MUNI (2026), Table 8",
    tasks=("one_to_one",),
    stages=(),
    deviations=("size and prompt are assumed: the paper states none",),
)


class LlavaNext(Specialist):
    name = "llava_next"
    model = partial(Captioner, kind="image", model="LlavaNextForConditionalGeneration")


METHOD = LlavaNext
