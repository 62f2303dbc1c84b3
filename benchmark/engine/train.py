"""The one training loop: stages, warm-up, clipping, weight average, checkpoints, and an exact resume.

Every random number of update k is a function of (seed, k), so a run that was cut and resumed equals
one that was not, and no generator's state is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from benchmark.api import Batch, Dataset, UserError
from benchmark.config import Config
from benchmark.engine.optimizer import Optimizer
from benchmark.engine.process_group import here
from benchmark.files import write_file
from benchmark.runtime import Draws, copied, seed_of

LOG_EVERY = 50  # updates between log lines; checkpoints and stops fall on these, so that logs resume exactly too
CHECKPOINT_SECONDS = 20.0
CHECKPOINT, LOG = "checkpoint.safetensors", "train.jsonl"

Stages = tuple[tuple[str, float], ...]


class Diverged(Exception):
    """The loss or a weight is not finite; the last good checkpoint is kept."""


@dataclass(frozen=True)
class Progress:
    """Where training stands: updates done, of how many, seconds of training in all calls, mean loss of late."""

    updates: int
    of: int
    seconds: float
    loss: float

    @property
    def done(self) -> bool:
        return self.updates >= self.of


class Trainer:
    """A method in training in a run directory. `model` is trained; `average` is what is evaluated."""

    def __init__(
        self,
        model: nn.Module,
        average: nn.Module,
        data: Dataset,
        stages: Stages,
        config: Config,
        seed: int,
        directory: Path,
        training_id: str,
        device: str,
    ) -> None:
        self.model: Any = model  # a Method; nn.Module does not declare `loss`
        self.average = average.requires_grad_(False)
        self.data, self.config, self.seed, self.device = data, config, seed, device
        self.processes = here()
        self.processes.check_shares(batch_rows=config.batch_rows, word_rows=config.word_rows)
        self.directory, self.training_id = directory, training_id
        self.schedule = _schedule(stages, config.updates)
        self.starts = {0, *(end for _, end in self.schedule[:-1])}
        self.optimizer = Optimizer(model, average, config)
        self.updates, self.seconds, self.loss = 0, 0.0, math.nan
        average.load_state_dict(model.state_dict())
        if (directory / CHECKPOINT).exists():
            self._load()
        if config.compile:
            for network in _networks(model):
                network.compile()

    def run(
        self,
        report: Callable[[Progress], None],
        stop: Callable[[], bool] = lambda: False,
        max_seconds: float | None = None,
    ) -> Progress:
        """Train to the end of the budget, until `stop()` or for `max_seconds`; checkpoint; return the progress.

        Of several processes the main one says when, and alone writes. Raises Diverged when the loss is not finite, and
        UserError where nothing can be written, or where the processes do not begin at one checkpoint.
        """
        if (begun := self.processes.agree(self.updates)) != self.updates:
            raise UserError(
                f"{self.directory}: process {self.processes.rank} finds update {self.updates} there, and the main one "
                f"update {begun}: give all of them one folder of runs"
            )
        started = saved = time.monotonic()
        before = self.seconds
        log = _log_until(self.directory / LOG, self.updates)
        while self.updates < self.config.updates:
            parts = self.advance(min(LOG_EVERY, self.config.updates - self.updates))
            now = time.monotonic()
            self.seconds = before + now - started
            log.append(json.dumps({"update": self.updates, **parts}) + "\n")
            over = stop() or self.progress.done or (max_seconds is not None and now - started >= max_seconds)
            due, over = self.processes.agree((over or now - saved > CHECKPOINT_SECONDS, over))
            if due:
                self._save(log)
                saved = now
            report(self.progress)  # after the checkpoint: it may fail, where nobody listens any more
            if over:
                break
        return self.progress

    @property
    def progress(self) -> Progress:
        return Progress(self.updates, self.config.updates, self.seconds, self.loss)

    def advance(self, count: int) -> dict[str, float]:
        """Do `count` updates and return the mean of each logged part: the only place that waits for the device."""
        total: dict[str, Tensor] = {}
        for _ in range(count):
            loss, parts = self.update()
            for name, value in {"loss": loss, **parts}.items():
                total[name] = total[name] + value if name in total else value
        for averaged, trained in zip(self.average.buffers(), self.model.buffers(), strict=True):
            averaged.copy_(trained)
        means = self.processes.means({name: float(value) / count for name, value in total.items()})
        if not all(map(math.isfinite, means.values())):
            raise Diverged(f"the loss is not finite between updates {self.updates - count + 1} and {self.updates}")
        self.loss = means["loss"]
        return means

    def update(self) -> tuple[Tensor, dict[str, Tensor]]:
        if self.updates in self.starts:
            self._begin_stage()
        rows, share = self.config.batch_rows, (self.processes.rank, self.processes.count)
        draws = Draws("train", self.seed, self.updates, rows=rows, block=rows, device=self.device, share=share)
        batch = training_batch(self.data, draws, self.seed, self.updates)
        with autocast(self.config, self.device):
            loss, parts = self.model.loss(batch, self._stage(), draws)
        loss.backward()
        warm = min(1.0, (self.updates + 1) / max(1, self.config.warmup_updates))
        self.optimizer.step(self.config.learning_rate * warm)
        self.updates += 1
        return loss.detach(), dict(parts)

    def _begin_stage(self) -> None:
        """A stage stands on the average of the one before, so that what is evaluated is what it was trained beside.

        A checkpoint at this update holds the weights from before; a resume comes through here again. The first stage's
        average equals its weights.
        """
        self.optimizer.start_from_average()
        if hasattr(self.model, "begin"):
            self.model.begin(self._stage(), self.data)

    def _stage(self) -> str:
        return next(name for name, end in self.schedule if self.updates < end)

    def _save(self, log: list[str]) -> None:
        """The log, then everything a resume needs in one file, each atomically: the log may be ahead, never behind.

        Raises Diverged rather than save a broken state.
        """
        if not self.optimizer.finite():
            raise Diverged(f"a weight is not finite after update {self.updates}")
        if not self.processes.main:
            return
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in self.optimizer.state().items()}
        tensors = separate(tensors)
        facts = {
            "tensors": _digest(tensors),
            "device": torch.device(self.device).type,
            "training_id": self.training_id,
            "updates": str(self.updates),
            "seconds": repr(self.seconds),
            "loss": repr(self.loss),
        }
        write_file(self.directory / LOG, "".join(log).encode())
        write_file(self.directory / CHECKPOINT, save(tensors, metadata=facts))

    def _load(self) -> None:
        tensors, facts = read_checkpoint(self.directory / CHECKPOINT, self.training_id)
        begun, device = facts.get("device"), torch.device(self.device).type
        if begun != device:
            raise UserError(
                f"{self.directory / CHECKPOINT}: begun on {begun}, whose random numbers are not those of {device}: "
                f"go on with --device {begun}, or pass --fresh to start this run again"
            )
        self.updates, self.seconds, self.loss = int(facts["updates"]), float(facts["seconds"]), float(facts["loss"])
        self.model.load_state_dict(_below("model.", tensors))
        self.average.load_state_dict(_below("average.", tensors))
        self.optimizer.load(_below("optimizer.", tensors))


def training_batch(data: Any, draws: Draws, seed: int, update: int) -> Batch:
    """The rows of an update: of the training split, or of one of the dataset's corpora, in proportion to their rows."""
    corpora = getattr(data, "corpora", ("train",))
    ends = list(accumulate(map(data.count, corpora)))
    place = seed_of("corpus", seed, update) % ends[-1] if len(corpora) > 1 else 0
    split = next(name for name, end in zip(corpora, ends, strict=True) if place < end)
    return copied(data.rows(split, draws.integers("rows", data.count(split))))  # they may lie in the dataset


