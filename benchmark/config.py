"""One flat configuration per run, resolved from the dataset's recipe, the method's overrides and `--set`.

Every value carries its source, so that `bench info` can print where each comes from.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from benchmark.api import Card, DatasetCard, MethodCard, MetricCard, UserError

PRESETS = ("paper", "gpu", "cpu", "smoke")


def _setting(default: Any = MISSING, **marks: Any) -> Any:
    """A field of Config with its marks.

    budget: presets may differ in it: sizes, steps, counts and precision, and the learning rate, since the stable one
        depends on the width.
    scoring: no trained weight depends on it; runs that differ in these alone share one training.
    evaluation: a score depends on it, besides the trained model; it is hashed into the row's `protocol`. What is
        marked `scoring` is, too.
    positive, least, most, choices: see `refused`; a number is at least 0.
    """
    return field(default=default, metadata={"least": 0, **marks})


@dataclass(frozen=True)
class Own:
    """The value of a field that a card declares (see `fields` in benchmark/api.py).

    usual: what the card says at this preset. metric: the metric whose field it is; empty where it is the method's or
    the dataset's. scoring: no trained weight depends on it.
    """

    value: Any
    usual: Any
    metric: str = ""
    scoring: bool = False


@dataclass(frozen=True)
class Config:
    """What a run's numbers depend on, apart from method, dataset and seed. Units stand behind each field."""

    train_rows: int = _setting(budget=True, positive=True)  # rows of the training split in use
    evaluation_rows: int = _setting(budget=True, scoring=True, positive=True)  # held-out rows per conditional cell
    # generated rows of an unconditional cell
    unconditional_rows: int = _setting(budget=True, scoring=True, positive=True)
    # rows that the probes of the criteria are fitted on
    probe_rows: int = _setting(budget=True, scoring=True, positive=True)
    updates: int = _setting(budget=True, positive=True)  # optimiser steps, all stages together
    batch_rows: int = _setting(budget=True, positive=True)  # rows per update
    learning_rate: float = _setting(budget=True, positive=True)  # AdamW, constant after the warm-up
    warmup_updates: int = _setting(budget=True)  # linear warm-up, in updates
    weight_decay: float = _setting()
    clip_norm: float = _setting(positive=True)  # of the whole gradient
    # horizon of the weight average: decay = 1 - 1 / ema_updates
    ema_updates: int = _setting(budget=True, positive=True)
    latent_size: int = _setting(positive=True)  # dimensions of the shared latent
    private_size: int = _setting()  # dimensions of each private latent, where a method has one
    encoder_grad_scale: float = _setting()  # weight of the prior term's gradient into the encoder (Eq. 52)
    prior_weight: float = _setting()  # prior routes per reconstruction route
    encoder_width: int = _setting(budget=True, positive=True)
    encoder_depth: int = _setting(budget=True)  # residual blocks
    decoder_width: int = _setting(budget=True, positive=True)
    decoder_depth: int = _setting(budget=True)
    prior_width: int = _setting(budget=True, positive=True)
    prior_depth: int = _setting(budget=True)
    prior_steps: int = _setting(budget=True, scoring=True, positive=True)  # Euler steps
    decoder_steps: int = _setting(budget=True, scoring=True, positive=True)  # Euler steps
    # "float32" or "bfloat16" (autocast)
    precision: str = _setting(budget=True, evaluation=True, choices=("float32", "bfloat16"))
    compile: bool = _setting(budget=True)  # torch.compile of the networks
    beta2: float = _setting(0.999, most=1)  # AdamW's: the horizon of its second moment is 1 / (1 - beta2) updates
    threads: int = _setting(0, budget=True)  # of the processor; 0: as many as torch chooses
    # of the dataset, one of those that its card's notes name; presets differ in its canvas alone
    variant: str = _setting("", budget=True, evaluation=True)
    label_width: int = _setting(0, budget=True)  # hidden width of the networks of labels
    word_rows: int = _setting(0, budget=True)  # rows of a batch, the first ones, whose words are scored
    # of a text's cross-entropy, beside the distance of its projection from its feature
    word_weight: float = _setting(0.0)
    # of the low-rank adapters (LoRA) of the language model that writes texts
    adapter_rank: int = _setting(0, budget=True)
    adapter_scale: float = _setting(1.0)  # of what they add
    # of features of sounds: "regression", or "flow" as for pictures
    audio_decoder: str = _setting("regression", choices=("regression", "flow"))
    # the image networks work on patches of this many pixels squared
    patch: int = _setting(1, budget=True, positive=True)
    # mean logit of the times that image decoders learn at; above 0: more noise
    image_time_location: float = _setting(0.0)
    # of decoders by the latent, w in v(nothing) + w (v(z) - v(nothing)); 1: none
    guidance: float = _setting(1.0, scoring=True)
    # what reads generated pictures: the suite's "resnet", or the authors' "segformer"
    verifier: str = _setting("resnet", scoring=True, choices=("resnet", "segformer"))
    # share of rows whose decoders are not told the latent, as guidance needs
    condition_dropout: float = _setting(0.0, most=1)
    own: Mapping[str, Own] = field(default_factory=dict)  # of the fields that the run's cards declare

    def __post_init__(self) -> None:
        for name, setting in SETTINGS.items():
            _need_within(name, getattr(self, name), setting.metadata)

    @property
    def own_values(self) -> dict[str, Any]:
        """The values that the cards' fields have, for `registry.load`."""
        return {name: own.value for name, own in self.own.items()}

    def values(self) -> dict[str, Any]:
        """All that a run depends on: the fields, and those of the method's and the dataset's cards."""
        own = {name: own.value for name, own in self.own.items() if not own.metric}
        return {name: getattr(self, name) for name in SETTINGS} | own

    def training_values(self) -> dict[str, Any]:
        """Those of `values` that a trained weight depends on."""
        scoring = marked("scoring") | {name for name, own in self.own.items() if own.scoring}
        return {name: value for name, value in self.values().items() if name not in scoring}

    def changed(self, metric: str) -> dict[str, Any]:
        """The metric's fields that do not have the value of its card."""
        return {name: o.value for name, o in self.own.items() if o.metric == metric and o.value != o.usual}

    def protocol(self) -> str:
        """Hash of what an evaluation depends on; numbers of different protocols never share a column.

        A field at its default is left out, so that a new one does not change the hash of older rows.
        """
        values = {name: getattr(self, name) for name in marked("scoring") | marked("evaluation")}
        values = {name: value for name, value in values.items() if value != SETTINGS[name].default}
        own = {n: o.value for n, o in self.own.items() if o.scoring and not o.metric and o.value != o.usual}
        return digest(values | own)


