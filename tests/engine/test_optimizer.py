"""The optimiser over one buffer equals clipped AdamW and an average over single weights, stages included."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from benchmark import registry
from benchmark.config import Config, resolve
from benchmark.engine.optimizer import Optimizer, gather


def config(**changes: float) -> Config:
    found = resolve(registry.card("dataset", "gaussian_mixture"), None, "smoke").config
    return replace(found, weight_decay=0.1, clip_norm=0.5, ema_updates=4, beta2=0.8, **changes)


class Parts(nn.Module):
    """Three layers, of which a stage may leave any out; the middle one's weight lies in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Conv2d(4, 3, 2), nn.Linear(3, 2)])
        self.layers[1].to(memory_format=torch.channels_last)

    def loss(self, used: str, x: torch.Tensor) -> torch.Tensor:
        terms = [
            self.layers[0](x).square().mean(),
            self.layers[1](x.reshape(-1, 4, 1, 1).expand(-1, -1, 2, 2)).square().mean(),
            self.layers[2](x[:, :3]).square().mean(),
        ]
        return torch.stack([3 * terms[int(layer)] for layer in used]).sum()


@pytest.mark.parametrize("stages", ["012 012 012 012", "02 02 02 1 1 1", "01 01 12 12 012", "0 1 0 1 0 2"])
@pytest.mark.parametrize("cut", [None, 2, 3])
@pytest.mark.parametrize("begun", [None, 3])
def test_it_is_clipped_adamw_with_an_average(stages: str, cut: int | None, begun: int | None) -> None:
    torch.manual_seed(0)
    model = Parts().double()
    average, single = copy.deepcopy(model), copy.deepcopy(model)
    single_average = copy.deepcopy(model)
    ours = Optimizer(model, average, config())
    reference = torch.optim.AdamW(single.parameters(), lr=1.0, weight_decay=0.1, betas=(0.9, 0.8))
    blend = get_ema_multi_avg_fn(1 - 1 / 4)
    for number, used in enumerate(stages.split()):
        x, rate = torch.randn(8, 4, dtype=torch.float64), 0.01 * (number + 1)
        if number == cut:  # as a resume does: new objects, the weights and the state copied in
            state = {name: value.clone() for name, value in ours.state().items()}
            weights, averages = copy.deepcopy(model.state_dict()), copy.deepcopy(average.state_dict())
            model, average = Parts().double(), Parts().double()
            ours = Optimizer(model, average, config())
            model.load_state_dict(weights)
            average.load_state_dict(averages)
            ours.load(state)
        if number == begun:  # a stage, whose weights are the average of those before: moments go on
            ours.start_from_average()
            with torch.no_grad():
                for weight, mean in zip(single.parameters(), single_average.parameters(), strict=True):
                    weight.copy_(mean)
        model.loss(used, x).backward()
        ours.step(rate)
        single.loss(used, x).backward()
        torch.nn.utils.clip_grad_norm_(single.parameters(), 0.5)
        reference.param_groups[0]["lr"] = rate
        reference.step()
        reference.zero_grad()
        with torch.no_grad():
            blend(list(single_average.parameters()), list(single.parameters()), None)
    for one, other in [(model, single), (average, single_average)]:
        for (name, weight), expected in zip(one.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(weight, expected, rtol=1e-12, atol=1e-14, msg=name)


def test_gathering_keeps_values_and_layout() -> None:
    model = Parts()
    before, strides = copy.deepcopy(model.state_dict()), [each.stride() for each in model.parameters()]
    buffer = gather(model.parameters())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert [each.stride() for each in model.parameters()] == strides
    buffer.zero_()
    assert all(not each.any() for each in model.parameters())


def test_weights_of_two_dtypes_are_refused() -> None:
    model = Parts()
    model.layers[0].double()
    with pytest.raises(ValueError, match="one dtype"):
        gather(model.parameters())


def test_a_weight_that_is_not_finite_is_noticed() -> None:
    model = Parts()
    optimizer = Optimizer(model, copy.deepcopy(model), config())
    assert optimizer.finite()
    with torch.no_grad():
        model.layers[2].bias[0] = float("nan")
    assert not optimizer.finite()
