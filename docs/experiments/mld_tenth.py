"""MLD whose autoencoders have a tenth of the updates, and its diffusion the rest: is half the right share?

bench tune mld_stages --preset cpu
"""

from baselines.mld import MLD
from benchmark.api import MethodCard

CARD = MethodCard(
    version=2,
    label="MLD, a tenth for the autoencoders",
    paper="an experiment, of no paper: see docs/mld.md",
    stages=(("autoencoders", 0.1), ("diffusion", 0.9)),
    needs_full_rows=True,
)
METHOD = MLD
