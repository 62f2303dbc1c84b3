"""Every method's routes are those of `routing.toml`: subsets, weights, targets, gradients, prior and inference.

Weights are confirmed exactly, by feeding a method every draw of a grid, and with the real draws by a chi-square
bound. Gradients are confirmed by autograd. Planted wrong routes show that each check can fail.
"""

from __future__ import annotations

import math
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from baselines.mld import MLD
from baselines.mmvae import MMVAE
from baselines.mopoe import MoPoE
from baselines.mvae import MVAE
from benchmark import registry
from benchmark.api import Inapplicable, Modality, words_of
from benchmark.runtime import Draws
from models.components.experts import hellinger, product
from models.components.families import Images, Texts
from models.components.latent import LatentModel
from models.components.routes import Route, Subsets, all_subsets, draw_subsets
from models.muni import MUNI
from models.muni_hellinger import MUNIHellinger
from tests.models.latent_models import KINDS, VECTORS, build

TABLE: dict[str, dict[str, Any]] = tomllib.loads((Path(__file__).parent / "routing.toml").read_text())
RULES = {"product": product, "hellinger": hellinger}
NUMBERS = "123"
OBSERVED = ("123", "12", "13", "23")
SUBSETS = ["".join(members) for size in (1, 2, 3) for members in combinations(NUMBERS, size)]
SIDES = {2: (420, 420), 4: (84, 12, 12, 12)}  # of the grid, by the number of draws: multiples of every denominator
ROWS = 20_000  # of the chi-square test: it finds a subset whose share is a tenth off
ALARM = 1e-6  # probability that the chi-square bound is passed by chance; the seed is fixed

Law = Mapping[tuple[str, str, str], Fraction]  # (given, targets, prior) -> share of the rows


# The table, read.


@dataclass(frozen=True)
class Routes:
    """One method's table for rows that observed `observed`, relabelled from the pair 12 where they are a pair."""

    method: str
    observed: str

    @property
    def entries(self) -> dict[str, Any]:
        return TABLE[self.method]["full" if self.observed == NUMBERS else "pair"]

    def relabel(self, members: str) -> str:
        return "" if members == "none" else "".join(self.observed[NUMBERS.index(member)] for member in members)

    def targets(self) -> dict[str, dict[str, str]]:
        """Subset -> target -> the experts that its reconstruction trains."""
        return {
            self.relabel(subset): {
                self.relabel(target): self.relabel(experts) for target, experts in entry.items() if target != "weight"
            }
            for subset, entry in self.entries["given"].items()
        }

    def prior(self) -> dict[str, str]:
        """Subset -> the experts that the prior term trains."""
        return {self.relabel(subset): self.relabel(entry["experts"]) for subset, entry in self.entries["prior"].items()}

    def untrained(self) -> set[str]:
        """Subsets on which there is no prior term."""
        return {self.relabel(subset) for subset, entry in self.entries["prior"].items() if entry.get("term") == "none"}

    def private(self, subset: str, part: str) -> str:
        entries = {self.relabel(key): entry for key, entry in self.entries.get("private", {}).items()}
        return self.relabel(entries[subset][part]) if subset in entries else ""

    def weights(self, part: str) -> dict[str, Fraction]:
        return {self.relabel(subset): Fraction(entry["weight"]) for subset, entry in self.entries[part].items()}

    def law(self) -> Law:
        given, prior = self.weights("given"), self.weights("prior")
        targets = {subset: "".join(experts) for subset, experts in self.targets().items()}
        if TABLE[self.method]["prior_draw"] == "same":
            assert given == prior
            return {(subset, targets[subset], subset): weight for subset, weight in given.items()}
        return {
            (subset, targets[subset], told): weight * share
            for subset, weight in given.items()
            for told, share in prior.items()
        }


def tables() -> Iterator[Routes]:
    for method, table in TABLE.items():
        for observed in OBSERVED if "pair" in table and table["pair"] != "needs full rows" else OBSERVED[:1]:
            yield Routes(method, observed)


# The method, asked.


