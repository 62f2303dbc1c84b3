"""What metrics of labels share: which labels a modality shows, what the verifier reads in pictures, rates over rows.

A label modality shows itself. A picture shows every label of its dataset, as the verifier reads it: a network that the
suite trains on a split of its own (benchmark/judges/verifier.py). Labels are uniform over their classes. Where no
modality is a label (PolyMNIST, MNIST-SVHN), rows hold what their pictures show beside the modalities.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from benchmark.api import Batch, Cell, Inapplicable, Score
from benchmark.judges import verifier
from benchmark.judges.verifier import labels_of
from benchmark.metrics.common.row_statistics import mean_of

Shown = dict[str, dict[str, Tensor]]  # modality -> label -> class, (rows,) int64
Asked = dict[str, tuple[str, ...]]  # modality -> the labels that are looked for in it


def shown_by(data: Any, names: Iterable[str]) -> Asked:
    """The labels that can be read from each modality; a modality that shows none is left out.

    Raises Inapplicable for a dataset without pictures, labels, or a split that a verifier could learn from.
    """
    kinds = {modality.name: modality.kind for modality in data.modalities}
    labels = tuple(labels_of(data))
    if not labels or "image" not in kinds.values() or not hasattr(data, "identity"):
        raise Inapplicable("the dataset has no labelled pictures that a verifier could learn from")
    of_kind = {"label": lambda name: (name,), "image": lambda name: labels}
    return {name: of_kind[kinds[name]](name) for name in names if kinds.get(name) in of_kind}


def pictures(data: Any, names: Iterable[str]) -> list[str]:
    """Those of the modalities that are pictures."""
    kinds = {modality.name: modality.kind for modality in data.modalities}
    return [name for name in names if kinds[name] == "image"]


def determined(data: Any, cell: Cell) -> set[str]:
    """The labels that the given modalities fix."""
    return {label for labels in shown_by(data, cell.given).values() for label in labels}


def read(data: Any, batch: Batch, names: Iterable[str]) -> Shown:
    """The labels that rows of each modality show.

    Raises ValueError for pictures that are not finite, labels that are no whole numbers, and unequal numbers of rows.
    """
    found: Shown = {}
    for name in names:
        rows = batch[name]
        if name not in labels_of(data):
            found[name] = verifier.reading(data, name, str(rows.device)).read(rows).labels
        elif rows.is_floating_point():
            raise ValueError(f"{name} holds labels that are no whole numbers")
        else:
            found[name] = {name: rows.long()}
    sizes = {name: len(rows) for name, shown in found.items() for rows in shown.values()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"unequal numbers of rows: {sizes}")
    return found


def luck(data: Any, labels: Iterable[str], others: int = 1) -> float:
    """The probability that `others` independent draws of each label all equal a first one."""
    classes = labels_of(data)
    return math.prod(classes[label] ** -others for label in labels)


def mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found)


def score_of(per_row: list[Tensor], least: int, what: str) -> Score:
    """The mean of rates between 0 and 1 over rows, from blocks (rows,).

    Its standard error is over rows, and at least that of one row that differs: rows that are all alike do not make a
    rate of zero or one exact. Raises Inapplicable below `least` rows.
    """
    found = mean_of(per_row, least, what)
    return Score(found.value, max(found.stderr or 0, 1 / found.n), found.n)


class LabelRate:
    """The mean over rows of `rates(real, generated)`, each between 0 and 1.

    Labels are uniform, so by chance its value is known; the verifier's errors touch it in second order alone.
    """

    least, chance_is_exact = 2, True

    def __init__(self, cell: Cell, data: Any) -> None:
        self._cell, self._data = cell, data
        self._per_row: list[Tensor] = []

    def rates(self, real: Batch, generated: Batch) -> Tensor:
        """(rows,)"""
        raise NotImplementedError

    def update(self, real: Batch, generated: Batch) -> None:
        self._per_row.append(self.rates(real, generated).double())

    def compute(self) -> Score:
        return score_of(self._per_row, self.least, f"{type(self).__name__} of {self._cell}")

    @classmethod
    def ceiling(cls, cell: Cell, data: Any) -> float | None:
        """The value where held-out rows stand for the generated ones: what the verifier's own errors leave."""
        metric, real = cls(cell, data), verifier.real_rows(data, getattr(data, "device", "cpu"))
        metric.update(real, {name: real[name] for name in cell.want})
        return metric.compute().value


