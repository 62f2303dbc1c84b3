"""The verifier: a small network that reads the labels off a picture, trained by the suite on a split of its own.

It learns from the dataset's split `verifier`, the pictures of all views of one shape as examples of one kind, so that a
dataset has a verifier for each shape of its pictures. It is a function of the dataset's identity, of that shape, of
that split's size, and of the code of both. It is trained once and kept, with its accuracy on real test pictures, as
`verifiers/<hash>.safetensors` below $MUNI_BENCH_CACHE or ~/.cache/muni-bench. It is frozen, and in eval mode: three
minutes on one core for pictures of 32 x 32, 0.98 of the digits and all quadrants.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.api import Modality, UserError
from benchmark.config import digest, nearest
from benchmark.fitting import network_store
from benchmark.fitting.frozen_network import OncePerTensor, chunks, fit
from benchmark.fitting.network_store import Say
from benchmark.runtime import Draws, seeded

FEATURES = 64  # of a picture, for Fréchet distances
PICTURES, UPDATES, PASSES = 258, 1000, 5  # per update; at most so many updates, and passes through the split
RATE, DECAY, WARM = 4e-3, 0.01, 0.2  # AdamW; the rate rises for a share of the updates and falls to zero
BEND = 0.03  # how far training bends its pictures, in half sides
CHUNK = 128  # pictures per call of the frozen network: always as many, so that no number depends on the batch
TEST_ROWS = 2000  # on whose pictures the stated accuracy is measured, at most

_known: dict[tuple[str, str], Verifier] = {}


@runtime_checkable
class Pretrained(Protocol):
    """A network with weights to start from, which are fetched before it is trained, and with a recipe of its own."""

    rate: float
    updates: int

    def pretrain(self) -> None: ...


@dataclass(frozen=True)
class Reading:
    """labels: {label: (rows,) int64}; features: (rows, FEATURES) float32."""

    labels: dict[str, Tensor]
    features: Tensor


class Verifier(network_store.Trained):
    """Reads pictures in raw units. `facts` hold its `accuracy` by label and the number of `pictures` behind it."""

    def __init__(self, body: nn.Module, labels: Mapping[str, int]) -> None:
        super().__init__()
        self.body = body  # (rows, channels, side, side) in raw units -> (rows, FEATURES)
        self.scale = nn.BatchNorm1d(FEATURES, affine=False)  # each feature of real pictures has variance 1
        self.heads = nn.ModuleDict({label: nn.Linear(FEATURES, classes) for label, classes in labels.items()})
        self._kept: dict[Hashable, Any] = {}
        self._once = OncePerTensor()

    def forward(self, pictures: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Features (rows, FEATURES) and logits by label (rows, classes)."""
        features = self.scale(self.body(pictures.contiguous(memory_format=torch.channels_last)))
        return features, {label: head(functional.relu(features)) for label, head in self.heads.items()}

    @torch.no_grad()
    def read(self, pictures: Tensor) -> Reading:
        """Labels and features of (rows, channels, side, side). Raises ValueError where a picture is not finite.

        A tensor that was read before, and has not changed since, costs nothing.
        """
        return self._once("a picture", pictures, self._read)

    def keep(self, key: Hashable, work: Callable[[], Any]) -> Any:
        """What `work` answers, worked out once per key: what is read in real pictures serves every method and cell."""
        if key not in self._kept:
            self._kept[key] = work()
        return self._kept[key]

    def _read(self, pictures: Tensor) -> Reading:
        features, labels = [], []
        for chunk, rows in chunks(pictures.float(), CHUNK):
            found, logits = self(chunk)
            features.append(found[:rows].float())
            labels.append({label: each[:rows].argmax(1) for label, each in logits.items()})
        return Reading(
            {label: torch.cat([each[label] for each in labels]) for label in self.heads}, torch.cat(features)
        )


def labels_of(data: Any) -> dict[str, int]:
    """Label -> number of its classes: the dataset's label modalities, and what its rows hold beside modalities."""
    shown = {modality.name: modality.classes for modality in data.modalities if modality.kind == "label"}
    return shown | getattr(data, "labels", {})


def reading(data: Any, name: str, device: str) -> Verifier:
    """The verifier that reads the pictures of a modality."""
    return of(data, device, shape=next(modality.shape for modality in data.modalities if modality.name == name))


def of(
    data: Any, device: str = "cpu", say: Say = network_store.to_stderr, shape: tuple[int, ...] | None = None
) -> Verifier:
    """The dataset's verifier: the one of this process, else the cached one, else one that is trained now.

    data: offers `identity`, the splits "verifier" and "test", and may name a `verifier`: "resnet" (the suite's own, if
    it names none) or "segformer" (the authors' choice). say: gets a line now and then. shape: of the pictures that are
    read, which may be left out where all have one. Raises UserError for another verifier.
    """
    kind = getattr(data, "verifier", "resnet")
    labels = labels_of(data)
    pictures = [modality for modality in data.modalities if modality.kind == "image"]
    views = [view for view in pictures if view.shape == (shape or pictures[0].shape)]
    if shape is None and len(views) < len(pictures):
        raise ValueError(f"a verifier reads pictures of one shape: {', '.join(str(view.shape) for view in pictures)}")
    shape = views[0].shape
    facts = {"identity": data.identity, "kind": kind, "labels": labels, "shape": list(shape)}
    facts |= {"rows": data.count("verifier"), "code": network_store.code_of(__file__, data)}
    facts |= _origin(kind)
    key = digest(facts)
    if (key, device) not in _known:
        with seeded("verifier", data.identity):
            network = Verifier(_body(kind, shape), labels)
        network_store.ready(
            network, "verifiers", key, facts, lambda: _train(network, data, facts, views, device, say), say
        )
        _known[key, device] = network.to(device).eval().requires_grad_(False)
    return _known[key, device]


