"""Three published networks, written anew so that their published weights load: FID's Inception, VGGish and Wav2CLIP.

The names of modules are those of the published files, so they are not ours. Each class takes `shrink`, which divides
the number of all channels: 1 is the published network, and more gives stand-ins for tests. Each sees raw things and
prepares them itself, each row on its own, so that no number depends on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.api import one_line

RATE = 16_000  # Hz, of the sounds that VGGish and Wav2CLIP hear


def loaded(kind: Any, state: Mapping[str, Tensor]) -> Any:
    """An instance of one of the classes below with these tensors, frozen and in eval mode.

    Its `shrink` is found out from them. Raises ValueError where they are another network's.
    """
    first = state.get(kind.FIRST[0])
    if first is None or len(first) == 0 or kind.FIRST[1] % len(first):
        raise ValueError(f"{kind.FIRST[0]} is not among its tensors, or not of its size: it is no {kind.__name__}")
    with torch.device("meta"):
        network = kind(kind.FIRST[1] // len(first))
    try:
        network.load_state_dict({k: v for k, v in state.items() if k.startswith(kind.PARTS)}, assign=True)
    except RuntimeError as error:
        raise ValueError(f"it is no {kind.__name__}: {one_line(error)[:300]}") from None
    return network.float().eval().requires_grad_(False)


def random(kind: Any, shrink: int) -> Any:
    """A stand-in whose channels keep their inputs' variance, so that its answers differ as those of a trained one."""
    network = kind(shrink)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return network.eval().requires_grad_(False)


# ------------------------------------------------------------------------------------------ FID's Inception


