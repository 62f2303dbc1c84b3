"""SLURM's own word on jobs, and the options that it takes for them.

A job goes on for as long as SLURM says so: a file that it left behind may be older than SLURM's decision to queue it
again. Where there is no accounting, `squeue` and `scontrol` still answer.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.api import UserError, one_line
from benchmark.config import nearest

MINUTES = 24 * 60  # a job's time limit, where `time` does not say
GRACE_SECONDS = 90  # from SIGUSR2 to the end of that, at most, where `signal_delay_s` does not say
QUEUE_SECONDS = 15.0  # of those, what it takes to queue the job again
ANSWER_SECONDS = 120.0  # until a command of SLURM's is given up
LONGEST_PAUSE = 30.0  # between two questions to it
LISTS = ("setup", "teardown", "srun_args")  # of which each may be given several times
TASKS = ("nodes", "ntasks_per_node", "ntasks", "ntasks_per_gpu", "array")  # which have a job run its command repeatedly
BROKEN_OFF = {"BOOT_FAIL", "CANCELLED", "DEADLINE", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"}
OVER = {"COMPLETED", "FAILED", *BROKEN_OFF}
USUAL = {"", "None", "Priority", "Resources", "BeginTime", "Dependency", "Cleaning", "Prolog"}  # reasons of waiting


@dataclass(frozen=True)
class Said:
    """A job's state in SLURM's words, and why it waits; empty where SLURM does not answer."""

    state: str = ""
    reason: str = ""
    known: bool = True  # False: SLURM answers, and has no such job

    @property
    def over(self) -> bool:
        return self.state in OVER or not self.known

    @property
    def broken_off(self) -> str:
        """How it ended where that was not by itself."""
        return self.state if self.state in BROKEN_OFF else ""

    @property
    def stuck(self) -> str:
        """The reason why it waits, where it may wait for ever."""
        return self.reason if self.state == "PENDING" and self.reason not in USUAL else ""


class Scheduler:
    """Asks about all jobs at once, and the less often the longer nothing has changed."""

    def __init__(self, folder: Path) -> None:
        """`folder`: where submitit keeps the jobs' scripts: a number whose script is not there is another's by now."""
        self._folder = folder
        self._said: dict[str, Said] = {}
        self._due = self._mute = False
        self._asked = self._changed = time.monotonic()

    def watch(self, numbers: Iterable[str]) -> None:
        """Ask about these besides."""
        if new := [number for number in numbers if number not in self._said]:
            self._said |= dict.fromkeys(new, Said())
            self._due = True

    def said(self, number: str) -> Said:
        """What was last said of a job."""
        self.watch([number])
        if self._due or (not self._said[number].over and time.monotonic() >= self._asked + self._pause()):
            self._ask()
        return self._said[number]

    def _pause(self) -> float:
        return min(LONGEST_PAUSE, (self._asked - self._changed) / 10)

    def _ask(self) -> None:
        asked = [number for number, said in self._said.items() if not said.over]
        found = _queued(asked, self._folder) if asked else {}
        self._asked, self._due = time.monotonic(), False
        if isinstance(found, str):
            if not self._mute:
                print(f"bench: squeue does not answer, which is asked again: {found}", file=sys.stderr, flush=True)
            self._mute = True
            return
        self._mute = False
        for number in asked:
            said = found[number] if number in found else _shown(number)
            if said != self._said[number]:
                self._said[number], self._changed = said, self._asked


def _queued(numbers: Sequence[str], folder: Path) -> dict[str, Said] | str:
    """What squeue says of jobs, but for those that it does not know; or why it does not answer."""
    asked = _run("squeue", "--noheader", "--states=all", "--format=%i|%T|%r|%o", f"--jobs={','.join(numbers)}")
    if asked.returncode:
        return {} if _no_such_job(asked) else one_line(asked.stderr) or f"status {asked.returncode}"
    found = {}
    for line in asked.stdout.splitlines():
        number, state, reason, script = (*line.split("|", 3), "", "", "")[:4]
        found[number] = Said(state, reason) if _is_ours(script, folder) else Said(known=False)
    return found


def _is_ours(script: str, folder: Path) -> bool:
    """Whether a job's script is one of the folder's, by its name alone: another machine may call the folder otherwise.

    SLURM gives a number again where it has lost its state.
    """
    name = Path(script).name
    return not name or name == "(null)" or (folder / name).is_symlink() or (folder / name).exists()


def _shown(number: str) -> Said:
    """Of a job that squeue does not know: a squeue may be some seconds behind."""
    shown = _run("scontrol", "--oneliner", "show", "job", number)
    if not shown.returncode:
        facts = dict(re.findall(r"(JobState|Reason)=(\S+)", shown.stdout))
        return Said(facts.get("JobState", ""), facts.get("Reason", ""))
    if not _no_such_job(shown):
        return Said()
    kept = _run("sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={number}")
    states = kept.stdout.split() if not kept.returncode else []
    return Said(states[0] if states and states[0] in OVER else "", known=False)


def _no_such_job(asked: subprocess.CompletedProcess[str]) -> bool:
    return "invalid job id" in asked.stderr.lower()


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    """What a command of SLURM's answers, without the user's own filters (SQUEUE_PARTITION)."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SACCT_"))}
    try:
        return subprocess.run(
            words,
            env=environment | {"LC_ALL": "C"},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_SECONDS,
            start_new_session=True,  # Ctrl-C is for us
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(words, 127, "", str(error))


# Options of jobs.


@dataclass(frozen=True)
class Options:
    """What `--slurm` says, as submitit has it, and how long a job's command has to stop at SIGUSR2."""

    parameters: Mapping[str, Any]
    grace: float


def options(texts: Sequence[str], known: Collection[str]) -> Options:
    """Of texts "key=value", where submitit has the names `known`. Raises UserError for what it or a job cannot do."""
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise UserError(f"--slurm {text}: write key=value, as sbatch has it: --slurm partition=gpu")
        _take(found, key, value, known)
    minutes = _minutes(str(found.get("time", MINUTES)))
    delay = _delay(found.get("signal_delay_s"), minutes)
    found |= {"time": minutes, "signal_delay_s": delay}
    found["srun_args"] = [*found.get("srun_args", []), "--ntasks=1"]  # whatever SLURM_NTASKS says here, as in salloc
    return Options(found, delay - min(QUEUE_SECONDS, delay / 3))


def _take(found: dict[str, Any], key: str, value: str, known: Collection[str]) -> None:
    if key == "additional_parameters":
        name, equals, said = value.partition("=")
        name = name.lstrip("-").replace("-", "_")
        if name in known:
            raise UserError(f"--slurm {key}={value}: say it directly: --slurm {name}={said or 'true'}")
        _refuse_tasks(name, said, f"--slurm {key}={value}")
        found.setdefault(key, {})[name] = _value(said) if equals else True
        return
    if key not in known:
        raise UserError(
            f"--slurm {key}: not a parameter{nearest(key, known)}; parameters are {', '.join(sorted(known))}; another "
            f"option of sbatch is --slurm additional_parameters={key}={value}"
        )
    if key in LISTS:
        found.setdefault(key, []).append(value)
    elif key in found:
        raise UserError(f"--slurm {key}={value}: {key} is given twice; repeatable are {', '.join(LISTS)}")
    else:
        _refuse_tasks(key, value, f"--slurm {key}={value}")
        found[key] = _value(value)


def _refuse_tasks(key: str, value: str, where: str) -> None:
    if key in TASKS and value != "1":
        raise UserError(f"{where}: a job is one process, and this would start several of it: leave it out")


def _value(text: str) -> int | bool | str:
    return {"true": True, "false": False}.get(text.lower(), int(text) if text.isdecimal() else text)


def _minutes(text: str) -> int:
    """SLURM's ways to write a time, of which submitit reads minutes alone: 90, 90:00, 1:30:00, 1-12, 1-12:30:00."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match:
        days, *parts = (int(part or 0) for part in match.groups())
        colons = text.count(":")
        hours, minutes, seconds = parts if match[1] or colons == 2 else (0, *parts[:2])
        whole = ((24 * days + hours) * 60 + minutes) + (seconds > 0)
        if whole:
            return whole
    raise UserError(f"--slurm time={text}: write minutes from 1 on, hours:minutes:seconds or days-hours")


def _delay(text: Any, minutes: int) -> int:
    """Seconds from SIGUSR2 to the end: at most a quarter of the time, for SLURM sends it up to a minute early."""
    if text is None:
        return min(GRACE_SECONDS, 60 * minutes // 4)
    if type(text) is not int or text >= 60 * minutes:
        raise UserError(
            f"--slurm signal_delay_s={text}: write whole seconds, fewer than the {60 * minutes} of time={minutes}"
        )
    return text
