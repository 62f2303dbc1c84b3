"""A run that was cut at any moment and started again by the same command equals one that was not."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from benchmark.api import Cell
from benchmark.engine import execution
from benchmark.records import run_identity
from benchmark.records.job import job_of
from tests import ROOT
from tests.helpers import processes
from tests.helpers.command import Answer
from tests.helpers.processes import SMALL, TINY, at_call, bench, checkpoint_of, cut, die, put, rows, send

UPDATES = TINY["updates"]
UPDATE, SCORE = "benchmark.engine.train.Trainer.update", "benchmark.engine.execution.evaluate_cell"
# A log line and a checkpoint at every tenth update, so that a kill finds a run in many states.
OFTEN = (
    partial(put, "benchmark.engine.train:CHECKPOINT_SECONDS", 0.0),
    partial(put, "benchmark.engine.train:LOG_EVERY", 10),
)
Whole = Callable[[str], Path]


def words(method: object, runs: Path) -> list[object]:
    return ["run", "--method", method, "--task", "one_to_one", "--task", "uncond", *SMALL, "--runs", runs]


def run(method: object, runs: Path, *patches: Callable[[], object], more: tuple = ()) -> Answer:
    return bench(*words(method, runs), *more, patches=[*OFTEN, *patches])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The runs folder of a method's uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")

    def of(method: str) -> Path:
        if not (folder / method).exists():
            assert run(method, folder / method).status == 0
        return folder / method

    return of


def updates_done(runs: Path) -> int:
    """Updates that the checkpoint holds; 0 where there is none."""
    for path in runs.rglob("checkpoint.safetensors"):
        with safe_open(path, framework="pt") as file:
            return int(file.metadata()["updates"])
    return 0


def assert_same_numbers(found: Path, expected: Path) -> None:
    """Equal rows and, bit by bit, equal weights, averages and optimiser states."""
    assert rows(found) == rows(expected) != []
    assert_same_state(checkpoint_of(found), checkpoint_of(expected))


def assert_same_state(found: Path, expected: Path) -> None:
    tensors, others = load_file(found), load_file(expected)
    assert tensors.keys() == others.keys()
    assert {name.split(".")[0] for name in tensors} == {"model", "average", "optimizer"}
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)


def assert_same_run(found: Path, expected: Path) -> None:
    """Equal numbers and training curves, and no file beside those of an uninterrupted run."""
    assert_same_numbers(found, expected)
    logs = [(checkpoint_of(runs).parent / "train.jsonl").read_bytes() for runs in (found, expected)]
    assert logs[0] == logs[1]
    left = [sorted(path.relative_to(runs) for path in runs.rglob("*")) for runs in (found, expected)]
    assert left[0] == left[1]


def test_the_comparison_sees_a_lost_row_and_a_changed_bit(whole: Whole, tmp_path: Path) -> None:
    copy = tmp_path / "runs"
    shutil.copytree(whole("muni"), copy)
    results = copy / "results.csv"
    header, *lines = results.read_text().splitlines(keepends=True)
    results.write_text("".join([header, *reversed(lines)]))  # the order of rows does not count
    assert_same_run(copy, whole("muni"))
    results.write_text("".join([header, *lines[1:]]))
    with pytest.raises(AssertionError):
        assert_same_run(copy, whole("muni"))
    results.write_text("".join([header, *lines]))
    content = bytearray(checkpoint_of(copy).read_bytes())
    content[-3] ^= 1
    checkpoint_of(copy).write_bytes(content)
    with pytest.raises(AssertionError):
        assert_same_run(copy, whole("muni"))


# ShaLa-style and MLD train in two stages of half the updates each; MLD measures its latents between them.
@pytest.mark.parametrize(("method", "longest", "least"), [("muni", 12, 8), ("shala", 25, 4), ("mld", 25, 4)])
def test_killed_at_random_moments(method: str, longest: int, least: int, whole: Whole, runs: Path) -> None:
    moments = random.Random(f"the moments of {method}")
    killed_at: list[int] = []
    patience = 0.02  # seconds; it grows where a run never lives to its next checkpoint
    while (done := updates_done(runs)) < UPDATES:
        assert not (runs / "results.csv").exists()  # no row before the update budget is reached
        killed_at.append(done)
        nth, seconds = min(moments.randint(2, longest), UPDATES - done), moments.uniform(0.05, 1) * patience
        assert run(method, runs, partial(at_call, UPDATE, nth, partial(cut, seconds))).status == -signal.SIGPROF
        assert updates_done(runs) >= done
        patience = 0.02 if updates_done(runs) > done else 1.5 * patience
    for _ in range(4):
        seconds = moments.uniform(0.001, 0.03)
        assert run(method, runs, partial(at_call, SCORE, 1, partial(cut, seconds))).status == -signal.SIGPROF
    assert run(method, runs).status == 0
    assert_same_run(runs, whole(method))
    assert len(killed_at) >= least, killed_at
    assert min(killed_at) < UPDATES / 2 <= max(killed_at)


FATAL_CALLS = [
    # The files of a run: config.json, then the log and the checkpoint at every tenth update.
    ("os.replace", 1, processes.die),
    ("os.replace", 4, processes.die),
    ("os.replace", 4, processes.die_after),  # leaves a log that is ahead of the checkpoint
    ("os.replace", 3, processes.die),  # leaves a temporary checkpoint
    ("os.fsync", 5, processes.die),
    ("os.replace", 5, processes.die_after),
    # The results: nothing written, a cut line, a cut line again, lines that are not known to be on the disk.
    ("os.ftruncate", 1, processes.die),
    ("os.write", 1, processes.die_halfway),
    ("os.write", 1, processes.die_halfway),
    ("os.write", 1, processes.die_after),
    ("os.write", 2, processes.die_halfway),
    ("os.ftruncate", 2, processes.die_after),
]


def test_killed_at_the_calls_that_write(whole: Whole, runs: Path) -> None:
    for function, nth, how in FATAL_CALLS:
        answer = run("muni", runs, partial(at_call, function, nth, how))
        assert answer.status == -signal.SIGKILL, (function, nth, answer.err)
        if how is processes.die_halfway:
            assert not (runs / "results.csv").read_bytes().endswith(b"\n")
    assert run("muni", runs).status == 0
    assert_same_run(runs, whole("muni"))


def test_pictures_and_labels_resume_too(runs: Path, tmp_path: Path) -> None:
    def train(folder: Path, function: str, nth: int) -> None:
        words = ["run", "--method", "muni", "--dataset", "polymnist_quadrant_labels", "--task", "uncond", *SMALL[:4]]
        patch = partial(at_call, function, nth, processes.die)
        answer = bench(*words, "--set", "updates=60", "--runs", folder, patches=[*OFTEN, patch])
        assert answer.status == -signal.SIGKILL, answer.err

    train(tmp_path / "whole", SCORE, 1)
    for nth in (14, 3, 23):
        train(runs, UPDATE, nth)
    assert updates_done(runs) == 30
    train(runs, SCORE, 1)
    assert_same_state(checkpoint_of(runs), checkpoint_of(tmp_path / "whole"))


def seed_folders(runs: Path) -> dict[int, Path]:
    """Number of updates -> the checkpoint of the run that asked for so many."""
    found = {path: json.loads((path.parent / "config.json").read_text()) for path in runs.rglob("*.safetensors")}
    return {facts["config"]["updates"]: path for path, facts in found.items()}


@pytest.mark.parametrize(
    ("method", "first", "begins_at"),
    [
        ("muni", ["--set", "updates=60"], 60),
        ("muni", ["--set", "updates=60", "--set", "learning_rate=0.002"], 0),  # another training
        ("shala", ["--set", "updates=60"], 0),  # its second stage begins at half of the whole
    ],
)
def test_a_longer_run_begins_where_a_shorter_one_ended(
    method: str, first: list[str], begins_at: int, whole: Whole, runs: Path
) -> None:
    assert run(method, runs, more=(*first,)).status == 0
    one_more = partial(at_call, UPDATE, UPDATES - begins_at + 1, processes.die)
    assert run(method, runs, one_more).status == 0
    assert_same_state(seed_folders(runs)[UPDATES], checkpoint_of(whole(method)))
    shutil.rmtree(seed_folders(runs)[UPDATES].parent)
    (runs / "results.csv").unlink()
    the_last = partial(at_call, UPDATE, UPDATES - begins_at, processes.die)
    assert run(method, runs, the_last).status == -signal.SIGKILL


def cut_short(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def begun_on_a_gpu(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
    path.write_bytes(save(load_file(path), metadata=facts | {"device": "cuda"}))


def on_other_data(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"identity": "other photographs"}))


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (cut_short, "checkpoint.safetensors"),
        (cut_short, "config.json"),
        (Path.unlink, "train.jsonl"),
        (begun_on_a_gpu, "checkpoint.safetensors"),
        (on_other_data, "config.json"),
    ],
)
def test_a_shorter_run_that_does_not_serve_is_passed_over(
    damage: Callable[[Path], None], name: str, whole: Whole, runs: Path
) -> None:
    assert run("muni", runs, more=("--set", "updates=60")).status == 0
    path = seed_folders(runs)[60].parent / name
    damage(path)
    all_of_it = partial(at_call, UPDATE, UPDATES, processes.die)
    assert run("muni", runs, all_of_it).status == -signal.SIGKILL  # every update is its own
    assert run("muni", runs).status == 0
    shutil.rmtree(path.parent)
    assert_same_state(checkpoint_of(runs), checkpoint_of(whole("muni")))


def test_kill_9_of_the_command_itself(whole: Whole, runs: Path) -> None:
    command = [sys.executable, "-m", "benchmark.cli.commands", *map(str, words("muni", runs))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        assert process.stderr.readline().startswith("muni seed 0: training 50 %")
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (runs / "results.csv").exists()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert_same_numbers(runs, whole("muni"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("function", "nth"), [(UPDATE, 15), (SCORE, 2)])
def test_a_signal_stops_after_a_whole_step_and_the_command_says_how_to_go_on(
    number: int, function: str, nth: int, whole: Whole, runs: Path
) -> None:
    seldom = partial(
        put, "benchmark.engine.train:CHECKPOINT_SECONDS", 20.0
    )  # the signal makes the checkpoint, not the clock
    stop = partial(at_call, function, nth, partial(send, number))
    stopped = run("muni", runs, seldom, stop, more=("--max-time", 60))
    assert stopped.status == 130  # for all that there was a limit
    assert stopped.err.splitlines()[-1] == "bench: stopped; the same command goes on where it stopped"
    cells = {row[2:4] for row in rows(runs)}  # given and want
    assert (updates_done(runs), len(cells)) == ((20, 0) if function == UPDATE else (UPDATES, 2))
    assert run("muni", runs).status == 0
    assert_same_run(runs, whole("muni"))


def out_of_time(original: Callable, *arguments: object, **options: object) -> object:
    """Half a year passes during the call."""
    before = time.monotonic()
    time.monotonic = lambda: before + 1.5e7
    return original(*arguments, **options)


def test_max_time_stops_with_status_0_in_training_and_between_cells(whole: Whole, runs: Path) -> None:
    seldom = partial(put, "benchmark.engine.train:CHECKPOINT_SECONDS", 1e9)
    for function, nth, updates, cells in ((UPDATE, 15, 20, 0), (SCORE, 2, UPDATES, 2)):
        late = partial(at_call, function, nth, out_of_time)
        stopped = run("muni", runs, seldom, late, more=("--max-time", 60))
        assert stopped.status == 0
        assert stopped.err.splitlines()[-1] == "bench: stopped; the same command goes on where it stopped"
        assert (updates_done(runs), len({row[2:4] for row in rows(runs)})) == (updates, cells)
    assert run("muni", runs).status == 0
    assert_same_run(runs, whole("muni"))


MINE = '''
"""A method of the user's."""