class ConvolutionUnit(nn.Module):
    """Convolution without bias, batch normalisation, rectifier."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int, padding: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


# A block is paths from its input, side by side. A step of a path is a unit (name, channels, kernel), with a fourth
# element where it halves the picture; a list of units beside each other; or the name of a pooling.
Unit = tuple[Any, ...]
Path = tuple[Unit | list[Unit] | str, ...]


def _block_a(pooled: int) -> tuple[Path, ...]:
    return (
        (("branch1x1", 64, 1),),
        (("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
        (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)),
        ("average", ("branch_pool", pooled, 1)),
    )


def _block_c(inner: int) -> tuple[Path, ...]:
    row, column = (1, 7), (7, 1)
    return (
        (("branch1x1", 192, 1),),
        (("branch7x7_1", inner, 1), ("branch7x7_2", inner, row), ("branch7x7_3", 192, column)),
        (
            ("branch7x7dbl_1", inner, 1),
            ("branch7x7dbl_2", inner, column),
            ("branch7x7dbl_3", inner, row),
            ("branch7x7dbl_4", inner, column),
            ("branch7x7dbl_5", 192, row),
        ),
        ("average", ("branch_pool", 192, 1)),
    )


def _block_e(pooling: str) -> tuple[Path, ...]:
    row, column = (1, 3), (3, 1)
    return (
        (("branch1x1", 320, 1),),
        (("branch3x3_1", 384, 1), [("branch3x3_2a", 384, row), ("branch3x3_2b", 384, column)]),
        (
            ("branch3x3dbl_1", 448, 1),
            ("branch3x3dbl_2", 384, 3),
            [("branch3x3dbl_3a", 384, row), ("branch3x3dbl_3b", 384, column)],
        ),
        (pooling, ("branch_pool", 192, 1)),
    )


BLOCKS: dict[str, tuple[Path, ...]] = {
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": (
        (("branch3x3", 384, 3, "half"),),
        (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, "half")),
        ("half",),
    ),
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": (
        (("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, "half")),
        (
            ("branch7x7x3_1", 192, 1),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
            ("branch7x7x3_4", 192, 3, "half"),
        ),
        ("half",),
    ),
    "Mixed_7b": _block_e("average"),
    "Mixed_7c": _block_e("max"),
}


class Block(nn.Module):
    """One of BLOCKS. `outputs`: its channels."""

    def __init__(self, inputs: int, paths: tuple[Path, ...], shrink: int) -> None:
        super().__init__()
        self._paths, self.outputs = paths, 0
        for path in paths:
            width = inputs
            for step in path:
                if isinstance(step, str):
                    continue
                units = step if isinstance(step, list) else [step]
                for name, channels, kernel, *half in units:
                    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
                    padding = 0 if half else tuple(side // 2 for side in sides)
                    unit = ConvolutionUnit(width, channels // shrink, sides, 2 if half else 1, padding)
                    self.add_module(name, unit)
                width = sum(channels // shrink for _, channels, *_ in units)
            self.outputs += width

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for path in self._paths:
            y = x
            for step in path:
                if isinstance(step, str):
                    y = _pooled(y, step)
                elif isinstance(step, list):
                    y = torch.cat([self.get_submodule(name)(y) for name, *_ in step], 1)
                else:
                    y = self.get_submodule(step[0])(y)
            found.append(y)
        return torch.cat(found, 1)


def _pooled(x: Tensor, how: str) -> Tensor:
    """The average leaves the padding out, and the last block takes the maximum: so does the network of 2015, unlike
    others of its name."""
    if how == "average":
        return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    return functional.max_pool2d(x, 3, 2) if how == "half" else functional.max_pool2d(x, 3, 1, 1)


class FidInception(nn.Module):
    """The Inception v3 of 2015 whose last pooled features FID is defined on, with pytorch-fid's preparation.

    Pictures are brought to 299 x 299 bilinearly, without smoothing before: so do pytorch-fid and TensorFlow's FID, and
    clean-fid and torchmetrics 1.9's default do not.
    """

    FIRST, PARTS = ("Conv2d_1a_3x3.conv.weight", 32), ("Conv2d", "Mixed", "fc")
    SIDE = 299

    def __init__(self, shrink: int = 1) -> None:
        super().__init__()
        first, second, third, fourth, width = (channels // shrink for channels in (32, 64, 80, 192, 192))
        self.Conv2d_1a_3x3 = ConvolutionUnit(3, first, 3, 2, 0)
        self.Conv2d_2a_3x3 = ConvolutionUnit(first, first, 3, 1, 0)
        self.Conv2d_2b_3x3 = ConvolutionUnit(first, second, 3, 1, 1)
        self.Conv2d_3b_1x1 = ConvolutionUnit(second, third, 1, 1, 0)
        self.Conv2d_4a_3x3 = ConvolutionUnit(third, fourth, 3, 1, 0)
        for name, paths in BLOCKS.items():
            block = Block(width, paths, shrink)
            self.add_module(name, block)
            width = block.outputs
        self.size = width
        self.fc = nn.Linear(width, 1008)  # in the published file; no feature goes through it

    def forward(self, pictures: Tensor) -> Tensor:
        """(n, 3, height, width) in [0, 1] -> (n, size)"""
        x = functional.interpolate(pictures, (self.SIDE, self.SIDE), mode="bilinear", align_corners=False)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(2 * x - 1)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, 2)))
        x = functional.max_pool2d(x, 3, 2)
        for name in BLOCKS:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))


# ------------------------------------------------------------------------------------------ VGGish


class Vggish(nn.Module):
    """VGGish (Hershey et al., 2017): a vector for every 0.96 s of sound.

    What FAD is computed on: the last layer before its rectifier, without the principal components of AudioSet's
    release, as in TensorFlow's code and in frechet-audio-distance's defaults.
    """

    FIRST, PARTS = ("features.0.weight", 64), ("features", "embeddings")
    WINDOW, HOP, POINTS = 400, 160, 512  # samples of a frame, between frames, and of its transform
    FRAMES, BANDS, LOWEST, HIGHEST, OFFSET = 96, 64, 125.0, 7_500.0, 0.01
    LEAST = WINDOW + (FRAMES - 1) * HOP  # samples of a window

    def __init__(self, shrink: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 1
        for channels in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0):
            if channels:
                layers += [nn.Conv2d(width, channels // shrink, 3, padding=1), nn.ReLU()]
                width = channels // shrink
            else:
                layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        hidden, self.size = 4096 // shrink, 128 // shrink
        self.embeddings = nn.Sequential(
            nn.Linear(width * self.FRAMES * self.BANDS // 256, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, self.size),
        )

    def forward(self, windows: Tensor) -> Tensor:
        """Log-mel spectrograms (n, 1, FRAMES, BANDS) -> (n, size)"""
        return self.embeddings(self.features(windows).permute(0, 2, 3, 1).flatten(1))

    @classmethod
    def windows(cls, sound: Tensor) -> Tensor:
        """(samples,) at RATE -> (n, 1, FRAMES, BANDS): every whole window; a sound shorter than one is filled up with
        zeros to one."""
        sound = functional.pad(sound.double(), (0, max(0, cls.LEAST - len(sound))))
        turn = torch.hann_window(cls.WINDOW, dtype=torch.float64, device=sound.device)
        magnitudes = torch.fft.rfft(sound.unfold(0, cls.WINDOW, cls.HOP) * turn, cls.POINTS).abs()
        bands = (magnitudes @ cls._filters().to(sound.device) + cls.OFFSET).log()
        count = len(bands) // cls.FRAMES
        return bands[: count * cls.FRAMES].reshape(count, 1, cls.FRAMES, cls.BANDS).float()

    @classmethod
    def count(cls, samples: int) -> int:
        """How many windows a sound of so many samples has."""
        return (max(samples, cls.LEAST) - cls.WINDOW + cls.HOP) // cls.HOP // cls.FRAMES

    @classmethod
    def _filters(cls) -> Tensor:
        """(bins, BANDS): triangles on HTK's mel scale, the bin of the mean left out."""
        bins = cls.POINTS // 2 + 1
        mel = _mel(torch.linspace(0, RATE / 2, bins, dtype=torch.float64))[:, None]
        lowest, highest = _mel(torch.tensor([cls.LOWEST, cls.HIGHEST])).tolist()
        edges = torch.linspace(lowest, highest, cls.BANDS + 2, dtype=torch.float64)
        low, middle, high = edges[:-2], edges[1:-1], edges[2:]
        filters = torch.minimum((mel - low) / (middle - low), (high - mel) / (high - middle)).clamp(min=0)
        filters[0] = 0
        return filters


