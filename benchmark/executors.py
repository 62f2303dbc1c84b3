"""Many jobs at once through submitit, on this machine or on a SLURM cluster: each is this command for one run.

A job is a command line, and its answer is the rows that it adds to the results file: nothing that it pickles is read.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark import runner
from benchmark.api import UserError, one_line
from benchmark.files import write_atomic
from benchmark.progress import Report
from benchmark.runner import Outcome, Run

RECORD = "job.json"  # in a run's directory while a job of it may go on
POLL_SECONDS = 2.0
MINUTES = {"local": 365 * 24 * 60, "slurm": 24 * 60}  # a job's time limit, where --slurm time= does not say


class Left(Exception):
    """The user no longer waits, and jobs go on; the message says which, and how to see and to cancel them."""


@dataclass(frozen=True)
class Job:
    """A submitted command: where, its number there, and the machine that it was submitted from."""

    executor: str
    number: str
    host: str

    def going_on(self, folder: Path) -> bool:
        """Whether it waits or runs, as far as can be seen from here."""
        if self.executor == "slurm":
            return not _slurm_job(folder, self.number).done()
        if self.host != socket.gethostname():
            return False  # the lock of its run directory tells
        shown = subprocess.run(["ps", "-ww", "-o", "args=", "-p", self.number], capture_output=True, text=True)
        return "submitit" in shown.stdout  # the number may be another process's by now


class Executor:
    """Submits commands to submitit, which keeps its files and the jobs' output in a folder of the runs'."""

    def __init__(self, name: str, runs: Path, parameters: Sequence[str] = ()) -> None:
        """Raises UserError for what submitit or this machine does not know."""
        import submitit

        self.name, self.folder = name, runs.resolve() / ".jobs"
        given = dict(_parameter(each) for each in parameters)
        if given and name != "slurm":
            raise UserError("--slurm goes with --executor slurm")
        try:
            if name == "slurm":
                self._submitit: Any = submitit.SlurmExecutor(self.folder)
                self._submitit.update_parameters(**{"time": MINUTES[name], **given})
            else:
                self._submitit = submitit.LocalExecutor(self.folder)
                self._submitit.update_parameters(timeout_min=MINUTES[name])
        except RuntimeError as error:
            raise UserError(f"--executor {name}: {one_line(error)}") from None
        except ValueError as error:
            raise UserError(f"--slurm: {one_line(error)}") from None
        except OSError as error:
            raise UserError(f"{self.folder}: cannot write there ({error.strerror}): name another --runs") from None

    def at_once(self) -> int:
        """How many jobs may be at work or queued together, where nobody says."""
        return sys.maxsize if self.name == "slurm" else len(_gpus()) or max(1, os.cpu_count() or 1)

    def submit(self, command: Sequence[str], called: str, slot: int) -> Job:
        """Start a command, or queue it, out of reach of Ctrl-C; on this machine the slots share out the GPUs.

        Raises UserError where the cluster refuses it.
        """
        from submitit.core.utils import FailedJobError, FailedSubmissionError
        from submitit.helpers import CommandFunction

        if self.name == "slurm":
            self._submitit.update_parameters(job_name=called)
        elif gpus := _gpus():
            self._submitit.update_parameters(gpus_per_node=1, visible_gpus=(gpus[slot % len(gpus)],))
        try:
            with _without_interrupts():
                job = self._submitit.submit(CommandFunction(list(command), cwd=os.getcwd()))
        except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError, OSError) as error:
            raise UserError(f"--executor {self.name}: not submitted: {one_line(error)}") from None
        return Job(self.name, job.job_id, socket.gethostname())

    def log(self, job: Job) -> Path:
        """What the job says."""
        return self.folder / f"{job.number}_0_log.err"


def carry_out(
    runs: Sequence[Run], commands: Sequence[Sequence[str]], executor: Executor, most: int, report: Report
) -> Outcome:
    """Submit a command for each run that lacks numbers, `most` at a time or else `at_once`; wait until none goes on.

    A run that goes on already is waited for; one whose job ends without all its numbers is an error, and not submitted
    again. Raises Left on Ctrl-C, and UserError where nothing can be submitted.
    """
    waiting = [(run, command) for run, command in zip(runs, commands, strict=True) if runner.missing(run)]
    outcome, most = Outcome(finished=len(runs) - len(waiting)), most or executor.at_once()
    going: dict[int, Run] = {}  # by slot
    found = [pair for pair in waiting if _going_on(pair[0], executor.folder)]
    for slot, pair in enumerate(found):
        going[slot] = pair[0]
        waiting.remove(pair)
    try:
        while waiting or going:
            for slot, run in list(going.items()):
                if not _going_on(run, executor.folder):
                    _judge(going.pop(slot), executor, outcome)
            while waiting and len(going) < most:
                run, command = waiting.pop(0)
                slot = next(number for number in itertools.count() if number not in going)
                job = executor.submit(command, f"{run.job.method}-seed{run.job.seed}", slot)
                _write_record(run, job)
                going[slot] = run
            done = len(runs) - len(waiting) - len(going)
            report("jobs", done, len(runs), f"{len(going)} at work or queued, {len(waiting)} to submit")
            if going:
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        raise Left(_left(list(going.values()), len(waiting), executor)) from None
    return outcome


def _judge(run: Run, executor: Executor, outcome: Outcome) -> None:
    """Count a run whose job is over by its rows."""
    job = _record(run)
    (run.directory / RECORD).unlink(missing_ok=True)
    if not (lacking := runner.missing(run)):
        outcome.finished += 1
        return
    said = f": see {executor.log(job)}" if job else ""
    outcome.errors.append(f"{run.job.method} seed {run.job.seed}: {len(lacking)} numbers are missing{said}")


def _going_on(run: Run, folder: Path) -> bool:
    """Whether somebody works on the run, or a job of it waits to."""
    job = _record(run)
    if job is not None and job.going_on(folder):  # asked first: to look at the lock is to hold it for a moment
        return True
    return bool(runner.holder(run.directory))


def _record(run: Run) -> Job | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Job(**json.loads((run.directory / RECORD).read_text()))
    return None


def _write_record(run: Run, job: Job) -> None:
    write_atomic(run.directory / RECORD, json.dumps(vars(job)).encode())


def _left(going: Sequence[Run], waiting: int, executor: Executor) -> str:
    """One line: what goes on without us, and how to see and to cancel it."""
    jobs = [job.number for run in going if (job := _record(run))]
    holders = [number for run in going if (number := runner.holder(run.directory))]
    cancel = f"scancel {' '.join(jobs)}" if executor.name == "slurm" else f"kill {' '.join(holders)}"
    queued = f"; {waiting} runs are not submitted" if waiting else ""
    return (
        f"jobs go on: {executor.name} {', '.join(jobs)}{queued}; the same command goes on waiting for them; what they "
        f"say: {executor.folder}/*.err; to stop them: {cancel}"
    )


@functools.cache
def _slurm_job(folder: Path, number: str) -> Any:
    """One object a job: it asks the cluster seldom."""
    from submitit import SlurmJob

    return SlurmJob(folder, number)


def _parameter(text: str) -> tuple[str, Any]:
    """The text "time=60" as ("time", 60). Raises UserError for anything that is not key=value."""
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise UserError(f"--slurm {text}: write key=value, as sbatch has it: --slurm partition=gpu --slurm time=600")
    return key, int(value) if value.isdecimal() else value


def _gpus() -> list[int]:
    """The numbers of the GPUs that jobs on this machine may take."""
    import torch

    if named := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return [int(number) for number in named.split(",") if number.isdecimal()]
    return list(range(torch.cuda.device_count()))


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """What is started inside ignores Ctrl-C for good, as under nohup."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
