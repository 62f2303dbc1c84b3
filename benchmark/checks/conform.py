"""The conformance suite: what every method, dataset and metric has to hold before its numbers are believed.

    bench conform my_method.py

A plug-in is held to the contract of `benchmark.api` by running it, tiny, on a CPU. Each check answers with the fault's
name. What a plug-in calls is watched for files it writes and global generators it moves; a file that native code writes
outside the working folder and the home folder is not seen.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import random
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from benchmark import registry
from benchmark.api import (
    TASKS,
    Batch,
    Card,
    Cell,
    DatasetCard,
    Inapplicable,
    MethodCard,
    MetricCard,
    Score,
    UserError,
    one_line,
    words_of,
)
from benchmark.api import cells as cells_of
from benchmark.config import PRESETS, SETTINGS, Config, marked, nearest, resolve
from benchmark.engine.criteria import cells_of_dataset
from benchmark.engine.evaluate import check_rows, given_of, split_of
from benchmark.engine.execution import build
from benchmark.engine.plugin_guard import NUMBERS, PROCESS, unmoved
from benchmark.engine.train import separate
from benchmark.files import cache_folder
from benchmark.records.job import Job
from benchmark.records.run_identity import prepare
from benchmark.runtime import Draws, copied

BLOCK = 256  # rows that share a generator; twice as many are sampled to see that the batch size moves nothing
METRIC_ROWS = 1024
Rows = dict[str, Any]  # a Batch, or a Raw one
UPDATES = 20  # per stage
RANGE = 10.0  # a sample may lie this many times further from the centre than any row of the data
TINY = (
    "train_rows=1024",
    "evaluation_rows=512",
    "unconditional_rows=512",
    "probe_rows=512",
    "batch_rows=64",
    "prior_steps=3",
    "decoder_steps=3",
    "precision=float32",
    "compile=false",
)


@dataclass(frozen=True)
class Check:
    """One finding. passed: None where the check does not apply, or where only a warning is due."""

    name: str
    passed: bool | None
    message: str = ""


class Fault(Exception):
    """What the plug-in does wrong, in one line."""


class Skip(Exception):
    """Why a check does not apply, or a warning."""


def conform(kind: str | None, name: str, dataset: str = "") -> Iterator[Check]:
    """Check one plug-in, by name or by the path of its file; `kind` None reads the kind from its card.

    dataset: on which a method or metric is tried; empty: the mixture, or, for a metric that needs other kinds of
    modality, the first that has them. Raises UserError for a name or file that does not exist.
    """
    path = _find(kind, name)
    # The plug-in runs in another working folder, where a relative path leads nowhere.
    name, dataset = (str(Path(each).resolve()) if ".py" in each else each for each in (name, dataset))
    try:
        card = registry.read_card(path)
        if kind not in (None, card.kind):
            raise UserError(f"{path}: holds a {card.kind}, not a {kind}")
    except UserError as error:
        yield Check("card is literal", False, str(error))
        return
    with tempfile.TemporaryDirectory() as folder, registry.beside([path]):
        suite = _SUITES[card.kind](name, card, dataset or _fitting(card), _Watch(Path(folder).resolve()))
        for title, check in suite.first:
            found = _judge(title, check, path)
            yield found
            if found.passed is False:
                return  # nothing else can be asked
        for title, check in suite.rest:
            yield _judge(title, check, path)


def _fitting(card: Card) -> str:
    """The dataset on which a plug-in is tried where the user names none."""
    needs = card.needs if isinstance(card, MetricCard) else ()
    # Those that run on a laptop first: others need weights that are not ours to ship.
    known = sorted(registry.index("dataset"), key=lambda name: "cpu" not in registry.card("dataset", name).recipe)
    fits = (name for name in known if set(registry.card("dataset", name).kinds or ("vector",)).issuperset(needs))
    return next(fits, known[0])


def _find(kind: str | None, name: str) -> Path:
    """The plug-in's file. Raises UserError, with the nearest name, where there is none."""
    if kind is not None or ".py" in name:
        return registry.locate(kind or "method", name)
    known = {plugin: path for each in registry.FOLDERS for plugin, path in registry.index(each).items()}
    plain = registry.base("method", name)
    if plain not in known:
        raise UserError(f"no method, dataset or metric {name!r}{nearest(name, known)}")
    return known[plain]


def _judge(title: str, check: Callable[[], str | None], path: Path) -> Check:
    try:
        return Check(title, True, check() or "")
    except Fault as fault:
        return Check(title, False, str(fault))
    except Skip as reason:
        return Check(title, None, str(reason))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the plug-in is not ours: whatever it raises is the finding
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f" ({path.name}:{lines[-1]})" if lines else ""
        return Check(title, False, f"{type(error).__name__}: {one_line(error)}{where}")


def _need(holds: bool, fault: str) -> None:
    if not holds:
        raise Fault(fault)


# ------------------------------------------------------------------------------------------ what a plug-in touches


