"""Many jobs at once through submitit, on this machine or on a SLURM cluster: each is this command for one run.

A job is a command line, and its answer is the rows that it adds to the results file: nothing that it pickles is read.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.api import UserError, one_line
from benchmark.files import write_atomic
from benchmark.progress import Report
from benchmark.strict import known_name

if TYPE_CHECKING:  # a job reads this file for its `Command` alone: torch is left to what that starts
    from benchmark.runner import Run

RECORD = "job.json"  # in a run's directory while a job of it may go on
PROCESSES = Path("/proc")  # of this machine, where it has that
POLL_SECONDS = 2.0
MINUTES = {"local": 365 * 24 * 60, "slurm": 24 * 60}  # a job's time limit, where --slurm time= does not say
GRACE_SECONDS = 90  # from SIGUSR2 to the end of that, where --slurm signal_delay_s= does not say
QUEUE_SECONDS = 15.0  # of those, what it takes to queue the job again
PATIENCE_SECONDS = 10.0  # from SIGTERM to a job until its command, which may have heard of it too, is told


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
        return "submitit" in _command_line(self.number)  # the number may be another process's by now


class Command:
    """A command as a job: submitit calls it, and at SIGUSR2 its `checkpoint`, and queues what that answers.

    A second signal makes the command stop without a checkpoint, and SLURM signals this process alone (proctrack/cgroup)
    or the command besides (linuxproc, pgid), SIGTERM and SIGUSR2 perhaps both. So the command hears no SIGUSR2, and
    SIGTERM from here once: at SIGUSR2 at once, and after a SIGTERM only where that has not ended it.
    """

    def __init__(self, words: Sequence[str], directory: str, environment: Mapping[str, str], grace: float) -> None:
        """`environment`: what differs from the job's; `grace`: seconds that the command has to stop at SIGUSR2."""
        self.words, self.directory, self.environment, self.grace = words, directory, environment, grace
        self._process: subprocess.Popen[bytes] | None = None
        self._due: dict[signal.Signals, float] = {}  # signals to the command, by the clock

    def __call__(self) -> None:
        """Run the command to its end, its output among the job's. Raises CalledProcessError where it fails."""
        signal.signal(signal.SIGTERM, lambda number, frame: self._send(signal.SIGTERM, PATIENCE_SECONDS))
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})  # which the command inherits
        try:
            environment = os.environ | self.environment
            self._process = subprocess.Popen(self.words, cwd=self.directory, env=environment)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if status := self._wait(self._process):
            raise subprocess.CalledProcessError(status, self.words)

    def checkpoint(self) -> Any:
        """Have the command stop, as it does with a checkpoint, or kill it when its time is over; the same job anew."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._send(signal.SIGTERM, 0.0)
            self._send(signal.SIGKILL, self.grace)
            self._wait(self._process)
        return DelayedSubmission(Command(self.words, self.directory, self.environment, self.grace))

    def _send(self, number: signal.Signals, after: float) -> None:
        """Have `_wait` send a signal after so many seconds; each is sent once."""
        self._due.setdefault(number, time.monotonic() + after)

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        """The command's exit status. Not by Popen, whose lock the wait may hold that `checkpoint` interrupts."""
        with contextlib.suppress(ChildProcessError):  # that wait may have had the answer
            while (ended := os.waitpid(process.pid, os.WNOHANG)) == (0, 0):
                for number, due in list(self._due.items()):
                    if time.monotonic() >= due:
                        self._due[number] = math.inf
                        os.kill(process.pid, number)
                time.sleep(0.1)
            process.returncode = os.waitstatus_to_exitcode(ended[1])
        return process.returncode


