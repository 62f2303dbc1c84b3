"""TangoFlux: sounds of captions by a rectified flow (Hung et al., 2024), a reference row of Tables 8 and 9.

It runs in a Python of its own: docs/external/tangoflux.md.

    bench run --method tangoflux --dataset image_text_audio --task one_to_one --preset paper
"""

from __future__ import annotations

from baselines.published.adapter import ByRunner
from benchmark.api import MethodCard

CARD = MethodCard(
    version=1,
    label="TangoFlux",
    paper="Hung et al. (2024), arXiv 2412.21037; MUNI (2026), Table 8",
    tasks=("one_to_one",),
    stages=(),
    deviations=("settings are those that its authors recommend: the paper states none",),
)


class TangoFlux(ByRunner):
    name = "tangoflux"


METHOD = TangoFlux