SETTINGS: Mapping[str, Field[Any]] = {each.name: each for each in fields(Config) if each.name != "own"}


def marked(mark: str) -> frozenset[str]:
    """The fields of Config that have a mark (see `_setting`)."""
    return frozenset(name for name, setting in SETTINGS.items() if setting.metadata.get(mark))


@dataclass(frozen=True)
class Resolved:
    """A configuration and, per field, where its value comes from."""

    config: Config
    source: Mapping[str, str]


def default_preset() -> str:
    """gpu where there is one; asked of the driver's files, since torch takes a second to import."""
    return "gpu" if any(Path("/dev").glob("nvidia[0-9]*")) else "cpu"


def digest(content: Any) -> str:
    """Ten hex digits of a JSON-like value."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=5).hexdigest()


def resolve(
    dataset: DatasetCard,
    method: MethodCard | None,
    preset: str,
    overrides: Iterable[str] = (),
    metrics: Mapping[str, MetricCard] | None = None,
) -> Resolved:
    """Shared recipe < preset < method's overrides < `key=value` strings; the same for the fields that cards declare.

    metrics: name -> card of the metrics that will score. Raises UserError for a wrong value, and for a field that two
    of the cards declare.
    """
    if preset not in PRESETS:
        raise UserError(f"unknown preset {preset!r}{nearest(preset, PRESETS)}")
    if preset not in dataset.recipe:
        raise UserError(f"{dataset.label} has no preset {preset!r}: it has {', '.join(sorted(dataset.recipe))}")
    chosen = {name: (each.default, "default") for name, each in SETTINGS.items() if each.default is not MISSING}
    chosen |= {**dataset.recipe["shared"], **dataset.recipe[preset]}
    if method:
        chosen |= {k: (v, f"override of {method.label}, listed in its card") for k, v in method.overrides.items()}
    if unknown := chosen.keys() - SETTINGS.keys():
        raise UserError(f"{dataset.label}: no field {sorted(unknown)[0]!r}{nearest(sorted(unknown)[0], SETTINGS)}")
    if missing := SETTINGS.keys() - chosen.keys():
        raise UserError(f"{dataset.label}: the recipe lacks {', '.join(sorted(missing))}")
    declared = _declared(dataset, method, metrics or {})
    usual = {name: each.rule.get(preset, each.rule["value"]) for name, each in declared.items()}
    chosen |= {name: (usual[name], f"{each.rule['source']} (of {each.label})") for name, each in declared.items()}
    kinds = {name: str(each.type) for name, each in SETTINGS.items()}
    kinds |= {name: type(value).__name__ for name, value in usual.items()}
    for text in overrides:
        name, separator, value = text.partition("=")
        if not separator:
            raise UserError(f"--set {text}: write key=value")
        if name not in kinds:
            raise UserError(f"--set {text}: no field {name!r}{nearest(name, kinds)}")
        chosen[name] = (_parse(text, value, kinds[name]), "--set")
    own = {
        name: Own(chosen[name][0], usual[name], each.metric, each.rule.get("scoring", False))
        for name, each in declared.items()
    }
    for name, each in declared.items():
        _need_within(name, own[name].value, each.rule)
    return Resolved(
        Config(**{name: chosen[name][0] for name in SETTINGS}, own=own),
        {name: source for name, (_, source) in chosen.items()},
    )


@dataclass(frozen=True)
class _Declared:
    """A card's field: its entry, the card's label, and the name of the metric whose card it is."""

    rule: Mapping[str, Any]
    label: str
    metric: str = ""


def _declared(
    dataset: DatasetCard, method: MethodCard | None, metrics: Mapping[str, MetricCard]
) -> dict[str, _Declared]:
    """The fields of all the cards of a run."""
    found: dict[str, _Declared] = {}
    cards: list[tuple[str, Card]] = [("", dataset), *([("", method)] if method else []), *metrics.items()]
    for metric, card in cards:
        for name, rule in card.fields.items():
            if name in found:
                raise UserError(f"{found[name].label} and {card.label} both declare the field {name!r}: rename one")
            found[name] = _Declared(rule, card.label, metric)
    return found


_KINDS = (bool, int, float, str)
_RULES: Mapping[str, tuple[type, ...]] = {
    "source": (str,),
    "least": (int, float),
    "most": (int, float),
    "positive": (bool,),
    "choices": (list, tuple),
    "scoring": (bool,),
    "scales_with": (str,),
}


def check_fields(card: Card) -> None:
    """Raises UserError, naming the field, unless the card's `fields` are as benchmark/api.py says."""
    if not isinstance(card.fields, dict):
        raise UserError('fields: write {"name": {"value": ..., "source": "..."}}')
    for name, rule in card.fields.items():
        where = f"fields[{name!r}]"
        if not isinstance(name, str) or not name.isidentifier():
            raise UserError(f"{where}: a field's name is an identifier")
        if name in SETTINGS or name in PRESETS or name == "own":
            raise UserError(f"{where}: the suite has a field of this name: choose another")
        if isinstance(card, MethodCard) and any(name in switch for switch in card.variants.values()):
            raise UserError(f"{where}: a variant sets it, too: what --set changes is no variant's")
        try:
            _check_field(rule)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None


