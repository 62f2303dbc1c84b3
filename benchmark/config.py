"""One flat configuration per run, resolved from the dataset's recipe, the method's overrides and `--set`.

Every value carries its source, so that `bench info` can print where each comes from.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from benchmark.api import DatasetCard, MethodCard, UserError

PRESETS = ("paper", "gpu", "cpu", "smoke")

# The only fields in which presets may differ: sizes, steps, counts and precision, and the learning rate, since the
# stable one depends on the width.
BUDGET_FIELDS = frozenset(
    {
        "train_rows",
        "learning_rate",
        "evaluation_rows",
        "unconditional_rows",
        "updates",
        "batch_rows",
        "warmup_updates",
        "ema_updates",
        "encoder_width",
        "encoder_depth",
        "decoder_width",
        "decoder_depth",
        "label_width",
        "word_rows",
        "adapter_rank",
        "patch",
        "variant",
        "prior_width",
        "prior_depth",
        "prior_steps",
        "decoder_steps",
        "probe_rows",
        "precision",
        "compile",
        "threads",
    }
)

# What no trained weight depends on: runs that differ in these alone share one training.
SCORING_FIELDS = (
    "evaluation_rows",
    "unconditional_rows",
    "prior_steps",
    "decoder_steps",
    "probe_rows",
    "guidance",
    "verifier",
)
# What a score depends on besides the trained model: it is hashed into the row's `protocol`.
EVALUATION_FIELDS = (*SCORING_FIELDS, "precision", "variant")

SHARES = ("beta2", "condition_dropout")
# Of nothing, steps or no size there is no number: a sampler without steps returns noise.
POSITIVE = frozenset(
    {
        "train_rows",
        "evaluation_rows",
        "unconditional_rows",
        "probe_rows",
        "updates",
        "batch_rows",
        "learning_rate",
        "clip_norm",
        "ema_updates",
        "latent_size",
        "encoder_width",
        "decoder_width",
        "prior_width",
        "prior_steps",
        "decoder_steps",
        "patch",
    }
)


@dataclass(frozen=True)
class Config:
    """What a run's numbers depend on, apart from method, dataset and seed. Units stand behind each field."""

    train_rows: int  # rows of the training split in use
    evaluation_rows: int  # held-out rows per conditional cell
    unconditional_rows: int  # generated rows of an unconditional cell
    probe_rows: int  # rows that the probes of the criteria are fitted on
    updates: int  # optimiser steps, all stages together
    batch_rows: int  # rows per update
    learning_rate: float  # AdamW, constant after the warm-up
    warmup_updates: int  # linear warm-up, in updates
    weight_decay: float
    clip_norm: float  # of the whole gradient
    ema_updates: int  # horizon of the weight average: decay = 1 - 1 / ema_updates
    latent_size: int  # dimensions of the shared latent
    private_size: int  # dimensions of each private latent, where a method has one
    encoder_grad_scale: float  # weight of the prior term's gradient into the encoder (Eq. 52)
    prior_weight: float  # prior routes per reconstruction route
    encoder_width: int
    encoder_depth: int  # residual blocks
    decoder_width: int
    decoder_depth: int
    prior_width: int
    prior_depth: int
    prior_steps: int  # Euler steps
    decoder_steps: int  # Euler steps
    precision: str  # "float32" or "bfloat16" (autocast)
    compile: bool  # torch.compile of the networks
    beta2: float = 0.999  # AdamW's: the horizon of its second moment is 1 / (1 - beta2) updates
    threads: int = 0  # of the processor; 0: as many as torch chooses
    variant: str = ""  # of the dataset, one of those that its card's notes name; presets differ in its canvas alone
    label_width: int = 0  # hidden width of the networks of labels
    word_rows: int = 0  # rows of a batch, the first ones, whose words are scored
    word_weight: float = 0.0  # of a text's cross-entropy, beside the distance of its projection from its feature
    adapter_rank: int = 0  # of the low-rank adapters (LoRA) of the language model that writes texts
    adapter_scale: float = 1.0  # of what they add
    audio_decoder: str = "regression"  # of features of sounds: "regression", or "flow" as for pictures
    patch: int = 1  # the image networks work on patches of this many pixels squared
    image_time_location: float = 0.0  # mean logit of the times that image decoders learn at; above 0: more noise
    guidance: float = 1.0  # of decoders by the latent, w in v(nothing) + w (v(z) - v(nothing)); 1: none
    verifier: str = "resnet"  # what reads generated pictures: the suite's "resnet", or the authors' "segformer"
    condition_dropout: float = 0.0  # share of rows whose decoders are not told the latent, as guidance needs

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, int | float) and not isinstance(value, bool) and value < 0:
                raise UserError(f"{name} = {value}: must not be negative")
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{name} = {value}: must be finite")
            if name in POSITIVE and value == 0:
                raise UserError(f"{name} = {value}: must be greater than 0")
            if name in SHARES and value > 1:
                raise UserError(f"{name} = {value}: must be at most 1")
        if self.precision not in ("float32", "bfloat16"):
            raise UserError(f"precision = {self.precision!r}: choose float32 or bfloat16")
        if self.audio_decoder not in ("regression", "flow"):
            raise UserError(f"audio_decoder = {self.audio_decoder!r}: choose regression or flow")

    def protocol(self) -> str:
        """Hash of what an evaluation depends on; numbers of different protocols never share a column.

        A field at its default is left out, so that a new one does not change the hash of older rows.
        """
        default = {each.name: each.default for each in fields(self)}
        values = {name: getattr(self, name) for name in EVALUATION_FIELDS}
        return digest({name: value for name, value in values.items() if value != default[name]})


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


def resolve(dataset: DatasetCard, method: MethodCard | None, preset: str, overrides: Iterable[str] = ()) -> Resolved:
    """Shared recipe < preset < method's overrides < `key=value` strings. Raises UserError for a wrong one."""
    if preset not in PRESETS:
        raise UserError(f"unknown preset {preset!r}{nearest(preset, PRESETS)}")
    if preset not in dataset.recipe:
        raise UserError(f"{dataset.label} has no preset {preset!r}: it has {', '.join(sorted(dataset.recipe))}")
    chosen = {each.name: (each.default, "default") for each in fields(Config) if each.default is not MISSING}
    chosen |= {**dataset.recipe["shared"], **dataset.recipe[preset]}
    if method:
        chosen |= {k: (v, f"override of {method.label}, listed in its card") for k, v in method.overrides.items()}
    types = {field.name: field.type for field in fields(Config)}
    for text in overrides:
        name, separator, value = text.partition("=")
        if not separator:
            raise UserError(f"--set {text}: write key=value")
        if name not in types:
            raise UserError(f"--set {text}: no field {name!r}{nearest(name, types)}")
        chosen[name] = (_parse(text, value, str(types[name])), "--set")
    if unknown := chosen.keys() - types.keys():
        raise UserError(f"{dataset.label}: no field {sorted(unknown)[0]!r}{nearest(sorted(unknown)[0], types)}")
    if missing := types.keys() - chosen.keys():
        raise UserError(f"{dataset.label}: the recipe lacks {', '.join(sorted(missing))}")
    return Resolved(
        Config(**{name: value for name, (value, _) in chosen.items()}),
        {name: source for name, (_, source) in chosen.items()},
    )


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
