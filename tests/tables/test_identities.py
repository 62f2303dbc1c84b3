"""What the committed rows must obey whatever the training was like: identities between columns."""

import math
import statistics

import pytest

from benchmark import files
from benchmark.records import results_file

CPU = files.RESULTS / "reference" / "cpu.csv"
pytestmark = pytest.mark.skipif(not CPU.exists(), reason="no results/reference/cpu.csv yet: bench bless --preset cpu")


def gap_in_standard_errors(method: str) -> float:
    """2->1 error minus what the method's own one-to-one samples predict for a uniformly drawn expert, over seeds."""
    found: dict[int, dict[str, list[float]]] = {}
    for row in results_file.read(CPU):
        mine = row.dataset == "gaussian_mixture" and row.method == method and row.value is not None
        if mine and row.given and not row.want.startswith("factor:"):
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


# PolyMNIST-Quadrant-Labels. A row's own standard error is that of its evaluation rows; views of one cell share them.

PICTURES = "polymnist_quadrant_labels"
POSTERIOR = ("muni", "muni_hellinger", "mmvae", "mmvaeplus", "mopoe")


def of_pictures(method: str, metric: str) -> dict[tuple[int, str], tuple[float, float]]:
    """(seed, given) -> the mean over views of value and standard error."""
    found: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for row in results_file.read(CPU):
        if row.dataset.partition(":")[0] == PICTURES and (row.method, row.metric) == (method, metric):
            assert row.value is not None and row.stderr is not None
            found.setdefault((row.seed, row.given), []).append((row.value, row.stderr))
    if not found:
        pytest.skip(f"no rows of {method} on pictures yet")
    return {key: tuple(map(statistics.mean, zip(*pairs, strict=True))) for key, pairs in found.items()}  # type: ignore[misc]


def gap_with_both_labels(method: str) -> float:
    """Accuracy with both labels minus what the method's own single-label pictures predict for a uniformly drawn
    expert, in standard errors, over seeds."""
    both, single = of_pictures(method, "label_accuracy"), of_pictures(method, "uniform_expert_accuracy")
    gaps, variances = [], []
    for seed in {seed for seed, _ in single}:
        value, error = both[seed, "digit+quadrant"]
        parts = [single[seed, given] for given in ("digit", "quadrant")]
        gaps.append(value - statistics.mean(part[0] for part in parts))
        variances.append(error**2 + sum(part[1] ** 2 for part in parts) / 4)
    return statistics.mean(gaps) / (math.sqrt(sum(variances)) / len(gaps))


@pytest.mark.parametrize("method", ["mmvae", "mmvaeplus"])
def test_a_mixture_draws_one_label_of_two(method):
    assert abs(gap_with_both_labels(method)) <= 3


@pytest.mark.parametrize("method", ["mopoe", "muni"])
def test_a_product_draws_both_labels(method):
    assert gap_with_both_labels(method) > 3


@pytest.mark.parametrize("method", POSTERIOR)
@pytest.mark.parametrize(("given", "chance"), [("digit", 1 / 4), ("quadrant", 1 / 10)])
def test_one_posterior_sample_leaves_the_other_label_open(method, given, chance):
    """Decoders that guess it apart agree by chance."""
    found = [pair for (_, said), pair in of_pictures(method, "one_to_many_agreement").items() if said == given]
    value = statistics.mean(each[0] for each in found)
    error = math.sqrt(sum(each[1] ** 2 for each in found)) / len(found)
    assert value <= 1.25 * chance + 2 * error
