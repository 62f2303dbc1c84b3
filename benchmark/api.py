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


SEEDS = range(
    2**32
)  # a training's seeds: torch's generator on a CPU keeps 32 bits of a seed, and takes s + 2**32 for s


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


# What a card's `fields` hold: {name: {"value": shared default, "source": where it comes from}}, and as needed the value
# of a preset under its name; "least", "most", "positive": True, "choices": [...]; "scoring": True where no trained
# weight depends on it; "scales_with": the field of the recipe with which searches vary it. `--set NAME=VALUE` and
# `bench info` know them, and the class has each as an attribute, which it declares: `beta: float`.
Fields = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class MethodCard:
    """Read from a method's file without importing it.

    `stages`: names and shares of the update budget, in order; empty means nothing is trained.
    `needs_full_rows`: trains only on rows in which every modality was observed.
    `overrides`: config fields in which the method differs from the shared recipe.
    `deviations`: differences from the method's own paper, printed under every table.
    `variants`: switches of the method, by name: class attributes and their values. `NAME:SWITCH`, or `NAME:ONE+OTHER`,
    is the method with them, wherever a method's name is asked for.
    `fields`: hyper-parameters of its own (see `Fields`).
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
    fields: Fields = field(default_factory=dict)
    kind = "method"


@dataclass(frozen=True)
class DatasetCard:
    """Read from a dataset's file without importing it; `modalities` are names, in order.

    `kinds`: of each modality, as in `Modality.kind`; empty where all are vectors.
    `labels`: what pictures show and no modality says; rows hold these classes beside the modalities.
    `recipe`: `{"shared" | preset: {field: (value, source)}}`, the training and evaluation recipe.
    `like`: the dataset whose recipe it has but for what `recipe` says: None there leaves a field or a whole preset out,
    and a field that "shared" leaves out is in no preset.
    `fields`: parameters of its own (see `Fields`).
    """

    version: int
    label: str
    paper: str
    modalities: tuple[str, ...]
    recipe: Mapping[str, Any]
    kinds: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    like: str = ""
    fields: Fields = field(default_factory=dict)
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
    `fields`: parameters of its own (see `Fields`); they change its rows alone.
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
    fields: Fields = field(default_factory=dict)
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


# A call may change the rows and latents that it is given, and keep what it answers: the suite goes on with copies. What
# a plug-in changes of the process (seeds, torch's settings, the working folder) is put back after it, and said.

# What every plug-in answers, and below it what it may offer besides: who needs that asks by name, and does without it,
# or says that the cell has no such number, where a plug-in lacks it.


class Method(Protocol):
    """In practice an `nn.Module`, as one with stages must be. Draws every random number from `draws`, and touches no
    global generator."""

    def __init__(self, modalities: Sequence[Modality], config: Config) -> None: ...

    def loss(self, batch: Batch, stage: str, draws: Draws) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Scalar to minimise, and detached parts to log; rows hold the modalities that were observed."""
        ...

    def sample(self, given: Batch, want: Sequence[str], rows: int, draws: Draws) -> Batch:
        """`rows` rows of every wanted modality in raw units; row r answers row r of `given` (empty: from nothing)."""
        ...


class TakesDataset(Protocol):
    """A method that has to know more of the dataset than its modalities; the runner tells it, once it is built."""

    def bind(self, data: Any) -> None:
        """May make weights. Raises Inapplicable for a dataset that the method cannot do with."""
        ...


class PreparesStages(Protocol):
    """A method that measures something between its stages; the trainer says when."""

    def begin(self, stage: str, data: Dataset) -> None:
        """Called before the first update of each stage, whose weights are by then the average of the stage before;
        changes buffers alone."""
        ...


class HasLatent(Protocol):
    """A method that infers one latent, (rows, size) of any size, whatever is given; the criteria probe it."""

    def infer(self, given: Batch, draws: Draws) -> Tensor:
        """(rows, size) from the given modalities. Raises Inapplicable for a subset from which it infers none."""
        ...

    def sample_prior(self, rows: int, draws: Draws) -> Tensor:
        """(rows, size) from nothing."""
        ...

    def decode(self, z: Tensor, want: Sequence[str], draws: Draws) -> Batch:
        """A row of every wanted modality, raw units, from each of the latents (rows, size)."""
        ...


