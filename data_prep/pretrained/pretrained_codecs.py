"""The frozen pretrained models of image_text_audio: where each is, and one small class for each kind.

Which model has a role (text_encoder, image_decoder, judge_clip, ...) is data: `pretrained_models.toml` beside this file
has the defaults, and `models.toml` in the folder that MUNI_BENCH_MODELS names changes them: another id, or a folder.
Everything is loaded from a folder, and from `.safetensors` or tensors alone, so that nothing that is loaded can run
code. Numbers do not depend on how many rows come in one call: networks see blocks of always as many rows.

Classes say what goes in and out; none keeps a gradient. transformers 4.56 to 5 and diffusers 0.35 to 0.42 are served by
asking for the towers with projection, whose outputs have the same names in all of them, and by preparing pictures and
sounds here, since the packages' own preparation differs with their version and with what else is installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from benchmark.api import UserError, one_line
from benchmark.config import digest, nearest
from benchmark.contents import content_hash, folder_hash
from benchmark.files import cache_folder, expanded, folder_named
from benchmark.fitting import network_store
from benchmark.fitting.network_store import Say
from benchmark.media.sounds import resampled, without_silent_end
from benchmark.runtime import Draws, seeded
from data_prep.media.data_folder import offline

SETTING = "MUNI_BENCH_MODELS"
DEFAULTS = Path(__file__).with_name("pretrained_models.toml")
INSTALL = "pip install 'muni-bench[image-text-audio]'"
PLACES = ("id", "revision", "folder", "file", "url", "sha256")  # where a model is; the other keys say how it is used
WANTED = ("*.json", "*.txt", "*.model", "*model.safetensors", "*model-*-of-*.safetensors")  # of a hub repository
LEAST_VOCABULARY = 200  # an empty tokenizer has 2 to 5 tokens; the smallest honest one has the 256 bytes
ROWS = 32  # per call of a frozen encoder, the last block filled up
RENDERED = 16  # pictures or sounds per call of a generator
BUCKET = 64  # captions are padded to multiples of so many tokens
PREFIX = 3  # embeddings before the first word that stand for a caption's feature, as in FlowBind's text decoder


class Models:
    """The models that one folder's `models.toml` names, each loaded once per device.

    folder: in place of the one that MUNI_BENCH_MODELS names; without either the defaults hold. fetch: whether a model
    that is not on this machine is fetched. Raises UserError where its models.toml is missing, cannot be read, or names
    an unknown role or key.
    """

    def __init__(self, folder: Path | None = None, fetch: bool = True) -> None:
        chosen = folder or folder_named(SETTING)
        self.folder, self.fetch = chosen, fetch
        self.entries: dict[str, dict[str, Any]] = tomllib.loads(DEFAULTS.read_text(encoding="utf-8"))
        self._loaded: dict[tuple[str, str], Any] = {}
        self._records: dict[str, dict[str, Any]] = {}
        if chosen is not None:
            self._change(chosen / "models.toml")

    def _change(self, path: Path) -> None:
        try:
            changes = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror}): write it, or set {SETTING} to a folder that has one"
            ) from None
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
        for role, change in changes.items():
            if role not in self.entries:
                raise UserError(f"{path}: unknown role {role!r}{nearest(role, self.entries)}")
            known = {*self.entries[role], *PLACES}
            for key in change:
                if key not in known:
                    raise UserError(f"{path}: [{role}] has no key {key!r}{nearest(key, known)}")
            if not change.keys().isdisjoint(PLACES):  # a new place says all of where the model is
                self.entries[role] = {k: v for k, v in self.entries[role].items() if k not in PLACES}
            self.entries[role] |= change

    def locate(self, role: str) -> Path:
        """The folder of a role's model, or its file; fetched from the hub where that is where it is.

        Raises UserError where it is not there, and says how to mend it.
        """
        entry = self.entries[role]
        if "folder" in entry:
            return _checked_folder(role, self._below(entry["folder"]))
        if "file" in entry:
            path = self._below(entry["file"])
            if not path.is_file():
                raise UserError(f"{role}: no file {path}: put it there, or change [{role}] in models.toml ({SETTING})")
            return path
        if "url" in entry:
            return _downloaded(role, entry["url"], entry.get("sha256", ""), self._forbidden())
        return _snapshot(role, entry, self._forbidden())

    def _forbidden(self) -> str:
        """Why nothing may be fetched; empty where it may."""
        named = offline()
        return f"{named} is set" if named else "" if self.fetch else "it is only looked for"

    def _below(self, name: str) -> Path:
        return (self.folder or Path()) / expanded(Path(name))

    def record(self, role: str) -> dict[str, Any]:
        """What a result says of a role's model: its id and commit, or a checksum of its folder; and how it is used."""
        if role not in self._records:
            self._records[role] = self._record(role)
        return self._records[role]

    def _record(self, role: str) -> dict[str, Any]:
        path, entry = self.locate(role), self.entries[role]
        used = {k: v for k, v in entry.items() if k in ("steps", "guidance", "noise_level", "seconds", "words")}
        if "id" in entry and "folder" not in entry:
            return {"id": entry["id"], "commit": _whole(role, path).name, **used}
        return {"id": entry.get("id", entry.get("url", path.name)), "content": checksum(path), **used}

    def identity(self, roles: Sequence[str]) -> str:
        """Ten hex digits of what these roles' models are."""
        return digest({role: self.record(role) for role in roles})

    def state(self, role: str) -> dict[str, Tensor]:
        """The tensors of a single-file model by name. Raises UserError where the file holds anything else."""
        path = self.locate(role)
        try:
            if path.suffix == ".safetensors":
                return load_file(path)
            found = torch.load(path, map_location="cpu", weights_only=True)
            return {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
        except Exception as error:  # damaged in any way: a wrong archive, a wrong header, forbidden content
            raise UserError(f"{role}: {path} cannot be read ({one_line(error)}): get it anew") from None

    def load(self, role: str, device: str = "cpu") -> Any:
        """The role's model, an instance of the class in KINDS. Raises UserError where it cannot be used."""
        if (role, device) not in self._loaded:
            folder = self.locate(role)
            settings = {k: v for k, v in self.entries[role].items() if k not in PLACES}
            with quiet(role):
                try:
                    self._loaded[role, device] = KINDS[role](folder, device, settings)
                except (OSError, ValueError, KeyError, TypeError, RuntimeError, AssertionError) as error:
                    raise UserError(f"{role}: {folder} cannot be used: {one_line(error)}") from None
        return self._loaded[role, device]


# ------------------------------------------------------------------------------------------ where models are


def _checked_folder(role: str, folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"{role}: no folder {folder}: put the model there, or change [{role}] in models.toml")
    if not any(folder.rglob("*.safetensors")):
        raise UserError(
            f"{role}: {folder} has no .safetensors, and no other kind of weights is loaded: name a revision that has it"
        )
    return folder


def _downloaded(role: str, url: str, sha256: str, forbidden: str) -> Path:
    path = cache_folder() / "models" / url.rpartition("/")[2]
    if not path.is_file():
        if forbidden:
            raise UserError(f"{role}: no {path}, and {forbidden}: put {url} there, or name it in models.toml")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256 or None, progress=False)
        except Exception as error:  # of the network, the server or the checksum
            raise UserError(f"{role}: {url} cannot be fetched ({one_line(error)}): put it at {path}") from None
    return path


