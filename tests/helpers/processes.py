"""The command `bench` in processes that a test may kill: forked from one that has imported everything, so cheap.

A test says what is different in the process by `patches`: picklable calls without arguments, made before the command.
"""

from __future__ import annotations

import csv
import errno
import functools
import multiprocessing
import os
import pkgutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmark.cli import commands
from benchmark.records import results_file
from tests.helpers.command import Answer

TINY = {
    "updates": 100,
    "train_rows": 500,
    "evaluation_rows": 128,
    "unconditional_rows": 128,
    "batch_rows": 16,
    "prior_steps": 3,
    "decoder_steps": 3,
}
SMALL = ["--preset", "smoke", "--device", "cpu", *(word for k, v in TINY.items() for word in ("--set", f"{k}={v}"))]

# What torchrun sets for the first of two processes, which here has nobody to meet.
ONE_OF_TWO = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
ONE_OF_TWO |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}

SECONDS = 240  # a command takes a few
_PROCESSES = multiprocessing.get_context("forkserver")
# What the command imports, early or late; a name that is gone is passed over, and costs time alone.
_PROCESSES.set_forkserver_preload(
    [
        "benchmark.engine.execution",
        "models.muni",
        "pandas",
        "scipy.stats",
        "rich.progress",
        "torch._dynamo",
        "typer._adapters",
    ]
)


def bench(*words: object, patches: Sequence[Callable[[], object]] = ()) -> Answer:
    """Run the command to its end, or for five minutes."""
    with tempfile.TemporaryDirectory() as folder:
        process = _PROCESSES.Process(target=_run, args=(list(map(str, words)), folder, patches))
        process.start()
        process.join(SECONDS)
        if process.exitcode is None:  # also where the server that forks has died: nobody would tell us
            process.kill()
            raise AssertionError(f"bench {' '.join(map(str, words))} did not end within {SECONDS} s")
        return Answer(process.exitcode, *(Path(folder, name).read_text() for name in ("out", "err")))


def _run(words: list[str], folder: str, patches: Sequence[Callable[[], object]]) -> None:
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT), descriptor)
    torch.set_num_threads(1)
    for patch in patches:
        patch()
    sys.argv = ["bench", *words]
    commands.main()


# Patches.


def put(name: str, value: object) -> None:
    """Set what `name`, "module:attribute", names."""
    module, _, attribute = name.partition(":")
    setattr(pkgutil.resolve_name(module), attribute, value)


def put_environment(values: Mapping[str, str]) -> None:
    """Set variables, of which the server that forks may know others."""
    os.environ.update(values)


def at_call(function: str, nth: int, instead: Callable[..., Any]) -> None:
    """The nth call of `function`, a dotted name, becomes `instead(original, *arguments)`."""
    owner, _, attribute = function.rpartition(".")
    holder = pkgutil.resolve_name(owner)
    original, calls = getattr(holder, attribute), 0

    @functools.wraps(original)
    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return instead(original, *arguments, **options) if calls == nth else original(*arguments, **options)

    setattr(holder, attribute, counted)


def cut(seconds: float, original: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Do the call, and have the kernel end the process after that much of its CPU time, in the midst of anything.

    Python sees as little of it as of kill -9. The status is minus SIGPROF.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)
    return original(*arguments, **options)


def send(number: int, original: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """A signal arrives as the call begins."""
    os.kill(os.getpid(), number)
    return original(*arguments, **options)


def die(original: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """kill -9 before the call."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_after(original: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """kill -9 after the call."""
    original(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)


def die_halfway(write: Callable[[int, bytes], int], descriptor: int, content: bytes) -> None:
    """kill -9 when os.write has written half."""
    write(descriptor, content[: len(content) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def write_half(write: Callable[[int, bytes], int], descriptor: int, content: bytes) -> int:
    """os.write to a disk that takes a part."""
    return write(descriptor, content[: len(content) // 2])


def disk_full(original: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """The call fails, since the disk is full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# What is compared.


def rows(runs: Path) -> list[tuple[str, ...]]:
    """The lines of results.csv in all but the measured columns, sorted; none where there is no file."""
    path = runs / "results.csv"
    if not path.exists():
        return []
    kept = [column for column in results_file.COLUMNS if column not in results_file.MEASURED]
    with path.open(newline="") as file:
        return sorted(tuple(line[column] for column in kept) for line in csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def checkpoint_of(runs: Path) -> Path:
    """The one checkpoint below a runs folder."""
    (path,) = runs.rglob("checkpoint.safetensors")
    return path
