"""The contract between the suite and its plug-ins: cards, cells, and what a method, dataset and metric answer.

Imports the standard library only. A plug-in is one Python file with a literal `CARD`, which is
read without importing the file, and one handle: `METHOD`, `DATASET` or `METRIC`, a class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from benchmark.config import Config
    from benchmark.runtime import Draws

Batch = dict[str, "Tensor"]  # modality name -> (rows, *shape); only the observed modalities are there
# Pictures (rows, channels, height, width) in [0, 1], sounds (rows, samples) in [-1, 1], sentences of one line.
Raw = dict[str, "Tensor | list[str]"]
TASKS = ("one_to_one", "many_to_one", "one_to_many", "uncond")


class UserError(Exception):
    """Something the user can mend. One line that says what, where and how; the command exits with status 2."""


def one_line(text: object) -> str:
    """The text with every run of white space, line separators of any alphabet among them, as one space."""
    return " ".join(str(text).split())


class Unanswered(RuntimeError):
    """A cell of which some rows could not be generated now; other cells are not concerned."""


@dataclass(frozen=True)
class Modality:
    """One modality: `x * scale + center` is raw, and networks see `(raw - center) / scale`.

    An image is `(channels, height, width)` in [0, 1]; a label is an int64 index of shape `()` below `classes`. An image
    or audio of one dimension is a feature of it. A text is observed as a feature of `shape`, and generated as `words`
    int64 indices below `classes`, which rows of a dataset hold besides the feature (see `words_of`).
    """

    name: str
    shape: tuple[int, ...]
    kind: Literal["vector", "image", "label", "text", "audio"] = "vector"
    center: float = 0.0
    scale: float = 1.0
    classes: int = 0
    words: int = 0

    @property
    def generated_shape(self) -> tuple[int, ...]:
        """Of one generated row."""
        return (self.words,) if self.kind == "text" else self.shape


def words_of(name: str) -> str:
    """The key under which a batch holds the words of a text modality, (rows, words) int64."""
    return f"{name} words"


@dataclass(frozen=True)
class MethodCard:
    """Read from a method's file without importing it.

    `stages`: names and shares of the update budget, in order; empty means nothing is trained.
    `needs_full_rows`: trains only on rows in which every modality was observed.
    `overrides`: config fields in which the method differs from the shared recipe.
    `deviations`: differences from the method's own paper, printed under every table.
    `variants`: switches of the method, by name: class attributes and their values. `NAME:SWITCH`, or `NAME:ONE+OTHER`,
    is the method with them, wherever a method's name is asked for.
    """

    version: int
    label: str
    paper: str
    tasks: tuple[str, ...] = TASKS
    stages: tuple[tuple[str, float], ...] = (("joint", 1.0),)
    needs_full_rows: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)
    deviations: tuple[str, ...] = ()
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    kind = "method"


@dataclass(frozen=True)
class DatasetCard:
    """Read from a dataset's file without importing it; `modalities` are names, in order.

    `kinds`: of each modality, as in `Modality.kind`; empty where all are vectors.
    `labels`: what pictures show and no modality says; rows hold these classes beside the modalities.
    `recipe`: `{"shared" | preset: {field: (value, source)}}`, the training and evaluation recipe.
    """

    version: int
    label: str
    paper: str
    modalities: tuple[str, ...]
    recipe: Mapping[str, Mapping[str, tuple[Any, str]]]
    kinds: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    kind = "dataset"

    @property
    def holds(self) -> frozenset[str]:
        """The kinds of what its rows hold: of modalities, and "label" where they hold labels beside them."""
        return frozenset((*(self.kinds or ("vector",)), *(["label"] if self.labels else [])))


@dataclass(frozen=True)
class MetricCard:
    """Read from a metric's file without importing it.

    `scale`: the scale on which seeds vary evenly: "log" for distances, "logit" for rates, "linear" else.
    `chance`, `ceiling`: how the values of `Metric.chance` and `Metric.ceiling` come about, in words. `chance` begins
    with "the floor" where shuffled rows are as good as a perfect sampler's.
    `min_rows`: fewer generated rows than this are refused.
    `needs`: kinds without which a dataset has no such number (see `DatasetCard.holds`).
    """

    version: int
    label: str
    units: str
    higher_is_better: bool
    scale: Literal["linear", "log", "logit"]
    tasks: tuple[str, ...]
    estimator: str
    chance: str
    ceiling: str
    min_rows: int = 2
    needs: tuple[str, ...] = ()
    kind = "metric"


Card = MethodCard | DatasetCard | MetricCard


@dataclass(frozen=True, order=True)
class Cell:
    """One question put to a method: the `given` modalities are observed, the `want`ed ones are generated."""

    dataset: str
    given: tuple[str, ...]
    want: tuple[str, ...]

    @property
    def task(self) -> str:
        if not self.given:
            return "uncond"
        if len(self.want) > 1:
            return "one_to_many" if len(self.given) == 1 else "many_to_many"
        return "one_to_one" if len(self.given) == 1 else "many_to_one"

    def __str__(self) -> str:
        return f"{self.dataset}: {'+'.join(self.given) or 'nothing'} -> {'+'.join(self.want)}"

    @property
    def question(self) -> str:
        """For people, without the dataset."""
        return f"{' + '.join(self.given) or 'nothing'} → {' + '.join(self.want)}"

    @property
    def stem(self) -> str:
        """For files, without the dataset."""
        return f"{'+'.join(self.given) or 'nothing'}_to_{'+'.join(self.want)}"


def cells(dataset: str, modalities: Sequence[str], task: str, every_subset: bool = False) -> Iterator[Cell]:
    """The cells of a task. many_to_one gives all other modalities, or with `every_subset` any two or more.

    Raises UserError for an unknown task.
    """
    if task == "uncond":
        yield Cell(dataset, (), tuple(modalities))
    elif task == "one_to_one":
        yield from (Cell(dataset, (i,), (j,)) for i in modalities for j in modalities if i != j)
    elif task == "one_to_many":
        yield from (Cell(dataset, (i,), tuple(j for j in modalities if j != i)) for i in modalities)
    elif task == "many_to_one":
        for j in modalities:
            others = [i for i in modalities if i != j]
            sizes = range(2, len(others) + 1) if every_subset else [len(others)] if len(others) > 1 else []
            yield from (Cell(dataset, given, (j,)) for size in sizes for given in combinations(others, size))
    else:
        raise UserError(f"unknown task {task!r}: choose from {', '.join(TASKS)}")


@dataclass(frozen=True)
class Score:
    """A metric's value, its standard error over rows (None where no formula is honest) and its rows."""

    value: float
    stderr: float | None
    n: int


