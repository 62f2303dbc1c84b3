"""A real SLURM of one node: jobs that it queues again, refuses, keeps waiting or drops, and the command that waits."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmark.engine import executors
from benchmark.records import run_identity
from tests.engine import slurm_cluster
from tests.engine.test_executors import until
from tests.helpers import processes
from tests.helpers.processes import SMALL, rows

pytest.importorskip("submitit", reason="jobs need the extra scale")
TABLE = """
id = "one"
title = "One"
dataset = "gaussian_mixture"
methods = ["muni"]
sanity = []
seeds = { smoke = 1 }

[[column]]
header = "uncond."
task = "uncond"
metric = "swd"
digits = 4
"""


@pytest.fixture(scope="module")
def made() -> Iterator[slurm_cluster.Slurm]:
    """A cluster of this module's, or of a worker's that has a part of it."""
    if lacking := slurm_cluster.absent():
        pytest.skip(lacking)
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(slurm_cluster.cluster())
        except AssertionError as error:
            if os.getuid() == 0:
                raise
            pytest.skip(f"not as this user: {error}")  # some versions want root's cgroups
        yield made


@pytest.fixture
def cluster(made: slurm_cluster.Slurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[slurm_cluster.Slurm]:
    """The cluster is the one that commands speak to, and asked often; it is left without jobs."""
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(executors, "POLL_SECONDS", 0.2)
    yield made
    made.clear()


class Run:
    """A run whose numbers are there when its command has written a file."""

    def __init__(self, folder: Path, name: str = "muni") -> None:
        self.directory = folder / name
        self.directory.mkdir()
        self.job = type("Job", (), {"method": name, "seed": 0})

    def lacking(self) -> list[str]:
        return [] if (self.directory / "done").exists() else ["number"]

    @property
    def starts(self) -> int:
        """How often its command began."""
        log = self.directory / "starts"
        return len(log.read_text().splitlines()) if log.exists() else 0

    @property
    def number(self) -> str:
        """Of its job."""
        return json.loads((self.directory / "job.json").read_text())["number"]


# Stops at SIGTERM when it runs for the first time, and is done at the second.
STUBBORN = "trap 'exit 130' TERM; echo >> starts; [ $(wc -l < starts) = 1 ] && { sleep 60 & wait; }; touch done"
QUICK = "echo >> starts; touch done"


@pytest.fixture
def submit(
    cluster: slurm_cluster.Slurm, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Future]]:
    """Carry out a shell command for each run, in a thread that waits as the command `bench` does."""
    monkeypatch.setattr(run_identity, "missing", Run.lacking)
    monkeypatch.setattr(run_identity, "failures", lambda run: [])
    with ThreadPoolExecutor() as threads:

        def begin(script: str, of: list[Run], *options: str) -> Future:
            made = executors.Executor("slurm", runs, options)
            commands = [["bash", "-c", f"cd {run.directory}; {script}"] for run in of]
            arguments: Any = (of, commands, made, 0, lambda *report: None)
            return threads.submit(executors.carry_out, *arguments)

        yield begin
        monkeypatch.setattr(executors, "_going_on", None)  # nobody waits any more, though a test failed


def requeue(cluster: slurm_cluster.Slurm, run: Run) -> None:
    cluster.run("scontrol", "requeue", run.number)


def preempt(cluster: slurm_cluster.Slurm, run: Run) -> None:
    words = ("--parsable", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap", "sleep 0.1")
    cluster.run("sbatch", *words)


def lose_node(cluster: slurm_cluster.Slurm, run: Run) -> None:
    cluster.run("scontrol", "update", f"NodeName={cluster.node}", "State=DOWN", "Reason=test")
    log = cluster.folder / "slurmd.log"  # the node answers and is up again, and may still be at the job's end
    until(lambda: f"[{run.number}.0] done with job" in log.read_text())


@pytest.mark.parametrize("disturb", [requeue, preempt, lose_node])
def test_a_job_that_slurm_queues_again_is_waited_for_and_not_submitted_again(
    disturb: Callable[..., None], cluster: slurm_cluster.Slurm, submit: Callable[..., Future], runs: Path
) -> None:
    run, before = Run(runs), cluster.jobs()
    first = submit(STUBBORN, [run])
    until(lambda: run.starts == 1)
    number = run.number
    disturb(cluster, run)
    until(lambda: cluster.jobs()[number] == "PENDING")
    second = submit(STUBBORN, [run])
    time.sleep(2)
    assert not first.done() and not second.done()
    cluster.run("scontrol", "update", f"JobId={number}", "StartTime=now")  # SLURM has it wait for two minutes
    assert first.result(60) == second.result(60) == []
    assert run.starts == 2
    ours = [job for job in cluster.jobs() if job not in before]
    assert len(ours) == 1 + (disturb is preempt)


def test_a_job_that_is_cancelled_while_it_waits_is_over_where_there_is_no_accounting(
    cluster: slurm_cluster.Slurm, submit: Callable[..., Future], runs: Path
) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        cluster.run("sacct")
    run = Run(runs)
    waits = submit(QUICK, [run], "additional_parameters=begin=now+1hour")
    until(lambda: (run.directory / "job.json").exists())
    cluster.run("scancel", run.number)
    assert waits.result(60) == ["muni seed 0: 1 numbers are missing: SLURM says CANCELLED"]
    assert submit(QUICK, [run]).result(60) == []
    assert run.starts == 1


def test_a_number_that_slurm_does_not_know_or_gave_to_another_is_submitted_anew(
    cluster: slurm_cluster.Slurm, submit: Callable[..., Future], runs: Path
) -> None:
    gone, other = Run(runs, "gone"), Run(runs, "other")
    numbers = {gone: "99999"}
    script = runs / "script.sh"
    script.write_text("#!/bin/bash\nsleep 60\n")
    numbers[other] = cluster.run("sbatch", "--parsable", "--output=/dev/null", script).strip()
    for run, number in numbers.items():
        executors._write_record(run, executors.Job("slurm", number, "here"))  # type: ignore[arg-type]
    assert submit(QUICK, [gone, other]).result(60) == []
    assert gone.starts == other.starts == 1


def test_where_slurm_takes_no_more_jobs_the_others_wait_for_a_place(
    cluster: slurm_cluster.Slurm, submit: Callable[..., Future], runs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    of = [Run(runs, name) for name in ("a", "b")]
    options = ("partition=one", f"teardown=rm {cluster.folder}/taken")
    assert submit(f"sleep 1; {QUICK}", of, *options).result(60) == []
    assert [run.starts for run in of] == [1, 1]
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("bench: --executor slurm: not submitted: ")
    assert "AssocMaxSubmitJobLimit" in line
    assert line.endswith(": 1 runs wait here for a place")


def test_a_job_that_slurm_never_takes_is_one_line(submit: Callable[..., Future], runs: Path) -> None:
    with pytest.raises(executors.Refused, match=r"not submitted: .*nvalid partition"):
        submit(QUICK, [Run(runs)], "partition=none").result(60)


def test_a_job_that_never_starts_shows_why(
    cluster: slurm_cluster.Slurm, submit: Callable[..., Future], runs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, err = Run(runs), ""
    waits = submit(QUICK, [run], "time=8-00:00:00")  # the partition gives seven

    def said() -> bool:
        nonlocal err
        err += capfd.readouterr().err
        return f"bench: SLURM has jobs wait that may never start: PartitionTimeLimit: {cancel}" in err

    until(lambda: (run.directory / "job.json").exists())
    cancel = f"to cancel them: scancel {run.number}\n"
    until(said)
    assert err.count("PartitionTimeLimit") == 1
    cluster.run("scancel", run.number)
    assert waits.result(60) == ["muni seed 0: 1 numbers are missing: SLURM says CANCELLED"]


def test_options_that_are_lists_and_a_number_of_tasks_that_is_inherited(
    cluster: slurm_cluster.Slurm, submit: Callable[..., Future], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "2")  # as within salloc --ntasks=2
    run = Run(runs)
    options = ["setup=export A=1 B='x y'", "setup=export C=$A", "additional_parameters=nice=7", "time=0:30:00"]
    assert submit(f"echo $A $B $C $SLURM_NTASKS > said; {QUICK}", [run], *options).result(60) == []
    assert run.starts == 1
    assert (run.directory / "said").read_text() == "1 x y 1 1\n"
    shown = cluster.run("scontrol", "--oneliner", "show", "jobs")
    assert " Nice=7 " in shown and "TimeLimit=00:30:00" in shown


@pytest.mark.slow
def test_a_run_that_is_queued_again_has_the_numbers_of_one_that_is_not_and_its_table_is_all_csv(
    cluster: slurm_cluster.Slurm, runs: Path, tmp_path: Path
) -> None:
    (tmp_path / "one.toml").write_text(TABLE)
    table = ["reproduce", tmp_path / "one.toml", "--format", "csv", *SMALL, "--runs"]
    here = [partial(processes.put_environment, cluster.environment)]
    with ThreadPoolExecutor() as threads:
        waits = threads.submit(processes.bench, *table, runs, "--executor", "slurm", patches=here)
        whole = processes.bench(*table, tmp_path / "whole")
        until(lambda: waits.done() or list(runs.rglob("lock")))
        (record,) = runs.rglob("job.json")
        number = json.loads(record.read_text())["number"]
        cluster.run("scontrol", "requeue", number)
        until(lambda: cluster.jobs()[number] == "PENDING")
        cluster.run("scontrol", "update", f"JobId={number}", "StartTime=now")
        answer = waits.result()
    assert answer.status == whole.status == 0, answer.err
    assert rows(runs) == rows(tmp_path / "whole")
    (head, *lines) = csv.reader(io.StringIO(answer.out))
    assert head[0] == "table" and {len(line) for line in lines} == {len(head)}
    assert "Next: bench " in answer.err
    assert len(list((runs / ".jobs").glob("*_submitted.pkl"))) == 1
    assert list(runs.rglob("job.json")) == []