def _mel(hertz: Tensor) -> Tensor:
    return 1127.0 * torch.log1p(hertz.double() / 700.0)


# ------------------------------------------------------------------------------------------ Wav2CLIP


class ResidualUnit(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        around = self.downsample(x) if hasattr(self, "downsample") else x
        return functional.relu(self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x))))) + around)


class Spectrogram(nn.Module):
    """Power spectra of 512 samples, 353 apart."""

    POINTS, HOP = 512, 353

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(self.POINTS))

    def forward(self, sounds: Tensor) -> Tensor:
        """(n, samples) -> (n, bins, frames)"""
        window = self.get_buffer("window")
        return torch.stft(sounds, self.POINTS, self.HOP, window=window, return_complex=True).abs().square()


class ResidualEncoder(nn.Module):
    """A ResNet-18 of one channel, to its average pooling."""

    def __init__(self, shrink: int) -> None:
        super().__init__()
        self.spectrogram = Spectrogram()
        widths = [channels // shrink for channels in (64, 64, 128, 256, 512)]
        self.conv1 = nn.Conv2d(1, widths[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        for number, (inputs, outputs) in enumerate(pairwise(widths), 1):
            layer = nn.Sequential(
                ResidualUnit(inputs, outputs, 1 if number == 1 else 2), ResidualUnit(outputs, outputs, 1)
            )
            self.add_module(f"layer{number}", layer)

    def forward(self, sounds: Tensor) -> Tensor:
        x = (self.spectrogram(sounds) + 1e-7).log()
        # One mean and deviation per sound: the published code takes them over the batch, and is used on single sounds.
        x = (x - x.mean((1, 2), keepdim=True)) / (x.std((1, 2), keepdim=True) + 1e-9)
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x[:, None]))), 3, 2, 1)
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
        return x.mean((2, 3))


class Projection(nn.Module):
    """From the encoder's features to CLIP's."""

    def __init__(self, size: int) -> None:
        super().__init__()
        # The third layer of the published network drops values in training: it stands here for the numbering.
        self.sequential = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Identity(), nn.Linear(size, size))

    def forward(self, x: Tensor) -> Tensor:
        return self.sequential(x)


class Wav2Clip(nn.Module):
    """Wav2CLIP (Wu et al., 2022): sounds in the space of CLIP ViT-B/32's pictures, not normalised."""

    FIRST, PARTS = ("audio_encoder.conv1.weight", 64), ("audio_encoder", "audio_transform")
    LEAST = Spectrogram.POINTS  # samples; a shorter sound has no spectrum

    def __init__(self, shrink: int = 1) -> None:
        super().__init__()
        self.size = 512 // shrink
        self.audio_encoder = ResidualEncoder(shrink)
        self.audio_transform = Projection(self.size)

    def forward(self, sounds: Tensor) -> Tensor:
        """(n, samples) at RATE, all of one length -> (n, size)"""
        return self.audio_transform(self.audio_encoder(sounds))