def _snapshot(role: str, entry: Mapping[str, Any], forbidden: str) -> Path:
    """The folder of a hub repository's commit, from the hub's cache or fetched now."""
    hub = package("huggingface_hub")
    name, revision = entry["id"], entry.get("revision", "main")
    else_folder = f"or name a folder under [{role}] in $" + SETTING + "/models.toml"
    try:
        path = hub.snapshot_download(
            name, revision=revision, allow_patterns=list(WANTED), local_files_only=bool(forbidden) or None
        )
    except Exception as error:  # of the hub, the network or the disk
        kind = type(error).__name__
        if kind == "GatedRepoError":
            raise UserError(
                f"{role}: {name} is gated ({entry['licence']}): accept its licence at https://huggingface.co/{name} "
                f"and run hf auth login, {else_folder}"
            ) from None
        if kind == "RepositoryNotFoundError":
            raise UserError(f"{role}: the hub has no {name}, or hides it: name another id, {else_folder}") from None
        where = forbidden or one_line(error)[:120]
        raise UserError(
            f"{role}: {name}@{revision} is not in the hub's cache and cannot be fetched ({where}): "
            f"run hf download {name} where there is a network ({entry['gigabytes']} GB), {else_folder}"
        ) from None
    return _checked_folder(role, Path(path))


