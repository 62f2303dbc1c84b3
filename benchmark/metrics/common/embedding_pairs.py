"""What metrics of pictures, sounds and sentences share: checked rows, what is compared with what, clustered errors.

A dataset of them offers, besides `raw` (see benchmark.api.Dataset), `split_of(cell)`, whose first rows a cell gives and
compares with; `clusters(split, indices)`, since rows of one clip are not independent; and, where it has rows to spare,
`fresh_split(cell)`, whose first rows are what generated ones should look like. A dataset without the last compares with
the rows that a cell gives, as the paper does.
Scores are taken in float64 on the processor. Rows are told apart by their order: a metric sees them from row 0 on.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from benchmark.api import Cell, Inapplicable, Raw, Score
from benchmark.judges import judges
from benchmark.judges.judges import Judges, Pair, Things
from benchmark.metrics.common import frechet
from benchmark.metrics.common.row_statistics import enough

BLOCK = 256  # real rows that are read at a time
_kept: WeakKeyDictionary[Any, dict[Hashable, Any]] = WeakKeyDictionary()


class OfThings:
    """A metric of raw rows: it checks and counts them, and knows their clusters. `least`: fewer rows are refused."""

    name, least = "", 2

    def __init__(self, cell: Cell, data: Any) -> None:
        judges.judged_by(data)
        self._cell, self._data, self._rows = cell, data, 0

    def checked(self, real: Raw, generated: Raw, needed: Iterable[str] = ()) -> None:
        """Count the rows of a block. Raises ValueError where any is not as it should be.

        needed: modalities of `real` that are read besides the given ones.
        """
        found = {f"generated {name}": generated[name] for name in self._cell.want}
        if self._cell.given:
            found |= {f"real {name}": real[name] for name in dict.fromkeys((*self._cell.given, *needed))}
        for what, things in found.items():
            check(things, what)
        sizes = {what: len(things) for what, things in found.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"unequal numbers of rows: {sizes}")
        self._rows += next(iter(sizes.values()))

    def whole(self) -> None:
        """Raises Inapplicable where too few rows were seen."""
        enough(self._rows, self.least, f"{self.name} of {self._cell}")

    def clusters(self) -> Tensor:
        """(rows,) int64: rows that were seen and belong together share a number."""
        return clusters_of(self._cell, self._data, self._rows)

    @classmethod
    def protocol(cls, data: Any) -> dict[str, Any]:
        """What its numbers depend on besides the configuration, as JSON values; its hash stands in its rows."""
        return {"metric": cls.name, **cls.how(), **judges.protocol(data, cls.name)}

    @classmethod
    def how(cls) -> dict[str, Any]:
        """The metric's own part of its protocol."""
        raise NotImplementedError


def check(things: Things, what: str) -> None:
    """Raises ValueError where a picture or sound is not finite, or a sentence no string."""
    if isinstance(things, list):
        if not all(isinstance(text, str) for text in things):
            raise ValueError(f"{what} holds something that is no text")
    elif not torch.isfinite(things).all():
        raise ValueError(f"{what} holds NaN or infinite values")


def judges_of(data: Any) -> Judges:
    return judges.of(data, getattr(data, "device", "cpu"))


def sides(cell: Cell, pair: Pair) -> dict[str, bool]:
    """Modality of the pair -> whether the cell generates it. Where one is given and the other is wanted they are
    compared; where both are wanted, what is generated together.

    Raises Inapplicable where the cell has no such pair.
    """
    found = {name: name in cell.want for name in pair if name in cell.want or name in cell.given}
    if len(found) < 2 or not any(found.values()):
        raise Inapplicable(f"no pair of {' and '.join(pair)} of which one is generated")
    return found


def rows_of(cell: Cell, data: Any) -> int:
    """Rows of the cell's split that stand for what it generates."""
    return min(data.rows_of(cell), data.count(data.split_of(cell)))


def fresh_split(cell: Cell, data: Any) -> str:
    """The split that a cell's generated rows should look like."""
    return data.fresh_split(cell) if hasattr(data, "fresh_split") else data.split_of(cell)


def blocks(data: Any, split: str, rows: int, kind: str = "raw") -> Iterator[Raw]:
    """The split's first rows, a few at a time; of kind "real", as the row `real` has them."""
    for at in torch.arange(rows, device=getattr(data, "device", "cpu")).split(BLOCK):
        yield getattr(data, kind)(split, at)


def clusters_of(cell: Cell, data: Any, rows: int) -> Tensor:
    """(rows,) int64: rows of one number depend on each other. Rows that are generated from nothing do not."""
    if not cell.given:
        return torch.arange(rows)
    return _clusters(data, data.split_of(cell), rows)


def _clusters(data: Any, split: str, rows: int) -> Tensor:
    return data.clusters(split, torch.arange(rows, device=getattr(data, "device", "cpu"))).cpu()


