"""What the committed rows must obey whatever the training was like: identities between columns."""

import math
import statistics

import pytest

from benchmark import records, tables

CPU = tables.RESULTS / "reference" / "cpu.csv"
pytestmark = pytest.mark.skipif(not CPU.exists(), reason="no results/reference/cpu.csv yet: bench bless --preset cpu")


def gap_in_standard_errors(method: str) -> float:
    """2->1 error minus what the method's own one-to-one samples predict for a uniformly drawn expert, over seeds."""
    found: dict[int, dict[str, list[float]]] = {}
    for row in records.read(CPU):
        if row.method == method and row.given and row.value is not None and not row.want.startswith("factor:"):
            kind = "2->1" if "+" in row.given and row.metric == "shared_mse" else row.metric
            found.setdefault(row.seed, {}).setdefault(kind, []).append(row.value)
    gaps = [statistics.mean(each["2->1"]) - statistics.mean(each["uniform_expert"]) for each in found.values()]
    assert len(gaps) >= 3
    return statistics.mean(gaps) / (statistics.stdev(gaps) / math.sqrt(len(gaps)))


@pytest.mark.parametrize("method", ["mmvae", "mmvaeplus"])
def test_a_mixture_scores_what_a_uniformly_drawn_expert_scores(method):
    assert abs(gap_in_standard_errors(method)) <= 3


@pytest.mark.parametrize("method", ["mopoe", "muni"])
def test_a_product_does_not(method):
    assert gap_in_standard_errors(method) < -3
