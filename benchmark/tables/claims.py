"""What the paper claims, answered from measured rows: holds, fails or undecided, with the interval.

The unit of replication is the training seed. Two methods of one seed are scored on the same
evaluation noise, so they are compared in pairs: a two-sided t interval for the mean over seeds of the
log ratio, or of the difference where a claim states a margin. Holm's step-down over a claim's rivals keeps the
chance that any rival is judged wrongly at `ALPHA`; in one direction it is half of that. In a ratio, a rate of zero
counts as half a success.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmark import registry, templates
from benchmark.api import TASKS, UserError
from benchmark.config import nearest
from benchmark.files import RESULTS
from benchmark.records.results_file import is_stand_in
from benchmark.tables.render import markdown_safe, terminal_text
from benchmark.tables.summary import (
    ONE_PER_COMPARISON,
    column_rows,
    conditions,
    guard,
    load_paper,
    seed_means,
    summarise,
)
from benchmark.tables.table_file import Column, Table, dataset_at, load_table
from benchmark.toml_files import checked, known_name, read_toml

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from rich.console import RenderableType

ALPHA = 0.05
LEAST_SEEDS = 3
_SIGNS = {"below": "<", "above": ">"}
RELATIONS = (*_SIGNS, "unsupported")
Verdict = Literal["holds", "fails", "undecided", "n/a"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The subject's value on `on` stands `relation` `factor` x each rival's value on `against`.

    `margin`: where there is one, the difference subject - rival stands `relation` it, in the metric's units, instead.
    `than`: the number, as it is written, that stands in the place of the only rival's value; empty for methods.

    `variants`: methods of which, the subject among them, the one with the better mean stands for all. Since it is
    chosen on the seeds that it is judged on, they share the level at which each rival is judged.
    `table`: the paper's table, as in results/paper.csv. Several quantities of one side are averaged
    on the log scale. `unsupported`: the subject has no number on `on`, and there are no rivals.
    `also`: what has to hold besides, each a claim of the same id and subject. Each part is judged at its share of the
    level.
    `conditions`: the suite's table, reduced to the columns on which it is refused; None where it has no such column.
    """

    id: str
    text: str
    source: str
    table: str
    dataset: str
    subject: str
    variants: tuple[str, ...]
    rivals: tuple[str, ...]
    relation: str
    factor: float
    margin: float | None
    than: str
    on: tuple[Column, ...]
    against: tuple[Column, ...]
    conditions: Table | None = None
    also: tuple[Claim, ...] = ()

    @property
    def level(self) -> float:
        """At which the rivals of each part are judged."""
        return ALPHA / (1 + len(self.variants)) / (1 + len(self.also))


@dataclass(frozen=True)
class Comparison:
    """One rival's answer: the ratio subject / rival (geometric mean over seeds), or where the claim has a margin the
    difference subject - rival (mean over seeds), and its interval at 1 - `level`."""

    verdict: Verdict
    ratio: float = math.nan
    low: float = math.nan
    high: float = math.nan
    level: float = math.nan
    seeds: int = 0
    reason: str = ""


def load_claims(metrics: Collection[str], path: Path = RESULTS / "claims.toml", preset: str = "paper") -> list[Claim]:
    """Read the claims strictly; `metrics` are the known names. A section may name a dataset per preset.

    What is compared is `[task, metric]`, or the header of a column of the table after which the section is named.
    Raises UserError, naming file and key, for an unknown key, task, metric, column or relation, a wrong type,
    a missing key, a factor that is not positive, and an id used twice.
    """
    claims = [
        claim
        for table, section in read_toml(path).items()
        for claim in _section(section, table, path.name, metrics, preset)
    ]
    ids = [claim.id for claim in claims]
    if twice := [name for name in ids if ids.count(name) > 1]:
        raise UserError(f"{path.name}: two claims have the id {twice[0]!r}: give each its own")
    return claims