def keep(data: Any, key: Hashable, work: Callable[[], Any]) -> Any:
    """What `work` answers, worked out once per dataset and key: real rows serve every method and cell."""
    known = _kept.setdefault(data, {})
    if key not in known:
        known[key] = work()
    return known[key]


# ------------------------------------------------------------------------------------------ standard errors


def clustered_error(influence: Tensor, clusters: Tensor) -> float | None:
    """The standard error of a mean whose rows have these influences, (rows,) with mean 0, and are independent between
    clusters alone; None with one cluster.

    sqrt(G / (G - 1) * sum over the G clusters of (sum of its influences)^2) / rows, which is the plain one where every
    row is a cluster of its own. Source: Liang and Zeger, 1986; the factor: Cameron and Miller, 2015, Sec. II.B.
    """
    _, at = clusters.to(influence.device).unique(return_inverse=True)
    count = int(at.max()) + 1
    if count < 2:
        return None
    sums = influence.new_zeros(count).index_add(0, at, influence)
    return math.sqrt(count / (count - 1) * sums.square().sum().item()) / len(influence)


def clustered_mean(values: Tensor, clusters: Tensor, least: int, what: str) -> Score:
    """The mean of (rows,) and its standard error. Raises Inapplicable below `least` rows, ValueError for unequal
    numbers of rows."""
    values = values.double().cpu()
    enough(len(values), least, what)
    if len(values) != len(clusters):
        raise ValueError(f"{what}: {len(values)} values and {len(clusters)} clusters")
    return Score(values.mean().item(), clustered_error(values - values.mean(), clusters), len(values))


def clustered_rate(values: Tensor, clusters: Tensor, least: int, what: str) -> Score:
    """As `clustered_mean`, of rates between 0 and 1, with at least the error of one cluster that differs: rows that are
    all alike do not make a rate of zero or one exact."""
    found = clustered_mean(values, clusters, least, what)
    floor = 1 / len(clusters.unique())
    return Score(found.value, None if found.stderr is None else max(found.stderr, floor), found.n)


# ------------------------------------------------------------------------------------------ embedded pairs


class Embedded(OfThings):
    """A metric of the embeddings of a pair of modalities: `of_pairs(first, second, clusters)`, (rows, size) each."""

    pair: Pair

    def __init__(self, cell: Cell, data: Any) -> None:
        super().__init__(cell, data)
        self._generated = sides(cell, self.pair)
        self._embedded: dict[str, list[Tensor]] = {name: [] for name in self.pair}

    @staticmethod
    def of_pairs(first: Tensor, second: Tensor, clusters: Tensor, what: str) -> Score:
        """first, second: of the sides that `order` names; float64 on the processor, of unit norm."""
        raise NotImplementedError

    @classmethod
    def order(cls, cell: Cell) -> Pair:
        """Which side is the first one."""
        return cls.pair

    def update(self, real: Raw, generated: Raw) -> None:
        self.checked(real, generated)
        judging = judges_of(self._data)
        for name, blocks in self._embedded.items():
            things = (generated if self._generated[name] else real)[name]
            blocks.append(judging.embed(self.pair, name, things).double().cpu())

    def compute(self) -> Score:
        self.whole()
        first, second = (torch.cat(self._embedded[name]) for name in self.order(self._cell))
        return self.of_pairs(first, second, self.clusters(), f"{self.name} of {self._cell}")

    @classmethod
    def real(cls, cell: Cell, data: Any) -> tuple[Tensor, Tensor]:
        """Embeddings of the cell's real rows; of what is generated, as the row `real` has it. Worked out once."""
        split, rows, judging = data.split_of(cell), rows_of(cell, data), judges_of(data)
        generated = sides(cell, cls.pair)

        def work(name: str, kind: str) -> Tensor:
            things = (raw[name] for raw in blocks(data, split, rows, kind))
            return torch.cat([judging.embed(cls.pair, name, each).double().cpu() for each in things])

        first, second = (
            keep(data, ("embedded", cls.pair, name, kind, split, rows), functools.partial(work, name, kind))
            for name in cls.order(cell)
            for kind in ["real" if generated[name] and hasattr(data, "real") else "raw"]
        )
        return first, second

    @classmethod
    def ceiling(cls, cell: Cell, data: Any) -> float | None:
        """The value where the real counterpart stands for what is generated."""
        first, second = cls.real(cell, data)
        return cls.of_pairs(first, second, torch.arange(len(first)), str(cell)).value


class Cosine(Embedded):
    """100 times the cosine of a pair's embeddings, averaged over rows; no row is clamped at 0."""

    @staticmethod
    def of_pairs(first: Tensor, second: Tensor, clusters: Tensor, what: str) -> Score:
        return clustered_mean(100 * (first * second).sum(1), clusters, 2, what)

    @classmethod
    def chance(cls, cell: Cell, data: Any) -> float | None:
        """The mean over all pairs of real rows."""
        first, second = cls.real(cell, data)
        return (100 * first.mean(0) @ second.mean(0)).item()

    @classmethod
    def how(cls) -> dict[str, Any]:
        return {"version": 1, "scale": "100 cos", "pair": "+".join(cls.pair)}


