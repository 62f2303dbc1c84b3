"""Each claim's sentence, read by hand: rows that make it false, in each way in which it can be, never let it hold."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
import pytest

from benchmark import registry
from benchmark.records.results_file import Record, frame_of
from benchmark.tables.claims import check_claims, load_claims
from benchmark.tables.summary import load_paper
from benchmark.tables.table_file import Column, Table, load_table

# claim | whose number | in which columns (their geometric mean) | is below or above x times, or + more than, that of |
# these | in this column, where it is another. Lines of one claim belong together. `printed`: all others with a number
# there in the paper's table; `generalists`: those of them that go from anything to anything; `nothing`: no number.
SENTENCES = """
muni_best_2to1 | muni | 2→1 align. | < | printed
muni_best_1to1 | muni | 1→1 align. | < | printed
muni_best_fidelity | muni | uncond. fid. | < | printed
muni_best_coherence | muni | uncond. coh. | < | printed
muni_uses_all_evidence | muni | 2→1 align. | < | muni | 1→1 align.
leave_one_out_prior_improves_coherence | muni | uncond. coh. | < | mopoe
mmvae_strong_1to1 | mmvae | 1→1 align. | < | mvae helvae shala
mmvaeplus_strong_1to1 | mmvaeplus | 1→1 align. | < | mvae helvae shala
mmvae_degrades_2to1 | mmvae | 2→1 align. | > x 10 | mmvae | 1→1 align.
mmvaeplus_degrades_2to1 | mmvaeplus | 2→1 align. | > x 10 | mmvaeplus | 1→1 align.
mmvae_degrades_coherence | mmvae | uncond. coh. | > x 10 | mmvae | 1→1 align.
mmvaeplus_degrades_coherence | mmvaeplus | uncond. coh. | > x 10 | mmvaeplus | 1→1 align.
mopoe_improves_2to1 | mopoe | 2→1 align. | < | mmvae mmvaeplus
mopoe_improves_1to1 | mopoe | 1→1 align. | < | mmvae mmvaeplus
mopoe_limited_coherence | mopoe | uncond. coh. | > x 3 | mopoe | 2→1 align.
mvae_less_competitive | mvae | 1→1 align. * 2→1 align. * uncond. fid. * uncond. coh. | > | mopoe muni
helvae_less_competitive | helvae | 1→1 align. * 2→1 align. * uncond. fid. * uncond. coh. | > | mopoe muni
mmvaeplus_no_better_1to1 | mmvaeplus | 1→1 align. | > x 0.8333 | mmvae
mmvaeplus_no_better_2to1 | mmvaeplus | 2→1 align. | > x 0.8333 | mmvae
mmvaeplus_no_better_fidelity | mmvaeplus | uncond. fid. | > x 0.8333 | mmvae
mmvaeplus_no_better_coherence | mmvaeplus | uncond. coh. | > x 0.8333 | mmvae
shala_unsupported_2to1 | shala | 2→1 align. | = | nothing
shala_weak_1to1 | shala | 1→1 align. | > x 10 | muni
shala_weak_coherence | shala | uncond. coh. | > x 10 | muni
muni_competitive_digit | muni | Digit | > x 0.966 | printed
muni_competitive_quadrant | muni | Quadrant | > x 0.966 | printed
muni_best_both | muni | Both | > | printed
muni_best_label_coherence | muni | Coherence | > x 1.068 | printed
muni_leads_less_on_both | muni | Both | > | mopoe
muni_leads_less_on_both | muni | Both | < x 1.068 | mopoe
mmvae_weak_both | mmvae | Both | < x 0.481 | mvae mopoe helvae muni
mmvae_ignores_a_label | mmvae | Both | < x 0.419 | mmvae | Digit
mopoe_strong_both | mopoe | Both | > | mmvae mvae helvae
mopoe_limited_label_coherence | mopoe | Coherence | < x 0.903 | muni
mvae_limited | mvae | Digit * Quadrant * Both * Coherence | < | muni
helvae_limited | helvae | Digit * Quadrant * Both * Coherence | < | muni
mmvaeplus_improves_digit | mmvaeplus | Digit | > | mmvae
mmvaeplus_weak_both | mmvaeplus | Both | < x 0.486 | mvae mopoe helvae muni
mmvaeplus_weak_coherence | mmvaeplus | Coherence | < x 0.84 | mopoe helvae shala muni
mmvaeplus_private_both | mmvaeplus | Both | < x 1.2 | mmvae
mmvaeplus_private_coherence | mmvaeplus | Coherence | < x 1.2 | mmvae
shala_second_coherence | shala | Coherence | > | mvae mmvae mopoe helvae mmvaeplus
shala_second_coherence | shala | Coherence | < | muni
shala_unsupported_both | shala | Both | = | nothing
shala_less_competitive | shala | Digit * Quadrant | < | mmvae mopoe helvae mmvaeplus muni
muni_best_both_of_all | muni | Both | > | printed
muni_best_label_coherence_of_all | muni | Coherence | > | printed
muni_competitive_digit_of_all | muni | Digit | > x 0.966 | printed
best_generalist_ia_t_clip | muni muni_hellinger | I+A→T CLIP | > | generalists
best_generalist_ia_t_clap | muni muni_hellinger | I+A→T CLAP | > | generalists
best_generalist_ta_i_clip | muni muni_hellinger | T+A→I CLIP | > | generalists
best_generalist_ta_i_ais | muni muni_hellinger | T+A→I AIS | > | generalists
best_generalist_ti_a_clap | muni muni_hellinger | T+I→A CLAP | > | generalists
best_generalist_ti_a_ais | muni muni_hellinger | T+I→A AIS | > | generalists
clear_gain_ta_i_ais | muni muni_hellinger | T+A→I AIS | > x 1.04 | generalists
clear_gain_ti_a_ais | muni muni_hellinger | T+I→A AIS | > x 1.044 | generalists
mmvae_weaker_many_to_one | mmvae | SIX | < | muni muni_hellinger mopoe
mopoe_competitive_many_to_one | mopoe | SIX | > x 0.966 | muni muni_hellinger
muni_over_vaes_clip | muni | T–I CLIP | > | mmvae mopoe
muni_over_vaes_clap | muni | T–A CLAP | > | mmvae mopoe
muni_over_vaes_ais | muni | A–I AIS | > | mmvae mopoe
muni_hellinger_over_vaes_clip | muni_hellinger | T–I CLIP | > | mmvae mopoe
muni_hellinger_over_vaes_clap | muni_hellinger | T–A CLAP | > | mmvae mopoe
muni_hellinger_over_vaes_ais | muni_hellinger | A–I AIS | > | mmvae mopoe
hellinger_over_omniflow_clip | muni_hellinger | T–I CLIP | > | omniflow
hellinger_over_omniflow_clap | muni_hellinger | T–A CLAP | > | omniflow
hellinger_over_omniflow_ais | muni_hellinger | A–I AIS | > | omniflow
large_gain_t_i | muni muni_hellinger | T→I FID | < x 0.846 | generalists
strong_i_a | muni muni_hellinger | I→A FAD | < | generalists
strong_a_i | muni muni_hellinger | A→I FID | < | generalists
unifiedio2_best_i_t | unifiedio2 | I→T CIDEr | > | generalists
flowbind_best_a_t | flowbind | A→T CIDEr | > | generalists
hellinger_best_t_a | muni_hellinger | T→A CLAP | > | generalists
hellinger_best_i_a | muni_hellinger | I→A AIS | > | generalists
hellinger_best_a_i | muni_hellinger | A→I AIS | > | generalists
hellinger_competitive_t_i | muni_hellinger | T→I CLIP | > x 0.966 | generalists
hellinger_competitive_i_t | muni_hellinger | I→T CLIP | > x 0.966 | generalists
product_uses_all_evidence | muni | 2→1 align. | < | muni:mixture
product_keeps_what_pairs_share | muni | pair, one of 2 given | > | muni:mixture
detachment_makes_the_latent_minimal | muni | private, own of 1 given | < | muni:attached
leave_one_out_prior_is_coherent | muni | uncond. coh. | < | muni:prior_on_all
leave_one_out_prior_helps_beside_the_full_set | muni | uncond. coh. | < | muni:prior_on_full
the_choices_cost_no_fidelity | muni | uncond. fid. | < | muni:mixture muni:attached muni:prior_on_full muni:prior_on_all
leave_one_out_prior_keeps_what_is_shared | muni | residual dependence | < | muni:prior_on_all
mld_best_joint_coherence | mld | Joint | > | mvae mmvae mopoe mmvaeplus mvtcae
mld_nearly_perfect_coherence | mld | Joint | > | 0.98
mld_svhn_joint_coherence | mld | Joint | > | 0.85
mld_svhn_best_joint_coherence | mld | Joint | > + 0.36 | mvae mmvae mopoe mmvaeplus mvtcae
mld_svhn_best_pictures | mld | Fréchet, joint (S) | < | mvae mmvae mopoe mmvaeplus mvtcae
""".replace("SIX", "I+A→T CLIP * I+A→T CLAP * T+A→I CLIP * T+A→I AIS * T+I→A CLAP * T+I→A AIS")
GENERALISTS = {"unifiedio2", "codi", "omniflow", "flowbind", "muni", "muni_hellinger"}

METRICS, PAPER = registry.index("metric"), load_paper()
MODALITIES = {name: registry.card("dataset", name).modalities for name in registry.index("dataset")}
CLAIMS = {claim.id: claim for claim in load_claims(METRICS)}
SEEDS, NOISE, CLEAR = 3, 5e-4, 1.02  # of the spread over seeds, and a ratio that is clear beside it

Values = dict[tuple[str, str], float]  # (method, column) -> number


@dataclass(frozen=True)
class Says:
    """One comparison of a sentence: the better number of `subjects` beside each rival's, or beside a number."""

    subjects: tuple[str, ...]
    columns: tuple[str, ...]
    above: bool
    times: float
    plus: float | None
    rivals: tuple[str, ...]
    theirs: tuple[str, ...]

    def gap(self, values: Values, rival: str) -> float:
        """Positive where the sentence is true of this rival: of logarithms, or of points where it adds."""
        own = [self._mean(values, subject, self.columns) for subject in self.subjects]
        best = max(own) if self.above else min(own)
        other = math.log(float(rival)) if rival[0].isdigit() else self._mean(values, rival, self.theirs)
        gap = best - other - math.log(self.times)
        if self.plus is not None:
            gap = math.exp(best) - math.exp(other) - self.plus
        return gap if self.above else -gap

    @staticmethod
    def _mean(values: Values, method: str, columns: tuple[str, ...]) -> float:
        return math.fsum(math.log(values[method, column]) for column in columns) / len(columns)