def _section(section: Any, table: str, file: str, metrics: Collection[str], preset: str) -> Iterator[Claim]:
    """The claims about one table."""
    if not isinstance(section, dict):
        raise UserError(f"{file}: unknown key {table!r}: write a section per table, as [table5]")
    checked(section, {"dataset": str | dict, "source": str, "claim": list}, f"{file}: {table}")
    dataset = dataset_at(section["dataset"], preset, f"{file}: {table}")
    load = functools.cache(lambda: load_table(table, metrics, preset))
    for place, raw in enumerate(section["claim"], 1):
        where = f"{file}: {raw.get('id', f'claim {place}')}"
        _check_claim(raw, where)
        named = any(isinstance(quantity, str) for quantity in (*raw["on"], *raw.get("against", ())))
        loaded = load() if named else None
        on, against = (
            tuple(_quantity(quantity, where, metrics, table, loaded) for quantity in raw.get(key, raw["on"]))
            for key in ("on", "against")
        )
        refusing = tuple(column for column in loaded.columns if column.least) if loaded else ()
        claim = Claim(
            id=raw["id"],
            text=raw["text"],
            source=section["source"],
            table=table,
            dataset=dataset,
            subject=raw["subject"],
            variants=tuple(raw.get("variants", ())),
            rivals=_rivals(raw),
            relation=raw["relation"],
            factor=raw.get("factor", 1.0),
            margin=raw.get("margin"),
            than=f"{raw['than']:g}" if "than" in raw else "",
            on=on,
            against=against,
            conditions=replace(loaded, columns=refusing) if loaded and refusing else None,
        )
        parts = tuple(_part(claim, part, where) for part in raw.get("also", ()))
        if on == against and any(claim.subject in part.rivals for part in (claim, *parts)):
            raise UserError(f"{where}: {claim.subject} is compared with itself: write what against, or drop it")
        yield replace(claim, also=parts)


def _part(claim: Claim, raw: Any, where: str) -> Claim:
    """What a claim says besides: the same comparison but for what is written."""
    where = f"{where}: also"
    if not isinstance(raw, dict):
        raise UserError(f'{where}: {raw!r}: write {{ relation = "below" }}, with factor and rivals where they differ')
    checked(raw, {"relation": str}, where, {"rivals": list, "factor": float})
    known_name(raw["relation"], _SIGNS, "relation", where)
    _check_factor(raw, where)
    if not raw.get("rivals", claim.rivals):
        raise UserError(f"{where}: rivals = []: name some, or drop the key for those of the claim")
    return replace(
        claim,
        relation=raw["relation"],
        factor=raw.get("factor", 1.0),
        rivals=tuple(raw.get("rivals", claim.rivals)),
    )


def _check_claim(raw: Mapping[str, Any], where: str) -> None:
    """Raises UserError, naming file and key, for a claim that contradicts itself, what it compares apart."""
    checked(
        raw,
        {"id": str, "text": str, "subject": str, "relation": str, "on": list},
        where,
        {
            "rivals": list,
            "factor": float,
            "margin": float,
            "than": float,
            "against": list,
            "variants": list,
            "also": list,
        },
    )
    known_name(raw["relation"], RELATIONS, "relation", where)
    _check_factor(raw, where)
    if "also" in raw and (raw["relation"] == "unsupported" or {"margin", "than", "variants"} & raw.keys()):
        raise UserError(f"{where}: also adds to ratios of one method: drop it, or margin, than, variants, unsupported")
    if "factor" in raw and "margin" in raw:
        raise UserError(f"{where}: write either factor, of a ratio, or margin, of a difference")
    if "than" in raw:
        if raw.get("rivals") or "against" in raw:
            raise UserError(f"{where}: than = {raw['than']} stands in the place of rivals and of what against")
        if raw["than"] <= 0:
            raise UserError(f"{where}: than = {raw['than']}: must be positive")
    if bool(_rivals(raw)) == (raw["relation"] == "unsupported"):
        raise UserError(f"{where}: rivals belong to the relations below and above, which need them, or than")


def _check_factor(raw: Mapping[str, Any], where: str) -> None:
    if raw.get("factor", 1.0) <= 0:
        raise UserError(f"{where}: factor = {raw['factor']}: must be positive")