def _whole(role: str, folder: Path) -> Path:
    """The folder of a hub repository's commit. Raises UserError where a file is not the one of that commit.

    The hub's cache names what a file points at by its SHA-256, or a small one by what git calls it.
    """
    for path in sorted(each for each in folder.rglob("*") if each.is_symlink() and each.is_file()):
        blob = path.resolve()
        known = {64: content_hash, 40: _git_hash}.get(len(blob.name))
        if blob.parent.name == "blobs" and known is not None and known(blob) != blob.name:
            raise UserError(f"{role}: {path} is not what the hub handed out: remove {blob} and fetch it anew")
    return folder


def _git_hash(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def checksum(path: Path) -> str:
    """Ten hex digits of a file's content, or of the names and contents of a folder's files.

    Raises UserError where one cannot be read.
    """
    try:
        return folder_hash(path, network_store.to_stderr)[:10]
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read ({error.strerror}): get it anew") from None


# ------------------------------------------------------------------------------------------ optional packages


def package(name: str) -> Any:
    """An optional package, or a module of one. Raises UserError where it is not installed."""
    if name.partition(".")[0] in ("transformers", "diffusers"):
        _hide_what_is_broken()
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{name} cannot be imported ({one_line(error)}): {INSTALL}") from None


@cache
def _hide_what_is_broken() -> None:
    """A torchvision that was built for another torch fails when it is imported, and transformers and diffusers import
    it wherever it is installed. Neither needs it: hide it from them then."""
    for name in ("torchvision", "torchaudio"):
        try:
            importlib.import_module(name)
        except (ImportError, OSError, RuntimeError):
            for part in [each for each in sys.modules if each == name or each.startswith(f"{name}.")]:
                del sys.modules[part]
            sys.modules[name] = None  # type: ignore[assignment]  # how Python marks what cannot be imported
            for answer in vars(sys.modules.get("transformers.utils.import_utils", sys)).values():
                if getattr(answer, "__name__", "").startswith(f"is_{name}") and hasattr(answer, "cache_clear"):
                    answer.cache_clear()  # it may have been asked whether this package is there


@contextlib.contextmanager
def quiet(role: str) -> Iterator[None]:
    """Without the packages' reports of weights that a tower leaves unused, and without their progress bars."""
    found = [package("transformers").logging]
    if role in ("image_decoder", "audio_decoder"):
        found.append(package("diffusers").utils.logging)
    before = [(each, each.get_verbosity(), each.is_progress_bar_enabled()) for each in found]
    for each in found:
        each.set_verbosity_error()
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each, verbosity, bar in before:
            each.set_verbosity(verbosity)
            if bar:
                each.enable_progress_bar()


def _network(kind: str, folder: Path, device: str, half: bool = False) -> Any:
    """A frozen network of transformers. half: bfloat16 where there is a GPU.

    Raises ValueError where its folder lacks some of its weights, which transformers would draw at random.
    """
    network, found = getattr(package("transformers"), kind).from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    lacking = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    if lacking:
        raise ValueError(f"its weights lack {lacking[0]} and {len(lacking) - 1} more: it is no {kind}")
    return (
        network.to(device, torch.bfloat16 if half and device.startswith("cuda") else torch.float32)
        .eval()
        .requires_grad_(False)
    )


def _tokenizer(folder: Path, vocabulary: int) -> Any:
    """A tokenizer. vocabulary: the network's. Raises ValueError where it has no words, or ids that the network lacks:
    without its files transformers 5 makes an empty one and says nothing."""
    tokenizer = package("transformers").AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not LEAST_VOCABULARY <= len(tokenizer) <= vocabulary:
        raise ValueError(
            f"its tokenizer has {len(tokenizer)} tokens and its network {vocabulary}: the tokenizer's files are "
            "missing or another model's"
        )
    return tokenizer


def _prepared(folder: Path) -> dict[str, Any]:
    """How a model wants pictures or sounds prepared: the values of preprocessor_config.json."""
    path = folder / "preprocessor_config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read ({error.strerror})") from None


# ------------------------------------------------------------------------------------------ raw things in


