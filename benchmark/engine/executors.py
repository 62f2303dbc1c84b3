"""Many jobs at once through submitit, on this machine or on a SLURM cluster: each is this command for one run.

A job is a command line, and its answer is the rows that it adds to the results file: nothing that it pickles is read.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.api import UserError, one_line
from benchmark.engine import slurm
from benchmark.engine.slurm import Said, Scheduler
from benchmark.files import write_atomic
from benchmark.progress import Report
from benchmark.records import run_identity
from benchmark.toml_files import known_name

if TYPE_CHECKING:  # a job reads this file for its `Command` alone: torch is left to what that starts
    from benchmark.records.run_identity import Run

RECORD = "job.json"  # in a run's directory while a job of it may go on
PROCESSES = Path("/proc")  # of this machine, where it has that
POLL_SECONDS = 2.0
EXECUTORS = ("local", "slurm")
MINUTES = 365 * 24 * 60  # time limit of a job on this machine
LONGEST_PAUSE = 60.0  # until a cluster that took no more jobs is asked again
PASSING = re.compile("SubmitJob|temporarily", re.IGNORECASE)  # in sbatch's words: it will take the job later
SETTLE_SECONDS = 0.5  # from SIGUSR2 to a job until its command is told by SIGTERM
PATIENCE_SECONDS = 10.0  # from SIGTERM to a job until its command, which may have heard of it too, is told


class Left(Exception):
    """The user no longer waits, and jobs go on; the message says which, and how to see and to cancel them."""


class Refused(UserError):
    """A job is not submitted."""


@dataclass(frozen=True)
class Job:
    """A submitted command: where, its number there, and the machine that it was submitted from."""

    executor: str
    number: str
    host: str

    def said(self, folder: Path) -> Said:
        """SLURM's word on it; nothing of a job of another executor."""
        return _scheduler(folder).said(self.number) if self.executor == "slurm" else Said()

    def going_on(self, folder: Path) -> bool:
        """Whether it waits or runs, as far as can be seen from here."""
        if self.executor == "slurm":
            return not self.said(folder).over
        if self.host != socket.gethostname():
            return False  # the lock of its run directory tells
        return "submitit" in _command_line(self.number)  # the number may be another process's by now


class Command:
    """A command as a job: submitit calls it, and at SIGUSR2 its `checkpoint`, and queues what that answers.

    A second signal makes the command stop without a checkpoint, and SLURM signals this process alone (proctrack/cgroup)
    or the command besides (linuxproc, pgid), SIGTERM and SIGUSR2 perhaps both. So the command hears no SIGUSR2, and
    SIGTERM from here once: at SIGUSR2 soon, and after a SIGTERM only where that has not ended it.
    """

    def __init__(self, words: Sequence[str], directory: str, environment: Mapping[str, str], grace: float) -> None:
        """`environment`: what differs from the job's; `grace`: seconds that the command has to stop at SIGUSR2."""
        self.words, self.directory, self.environment, self.grace = words, directory, environment, grace
        self._process: subprocess.Popen[bytes] | None = None
        self._due: dict[signal.Signals, float] = {}  # signals to the command, by the clock

    def __call__(self) -> None:
        """Run the command to its end, its output among the job's. Raises CalledProcessError where it fails."""
        signal.signal(signal.SIGTERM, lambda number, frame: self._wait_for_its_own())
        signal.signal(signal.SIGURG, lambda number, frame: None)  # see `checkpoint`
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
            # This may run before the handler of a SIGTERM that came first: Python calls handlers by number, inside one
            # the others when another signal comes, and a thread may hear one a moment later than another.
            signal.raise_signal(signal.SIGURG)
            self._send(signal.SIGTERM, SETTLE_SECONDS)
            self._send(signal.SIGKILL, self.grace)
            self._wait(self._process)
        return DelayedSubmission(Command(self.words, self.directory, self.environment, self.grace))

    def _wait_for_its_own(self) -> None:
        """The command may have had a SIGTERM as this process has."""
        if self._due.get(signal.SIGTERM) != math.inf:
            self._due[signal.SIGTERM] = time.monotonic() + PATIENCE_SECONDS

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

        if parameters and name != "slurm":
            raise UserError("--slurm goes with --executor slurm")
        known_name(name, EXECUTORS, "executor", "--executor")
        self.name, self.folder = name, runs.resolve() / ".jobs"
        _quiet()
        asked = slurm.options(parameters, submitit.SlurmExecutor._valid_parameters() - {"job_name"})
        self._grace, self._suffix = asked.grace, "out" if asked.parameters.get("stderr_to_stdout") else "err"
        try:
            if name == "slurm":
                self._submitit: Any = submitit.SlurmExecutor(self.folder)
                self._submitit.update_parameters(**asked.parameters)
                if shutil.which("squeue") is None:
                    raise UserError("--executor slurm: no squeue here, which says whether a job goes on")
            else:
                _command_line(str(os.getpid()))  # a machine that cannot say is refused before a job is submitted
                self._submitit = submitit.LocalExecutor(self.folder)
                delay = asked.parameters["signal_delay_s"]
                self._submitit.update_parameters(timeout_min=MINUTES, signal_delay_s=delay)
        except RuntimeError as error:
            raise UserError(f"--executor {name}: {one_line(error)}") from None
        except (TypeError, ValueError) as error:
            raise UserError(f"--slurm: {one_line(error)}") from None
        except OSError as error:
            raise UserError(f"{self.folder}: cannot write there ({error.strerror}): name another --runs") from None

    def at_once(self) -> int:
        """How many jobs may be at work or queued together, where nobody says."""
        return sys.maxsize if self.name == "slurm" else len(_gpus()) or max(1, os.cpu_count() or 1)

    def submit(self, command: Sequence[str], called: str, slot: int) -> Job:
        """Start a command, or queue it, out of reach of Ctrl-C; on this machine the slots share out the GPUs.

        Raises Refused where the cluster does not take it. What of that a busy cluster has taken all the same, and did
        not say in time, ends by itself: submitit gives a job its command only when it has the job's number.
        """
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        environment = {}
        if self.name == "slurm":
            self._submitit.update_parameters(job_name=called)
        elif gpus := _gpus():
            environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # where submitit repeats what it raises
                job = self._submitit.submit(Command(list(command), os.getcwd(), environment, self._grace))
        except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError, OSError) as error:
            raise Refused(f"--executor {self.name}: not submitted: {one_line(error)}") from None
        if self.name == "slurm":
            _scheduler(self.folder).watch([job.job_id])
        return Job(self.name, job.job_id, socket.gethostname())

    def log(self, job: Job) -> Path:
        """What the job says."""
        return self.folder / f"{job.number}_0_log.{self._suffix}"


