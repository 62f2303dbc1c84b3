"""Qwen2-Audio: captions of sounds, a reference row of Tables 8 and 9.

bench run --method qwen2_audio --dataset image_text_audio --task one_to_one --preset paper
"""

from __future__ import annotations

from functools import partial

from baselines.published.in_process import Captioner, Specialist
from benchmark.api import MethodCard

CARD = MethodCard(
    version=1,
    label="Qwen2-Audio",
    paper="Chu et al. (2024); MUNI (2026), Table 8",
    tasks=("one_to_one",),
    stages=(),
    deviations=("size and prompt are assumed: the paper states none",),
)


class Qwen2Audio(Specialist):
    name = "qwen2_audio"
    model = partial(Captioner, kind="audio", model="Qwen2AudioForConditionalGeneration")


METHOD = Qwen2Audio