@cache
def table_of(claim: str) -> Table:
    return load_table(CLAIMS[claim].table, METRICS, "paper")


def printed(claim: str, header: str) -> set[str]:
    """The methods with a number in that column of the paper's table."""
    (column,) = (column for column in table_of(claim).columns if column.header == header)
    chosen = PAPER
    for name, value in column.paper.items():
        chosen = chosen[chosen[name] == value]
    return set(chosen["method"])


def read() -> Iterator[tuple[str, Says]]:
    for line in SENTENCES.strip().splitlines():
        claim, who, where, relation, whom, *theirs = (part.strip() for part in line.split(" | "))
        sign, *bound = relation.split()
        subjects, columns = tuple(who.split()), tuple(where.split(" * "))
        others = whom.split()
        if whom in ("printed", "generalists"):
            found = printed(claim, columns[0]) - set(subjects)
            others = sorted(found & GENERALISTS if whom == "generalists" else found)
        yield (
            claim,
            Says(
                subjects,
                columns,
                sign == ">",
                float(bound[1]) if bound[:1] == ["x"] else 1.0,
                float(bound[1]) if bound[:1] == ["+"] else None,
                () if sign == "=" else tuple(others),
                tuple(theirs) or columns,
            ),
        )


READ: dict[str, list[Says]] = {}
for _claim, _says in read():
    READ.setdefault(_claim, []).append(_says)