def read_checkpoint(path: Path, training_id: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and facts of a checkpoint. Raises UserError when it is damaged or of another run."""
    mend = f"remove {path.parent} or pass --fresh to start this run again"
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a whole checkpoint ({error}): {mend}") from None
    if facts.get("training_id") != training_id:
        raise UserError(f"{path}: belongs to training {facts.get('training_id')}, not to {training_id}: {mend}")
    if facts.get("tensors") != _digest(tensors):
        raise UserError(f"{path}: its tensors are not those that were written: {mend}")
    return tensors, facts


def separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For safetensors, which writes no memory twice: tied weights have two names."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names and bytes: safetensors notices a cut file, and not a flipped bit."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def carry_on(shorter: Path, its_id: str, directory: Path, training_id: str, device: str) -> bool:
    """Make a shorter run's checkpoint and log the start of this one; False where it has none that serves.

    It serves where both are one training: no rate depends on how many updates are to come, and the draws of update k
    are a function of (seed, k).
    """
    try:
        tensors, facts = read_checkpoint(shorter / CHECKPOINT, its_id)
        log = (shorter / LOG).read_bytes()
    except (UserError, OSError):
        return False
    if facts["device"] != torch.device(device).type:
        return False
    write_file(directory / LOG, log)
    write_file(directory / CHECKPOINT, save(tensors, metadata=facts | {"training_id": training_id}))
    return True


def load_average(model: nn.Module, directory: Path, training_id: str, budget: int) -> Progress | None:
    """Load the weight average of a run into `model` and return how far of `budget` updates it got; None without one."""
    path = directory / CHECKPOINT
    if not path.exists():
        return None
    tensors, facts = read_checkpoint(path, training_id)
    model.load_state_dict(_below("average.", tensors))
    return Progress(int(facts["updates"]), budget, float(facts["seconds"]), float(facts["loss"]))


def autocast(config: Config, device: str) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision where the configuration asks for it."""
    if config.precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)


def read_log(directory: Path) -> Iterator[dict[str, float]]:
    """The training curve of a run, one dict per log line. Raises UserError for a damaged one."""
    for _, logged in _log_lines(directory / LOG):
        yield logged


def _networks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules that are called as a function; a method itself has a loss and a sampler instead."""
    for child in module.children():
        if type(child).forward is nn.Module.forward:
            yield from _networks(child)
        else:
            yield child


def _schedule(stages: Stages, updates: int) -> list[tuple[str, int]]:
    """(stage, update at which it ends): stages split the same total."""
    ends, share = [], 0.0
    for name, part in stages:
        share += part
        ends.append((name, round(share * updates)))
    if not math.isclose(share, 1.0):
        raise UserError(f"the shares of the stages {stages} add up to {share}, not to 1")
    return ends


def _log_until(path: Path, updates: int) -> list[str]:
    """The log's lines that the checkpoint covers; a run cut after writing its log has more."""
    return [line for line, logged in _log_lines(path) if logged["update"] <= updates]


def _log_lines(path: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Each line and what it says. Raises UserError where that is nothing that training wrote."""
    lines = path.read_bytes().decode(errors="replace").splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            logged = json.loads(line)
            logged["update"]
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{path}, line {number}: no line of a training curve: remove that line, or pass --fresh to train again"
            ) from None
        yield line, logged


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