class Method(Protocol):
    """In practice an `nn.Module`. Draws every random number from `draws`, and touches no global generator.

    One may offer `known(metric, cell)`, the metric's exact value where nothing has to be sampled for it, or None, and
    `begin(stage, data)`, which is called before the first update of each stage and changes buffers alone.
    One that is not trained here may offer `protocol()`: JSON values of what its numbers depend on, whose hash stands at
    the end of its rows' protocol (a true `stand_in` among them marks the rows); and `origin()`: those that are known
    before it is asked. What it made with another origin is thrown away.
    A sanity row may name in `told_labels` the labels of the given rows that it is told, too (see `Dataset`).
    """

    def __init__(self, modalities: Sequence[Modality], config: Config) -> None: ...

    def loss(self, batch: Batch, stage: str, draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Scalar to minimise, and detached parts to log; rows hold the modalities that were observed."""
        ...

    def sample(self, given: Batch, want: Sequence[str], rows: int, draws: Draws) -> Batch:
        """`rows` rows of every wanted modality in raw units; row r answers row r of `given` (empty: from nothing)."""
        ...


class Dataset(Protocol):
    """Rows are a pure function of (variant, split, index); `--seed` never moves them.

    One whose world is known answers for the rows `real` and `chance` too: `conditional(given, want, draws)`, fresh
    rows of the exact law of `want` given the observed modalities (Inapplicable where it cannot), and
    `independent(want, draws)`, fresh rows of each modality apart.

    One whose pictures show what no modality says has `labels`, {name: classes}: its rows hold these, (rows,) int64,
    beside the modalities, and no method that is compared reads them.

    One whose training rows hold some of the modalities each names the splits of like rows in `corpora`; a batch comes
    from one of them. One whose modalities are features of pictures, sounds and sentences answers for those, too:
    `raw(split, indices)`, the things themselves as a `Raw` batch; `render(generated, draws)`, things from generated
    features; `real(split, indices)`, as `raw` with another sentence of each row; `split_of(cell)`, the split whose
    rows a cell gives and compares with, and `fresh_split(cell)`, other rows of the same kind, for Fréchet distances;
    `clusters(split, indices)`, (rows,) numbers of which rows of one are not independent; `sample_rate`, of sounds, in
    Hz; `language_model()` (models/texts.py); `judged_by`, "trained" or "pretrained" judges
    (benchmark/metrics/judges.py), and for trained ones `digit_of(text)` and the `world` behind the features.
    """

    modalities: tuple[Modality, ...]

    def __init__(self, config: Config, device: str) -> None: ...

    def count(self, split: str) -> int:
        """Rows of "train", "validation", "test", and of further splits that a metric may ask for."""
        ...

    def rows_of(self, cell: Cell) -> int:
        """Rows that a method generates for a cell: the first of the test split's where it gives any."""
        ...

    def rows(self, split: str, indices: Tensor) -> Batch:
        """Raw rows at `indices` (int64, on the dataset's device)."""
        ...


class Metric(Protocol):
    """Made once per cell; sees blocks of rows in order; float64 inside; independent of the block size.

    One may offer `protocol(data)`: JSON values of what its numbers depend on besides the configuration (models and
    their revisions, preprocessing, scale, references), whose hash stands in its rows behind the configuration's.
    """

    def __init__(self, cell: Cell, data: Any) -> None:
        """Raises Inapplicable, with the reason, when the cell has no such number."""
        ...

    def update(self, real: Batch, generated: Batch) -> None:
        """`real`: all modalities of held-out rows, aligned with `generated` where the cell gives any."""
        ...

    def compute(self) -> Score: ...

    @staticmethod
    def chance(cell: Cell, data: Any) -> float | None:
        """Expected value for generated rows that are real rows, shuffled against their sources and each other."""
        ...

    @staticmethod
    def ceiling(cell: Cell, data: Any) -> float | None:
        """Expected value for a perfect sampler."""
        ...


class Inapplicable(Exception):
    """A cell that has no such number; the reason becomes the row's `n/a` status."""