class MakesThings(Protocol):
    """A method that makes pictures, sounds and sentences itself; scoring asks it on a dataset that has `raw`."""

    def things(self, cell: Cell, split: str, indices: Tensor, draws: Draws) -> Raw:
        """What the cell wants, a row for each of the split's rows at `indices`, (rows,) int64; of the sizes, and with
        sounds at the rate, of the dataset's own. Raises Inapplicable for a direction that the method does not have, and
        Unanswered where rows could not be made now."""
        ...


class PublishedModel(Protocol):
    """A method whose weights were trained elsewhere; the runner files its rows by what answered, and `bench doctor`,
    `bench conform` and the tables ask whether it is on this machine."""

    @classmethod
    def content(cls, config: Config) -> Mapping[str, str]:
        """As `OfFiles.content`, of its checkpoint."""
        ...

    @classmethod
    def absent(cls) -> str:
        """Why it cannot be asked here and how to mend that, in one line; empty where it can be."""
        ...

    def origin(self) -> Mapping[str, Any]:
        """JSON values of what its numbers depend on that are known before it is asked. What it made with another origin
        is thrown away."""
        ...

    def protocol(self) -> Mapping[str, Any]:
        """JSON values of all that its numbers depend on, whose hash stands at the end of its rows' protocol; a true
        `stand_in` among them marks the rows."""
        ...


class KnowsScores(Protocol):
    """A sanity row some of whose scores need no rows; scoring asks it before it samples."""

    def known(self, metric: Any, cell: Cell) -> float | None:
        """The exact value of a metric, made for the cell; None where rows have to be drawn."""
        ...


class ToldLabels(Protocol):
    """A sanity row that is told more than the cell gives; scoring adds it to `given`."""

    told_labels: Sequence[str]  # of the dataset's `labels`


class Dataset(Protocol):
    """Rows are a pure function of (variant, split, index); `--seed` never moves them."""

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


class OnDevice(Protocol):
    """A dataset whose rows may lie elsewhere than on the processor; metrics make its indices there."""

    device: str


class Identified(Protocol):
    """A dataset that is made of files which may be others on another day; the runner refuses to go on with a run on
    others, and what the suite trains on its rows is kept under that name."""

    identity: str  # all that rows depend on besides configuration, code, split and index


class OfFiles(Protocol):
    """A dataset of the user's files; the runner asks before it takes over the rows of an earlier command."""

    @classmethod
    def content(cls, config: Config) -> Mapping[str, str]:
        """Name -> what the files hold now, as a checksum: "identity" as rows have it, or the name of what judges them.
        Quick, and without a download. Raises UserError where they are missing."""
        ...


class Corpora(Protocol):
    """A dataset whose training rows hold some of the modalities each; the trainer takes each batch from one of these
    splits, and methods that need full rows are refused."""

    corpora: tuple[str, ...]  # splits of like rows, in place of "train"


class KnownLaw(Protocol):
    """A dataset that samples its own laws; the rows `real` and `chance` ask it."""

    def conditional(self, given: Batch, want: Sequence[str], draws: Draws) -> Batch:
        """Fresh rows of the exact law of `want` given the observed modalities, raw units; from nothing where none are.
        Raises Inapplicable where that law is not known."""
        ...

    def independent(self, want: Sequence[str], draws: Draws) -> Batch:
        """Fresh rows of each modality apart, raw units: right marginals and no relation."""
        ...


class KnownCoordinates(Protocol):
    """A dataset of vectors that says which coordinates agree; metrics of shared and private ones and `bench sample` ask
    it."""

    def shared(self, first: str, second: str) -> tuple[Tensor, Tensor]:
        """Coordinates of each of two modalities that are equal in every row, aligned, (coordinates,) int64 each."""
        ...

    def private(self, modality: str) -> slice:
        """The coordinates that no other modality knows of."""
        ...