def in_blocks(network: Callable[..., Tensor], *inputs: Tensor, rows: int = ROWS, device: str = "cpu") -> Tensor:
    """What a network answers for (n, ...) inputs, in blocks of always as many rows, so that a row's numbers do not
    depend on how many come with it. float32 on the CPU's side or the device's, (n, ...)."""
    answers = []
    for block in zip(*(each.split(rows) for each in inputs), strict=True):
        count = len(block[0])
        filled = [torch.cat([each, each[:1].expand(rows - count, *each.shape[1:])]).to(device) for each in block]
        answers.append(network(*filled)[:count].float())
    return torch.cat(answers)


def on_canvas(picture: np.ndarray, side: int) -> Tensor:
    """The centre square of (height, width, 3) uint8, resized (bicubic, Pillow): (3, side, side) in [0, 1]."""
    from PIL import Image

    height, width = picture.shape[:2]
    short = min(height, width)
    left, top = (width - short) // 2, (height - short) // 2
    image = Image.fromarray(picture[top : top + short, left : left + short])
    levels = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
    return torch.from_numpy(levels.copy()).permute(2, 0, 1) / 255


class ClipPixels:
    """Pictures as CLIP saw them: shorter side resized (bicubic, Pillow), centre cropped, standardised."""

    def __init__(self, folder: Path) -> None:
        config = _prepared(folder)
        size, crop = config["size"], config.get("crop_size", config["size"])
        self.side = size["shortest_edge"] if isinstance(size, dict) else size
        self.crop = crop["height"] if isinstance(crop, dict) else crop
        if self.crop > self.side:
            raise ValueError(f"it crops {self.crop} pixels of pictures whose shorter side has {self.side}")
        self.mean = torch.tensor(config["image_mean"])[:, None, None]
        self.deviation = torch.tensor(config["image_std"])[:, None, None]

    def __call__(self, picture: np.ndarray) -> Tensor:
        """(height, width, 3) uint8 -> (3, crop, crop)"""
        from PIL import Image

        height, width = picture.shape[:2]
        short = min(height, width)
        size = (int(self.side * width / short), int(self.side * height / short))
        image = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
        left, top = ((side - self.crop) // 2 for side in size)
        pixels = np.asarray(image.crop((left, top, left + self.crop, top + self.crop)))
        return (torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255 - self.mean) / self.deviation


class ClapSpectrogram:
    """Sounds as CLAP without fusion saw them: log-mel spectrograms of always as many samples.

    A longer sound is cut to its beginning, where CLAP's own code cuts at random; a shorter one is repeated as often as
    it fits whole, and filled up with zeros.
    """

    def __init__(self, folder: Path) -> None:
        config = _prepared(folder)
        mel_filter_bank = package("transformers.audio_utils").mel_filter_bank
        self.rate, self.hop, self.window = config["sampling_rate"], config["hop_length"], config["fft_window_size"]
        self.samples = int(config["max_length_s"] * self.rate)
        if config["truncation"] == "fusion" or config["padding"] != "repeatpad":
            raise ValueError("it is a CLAP with fusion, which cuts long sounds at random: take one without")
        self.filters = torch.from_numpy(
            mel_filter_bank(
                num_frequency_bins=self.window // 2 + 1,
                num_mel_filters=config["feature_size"],
                min_frequency=config["frequency_min"],
                max_frequency=config["frequency_max"],
                sampling_rate=self.rate,
                norm="slaney",
                mel_scale="slaney",
            )
        )

    def cut(self, sound: np.ndarray) -> Tensor:
        """(samples,) of any length -> (self.samples,) float32. Raises ValueError for one without a sample."""
        if not len(sound):
            raise ValueError("a sound without a sample")
        sound = sound[: self.samples]
        sound = np.tile(sound, self.samples // len(sound))
        return torch.from_numpy(np.pad(sound, (0, self.samples - len(sound))).astype(np.float32))

    def __call__(self, sounds: Tensor) -> Tensor:
        """(n, self.samples) -> (n, 1, frames, mels) in dB, in float64 on the way, as in the published preparation."""
        window = torch.hann_window(self.window, dtype=torch.float64, device=sounds.device)
        spectrum = torch.stft(sounds.double(), self.window, self.hop, window=window, return_complex=True).abs().square()
        mels = (spectrum.transpose(1, 2) @ self.filters.to(sounds.device)).clamp(min=1e-10)
        return (10 * mels.log10()).float()[:, None]


# ------------------------------------------------------------------------------------------ encoders


class Clip:
    """OpenAI's CLIP (Radford et al., 2021): features of pictures and captions, not normalised."""

    def __init__(self, folder: Path, device: str, settings: Mapping[str, Any]) -> None:
        self._folder, self._device = folder, device
        self.prepared = ClipPixels(folder)  # (height, width, 3) uint8 -> what `encode` takes
        self._vision = _network("CLIPVisionModelWithProjection", folder, device)
        self.size: int = self._vision.config.projection_dim

    @cached_property
    def _text(self) -> tuple[Any, Any]:
        with quiet("judge_clip"):
            network = _network("CLIPTextModelWithProjection", self._folder, self._device)
            return network, _tokenizer(self._folder, network.config.vocab_size)

    def pictures(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """(height, width, 3) uint8 each -> (n, size)"""
        return self.encode(torch.stack([self.prepared(picture) for picture in pictures]))

    @torch.no_grad()
    def encode(self, prepared: Tensor) -> Tensor:
        """Prepared pictures (n, 3, side, side) -> (n, size)"""
        return in_blocks(lambda x: self._vision(x).image_embeds, prepared, device=self._device)

    @torch.no_grad()
    def captions(self, captions: Sequence[str]) -> Tensor:
        """Sentences, cut to what the network holds with their end kept -> (n, size)"""
        network, tokenizer = self._text
        most = network.config.max_position_embeddings
        tokens = tokenizer(list(captions), padding="max_length", max_length=most, truncation=True, return_tensors="pt")
        return in_blocks(
            lambda ids, mask: network(input_ids=ids, attention_mask=mask).text_embeds,
            tokens["input_ids"],
            tokens["attention_mask"],
            device=self._device,
        )


class Clap:
    """LAION's CLAP (Wu et al., 2023) without fusion: features of sounds and captions, not normalised."""

    MOST_TOKENS = 77  # of a caption, as in its training

    def __init__(self, folder: Path, device: str, settings: Mapping[str, Any]) -> None:
        self._folder, self._device = folder, device
        self._spectrogram = ClapSpectrogram(folder)
        self._audio = _network("ClapAudioModelWithProjection", folder, device)
        if self._audio.config.enable_fusion:
            raise ValueError("it is a CLAP with fusion, which cuts long sounds at random: take one without")
        self.size: int = self._audio.config.projection_dim
        self.rate: int = self._spectrogram.rate
        self.samples: int = self._spectrogram.samples

    @cached_property
    def _text(self) -> tuple[Any, Any]:
        with quiet("judge_clap"):
            network = _network("ClapTextModelWithProjection", self._folder, self._device)
            return network, _tokenizer(self._folder, network.config.vocab_size)

    def prepared(self, sound: np.ndarray, rate: int) -> Tensor:
        """(samples,) of any length at `rate` Hz -> (self.samples,), which `encode` takes"""
        return self._spectrogram.cut(resampled(without_silent_end(sound), rate, self.rate))

    def sounds(self, sounds: Sequence[np.ndarray], rate: int) -> Tensor:
        """(samples,) each, of any length, at `rate` Hz -> (n, size)"""
        return self.encode(torch.stack([self.prepared(sound, rate) for sound in sounds]))

    @torch.no_grad()
    def encode(self, prepared: Tensor) -> Tensor:
        """Prepared sounds (n, self.samples) -> (n, size)"""
        return in_blocks(
            lambda x: self._audio(input_features=self._spectrogram(x)).audio_embeds, prepared, device=self._device
        )

    @torch.no_grad()
    def captions(self, captions: Sequence[str]) -> Tensor:
        """Sentences, cut to MOST_TOKENS with their end kept -> (n, size)"""
        network, tokenizer = self._text
        tokens = tokenizer(
            list(captions), padding="max_length", max_length=self.MOST_TOKENS, truncation=True, return_tensors="pt"
        )
        return in_blocks(
            lambda ids, mask: network(input_ids=ids, attention_mask=mask).text_embeds,
            tokens["input_ids"],
            tokens["attention_mask"],
            device=self._device,
        )


class SentenceEncoder:
    """A sentence-transformers model such as EmbeddingGemma: its transformer, mean pooling and dense layers, read from
    the same files without that package.

    Its list of modules is followed to its end. EmbeddingGemma's ends by scaling to unit norm, so that its features have
    unit norm in FlowBind, too, although its code asks for none: its published statistics have E|x|^2 = 1.0001.
    """

    MOST_TOKENS = 512

    def __init__(self, folder: Path, device: str, settings: Mapping[str, Any]) -> None:
        self._device = device
        self._network = _network("AutoModel", folder, device, half=True)
        self._tokenizer = _tokenizer(folder, self._network.config.vocab_size)
        self._dense: list[tuple[Tensor, Tensor | None]] = []
        self._normalised = False
        for module in json.loads((folder / "modules.json").read_text(encoding="utf-8"))[1:]:
            self._add(module["type"].rpartition(".")[2], folder / module["path"])
        self.size: int = self._dense[-1][0].shape[0] if self._dense else self._network.config.hidden_size

    def _add(self, kind: str, folder: Path) -> None:
        if kind == "Normalize":
            self._normalised = True
            return
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if kind == "Pooling":
            if config.get("pooling_mode", "mean") != "mean" or not config.get("pooling_mode_mean_tokens", True):
                raise ValueError("it pools otherwise than by the mean over tokens")
        elif kind == "Dense":
            if config.get("activation_function", "Identity").rpartition(".")[2] != "Identity":
                raise ValueError(f"its dense layer has the activation {config['activation_function']}")
            tensors = load_file(folder / "model.safetensors")
            bias = tensors.get("linear.bias")
            self._dense.append(
                (
                    tensors["linear.weight"].float().to(self._device),
                    None if bias is None else bias.float().to(self._device),
                )
            )
        else:
            raise ValueError(f"it has a module of the unknown kind {kind}")

    @torch.no_grad()
    def captions(self, captions: Sequence[str]) -> Tensor:
        """(n, size) of sentences, as they are, without a prompt."""
        ids = self._tokenizer(list(captions), truncation=True, max_length=self.MOST_TOKENS)["input_ids"]
        lengths = torch.tensor([len(row) for row in ids])
        found = torch.empty(len(ids), self.size, device=self._device)
        for width in ((lengths + BUCKET - 1) // BUCKET * BUCKET).unique().tolist():
            chosen = ((lengths <= width) & (lengths > width - BUCKET)).nonzero().flatten()
            tokens = torch.full((len(chosen), width), self._tokenizer.pad_token_id)
            for place, row in enumerate(chosen.tolist()):
                tokens[place, : lengths[row]] = torch.tensor(ids[row])
            mask = (torch.arange(width) < lengths[chosen, None]).long()
            found[chosen.to(self._device)] = in_blocks(self._pooled, tokens, mask, device=self._device)
        return found

    def _pooled(self, tokens: Tensor, mask: Tensor) -> Tensor:
        states = self._network(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
        x = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        for weight, bias in self._dense:
            x = functional.linear(x, weight, bias)
        return functional.normalize(x, dim=-1) if self._normalised else x


class AudioAutoencoder(network_store.Trained):
    """CLAP's unit vectors as features of the size of the other modalities' and back (FlowBind: 512 -> 768 -> 512).

    The suite trains it on the vectors of the training corpora. The code is noised in training, so that vectors that are
    near in the code are near each other.
    """

    NOISE, BATCH, RATE, UPDATES, PASSES = 0.1, 512, 1e-3, 10_000, 500  # at most so many updates, and passes

    def __init__(self, vector: int, feature: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(vector, feature), nn.ReLU(), nn.Linear(feature, feature))
        self.decoder = nn.Sequential(nn.Linear(feature, feature), nn.ReLU(), nn.Linear(feature, vector))

    @torch.no_grad()
    def encode(self, vectors: Tensor) -> Tensor:
        """(n, vector), of any length -> (n, feature)"""
        return self.encoder(functional.normalize(vectors, dim=-1))

    @torch.no_grad()
    def decode(self, features: Tensor) -> Tensor:
        """(n, feature) -> unit vectors (n, vector)"""
        return functional.normalize(self.decoder(features), dim=-1)

    @classmethod
    def kept(cls, key: str, vectors: Tensor, feature: int, say: Say) -> AudioAutoencoder:
        """The one of this key in the cache, or else one that is trained on (n, vector) now and put there."""
        with seeded("audio autoencoder", key):
            network = cls(vectors.shape[1], feature).to(vectors.device)
        facts = {"key": key, "shape": [*vectors.shape, feature]}
        network_store.ready(network, "autoencoders", key, facts, lambda: network.train_on(vectors, facts, say), say)
        return network.eval().requires_grad_(False)

    def train_on(self, vectors: Tensor, facts: Mapping[str, Any], say: Say) -> None:
        """Learn (n, vector), and write down in `facts` how near what is decoded lies to it."""
        vectors = functional.normalize(vectors, dim=-1)
        rows = len(vectors)
        updates = min(self.UPDATES, self.PASSES * -(-rows // self.BATCH))
        optimizer = torch.optim.AdamW(self.parameters(), self.RATE, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
        for update in range(updates):
            draws = Draws("audio autoencoder", update, rows=min(rows, self.BATCH), device=vectors.device)
            batch = vectors[draws.integers("rows", rows)]
            code = self.encoder(batch)
            noised = code + self.NOISE * draws.normal("noise", code.shape[1])
            loss = (functional.normalize(self.decoder(noised), dim=-1) - batch).square().sum(1).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        cosine = (self.decode(self.encode(vectors)) * vectors).sum(1).mean().item()
        self.facts = {**facts, "cosine": round(cosine, 5)}
        say(f"autoencoder of sounds: trained on {rows} vectors; mean cosine of what it decodes {cosine:.4f}")


# ------------------------------------------------------------------------------------------ decoders


class PrefixProjector(nn.Module):
    """Features (n, size) -> prefix embeddings (n, PREFIX, width), as in FlowBind's text decoder."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        hidden = max(size, width)
        self.net = nn.Sequential(nn.Linear(size, hidden), nn.Tanh(), nn.Linear(hidden, PREFIX * width))
        self.ln = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        return self.ln(self.net(features).unflatten(1, (PREFIX, -1)))


class Writer:
    """Gemma 3 as the language model that a method tunes (models/components/texts.py), with its tokenizer.

    width: of its embeddings; words: the most tokens of a caption; classes: its vocabulary.
    """

    def __init__(self, folder: Path, device: str, settings: Mapping[str, Any]) -> None:
        self.network: nn.Module = _network("Gemma3ForCausalLM", folder, device, half=True)
        config: Any = self.network.config
        self._tokenizer = _tokenizer(folder, config.vocab_size)
        self.classes: int = config.vocab_size
        self.width: int = config.hidden_size
        self.words: int = settings["words"]
        self.start: int = self._tokenizer.bos_token_id
        self.end: int = self._tokenizer.eos_token_id
        self.size = 0  # of the features it is told of; the dataset sets it

    def projector(self) -> nn.Module:
        """A new trainable map of standardised features (n, size) to prefix embeddings (n, PREFIX, width)."""
        return PrefixProjector(self.size, self.width)

    def embed(self, tokens: Tensor) -> Tensor:
        """(n, l) int64 -> (n, l, width), scaled as the network wants them"""
        embedding: Any = self.network.get_input_embeddings()  # type: ignore[operator]
        return embedding(tokens)

    def logits(self, embeddings: Tensor) -> Tensor:
        """(n, l, width) -> (n, l, classes), each of what follows its place"""
        return self._run(embeddings, use_cache=False).logits

    def greedy(self, prefix: Tensor, most: int) -> Tensor:
        """The likeliest next token again and again after prefix embeddings (n, p, width) and `start`: (n, most) int64,
        filled up with `end`."""
        words = torch.full((len(prefix), most), self.end, device=prefix.device)
        going = torch.ones(len(prefix), dtype=torch.bool, device=prefix.device)
        start = self.embed(torch.full((len(prefix), 1), self.start, device=prefix.device))
        answer = self._run(torch.cat([prefix.to(start.dtype), start], 1), use_cache=True, logits_to_keep=1)
        for place in range(most):
            words[:, place] = torch.where(going, answer.logits[:, -1].argmax(-1), self.end)
            going = going & (words[:, place] != self.end)
            if place + 1 == most or not going.any():
                break
            following = self.embed(words[:, place : place + 1])
            answer = self._run(following, use_cache=True, past_key_values=answer.past_key_values, logits_to_keep=1)
        return words

    def _run(self, embeddings: Tensor, **options: Any) -> Any:
        return self.network(inputs_embeds=embeddings.to(next(self.network.parameters()).dtype), **options)

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """(n, words) int64: a caption's tokens and `end`, again and again; one that is too long is cut without it."""
        found = torch.full((len(captions), self.words), self.end)
        for place, caption in enumerate(captions):
            ids = self._tokenizer(one_line(caption), add_special_tokens=False)["input_ids"][: self.words]
            found[place, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return found

    def captions(self, tokens: Tensor) -> list[str]:
        """(n, l) token ids -> sentences of one line, as far as the first `end`"""
        rows = [row[: [*row, self.end].index(self.end)] for row in tokens.tolist()]
        return [one_line(self._tokenizer.decode(row, skip_special_tokens=True)) for row in rows]


class Pipeline:
    """A diffusers pipeline whose noise is a function of each row's seed, and not of the rows beside it."""

    kind = ""

    def __init__(self, folder: Path, device: str, settings: Mapping[str, Any]) -> None:
        half = torch.float16 if device.startswith("cuda") else torch.float32
        self._settings = settings
        self._pipeline = getattr(package("diffusers"), self.kind).from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        )
        self._pipeline.to(device, half)
        self._pipeline.set_progress_bar_config(disable=True)

    def render(self, features: Tensor, seeds: Sequence[int]) -> Tensor:
        """(n, size) -> (n, ...), in blocks of at most RENDERED rows. seeds: one per row."""
        parts = [
            self.block(block, [torch.Generator().manual_seed(seed) for seed in seeds[start : start + RENDERED]])
            for start, block in zip(range(0, len(features), RENDERED), features.split(RENDERED), strict=True)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def block(self, features: Tensor, generators: list[torch.Generator]) -> Tensor:
        raise NotImplementedError


class PictureDecoder(Pipeline):
    """Stable unCLIP small: CLIP ViT-L/14 features (n, size), not normalised -> pictures (n, 3, height, width)."""

    kind = "StableUnCLIPImg2ImgPipeline"

    @torch.no_grad()
    def block(self, features: Tensor, generators: list[torch.Generator]) -> Tensor:
        dtype = next(self._pipeline.image_encoder.parameters()).dtype
        found = self._pipeline(
            prompt=[""] * len(features),
            image_embeds=features.to(self._pipeline.device, dtype),
            num_inference_steps=self._settings["steps"],
            guidance_scale=self._settings["guidance"],
            noise_level=self._settings["noise_level"],
            generator=generators,
            output_type="np",
        ).images
        return torch.from_numpy(np.asarray(found)).permute(0, 3, 1, 2).float().clamp(0, 1)


class SoundDecoder(Pipeline):
    """AudioLDM: unit CLAP vectors (n, size) -> sounds (n, samples) in [-1, 1] at `rate` Hz."""

    kind = "AudioLDMPipeline"

    @property
    def rate(self) -> int:
        return self._pipeline.vocoder.config.sampling_rate

    @torch.no_grad()
    def block(self, features: Tensor, generators: list[torch.Generator]) -> Tensor:
        found = self._pipeline(
            prompt_embeds=features.to(self._pipeline.device),
            num_inference_steps=self._settings["steps"],
            guidance_scale=self._settings["guidance"],
            audio_length_in_s=self._settings["seconds"],
            generator=generators,
        ).audios
        return torch.from_numpy(np.asarray(found)).float().clamp(-1, 1)

    @torch.no_grad()
    def agreement(self, clap: Clap, captions: Sequence[str]) -> float:
        """Mean cosine between captions as the generator's own CLAP text tower sees them and as `clap` does: near one
        where `clap`'s sounds are in the space that the generator was trained on, near zero where they are not."""
        pipeline = self._pipeline
        tokens = pipeline.tokenizer(
            list(captions), padding="max_length", max_length=Clap.MOST_TOKENS, truncation=True, return_tensors="pt"
        ).to(pipeline.device)
        own = pipeline.text_encoder(**tokens).text_embeds.float().cpu()
        other = clap.captions(captions).cpu()
        return functional.cosine_similarity(own, other).mean().item() if own.shape == other.shape else 0.0


KINDS: dict[str, Callable[[Path, str, Mapping[str, Any]], Any]] = {
    "text_encoder": SentenceEncoder,
    "image_encoder": Clip,
    "audio_encoder": Clap,
    "text_decoder": Writer,
    "image_decoder": PictureDecoder,
    "audio_decoder": SoundDecoder,
    "judge_clip": Clip,
    "judge_clap": Clap,
}
