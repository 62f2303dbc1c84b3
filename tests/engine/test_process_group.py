"""Several processes follow one: shares of the draws make up the whole, and so do the losses and gradients of shares."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmark import registry
from benchmark.api import Modality, UserError, words_of
from benchmark.cli import commands
from benchmark.engine import process_group
from benchmark.engine.process_group import Processes, started
from benchmark.runtime import Draws
from models.components.latent import LatentModel
from tests import ROOT
from tests.helpers.command import bench as alone
from tests.helpers.processes import ONE_OF_TWO, SMALL, checkpoint_of, rows
from tests.models.latent_models import KINDS, build

TRAINED = [name for name in registry.index("method") if registry.card("method", name).stages]
ROWS = 12


# Shares, in one process.


@pytest.mark.parametrize(("rows", "block", "shares"), [(12, 12, 2), (12, 12, 3), (10, 4, 2), (9, 4, 3), (512, 256, 4)])
def test_shares_dealt_out_in_turn_are_the_whole(rows: int, block: int, shares: int) -> None:
    whole = Draws("deal", rows=rows, block=block)
    dealt = [Draws("deal", rows=rows, block=block, share=(rank, shares)) for rank in range(shares)]
    assert {each.rows for each in dealt} == {rows // shares}
    for name, shape in (("a", ()), ("a", ()), ("b", (3, 2))):  # a second draw of one name differs from its first
        everything = whole.normal(name, *shape)
        parts = [each.normal(name, *shape) for each in dealt]
        assert torch.equal(torch.stack(parts, 1).flatten(0, 1), everything)
        assert len(everything.flatten().unique()) == everything.numel()
    assert torch.equal(
        torch.stack([each.integers("c", 1000) for each in dealt], 1).flatten(), whole.integers("c", 1000)
    )


def test_rows_that_cannot_be_dealt_out_evenly_are_refused() -> None:
    with pytest.raises(ValueError, match="9 rows cannot be dealt out evenly to 2"):
        Draws("deal", rows=9, share=(0, 2))
    three = Processes()
    three.count = 3
    three.check_shares(batch_rows=12, word_rows=0)
    with pytest.raises(UserError, match=r"word_rows 16 .* among 3 processes: .* --set word_rows=18"):
        three.check_shares(batch_rows=12, word_rows=16)


class AlwaysTheFirst(Draws):
    """A planted fault: every process takes the first share."""

    def __init__(self, *purpose: object, share: tuple[int, int], **options: object) -> None:
        super().__init__(*purpose, share=(0, share[1]), **options)  # type: ignore[arg-type]


def batch_of(modalities: Sequence[Modality], draws: Draws) -> dict[str, Tensor]:
    """Training rows, of which each share gets its own, as of a dataset's indices."""
    batch = {}
    for each in modalities:
        indexed = each.kind == "label"
        batch[each.name] = draws.integers(each.name, each.classes) if indexed else draws.normal(each.name, *each.shape)
        if each.words:
            batch[words_of(each.name)] = draws.integers(words_of(each.name), each.classes, each.words)
    return batch


def step(model: LatentModel, stage: str, draws: Draws) -> tuple[dict[str, Tensor], Tensor]:
    """The loss and its parts, and the gradient of all weights in a row."""
    model.zero_grad()
    loss, parts = model.loss(batch_of(model.modalities, draws), stage, draws)
    loss.backward()
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in model.parameters()]
    return {"loss": loss.detach(), **parts}, torch.cat([each.flatten() for each in gradients])


def departure(name: str, modalities: Sequence[Modality], shares: int, kind: type[Draws] = Draws) -> float:
    """How far the mean over shares is from the whole batch, as a part of it: of losses and gradients, the farthest."""
    model, worst = build(registry.load("method", name), tuple(modalities)), 0.0
    for stage, _ in registry.card("method", name).stages:
        parts, gradient = step(model, stage, Draws(stage, rows=ROWS, block=ROWS))
        dealt = [step(model, stage, kind(stage, rows=ROWS, block=ROWS, share=(k, shares))) for k in range(shares)]
        mean = torch.stack([each for _, each in dealt]).mean(0)
        worst = max(worst, float((mean - gradient).norm() / gradient.norm()))
        for part, value in parts.items():
            found = torch.stack([each[part] for each, _ in dealt]).mean()
            worst = max(worst, float((found - value).abs() / parts["loss"].abs()))
    return worst


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TRAINED)
def test_losses_and_gradients_of_shares_average_to_those_of_the_whole(name: str, kind: str) -> None:
    """Vectors as of the mixture, two pictures and a label, or features of things, of whose words four rows count."""
    for shares in (2, 4):
        assert departure(name, KINDS[kind], shares) < 1e-5
    assert departure(name, KINDS[kind], 2, AlwaysTheFirst) > 1e-2


