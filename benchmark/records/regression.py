"""Has a change moved a number? Fresh results against the blessed ones, and the blessing of new ones.

A comparison is made per cell: a key without its seed. Three rules:

exact        the seeds that both sides have give the same value, standard error, n and status to the last bit
paired       the seeds that both sides have differ by at most `tolerance`, relative to the larger value; a rate may
             also differ by 2/n, since one rounding can turn over a row. Sees the smallest change, and needs a
             machine that computes alike: training is chaotic, and a last digit grows to the size of seed noise.
statistical  a moderated t test on the metric's own scale, Holm over cells. Sees only shifts of several standard
             deviations of the seed noise, and holds on any machine.

`auto` decides each cell by the strongest rule that is valid for it:
1. The shared seeds agree by the paired rule: same. No test is spent on equal numbers.
2. They differ, and torch and device are equal: the paired rule decides, for the code alone may have moved the number,
   and finding that is what the check is for. A change that only reorders arithmetic moves it too: ask with
   `rule="statistical"` whether the shift is more than seed noise, and bless it.
3. They differ, and so does torch or device: the difference is recorded in the row, and the statistical rule decides,
   also where no seed is shared.
4. The reference has no spread to test with (one seed everywhere): the paired rule decides on whatever machine; a
   looser `tolerance` may be needed there, and `paired` in the verdict shows how loose.

The statistical rule in full. With y the values on the metric's scale (log; logit of (np + 1/2)/(n + 1), which is
finite for rates of 0 and 1; linear), R reference and k fresh seeds,

    t = (mean fresh - mean reference) / (s sqrt(1/k + 1/R)),   s^2 = ((R - 1) s_cell^2 + d s_others^2) / (R - 1 + d)

with R - 1 + d degrees of freedom, s_cell the reference seeds' standard deviation, s_others^2 the pooled reference
variance of the other cells of the same preset, dataset and metric, and d = 4 (fewer where the others hold fewer).
The fresh seeds' spread stays out of s, so that one collapsed seed does not excuse itself by the spread it makes.
Where fresh seeds are the reference's own seeds, their noise is partly shared; the test then alarms less, never more.
A value that the scale does not admit (0 on log) is judged on the linear scale with its own spread only.

Measured by simulation (30 cells, standard deviations log-normal with spread 0.4, normal noise, alpha 5 %):
a false alarm in 1.7 % of the runs; shifts of 8, 5, 3 standard deviations are found in 99, 81, 26 % of the cells with
5 + 3 seeds, and in 87, 39, 8 % with 5 + 1. With noise as heavy as Student's t of 5 degrees: alarms in 5 % of the runs.
Many or very unequal cells cost power (8 standard deviations, 5 + 3): 85 % with 200 cells, 62 % with spread 1.0.
"""

from __future__ import annotations

import datetime
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.api import MetricCard, UserError, one_line
from benchmark.files import write_atomic
from benchmark.records.results_file import KEY, VERSIONS, Record, frame_of, is_stand_in, load, records_of, write_sorted

if TYPE_CHECKING:
    import numpy
    from pandas import DataFrame

CELL = KEY[:-1]  # a key without its seed
RULES = ("auto", "exact", "paired", "statistical")
PRIOR_DEGREES = 4
ALPHA = 0.05

CellKey = tuple[str, ...]
Seeds = dict[int, Record]


@dataclass
class Verdict:
    """The answer for one cell.

    `reference`, `fresh`: means over seeds, in the metric's units. `paired`: largest relative difference over shared
    seeds. `shift`: fresh minus reference in standard deviations of the seed noise, on the metric's scale. `p`: Holm's.
    """

    cell: CellKey
    verdict: str = ""
    rule: str = ""
    reference: float = math.nan
    fresh: float = math.nan
    paired: float = math.nan
    shift: float = math.nan
    p: float = math.nan
    message: str = ""