def _rivals(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """The methods that the subject is compared with, or the number, as it is written, that stands in their place."""
    return (f"{raw['than']:g}",) if "than" in raw else tuple(raw.get("rivals", ()))


def _quantity(raw: Any, where: str, metrics: Collection[str], table: str, loaded: Table | None) -> Column:
    """[task, metric] as a column of no table, or the column of that header."""
    if isinstance(raw, str) and loaded is not None:
        columns = {column.header: column for column in loaded.columns}
        known_name(raw, columns, f"column of {table}", where)
        return columns[raw]
    if not isinstance(raw, list) or len(raw) != 2:
        raise UserError(f"{where}: {raw!r}: write [task, metric]")
    task, metric = raw
    known_name(task, TASKS, "task", where)
    known_name(metric, metrics, "metric", where)
    paper = {"table": table, "task": task, "metric": metric}
    return Column(header=task, metric=metric, digits=0, task=task, paper=paper)


def claims_about(tables: Sequence[str], preset: str) -> list[Claim]:
    """The suite's claims about these tables of the paper; all of them where none is named.

    Raises UserError for a table without claims.
    """
    found = load_claims(registry.index("metric"), preset=preset)
    for name in tables:
        known_name(name, {claim.table for claim in found}, "table with claims", "results/claims.toml")
    return [claim for claim in found if not tables or claim.table in tables]


# ---------------------------------------------------------------------------------------------- the test


def compare(
    gaps: Mapping[str, np.ndarray], relation: str, factor: float, alpha: float = ALPHA, margin: float | None = None
) -> dict[str, Comparison]:
    """Judge `exp(log ratio)` below or above `factor` for each rival, or a difference below or above `margin`.

    gaps: rival -> log ratio per seed, or where there is a margin difference per seed, (seeds,).

    Rivals are taken in the order of their p values; the k-th of m is judged at alpha / (m - k + 1),
    and from the first that is undecided on, all are. Each interval is at the level its rival was
    judged at, so it excludes `factor` exactly where there is a verdict. Rivals of fewer than
    LEAST_SEEDS seeds are undecided, and still count in m.
    """
    from scipy import special

    shown: Callable[[float], float] = math.exp if margin is None else float
    bound = math.log(factor) if margin is None else margin
    enough = [rival for rival, values in gaps.items() if len(values) >= LEAST_SEEDS]
    found = {
        rival: Comparison(
            "undecided",
            shown(values.mean()) if len(values) else math.nan,
            seeds=len(values),
            reason=f"{len(values)} shared seeds, needs {LEAST_SEEDS}",
        )
        for rival, values in gaps.items()
    }
    errors = {rival: float(gaps[rival].std(ddof=1)) / math.sqrt(len(gaps[rival])) for rival in enough}
    pvalues = {
        rival: _pvalue(float(gaps[rival].mean()) - bound, errors[rival], len(gaps[rival]) - 1) for rival in enough
    }
    level, rejecting = alpha, True
    for place, rival in enumerate(sorted(enough, key=lambda rival: pvalues[rival])):
        if rejecting:
            level = alpha / (len(gaps) - place)
            rejecting = pvalues[rival] < level
        values = gaps[rival]
        mean, reach = float(values.mean()), float(special.stdtrit(len(values) - 1, 1 - level / 2)) * errors[rival]
        beyond = (mean < bound) == (relation == "below")
        verdict: Verdict = ("holds" if beyond else "fails") if rejecting else "undecided"
        found[rival] = Comparison(
            verdict,
            shown(mean),
            shown(mean - reach),
            shown(mean + reach),
            level,
            len(values),
            "" if rejecting else f"the interval includes the {'factor' if margin is None else 'margin'}",
        )
    return found


def _pvalue(mean: float, error: float, degrees: int) -> float:
    """Two-sided, of a mean of zero; seeds without any spread decide by the mean alone."""
    from scipy import special

    if error == 0:
        return float(mean == 0)
    return float(2 * special.stdtr(degrees, -abs(mean) / error))


def verdicts_of(frame: pd.DataFrame, claims: Sequence[Claim], preset: str) -> pd.DataFrame:
    """`check_claims` on the suite's datasets, beside the paper's numbers."""
    modalities = {name: registry.card("dataset", name).modalities for name in registry.index("dataset")}
    return check_claims(frame, claims, preset, modalities, load_paper())


def check_claims(
    frame: pd.DataFrame,
    claims: Sequence[Claim],
    preset: str,
    modalities: Mapping[str, Sequence[str]],
    paper: pd.DataFrame,
) -> pd.DataFrame:
    """One row per claim and rival: the claim's verdict, the rival's, and whether the paper's own table agrees.

    A claim fails where one rival shows the opposite, holds where every rival that has such a number
    agrees, in each of its parts, and is undecided otherwise. `modalities`: dataset -> names. `in_paper`: "yes", "no",
    or "" where the table has no such numbers. Raises UserError where rows that are not comparable meet.
    """
    import pandas as pd

    rows = []
    for claim in claims:
        answers = [
            (part, rival, answer)
            for part in (claim, *claim.also)
            for rival, answer in _answers(frame, part, claim.level, preset, modalities).items()
        ]
        verdicts = {answer.verdict for _, _, answer in answers} - {"n/a"}
        overall = "fails" if "fails" in verdicts else "holds" if verdicts == {"holds"} else "undecided"
        agreeing = {_in_paper(part, paper) for part in (claim, *claim.also)}
        agrees = next(answer for answer in ("no", "", "yes") if answer in agreeing)
        for part, rival, answer in answers:
            rows.append(
                {
                    "claim": claim.id,
                    "text": claim.text,
                    "source": claim.source,
                    "preset": preset,
                    "verdict": overall,
                    "in_paper": agrees,
                    "subject": " or ".join((claim.subject, *claim.variants)),
                    "rival": rival,
                    "relation": part.relation,
                    "factor": part.factor,
                    "margin": math.nan if claim.margin is None else claim.margin,
                    "rival_verdict": answer.verdict,
                    **{field.name: getattr(answer, field.name) for field in fields(Comparison)[1:]},
                }
            )
    return pd.DataFrame(rows)


def _answers(
    frame: pd.DataFrame, claim: Claim, level: float, preset: str, modalities: Mapping[str, Sequence[str]]
) -> dict[str, Comparison]:
    """Each rival's answer to one part of a claim."""
    columns = _columns(frame, claim, preset, modalities)
    if claim.conditions:
        summary = summarise(frame, claim.conditions, preset, modalities[claim.dataset])
        if failed := [phrase for phrase, met in conditions(summary, claim.conditions) if not met]:
            reason = f"{claim.table} is refused: {'; '.join(failed)}"
            return {rival: Comparison("undecided", reason=reason) for rival in claim.rivals or ("",)}
    subject, lack = _best(columns, claim)
    if claim.relation == "unsupported":
        return {"": _supported(subject, lack)}
    if not subject:
        return {rival: Comparison("undecided", reason=f"{claim.subject}: {lack}") for rival in claim.rivals}
    answers: dict[str, Comparison] = {}
    gaps: dict[str, np.ndarray] = {}
    for rival in claim.rivals:
        other, lack = _constant(claim, subject) if claim.than else _values(columns, rival, claim, claim.against)
        if other:
            gaps[rival] = _array([subject[seed] - other[seed] for seed in sorted(subject.keys() & other.keys())])
        elif lack.startswith("n/a"):
            answers[rival] = Comparison("n/a", reason=lack)
        else:
            gaps[rival] = _array([])  # it counts among the rivals of Holm's step-down
            answers[rival] = Comparison("undecided", reason=lack)
    answers = compare(gaps, claim.relation, claim.factor, level, claim.margin) | answers
    return {rival: answers[rival] for rival in claim.rivals}


def _columns(
    frame: pd.DataFrame, claim: Claim, preset: str, modalities: Mapping[str, Sequence[str]]
) -> dict[tuple[str, str], tuple[list[dict[str, Any]], int]]:
    """The rows of every quantity, by header and metric, for the subject and its rivals, and the number of its cells."""
    if claim.dataset not in modalities:
        raise UserError(f"{claim.id}: unknown dataset {claim.dataset!r}{nearest(claim.dataset, modalities)}")
    columns: dict[tuple[str, str], tuple[list[dict[str, Any]], int]] = {}
    for column in (*claim.on, *claim.against):
        wanted = column.cells(claim.dataset, modalities[claim.dataset])
        rows = column_rows(frame, preset, wanted, column.metric, (claim.subject, *claim.variants, *claim.rivals))
        rows = [row for row in rows if not is_stand_in(row["protocol"])]
        columns[column.header, column.metric] = rows, len(wanted)
    compared = [row for rows, _ in columns.values() for row in rows if row["status"] == "ok"]
    # Of a protocol the part that all metrics share: a column's own rows agree on the whole already.
    guard([row | {"protocol": row["protocol"].partition("+")[0]} for row in compared], ONE_PER_COMPARISON)
    return columns


def _supported(values: Mapping[int, float], lack: str) -> Comparison:
    if values:
        return Comparison("fails", seeds=len(values), reason="it has numbers there")
    return Comparison("holds" if lack.startswith("n/a") else "undecided", reason=lack)


def _best(
    columns: Mapping[tuple[str, str], tuple[list[dict[str, Any]], int]], claim: Claim
) -> tuple[dict[int, float], str]:
    """`_values` of the subject, or of the better one of it and its variants."""
    sign = -1 if claim.relation == "below" else 1
    found = [_values(columns, method, claim, claim.on) for method in (claim.subject, *claim.variants)]
    return max(found, key=lambda each: sign * math.fsum(each[0].values()) / len(each[0]) if each[0] else -math.inf)


def _constant(claim: Claim, subject: Mapping[int, float]) -> tuple[dict[int, float], str]:
    """The number that a claim is about, for each of the subject's seeds."""
    return dict.fromkeys(subject, _scaled(claim, float(claim.than))), ""


def _scaled(claim: Claim, value: float) -> float:
    """A value on the scale on which the claim's differences are taken."""
    return math.log(value) if claim.margin is None else value


def _values(
    columns: Mapping[tuple[str, str], tuple[list[dict[str, Any]], int]],
    method: str,
    claim: Claim,
    quantities: Sequence[Column],
) -> tuple[dict[int, float], str]:
    """A method's value per seed on the claim's scale, averaged over the quantities, and why there is none."""
    found: list[dict[int, float]] = []
    for column in quantities:
        rows, cell_count = columns[column.header, column.metric]
        own = [row for row in rows if row["method"] == method]
        means, reason = seed_means(own, cell_count)
        if not means:
            return {}, reason or "no rows"
        if claim.margin is None and registry.card("metric", column.metric).scale == "logit":
            means = {
                seed: value or 0.5 / sum(row["n"] for row in own if row["seed"] == seed)
                for seed, value in means.items()
            }
        if claim.margin is None and min(means.values()) <= 0:
            return {}, f"{column.metric} is not positive on {column.header}: there is no log ratio"
        found.append({seed: _scaled(claim, value) for seed, value in means.items()})
    shared = set(found[0]).intersection(*found[1:])
    if not shared:
        return {}, "no seed has all quantities"
    return {seed: math.fsum(values[seed] for values in found) / len(found) for seed in sorted(shared)}, ""


def _array(values: Sequence[float]) -> np.ndarray:
    import numpy as np

    return np.asarray(values, dtype=float)


def _in_paper(claim: Claim, paper: pd.DataFrame) -> str:
    """Whether the paper's printed numbers satisfy the claim, noise aside."""

    def printed(method: str, quantities: Sequence[Column]) -> float | None:
        if method == claim.than:
            return _scaled(claim, float(method))
        values = []
        for column in quantities:
            chosen = paper[paper["method"] == method]
            for name, value in column.paper.items():
                chosen = chosen[chosen[name] == value]
            if chosen.empty or not column.paper:
                return None
            values += [_scaled(claim, float(value)) for value in chosen["value"]]
        return math.fsum(values) / len(values)

    own = [value for method in (claim.subject, *claim.variants) if (value := printed(method, claim.on)) is not None]
    subject = (min if claim.relation == "below" else max)(own, default=None)
    if claim.relation == "unsupported":
        return "yes" if subject is None else "no"
    rivals = [value for rival in claim.rivals if (value := printed(rival, claim.against)) is not None]
    if subject is None or not rivals:
        return ""
    bound = math.log(claim.factor) if claim.margin is None else claim.margin
    gaps = [subject - rival - bound for rival in rivals]
    return "yes" if all((gap < 0) == (claim.relation == "below") and gap != 0 for gap in gaps) else "no"


# ---------------------------------------------------------------------------------------------- the page


def render_claims(result: pd.DataFrame, format: str, color: bool = False) -> str:
    """The verdicts as text for "term" (at most TERM_WIDTH characters a line) or "md"; UserError for another format."""
    if format not in ("term", "md"):
        raise UserError(f"unknown format {format!r}: choose from md, term")
    return _markdown(result) if format == "md" else terminal_text(_terminal_parts(result), color)


def html_claims(result: pd.DataFrame) -> str:
    """The verdicts as an HTML table, of which the class of a verdict's cell is the verdict."""
    return templates.render("tables/claims.html.jinja", claims=list(_per_claim(result)), counts=_counts(result))


def _per_claim(result: pd.DataFrame) -> Iterator[tuple[Mapping[str, Any], str, list[str]]]:
    """Per claim: its first row, what is claimed, and a sentence per rival."""
    for _, group in result.groupby("claim", sort=False):
        rows = group.to_dict("records")
        bounds = [_bound(row) for row in rows]
        several = len(set(bounds)) > 1
        sentences = [_sentence(row, f" ({bound})" * several) for row, bound in zip(rows, bounds, strict=True)]
        yield rows[0], "; ".join(dict.fromkeys(bounds)), sentences


def _sentence(row: Mapping[str, Any], bound: str) -> str:
    """One rival's line: `bound`, verdict, ratio, interval, or the reason why there is none."""
    other = (row["rival"] if row["rival"] != row["subject"] else "itself") + bound
    if not row["rival"]:
        return str(row["reason"])
    if math.isnan(row["low"]):
        return f"{other}: {row['rival_verdict']} ({row['reason']})"
    what = "" if math.isnan(row["margin"]) else "difference "
    interval = (
        f"{what}{row['ratio']:.3g}, {100 * (1 - row['level']):.3g} % interval {row['low']:.3g} to {row['high']:.3g}"
    )
    return f"{other}: {row['rival_verdict']} ({interval}; {row['seeds']} seeds)"


def _bound(row: Mapping[str, Any]) -> str:
    """What is claimed of one rival."""
    if row["relation"] == "unsupported":
        return "no number"
    ratio = math.isnan(row["margin"])
    return f"{'ratio' if ratio else 'difference'} {_SIGNS[row['relation']]} {row['factor' if ratio else 'margin']:.3g}"


def _counts(result: pd.DataFrame) -> str:
    verdicts = result.drop_duplicates("claim")["verdict"]
    counts = ", ".join(f"{int((verdicts == name).sum())} {name}" for name in ("holds", "fails", "undecided"))
    return f"{len(verdicts)} claims at preset {result['preset'].iloc[0]}: {counts}."


def _markdown(result: pd.DataFrame) -> str:
    safe = markdown_safe
    lines = ["| claim | claimed | verdict | in the paper's table | subject ÷ rival |", "|---|---|---|---|---|"]
    for first, claimed, sentences in _per_claim(result):
        rivals, printed = "<br>".join(map(safe, sentences)), first["in_paper"] or "—"
        lines.append(f"| {safe(first['text'])} | {safe(claimed)} | **{first['verdict']}** | {printed} | {rivals} |")
    return "\n".join([*lines, "", _counts(result)]) + "\n"


def _terminal_parts(result: pd.DataFrame) -> Iterator[RenderableType]:
    from rich.text import Text

    styles = {"holds": "bold green", "fails": "bold red", "undecided": "bold yellow"}
    for first, claimed, sentences in _per_claim(result):
        line = Text(f"{first['verdict']:<10}", styles[first["verdict"]])
        line.append(f"{first['claim']}: {first['text']}", "default")
        yield line
        yield Text(f"          claimed: {claimed}; in the paper's table: {first['in_paper'] or '—'}")
        for sentence in sentences:
            yield Text(f"          {sentence}")
    yield Text(_counts(result))
