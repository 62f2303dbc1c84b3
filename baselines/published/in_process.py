"""Models of one direction that diffusers and transformers load: pictures of captions, captions of pictures and sounds.

Each is a class that is made of a folder of weights and a device, and answers one item at a time: the paper names no
batch, and a row's numbers must not depend on those beside it. Words are chosen greedily.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baselines.published.adapter import Answer, External
from benchmark.api import Cell, Raw, UserError, one_line
from benchmark.media.sounds import resampled
from data_prep.pretrained.pretrained_codecs import package, quiet


class Specialist(External):
    """One that is loaded into this process. `model`: made of (folder, device, settings)."""

    model: Callable[[Path, str, Mapping[str, Any]], Any]

    def bind(self, data: Any) -> None:
        super().bind(data)
        self.facts = {"checkpoint": self._holds}
        with quiet(self.name):
            self.loaded = type(self).model(self.place.checkpoint, self.place.device, self.place.settings)

    def answers(self, cell: Cell, real: Raw, seeds: Sequence[int], rows: Any) -> list[Answer]:
        ((given,), (want,)) = cell.given, cell.want
        return [
            {want: self.loaded.answer(value, seed, self.data.sample_rate)}
            for value, seed in zip(real[given], seeds, strict=True)
        ]


class Painter:
    """A caption to a picture, by a text-to-image pipeline of diffusers."""

    def __init__(self, folder: Path, device: str, settings: Mapping[str, Any]) -> None:
        kind = getattr(package("diffusers"), settings["pipeline"])
        half = torch.bfloat16 if device.startswith("cuda") else torch.float32
        self._pipeline = kind.from_pretrained(folder, torch_dtype=half, local_files_only=True, use_safetensors=True).to(
            device
        )
        self._pipeline.set_progress_bar_config(disable=True)
        self._settings = settings

    @torch.no_grad()
    def answer(self, caption: str, seed: int, sample_rate: int = 0) -> Tensor:
        """(3, side, side) in [0, 1]"""
        made = self._pipeline(
            prompt=caption,
            height=self._settings["side"],
            width=self._settings["side"],
            num_inference_steps=self._settings["steps"],
            guidance_scale=self._settings["guidance"],
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type="np",
        ).images[0]
        return torch.from_numpy(np.asarray(made, np.float32)).permute(2, 0, 1)


class Captioner:
    """A picture or a sound to a caption, by a model of transformers that is asked in words.

    kind: what is given, "image" or "audio".
    """

    def __init__(self, folder: Path, device: str, settings: Mapping[str, Any], kind: str, model: str) -> None:
        transformers = package("transformers")
        half = torch.bfloat16 if device.startswith("cuda") else torch.float32
        loaded, found = getattr(transformers, model).from_pretrained(
            folder, dtype=half, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        wrong = [str(key) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in found[kind]]
        if wrong:
            raise UserError(f"{folder}: a partial load: {len(wrong)} keys do not fit, such as {wrong[0]}: get it anew")
        self._model = loaded.to(device).eval()
        self._processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
        self._kind, self._words = kind, settings["words"]
        said = [{"type": kind}, {"type": "text", "text": settings["prompt"]}]
        self.asked = self._processor.apply_chat_template(
            [{"role": "user", "content": said}], add_generation_prompt=True, tokenize=False
        )

    @torch.no_grad()
    def answer(self, value: Tensor, seed: int, sample_rate: int) -> str:
        """value: a picture (channels, height, width) in [0, 1] or a sound (samples,)."""
        inputs = self._processor(text=self.asked, **self._heard(value, sample_rate), return_tensors="pt")
        inputs = inputs.to(self._model.device)
        for name, tensor in inputs.items():
            inputs[name] = tensor.to(self._model.dtype) if tensor.is_floating_point() else tensor
        words = self._model.generate(**inputs, max_new_tokens=self._words, do_sample=False)
        new = words[0, inputs["input_ids"].shape[1] :]
        return one_line(self._processor.decode(new, skip_special_tokens=True))

    def _heard(self, value: Tensor, sample_rate: int) -> dict[str, Any]:
        if self._kind == "image":
            from PIL import Image

            levels = (value.expand(3, -1, -1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
            return {"images": Image.fromarray(levels)}
        rate = self._processor.feature_extractor.sampling_rate
        return {"audio": resampled(value.cpu().numpy(), sample_rate, rate), "sampling_rate": rate}
