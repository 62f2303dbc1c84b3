"""One job in several processes, as torchrun starts them: which of them this is, and all that they say to each other.

The main process does everything; the others train with it the runs that it names, each on its share of every batch.
A process alone is the null case: it agrees with itself, and nothing is sent.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from benchmark.api import UserError

PATIENCE = timedelta(days=30)  # the others wait as long while the main process scores
MEETING_SECONDS = 60.0  # until a process that waits for the others to start says so
# What torchrun sets for each process.
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Processes:
    """A process alone; `Together` is one of several."""

    rank, count = 0, 1
    listening = True  # whether the others wait for a word of the main process

    @property
    def main(self) -> bool:
        return self.rank == 0

    def check_shares(self, **numbers: int) -> None:
        """Raises UserError for a number, by its field's name, that cannot be shared out evenly."""
        for field, number in numbers.items():
            if number % self.count:
                more = -(-number // self.count) * self.count
                raise UserError(
                    f"{field} {number} cannot be shared out evenly among {self.count} processes: "
                    f"start another number of them, or pass --set {field}={more}"
                )

    def agree(self, value: Any) -> Any:
        """The main process's value."""
        return value

    def average(self, tensor: Tensor) -> None:
        """Replace the tensor by its mean over the processes."""

    def means(self, values: dict[str, float]) -> dict[str, float]:
        """Each value's mean over the processes."""
        return values

    @contextlib.contextmanager
    def calling(self, word: str, of_all: type[Exception]) -> Iterator[None]:
        """Inside, the others do with the main process what the word names; then they listen again.

        So they do after an error of the kind that befalls all alike; after any other nobody knows where they stand.
        """
        self.agree(word)
        self.listening = self.count == 1  # alone, nobody is left where the main process fails
        try:
            yield
        except of_all:
            self.listening = True
            raise
        self.listening = True

    def dismiss(self) -> None:
        """Tell the others, if they listen, that there is nothing more to do."""
        if self.listening:
            self.agree(None)

    def words(self) -> Iterator[str]:
        """What the main process calls the others to do, until it dismisses them."""
        while (word := self.agree(None)) is not None:
            yield word


class Together(Processes):
    """One of the processes that torchrun started, with a GPU of its own where there are GPUs and `cpu` is not said."""

    def __init__(self, cpu: bool) -> None:
        from accelerate import PartialState

        state = PartialState(cpu=cpu, timeout=PATIENCE)
        self.rank, self.count, self.device = state.process_index, state.num_processes, state.device

    def agree(self, value: Any) -> Any:
        from accelerate.utils import broadcast_object_list

        (agreed,) = broadcast_object_list([value])
        return agreed

    def average(self, tensor: Tensor) -> None:
        from accelerate.utils import reduce

        tensor.copy_(reduce(tensor, "mean"))

    def means(self, values: dict[str, float]) -> dict[str, float]:
        numbers = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        self.average(numbers)
        return dict(zip(values, numbers.tolist(), strict=True))


_here = Processes()


def here() -> Processes:
    """This process among those of its job."""
    return _here


def started() -> int:
    """How many processes torchrun started; 1 where it started none.

    Raises UserError where several are spoken of, and not as torchrun does: something else left that behind.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    if count in ("", "1"):
        return 1
    lacking = [name for name in TORCHRUN if not os.environ.get(name)]
    if lacking or not _consistent():
        wrong = f"without {', '.join(lacking)}" if lacking else "with numbers that do not fit together"
        raise UserError(
            f"WORLD_SIZE={count} is set {wrong}, so not by torchrun: unset {' '.join(TORCHRUN)}, or start the command "
            "with torchrun"
        )
    return int(count)


def _consistent() -> bool:
    """Whether what torchrun sets can be of one process among several."""
    values = [os.environ[name] for name in TORCHRUN[:4]]
    if not all(value.isdecimal() for value in values):
        return False
    rank, count, local_rank, local_count = map(int, values)
    return rank < count and local_rank < local_count <= count


def join(device: str) -> str:
    """Meet the processes that torchrun started beside this one; the device of this one: "cpu" or a GPU of its own.

    Raises UserError for a device that they cannot share.
    """
    global _here
    if device not in ("", "cpu", "cuda"):
        raise UserError(
            f"--device {device}: of several processes each takes a GPU of its own: say cpu, cuda or nothing"
        )
    gpus, beside = torch.cuda.device_count(), int(os.environ["LOCAL_WORLD_SIZE"])
    on_gpus = device == "cuda" or (not device and gpus > 0)
    if on_gpus and gpus < beside:
        raise UserError(f"{beside} processes and {gpus} GPUs here: start one for each at most, or say --device cpu")
    with _patience_told():
        _here = Together(cpu=not on_gpus)
    return str(_here.device)


@contextlib.contextmanager
def _patience_told() -> Iterator[None]:
    """Says after a while what is waited for: the others never come where another command's variables were left."""
    rank, count = os.environ["RANK"], os.environ["WORLD_SIZE"]
    line = f"bench: process {rank} of {count} waits for the others; if torchrun did not start it: unset WORLD_SIZE"
    timer = threading.Timer(MEETING_SECONDS, functools.partial(print, line, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
