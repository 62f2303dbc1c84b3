"""MLD with nine times the updates for its second stage, and as many for its first: is the diffusion what lacks?

bench tune mld_diffusion --preset cpu --method mld --method docs/experiments/mld_longer_diffusion.py
"""

from baselines.mld import MLD
from benchmark.api import MethodCard

CARD = MethodCard(
    version=2,
    label="MLD, longer diffusion",
    paper="an experiment, of no paper: see docs/mld.md",
    stages=(("autoencoders", 0.1), ("diffusion", 0.9)),
    needs_full_rows=True,
    overrides={"updates": 25_000},
)
METHOD = MLD