class _Watch:
    """Runs a plug-in's calls in an empty working and home folder, and remembers what they touch but must not."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # The suite's own cache stays where it is: a verifier that is trained for a metric is no file of the metric.
        self._cache = cache_folder().resolve()
        self._call = ""
        self.moved: dict[str, str] = {}  # generator -> the call that moved it first
        self.written: dict[str, str] = {}  # path -> the call that wrote it first
        self.changed: dict[str, str] = {}  # settings of the process -> the call that changed them first

    @contextlib.contextmanager
    def calling(self, call: str) -> Iterator[None]:
        """`call`: what is called, in words for a message."""
        self._call = call
        states, folder = _global_states(), Path.cwd()
        before = {name: os.environ.get(name) for name in ("HOME", "MUNI_BENCH_CACHE")}
        os.chdir(self._folder)
        os.environ["HOME"], os.environ["MUNI_BENCH_CACHE"] = str(self._folder), str(self._cache)
        _audit_on()
        _listeners.append(self._hear)
        try:
            with unmoved(_SETTINGS, lambda changed: self.changed.setdefault(changed, call)):
                yield
        finally:
            _listeners.remove(self._hear)
            os.chdir(folder)
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value
            for path in self._folder.rglob("*"):
                self._hear(str(path))
            for generator, state in _global_states().items():
                if state != states[generator]:
                    self.moved.setdefault(generator, call)

    def _hear(self, path: str) -> None:
        if self._cache == Path(path) or self._cache in Path(path).parents or Path(path) in self._cache.parents:
            return
        self.written.setdefault(path.removeprefix(f"{self._folder}/"), self._call)

    def generators(self) -> None:
        for generator, call in self.moved.items():
            raise Fault(f"{call} moves {generator} global generator: take every random number from `draws`")

    def settings(self) -> None:
        for changed, call in self.changed.items():
            raise Fault(f"{call} changes {changed} for the whole process: put it back")

    def files(self) -> None:
        for path, call in self.written.items():
            raise Fault(f"{call} writes the file {path}: a plug-in writes none")


# The generators have a check of their own.
_SETTINGS = {name: kept for name, kept in (NUMBERS | PROCESS).items() if "generator" not in name}
_listeners: list[Callable[[str], None]] = []
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGING = {"os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.truncate"}


@functools.cache
def _audit_on() -> None:
    """Hooks can never be removed, so there is one, and it is idle while nobody listens."""
    sys.addaudithook(_audit)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _listeners:
        return
    writes = event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & _WRITING)
    if (writes or event in _CHANGING) and isinstance(arguments[0], str | bytes | os.PathLike):
        path = os.fsdecode(arguments[0])
        if "__pycache__" not in path and not path.startswith("/dev/"):  # the import system's own
            _listeners[-1](path)


def _global_states() -> dict[str, Any]:
    _, keys, position, *gauss = np.random.get_state(legacy=True)
    return {
        "torch's": torch.random.get_rng_state().numpy().tobytes(),
        "numpy's": (np.asarray(keys).tobytes(), position, *gauss),
        "Python's": random.getstate(),
    }


@contextlib.contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """All global generators at `seed` inside, and as they were before outside."""
    before = torch.random.get_rng_state(), np.random.get_state(), random.getstate()
    torch.random.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.random.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


def _pure(what: str, call: Callable[[], Batch]) -> Batch:
    """The call's answer. Raises Fault unless it is the same bytes again, whatever the global generators hold."""
    with _global_seed(0):
        first = call()
    with _global_seed(0):
        _need(_equal(first, call()), f"{what} differs between two equal calls: it keeps state or takes fresh entropy")
    with _global_seed(1):
        _need(_equal(first, call()), f"{what} depends on a global generator: take every random number from `draws`")
    return first


def _equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[name].shape == second[name].shape and torch.equal(first[name], second[name]) for name in first
    )


# ------------------------------------------------------------------------------------------ cards

_TYPES: dict[str, type | tuple[type, ...]] = {
    "bool": bool,
    "int": int,
    "float": (int, float),
    "str": str,
    "Literal": str,
    "tuple": (tuple, list),
    "Mapping": dict,
}


def _is_a(value: Any, annotation: str) -> bool:
    """Whether a value is of an annotated type; True is no number, and of unknown annotations nothing is asked."""
    kind = annotation.partition("[")[0]
    return isinstance(value, _TYPES.get(kind, object)) and (kind == "bool" or not isinstance(value, bool))


def _card_is_filled(card: Card) -> None:
    """Types as annotated, a version, and words where words are due."""
    for field in fields(card):
        value, kind = getattr(card, field.name), str(field.type)
        hint = ': write ("...",) for a tuple of one' if kind.startswith("tuple") else ""
        _need(_is_a(value, kind), f"{field.name} = {value!r} is no {kind}{hint}")
        _need(kind != "str" or bool(value.strip()) or field.default == "", f"{field.name} is empty")
    _need(card.version >= 1, f"version = {card.version}: count from 1")


def _known_tasks(tasks: Sequence[str], known: Sequence[str]) -> None:
    _need(len(tasks) > 0, "tasks is empty")
    for task in tasks:
        _need(task in known, f"unknown task {task!r}{nearest(task, known)}")


def _smallest_preset(card: DatasetCard) -> str:
    return next(preset for preset in reversed(PRESETS) if preset in card.recipe)


def _resolved(
    card: DatasetCard, overrides: Sequence[str] = TINY, metrics: Mapping[str, MetricCard] | None = None
) -> Config:
    return resolve(card, None, _smallest_preset(card), overrides, metrics).config


def _built(dataset: str, config: Config) -> Any:
    return registry.load("dataset", dataset, config.own_values)(config, "cpu")


def _made(name: str, dataset: str, data: Any, seed: int = 0) -> Any:
    """A method as the runner builds it. Raises Inapplicable for a sanity method of an unknown world."""
    job = Job(name, dataset, _smallest_preset(registry.card("dataset", dataset)), seed, (), ())
    return build(prepare(job, Path("runs"), TINY), data, "cpu")


# ------------------------------------------------------------------------------------------ methods