def _check_field(rule: Any) -> None:
    if not isinstance(rule, dict) or not {"value", "source"} <= rule.keys():
        raise UserError('write {"value": ..., "source": "where it comes from"}')
    kind = type(rule["value"])
    if kind not in _KINDS:
        raise UserError(f"value = {rule['value']!r}: a value is one of {', '.join(each.__name__ for each in _KINDS)}")
    values = {key: value for key, value in rule.items() if key in ("value", *PRESETS)}
    for key in rule.keys() - values.keys():
        if key not in _RULES:
            raise UserError(f"unknown key {key!r}{nearest(key, ('value', *PRESETS, *_RULES))}")
        if type(rule[key]) not in _RULES[key] or rule[key] in ("", [], ()):
            raise UserError(f"{key} = {rule[key]!r} is no {_RULES[key][0].__name__}, or is empty")
    for key, value in values.items():
        if type(value) is not kind:
            raise UserError(f"{key} = {value!r} is no {kind.__name__}, as its value is")
        _need_within(key, value, rule)
    if "scales_with" in rule and (rule["scales_with"] not in SETTINGS or kind is not float):
        raise UserError(f"scales_with = {rule['scales_with']!r}: a float scales with a float field of the recipe")


def refused(value: Any, rule: Mapping[str, Any]) -> str:
    """Why a value breaks a rule (least, most, positive, choices; a float is finite), or nothing."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if "least" in rule and value < rule["least"]:
            return "must not be negative" if rule["least"] == 0 else f"must be at least {rule['least']}"
        if not math.isfinite(value):
            return "must be finite"
        if rule.get("positive") and value <= 0:
            return "must be greater than 0"
        if "most" in rule and value > rule["most"]:
            return f"must be at most {rule['most']}"
    if "choices" in rule and value not in rule["choices"]:
        return f"choose {' or '.join(map(str, rule['choices']))}"
    return ""


def _need_within(name: str, value: Any, rule: Mapping[str, Any]) -> None:
    if why := refused(value, rule):
        raise UserError(f"{name} = {value!r}: {why}")


def _parse(text: str, value: str, kind: str) -> Any:
    try:
        if kind == "bool":
            return {"true": True, "false": False}[value.lower()]
        return {"int": int, "float": float, "str": str}[kind](value)
    except (ValueError, KeyError):
        raise UserError(f"--set {text}: {value!r} is not of type {kind}") from None


def nearest(name: str, known: Iterable[str]) -> str:
    """ ": did you mean ...?", or what there is, for the end of an error line."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f": did you mean {close[0]!r}?" if close else f": choose from {', '.join(sorted(known))}"
