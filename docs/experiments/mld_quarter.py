"""MLD whose autoencoders have a quarter of the updates, and its diffusion the rest: is half the right share?

bench tune mld_stages --preset cpu
"""

from baselines.mld import MLD
from benchmark.api import MethodCard

CARD = MethodCard(
    version=2,
    label="MLD, a quarter for the autoencoders",
    paper="an experiment, of no paper: see docs/mld.md",
    stages=(("autoencoders", 0.25), ("diffusion", 0.75)),
    needs_full_rows=True,
)
METHOD = MLD
