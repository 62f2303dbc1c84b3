"""The paper's judges of pictures, sounds and sentences: published networks with frozen weights.

| score | networks | as in |
|---|---|---|
| CLIPScore | CLIP ViT-B/32 of transformers | the follow-up; open_clip's is the same network, and imports torchvision |
| CLAPScore | LAION's larger CLAP of transformers | the follow-up; laion-clap fetches three tokenizers when imported |
| AIS | Wav2CLIP, and the same CLIP ViT-B/32 | the paper; the wav2clip package needs torchaudio |
| FID | the Inception of 2015, 2,048 features | pytorch-fid's weights and preparation |
| FAD | VGGish, 128 features for every 0.96 s | torchvggish's weights; frechet-audio-distance imports laion-clap |

The dataset names the models and loads those of transformers (`data.models`,
data_prep/pretrained/pretrained_codecs.py); the other three are benchmark/judges/published_networks.py. Each is loaded
when a metric first asks for it. A sound is cut to SECONDS and freed of the zeros at its end, with which sounds of one
batch are filled up, before anything hears it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmark.api import Inapplicable, UserError
from benchmark.fitting.frozen_network import OncePerTensor, in_chunks
from benchmark.judges import published_networks
from benchmark.judges.judges import Pair, Things
from benchmark.media.sounds import resampled, without_silent_end

VERSION = 1  # raised when what is done between raw things and a network's input changes: part of every protocol
SECONDS = 10.0  # of a sound: CLAP's length, and that of the clips; AudioLDM's sounds have 0.24 s more
ROWS = (
    32  # pictures, or windows of sound, per call of a network: always as many, so that no number depends on the batch
)

# Whose judges each metric asks, and how those prepare what they see. A metric that is not named may ask them all.
USED: dict[str, tuple[tuple[str, ...], str]] = {
    "clip_score": (("judge_clip",), "text cut to 77 tokens with its end; unit vectors"),
    "clap_score": (("judge_clap",), "first 10 s at 48 kHz, shorter ones repeated; unit vectors"),
    "ais": (("judge_clip", "judge_wav2clip"), "first 10 s at 16 kHz, each standardised alone; unit vectors"),
    "fid": (("judge_inception",), "299 x 299, bilinear, not smoothed; last pooled features"),
    "fad": (
        ("judge_vggish",),
        "first 10 s at 16 kHz, windows of 0.96 s side by side; before the last rectifier, no PCA",
    ),
    **dict.fromkeys(("cider", "distinct_captions", "text_frechet", "digit_agreement", "digit_marginals"), ((), "")),
}
FILES = {  # role -> class of the network in its file, and the name of that file among the tiny models
    "judge_inception": (published_networks.FidInception, "inception.pth"),
    "judge_vggish": (published_networks.Vggish, "vggish.pth"),
    "judge_wav2clip": (published_networks.Wav2Clip, "wav2clip.pt"),
}


class Judges:
    """See benchmark.judges.judges.Judges. `features` of sounds has one row per window of 0.96 s, not per sound."""

    def __init__(self, data: Any, device: str) -> None:
        self._models, self._rate, self._device = data.models, data.sample_rate, device
        self._identity = data.identity
        self._networks: dict[str, Any] = {}
        self._by_network: defaultdict[str, OncePerTensor] = defaultdict(OncePerTensor)
        self.facts: dict[str, Any] = {"version": VERSION, "torch": torch.__version__}

    def embed(self, pair: Pair, modality: str, things: Things) -> Tensor:
        """(rows, size) float32 of unit norm. Raises ValueError for a pair that has no towers."""
        towers: dict[tuple[str, ...], Callable[[Any], Tensor]] = {
            ("image", "text", "image"): self._clip_pictures,
            ("image", "text", "text"): lambda texts: self._load("judge_clip").captions(texts),
            ("audio", "text", "audio"): self._clap_sounds,
            ("audio", "text", "text"): lambda texts: self._load("judge_clap").captions(texts),
            ("audio", "image", "image"): self._clip_pictures,
            ("audio", "image", "audio"): self._wav2clip_sounds,
        }
        tower = towers.get((*sorted(pair), modality))
        if tower is None:
            raise ValueError(f"no towers of {modality} among {pair}")
        return functional.normalize(tower(things), dim=-1)

    def features(self, modality: str, things: Things) -> Tensor:
        """Float32, for Fréchet distances: (rows, 2048) of pictures, (windows of all rows, 128) of sounds.

        Raises Inapplicable for sentences.
        """
        if isinstance(things, list):
            raise Inapplicable("no published features of sentences are compared by a Fréchet distance here")
        return self._once("features", things, self._inception if modality == "image" else self._vggish)

    def parts(self, modality: str, things: Things) -> Tensor:
        """How many rows of `features` each thing has, (rows,) int64."""
        if isinstance(things, list) or modality == "image":
            return torch.ones(len(things), dtype=torch.int64)
        return torch.tensor([published_networks.Vggish.count(len(sound)) for sound in self._at_rate(things, 1)])

    def digits(self, modality: str, things: Things) -> Tensor:
        raise Inapplicable("pictures and sounds of the world show no digits")

    def protocol(self, metric: str) -> dict[str, Any]:
        """The models, their commits or checksums, and the preparation, that a number of the metric was read with."""
        roles, how = USED.get(metric, (tuple(dict.fromkeys(role for each, _ in USED.values() for role in each)), ""))
        records = {role: self._models.record(role) for role in roles}
        facts = {"judges": f"pretrained {VERSION}", "data": self._identity, "sample_rate": self._rate}
        return facts | {"models": records, "preparation": how}

    def _load(self, role: str) -> Any:
        if role not in self._networks:
            if role not in FILES:
                self._networks[role] = self._models.load(role, self._device)
            else:
                try:
                    network = published_networks.loaded(FILES[role][0], self._models.state(role))
                except ValueError as error:
                    raise UserError(f"{role}: {self._models.locate(role)} cannot be used: {error}") from None
                self._networks[role] = network.to(self._device)
            self.facts[role] = self._models.record(role)
        return self._networks[role]

    def _once(self, network: str, things: Tensor, work: Callable[[Tensor], Tensor]) -> Tensor:
        return self._by_network[network]("a picture or a sound", things, work)

    def _clip_pictures(self, pictures: Tensor) -> Tensor:
        return self._once("clip", pictures, lambda x: self._load("judge_clip").pictures(levels(x)))

    def _clap_sounds(self, sounds: Tensor) -> Tensor:
        return self._once("clap", sounds, lambda x: self._load("judge_clap").sounds(heard(x, self._rate), self._rate))

    def _wav2clip_sounds(self, sounds: Tensor) -> Tensor:
        return self._once("wav2clip", sounds, self._wav2clip)

    @torch.no_grad()
    def _wav2clip(self, sounds: Tensor) -> Tensor:
        network = self._load("judge_wav2clip")
        rows = [network(sound[None].to(self._device))[0] for sound in self._at_rate(sounds, network.LEAST)]
        return torch.stack(rows)

    @torch.no_grad()
    def _vggish(self, sounds: Tensor) -> Tensor:
        network = self._load("judge_vggish")
        windows = torch.cat([network.windows(sound) for sound in self._at_rate(sounds, 1)])
        return self._in_chunks(network, windows)

    @torch.no_grad()
    def _inception(self, pictures: Tensor) -> Tensor:
        network = self._load("judge_inception")
        return self._in_chunks(network, pictures.float().expand(-1, 3, -1, -1))

    def _in_chunks(self, network: Any, rows: Tensor) -> Tensor:
        return in_chunks(lambda chunk: network(chunk.to(self._device)).float(), rows, ROWS)

    def _at_rate(self, sounds: Tensor, least: int) -> list[Tensor]:
        """Each sound alone at 16 kHz, with zeros at its end where it has fewer than `least` samples."""
        found = [resampled(sound, self._rate, published_networks.RATE) for sound in heard(sounds, self._rate)]
        return [torch.from_numpy(np.pad(sound, (0, max(0, least - len(sound))))) for sound in found]


_known: dict[tuple[int, str, str], Judges] = {}


def of(data: Any, device: str = "cpu") -> Judges:
    """The judges of a dataset that offers `models` (data_prep/pretrained/pretrained_codecs.py), `identity` and
    `sample_rate`."""
    key = (id(data.models), data.identity, device)
    if key not in _known:
        _known[key] = Judges(data, device)
    return _known[key]


def tiny(shrink: int) -> dict[str, dict[str, Tensor]]:
    """File name -> tensors of stand-ins for the three networks of FILES, with random weights and fewer channels."""
    return {
        name: {key: value.clone() for key, value in published_networks.random(kind, shrink).state_dict().items()}
        for kind, name in FILES.values()
    }


def levels(pictures: Tensor) -> list[np.ndarray]:
    """Pictures (n, 1 or 3, height, width) in [0, 1] as (height, width, 3) uint8."""
    shown = (pictures.clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
    return list(shown.permute(0, 2, 3, 1).cpu().numpy())


def heard(sounds: Tensor, rate: int) -> list[np.ndarray]:
    """The first SECONDS of each of (n, samples), without the zeros at its end; of silence, all of it."""
    rows = sounds[:, : round(SECONDS * rate)].float().cpu().numpy()
    if not rows.shape[1]:
        raise ValueError("sounds without a sample")
    return [without_silent_end(row) for row in rows]
