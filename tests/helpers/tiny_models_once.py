"""What tests of judges share: tiny pretrained models, written once per test run, weights made by a rule, and files."""

from __future__ import annotations

import fcntl
import importlib.util
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

PERIOD = 1_000_003
EXTRA = ("transformers", "diffusers", "datasets", "soundfile", "PIL")


def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny models, which several test processes share; skips where their packages are missing."""
    package("transformers")
    from benchmark.judges import pretrained_judges as judges
    from data_prep.pretrained import tiny_models

    folder = shared(tmp_path_factory) / "tiny-models"
    with (folder.parent / "tiny-models.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "models.toml").exists():  # it is written last
            tiny_models.write(folder, judges.tiny(tiny_models.SHRINK))
    return folder


def package(name: str, imported: bool = True) -> Any:
    """A package of the extra, imported as the suite does; skips where one of them is missing."""
    for each in (*EXTRA, name):
        if importlib.util.find_spec(each) is None:
            pytest.skip(f"needs the extra image-text-audio: no {each}")
    from data_prep.pretrained import pretrained_codecs

    return pretrained_codecs.package(name) if imported else None


def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test run that all its processes see."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if base.name.startswith("popen-") else base


def by_rule(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the same names and shapes, whose numbers are a function of name and place alone, on every machine.

    They repeat after PERIOD places, which shares no factor with the sizes of layers.
    """
    return {name: _numbers(name, value) if value.is_floating_point() else value for name, value in state.items()}


def _numbers(name: str, like: Tensor) -> Tensor:
    if name.endswith("window"):
        return like
    x = torch.arange(min(like.numel(), PERIOD), dtype=torch.int64) + zlib.crc32(name.encode())
    for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    once = ((x ^ (x >> 15)).double() / 2**32 - 0.5).float()
    uniform = once.repeat(-(-like.numel() // PERIOD))[: like.numel()].reshape(like.shape)
    if like.ndim > 1:
        return uniform * (24 / like[0].numel()) ** 0.5
    if name.endswith("running_var") or (name.endswith("weight") and like.ndim == 1):
        return 1 + uniform
    return 0.2 * uniform