# ------------------------------------------------------------------------------------------ Fréchet distances


class Frechet(OfThings):
    """Fréchet distance of one generated modality to as many fresh real rows, or to all that there are, on the judges'
    features.

    A thing may have several features rows (FAD has one for every 0.96 s): judges say how many by
    `parts(modality, things)`, (rows,) int64, and each counts alike.
    """

    modality, least = "", 128

    def __init__(self, cell: Cell, data: Any) -> None:
        super().__init__(cell, data)
        if self.modality not in cell.want:
            raise Inapplicable(f"no {self.modality} is wanted")
        self._features: list[Tensor] = []
        self._parts: list[Tensor] = []

    def update(self, real: Raw, generated: Raw) -> None:
        """`real` is counted and not read."""
        self.checked(real, generated)
        features, parts = read(self._data, self.modality, generated[self.modality])
        self._features.append(features)
        self._parts.append(parts)

    def compute(self) -> Score:
        self.whole()
        split = fresh_split(self._cell, self._data)
        rows = min(self._rows, self._data.count(split))
        enough(rows, self.least, f"the split {split}, with which {self.name} compares,")
        own = torch.cat(self._features), torch.cat(self._parts), self.clusters()
        other = *self.seen(self._data, split, rows), _clusters(self._data, split, rows)
        fits = [frechet.fit(features) for features, _, _ in (own, other)]
        errors = [_error(side, fits[at], fits[1 - at]) for at, side in enumerate((own, other))]
        known = [error for error in errors if error is not None]
        stderr = math.hypot(*known) if len(known) == len(errors) else None
        return Score(frechet.distance(*fits), stderr, self._rows)

    @classmethod
    def seen(cls, data: Any, split: str, rows: int) -> tuple[Tensor, Tensor]:
        """Features and their parts of a split's first rows, read once."""

        def work() -> tuple[Tensor, Tensor]:
            found = [read(data, cls.modality, raw[cls.modality]) for raw in blocks(data, split, rows)]
            return torch.cat([features for features, _ in found]), torch.cat([parts for _, parts in found])

        return keep(data, ("features", cls.modality, split, rows), work)

    @classmethod
    def chance(cls, cell: Cell, data: Any) -> float | None:
        """The floor at this number of rows, measured: the cell's own real rows against the fresh ones; None where they
        are the same."""
        own, fresh = data.split_of(cell), fresh_split(cell, data)
        if own == fresh:
            return None
        rows = min(rows_of(cell, data), data.count(fresh))
        return frechet.distance(*(frechet.fit(cls.seen(data, split, rows)[0]) for split in (own, fresh)))

    ceiling = chance

    @classmethod
    def how(cls) -> dict[str, Any]:
        return {"version": 1, "distance": "Fréchet, unbiased covariances, float64", "references": "as many, or all"}


def read(data: Any, modality: str, things: Things) -> tuple[Tensor, Tensor]:
    """Features (parts of all rows, size) float32 on the processor, and how many parts each row has, (rows,) int64."""
    judging = judges_of(data)
    features = judging.features(modality, things).float().cpu()
    parts = (
        judging.parts(modality, things).cpu()
        if hasattr(judging, "parts")
        else torch.ones(len(things), dtype=torch.long)
    )
    return features, parts


def _error(side: tuple[Tensor, Tensor, Tensor], own: frechet.Gaussian, other: frechet.Gaussian) -> float | None:
    """What the rows of one side, features, parts and clusters, add to the distance's standard error; None where it is
    not known which row a feature is of."""
    features, parts, clusters = side
    if int(parts.sum()) != len(features):
        return None
    return clustered_error(frechet.influence(features, own, other), clusters.repeat_interleave(parts))


# ------------------------------------------------------------------------------------------ digits


def shown(data: Any, modality: str, things: Things) -> Tensor:
    """The digit that each row shows, (rows,) int64 on the processor; -1 where none can be read."""
    return judges_of(data).digits(modality, things).cpu()


def digits_are_read(data: Any) -> None:
    """Raises Inapplicable for a dataset whose things show no digits."""
    if judges.judged_by(data) != "trained" or not hasattr(data, "digit_of"):
        raise Inapplicable("its pictures, sounds and sentences show no digits")


def shown_by_real(cell: Cell, data: Any, names: Iterable[str]) -> dict[str, Tensor]:
    """The digits that the cell's real rows show in each modality, worked out once."""
    split, rows = data.split_of(cell), rows_of(cell, data)

    def work(name: str) -> Tensor:
        return torch.cat([shown(data, name, raw[name]) for raw in blocks(data, split, rows)])

    return {name: keep(data, ("digits", name, split, rows), functools.partial(work, name)) for name in names}
