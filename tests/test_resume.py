"""A run that was cut at any moment and started again by the same command equals one that was not."""

from __future__ import annotations

import contextlib
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
from safetensors.torch import load_file

from benchmark import runner
from benchmark.api import Cell
from benchmark.tables import job_of
from tests import processes
from tests.processes import SMALL, TINY, Answer, Signal, bench, checkpoint_of, contents, rows

ROOT = Path(__file__).resolve().parent.parent
UPDATES = TINY["updates"]
UPDATE, SCORE = "benchmark.train:Trainer.update", "benchmark.runner:evaluate_cell"
# Checkpoints at every log line and a log line at every 10 updates, so that a kill finds a run in many states.
OFTEN = (
    partial(processes.put, "benchmark.train:CHECKPOINT_SECONDS", 0.0),
    partial(processes.put, "benchmark.train:LOG_EVERY", 10),
)


def run(
    method: object, runs: Path, *patches: Callable[[], object], by: Signal | None = None, more: tuple = ()
) -> Answer:
    words = ["run", "--method", method, "--task", "one_to_one", "--task", "uncond", *SMALL, "--runs", runs, *more]
    return bench(*words, patches=[*OFTEN, *patches], by=by)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
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


def assert_equal_runs(found: Path, expected: Path) -> None:
    assert rows(found) == rows(expected) != []
    ours, theirs = checkpoint_of(found), checkpoint_of(expected)
    tensors, others = load_file(ours), load_file(theirs)
    assert tensors.keys() == others.keys() and {name.split(".")[0] for name in tensors} == {
        "model",
        "average",
        "optimizer",
    }
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    assert ours.parent.name == theirs.parent.name
    assert (ours.parent / "train.jsonl").read_bytes() == (theirs.parent / "train.jsonl").read_bytes()
    left = {path.name for path in found.rglob("*") if path.is_file()}
    assert left == {"checkpoint.safetensors", "config.json", "lock", "results.csv", "train.jsonl"}


def test_the_comparison_sees_one_changed_bit_and_one_lost_row(whole, tmp_path: Path) -> None:
    copy = tmp_path / "runs"
    shutil.copytree(whole("muni"), copy)
    assert_equal_runs(copy, whole("muni"))
    results = copy / "results.csv"
    lines = results.read_text().splitlines(keepends=True)
    results.write_text("".join(lines[:-1]))
    with pytest.raises(AssertionError):
        assert_equal_runs(copy, whole("muni"))
    results.write_text("".join([lines[0], *reversed(lines[1:])]))  # the order of rows does not count
    assert_equal_runs(copy, whole("muni"))
    content = bytearray(checkpoint_of(copy).read_bytes())
    content[-3] ^= 1
    checkpoint_of(copy).write_bytes(content)
    with pytest.raises(AssertionError):
        assert_equal_runs(copy, whole("muni"))


@pytest.mark.parametrize("method", ["muni", "shala"])
def test_kill_9_at_random_moments(method: str, whole, runs: Path) -> None:
    chance = random.Random(f"kill {method}")
    in_training: list[int] = []
    while (before := updates_done(runs)) < UPDATES:
        assert rows(runs) == []  # no row before the update budget is reached
        moment = Signal(UPDATE, chance.randint(1, 22), chance.uniform(0, 0.02))
        answer = run(method, runs, by=moment)
        assert answer.status == -signal.SIGKILL, answer.err
        assert updates_done(runs) >= before
        in_training.append(before)
    for _ in range(5):
        assert run(method, runs, by=Signal(SCORE, 1, chance.uniform(0, 0.02))).status == -signal.SIGKILL
    assert len(rows(runs)) < len(rows(whole(method)))  # so all five were killed before the end
    assert run(method, runs).status == 0
    assert_equal_runs(runs, whole(method))
    assert len(in_training) >= 8
    # ShaLa-style trains in two stages of half the updates each.
    assert min(sum(done < UPDATES / 2 for done in in_training), sum(done >= UPDATES / 2 for done in in_training)) >= 3


FATAL_CALLS = [
    # The run's files: config.json, then log and checkpoint at every tenth update.
    ("os.replace", 1, processes.die),
    ("os.replace", 4, processes.die),
    ("os.replace", 4, processes.die_after),  # the log is ahead of the checkpoint
    ("os.replace", 3, processes.die),  # a temporary checkpoint is left
    ("os.fsync", 5, processes.die),
    ("os.replace", 5, processes.die_after),
    # The results: no write yet, half of one twice, all of one that is not yet known to be on the disk.
    ("os.ftruncate", 1, processes.die),
    ("os.write", 1, processes.die_halfway),
    ("os.write", 1, processes.die_halfway),
    ("os.write", 1, processes.die_after),
    ("os.write", 2, processes.die_halfway),
    ("os.ftruncate", 2, processes.die_after),
]


def test_death_at_the_calls_that_write(whole, runs: Path) -> None:
    for function, nth, how in FATAL_CALLS:
        if function == "os.write" and updates_done(runs) < UPDATES:
            assert rows(runs) == []
        answer = run("muni", runs, partial(processes.from_call, function, nth, how))
        assert answer.status == -signal.SIGKILL, (function, nth, answer.err)
        if how is processes.die_halfway:
            assert not (runs / "results.csv").read_bytes().endswith(b"\n")
    assert run("muni", runs).status == 0
    assert_equal_runs(runs, whole("muni"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("function", "nth"), [(UPDATE, 15), (SCORE, 2)])
def test_a_signal_stops_at_a_whole_step_and_says_how_to_go_on(
    number: int, function: str, nth: int, whole, runs: Path
) -> None:
    # As set in earnest: it is the signal that makes the checkpoint, not the clock.
    seldom = partial(processes.put, "benchmark.train:CHECKPOINT_SECONDS", 20.0)
    stopped = run("muni", runs, seldom, by=Signal(function, nth, number=number))
    assert stopped.status == 130
    assert stopped.err.splitlines()[-1] == "bench: stopped; the same command goes on where it stopped"
    assert "Traceback" not in stopped.err
    if function == UPDATE:
        assert 10 <= updates_done(runs) < UPDATES and rows(runs) == []
    else:
        assert updates_done(runs) == UPDATES and 0 < len(rows(runs)) < len(rows(whole("muni")))
    assert run("muni", runs).status == 0
    assert_equal_runs(runs, whole("muni"))


def out_of_time(original: Callable, *arguments: object, **options: object) -> object:
    """Do the call, and let a year go by."""
    time.monotonic = lambda: 3e7
    return original(*arguments, **options)


@pytest.mark.parametrize(("function", "nth"), [(UPDATE, 15), (SCORE, 2)])
def test_max_time_stops_with_status_0_and_resumes(function: str, nth: int, whole, runs: Path) -> None:
    for more in ((), ("--fresh",)):
        stopped = run(
            "muni", runs, partial(processes.from_call, function, nth, out_of_time), more=("--max-time", 60, *more)
        )
        assert stopped.status == 0
        assert "the same command goes on where it stopped" in stopped.err
        assert (updates_done(runs), len(rows(runs)) > 0) == ((20, False) if function == UPDATE else (UPDATES, True))
    if function == UPDATE:
        assert run("muni", runs).status == 0
        assert_equal_runs(runs, whole("muni"))