class _MethodSuite:
    """A method on the first rows of a dataset; untrained but for the checks that say otherwise."""

    def __init__(self, name: str, card: MethodCard, dataset: str, watch: _Watch) -> None:
        self.name, self.card, self.dataset, self.watch = name, card, dataset, watch
        self.first = [("card is complete", self.check_card), ("builds", self.check_build)]
        self.rest = [
            ("answers every declared task", self.check_answers),
            ("sample is a function of weights, batch and draws", self.check_sample),
            ("sample follows the seed", self.check_seed),
            ("sample does not depend on the batch size", self.check_batch_size),
            ("loss is a finite scalar to descend", self.check_loss),
            ("loss is a function of weights, batch and draws", self.check_loss_is_pure),
            ("rows that miss a modality train", self.check_partial_rows),
            ("the gradient reaches every weight", self.check_gradients),
            ("training lowers the loss", self.check_descent),
            ("a saved state samples the same", self.check_state),
            ("leaves global generators alone", watch.generators),
            ("leaves the process as it was", watch.settings),
            ("writes no files", watch.files),
        ]

    def check_card(self) -> None:
        _card_is_filled(self.card)
        _known_tasks(self.card.tasks, TASKS)
        for stage in self.card.stages:
            well = isinstance(stage, tuple | list) and [type(part) for part in stage] in ([str, float], [str, int])
            _need(well and stage[1] > 0, f'stages: {stage!r} is not ("name", positive share)')
        total = sum(share for _, share in self.card.stages)
        _need(not self.card.stages or math.isclose(total, 1), f"the shares of the stages add up to {total:g}, not to 1")
        for field in self.card.overrides:
            _need(field in SETTINGS, f"overrides: no field {field!r}{nearest(field, SETTINGS)}")

    def check_build(self) -> str:
        absent = getattr(registry.load("method", self.name), "absent", None)
        if absent is not None:
            self.rest = [("makes things in the form of real ones", self.check_things)]
            if why := absent():
                self.rest = []
                raise Skip(why)
        data_card = registry.card("dataset", self.dataset)
        self.data = _built(self.dataset, _resolved(data_card))
        self.cells = {
            task: list(cells_of(registry.stem(self.dataset), data_card.modalities, task)) for task in self.card.tasks
        }
        if absent is not None and not hasattr(self.data, "raw"):
            self.rest = []
            raise Skip("it makes pictures, sounds and sentences: name a dataset of those, --dataset spoken_digits")
        for switch in self.card.variants:
            registry.load("method", f"{registry.base('method', self.name)}:{switch}")
        self.method = self.make()
        for call in ("loss", "sample") if self.card.stages else ("sample",):
            _need(callable(getattr(self.method, call, None)), f"the class has no {call}()")
        _need(not self.card.stages or isinstance(self.method, torch.nn.Module), "is no torch.nn.Module, yet is trained")
        _need(
            _equal(self.weights(self.method), self.weights(self.make())),
            "two builds with one seed have different weights: initialise with torch alone",
        )
        return f"{sum(weight.numel() for weight in self.weights(self.method).values())} weights"

    def check_things(self) -> str:
        """Of a model that is not trained here: two rows of every direction that it has."""
        refused, answered = 0, 0
        for cell in itertools.chain.from_iterable(self.cells.values()):
            at = split_of(self.data, cell), torch.arange(2)
            try:
                made = self.method.things(cell, at[0], at[1].clone(), Draws("conform", cell, rows=2))
            except Inapplicable as reason:
                _need(bool(str(reason)), f"it refuses {cell.question} without a reason")
                refused += 1
                continue
            real, answered = self.data.raw(*at), answered + 1
            _need(set(made) == set(cell.want), f"{cell.question} makes {', '.join(made)}")
            for name, rows in made.items():
                _need(len(rows) == 2, f"{cell.question}: {len(rows)} rows of {name}, and two were asked for")
                if isinstance(rows, Tensor):
                    _need(rows.shape == real[name].shape, f"{cell.question}: {name} has the shape {tuple(rows.shape)}")
                    _need(bool(torch.isfinite(rows).all()), f"{cell.question}: {name} is not finite")
        _need(answered > 0, "it answers nothing")
        return f"{answered} directions, {refused} refused"

    def check_answers(self) -> None:
        rows = 7  # no number that a shape could hide behind
        for cell in (cell for cells in self.cells.values() for cell in cells):
            generated = self.sample(self.method, cell, rows)
            _need(isinstance(generated, dict), f"sample() returned a {type(generated).__name__}, not a dict of tensors")
            check_rows(generated, cell, self.data.modalities, rows)
            for modality in self.data.modalities:
                if modality.name in cell.want:
                    self.in_raw_units(cell, modality, generated[modality.name].double())

    def in_raw_units(self, cell: Cell, modality: Any, x: Tensor) -> None:
        _need(bool(torch.isfinite(x).all()), f"sample() returned NaN or infinite {modality.name} for {cell}")
        most = (self.test(METRIC_ROWS)[modality.name].double() - modality.center).abs().max().item()
        far = (x - modality.center).abs().max().item()
        _need(
            far <= RANGE * most,
            f"sample() returned {modality.name} up to {far:.3g} from the centre, and no row of "
            f"the data lies beyond {most:.3g}: answer in raw units, x * scale + center",
        )

    def check_sample(self) -> None:
        for cell in self.one_per_task():
            answer = functools.partial(self.sample, self.method, cell, BLOCK)
            before = _pure(f"sample() for {cell}", answer)
            for stage, _ in self.card.stages:
                self.loss(self.method, stage)
            _need(_equal(before, answer()), f"sample() for {cell} changes after a call of loss(): keep no state")

    def check_seed(self) -> None:
        for cell in self.one_per_task():
            _need(
                not _equal(self.sample(self.method, cell, BLOCK), self.sample(self.method, cell, BLOCK, seed=1)),
                f"sample() for {cell} ignores the seed: two seeds give the same rows; take noise from `draws`",
            )

    def check_batch_size(self) -> None:
        for cell in self.one_per_task():
            whole = self.sample(self.method, cell, 2 * BLOCK)
            for first in (0, BLOCK):
                part = self.sample(self.method, cell, BLOCK, first=first)
                for name in cell.want:
                    alone, among = part[name].double(), whole[name][first : first + BLOCK].double()
                    gap = float((among - alone).abs().max() / alone.abs().max().clamp(min=1e-9))
                    _need(
                        gap <= 1e-5,
                        f"sample() for {cell} depends on the batch size: rows {first} to "
                        f"{first + BLOCK - 1} of {2 * BLOCK} differ from the same {BLOCK} rows alone by {gap:.1e}",
                    )

    def check_loss(self) -> None:
        for stage in self.stages():
            answer = self.loss(self.method, stage)
            _need(isinstance(answer, tuple) and len(answer) == 2, f"loss() of {stage!r} returns no (loss, parts)")
            loss, parts = answer
            _need(isinstance(loss, Tensor) and loss.ndim == 0, f"loss() of {stage!r} is not a scalar tensor")
            _need(bool(torch.isfinite(loss)), f"loss() of {stage!r} is {loss.item()}")
            _need(loss.requires_grad, f"loss() of {stage!r} has no gradient: something detaches it")
            for name, part in parts.items():
                _need(
                    isinstance(part, Tensor) and part.ndim == 0 and not part.requires_grad,
                    f"part {name!r} of the loss of {stage!r} is not a detached scalar tensor",
                )

    def check_loss_is_pure(self) -> None:
        for stage in self.stages():
            _pure(f"loss() of {stage!r}", functools.partial(self.loss_alone, stage))

    def loss_alone(self, stage: str) -> Batch:
        return {"loss": self.loss(self.method, stage)[0].detach()}

    def check_partial_rows(self) -> None:
        stages = self.stages()
        if self.card.needs_full_rows:
            raise Skip("the card says needs_full_rows")
        for missing in self.data.modalities:
            for stage in stages:
                batch = {name: x for name, x in self.batch().items() if name != missing.name}
                loss, _ = self.loss(self.method, stage, batch)
                _need(
                    bool(torch.isfinite(loss)),
                    f"loss() of {stage!r} is {loss.item()} for rows without "
                    f"{missing.name}: mend it, or set needs_full_rows in the card",
                )

    def check_gradients(self) -> None:
        self.stages()
        _, reached, _ = self.trained
        trainable = [name for name, weight in self.method.named_parameters() if weight.requires_grad]
        missed = [name for name in trainable if name not in reached]
        _need(not missed, f"no gradient ever reaches {', '.join(missed)}: use them in a loss, or freeze them")

    def check_descent(self) -> str:
        self.stages()
        _, _, curves = self.trained
        for stage, (start, end) in curves.items():
            if not end < start:
                raise Skip(
                    f"warning: {UPDATES} updates on one batch moved the loss of {stage!r} from {start:.4g} to "
                    f"{end:.4g}: is its sign right, and is the learning rate?"
                )
        return ", ".join(f"{stage}: {start:.4g} to {end:.4g}" for stage, (start, end) in curves.items())

    def check_state(self) -> None:
        self.stages()
        trained, _, _ = self.trained
        state = load(save(separate(trained.state_dict())))
        fresh = self.make(seed=1)
        fresh.load_state_dict(state)
        for cell in self.one_per_task():
            _need(
                _equal(self.sample(trained, cell, BLOCK), self.sample(fresh, cell, BLOCK)),
                f"sample() for {cell} differs after saving and loading the state: something it needs is no parameter "
                "and no buffer",
            )

    # What the checks share.

    @functools.cached_property
    def trained(self) -> tuple[Any, set[str], dict[str, tuple[float, float]]]:
        """The method after a few updates of every stage on one batch and one draw; the weights that ever had a
        gradient; each stage's first and last loss."""
        method, reached, curves = self.make(), set(), {}
        for stage, _ in self.card.stages:
            optimizer = torch.optim.AdamW(method.parameters(), lr=self.data_config.learning_rate)
            losses = []
            for _ in range(UPDATES):
                optimizer.zero_grad()
                loss, _ = self.loss(method, stage)
                loss.backward()
                for name, weight in method.named_parameters():
                    if weight.grad is not None:
                        finite = bool(torch.isfinite(weight.grad).all())
                        _need(finite, f"the gradient of {name} in {stage!r} is not finite")
                        if weight.grad.any():
                            reached.add(name)
                optimizer.step()
                losses.append(loss.item())
            curves[stage] = losses[0], self.loss(method, stage)[0].item()
        return method, reached, curves

    @property
    def data_config(self) -> Config:
        return _resolved(registry.card("dataset", self.dataset))

    def stages(self) -> list[str]:
        if not self.card.stages:
            raise Skip("it trains nothing")
        return [stage for stage, _ in self.card.stages]

    def one_per_task(self) -> list[Cell]:
        return [cells[0] for cells in self.cells.values() if cells]

    def make(self, seed: int = 0) -> Any:
        with self.watch.calling("building it"):
            return _made(self.name, self.dataset, self.data, seed)

    def weights(self, method: Any) -> dict[str, Tensor]:
        return dict(method.state_dict()) if isinstance(method, torch.nn.Module) else {}

    def test(self, rows: int, first: int = 0) -> Batch:
        return self.data.rows("test", torch.arange(first, first + min(rows, self.data.count("test"))))

    def batch(self) -> Batch:
        return self.data.rows("train", torch.arange(self.data_config.batch_rows))

    def sample(self, method: Any, cell: Cell, rows: int, seed: int = 0, first: int = 0) -> Batch:
        given = copied({name: x for name, x in self.test(rows, first).items() if name in cell.given})
        draws = Draws("conform", cell, seed, rows=rows, first_row=first)
        if isinstance(method, torch.nn.Module):
            method.eval()
        with self.watch.calling(f"sample() for {cell}"), torch.no_grad():
            return method.sample(given, cell.want, rows, draws)

    def loss(self, method: Any, stage: str, batch: Batch | None = None) -> tuple[Tensor, Mapping[str, Tensor]]:
        batch, rows = copied(self.batch() if batch is None else batch), self.data_config.batch_rows
        method.train()
        with self.watch.calling(f"loss() of {stage!r}"):
            return method.loss(batch, stage, Draws("conform", stage, rows=rows, block=rows))