class Recovered(LabelRate):
    """Share of the modalities that show every label asked of them as the real row has it, averaged over modalities."""

    def __init__(self, cell: Cell, data: Any) -> None:
        super().__init__(cell, data)
        self._asked = self.asked(cell, data)

    @staticmethod
    def asked(cell: Cell, data: Any) -> Asked:
        """What the given modalities fix of each wanted one. Raises Inapplicable where that is nothing."""
        known = determined(data, cell)
        asked = {
            name: tuple(label for label in labels if label in known)
            for name, labels in shown_by(data, cell.want).items()
        }
        asked = {name: labels for name, labels in asked.items() if labels}
        if not asked:
            raise Inapplicable("what is given fixes no label of what is wanted")
        return asked

    def rates(self, real: Batch, generated: Batch) -> Tensor:
        truth = read(self._data, real, labels_of(self._data))
        shown = read(self._data, generated, self._asked)
        hits = []
        for name, labels in self._asked.items():
            if len(shown[name][labels[0]]) != len(truth[labels[0]][labels[0]]):
                raise ValueError(f"{name}: generated rows and real rows differ in number")
            hits.append(
                all_of(shown[name][label] == truth[label][label].to(generated[name].device) for label in labels)
            )
        return torch.stack(hits).double().mean(0)

    @classmethod
    def chance(cls, cell: Cell, data: Any) -> float | None:
        return mean(luck(data, labels) for labels in cls.asked(cell, data).values())


class PairAgreement(LabelRate):
    """Share of the pairs of generated modalities that agree on every label asked of the pair."""

    def __init__(self, cell: Cell, data: Any) -> None:
        super().__init__(cell, data)
        self._pairs = self.pairs(cell, data)

    @staticmethod
    def pairs(cell: Cell, data: Any) -> dict[tuple[str, str], tuple[str, ...]]:
        """(first, second) -> labels. Raises Inapplicable where there is no pair."""
        raise NotImplementedError

    def rates(self, real: Batch, generated: Batch) -> Tensor:
        shown = read(self._data, generated, {name for pair in self._pairs for name in pair})
        agree = [
            all_of(shown[i][label] == shown[j][label] for label in labels) for (i, j), labels in self._pairs.items()
        ]
        return torch.stack(agree).double().mean(0)

    @classmethod
    def chance(cls, cell: Cell, data: Any) -> float | None:
        return mean(luck(data, labels) for labels in cls.pairs(cell, data).values())


def pairs_that_share(data: Any, names: Sequence[str], without: set[str]) -> dict[tuple[str, str], tuple[str, ...]]:
    """Pairs of modalities, each with the labels that both show, but for some; pairs that share none are left out."""
    shown = shown_by(data, names)
    shared = {
        (i, j): tuple(label for label in shown[i] if label in shown[j] and label not in without)
        for i, j in combinations(shown, 2)
    }
    return {pair: labels for pair, labels in shared.items() if labels}


class Coherence(LabelRate):
    """Share of the rows in which all generated modalities agree on each of `labels` (none named: on every label)."""

    labels: tuple[str, ...] = ()

    def __init__(self, cell: Cell, data: Any) -> None:
        super().__init__(cell, data)
        self._showing = self.showing(cell, data)

    @classmethod
    def showing(cls, cell: Cell, data: Any) -> dict[str, list[str]]:
        """Label -> the wanted modalities that show it. Raises Inapplicable where no label is shown twice."""
        if cell.given:
            raise Inapplicable("coherence is asked of rows that are generated from nothing")
        shown = shown_by(data, cell.want)
        showing = {
            label: [name for name, labels in shown.items() if label in labels]
            for label in labels_of(data)
            if label in cls.labels or not cls.labels
        }
        showing = {label: names for label, names in showing.items() if len(names) > 1}
        if not showing:
            raise Inapplicable("no two of the wanted modalities show one label")
        return showing

    def rates(self, real: Batch, generated: Batch) -> Tensor:
        shown = read(self._data, generated, dict.fromkeys(name for names in self._showing.values() for name in names))
        return all_of(
            shown[names[0]][label] == shown[name][label] for label, names in self._showing.items() for name in names[1:]
        )

    @classmethod
    def chance(cls, cell: Cell, data: Any) -> float | None:
        return math.prod(luck(data, [label], len(names) - 1) for label, names in cls.showing(cell, data).items())


def all_of(holds: Iterable[Tensor]) -> Tensor:
    """(rows,) bool: every one of these, (rows,) bool each."""
    return torch.stack(list(holds)).all(0)
