"""Unified-IO 2 (large): one transformer that writes tokens of captions, pictures and sounds (Lu et al., 2023).

A reference row of Tables 8 and 9. It runs in a Python of its own: docs/external/unifiedio2.md.

    bench run --method unifiedio2 --dataset image_text_audio --task one_to_one --preset paper
"""

from __future__ import annotations

from baselines.published.adapter import ByRunner
from benchmark.api import MethodCard

CARD = MethodCard(
    version=1,
    label="UnifiedIO2-L",
    paper="Lu et al. (2023), arXiv 2312.17172; MUNI (2026), Table 8",
    tasks=("one_to_one",),
    stages=(),
    deviations=(
        "its settings and prompts are the defaults of its public code: the paper states none",
        "its sounds end after 4.1 s, and it hears the first 8.2 s of 10: sizes that the model fixes",
    ),
)


class UnifiedIO2(ByRunner):
    name = "unifiedio2"


METHOD = UnifiedIO2
