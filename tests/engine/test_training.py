"""The trainer: mixed precision and compiled networks train like plain ones, and buffers are not forgotten."""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path

import pytest
import torch

from benchmark import registry
from benchmark.engine import execution
from benchmark.engine.train import Progress, Trainer
from benchmark.records import run_identity
from benchmark.records.job import job_of
from benchmark.runtime import seed_of

SIZES = ["train_rows=500", "evaluation_rows=64", "unconditional_rows=64", "batch_rows=32", "warmup_updates=0"]


def losses(method: str, folder: Path, *settings: str) -> dict[str, float]:
    """The parts of the loss, averaged over six updates."""
    run = run_identity.prepare(
        job_of(method, "gaussian_mixture", "smoke", 0, []), folder, [*SIZES, "updates=6", *settings]
    )
    data = registry.load("dataset", "gaussian_mixture")(run.config, "cpu")
    run.directory.mkdir(parents=True)
    return execution.trainer_of(run, data, "cpu").advance(6)


@pytest.mark.parametrize("method", ["muni", "muni_hellinger", "mmvaeplus"])
def test_bfloat16_trains_like_float32(method: str, tmp_path: Path) -> None:
    plain, mixed = losses(method, tmp_path), losses(method, tmp_path, "precision=bfloat16")
    assert mixed == pytest.approx(plain, rel=0.03) and mixed != plain


def test_experts_are_pooled_in_float32(tmp_path: Path) -> None:
    run = run_identity.prepare(job_of("muni", "gaussian_mixture", "smoke", 0, []), tmp_path, SIZES)
    data = registry.load("dataset", "gaussian_mixture")(run.config, "cpu")
    model = execution.build(run, data, "cpu")
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
    run = run_identity.prepare(job_of("muni", "gaussian_mixture", "smoke", 0, []), tmp_path, SIZES)
    data = registry.load("dataset", "gaussian_mixture")(run.config, "cpu")
    model, average = Counting(), Counting()
    Trainer(model, average, data, (("joint", 1.0),), run.config, 0, tmp_path, "id", "cpu").advance(5)
    assert average.steps.item() == 5
    assert 1 > average.weight.item() > model.weight.item()


def test_whoever_no_longer_listens_costs_no_checkpoint(tmp_path: Path) -> None:
    """A report that fails, as on a closed pipe, comes after the checkpoint of what it reports."""
    run = run_identity.prepare(job_of("muni", "gaussian_mixture", "smoke", 0, []), tmp_path, [*SIZES, "updates=50"])
    data = registry.load("dataset", "gaussian_mixture")(run.config, "cpu")
    run.directory.mkdir(parents=True)

    def deaf(progress: Progress) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        execution.trainer_of(run, data, "cpu").run(deaf)
    assert execution.trainer_of(run, data, "cpu").progress.done


def staged(method: str, folder: Path) -> Trainer:
    """A trainer of 20 updates, of which each of two stages has half; it goes on where the folder's checkpoint is."""
    settings = [*SIZES, "updates=20", "ema_updates=5"]
    run = run_identity.prepare(job_of(method, "gaussian_mixture", "smoke", 0, []), folder, settings)
    data = registry.load("dataset", "gaussian_mixture")(run.config, "cpu")
    run.directory.mkdir(parents=True, exist_ok=True)
    return execution.trainer_of(run, data, "cpu")


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(module.parameters()).detach().clone()


@pytest.mark.parametrize("method", ["shala", "mld"])
def test_a_stage_begins_with_the_average_of_the_one_before(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = staged(method, tmp_path)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.advance(10)
    average = weights(trainer.average)
    assert not torch.equal(weights(trainer.model), average)
    frozen = [name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])]
    seen: list[torch.Tensor] = []
    loss = trainer.model.loss
    monkeypatch.setattr(trainer.model, "loss", lambda *given: seen.append(weights(trainer.model)) or loss(*given))
    trainer.advance(10)
    assert torch.equal(seen[0], average)
    assert not torch.equal(seen[1], average)
    ended, scored = dict(trainer.model.named_parameters()), dict(trainer.average.named_parameters())
    assert all(torch.equal(ended[name], scored[name]) for name in frozen)  # the second stage stands on what is scored
    if method == "mld":  # and measured it
        z = trainer.average.standardised(trainer.average.observe(trainer.data.rows("train", torch.arange(500)))[0])
        assert torch.allclose(z.mean(0), torch.zeros(z.shape[1]), atol=1e-4)
        assert torch.allclose(z.std(0), torch.ones(z.shape[1]), atol=1e-4)


@pytest.mark.parametrize("method", ["shala", "mld"])
def test_a_run_cut_between_its_stages_equals_a_whole_one(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmark.engine.train.LOG_EVERY", 5)
    for number in range(4):
        assert staged(method, tmp_path / "cut").run(lambda progress: None, max_seconds=0).updates == 5 * (number + 1)
    whole, cut = staged(method, tmp_path / "whole"), staged(method, tmp_path / "cut")
    whole.run(lambda progress: None)
    for one, other in [(whole.model, cut.model), (whole.average, cut.average)]:
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_a_cpu_keeps_the_last_32_bits_of_a_hashed_seed() -> None:
    """What docs/findings.md counts on: equal streams where these agree, and hashes that spread over all of them."""
    seed = seed_of("train", 0, 1, "noise", 0, 0)
    assert seed > 2**32
    streams = [torch.randn(8, generator=torch.Generator().manual_seed(s)) for s in (seed, seed % 2**32, seed ^ 1)]
    assert streams[0].equal(streams[1]) and not streams[0].equal(streams[2])
    kept = [seed_of("train", 0, update, "noise", 0, 0) % 2**32 for update in range(100_000)]
    assert abs(statistics.fmean(kept) / 2**32 - 0.5) < 0.005
    assert 1 - len(set(kept)) / len(kept) < 5 / len(kept)  # 1.16 pairs are expected
