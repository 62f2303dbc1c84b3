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
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from benchmark import cli, records

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

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["benchmark.runner", "pandas", "scipy.stats", "rich.progress", "torch._dynamo"])


@dataclass(frozen=True)
class Signal:
    """Sent from outside, `delay` seconds after the process begins the nth call of `function` ("module:Class.name")."""

    function: str
    nth: int
    delay: float = 0.0
    number: int = signal.SIGKILL


@dataclass(frozen=True)
class Answer:
    """`status`: the exit status, or minus the number of the signal that ended the process."""

    status: int
    out: str
    err: str


def bench(*words: object, patches: Sequence[Callable[[], object]] = (), by: Signal | None = None) -> Answer:
    """Run the command to its end, or until a signal ends it."""
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = _PROCESSES.Pipe()
        announced = [functools.partial(from_call, by.function, by.nth, functools.partial(_tell, theirs))] if by else []
        arguments = (list(map(str, words)), folder, [*patches, *announced])
        process = _PROCESSES.Process(target=_run, args=arguments)
        process.start()
        if by and ours in wait([ours, process.sentinel], timeout=60):
            time.sleep(by.delay)
            os.kill(process.pid or 0, by.number)
        process.join(60)
        assert process.exitcode is not None, "the command hangs"
        return Answer(process.exitcode, *(Path(folder, name).read_text() for name in ("out", "err")))


def _run(words: list[str], folder: str, patches: Sequence[Callable[[], object]]) -> None:
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT), descriptor)
    torch.set_num_threads(1)
    for patch in patches:
        patch()
    sys.argv = ["bench", *words]
    cli.main()


# Patches.


def put(name: str, value: object) -> None:
    """Set what `name`, "module:attribute", names."""
    module, _, attribute = name.partition(":")
    setattr(pkgutil.resolve_name(module), attribute, value)


def from_call(function: str, nth: int, instead: Callable[..., Any]) -> None:
    """From its nth call on, `function` becomes `instead(original, *arguments)`."""
    owner, _, attribute = function.replace(":", ".").rpartition(".")
    holder = pkgutil.resolve_name(owner)
    original, calls = getattr(holder, attribute), 0

    @functools.wraps(original)
    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return instead(original, *arguments, **options) if calls >= nth else original(*arguments, **options)

    setattr(holder, attribute, counted)


def _tell(connection: Connection, original: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    connection.send(None)
    return original(*arguments, **options)


def die(original: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Instead of a call: the process is killed."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_after(original: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    original(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)


def die_halfway(write: Callable[[int, bytes], int], descriptor: int, content: bytes) -> None:
    """Instead of os.write: half of the content is written, and the process is killed."""
    write(descriptor, content[: len(content) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def disk_full(original: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Instead of a call: the disk is full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half_a_disk(write: Callable[[int, bytes], int], descriptor: int, content: bytes) -> int:
    """Instead of os.write: half of the content fits, and nothing after it."""
    if len(content) < 100:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return write(descriptor, content[: len(content) // 2])


# What is compared.


def rows(runs: Path) -> list[tuple[str, ...]]:
    """The lines of results.csv in all but the measured columns, sorted; none where there is no file."""
    path = runs / "results.csv"
    if not path.exists():
        return []
    kept = [column for column in records.COLUMNS if column not in records.MEASURED]
    with path.open(newline="") as file:
        return sorted(tuple(line[column] for column in kept) for line in csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def checkpoint_of(runs: Path) -> Path:
    """The one checkpoint below a runs folder."""
    (path,) = runs.rglob("checkpoint.safetensors")
    return path