def compare(
    reference: DataFrame,
    fresh: DataFrame,
    cards: Mapping[str, MetricCard],
    rule: str = "auto",
    tolerance: float = 1e-6,
    alpha: float = ALPHA,
) -> DataFrame:
    """One verdict per cell of either side, sorted by cell: the columns of CELL, then the fields of `Verdict`.

    same, worse, better   compared; a better number fails as well, since somebody has to bless it
    missing               the reference has a number and the fresh rows have none, or lack one of the run's seeds
    new                   the fresh rows have a number and the reference has none
    incomparable          version of method, dataset or metric, protocol or precision differ, or no rule applies

    The last row of a key counts, so hand over the rows of one run. `cards`: metric name -> card, for the scale and
    the direction. `tolerance`: of the paired rule; computing on another machine may need 1e-3 or more. `alpha`:
    probability of one false alarm or more among all cells of the statistical rule. Raises UserError for an unknown
    rule.
    """
    import pandas

    if rule not in RULES:
        raise UserError(f"unknown rule {rule!r}: choose from {', '.join(RULES)}")
    old, new = _by_cell(reference), _by_cell(fresh)
    run_seeds: dict[CellKey, set[int]] = defaultdict(set)
    for cell, seeds in new.items():
        run_seeds[_run(cell)] |= seeds.keys()
    priors = _priors(old, cards)
    verdicts, tests = [], []
    for cell in sorted(old.keys() | new.keys()):
        card = cards.get(_metric(cell))
        verdict = _outset(cell, old.get(cell, {}), new.get(cell, {}), run_seeds[_run(cell)], card)
        verdicts.append(verdict)
        if card is None or verdict.verdict:
            continue
        test = _Test.of(verdict, old[cell], new[cell], card, priors.get(cell, (0.0, 0.0)))
        _decide_by_seeds(verdict, old[cell], new[cell], card, rule, tolerance, test.degrees > 0)
        if not verdict.verdict:
            tests.append(test)
    _decide_by_tests(tests, alpha)
    rows = [dict(zip(CELL, verdict.cell, strict=True)) | vars(verdict) for verdict in verdicts]
    return pandas.DataFrame(rows, columns=[*CELL, *Verdict.__dataclass_fields__]).drop(columns="cell")


def exit_code(verdicts: DataFrame) -> int:
    """1: a number moved, to worse or better. 2: something, or everything, could not be compared. 0: all the same."""
    found = set(verdicts["verdict"])
    if found & {"worse", "better"}:
        return 1
    return 0 if "same" in found and not found & {"missing", "incomparable"} else 2


def bless(fresh: DataFrame, reference_path: Path, reason: str, log_path: Path, drop_missing: bool = False) -> DataFrame:
    """Make the fresh rows the reference, and write the reason down. Returns what changed, one row per cell.

    A blessed cell is replaced with all its seeds; a cell without fresh rows stays, or goes with `drop_missing`.
    Columns of the answer: CELL, change (new, changed, same, removed), reference and fresh (means over seeds).
    Raises UserError, with nothing written, for an empty reason, no rows, an error row, a stand-in's row, rows of
    another preset than the file's, and fewer seeds than the reference has.
    """
    import pandas

    reason = one_line(reason)
    if not reason:
        raise UserError("no reason given: say in --reason why the numbers change")
    old, new = _by_cell(load(reference_path)), _by_cell(fresh)
    _check_blessable(old, new, reference_path)
    kept = new | {cell: seeds for cell, seeds in old.items() if cell not in new and not drop_missing}
    rows = [
        {**dict(zip(CELL, cell, strict=True)), **_change(old.get(cell, {}), kept.get(cell, {}))}
        for cell in sorted(old.keys() | kept.keys())
    ]
    changes = pandas.DataFrame(rows, columns=[*CELL, "change", "reference", "fresh"])
    try:
        log = log_path.read_bytes() if log_path.exists() else b"# Why the reference numbers changed\n"
        write_atomic(log_path, log + _log_entry(changes, new, reference_path, reason).encode())
    except OSError as error:
        raise UserError(f"cannot write {log_path} ({error.strerror}): nothing was blessed; permit writing") from error
    try:
        write_sorted(reference_path, frame_of(record for seeds in kept.values() for record in seeds.values()))
    except BaseException:
        write_atomic(log_path, log)
        raise
    return changes