def true_of(sentence: list[Says]) -> Values:
    """Numbers of which the sentence is true, clearly."""
    values = {}
    for says in sentence:
        for method in (*says.subjects, *says.rivals):
            values |= {(method, column): 0.3 for column in (*says.columns, *says.theirs) if not method[0].isdigit()}
    first = sentence[0]
    if not first.rivals:
        return {}
    bounds = sorted(says.times for says in sentence)
    wanted = (bounds[0] * bounds[-1]) ** 0.5 if len(set(bounds)) > 1 else bounds[0] * (1.3 if first.above else 1 / 1.3)
    if first.plus is not None:
        wanted = (0.3 + first.plus + 0.1) / 0.3
    if first.rivals[0][0].isdigit():
        wanted = CLEAR * float(first.rivals[0]) / 0.3
    values |= {(subject, column): 0.3 * wanted for subject in first.subjects for column in first.columns}
    for says in sentence[1:]:
        for rival in says.rivals:
            if says.gap(values, rival) <= 0:  # the best, of a sentence about the second best
                values |= {(rival, column): 0.3 * wanted * (1 / 1.3 if says.above else 1.3) for column in says.theirs}
    return values


def rows_of(claim: str, values: Values) -> pd.DataFrame:
    """Rows of these numbers, each with a little noise over seeds, and of a verifier that reads whatever is asked."""
    table, draws = table_of(claim), np.random.default_rng(0)
    columns = {column.header: column for column in table.columns}
    methods = {method for method, _ in values} | {"muni"}
    certain = {(method, column.header): 1.0 for column in table.columns if column.least for method in methods}
    records = []
    for (method, header), value in (certain | values).items():
        for seed in range(SEEDS):
            noisy = value if value == 1.0 else value * math.exp(NOISE * draws.standard_normal())
            records += list(records_of(table.dataset, columns[header], method, seed, noisy))
    return frame_of(records)