class KnownFactors(Protocol):
    """A dataset of vectors made of known factors, independent mixtures of unit normals with equal weights; the criteria
    ask for the factors, and metrics' `chance` and `ceiling` for the means."""

    means: Mapping[str, Tensor]  # factor -> (components, size)
    layout: Mapping[str, Mapping[str, slice]]  # modality -> factor -> the coordinates that it fills
    probe_rows: int  # of the validation split, that probes are fitted on

    def factors(self, split: str, indices: Tensor) -> Batch:
        """factor -> (rows, size): what is behind `rows`."""
        ...


class Labelled(Protocol):
    """A dataset whose pictures show what no modality says: its rows hold these classes, (rows,) int64, beside the
    modalities. Metrics of labels and the row `real` read them, and no method that is compared does."""

    labels: Mapping[str, int]  # name -> classes


class ReadByVerifier(Protocol):
    """A dataset that chooses the network which reads labels off its pictures; metrics of labels ask it, and train that
    network on its split "verifier"."""

    verifier: Literal["resnet", "segformer"]  # "resnet" where there is none


class FeaturesOfThings(Protocol):
    """A dataset whose modalities are features of pictures, sounds and sentences: what is scored is these things, at the
    rows of `split_of(cell)`, which is "test" for a dataset of other kinds."""

    sample_rate: int  # of sounds, in Hz
    judged_by: Literal["trained", "pretrained"]  # who embeds things and takes their features: see the next two

    def raw(self, split: str, indices: Tensor) -> Raw:
        """The things themselves of what the split holds, at `indices`, (rows,) int64."""
        ...

    def render(self, generated: Batch, draws: Draws) -> Raw:
        """Things from generated features (rows, size) and words (rows, words)."""
        ...

    def split_of(self, cell: Cell) -> str:
        """The split whose rows a cell gives and compares with."""
        ...

    def clusters(self, split: str, indices: Tensor) -> Tensor:
        """(rows,) int64: rows of one number are not independent."""
        ...


class TrainsJudges(Protocol):
    """A dataset that is judged by networks which the suite trains on its split "judge", whose rows hold all modalities
    (benchmark/judges/towers.py)."""

    world: Any  # that knows nothing of features and has `identity`, `sample_rate`, `count` and `raw`; or else itself

    def digit_of(self, text: str) -> int:
        """The digit that a sentence names; -1 where it names none, or several."""
        ...


class NamesJudges(Protocol):
    """A dataset that is judged by published networks; their metrics load them
    (benchmark/judges/pretrained_judges.py)."""

    models: Any  # a data_prep.pretrained.pretrained_codecs.Models


class FreshThings(Protocol):
    """A dataset of things that has rows to spare; Fréchet distances compare with these, and else with the cell's."""

    def fresh_split(self, cell: Cell) -> str:
        """A split of other rows of the same kind as the cell's."""
        ...


class OtherSentences(Protocol):
    """A dataset of things that has two sentences for one thing; the row `real` and the metrics' ceilings ask it."""

    def real(self, split: str, indices: Tensor) -> Raw:
        """As `raw`, with another sentence of each row."""
        ...


class WritesTexts(Protocol):
    """A dataset whose text modality is written by a frozen language model; methods with a latent bind to it."""

    def language_model(self) -> Any:
        """A models.components.texts.LanguageModel."""
        ...


class Metric(Protocol):
    """Made once per cell; sees blocks of rows in order; float64 inside; independent of the block size."""

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


class SeveralDraws(Protocol):
    """A metric that compares several samples of one source; scoring draws as many for it."""

    draws_per_row: int  # above 1, `generated` holds (rows, draws, *shape)


class ExactChance(Protocol):
    """A metric whose `chance` is no estimate; the row `chance` takes it without drawing rows."""

    chance_is_exact: bool


class StatesProtocol(Protocol):
    """A metric whose numbers depend on more than the configuration; scoring puts a hash of that into its rows, behind
    the configuration's."""

    @classmethod
    def protocol(cls, data: Any) -> Mapping[str, Any]:
        """JSON values: models and their revisions, preprocessing, scale, references."""
        ...


class Inapplicable(Exception):
    """A cell that has no such number; the reason becomes the row's `n/a` status."""