def moderated_t(
    reference: Sequence[Sequence[float]],
    fresh: Sequence[Sequence[float]],
    prior_variance: Sequence[float],
    prior_degrees: Sequence[float],
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Shift in standard deviations of the seed noise, and two-sided p, per cell; the formula is at the file's head.

    `reference`, `fresh`: per cell the seeds' values on the metric's scale, of any number. Both answers are NaN where
    there are no degrees of freedom. Without spread, equal means give (0, 1) and others (+-inf, 0).
    """
    import numpy
    from scipy import stats

    def per_cell(sides: Sequence[Sequence[float]], number: Callable[[numpy.ndarray], float]) -> numpy.ndarray:
        return numpy.array([number(numpy.asarray(values, float)) for values in sides])

    old, new = per_cell(reference, numpy.mean), per_cell(fresh, numpy.mean)
    difference = numpy.where(abs(new - old) <= 1e-12 * abs(old), 0.0, new - old)  # the rounding of a mean is no shift
    width = numpy.sqrt(1 / per_cell(reference, len) + 1 / per_cell(fresh, len))
    own_degrees = per_cell(reference, len) - 1
    own_squares = per_cell(reference, lambda values: float(((values - values.mean()) ** 2).sum()))
    prior = numpy.asarray(prior_degrees, float)
    degrees = own_degrees + prior
    with numpy.errstate(divide="ignore", invalid="ignore"):
        spread = numpy.sqrt((own_squares + prior * numpy.asarray(prior_variance, float)) / degrees)
        shift = numpy.where((difference == 0) & (degrees > 0), 0.0, difference / spread)
        return shift, 2 * stats.t.sf(abs(shift) / width, degrees)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given."""
    adjusted, largest = [1.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted


def _by_cell(frame: DataFrame) -> dict[CellKey, Seeds]:
    """The last record of every key."""
    found: dict[CellKey, Seeds] = defaultdict(dict)
    for record in records_of(frame):
        found[_cell(record)][record.seed] = record
    return dict(found)


def _cell(record: Record) -> CellKey:
    return tuple(getattr(record, column) for column in CELL)


def _metric(cell: CellKey) -> str:
    return cell[CELL.index("metric")]


def _run(cell: CellKey) -> CellKey:
    """Preset, dataset and method: the rows that one training per seed gives."""
    return tuple(cell[CELL.index(column)] for column in ("preset", "dataset", "method"))


def _scored(seeds: Seeds) -> list[tuple[float, int]]:
    """Value and n of the seeds that have a value."""
    return [(record.value, record.n) for record in seeds.values() if record.value is not None]


def _mean(seeds: Seeds) -> float:
    values = [value for value, _ in _scored(seeds)]
    return math.fsum(values) / len(values) if values else math.nan


def _on_scale(seeds: Seeds, card: MetricCard) -> list[float] | None:
    """The values on the metric's scale; None where the scale does not admit one of them."""
    scored = _scored(seeds)
    if card.scale == "linear":
        return [value for value, _ in scored]
    if card.scale == "log":
        return [math.log(value) for value, _ in scored] if all(value > 0 for value, _ in scored) else None
    if not all(0 <= value <= 1 and n > 0 for value, n in scored):
        return None
    return [math.log((value * n + 0.5) / ((1 - value) * n + 0.5)) for value, n in scored]


def _priors(old: Mapping[CellKey, Seeds], cards: Mapping[str, MetricCard]) -> dict[CellKey, tuple[float, float]]:
    """Per cell the pooled seed variance of the other cells of its preset, dataset and metric, and its degrees."""
    squares: dict[CellKey, float] = {}
    degrees: dict[CellKey, int] = {}
    pools: dict[CellKey, list[CellKey]] = defaultdict(list)
    for cell, seeds in old.items():
        values = _on_scale(seeds, cards[_metric(cell)]) if _metric(cell) in cards else None
        if values:
            mean = math.fsum(values) / len(values)
            squares[cell], degrees[cell] = math.fsum((value - mean) ** 2 for value in values), len(values) - 1
            pools[(*_run(cell)[:2], _metric(cell))].append(cell)
    priors = {}
    for cells in pools.values():
        all_squares, all_degrees = math.fsum(squares[cell] for cell in cells), sum(degrees[cell] for cell in cells)
        for cell in cells:
            others = all_degrees - degrees[cell]
            variance = max(0.0, all_squares - squares[cell]) / others if others else 0.0
            priors[cell] = (variance, float(min(PRIOR_DEGREES, others)))
    return priors


def _outset(cell: CellKey, old: Seeds, new: Seeds, run_seeds: set[int], card: MetricCard | None) -> Verdict:
    """What can be said before the numbers are looked at; the verdict is empty where they have to be."""
    verdict = Verdict(cell, reference=_mean(old), fresh=_mean(new))
    versions = {
        column: [sorted({str(getattr(record, column)) for record in side.values()}) for side in (old, new)]
        for column in VERSIONS
    }
    differing = [f"{column} {'/'.join(a)} -> {'/'.join(b)}" for column, (a, b) in versions.items() if len({*a, *b}) > 1]
    silent = [f"seed {seed}: {record.status}" for seed, record in sorted(new.items()) if record.status != "ok"]
    silent += [f"seed {seed}: no fresh row" for seed in sorted(run_seeds - new.keys())]
    if not old:
        verdict.verdict = "new"
    elif not new:
        verdict.verdict, verdict.message = "missing", "no fresh row"
    elif differing:
        verdict.verdict, verdict.message = "incomparable", "; ".join(differing)
    elif silent and (_scored(old) or not all("n/a: " in why for why in silent)):
        verdict.verdict, verdict.message = "missing", "; ".join(silent)
    elif not _scored(old):
        verdict.verdict = "new" if _scored(new) else "same"
    elif card is None:
        verdict.verdict, verdict.message = "incomparable", f"no card of the metric {_metric(cell)}"
    return verdict


def _decide_by_seeds(
    verdict: Verdict, old: Seeds, new: Seeds, card: MetricCard, rule: str, tolerance: float, testable: bool
) -> None:
    """Record the paired difference, and decide by it unless the statistical rule has to."""
    pairs = [(old[seed], new[seed]) for seed in sorted(old.keys() & new.keys()) if old[seed].value is not None]
    numbers = [(a.value or 0.0, b.value or 0.0) for a, b in pairs]
    verdict.paired = max((abs(b - a) / (max(abs(a), abs(b)) or 1.0) for a, b in numbers), default=math.nan)
    if rule == "exact":
        equal = all((a.value, a.stderr, a.n) == (b.value, b.stderr, b.n) for a, b in pairs)
    else:
        flips = [2 / min(a.n, b.n) if card.scale == "logit" and a.n and b.n else 0.0 for a, b in pairs]
        equal = all(
            abs(b - a) <= tolerance * max(abs(a), abs(b)) + flip for (a, b), flip in zip(numbers, flips, strict=True)
        )
    same_machine = all((a.torch, a.device) == (b.torch, b.device) for a, b in pairs)
    if not equal:
        _note(verdict, *_changed_sources(pairs, verdict.cell))
    paired_is_valid = bool(pairs) and (equal or same_machine)
    if rule == "statistical" or (rule == "auto" and testable and not paired_is_valid):
        if not testable:
            verdict.verdict, verdict.rule = "incomparable", rule
            _note(verdict, "the reference has no spread to test with: bless 5 seeds")
        return
    verdict.rule = "exact" if rule == "exact" else "paired"
    if not pairs:
        verdict.verdict = "incomparable"
        _note(verdict, "no seed in common with the reference")
        return
    verdict.verdict = "same" if equal else _direction(math.fsum(b - a for a, b in numbers), card)
    if not (equal or same_machine):
        _note(verdict, "torch or device differ: a looser tolerance may be due")


def _changed_sources(pairs: Sequence[tuple[Record, Record]], cell: CellKey) -> list[str]:
    if all(a.sources == b.sources for a, b in pairs):
        return []
    _, dataset, method = _run(cell)
    return [
        f"the code of {method}, {dataset} or {_metric(cell)} changed and so did the number, but no version: "
        "raise the version of what changed"
    ]


@dataclass
class _Test:
    """One cell of the statistical rule: its values on the scale, and the prior."""

    verdict: Verdict
    card: MetricCard
    seeds: list[int]
    reference: list[float]
    fresh: list[float]
    prior: tuple[float, float]

    @classmethod
    def of(cls, verdict: Verdict, old: Seeds, new: Seeds, card: MetricCard, prior: tuple[float, float]) -> _Test:
        reference, fresh = _on_scale(old, card), _on_scale(new, card)
        if reference is None or fresh is None:
            reference, fresh, prior = [x for x, _ in _scored(old)], [x for x, _ in _scored(new)], (0.0, 0.0)
            _note(verdict, f"a value has no {card.scale}: judged on the linear scale")
        return cls(verdict, card, list(new), reference, fresh, prior)

    @property
    def degrees(self) -> float:
        return len(self.reference) - 1 + self.prior[1]


def _decide_by_tests(tests: Sequence[_Test], alpha: float) -> None:
    """The statistical rule for all its cells together."""
    if not tests:
        return
    shifts, raw = moderated_t(
        [test.reference for test in tests],
        [test.fresh for test in tests],
        [test.prior[0] for test in tests],
        [test.prior[1] for test in tests],
    )
    for test, shift, p in zip(tests, shifts, holm(list(raw)), strict=True):
        verdict = test.verdict
        verdict.rule, verdict.shift, verdict.p = "statistical", float(shift), p
        verdict.verdict = "same" if p > alpha else _direction(shift, test.card)
        if verdict.verdict != "same":
            _note(verdict, *_collapsed(test, alpha))


def _collapsed(test: _Test, alpha: float) -> list[str]:
    """Says whether the alarm rests on one seed: it alone lies apart when each is tested by itself."""
    if len(test.seeds) == 1:
        return ["one fresh seed: more seeds tell a moved number from one collapsed seed"]
    count = len(test.seeds)
    _, p = moderated_t(
        [test.reference] * count, [[value] for value in test.fresh], [test.prior[0]] * count, [test.prior[1]] * count
    )
    apart = [seed for seed, own in zip(test.seeds, p, strict=True) if own <= alpha]
    return [f"one seed collapsed: seed {apart[0]}"] if len(apart) == 1 else []


def _direction(change: float, card: MetricCard) -> str:
    return "better" if (change > 0) == card.higher_is_better else "worse"


def _note(verdict: Verdict, *messages: str) -> None:
    verdict.message = "; ".join(filter(None, [verdict.message, *messages]))


def _check_blessable(old: Mapping[CellKey, Seeds], new: Mapping[CellKey, Seeds], path: Path) -> None:
    """Raises UserError for rows that must not become a reference."""
    rows = [record for seeds in new.values() for record in seeds.values()]
    errors = [record for record in rows if record.status.startswith("error")]
    stand_ins = [record for record in rows if is_stand_in(record.protocol)]
    presets = {record.preset for record in rows} - {path.stem}
    unnamed = [record for record in rows if not record.commit or record.commit.endswith("+")]
    fewer = [cell for cell in new.keys() & old.keys() if len(new[cell]) < len(old[cell])]
    if not rows:
        raise UserError(f"no fresh rows to bless into {path}: run `bench run` first")
    if stand_ins:
        raise UserError(
            f"{len(stand_ins)} rows are a stand-in's, the first of {' '.join(_cell(stand_ins[0]))}: untrained weights "
            "say nothing of the model; take the rows away (--fresh with the real ones) and bless again"
        )
    if errors:
        raise UserError(
            f"{len(errors)} error rows cannot be blessed, the first of {' '.join(_cell(errors[0]))} "
            f"seed {errors[0].seed} ({errors[0].status}): mend and run them again"
        )
    if unnamed:
        raise UserError(
            f"{len(unnamed)} rows do not name their code (commit {unnamed[0].commit or 'unknown'!r}): "
            "measure on a checkout without uncommitted changes"
        )
    if presets:
        raise UserError(f"rows of preset {', '.join(sorted(presets))} cannot go into {path}: bless each preset alone")
    if fewer:
        cell = min(fewer)
        raise UserError(
            f"{len(fewer)} cells have fewer seeds than {path}, as {' '.join(cell)} with "
            f"{len(new[cell])} instead of {len(old[cell])}: run the other seeds first"
        )


def _change(old: Seeds, kept: Seeds) -> dict[str, str | float]:
    def numbers(seeds: Seeds) -> dict[int, tuple[object, ...]]:
        return {
            seed: tuple(getattr(record, column) for column in ("value", "stderr", "n", "status", *VERSIONS))
            for seed, record in seeds.items()
        }

    change = "new" if not old else "removed" if not kept else "same" if numbers(old) == numbers(kept) else "changed"
    return {"change": change, "reference": _mean(old), "fresh": _mean(kept)}


def _log_entry(changes: DataFrame, new: Mapping[CellKey, Seeds], path: Path, reason: str) -> str:
    """Markdown: date and file, the reason, the commits and counts of rows, and what moved per method and metric."""
    rows = [record for seeds in new.values() for record in seeds.values()]
    counts = ", ".join(
        f"{(changes['change'] == change).sum()} {change}" for change in ("new", "changed", "same", "removed")
    )
    lines = [
        f"\n## {datetime.date.today().isoformat()} {path.name}",
        "",
        reason,
        "",
        f"- commit: {', '.join(sorted({record.commit for record in rows}))}",
        f"- rows: {len(rows)}; cells: {counts}",
    ]
    moved = changes[changes["change"] != "same"]
    for (dataset, method, metric, change), part in moved.groupby(["dataset", "method", "metric", "change"]):
        lines.append(
            f"- {dataset} {method} {metric}: {len(part)} {change}, "
            f"mean {part['reference'].mean():.4g} -> {part['fresh'].mean():.4g}"
        )
    return "\n".join(lines) + "\n"