def records_of(dataset: str, column: Column, method: str, seed: int, value: float | None) -> Iterator[Record]:
    for cell in column.cells(dataset, MODALITIES[dataset]):
        given, want = "+".join(cell.given), "+".join(cell.want)
        status = "ok" if value is not None else "n/a: no such task"
        what = ("paper", dataset, given, want, method, column.metric, seed, value, None, 10_000, status)
        yield Record(*what, 1, 1, 1, "p", "float32", "r", "s", "c", "2", "GPU")


def verdict(claim: str, frame: pd.DataFrame) -> str:
    found = check_claims(frame, [CLAIMS[claim]], "paper", MODALITIES, PAPER.iloc[:0])
    (answer,) = set(found["verdict"])
    return str(answer)


def falsehoods(sentence: list[Says]) -> Iterator[tuple[str, Values]]:
    """Numbers of which the sentence is false of one rival: slightly, by far, and by one of several columns alone."""
    for says in sentence:
        for rival in says.rivals:
            ways = [(CLEAR, says.theirs)]
            if rival == says.rivals[0]:
                ways += [(10.0, says.theirs), *((CLEAR, (column,)) for column in says.theirs if len(says.theirs) > 1)]
            for beyond, columns in ways:
                values = false_of(sentence, says, rival, beyond, columns)
                assert says.gap(values, rival) < 0
                yield f"{rival}, {' and '.join(columns)}, by {beyond}", values


def false_of(sentence: list[Says], says: Says, rival: str, beyond: float, columns: tuple[str, ...]) -> Values:
    """As `true_of`, but for what the rival has in these columns; of a number in its place, the subject's."""
    values = true_of(sentence)
    if rival[0].isdigit():
        return values | {(says.subjects[0], says.columns[0]): float(rival) / beyond}
    gap = says.gap(values, rival)
    if says.plus is not None:
        gap = math.log((values[says.subjects[0], says.columns[0]] - says.plus) / values[rival, columns[0]])
    change = (gap + math.log(beyond)) * len(says.theirs) / len(columns)
    return values | {
        (rival, column): values[rival, column] * math.exp(change if says.above else -change) for column in columns
    }


def test_every_claim_is_read() -> None:
    assert list(READ) == list(CLAIMS)


@pytest.mark.parametrize("claim", CLAIMS)
def test_rows_that_contradict_the_sentence_do_not_let_it_hold(claim: str) -> None:
    sentence = READ[claim]
    if not sentence[0].rivals:  # it has no number there
        (header,) = sentence[0].columns
        method, table = sentence[0].subjects[0], table_of(claim)
        (column,) = (column for column in table.columns if column.header == header)
        without, numbers = (frame_of(records_of(table.dataset, column, method, 0, value)) for value in (None, 0.5))
        rows = rows_of(claim, {})
        assert [verdict(claim, pd.concat([rows, more])) for more in (without, numbers)] == ["holds", "fails"]
        return
    assert verdict(claim, rows_of(claim, true_of(sentence))) == "holds"
    for way, values in falsehoods(sentence):
        assert verdict(claim, rows_of(claim, values)) == "fails", way


def test_the_best_is_better_than_all_that_the_paper_prints() -> None:
    for name in (name for name, claim in CLAIMS.items() if re.search(" (best|lowest|second-best) ", claim.text)):
        (first, *_) = READ[name]
        rivals = {rival for says in READ[name] for rival in says.rivals} | set(first.subjects)
        found = printed(name, first.columns[0])
        assert rivals >= (found & GENERALISTS if "generalist" in CLAIMS[name].text else found), name