class Executor:
    """Submits commands to submitit, which keeps its files and the jobs' output in a folder of the runs'."""

    def __init__(self, name: str, runs: Path, parameters: Sequence[str] = ()) -> None:
        """Raises UserError for what submitit or this machine does not know."""
        import submitit

        self.name, self.folder = name, runs.resolve() / ".jobs"
        given = {"signal_delay_s": GRACE_SECONDS, **dict(_parameter(each) for each in parameters)}
        if parameters and name != "slurm":
            raise UserError("--slurm goes with --executor slurm")
        known_name(name, MINUTES, "executor", "--executor")
        try:
            self._grace = max(0.0, float(given["signal_delay_s"]) - QUEUE_SECONDS)
            if name == "slurm":
                self._submitit: Any = submitit.SlurmExecutor(self.folder)
                self._submitit.update_parameters(**{"time": MINUTES[name], **given})
            else:
                _command_line(str(os.getpid()))  # a machine that cannot say is refused before a job is submitted
                self._submitit = submitit.LocalExecutor(self.folder)
                self._submitit.update_parameters(timeout_min=MINUTES[name], **given)
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

        environment = {}
        if self.name == "slurm":
            self._submitit.update_parameters(job_name=called)
        elif gpus := _gpus():
            environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        try:
            with _without_interrupts():
                job = self._submitit.submit(Command(list(command), os.getcwd(), environment, self._grace))
        except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError, OSError) as error:
            raise UserError(f"--executor {self.name}: not submitted: {one_line(error)}") from None
        return Job(self.name, job.job_id, socket.gethostname())

    def log(self, job: Job) -> Path:
        """What the job says."""
        return self.folder / f"{job.number}_0_log.err"


def carry_out(
    runs: Sequence[Run], commands: Sequence[Sequence[str]], executor: Executor, most: int, report: Report
) -> list[str]:
    """Submit a command for each run that lacks numbers, `most` at a time or else `at_once`; wait until none goes on. A
    line for each error.

    A run that goes on already is waited for; one whose job ends without all its numbers is an error, and not submitted
    again. Raises Left on Ctrl-C, and UserError where nothing can be submitted.
    """
    from benchmark import runner

    waiting = [(run, command) for run, command in zip(runs, commands, strict=True) if runner.missing(run)]
    errors: list[str] = []
    most = most or executor.at_once()
    going: dict[int, Run] = {}  # by slot
    found = [pair for pair in waiting if _going_on(pair[0], executor.folder)]
    for slot, pair in enumerate(found):
        going[slot] = pair[0]
        waiting.remove(pair)
    try:
        while waiting or going:
            for slot, run in list(going.items()):
                if not _going_on(run, executor.folder):
                    errors += _faults(going.pop(slot), executor)
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
    return errors


def _faults(run: Run, executor: Executor) -> list[str]:
    """A line where a run whose job is over lacks rows."""
    from benchmark import runner

    job = _record(run)
    (run.directory / RECORD).unlink(missing_ok=True)
    if not (lacking := runner.missing(run)):
        return []
    said = f": see {executor.log(job)}" if job else ""
    return [f"{run.job.method} seed {run.job.seed}: {len(lacking)} numbers are missing{said}"]


def _going_on(run: Run, folder: Path) -> bool:
    """Whether somebody works on the run, or a job of it waits to."""
    from benchmark import runner

    job = _record(run)
    if job is not None and job.going_on(folder):  # asked first: to look at the lock is to hold it for a moment
        return True
    return bool(runner.holder(run.directory))


def _record(run: Run) -> Job | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Job(**json.loads((run.directory / RECORD).read_text(encoding="utf-8")))
    return None


def _write_record(run: Run, job: Job) -> None:
    write_atomic(run.directory / RECORD, json.dumps(vars(job)).encode())


def _left(going: Sequence[Run], waiting: int, executor: Executor) -> str:
    """One line: what goes on without us, and how to see and to cancel it."""
    from benchmark import runner

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


def _command_line(number: str) -> str:
    """Of a process; empty where there is none. Raises UserError where this machine cannot say."""
    if (PROCESSES / "self").exists():
        with contextlib.suppress(OSError):
            return (PROCESSES / number / "cmdline").read_text(encoding="utf-8", errors="replace")
        return ""
    try:
        shown = subprocess.run(["ps", "-ww", "-o", "args=", "-p", number], capture_output=True, text=True)
    except OSError:
        raise UserError(
            f"--executor local: whether a job goes on is asked of {PROCESSES} or of ps, and neither is here: install ps"
        ) from None
    return shown.stdout


def _gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs that jobs on this machine may take: numbers, GPU-... or MIG-..."""
    import torch

    seen = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:seen] if named else [str(number) for number in range(seen)]


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """What is started inside ignores Ctrl-C for good, as under nohup."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
