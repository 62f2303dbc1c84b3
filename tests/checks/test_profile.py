"""The floor of `bench profile` is the products of a step and nothing else, and every stage has its step."""

import pytest
import torch
from torch import nn

from benchmark.checks import profile
from benchmark.checks.profile import Products, profile_method

aten = torch.ops.aten


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "ROUNDS", 1)
    monkeypatch.setattr(profile, "STEPS", 2)


def products_of(network: nn.Module, x: torch.Tensor) -> list[tuple[object, list[tuple[int, ...]]]]:
    with Products() as products:
        network(x).sum().backward()
    return [
        (operation, [tuple(each.shape) for each in arguments if hasattr(each, "made")])
        for operation, arguments in products.calls
    ]


def test_the_floor_of_two_layers_is_their_five_products() -> None:
    network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2, bias=False))
    found = products_of(network, torch.randn(7, 3))
    assert {operation for operation, _ in found} == {aten.mm.default}  # the bias is not in it
    forward = [[(7, 3), (3, 5)], [(7, 5), (5, 2)]]
    weights = [[(2, 7), (7, 5)], [(5, 7), (7, 3)]]
    assert sorted(shapes for _, shapes in found) == sorted([*forward, *weights, [(7, 2), (2, 5)]])


def test_the_floor_of_a_convolution_is_it_and_its_backward() -> None:
    found = products_of(nn.Conv2d(2, 4, 3, bias=False), torch.randn(5, 2, 8, 8))
    assert found == [
        (aten.convolution.default, [(5, 2, 8, 8), (4, 2, 3, 3)]),
        (aten.convolution_backward.default, [(5, 4, 6, 6), (5, 2, 8, 8), (4, 2, 3, 3)]),
    ]


def test_the_floor_keeps_layouts_and_types() -> None:
    made = profile._described(torch.randn(4, 6, dtype=torch.float64).t()[::2].expand(3, 4)).made()
    assert (made.dtype, tuple(made.shape), made.stride()) == (torch.float64, (3, 4), (2, 6))


def test_every_stage_has_its_step(brief: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from baselines.mld import MLD

    begun: list[str] = []
    floors: list[int] = []  # products
    floor = profile._floor
    monkeypatch.setattr(MLD, "begin", lambda self, stage, data: begun.append(stage))
    monkeypatch.setattr(profile, "_floor", lambda calls, recycle: floors.append(len(calls)) or floor(calls, recycle))
    lines = list(profile_method("mld", "gaussian_mixture", "smoke", [], "cpu"))
    steps = [number for number, line in enumerate(lines) if line.startswith("training step")]
    assert [lines[number - 1] for number in steps] == ["stage autoencoders:", "stage diffusion:"]
    assert begun == ["autoencoders", "diffusion"]  # once each, before a step is timed
    assert floors[0] > floors[1] > 0  # the second stage runs the encoders forward, and one network in place of decoders


def test_a_method_without_training_has_a_sampler_alone(brief: None) -> None:
    lines = list(profile_method("chance", "gaussian_mixture", "smoke", [], "cpu"))
    assert [line.split()[0] for line in lines] == ["chance", "sampling"]