def carry_out(
    runs: Sequence[Run], commands: Sequence[Sequence[str]], executor: Executor, most: int, report: Report
) -> list[str]:
    """Submit a command for each run that lacks numbers, `most` at a time or else `at_once`; wait until none goes on. A
    line for each error.

    A run that goes on already is waited for; one whose job ends without all its numbers is an error, and not submitted
    again. Where the cluster takes no more jobs now, the others wait for a place. Raises Left on Ctrl-C, and UserError
    where nothing can be submitted.
    """

    waiting = [(run, command) for run, command in zip(runs, commands, strict=True) if run_identity.missing(run)]
    errors: list[str] = []
    most = most or executor.at_once()
    going: dict[int, Run] = {}  # by slot
    _watch(runs, executor.folder)
    lacking = {run.directory for run, _ in waiting}
    _drop_stale([run for run in runs if run.directory not in lacking], executor.folder)
    found = [pair for pair in waiting if _going_on(pair[0], executor.folder)]
    for slot, pair in enumerate(found):
        going[slot] = pair[0]
        waiting.remove(pair)
    told: set[str] = set()
    started = bool(found)
    again, pause = 0.0, POLL_SECONDS  # when a cluster that is full is asked again
    try:
        while waiting or going:
            for slot, run in list(going.items()):
                if not _going_on(run, executor.folder):
                    errors += _faults(going.pop(slot), executor)
                    again = 0.0
            while waiting and len(going) < most and time.monotonic() >= again:
                run, command = waiting[0]
                slot = next(number for number in itertools.count() if number not in going)
                try:
                    _submit(run, command, slot, executor)
                except Refused as refusal:
                    if not going and not PASSING.search(str(refusal)):
                        if not started:
                            raise
                        return [*errors, f"{len(waiting)} runs: {refusal}"]
                    _tell(f"{refusal}: {len(waiting)} runs wait here for a place", told, str(refusal))
                    again, pause = time.monotonic() + pause, min(2 * pause, LONGEST_PAUSE)
                else:
                    going[slot], pause, started = waiting.pop(0)[0], POLL_SECONDS, True
            done = len(runs) - len(waiting) - len(going)
            report("jobs", done, len(runs), f"{_at_work(going.values(), executor, told)}, {len(waiting)} to submit")
            if going or waiting:
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        raise Left(_left(list(going.values()), len(waiting), executor)) from None
    return errors