class Enumeration:
    """Stands in for Draws: a method's first draw and those after it run through every point of a grid."""

    def __init__(self, draws: int = 2) -> None:
        sides = SIDES[draws]
        self.rows = math.prod(sides)
        self._axes = iter(zip(torch.unravel_index(torch.arange(self.rows), sides), sides, strict=True))

    def uniform(self, name: str) -> Tensor:
        place, side = next(self._axes)
        return (place + 0.5) / side

    def integers(self, name: str, high: int) -> Tensor:
        place, side = next(self._axes)
        return place * high // side


def mask(members: str, rows: int) -> Tensor:
    return torch.tensor([number in members for number in NUMBERS]).expand(rows, -1)


def spell(code: int) -> str:
    return "".join(number for place, number in enumerate(NUMBERS) if code >> place & 1)


def counts(*masks: Tensor) -> Counter:
    """How many rows hold each combination of subsets."""
    code = sum((m.long() @ torch.tensor([1, 2, 4])) * 8**place for place, m in enumerate(masks))
    found = torch.bincount(code, minlength=8 ** len(masks))
    return Counter(
        {
            tuple(spell(int(k) // 8**place % 8) for place in range(len(masks))): int(found[k])
            for k in found.nonzero().flatten()
        }
    )


def drawn(model: LatentModel, observed: str, draws: Any) -> Route:
    return model.routes(mask(observed, draws.rows), draws)


def tally(route: Route) -> Counter:
    return counts(route.given, route.targets, route.prior)


# The checks. Each returns one line per entry in which a method departs from the table.


def faults(method: type, table: Routes, modalities: tuple[Modality, ...] = VECTORS) -> list[str]:
    model = build(method, modalities)
    every = drawn(model, table.observed, Enumeration(TABLE[table.method].get("draws", 2)))
    found = [*law_faults(every, table), *gradient_faults(model, every, table)]
    if table.observed == NUMBERS:
        found += [*aggregate_faults(model, table), *inference_faults(model, table)]
    return found


def law_faults(every: Route, table: Routes) -> Iterator[str]:
    yield from differences(table.law(), shares(tally(every)), "share of (given, targets, prior) =")


def shares(found: Counter) -> dict[Any, Fraction]:
    return {key: Fraction(count, found.total()) for key, count in found.items()}


def differences(stated: Mapping, found: Mapping, what: str) -> Iterator[str]:
    for key in sorted(stated.keys() | found.keys()):
        if stated.get(key, 0) != found.get(key, 0):
            yield f"{what} {key}: {found.get(key, 0)}, not {stated.get(key, 0)}"


def chi_square(found: Counter, law: Mapping[Any, Fraction]) -> float:
    """Probability of a departure from the law as large as that found; 0 where the law rules a row out."""
    if found.keys() - law.keys():
        return 0.0
    rows = found.total()
    statistic = sum((found[key] - rows * share) ** 2 / (rows * share) for key, share in law.items())
    return 1.0 if len(law) == 1 else float(chi2.sf(float(statistic), len(law) - 1))


def gradient_faults(model: LatentModel, every: Route, table: Routes) -> Iterator[str]:
    card = registry.card("method", table.method)
    fusion = {"fusion"} if table.method == "shala" else set()
    for given, targets in table.targets().items():
        route = route_of(every, given=given)
        for target in table.observed:
            expected = set()
            if target in targets:
                private = {f"private {given}"} if target in table.private(given, "own") else set()
                auxiliary = {f"auxiliary {target}"} if target in table.private(given, "auxiliary") else set()
                expected = trained(targets[target], private) | auxiliary | fusion | {f"decoder {target}"}
            only = route.targets & mask(target, len(route.targets))
            found = reached(
                model,
                table.observed,
                replace(route, targets=only),
                card.stages[0][0],
                prior_weight=0.0,
                encoder_grad_scale=0.0,
                **({"kl_weight": 0.0} if fusion else {}),
            )
            yield from reach_faults(f"reconstruction of {target} from {given}", expected, found)
    for subset, experts in table.prior().items():
        route = route_of(every, prior=subset)
        private = {f"private {i}" for i in table.private(subset, "divergence")}
        found = reached(
            model, table.observed, replace(route, targets=torch.zeros_like(route.targets)), card.stages[-1][0]
        )
        network = set() if subset in table.untrained() else {"prior"}
        yield from reach_faults(f"prior on {subset or 'none'}", trained(experts, private) | network, found)
    for subset, entry in table.entries.get("divergence", {}).items():
        route = route_of(every, given=subset)
        found = reached(
            model, table.observed, replace(route, targets=torch.zeros_like(route.targets)), card.stages[0][0]
        )
        yield from reach_faults(f"divergence of {subset}", trained(entry["experts"], set()) | fusion, found)


def reach_faults(what: str, expected: set[str], found: set[str]) -> Iterator[str]:
    yield from (f"{what} trains {part}" for part in sorted(found - expected))
    yield from (f"{what} does not train {part}" for part in sorted(expected - found))


def trained(experts: str, private: set[str]) -> set[str]:
    """The parts of the encoder that these experts' shared outputs and these private outputs reach."""
    bodies = {f"body {i}" for i in experts} | {f"body {part[-1]}" for part in private}
    return {f"expert {i}" for i in experts} | private | bodies


def route_of(every: Route, **part: str) -> Route:
    """The method's own route of a row whose `given`, or `prior`, is the subset asked for; four rows of it.

    A subset that is never drawn is the law's fault, and reported there: any row with that subset serves here.
    """
    ((name, subset),) = part.items()
    alike = (getattr(every, name) == mask(subset, len(every.given))).all(-1)
    row = alike.int().argmax().expand(4)
    return replace(Route(every.given[row], every.targets[row], every.prior[row]), **{name: mask(subset, 4)})


def batch_of(observed: str, model: LatentModel) -> dict[str, Tensor]:
    """Four rows."""
    draws, rows = Draws("routing rows", rows=4), {}
    for each in model.modalities:
        if each.name in observed:
            label = each.kind == "label"
            rows[each.name] = draws.integers(each.name, each.classes) if label else draws.normal(each.name, *each.shape)
            if each.words:
                rows[words_of(each.name)] = draws.integers("words", each.classes, each.words)
    return rows


def given_of(subset: str, model: LatentModel) -> dict[str, Tensor]:
    """As a cell gives them: words are only in training rows."""
    return {name: rows for name, rows in batch_of(subset, model).items() if name in subset}


def reached(model: LatentModel, observed: str, route: Route, stage: str, **overrides: float) -> set[str]:
    """The parts of the model that the loss gives any gradient that is not exactly zero."""
    model.zero_grad(set_to_none=True)
    before, own = model.config, {name: overrides.pop(name) for name in [*overrides] if hasattr(type(model), name)}
    vars(model).update(own)
    model.config = replace(before, **overrides)
    model.routes = lambda observed, draws: route
    try:
        loss, _ = model.loss(batch_of(observed, model), stage, Draws("routing", rows=4))
    finally:
        for name in ("routes", *own):
            delattr(model, name)
        model.config = before
    if loss.requires_grad:
        loss.backward()
    return {name for name, gradients in parts(model) if any(bool((g != 0).any()) for g in gradients)}


def parts(model: LatentModel) -> Iterator[tuple[str, list[Tensor]]]:
    """Name and gradients of every part of a model; `expert i` is the head of its shared outputs, `body i` the rest of
    what it does not share with others."""
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    for place, (family, members) in enumerate(zip(model.families, model.parts, strict=True)):
        prefix = f"families.{place}."
        own = {name.removeprefix(prefix): gradient for name, gradient in found.items() if name.startswith(prefix)}
        assert all(name.startswith(("encoder.", "decoder.")) for name in own)
        of_member = of_picture if isinstance(family, Images) else of_text if isinstance(family, Texts) else of_stacked
        for k, number in enumerate(NUMBERS[members]):
            heads, body, decoder = of_member(own, k)
            split = [head.unflatten(-1, (2, -1)) for head in heads]
            yield f"expert {number}", [head[..., : model.config.latent_size] for head in split]
            yield f"private {number}", [head[..., model.config.latent_size :] for head in split]
            yield f"body {number}", body
            yield f"decoder {number}", decoder
    for k, number in enumerate(NUMBERS):
        yield f"auxiliary {number}", [gradient[k] for name, gradient in found.items() if name.startswith("auxiliary")]
    yield "prior", [gradient for name, gradient in found.items() if name.startswith("prior.")]
    yield "fusion", [gradient for name, gradient in found.items() if name.startswith("fuse")]
    known = ("families.", "prior.", "auxiliary", "fuse")
    assert all(name.startswith(known) for name in found), "a part of the model that the table does not know"


Gradients = tuple[list[Tensor], list[Tensor], list[Tensor]]  # of the expert's head, of its body, of its decoder


def of_stacked(named: Mapping[str, Tensor], k: int) -> Gradients:
    """Vectors and labels: the k-th of the stacked networks."""
    head = [gradient[k] for name, gradient in named.items() if name.startswith(("encoder.skip", "encoder.leave"))]
    body = [gradient[k] for name, gradient in named.items() if name.startswith(("encoder.enter", "encoder.blocks"))]
    return head, body, [gradient[k] for name, gradient in named.items() if name.startswith("decoder.")]


def of_text(named: Mapping[str, Tensor], k: int) -> Gradients:
    """A text: as a vector, but its decoder holds a language model's adapters, too."""
    head, body, _ = of_stacked({name: gradient for name, gradient in named.items() if name.startswith("encoder.")}, k)
    return head, body, [gradient for name, gradient in named.items() if name.startswith("decoder.")]


def of_picture(named: Mapping[str, Tensor], k: int) -> Gradients:
    """Views share their networks, but for the first layer, the head, and what the decoder is told of the view."""
    head = [named[name][k] for name in ("encoder.head", "encoder.bias") if name in named]
    body = [gradient for name, gradient in named.items() if name.startswith(f"encoder.enter.{k}.")]
    return head, body, [named["decoder.view"][k]] if "decoder.view" in named else []


def aggregate_faults(model: LatentModel, table: Routes) -> Iterator[str]:
    """The pooled posterior of every subset is the stated rule's."""
    rule = RULES.get(TABLE[table.method]["aggregate"])
    draws = Draws("routing experts", rows=5)
    mean, log_variance = draws.normal("mean", 3, 4), draws.normal("log variance", 3, 4)
    for subset in SUBSETS if rule else []:
        given = mask(subset, 5)
        pairs = zip(model.aggregate(mean, log_variance, given), rule(mean, log_variance, given), strict=True)
        if not all(torch.equal(one, other) for one, other in pairs):
            yield f"posterior of {subset} is not the {TABLE[table.method]['aggregate']}"


def inference_faults(model: LatentModel, table: Routes) -> Iterator[str]:
    """Which experts infer the latent at test time, by law and by autograd through `infer`."""
    rule = TABLE[table.method]["inference"]
    for subset in SUBSETS:
        if rule in ("condition", "kept"):
            yield from (condition_faults if rule == "condition" else kept_faults)(model, subset)
            continue
        chosen = (
            {(subset,): Fraction(1)}
            if rule == "all given"
            else {(member,): Fraction(1, len(subset)) for member in subset}
        )
        points = Enumeration()
        found = counts(model.inference(mask(subset, points.rows), points))
        yield from differences(chosen, shares(found), f"inference from {subset}, share of")
        asked = model.inference(mask(subset, 4), Draws("infer", rows=4))
        model.zero_grad(set_to_none=True)
        model.infer(given_of(subset, model), Draws("infer", rows=4))[0].square().sum().backward()
        experts = {
            name[-1]
            for name, gradients in parts(model)
            if name.startswith("expert")
            if any(bool((g != 0).any()) for g in gradients)
        }
        expected = {number for number, member in zip(NUMBERS, asked[0], strict=True) if member}
        if experts != expected:
            yield f"inference from {subset} reads experts {sorted(experts)}, not {sorted(expected)}"


def condition_faults(model: LatentModel, subset: str) -> Iterator[str]:
    """One modality is heard; several are refused."""
    if len(subset) > 1:
        try:
            model.infer(given_of(subset, model), Draws("infer", rows=4))
        except Inapplicable:
            return
        yield f"inference from {subset} is not refused"
        return
    told = model.infer(given_of(subset, model), Draws("infer", rows=4))
    other = model.infer({subset: (given_of(subset, model)[subset] + 1) % 5}, Draws("infer", rows=4))
    if torch.equal(told, other):
        yield f"inference from {subset} does not hear it"


def kept_faults(model: LatentModel, subset: str) -> Iterator[str]:
    """The latents of what is given are the encoder's, and those of the others hear every one of them."""
    given, rows = given_of(subset, model), mask(subset, 4)

    def infer(given: dict[str, Tensor]) -> Tensor:
        return model.infer(given, Draws("infer", rows=4)).unflatten(1, (len(NUMBERS), -1))

    with torch.no_grad():
        own, latents = model.encode(model.observe(given)[0])[0], infer(given)
    if not torch.equal(latents[rows], own[rows]):
        yield f"inference from {subset} does not keep its latents"
    for member in subset if len(subset) < len(NUMBERS) else "":
        if torch.equal(infer(given | {member: (given[member] + 1) % 5})[~rows], latents[~rows]):
            yield f"inference from {subset} does not hear {member}"


# The tests.


def test_the_table_has_every_trained_method_and_no_other():
    plain = {name: registry.card("method", name) for name in registry.index("method")}
    switched = {f"{name}:{switch}" for name, card in plain.items() for switch in card.variants}
    cards = plain | {name: registry.card("method", name) for name in switched}
    assert set(TABLE) == {name for name, card in cards.items() if card.stages}
    for name, table in TABLE.items():
        assert cards[name].needs_full_rows == (table.get("pair") == "needs full rows")
        assert ("many_to_one" in cards[name].tasks) == (table["inference"] != "condition")


@pytest.mark.parametrize("modalities", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("table", list(tables()), ids=lambda table: f"{table.method}-{table.observed}")
def test_every_entry_of_the_table_holds(table: Routes, modalities: tuple[Modality, ...]):
    """Whatever the kinds: two pictures and a label, or features of three things, route like three vectors."""
    assert sum(table.law().values()) == 1
    assert faults(registry.load("method", table.method), table, modalities) == []


@pytest.mark.parametrize("table", list(tables()), ids=lambda table: f"{table.method}-{table.observed}")
def test_the_real_draws_follow_the_table(table: Routes):
    model = build(registry.load("method", table.method))
    assert chi_square(tally(drawn(model, table.observed, Draws("chi-square", rows=ROWS))), table.law()) > ALARM


def test_the_real_inference_draws_one_expert_uniformly():
    model = build(MMVAE)
    for subset in SUBSETS:
        found = counts(model.inference(mask(subset, ROWS), Draws("chi-square", rows=ROWS)))
        assert chi_square(found, {(member,): Fraction(1, len(subset)) for member in subset}) > ALARM


@pytest.mark.parametrize("method", [MUNI, MUNIHellinger])
def test_the_target_detached_gradient_is_exactly_zero_and_the_latent_is_unchanged(method: type):
    """Eq. 11: the forward pass uses the target's expert, the backward pass does not."""
    model = build(method)
    mean, log_variance = (
        part.detach().requires_grad_() for part in model.encode(model.observe(batch_of("123", model))[0])
    )
    noise = Draws("latents", rows=4).normal("latent", 4)
    routed = model.latents(mean, log_variance, mask("123", 4), noise)
    pooled, log_pooled = model.aggregate(mean, log_variance, mask("123", 4))
    plain = pooled + torch.exp(0.5 * log_pooled) * noise
    whole = torch.autograd.grad(plain.square().sum(), (mean, log_variance), retain_graph=True)
    for target in range(3):
        assert torch.allclose(routed[target], plain, rtol=1e-6, atol=1e-6)
        others = [expert for expert in range(3) if expert != target]
        found = torch.autograd.grad(routed[target].square().sum(), (mean, log_variance), retain_graph=True)
        for part, attached in zip(found, whole, strict=True):
            assert torch.equal(part[:, target], torch.zeros(4, 4))
            assert bool((attached[:, target] != 0).all())
            assert torch.allclose(part[:, others], attached[:, others], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", [MUNI, MUNIHellinger])
def test_targets_together_train_what_they_train_alone(method: type):
    """The gradient of the sum over targets is the sum of the routed gradients, to the rounding of float32."""
    model = build(method)
    mean, log_variance = (
        part.detach().requires_grad_() for part in model.encode(model.observe(batch_of("123", model))[0])
    )
    noise = Draws("latents", rows=4).normal("latent", 4)
    routed = model.latents(mean, log_variance, mask("123", 4), noise) * torch.tensor([1.0, -2.0, 30.0])[:, None, None]
    together = torch.autograd.grad(routed.square().sum(), (mean, log_variance), retain_graph=True)
    alone = [torch.autograd.grad(one.square().sum(), (mean, log_variance), retain_graph=True) for one in routed]
    for k, found in enumerate(together):
        total = sum(parts[k] for parts in alone)
        assert torch.allclose(found, total, rtol=1e-5, atol=3e-6 * total.abs().max().item())


# Planted faults: a checker that cannot fail confirms nothing.


def by_size(modalities: int) -> Subsets:
    """Uniform over sizes, then over subsets: the other reading of MoPoE's law."""
    sizes = Counter(map(len, all_subsets(modalities)))
    return {subset: 1 / sizes[len(subset)] for subset in all_subsets(modalities)}


class PriorOnAllSubsets(MUNI):
    def routes(self, observed: Tensor, draws: Any) -> Route:
        given, prior = (draw_subsets(all_subsets(3), observed, draws, name) for name in ("reconstruction", "prior"))
        return Route(given, observed, prior)


class PriorOnTheSameDraw(MUNI):
    def routes(self, observed: Tensor, draws: Any) -> Route:
        route = super().routes(observed, draws)
        return replace(route, prior=torch.where(route.given.sum(-1, keepdim=True) > 1, route.given, route.prior))


class OwnExpertAttached(MUNI):
    detach_own = False


class EveryExpertDetached(MUNI):
    def latents(self, *arguments: Tensor) -> Tensor:
        return super().latents(*arguments).detach()


class NonMembersDecoded(MVAE):
    def routes(self, observed: Tensor, draws: Any) -> Route:
        return replace(super().routes(observed, draws), targets=observed)


class UniformOverSizes(MoPoE):
    def routes(self, observed: Tensor, draws: Any) -> Route:
        given = draw_subsets(by_size(3), observed, draws, "reconstruction subset")
        return Route(given, observed, given)


class EncoderOutOfThePriorTerm(MoPoE):
    def prior_terms(self, mean: Tensor, log_variance: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return super().prior_terms(mean.detach(), log_variance.detach(), *rest)


class ProductThatDropsAnExpert(MoPoE):
    @staticmethod
    def aggregate(mean: Tensor, log_variance: Tensor, given: Tensor, *rest: bool) -> tuple[Tensor, Tensor]:
        kept = given.clone()
        kept[..., 2] &= ~given[..., :2].any(-1)
        return product(mean, log_variance, kept, *rest)


class EveryExpertInfers(MMVAE):
    def inference(self, given: Tensor, draws: Any) -> Tensor:
        return given


class OwnPrivateLatentForAll(registry.load("method", "mmvaeplus")):
    def reconstruction(self, x: Tensor, z: Tensor, targets: Tensor, draws: Draws) -> Tensor:
        latent = self.config.latent_size
        own = z[:1, :, latent:].expand(3, -1, -1)
        return super().reconstruction(x, torch.cat([z[..., :latent], own], -1), targets, draws)


class DeafToTheGiven(MLD):
    def solve(self, z: Tensor, clean: Tensor, draws: Draws) -> Tensor:
        return torch.lerp(super().solve(z, torch.zeros_like(clean), draws), z, self.spread_out(clean.to(z.dtype)))


class GivenLatentsDrift(MLD):
    def solve(self, z: Tensor, clean: Tensor, draws: Draws) -> Tensor:
        return super().solve(z, clean, draws) + 0.01


class OneLatentForAll(MLD):
    def reconstruction(self, x: Tensor, z: Tensor, targets: Tensor, draws: Draws) -> Tensor:
        return super().reconstruction(x, z[:1].expand_as(z), targets, draws)


class LessStaysClean(MLD):
    clean_share = 0.25


PLANTED = [
    ("muni", "123", PriorOnAllSubsets, "share of (given, targets, prior) = ('1', '123', '1'): 1/49, not 0"),
    ("muni", "12", PriorOnAllSubsets, "share of (given, targets, prior) = ('1', '12', '1')"),
    ("muni", "123", PriorOnTheSameDraw, "share of (given, targets, prior) = ('12', '123', '12'): 1/7, not 1/28"),
    ("muni", "123", OwnExpertAttached, "reconstruction of 1 from 1 trains expert 1"),
    ("muni", "12", OwnExpertAttached, "reconstruction of 2 from 12 trains expert 2"),
    ("muni", "123", EveryExpertDetached, "reconstruction of 2 from 13 does not train expert 1"),
    ("mvae", "123", NonMembersDecoded, "reconstruction of 3 from 12 trains decoder 3"),
    ("mopoe", "123", UniformOverSizes, "share of (given, targets, prior) = ('123', '123', '123'): 1/3, not 1/7"),
    ("mopoe", "123", EncoderOutOfThePriorTerm, "prior on 12 does not train expert 2"),
    ("mopoe", "123", ProductThatDropsAnExpert, "posterior of 123 is not the product"),
    ("mopoe", "123", ProductThatDropsAnExpert, "reconstruction of 1 from 13 does not train expert 3"),
    ("muni_hellinger", "123", MUNI, "posterior of 12 is not the hellinger"),
    ("mmvae", "123", EveryExpertInfers, "inference from 12, share of ('12',): 1, not 0"),
    ("mmvaeplus", "123", OwnPrivateLatentForAll, "reconstruction of 2 from 1 trains private 1"),
    ("mld", "123", DeafToTheGiven, "inference from 12 does not hear 1"),
    ("mld", "123", GivenLatentsDrift, "inference from 3 does not keep its latents"),
    ("mld", "123", OneLatentForAll, "reconstruction of 2 from 123 trains expert 1"),
    ("mld", "123", LessStaysClean, "share of (given, targets, prior) = ('123', '123', ''): 3/4, not 1/2"),
    ("mvtcae", "123", MoPoE, "share of (given, targets, prior) = ('1', '123', '1'): 1/7, not 0"),
]


@pytest.mark.parametrize("modalities", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(
    ("method", "observed", "planted", "fault"),
    PLANTED,
    ids=lambda value: getattr(value, "__name__", None) if isinstance(value, type) else None,
)
def test_a_planted_wrong_route_is_found(
    method: str, observed: str, planted: type, fault: str, modalities: tuple[Modality, ...]
):
    assert any(fault in line for line in faults(planted, Routes(method, observed), modalities))


@pytest.mark.parametrize("planted", [PriorOnAllSubsets, PriorOnTheSameDraw])
def test_the_chi_square_bound_finds_a_wrong_prior(planted: type):
    found = tally(drawn(build(planted), NUMBERS, Draws("chi-square", rows=ROWS)))
    assert chi_square(found, Routes("muni", NUMBERS).law()) < ALARM


def test_the_chi_square_bound_finds_a_share_that_is_a_tenth_off():
    class Uneven(MoPoE):
        def routes(self, observed: Tensor, draws: Any) -> Route:
            given = draw_subsets(all_subsets(3) | {(0, 1): 1.2}, observed, draws, "reconstruction subset")
            return Route(given, observed, given)

    law = Routes("mopoe", NUMBERS).law()
    assert chi_square(tally(drawn(build(Uneven), NUMBERS, Draws("chi-square", rows=ROWS))), law) < ALARM