@pytest.mark.parametrize(
    ("left", "line"),
    [
        (
            {"WORLD_SIZE": "2"},
            "WORLD_SIZE=2 is set without RANK, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT",
        ),
        (ONE_OF_TWO | {"RANK": ""}, "WORLD_SIZE=2 is set without RANK, so not by torchrun: unset "),
        (ONE_OF_TWO | {"RANK": "2"}, "WORLD_SIZE=2 is set with numbers that do not fit together, so not by torchrun"),
        (ONE_OF_TWO | {"WORLD_SIZE": "two"}, "WORLD_SIZE=two is set with numbers that do not fit together"),
    ],
)
def test_what_is_left_of_another_commands_processes_is_one_line_where_it_counts(
    left: dict[str, str], line: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    for more in ([], ["--executor", "local"]):
        answer = alone(*RUN, "--runs", runs, *more)
        assert answer.status == 2
        assert answer.err.startswith(f"bench: {line}")
    assert list(runs.iterdir()) == []
    assert alone("table", "table5", "--preset", "cpu", "--reference").status == 0


def test_variables_of_torchrun_concern_no_other_command_nor_one_process(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ONE_OF_TWO.items():
        monkeypatch.setenv(name, value)
    assert alone("table", "table5", "--preset", "cpu", "--reference").status == 0
    assert commands._device("cpu") == "cpu"
    assert alone("--version").status == 0
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert started() == 1


def test_a_process_that_waits_for_the_others_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in ONE_OF_TWO.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(process_group, "MEETING_SECONDS", 0.01)
    monkeypatch.setattr(process_group, "Together", lambda cpu: time.sleep(0.5) or Processes())
    monkeypatch.setattr(Processes, "device", "cpu", raising=False)
    monkeypatch.setattr(process_group, "_here", process_group.here())
    assert process_group.join("cpu") == "cpu"
    assert "process 0 of 2 waits for the others; if torchrun did not start it: unset " in capsys.readouterr().err


# Two processes with torchrun.


OFTEN = "from benchmark.engine import train; train.LOG_EVERY = 10; train.CHECKPOINT_SECONDS = 0"
RUN = ["run", "--method", "muni", "--task", "uncond", *SMALL]
SECONDS = 240  # a command takes about fifteen


def start(count: int, words: Sequence[object], patch: str = OFTEN) -> subprocess.Popen[str]:
    """The command in so many processes; `patch` is code that each of them begins with."""
    code = (
        f"{patch}\nimport sys\nfrom benchmark.cli import commands\nsys.argv = ['bench', *sys.argv[1:]]\ncommands.main()"
    )
    command = [sys.executable, "-c", code, *map(str, words)]
    if count > 1:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
        command = [*torchrun, "--no-python", *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=-1, stderr=-1, text=True)


def bench(count: int, *words: object, patch: str = OFTEN) -> tuple[int, str, str]:
    """Status, output and errors of the command in so many processes."""
    with start(count, words, patch) as process:
        try:
            out, err = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()
            raise
    return process.returncode, out, err


def curve(runs: Path, updates: int = 100) -> list[dict[str, float]]:
    (log,) = (path for path in runs.rglob("train.jsonl") if json_of(path.parent)["config"]["updates"] == updates)
    return [json.loads(line) for line in log.read_text().splitlines()]


def json_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def farthest(found: Path, expected: Path) -> float:
    """The largest relative difference of a logged part, of losses of the order of one."""
    pairs = list(zip(curve(found), curve(expected), strict=True))
    assert len(pairs) == 10
    return max(abs(one[name] - other[name]) for one, other in pairs for name in other)


def values(runs: Path) -> dict[tuple[str, ...], float]:
    """Each row's key -> its value; every key once."""
    found = [(row[:7], float(row[7])) for row in rows(runs)]
    assert len(dict(found)) == len(found) > 0
    return dict(found)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of a run in one process."""
    pytest.importorskip("accelerate", reason="several processes need the extra scale")
    folder = tmp_path_factory.mktemp("whole")
    assert bench(1, *RUN, "--runs", folder)[0] == 0
    return folder


@pytest.mark.slow
def test_two_processes_follow_one(whole: Path, runs: Path) -> None:
    status, out, err = bench(2, *RUN, "--runs", runs)
    assert status == 0, err
    assert farthest(runs, whole) < 1e-5
    assert values(runs) == pytest.approx(values(whole), rel=1e-4)
    assert {row[-1].startswith("2 x ") for row in rows(runs)} == {True}
    assert out.count("Rows: ") == 1  # one process speaks
    assert err.count("training 100 %") == 1
    assert [path.name for path in checkpoint_of(runs).parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow
def test_two_processes_follow_one_from_stage_to_stage(tmp_path: Path) -> None:
    """MLD's second stage begins with the first one's average, whose latents it measures."""
    pytest.importorskip("accelerate", reason="several processes need the extra scale")
    one, two = tmp_path / "one", tmp_path / "two"
    words = ["mld" if word == "muni" else word for word in RUN]
    for count, folder in ((1, one), (2, two)):
        status, _, err = bench(count, *words, "--runs", folder)
        assert status == 0, err
    assert farthest(two, one) < 1e-4
    assert values(two) == pytest.approx(values(one), rel=1e-3)


@pytest.mark.slow
def test_gradients_that_are_not_averaged_are_noticed(whole: Path, runs: Path) -> None:
    fault = "from benchmark.engine.process_group import Together; Together.average = lambda self, tensor: None"
    assert bench(2, *RUN, "--runs", runs, patch=f"{OFTEN}\n{fault}")[0] == 0
    assert farthest(runs, whole) > 1e-2


@pytest.mark.slow
def test_one_process_then_two_that_are_stopped_then_one(whole: Path, runs: Path) -> None:
    """A shorter run of one process; two go on from its end; SIGTERM; one process does the rest."""
    assert bench(1, *RUN, "--set", "updates=30", "--runs", runs)[0] == 0
    with start(2, [*RUN, "--runs", runs]) as process:
        assert process.stderr
        first = process.stderr.readline()
        while "training" not in first:
            first = process.stderr.readline()
        assert first.startswith("muni seed 0: training 40 %")  # the first update of theirs is the 31st
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=SECONDS)
    assert "bench: stopped; the same command goes on where it stopped" in err
    assert 40 <= curve(runs)[-1]["update"] < 100
    assert len(rows(runs)) == len(rows(whole))  # those of the shorter run
    assert bench(1, *RUN, "--runs", runs)[0] == 0
    assert farthest(runs, whole) < 1e-5


@pytest.mark.slow
def test_what_diverges_does_so_in_both_and_the_next_run_starts(runs: Path) -> None:
    pytest.importorskip("accelerate", reason="several processes need the extra scale")
    wild = ["--set", "learning_rate=1e30", "--set", "warmup_updates=0", "--set", "clip_norm=1e30"]
    status, _, err = bench(2, *RUN, "--method", "mopoe", *wild, "--runs", runs)
    assert status != 0
    assert {row[4] for row in rows(runs)} == {"muni", "mopoe"}
    assert {row[10].partition(" the loss")[0] for row in rows(runs)} == {"error: Diverged:"}
    assert "process 1:" not in err


@pytest.mark.slow
def test_a_process_that_dies_ends_the_command_and_one_process_goes_on(whole: Path, runs: Path) -> None:
    death = """
import os
from benchmark.engine.train import Trainer
update = Trainer.update
def fatal(self):
    if self.updates == 25 and self.processes.rank == 1:
        os._exit(9)
    return update(self)
Trainer.update = fatal"""
    began = time.monotonic()
    status, _, _ = bench(2, *RUN, "--runs", runs, patch=OFTEN + death)
    assert status != 0
    assert time.monotonic() - began < SECONDS / 2
    assert curve(runs)[-1]["update"] == 20
    assert bench(1, *RUN, "--runs", runs)[0] == 0
    assert farthest(runs, whole) < 1e-5


@pytest.mark.slow
def test_rows_that_two_processes_cannot_share_are_refused(runs: Path) -> None:
    pytest.importorskip("accelerate", reason="several processes need the extra scale")
    status, _, err = bench(2, *RUN, "--set", "batch_rows=15", "--runs", runs)
    assert status != 0
    assert "bench: batch_rows 15 cannot be shared out evenly among 2 processes: " in err
    assert rows(runs) == []