# ------------------------------------------------------------------------------------------ datasets


class _DatasetSuite:
    """A dataset at its smallest preset, on the first rows of each split."""

    MOST = 4096  # rows of a split that are compared with the other splits'

    def __init__(self, name: str, card: DatasetCard, dataset: str, watch: _Watch) -> None:
        self.name, self.card, self.watch = name, card, watch
        self.first = [("card is complete", self.check_card), ("builds", self.check_build)]
        self.rest = [
            ("modalities are those of the card", self.check_modalities),
            ("rows are finite and of the stated shapes", self.check_rows),
            ("a row is a function of its index", self.check_index),
            ("rows do not depend on any generator", self.check_seed_free),
            ("splits are disjoint", self.check_splits),
            ("cells ask for rows of the test split", self.check_cells),
            ("center and scale standardise", self.check_scale),
            ("leaves global generators alone", watch.generators),
            ("leaves the process as it was", watch.settings),
        ]

    def check_card(self) -> str:
        _card_is_filled(self.card)
        _need(len(self.card.modalities) > 1, "modalities: a multimodal dataset has two or more")
        _need(len(set(self.card.modalities)) == len(self.card.modalities), "modalities: two of one name")
        _need("shared" in self.card.recipe, 'recipe has no "shared" part')
        presets = [part for part in self.card.recipe if part != "shared"]
        _need(len(presets) > 0, f"recipe has no preset: write at least one of {', '.join(PRESETS)}")
        kinds = {name: str(field.type) for name, field in SETTINGS.items()}
        budget = marked("budget")
        for part, recipe in self.card.recipe.items():
            for field, entry in recipe.items():
                where = f"recipe[{part!r}][{field!r}]"
                pair = isinstance(entry, tuple | list) and len(entry) == 2
                _need(
                    pair and isinstance(entry[1], str) and bool(entry[1].strip()),
                    f'{where} = {entry!r}: write (value, "where it comes from")',
                )
                _need(_is_a(entry[0], kinds.get(field, "")), f"{where} = {entry[0]!r} is no {kinds.get(field)}")
                _need(
                    part == "shared" or field in budget,
                    f"{where}: presets differ in sizes, steps, counts, precision and the learning rate only: "
                    'move it to "shared"',
                )
        for preset in presets:
            resolve(self.card, None, preset)
        return f"presets {', '.join(presets)}"

    def check_build(self) -> str:
        self.data = self.make()
        counts = {split: self.data.count(split) for split in self.splits}
        for split, count in counts.items():
            _need(isinstance(count, int) and count > 0, f"count({split!r}) = {count!r}: every split needs rows")
        return ", ".join(f"{count} {split}" for split, count in counts.items())

    def check_modalities(self) -> None:
        names = tuple(modality.name for modality in self.data.modalities)
        stated = tuple(self.card.modalities)
        _need(names == stated, f"the data's modalities are {names}, the card's {stated}")
        kinds = tuple(modality.kind for modality in self.data.modalities)
        stated = tuple(self.card.kinds) or ("vector",) * len(names)
        _need(kinds == stated, f"the data's modalities are of kinds {kinds}, the card says {stated}")
        labels = tuple(getattr(self.data, "labels", {}))
        _need(labels == tuple(self.card.labels), f"the data's labels are {labels}, the card's {self.card.labels}")
        for modality in self.data.modalities:
            _need(modality.scale > 0, f"{modality.name}: scale = {modality.scale}: must be positive")

    def check_rows(self) -> None:
        for split in self.splits:
            rows = self.rows(split)
            held = [modality for modality in self.data.modalities if modality.name in rows]
            words = {words_of(modality.name) for modality in held if modality.kind == "text"}
            named = {modality.name for modality in held} | words | set(self.card.labels)
            whole = split in self.corpora() or len(held) == len(self.data.modalities)
            _need(
                set(rows) == named and whole and len(held) > 1,
                f"rows of {split!r} hold {sorted(rows)}: not every modality, or a key that is none",
            )
            for modality in held:
                x = rows[modality.name]
                shape = (min(self.MOST, self.data.count(split)), *modality.shape)
                _need(tuple(x.shape) == shape, f"{modality.name} of {split!r} has shape {tuple(x.shape)}, not {shape}")
                finite = bool(torch.isfinite(x.double()).all())
                _need(finite, f"{modality.name} of {split!r} holds NaN or infinite values")
            for label, classes in getattr(self.data, "labels", {}).items():
                whole = not rows[label].is_floating_point() and bool(
                    ((rows[label] >= 0) & (rows[label] < classes)).all()
                )
                _need(whole, f"{label} of {split!r} holds what is no class from 0 to {classes - 1}")

    def check_index(self) -> None:
        """Every way to ask for a row gives the same one."""
        for split in self.splits:
            size = min(64, self.data.count(split))
            whole = self.rows(split, torch.arange(size))
            backwards = torch.arange(size - 1, -1, -1)
            for at, fault in (
                (backwards, "with the order in which rows are asked for"),
                (torch.zeros(3, dtype=torch.int64), "when it is asked for several times at once"),
                (torch.tensor([size - 1]), "with the rows that are asked for beside it"),
                (torch.arange(size), "when it is asked for again"),
            ):
                _need(_equal(_picked(whole, at), self.rows(split, at)), f"a row of {split!r} changes {fault}")

    def check_seed_free(self) -> None:
        """In a world made anew, too: nothing is left of the process that made the first."""
        for seed in (0, 1):
            with _global_seed(seed):
                again = self.make()
                for split in self.splits:
                    at = torch.arange(min(64, self.data.count(split)))
                    _need(
                        _equal(self.rows(split, at), self.rows(split, at, again)),
                        f"rows of {split!r} differ in a dataset made anew: make them a function of the index, with "
                        "Draws or a generator of their own, seeded by the dataset's name",
                    )

    def check_splits(self) -> None:
        seen: dict[bytes, str] = {}
        for split in self.splits:
            rows = self.rows(split)
            parts = [rows[name].reshape(len(rows[name]), -1).double() for name in self.card.modalities if name in rows]
            together = torch.cat(parts, 1).cpu().numpy()
            for position, row in enumerate(together):
                other = seen.setdefault(row.tobytes(), split)
                _need(other == split, f"row {position} of {split!r} is also a row of {other!r}")

    def check_cells(self) -> None:
        for task in TASKS:
            for cell in cells_of(registry.stem(self.name), self.card.modalities, task):
                rows, most = self.data.rows_of(cell), self.data.count(split_of(self.data, cell))
                _need(isinstance(rows, int) and rows > 0, f"rows_of({cell}) = {rows!r}: a cell needs rows")
                _need(not cell.given or rows <= most, f"rows_of({cell}) = {rows}, and the test split has {most} rows")

    def check_scale(self) -> None:
        for split in self.corpora() or ("train",):
            self.check_scale_of(self.rows(split))

    def check_scale_of(self, rows: Batch) -> None:
        for modality in self.data.modalities:
            if modality.kind == "label" or modality.name not in rows:
                continue
            x = (rows[modality.name].double() - modality.center) / modality.scale
            mean, spread = x.mean().item(), x.std().item()
            _need(
                0.3 <= spread <= 3 and abs(mean) <= 2,
                f"standardised {modality.name} has mean {mean:.3g} and "
                f"standard deviation {spread:.3g}, not about 0 and 1: mend the modality's center and scale",
            )

    @property
    def splits(self) -> tuple[str, ...]:
        return (*(self.corpora() or ("train",)), "validation", "test")

    def corpora(self) -> tuple[str, ...]:
        """Splits whose rows hold some of the modalities each; none where the training rows hold all."""
        return tuple(getattr(self.data, "corpora", ()))

    def make(self) -> Any:
        with self.watch.calling("building it"):
            return _built(self.name, _resolved(self.card))

    def rows(self, split: str, at: Tensor | None = None, data: Any = None) -> Batch:
        data = self.data if data is None else data
        at = torch.arange(min(self.MOST, data.count(split))) if at is None else at
        with self.watch.calling(f"rows({split!r}, ...)"):
            return data.rows(split, at.clone())


