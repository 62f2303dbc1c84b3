"""The trainer: mixed precision and compiled networks train like plain ones, and buffers are not forgotten."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from benchmark import registry, runner
from benchmark.tables import job_of
from benchmark.train import Progress, Trainer

SIZES = ["train_rows=500", "evaluation_rows=64", "unconditional_rows=64", "batch_rows=32", "warmup_updates=0"]


def losses(method: str, folder: Path, *settings: str) -> dict[str, float]:
    """The parts of the loss, averaged over six updates."""
    run = runner.prepare(job_of(method, "gaussian_mixture", "smoke", 0, []), folder, [*SIZES, "updates=6", *settings])
    data = registry.load("dataset", "gaussian_mixture")(run.config, "cpu")
    run.directory.mkdir(parents=True)
    return runner.trainer_of(run, data, "cpu").advance(6)


@pytest.mark.parametrize("method", ["muni", "muni_hellinger", "mmvaeplus"])
def test_bfloat16_trains_like_float32(method: str, tmp_path: Path) -> None:
    plain, mixed = losses(method, tmp_path), losses(method, tmp_path, "precision=bfloat16")
    assert mixed == pytest.approx(plain, rel=0.03) and mixed != plain


def test_experts_are_pooled_in_float32(tmp_path: Path) -> None:
    run = runner.prepare(job_of("muni", "gaussian_mixture", "smoke", 0, []), tmp_path, SIZES)
    data = registry.load("dataset", "gaussian_mixture")(run.config, "cpu")
    model = runner.build(run, data, "cpu")
    x, _ = model.observe(data.rows("train", torch.arange(8)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.families[0].encoder(x[0])[0].dtype == torch.bfloat16
        assert {part.dtype for part in model.encode(x)} == {torch.float32}


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile on a processor needs g++")
def test_compiled_networks_train_like_plain_ones(tmp_path: Path) -> None:
    small = ["decoder_depth=1", "prior_depth=1", "encoder_depth=1"]
    plain, compiled = losses("muni", tmp_path, *small), losses("muni", tmp_path, *small, "compile=true")
    assert compiled == pytest.approx(plain, rel=1e-4)


class Counting(torch.nn.Module):
    """Counts its training steps in a buffer, as batch normalisation keeps its statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.register_buffer("steps", torch.zeros(1))

    def loss(self, batch, stage, draws):
        self.steps += 1
        return self.weight.square().sum(), {}


def test_buffers_follow_the_weights_into_the_average(tmp_path: Path) -> None:
    run = runner.prepare(job_of("muni", "gaussian_mixture", "smoke", 0, []), tmp_path, SIZES)
    data = registry.load("dataset", "gaussian_mixture")(run.config, "cpu")
    model, average = Counting(), Counting()
    Trainer(model, average, data, (("joint", 1.0),), run.config, 0, tmp_path, "id", "cpu").advance(5)
    assert average.steps.item() == 5
    assert 1 > average.weight.item() > model.weight.item()


def test_whoever_no_longer_listens_costs_no_checkpoint(tmp_path: Path) -> None:
    """A report that fails, as on a closed pipe, comes after the checkpoint of what it reports."""
    run = runner.prepare(job_of("muni", "gaussian_mixture", "smoke", 0, []), tmp_path, [*SIZES, "updates=50"])
    data = registry.load("dataset", "gaussian_mixture")(run.config, "cpu")
    run.directory.mkdir(parents=True)

    def deaf(progress: Progress) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        runner.trainer_of(run, data, "cpu").run(deaf)
    assert runner.trainer_of(run, data, "cpu").progress.done
