"""How the suite's own networks are fitted, and how they answer: the rate, whole chunks, once per tensor."""

import gc
import weakref
from itertools import pairwise

import pytest
import torch

from benchmark.fitting import frozen_network
from benchmark.fitting.frozen_network import OncePerTensor, chunks, fit, in_chunks

# ------------------------------------------------------------------------------------------ fitting


class Weight(torch.nn.Module):
    def __init__(self, begin):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(begin, dtype=torch.float64))


def path_of(slope, begin, **plan):
    """The weight before each update of a loss with this slope, and after the last."""
    network, path = Weight(begin), []

    def loss(update):
        assert update == len(path)
        path.append(network.weight.item())
        return slope * network.weight

    fit("a weight", network, loss, say=str, **plan)
    return [*path, network.weight.item()]


@pytest.mark.parametrize(("warm", "shares"), [(0.5, (0.25, 0.75, 0.75, 0.25)), (0.25, (1 / 2, 5 / 6, 3 / 6, 1 / 6))])
def test_the_rate_rises_and_falls_to_zero(warm, shares):
    """Adam's step is the rate itself where the slope is always the same."""
    path = path_of(3.0, 0.0, updates=4, rate=0.01, warm=warm, decay=0.0)
    steps = [before - after for before, after in pairwise(path)]
    assert steps == pytest.approx([0.01 * share for share in shares], rel=1e-6)


def test_weights_decay_by_the_rate():
    path = path_of(0.0, 1.0, updates=2, rate=0.1, warm=0.5, decay=0.2)
    assert path == pytest.approx([1, 0.99, 0.99**2])


def test_it_says_how_far_it_is(monkeypatch):
    lines, network = [], Weight(1.0)
    for wait in (1e9, -1.0):
        monkeypatch.setattr(frozen_network, "SAY_EVERY", wait)
        fit("mine", network, lambda update: network.weight, updates=3, rate=0.1, warm=0.5, decay=0, say=lines.append)
    assert lines == ["mine: 33 %, 0 s left", "mine: 66 %, 0 s left", "mine: 100 %, 0 s left"]


# ------------------------------------------------------------------------------------------ whole chunks


def test_the_last_chunk_is_filled_up():
    rows = torch.arange(1, 15).reshape(7, 2)
    found = list(chunks(rows, 3))
    assert [count for _, count in found] == [3, 3, 1]
    assert [chunk.tolist() for chunk, _ in found][1:] == [[[7, 8], [9, 10], [11, 12]], [[13, 14], [0, 0], [0, 0]]]
    assert list(chunks(["one", "two", "three"], 2)) == [(["one", "two"], 2), (["three", ""], 1)]


def test_what_comes_of_the_filling_is_dropped():
    seen = []

    def work(chunk):
        seen.append(len(chunk))
        return chunk + 1

    for count in (0, 1, 3, 7):
        rows = torch.arange(2.0 * count).reshape(count, 2)
        assert torch.equal(in_chunks(work, rows, 3), rows + 1)
    assert set(seen) == {3}
    assert in_chunks(lambda texts: torch.tensor([len(text) for text in texts]), ["one", "three"], 4).tolist() == [3, 5]
    assert in_chunks(lambda texts: torch.ones(len(texts), 2), [], 4).shape == (0, 2)


# ------------------------------------------------------------------------------------------ once per tensor


def test_work_is_done_again_only_when_its_tensor_changes():
    once, asked = OncePerTensor(), []

    def work(things):
        asked.append(things.sum().item())
        return [asked[-1]]

    things = torch.ones(3)
    assert once("things", things, work) is once("things", things, work)
    things[0] = 5
    assert once("things", things, work) == [7.0]
    assert once("things", things.clone(), work) == [7.0]  # another tensor of the same numbers
    with torch.inference_mode():
        frozen_things = torch.ones(2)
    assert once("things", frozen_things, work) is once("things", frozen_things, work)
    assert asked == [3.0, 7.0, 7.0, 2.0]


def test_answers_go_when_their_tensors_do():
    once, things = OncePerTensor(), torch.ones(3)
    answer = weakref.ref(once("things", things, lambda rows: Weight(1.0)))
    assert answer() is not None
    del things
    gc.collect()
    assert answer() is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_each_time(bad):
    once, things = OncePerTensor(), torch.tensor([1.0, bad])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^a sound holds NaN or infinite values$"):
            once("a sound", things, pytest.fail)