def _submit(run: Run, command: Sequence[str], slot: int, executor: Executor) -> None:
    """Ctrl-C comes before or after: a job without its record would be submitted once more."""
    with _interrupts_later():
        _write_record(run, executor.submit(command, f"{run.job.method}-seed{run.job.seed}", slot))


def _watch(runs: Sequence[Run], folder: Path) -> None:
    """Ask SLURM once about all jobs that there may be."""
    if numbers := [job.number for run in runs if (job := _record(run)) and job.executor == "slurm"]:
        _scheduler(folder).watch(numbers)


def _drop_stale(complete: Sequence[Run], folder: Path) -> None:
    """Remove the records of jobs that ended with all their numbers while nobody waited."""
    for run in complete:
        if (job := _record(run)) and not job.going_on(folder):
            (run.directory / RECORD).unlink(missing_ok=True)


def _at_work(going: Collection[Run], executor: Executor, told: set[str]) -> str:
    """How many jobs go on, and why they wait where SLURM says so; says once which may never start."""
    reasons: dict[str, list[str]] = {}
    stuck: dict[str, list[str]] = {}
    for run in going:
        if (job := _record(run)) and (said := job.said(executor.folder)).state == "PENDING":
            reasons.setdefault(said.reason, []).append(job.number)
            if said.stuck:
                stuck.setdefault(said.stuck, []).append(job.number)
    for reason, jobs in stuck.items():
        numbers = " ".join(jobs)
        _tell(f"SLURM has jobs wait that may never start: {reason}: to cancel them: scancel {numbers}", told, reason)
    if not reasons:
        return f"{len(going)} at work or queued"
    queued = sum(map(len, reasons.values()))
    return f"{len(going) - queued} at work, {queued} queued ({', '.join(sorted(reasons))})"


def _tell(line: str, told: set[str], what: str = "") -> None:
    """Once, above the progress."""
    if (what or line) not in told:
        told.add(what or line)
        print(f"bench: {line}", file=sys.stderr, flush=True)


def _faults(run: Run, executor: Executor) -> list[str]:
    """A line where a run whose job is over lacks rows: with what the rows themselves say, or SLURM of the job."""

    job = _record(run)
    (run.directory / RECORD).unlink(missing_ok=True)
    if not (lacking := run_identity.missing(run)):
        return []
    state = job.said(executor.folder).broken_off if job else ""
    why = f"SLURM says {state}" if state else "; ".join(run_identity.failures(run))
    said = f": see {executor.log(job)}" if job and executor.log(job).exists() else ""
    return [f"{run.job.method} seed {run.job.seed}: {len(lacking)} numbers are missing{f': {why}' * bool(why)}{said}"]


def _going_on(run: Run, folder: Path) -> bool:
    """Whether somebody works on the run, or a job of it waits to."""
    from benchmark.engine import execution

    job = _record(run)
    if job is not None and job.going_on(folder):  # asked first: to look at the lock is to hold it for a moment
        return True
    return bool(execution.holder(run.directory))


def _record(run: Run) -> Job | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Job(**json.loads((run.directory / RECORD).read_text(encoding="utf-8")))
    return None


def _write_record(run: Run, job: Job) -> None:
    write_atomic(run.directory / RECORD, json.dumps(vars(job)).encode())


def _left(going: Sequence[Run], waiting: int, executor: Executor) -> str:
    """One line: what goes on without us, and how to see and to cancel it."""
    from benchmark.engine import execution

    jobs = [job.number for run in going if (job := _record(run))]
    holders = [number for run in going if (number := execution.holder(run.directory))]
    cancel = f"scancel {' '.join(jobs)}" if executor.name == "slurm" else f"kill {' '.join(holders)}"
    queued = f"; {waiting} runs are not submitted" if waiting else ""
    return (
        f"jobs go on: {executor.name} {', '.join(jobs)}{queued}; the same command goes on waiting for them; what they "
        f"say: {executor.folder}/*.err; to stop them: {cancel}"
    )


@functools.cache
def _scheduler(folder: Path) -> Scheduler:
    """One object a folder: it asks the cluster about all jobs at once."""
    return Scheduler(folder)


def _quiet() -> None:
    """Have submitit's log say only warnings, and on standard error: the other stream is for tables."""
    from submitit.core.logger import get_logger

    log = get_logger()
    log.handlers = [each for each in log.handlers if each.get_name() != "submitit_out"]


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
def _interrupts_later() -> Iterator[None]:
    """Ctrl-C is heard afterwards; what is started inside never hears it, as under nohup."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
