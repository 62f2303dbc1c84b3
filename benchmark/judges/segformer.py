"""The authors' verifier: SegFormer MiT-B0, fine-tuned (`--set verifier=segformer`).

Needs transformers (extra image-text-audio). The pretrained weights come from the folder `mit-b0` below
$MUNI_BENCH_DATA, or else from Hugging Face as nvidia/mit-b0. What the folder holds tells cached verifiers apart.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.api import UserError
from benchmark.contents import folder_hash
from benchmark.files import folder_named
from data_prep.media.data_folder import offline

HUB = "nvidia/mit-b0"
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the pictures that it was pretrained on


class Segformer(nn.Module):
    """(rows, 3, side, side) in [0, 1] -> (rows, features): the mean over places of the last map, projected."""

    rate, updates = 3e-4, 10_000  # assumed: the authors state none

    def __init__(self, features: int, **sizes: Any) -> None:
        """sizes: fields of SegformerConfig, whose defaults are MiT-B0's. Raises UserError without transformers."""
        super().__init__()
        try:
            transformers = importlib.import_module("transformers")
        except ImportError:
            raise UserError(
                "the SegFormer verifier needs transformers: pip install 'muni-bench[image-text-audio]'"
            ) from None
        self.encoder = transformers.SegformerModel(transformers.SegformerConfig(**sizes))
        self.project = nn.Linear(self.encoder.config.hidden_sizes[-1], features)

    def pretrain(self) -> None:
        """Take the pretrained weights of MiT-B0, and nothing that executes. Raises UserError where there are none."""
        source = str(_folder()) if _folder().is_dir() else HUB
        local = bool(offline())
        try:
            loaded = type(self.encoder).from_pretrained(source, weights_only=True, local_files_only=local)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{source} cannot be loaded ({reason}): put its files into $MUNI_BENCH_DATA/mit-b0"
            ) from None
        self.encoder.load_state_dict(loaded.state_dict())

    def forward(self, pictures: Tensor) -> Tensor:
        mean, spread = (torch.tensor(each, device=pictures.device).view(1, 3, 1, 1) for each in (MEAN, SPREAD))
        places = self.encoder((pictures - mean) / spread).last_hidden_state
        return self.project(places.flatten(2).mean(2))


def origin() -> dict[str, str]:
    """What the folder of pretrained weights holds; nothing where they are the hub's."""
    return {"pretrained": folder_hash(_folder())[:10]} if _folder().is_dir() else {}


def _folder() -> Path:
    return (folder_named("MUNI_BENCH_DATA") or Path()) / "mit-b0"