from benchmark.api import MethodCard
from models.muni import MUNI

CARD = MethodCard(version=1, label="mine", paper="none")


class Mine(MUNI):
    detach_own = True


METHOD = Mine
'''
COMMENTED = MINE.replace("detach_own = True", "# on every target\n\n    detach_own = (True)").replace("of the", "by a")
CHANGED = MINE.replace("detach_own = True", "detach_own = False")


def test_changed_code_makes_a_new_run_and_a_comment_does_not(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    seen = []
    for source in (MINE, COMMENTED, CHANGED):
        file.write_text(source)
        assert run(file, runs, partial(at_call, UPDATE, 15, partial(send, signal.SIGTERM))).status == 130
        seen.append(sorted(updates for updates in map(updates_done, runs.glob("smoke/gaussian_mixture/mine/*"))))
    assert seen == [[20], [40], [20, 40]]  # begun; gone on; begun anew, with the old run as it was


def test_what_another_process_finished_while_we_waited_is_not_done_again(
    whole: Whole, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone_in = execution._alone_in

    @contextlib.contextmanager
    def after_another_process(directory: Path) -> Iterator[None]:
        shutil.copytree(whole("muni"), runs, dirs_exist_ok=True)
        with alone_in(directory):
            yield

    monkeypatch.setattr(execution, "_alone_in", after_another_process)
    settings = [f"{name}={value}" for name, value in TINY.items()]
    cell = Cell("gaussian_mixture", ("x1",), ("x2",))
    prepared = run_identity.prepare(job_of("muni", "gaussian_mixture", "smoke", 0, [(cell, "swd")]), runs, settings)
    assert len(run_identity.missing(prepared)) == 1
    assert execution.execute([prepared], "cpu", lambda *_: None) == []
    assert rows(runs) == rows(whole("muni"))


def test_fresh_discards_what_the_run_has_with_its_samples(whole: Whole, runs: Path) -> None:
    shutil.copytree(whole("muni"), runs, dirs_exist_ok=True)
    samples = checkpoint_of(runs).parent / "samples"
    samples.mkdir()
    (samples / "nothing_to_x1.png").touch()
    stopped = run("muni", runs, partial(at_call, UPDATE, 15, partial(send, signal.SIGTERM)), more=("--fresh",))
    assert (stopped.status, updates_done(runs), samples.exists()) == (130, 20, False)


def test_a_run_looks_for_shorter_ones_among_those_of_its_seed(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = run_identity.prepare(job_of("muni", "gaussian_mixture", "smoke", 1, []), runs)
    for name in ("seed0-0123456789", "seed1-0123456789", "seed11-0123456789"):
        (prepared.directory.parent / name).mkdir(parents=True)
        (prepared.directory.parent / name / "config.json").touch()
    looked_at = []
    monkeypatch.setattr(execution, "_described", lambda path: looked_at.append(path.parent.name) or {})
    execution._carry_on(prepared, "", "cpu")
    assert looked_at == ["seed1-0123456789"]


TIED = """
import torch
from torch import nn
from benchmark.api import MethodCard

CARD = MethodCard(version=1, label="Tied", paper="none", tasks=("uncond",))


class Tied(nn.Module):
    def __init__(self, modalities, config):
        super().__init__()
        self.modalities = modalities
        self.inner, self.outer, self.free = (nn.Linear(64, 64) for _ in range(3))
        self.outer.weight = self.inner.weight

    def answer(self, x):
        return self.free(self.outer(torch.tanh(self.inner(x))))

    def loss(self, batch, stage, draws):
        x = torch.cat([(batch[m.name] - m.center) / m.scale for m in self.modalities if m.name in batch])
        loss = (self.answer(x) - x).square().mean()
        return loss, {"loss": loss.detach()}

    def sample(self, given, want, rows, draws):
        return {m.name: self.answer(draws.normal(m.name, 64)) * m.scale + m.center for m in self.modalities}


METHOD = Tied
"""


def test_a_method_of_tied_weights_resumes_exactly(tmp_path: Path) -> None:
    path = tmp_path / "tied.py"
    path.write_text(TIED)
    words = ["run", "--method", path, "--task", "uncond", *SMALL, "--runs"]
    answer = bench(*words, tmp_path / "whole", patches=OFTEN)
    assert answer.status == 0, answer.err
    assert bench(*words, tmp_path / "cut", patches=[*OFTEN, partial(at_call, UPDATE, 37, die)]).status != 0
    assert updates_done(tmp_path / "cut") == 30
    assert bench(*words, tmp_path / "cut", patches=OFTEN).status == 0
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    tensors = load_file(checkpoint_of(tmp_path / "whole"))
    for copy in ("model", "average"):  # one weight under two names, which training has moved
        assert torch.equal(tensors[f"{copy}.inner.weight"], tensors[f"{copy}.outer.weight"])
    assert not torch.equal(tensors["model.inner.weight"], tensors["average.inner.weight"])
    assert tensors["optimizer.first"].numel() == 2 * 64 * 64 + 3 * 64  # the tied weight is trained once


@pytest.mark.parametrize("tie", ["nn.Parameter(self.inner.weight.data)", "nn.Parameter(self.inner.weight.data.T)"])
def test_weights_that_share_memory_and_are_no_one_parameter_are_refused(tie: str, tmp_path: Path) -> None:
    """The one buffer of all weights would part them."""
    path = tmp_path / "tied.py"
    path.write_text(TIED.replace("= self.inner.weight\n", f"= {tie}\n"))
    answer = bench("run", "--method", path, "--task", "uncond", *SMALL, "--runs", tmp_path / "runs")
    assert answer.status == 1
    assert "inner.weight and outer.weight share memory" in answer.err