# ---------------------------------------------------------------------------------------------- the network


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside a straight way; half the side and twice the channels where `halve`."""

    def __init__(self, channels: int, halve: bool) -> None:
        super().__init__()
        wide, stride = channels * (1 + halve), 1 + halve
        self.first = nn.Sequential(nn.Conv2d(channels, wide, 3, stride, 1, bias=False), nn.BatchNorm2d(wide))
        self.second = nn.Sequential(nn.Conv2d(wide, wide, 3, 1, 1, bias=False), nn.BatchNorm2d(wide))
        self.straight = nn.Conv2d(channels, wide, 1, stride, bias=False) if halve else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.second(functional.relu(self.first(x))) + self.straight(x))


def resnet(shape: tuple[int, ...]) -> nn.Sequential:
    """About 0.34 M weights whatever the side (16, 32, 64; 0.43 M at 28): the map halves down to 4 x 4, where it has 128
    channels or a few more, and is pooled to 2 x 2, so that it still knows where in the picture a digit stands."""
    channels, side = shape[0], shape[-1]
    width = 512 // side
    layers: list[nn.Module] = [
        nn.BatchNorm2d(channels, affine=False),  # standardises
        nn.Conv2d(channels, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Residual(width, halve=False),
    ]
    while side > 4:
        layers.append(Residual(width, halve=True))
        width, side = 2 * width, side // 2
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, FEATURES))


def _body(kind: str, shape: tuple[int, ...]) -> nn.Module:
    if kind == "resnet":
        return resnet(shape)
    if kind != "segformer":
        raise UserError(f"unknown verifier {kind!r}{nearest(kind, ('resnet', 'segformer'))}")
    from benchmark.judges.segformer import Segformer

    return Segformer(FEATURES)


def _origin(kind: str) -> dict[str, str]:
    """Of the weights that a body begins from, where those are the user's."""
    if kind != "segformer":
        return {}
    from benchmark.judges import segformer

    return segformer.origin()


# ---------------------------------------------------------------------------------------------- training


def _train(
    network: Verifier, data: Any, facts: Mapping[str, Any], views: list[Modality], device: str, say: Say
) -> None:
    """Train on the split `verifier`, measure on the test split, and write down both in `network.facts`."""
    name, names = f"verifier of {data.identity}", [view.name for view in views]
    count, batch = data.count("verifier"), PICTURES // len(views)
    own = network.body if isinstance(network.body, Pretrained) else None
    rate = own.rate if own else RATE
    updates = min(own.updates if own else UPDATES, math.ceil(PASSES * count / batch))
    if own:
        own.pretrain()
    network.to(device).train()
    started = time.monotonic()
    say(f"{name}: training, once for this machine, {updates} updates")

    def loss(update: int) -> Tensor:
        draws = Draws("verifier", data.identity, update, rows=batch, block=batch, device=device)
        rows = data.rows("verifier", draws.integers("rows", count))
        pictures = _bent(torch.cat([rows[view] for view in names]), draws)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=_bfloat16(device, views[0].shape[-1])):
            _, logits = network(pictures)
        losses = [
            functional.cross_entropy(each.float(), rows[label].long().repeat(len(names)))
            for label, each in logits.items()
        ]
        return torch.stack(losses).sum()

    fit(name, network, loss, updates=updates, rate=rate, warm=WARM, decay=DECAY, say=say)
    network.eval().requires_grad_(False)
    measured = accuracy(network, data, names, device)
    network.facts = {**facts, **measured, "updates": updates, "torch": torch.__version__}
    network.facts["seconds"] = round(time.monotonic() - started, 1)
    right = ", ".join(f"{label} {share:.4f}" for label, share in measured["accuracy"].items())
    say(f"{name}: {right} on {measured['pictures']} real test pictures")


def _bent(pictures: Tensor, draws: Draws) -> Tensor:
    """The pictures under a smooth random displacement of about BEND of their half side: other handwriting, other
    photographs, the same labels. Reflected at the borders."""
    per_row = len(pictures) // draws.rows
    bend = BEND * draws.normal("bend", per_row, 2, 5, 5).transpose(0, 1).flatten(0, 1)
    field = functional.interpolate(bend, size=pictures.shape[2:], mode="bicubic", align_corners=True)
    still = functional.affine_grid(torch.eye(2, 3, device=pictures.device)[None], [1, *pictures.shape[1:]], False)
    return functional.grid_sample(pictures, still + field.permute(0, 2, 3, 1), "bilinear", "reflection", False)


def _bfloat16(device: str, side: int) -> bool:
    """Whether half the bits pay: on a GPU, and on processors that have instructions for them, from 32 pixels on.

    With fewer, which preset smoke has, processors with and without them train the same verifier.
    """
    return not device.startswith("cpu") or (side > 16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def real_rows(data: Any, device: str) -> dict[str, Tensor]:
    """At most TEST_ROWS of the test split's second half: the authors train their verifier on what is our first."""
    half = data.count("test") // 2
    return data.rows("test", torch.arange(half, half + min(TEST_ROWS, half), device=device))


def accuracy(network: Verifier, data: Any, names: list[str], device: str) -> dict[str, Any]:
    """Its accuracy by label on every view of the real rows, and how many pictures they are."""
    rows = real_rows(data, device)
    readings = [network.read(rows[name]).labels for name in names]
    right = {
        label: torch.cat([labels[label] == rows[label] for labels in readings]).double().mean().item()
        for label in network.heads
    }
    return {"accuracy": right, "pictures": len(rows[names[0]]) * len(names)}