# ------------------------------------------------------------------------------------------ metrics


@dataclass(frozen=True)
class _Rows:
    """What a cell compares: held-out rows, and generated ones of a perfect sampler and of shuffled pairs."""

    cell: Cell
    real: Rows
    perfect: Rows
    shuffled: Rows

    def mixed(self) -> Rows:
        """Half of the rows perfect, by lot: a score whose standard error is not zero."""
        lot = Draws("conform", "mixed", rows=METRIC_ROWS).uniform("row") < 0.5

        def half(first: Any, second: Any) -> Any:
            if isinstance(first, list):
                return [a if heads else b for heads, a, b in zip(lot.tolist(), first, second, strict=True)]
            return torch.where(lot.view(-1, *[1] * (first.ndim - 1)), first, second)

        return {name: half(x, self.shuffled[name]) for name, x in self.perfect.items()}


class _MetricSuite:
    """A metric on the sanity rows of a known world: `real` is perfect, `chance` is shuffled."""

    def __init__(self, name: str, card: MetricCard, dataset: str, watch: _Watch) -> None:
        self.name, self.card, self.dataset, self.watch = name, card, dataset, watch
        self.formulas: dict[tuple[Callable[..., Any], Cell], float | None] = {}
        self.first = [("card is complete", self.check_card), ("applies to its tasks", self.check_applies)]
        self.rest = [
            ("scores are finite", self.check_scores),
            ("real rows beat shuffled ones", self.check_direction),
            ("blocks of rows do not matter", self.check_blocks),
            ("the order of rows does not matter", self.check_order),
            ("NaN and infinite rows are refused", self.check_nan),
            ("too few rows are refused", self.check_few_rows),
            ("the standard error is the spread of repetitions", self.check_stderr),
            ("chance and ceiling are what the sanity rows score", self.check_formulas),
            ("leaves global generators alone", watch.generators),
            ("leaves the process as it was", watch.settings),
            ("writes no files", watch.files),
        ]

    def check_card(self) -> None:
        _card_is_filled(self.card)
        _known_tasks(self.card.tasks, (*TASKS, "criteria"))
        scales = ("linear", "log", "logit")
        _need(self.card.scale in scales, f"scale = {self.card.scale!r}: choose from {', '.join(scales)}")

    def check_applies(self) -> str:
        data_card = registry.card("dataset", self.dataset)
        rows = [f"{field}={METRIC_ROWS}" for field in ("evaluation_rows", "unconditional_rows", "probe_rows")]
        config = _resolved(data_card, (*TINY, *rows), {registry.stem(self.name): self.card})
        self.data = _built(self.dataset, config)
        with self.watch.calling("importing it"):
            self.metric: Any = registry.load("metric", self.name, config.own_values)
        self.repeats = getattr(self.metric, "draws_per_row", 1)
        refused, self.rows = [], []
        for candidates in self.candidates(data_card):
            found, reason = None, ""
            for cell in candidates:
                try:
                    self.make(cell)
                    found = self.factor_rows(cell) if "criteria" in self.card.tasks else self.sanity_rows(cell)
                    break
                except Inapplicable as why:
                    reason = reason or f"{cell}: {why}"
            if found is None:
                refused.append(reason)
            else:
                self.rows.append(found)
        if refused and ("criteria" not in self.card.tasks or not self.rows):
            hint = "leave the task out of the card" if self.rows else "try it on another dataset"
            raise Fault(f"{'; '.join(refused)}: {hint}")
        return f"{len(self.rows)} cells"

    def candidates(self, data_card: DatasetCard) -> Iterator[list[Cell]]:
        """The cells of every task, of which the first that has the number is taken; for the criteria, one factor that
        is seen, and all modalities from nothing."""
        if "criteria" in self.card.tasks:
            known = {cell.want: cell for cell, _ in cells_of_dataset(self.dataset)}  # the last: given every modality
            yield from ([next(iter(known.values()))], [list(known.values())[-1]])
        for task in self.card.tasks:
            if task != "criteria":
                yield list(cells_of(registry.stem(self.dataset), data_card.modalities, task, every_subset=True))

    def sanity_rows(self, cell: Cell) -> _Rows:
        if hasattr(self.data, "render"):
            at = split_of(self.data, cell), torch.arange(METRIC_ROWS)
            things = {
                method: _made(method, self.dataset, self.data).things(
                    cell, *at, Draws("conform", cell, rows=METRIC_ROWS)
                )
                for method in ("real", "chance")
            }
            return _Rows(cell, self.data.raw(*at), things["real"], things["chance"])
        real = self.data.rows("test", torch.arange(METRIC_ROWS))
        return _Rows(cell, real, self.generated("real", cell, real), self.generated("chance", cell, real))

    def generated(self, method: str, cell: Cell, real: Batch) -> Batch:
        sampler = _made(method, self.dataset, self.data)
        draws = Draws("conform", cell, rows=METRIC_ROWS)
        samples = [
            copied(sampler.sample(given_of(sampler, cell, real), cell.want, METRIC_ROWS, draws))
            for _ in range(self.repeats)
        ]
        return {name: _together([sample[name] for sample in samples]) for name in cell.want}

    def factor_rows(self, cell: Cell) -> _Rows:
        """Predictions of a factor: its truth, or its mean. Decodings of a prior sample: all one, or all independent."""
        if not cell.given:
            rows = self.sanity_rows(cell)
            alike = {name: x[:, :1].expand_as(x) for name, x in rows.perfect.items()}
            return _Rows(cell, rows.real, alike if self.repeats > 1 else rows.perfect, rows.shuffled)
        (name,) = cell.want
        truth = self.data.factors("test", torch.arange(METRIC_ROWS))[name.removeprefix("factor:")]
        return _Rows(cell, {name: truth}, {name: truth}, {name: truth.mean(0).expand_as(truth)})

    def check_scores(self) -> str:
        for rows in self.rows:
            score = self.score(rows.cell, rows.real, rows.mixed())
            _need(isinstance(score, Score), f"compute() returns a {type(score).__name__}, not a Score")
            _need(math.isfinite(score.value), f"{rows.cell} scores {score.value} on finite rows")
            _need(score.stderr is None or score.stderr >= 0, f"{rows.cell} has the standard error {score.stderr}")
            _need(score.n == METRIC_ROWS, f"{rows.cell} says n = {score.n} for {METRIC_ROWS} rows")
        return f"{rows.cell}: {score.value:.4g}"

    def check_direction(self) -> str:
        told = 0
        for rows in self.rows:
            chance, ceiling = (self.expected(formula, rows.cell) for formula in ("chance", "ceiling"))
            if chance is not None and ceiling is not None and math.isclose(chance, ceiling, rel_tol=1e-6):
                continue  # shuffled rows are as good as real ones, and the metric says so
            real, shuffled = (self.score(rows.cell, rows.real, each) for each in (rows.perfect, rows.shuffled))
            gain = (real.value - shuffled.value) * (1 if self.card.higher_is_better else -1)
            noise = 4 * math.hypot(real.stderr or 0, shuffled.stderr or 0)
            better = "higher" if self.card.higher_is_better else "lower"
            scores = f"{rows.cell}: real rows score {real.value:.4g} and shuffled ones {shuffled.value:.4g}"
            _need(gain >= -noise, f"{scores}, yet the card says that {better} is better")
            _need(gain > noise, f"{scores}, which is no difference: if none is due, let chance() equal ceiling()")
            told += 1
        if not told:
            raise Skip("by its formulas, shuffled rows are as good as real ones")
        return f"{told} cells"

    def check_blocks(self) -> None:
        for rows in self.rows:
            whole = self.score(rows.cell, rows.real, rows.mixed())
            for block in (100, BLOCK):
                self.same(
                    whole,
                    self.score(rows.cell, rows.real, rows.mixed(), block),
                    1e-9,
                    rows.cell,
                    f"fed in blocks of {block} rows instead of one",
                )

    def check_order(self) -> None:
        order = torch.randperm(METRIC_ROWS, generator=torch.Generator().manual_seed(0))
        for rows in self.rows:
            whole = self.score(rows.cell, rows.real, rows.mixed())
            moved = self.score(rows.cell, _picked(rows.real, order), _picked(rows.mixed(), order))
            self.same(whole, moved, 1e-9, rows.cell, "when real and generated rows are put in another order together")

    def same(self, first: Score, second: Score, tolerance: float, cell: Cell, when: str) -> None:
        close = math.isclose(first.value, second.value, rel_tol=tolerance, abs_tol=1e-12)
        _need(close, f"{cell} scores {first.value!r}, and {second.value!r} {when}")

    def check_nan(self) -> None:
        for rows in self.rows:
            for bad in (math.nan, math.inf) if _floats(rows.perfect) else ():
                broken = rows.mixed()
                for x in _floats(broken):
                    x[0] = bad
                try:
                    score = self.score(rows.cell, rows.real, broken)
                except (UserError, ValueError):
                    continue
                raise Fault(f"{rows.cell}: a generated row of {bad} gives the score {score.value}: raise ValueError")

    def check_few_rows(self) -> None:
        for rows in self.rows:
            for size in (0, self.card.min_rows - 1):
                try:
                    few = slice(0, size)
                    score = self.score(rows.cell, _picked(rows.real, few), _picked(rows.mixed(), few))
                except (Inapplicable, ValueError):
                    continue
                raise Fault(
                    f"{rows.cell}: {size} rows give the score {score.value}: raise Inapplicable below min_rows = "
                    f"{self.card.min_rows}"
                )

    def check_stderr(self) -> str:
        ratios = []
        for rows in self.rows:
            size = max(METRIC_ROWS // 8, self.card.min_rows)
            # Neighbouring rows may be balanced, and then either they or sets at random are more alike than by chance.
            orders = (
                torch.arange(METRIC_ROWS),
                torch.randperm(METRIC_ROWS, generator=torch.Generator().manual_seed(1)),
            )
            found = [each for order in orders if (each := self.stderr_ratio(rows, order, size)) is not None]
            if not found:
                continue
            ratio = min(found, key=lambda each: abs(math.log(each)))
            _need(
                0.25 <= ratio <= 4,
                f"{rows.cell}: the standard error is {ratio:.2g} times the spread of the scores of sets of {size} rows",
            )
            ratios.append(ratio)
        if not ratios:
            raise Skip("it states no standard error, so the spread over seeds is the error bar")
        return f"{min(ratios):.2g} to {max(ratios):.2g} times the spread"

    def stderr_ratio(self, rows: _Rows, order: Tensor, size: int) -> float | None:
        """Standard error over spread of the scores of sets of `size` rows; None where there is none, or few sets."""
        pieces = [order[at : at + size] for at in range(0, METRIC_ROWS - size + 1, size)]
        scores = [self.score(rows.cell, _picked(rows.real, at), _picked(rows.mixed(), at)) for at in pieces]
        errors = [score.stderr for score in scores if score.stderr is not None]
        if not errors or len(pieces) < 4:
            return None
        spread = float(np.std([score.value for score in scores], ddof=1))
        return (sum(errors) / len(errors)) / spread if spread else 1.0

    def check_formulas(self) -> None:
        stated = False
        for rows in self.rows:
            for formula, generated in (("chance", rows.shuffled), ("ceiling", rows.perfect)):
                expected = self.expected(formula, rows.cell)
                if expected is None:
                    continue
                stated = True
                found = self.score(rows.cell, rows.real, generated)
                # Where a metric states no error, one measurement at its floor varies by a tenth.
                allowed = 0.25 * abs(expected) if found.stderr is None else 4 * found.stderr
                _need(
                    abs(found.value - expected) <= allowed + 1e-9,
                    f"{rows.cell}: {formula}() says {expected:.4g}, and its sanity rows score {found.value:.4g}",
                )
        if not stated:
            raise Skip("it states neither a chance value nor a ceiling here")

    def expected(self, formula: str, cell: Cell) -> float | None:
        """The value of chance() or ceiling(), worked out once: some take a second, and both may be one function."""
        call = getattr(self.metric, formula)
        if (call, cell) not in self.formulas:
            with self.watch.calling(f"{formula}() for {cell}"):
                self.formulas[call, cell] = call(cell, self.data)
        return self.formulas[call, cell]

    def make(self, cell: Cell) -> Any:
        with self.watch.calling(f"making it for {cell}"):
            return self.metric(cell, self.data)

    def score(self, cell: Cell, real: Rows, generated: Rows, block: int = METRIC_ROWS) -> Score:
        made = self.make(cell)
        with self.watch.calling(f"update() for {cell}"):
            for at in range(0, len(next(iter(generated.values()))), block):
                part = slice(at, at + block)
                made.update(copied(_picked(real, part)), copied(_picked(generated, part)))
        with self.watch.calling(f"compute() for {cell}"):
            return made.compute()


def _picked(batch: Rows, at: slice | Tensor) -> Rows:
    def pick(x: Any) -> Any:
        return [x[place] for place in at.tolist()] if isinstance(x, list) and isinstance(at, Tensor) else x[at]

    return {name: pick(x) for name, x in batch.items()}


def _floats(batch: Rows) -> list[Tensor]:
    return [x for x in batch.values() if isinstance(x, Tensor) and x.is_floating_point()]


def _together(samples: list[Tensor]) -> Tensor:
    """As the evaluation hands several draws of a row over: along a second dimension."""
    return samples[0] if len(samples) == 1 else torch.stack(samples, 1)


_SUITES: dict[str, Any] = {"method": _MethodSuite, "dataset": _DatasetSuite, "metric": _MetricSuite}
