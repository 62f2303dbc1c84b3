"""Published networks and their loading: the ports compute what the published code does, and nothing wrong loads."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.api import Inapplicable, UserError
from benchmark.judges import pretrained_judges as judges
from benchmark.judges import published_networks
from benchmark.media import sounds
from benchmark.metrics.common import frechet
from data_prep.pretrained import pretrained_codecs, tiny_models
from data_prep.pretrained.pretrained_codecs import Models
from tests.helpers import tiny_models_once
from tests.metrics import peers

RATE = 16_000


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models_once.models(tmp_path_factory)


@pytest.fixture(scope="session")
def models(folder: Path) -> Models:
    return Models(folder)


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny models that a test may damage."""
    return Path(shutil.copytree(folder, tmp_path / "models"))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.RandomState(seed).randn(*shape)).astype(np.float32)


# ---------------------------------------------------------------------------------------------- the ports

# Names and shapes of the tensors in the published code's networks, hashed, and their number: pytorch-fid b9c1811,
# torchvggish f3f9096, wav2clip 1864b39. The numbers below are what that code answers for the weights of
# tests/helpers/tiny_models_once.py.
PUBLISHED = {
    published_networks.FidInception: ("3a44d8a534", 566),
    published_networks.Vggish: ("80aa44a96b", 18),
    published_networks.Wav2Clip: ("76b1cabecb", 125),
}


def shapes(state: dict[str, Tensor]) -> tuple[str, int]:
    lines = sorted(f"{name} {tuple(value.shape)}" for name, value in state.items())
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=5).hexdigest(), len(lines)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_port_has_the_published_tensors(kind: type[nn.Module]) -> None:
    with torch.device("meta"):
        assert shapes(kind().state_dict()) == PUBLISHED[kind]


def made_by_rule(kind: type[nn.Module]) -> Any:
    with torch.device("meta"):
        like = kind().state_dict()
    blank = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in like.items()}
    if "audio_encoder.spectrogram.window" in blank:
        blank["audio_encoder.spectrogram.window"] = torch.hann_window(512)
    return published_networks.loaded(kind, tiny_models_once.by_rule(blank))


def chirp() -> Tensor:
    t = np.arange(2 * RATE + 5_000) / RATE
    sound = 0.3 * np.sin(2 * np.pi * 440 * t) + 0.1 * np.sin(2 * np.pi * (300 + 900 * t) * t)
    return torch.from_numpy(sound.astype(np.float32))


def test_inception_answers_as_pytorch_fid_does() -> None:
    pictures = (torch.arange(2 * 3 * 40 * 50) * 7919 % 256).float().div(255).reshape(2, 3, 40, 50)
    found = made_by_rule(published_networks.FidInception)(pictures)
    expected = [[2.930279, 0.0, 1.322447, 0.016728], [3.060956, 0.0, 1.333475, 0.010511]]
    torch.testing.assert_close(found[:, [0, 500, 1000, 2047]], torch.tensor(expected), rtol=1e-3, atol=1e-4)
    assert found.double().mean().item() == pytest.approx(3.34257, rel=1e-3)


def test_vggish_answers_as_torchvggish_does_before_its_last_rectifier() -> None:
    network = made_by_rule(published_networks.Vggish)
    found = network(network.windows(chirp()))
    expected = [[5.212684, -14.012155, -1.530161, -5.200217], [3.366409, -14.182202, 0.980554, -4.85954]]
    torch.testing.assert_close(found[:, [0, 40, 80, 127]], torch.tensor(expected), rtol=1e-3, atol=1e-3)


def test_wav2clip_answers_as_its_own_code_does_for_one_sound() -> None:
    found = made_by_rule(published_networks.Wav2Clip)(chirp()[None])
    expected = torch.tensor([[42.609619, 43.451702, 1.657184, -28.540359]])
    torch.testing.assert_close(found[:, [0, 100, 300, 511]], expected, rtol=1e-3, atol=1e-3)


def test_wav2clip_does_not_hear_the_sound_beside() -> None:
    """The published code standardises a batch as a whole: a loud neighbour moves a quiet sound by a quarter."""
    network = published_networks.random(published_networks.Wav2Clip, 16)
    sound, loud = torch.from_numpy(noise(1, RATE)), torch.from_numpy(10 * noise(1, RATE, seed=1))
    torch.testing.assert_close(network(torch.cat([sound, loud]))[:1], network(sound), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("samples", [1, 15_599, 15_600, 30_959, 30_960, 31_000, 160_000])
def test_vggish_has_as_many_windows_as_it_says(samples: int) -> None:
    windows = published_networks.Vggish.windows(torch.from_numpy(noise(samples)))
    assert len(windows) == published_networks.Vggish.count(samples) == max(1, (samples - 240) // 160 // 96)


def test_a_tone_is_loudest_in_its_band_of_vggish() -> None:
    """The band whose centre is nearest on HTK's scale, for a tone in its middle."""
    edges = np.linspace(*(1127 * np.log1p(np.array([125.0, 7500.0]) / 700)), 66)
    for band in (3, 20, 50):
        hertz = 700 * math.expm1(edges[band + 1] / 1127)
        tone = torch.from_numpy(np.sin(2 * np.pi * hertz * np.arange(RATE) / RATE))
        assert published_networks.Vggish.windows(tone).mean((0, 1, 2)).argmax() == band


@pytest.mark.parametrize("fault", ["another network", "lacking", "misshapen"])
def test_tensors_of_another_network_are_refused(fault: str) -> None:
    state = published_networks.random(published_networks.Vggish, 16).state_dict()
    if fault == "another network":
        state = published_networks.random(published_networks.Wav2Clip, 16).state_dict()
    elif fault == "lacking":
        del state["embeddings.2.bias"]
    else:
        state["embeddings.4.weight"] = torch.zeros(9, 256)
    with pytest.raises(ValueError, match="it is no Vggish"):
        published_networks.loaded(published_networks.Vggish, state)


def test_parts_that_scoring_does_not_need_are_ignored() -> None:
    """Wav2CLIP's file also has the pictures' transform of its training; older files lack the counts of batches."""
    state = published_networks.random(published_networks.Wav2Clip, 16).state_dict()
    more = {f"image_transform.{name}": value for name, value in state.items()}
    fewer = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    sound = torch.from_numpy(noise(1, RATE))
    found = published_networks.loaded(published_networks.Wav2Clip, fewer | more)(sound)
    assert torch.equal(found, published_networks.loaded(published_networks.Wav2Clip, state)(sound))


# ---------------------------------------------------------------------------------------------- where models are


def configured(tmp_path: Path, text: str) -> Models:
    (tmp_path / "models.toml").write_text(text)
    return Models(tmp_path)


def test_the_defaults_are_the_papers() -> None:
    entries = Models().entries if not os.environ.get(pretrained_codecs.SETTING) else {}
    for role, entry in entries.items():
        assert {"use", "licence", "gated", "gigabytes", "source"} <= entry.keys(), role
        assert ("id" in entry) != ("url" in entry), role
    assert {role for role, entry in entries.items() if entry["gated"]} <= {"text_encoder", "text_decoder"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[picture_decoder]\nid = 'x'", "unknown role 'picture_decoder': did you mean"),
        ("[image_decoder]\nguidence = 3", "has no key 'guidence': did you mean 'guidance'"),
        ("[image_decoder", "models.toml: "),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said.replace("[", r"\[")) as raised:
        configured(tmp_path, text)
    assert "\n" not in str(raised.value)


def test_a_folder_without_a_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"models\.toml cannot be read .*MUNI_BENCH_MODELS"):
        Models(tmp_path / "nowhere")


def test_a_new_place_replaces_the_old_one_and_keeps_the_rest(tmp_path: Path) -> None:
    models = configured(tmp_path, "[image_decoder]\nfolder = 'x'\nsteps = 3\n[judge_vggish]\nfile = 'v.pth'")
    assert models.entries["image_decoder"]["steps"] == 3 and models.entries["image_decoder"]["guidance"] == 10.0
    assert "id" not in models.entries["image_decoder"] and "url" not in models.entries["judge_vggish"]


@pytest.mark.parametrize(
    ("text", "role", "said"),
    [
        ("[text_encoder]\nfolder = 'gone'", "text_encoder", "text_encoder: no folder .*gone: put the model there"),
        ("[text_encoder]\nfolder = '.'", "text_encoder", "has no .safetensors, and no other kind of weights is loaded"),
        ("[judge_vggish]\nfile = 'gone.pth'", "judge_vggish", "judge_vggish: no file .*gone.pth: put it there"),
    ],
)
def test_absent_weights_are_one_line(tmp_path: Path, text: str, role: str, said: str) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(UserError, match=said) as raised:
        configured(tmp_path, text).load(role)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("GatedRepoError", r"google/gemma-3-1b-pt is gated \(Gemma terms of use\): accept its licence at https"),
        ("RepositoryNotFoundError", "the hub has no google/gemma-3-1b-pt, or hides it: name another id"),
        ("LocalEntryNotFoundError", "run hf download google/gemma-3-1b-pt where there is a network"),
    ],
)
def test_what_the_hub_does_not_give_is_one_line(error: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = tiny_models_once.package("huggingface_hub")

    def refuse(*_: Any, **__: Any) -> str:
        raise type(error, (Exception,), {})("first\nsecond")

    monkeypatch.delenv(pretrained_codecs.SETTING, raising=False)
    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match=said) as raised:
        Models().locate("text_decoder")
    assert "\n" not in str(raised.value) and "models.toml" in str(raised.value)


def test_offline_no_network_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(pretrained_codecs.SETTING, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MUNI_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("asked the network"))
    with pytest.raises(UserError, match=r"judge_vggish: no .*vggish-10086976\.pth, and HF_HUB_OFFLINE is set: put"):
        Models().locate("judge_vggish")


class Trap:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (Path("sprung"),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickled_program_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v.pth").write_bytes(pickle.dumps({"features.0.weight": Trap()}))
    torch.save({"features.0.weight": Trap()}, tmp_path / "w.pth")
    for name in ("v.pth", "w.pth"):
        with pytest.raises(UserError, match=r"judge_vggish: .*pth cannot be read .*get it anew"):
            configured(tmp_path, f"[judge_vggish]\nfile = '{name}'").state("judge_vggish")
    assert not (tmp_path / "sprung").exists()


def test_weights_that_lack_a_tensor_are_refused(own: Path) -> None:
    """transformers would draw them at random and go on."""
    from safetensors.torch import load_file, save_file

    path = own / "image_encoder" / "model.safetensors"
    tensors = load_file(path)
    del tensors["visual_projection.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"image_encoder: .* cannot be used: .*lack visual_projection\.weight"):
        Models(own).load("image_encoder")


@pytest.mark.parametrize("fault", ["emptied", "another model's"])
def test_an_empty_or_foreign_tokenizer_is_refused(own: Path, fault: str) -> None:
    path = own / "text_encoder" / "tokenizer.json"
    content = json.loads(path.read_text())
    if fault == "emptied":
        special = {each["content"] for each in content["added_tokens"]}
        content["model"]["vocab"] = {k: v for k, v in content["model"]["vocab"].items() if k in special}
        content["model"]["merges"] = []
    else:
        content["model"]["vocab"] |= {f"more {number}": 1000 + number for number in range(100)}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"text_encoder: .* its tokenizer has \d+ tokens and its network 324"):
        Models(own).load("text_encoder")


def test_a_missing_tokenizer_is_refused(own: Path) -> None:
    for path in (own / "judge_clap").glob("tokenizer*"):
        path.unlink()
    clap = Models(own).load("judge_clap")  # sounds need none
    with pytest.raises((UserError, ValueError, OSError)):
        clap.captions(["a dog"])


@pytest.mark.parametrize("change", [{"truncation": "fusion"}, {"padding": "repeat"}])
def test_a_clap_that_cuts_at_random_is_refused(own: Path, change: dict[str, str]) -> None:
    path = own / "audio_encoder" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match="fusion, which cuts long sounds at random"):
        Models(own).load("audio_encoder")


def test_tiny_models_are_not_written_over_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is there and not empty: name a new folder"):
        tiny_models.write(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_tiny_models_have_every_role(models: Models) -> None:
    assert all("folder" in entry or "file" in entry for entry in models.entries.values())
    assert {models.record(role)["content"] for role in models.entries}.__len__() == len(models.entries)


# ---------------------------------------------------------------------------------------------- raw things in


def coco_pictures(real_data: Path, count: int) -> list[np.ndarray]:
    image = pytest.importorskip("PIL.Image")
    paths = sorted((real_data / "coco_mini" / "val2017").glob("*.jpg"))[:count]
    if not paths:
        pytest.skip(f"no coco_mini in {real_data}")
    return [np.asarray(image.open(path).convert("RGB")) for path in paths]


def test_pictures_are_prepared_as_clips_own_processor_does(folder: Path, real_data: Path) -> None:
    transformers = tiny_models_once.package("transformers")
    pictures = coco_pictures(real_data, 6)
    pictures.append(np.ascontiguousarray(np.rot90(pictures[0][:40, :333])))
    own = pretrained_codecs.ClipPixels(folder / "judge_clip")
    reference = transformers.CLIPImageProcessor.from_pretrained(folder / "judge_clip")
    expected = reference(images=pictures, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(torch.stack([own(picture) for picture in pictures]), expected, atol=1e-5, rtol=1e-5)


PUBLISHED_CLAP = {  # of laion/clap-htsat-unfused
    "feature_size": 64,
    "sampling_rate": 48_000,
    "hop_length": 480,
    "fft_window_size": 1024,
    "max_length_s": 10,
    "frequency_min": 50,
    "frequency_max": 14_000,
    "truncation": "rand_trunc",
    "padding": "repeatpad",
}


@pytest.mark.parametrize("samples", [480_000, 200_000, 100])
def test_sounds_are_prepared_as_claps_own_extractor_does(tmp_path: Path, samples: int) -> None:
    transformers = tiny_models_once.package("transformers")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED_CLAP))
    own, sound = pretrained_codecs.ClapSpectrogram(tmp_path), noise(samples)
    reference = transformers.ClapFeatureExtractor(**PUBLISHED_CLAP)
    expected = reference(sound, sampling_rate=48_000, return_tensors="pt")["input_features"]
    torch.testing.assert_close(own(own.cut(sound)[None]), expected.float(), atol=2e-3, rtol=1e-4)


def test_a_sound_of_ten_and_a_quarter_seconds_is_always_cut_alike(tmp_path: Path) -> None:
    """CLAP's own extractor cuts it at random: the length of every sound of AudioLDM."""
    transformers = tiny_models_once.package("transformers")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED_CLAP))
    own, sound = pretrained_codecs.ClapSpectrogram(tmp_path), noise(491_520)
    reference = transformers.ClapFeatureExtractor(**PUBLISHED_CLAP)
    found = {np.asarray(reference(sound, sampling_rate=48_000)["input_features"]).tobytes() for _ in range(3)}
    assert len(found) > 1
    assert torch.equal(own.cut(sound), own.cut(sound[:480_000]))


def test_resampling_keeps_a_tone() -> None:
    for rate in (8_000, 44_100, 48_000):
        tone = np.sin(2 * np.pi * 1000 * np.arange(rate) / rate).astype(np.float32)
        found = sounds.resampled(tone, rate, RATE)
        expected = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
        assert len(found) == RATE and np.abs(found - expected)[200:-200].max() < 2e-2


def test_blocks_are_always_filled_up() -> None:
    sizes: list[int] = []

    def network(x: Tensor, y: Tensor) -> Tensor:
        sizes.append(len(x))
        return x + y

    rows = torch.arange(10.0)[:, None]
    assert torch.equal(pretrained_codecs.in_blocks(network, rows, rows, rows=4), 2 * rows) and sizes == [4, 4, 4]


# ---------------------------------------------------------------------------------------------- codecs

CAPTIONS = ["a dog", "a cat on the mat", "", "rain falls while a dog barks in the distance " * 6, "a dog"]


def test_captions_become_what_the_transformer_and_its_dense_layers_say(models: Models, folder: Path) -> None:
    """One caption at a time, without padding, through transformers alone."""
    transformers = tiny_models_once.package("transformers")
    from safetensors.torch import load_file

    encoder = models.load("text_encoder")
    network = transformers.AutoModel.from_pretrained(folder / "text_encoder").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "text_encoder")
    dense = [load_file(folder / "text_encoder" / name / "model.safetensors") for name in ("2_Dense", "3_Dense")]
    found = encoder.captions(CAPTIONS)
    for caption, row in zip(CAPTIONS, found, strict=True):
        with torch.no_grad():
            x = network(**tokenizer([caption], return_tensors="pt")).last_hidden_state.mean(1)
        for layer in dense:
            x = x @ layer["linear.weight"].T
        torch.testing.assert_close(row, functional.normalize(x, dim=1)[0], atol=1e-5, rtol=1e-4)
    assert torch.equal(found[0], found[4]) and torch.equal(encoder.captions(CAPTIONS[1:2])[0], found[1])


def test_a_pooling_that_is_not_the_mean_is_refused(own: Path) -> None:
    path = own / "text_encoder" / "1_Pooling" / "config.json"
    path.write_text(json.dumps({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}))
    with pytest.raises(UserError, match="pools otherwise than by the mean"):
        Models(own).load("text_encoder")


def test_features_of_a_row_do_not_depend_on_the_rows_beside(models: Models) -> None:
    pictures = [(255 * np.random.RandomState(n).rand(40 + n, 60, 3)).astype(np.uint8) for n in range(35)]
    clip, clap = models.load("image_encoder"), models.load("audio_encoder")
    assert torch.equal(clip.pictures(pictures)[34], clip.pictures(pictures[34:])[0])
    sounds = [noise(20_000 + 999 * n, seed=n) for n in range(4)]
    assert torch.equal(clap.sounds(sounds, RATE)[3], clap.sounds(sounds[3:], RATE)[0])


def test_zeros_after_a_sound_are_not_heard(models: Models) -> None:
    clap, sound = models.load("audio_encoder"), noise(9_000)
    assert torch.equal(clap.sounds([sound], RATE), clap.sounds([np.pad(sound, (0, 5_000))], RATE))
    assert torch.isfinite(clap.sounds([np.zeros(900, np.float32)], RATE)).all()
    with pytest.raises(ValueError, match="without a sample"):
        clap.sounds([np.zeros(0, np.float32)], RATE)


def test_the_autoencoder_of_sounds_keeps_their_directions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUNI_BENCH_CACHE", str(tmp_path))
    said: list[str] = []
    vectors = torch.from_numpy(noise(300, 4)) @ torch.from_numpy(noise(4, 16, seed=1)) + 0.01
    made = pretrained_codecs.AudioAutoencoder.kept("key", vectors, 32, said.append)
    fresh = torch.from_numpy(noise(50, 4, seed=2)) @ torch.from_numpy(noise(4, 16, seed=1)) + 0.01
    cosine = (made.decode(made.encode(fresh)) * functional.normalize(fresh, dim=1)).sum(1)
    assert cosine.min() > 0.9 and cosine.mean() > 0.99
    again = pretrained_codecs.AudioAutoencoder.kept("key", vectors, 32, said.append)
    assert torch.equal(again.encode(fresh), made.encode(fresh)) and len(said) == 1
    (tmp_path / "autoencoders" / "key.safetensors").write_bytes(b"damaged")
    anew = pretrained_codecs.AudioAutoencoder.kept("key", vectors, 32, said.append)
    assert "cannot be used" in said[1] and torch.equal(anew.encode(fresh), made.encode(fresh))


def test_greedy_words_are_the_likeliest_ones(models: Models) -> None:
    """Against a loop over whole sentences without the keys and values of earlier words."""
    writer = models.load("text_decoder")
    writer.size = 8
    torch.manual_seed(0)
    with torch.no_grad():
        prefix = writer.projector()(torch.randn(3, 8))
        found = writer.greedy(prefix, 12)
        sequence = torch.cat([prefix, writer.embed(torch.full((3, 1), writer.start))], 1)
        going = torch.ones(3, dtype=torch.bool)
        for place in range(12):
            word = torch.where(going, writer.logits(sequence)[:, -1].argmax(-1), writer.end)
            assert torch.equal(found[:, place], word)
            going &= word != writer.end
            sequence = torch.cat([sequence, writer.embed(word[:, None])], 1)
        assert torch.equal(writer.greedy(prefix[1:2], 12)[0], found[1])


def test_after_its_end_a_sentence_has_nothing(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = models.load("text_decoder")
    writer.size = 8
    real, calls = writer._run, []

    def ends_the_first(embeddings: Tensor, **options: Any) -> Any:
        answer = real(embeddings, **options)
        calls.append(1)
        answer.logits[: len(calls) - 1, :, writer.end] = 1e4  # row r ends r + 1 words in
        return answer

    monkeypatch.setattr(writer, "_run", ends_the_first)
    torch.manual_seed(0)
    with torch.no_grad():
        found = writer.greedy(writer.projector()(torch.randn(3, 8)), 12)
    assert [int((row == writer.end).float().argmax()) for row in found] == [1, 2, 3] and len(calls) == 4
    assert all((row[place + 1 :] == writer.end).all() for place, row in zip((1, 2, 3), found, strict=True))


def test_words_come_back_as_captions(models: Models) -> None:
    writer = models.load("text_decoder")
    words = writer.tokens(["a dog on the mat", "", "two\nlines\u2028of it ", "on and " * 40])
    assert words.shape == (4, writer.words)
    assert writer.captions(words)[:3] == ["a dog on the mat", "", "two lines of it"]
    assert (words[3] != writer.end).all() and (words[1] == writer.end).all()


def test_a_method_tunes_the_writer_without_touching_it(models: Models) -> None:
    from models.components.texts import TextDecoder

    writer = models.load("text_decoder")
    writer.size = 8
    before = {name: value.clone() for name, value in writer.network.state_dict().items()}
    torch.manual_seed(0)
    decoder = TextDecoder(4, 8, 16, 1)
    decoder.bind(writer, 8, 1.0)
    words = writer.tokens(["a dog", "rain falls"])
    optimizer = torch.optim.Adam(decoder.parameters(), 2e-2)
    losses = []
    for _ in range(80):
        loss = decoder.cross_entropy(torch.eye(2, 8), words).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert writer.captions(decoder.write(torch.eye(2, 8), writer.words)) == ["a dog", "rain falls"]
    assert decoder.adapters.up[0].abs().max() > 0
    assert all(torch.equal(value, before[name]) for name, value in writer.network.state_dict().items())


def test_renders_are_a_function_of_feature_and_seed(models: Models) -> None:
    features = torch.from_numpy(noise(3, tiny_models.FEATURE)) * 30
    vectors = functional.normalize(torch.from_numpy(noise(3, tiny_models.VECTOR)), dim=1)
    for role, x, shape in (("image_decoder", features, (3, 64, 64)), ("audio_decoder", vectors, (20_480,))):
        decoder = models.load(role)
        found = decoder.render(x, [1, 2, 3])
        assert found.shape == (3, *shape) and found.std() > 1e-3 and found.abs().max() <= 1
        torch.testing.assert_close(decoder.render(x[2:], [3])[0], found[2], atol=1e-4, rtol=1e-3)
        assert (decoder.render(x[2:], [4])[0] - found[2]).abs().max() > 1e-3
        assert (decoder.render(x[:1], [3])[0] - found[2]).abs().max() > 1e-4


def test_the_configuration_sets_how_things_are_rendered(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[str, Any] = {}
    decoder = models.load("image_decoder")

    def pipeline(**options: Any) -> Any:
        said.update(options)
        return SimpleNamespace(images=np.zeros((2, 8, 8, 3), np.float32))

    pipeline.device, pipeline.image_encoder = torch.device("cpu"), decoder._pipeline.image_encoder  # type: ignore[attr-defined]
    monkeypatch.setattr(decoder, "_pipeline", pipeline)
    decoder.render(torch.zeros(2, tiny_models.FEATURE), [1, 2])
    kept = {name: said[name] for name in ("num_inference_steps", "guidance_scale", "noise_level", "prompt")}
    assert kept == {"num_inference_steps": 2, "guidance_scale": 10.0, "noise_level": 0, "prompt": ["", ""]}


def test_a_generator_of_another_clap_is_noticed(models: Models, own: Path) -> None:
    """The text towers agree where they are one model's."""
    from safetensors.torch import load_file, save_file

    clap, captions = models.load("audio_encoder"), ["a dog barks", "rain"]
    assert abs(models.load("audio_decoder").agreement(clap, captions)) < 0.9
    tensors = load_file(own / "audio_encoder" / "model.safetensors")
    path = own / "audio_decoder" / "text_encoder" / "model.safetensors"
    save_file({name: tensors[name] for name in load_file(path)}, path, metadata={"format": "pt"})
    same = Models(own)
    assert same.load("audio_decoder").agreement(same.load("audio_encoder"), captions) > 0.999


# ---------------------------------------------------------------------------------------------- judges


@pytest.fixture(scope="session")
def judging(models: Models) -> judges.Judges:
    return judges.Judges(SimpleNamespace(models=models, sample_rate=RATE, identity="things"), "cpu")


def things() -> dict[str, Any]:
    sounds = torch.from_numpy(noise(5, 2 * RATE))
    sounds[2, 20_000:] = 0
    return {"image": torch.rand(5, 3, 48, 64), "audio": sounds, "text": CAPTIONS}


def test_clip_scores_equal_a_direct_computation(judging: judges.Judges, folder: Path) -> None:
    """CLIP as a whole model, with its own processor, on one row at a time."""
    transformers = tiny_models_once.package("transformers")
    network = transformers.CLIPModel.from_pretrained(folder / "judge_clip").eval()
    processor = transformers.CLIPImageProcessor.from_pretrained(folder / "judge_clip")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "judge_clip")
    rows = things()
    found = [judging.embed(("text", "image"), name, rows[name]) for name in ("text", "image")]
    for number, caption in enumerate(CAPTIONS):
        pixels = processor(images=judges.levels(rows["image"][number : number + 1]), return_tensors="pt")
        tokens = tokenizer([caption], truncation=True, max_length=77, return_tensors="pt")
        with torch.no_grad():
            answer = network(**tokens, pixel_values=pixels["pixel_values"])
        direct = (answer.text_embeds[0] @ answer.image_embeds[0]).item()
        assert (found[0][number] @ found[1][number]).item() == pytest.approx(direct, abs=1e-5)


def test_clap_scores_equal_a_direct_computation(judging: judges.Judges, folder: Path) -> None:
    transformers = tiny_models_once.package("transformers")
    network = transformers.ClapModel.from_pretrained(folder / "judge_clap").eval()
    extractor = transformers.ClapFeatureExtractor.from_pretrained(folder / "judge_clap")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "judge_clap")
    rows = things()
    found = [judging.embed(("audio", "text"), name, rows[name]) for name in ("text", "audio")]
    for number, caption in enumerate(CAPTIONS):
        sound = judges.heard(rows["audio"][number : number + 1], RATE)[0]
        sound = sounds.resampled(sound, RATE, 48_000)[:48_000]
        heard = extractor(sound, sampling_rate=48_000, return_tensors="pt")["input_features"].float()
        tokens = tokenizer([caption], truncation=True, max_length=77, return_tensors="pt")
        with torch.no_grad():
            answer = network(**tokens, input_features=heard, is_longer=torch.zeros(1, 1, dtype=torch.bool))
        direct = (answer.text_embeds[0] @ answer.audio_embeds[0]).item()
        assert (found[0][number] @ found[1][number]).item() == pytest.approx(direct, abs=1e-4)


PAIRS = (("text", "image"), ("audio", "text"), ("image", "audio"))


def test_what_judges_say_of_a_row_does_not_depend_on_the_rows_beside(judging: judges.Judges) -> None:
    rows = things()
    for pair in PAIRS:
        for name in pair:
            whole, alone = (judging.embed(pair, name, part) for part in (rows[name], rows[name][2:3]))
            assert torch.equal(whole[2:3], alone)
            torch.testing.assert_close(whole.norm(dim=1), torch.ones(5))
    for name in ("image", "audio"):
        whole, parts = judging.features(name, rows[name]), judging.parts(name, rows[name])
        alone = [judging.features(name, rows[name][number : number + 1]) for number in range(5)]
        assert torch.equal(whole, torch.cat(alone)) and parts.tolist() == [len(each) for each in alone]
    assert judging.parts("text", CAPTIONS).tolist() == [1] * 5


def test_both_sides_of_ais_have_one_size(judging: judges.Judges) -> None:
    rows = things()
    sizes = {judging.embed(("image", "audio"), name, rows[name]).shape[1] for name in ("image", "audio")}
    assert len(sizes) == 1


def test_a_tensor_that_changed_is_read_again(judging: judges.Judges) -> None:
    pictures = torch.rand(2, 3, 32, 32)
    before = judging.features("image", pictures)
    assert judging.features("image", pictures) is before
    pictures[0] = 1 - pictures[0]
    after = judging.features("image", pictures)
    assert not torch.equal(after[0], before[0]) and torch.equal(after[1], before[1])


@pytest.mark.parametrize("sounds", [torch.zeros(2, 900), torch.full((2, 3), 0.5)])
def test_silence_and_the_shortest_sounds_have_numbers(judging: judges.Judges, sounds: Tensor) -> None:
    assert torch.isfinite(judging.features("audio", sounds)).all()
    assert torch.isfinite(judging.embed(("image", "audio"), "audio", sounds)).all()
    assert torch.isfinite(judging.embed(("text", "audio"), "audio", sounds)).all()


def test_what_cannot_be_judged_is_refused(judging: judges.Judges) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        judging.features("image", torch.full((2, 3, 8, 8), float("nan")))
    with pytest.raises(ValueError, match="no towers of text among"):
        judging.embed(("image", "audio"), "text", ["a dog"])
    with pytest.raises(ValueError, match="without a sample"):
        judging.features("audio", torch.empty(2, 0))
    with pytest.raises(Inapplicable, match="no published features of sentences"):
        judging.features("text", ["a dog"])
    with pytest.raises(Inapplicable, match="show no digits"):
        judging.digits("image", torch.rand(1, 3, 8, 8))


def test_the_protocol_names_the_models_that_a_metric_asks(judging: judges.Judges, own: Path) -> None:
    assert set(judging.protocol("ais")["models"]) == {"judge_clip", "judge_wav2clip"}
    assert judging.protocol("cider")["models"] == {}
    assert len(judging.protocol("a metric of the user's")["models"]) == 5
    json.dumps(judging.protocol("fid"))
    with (own / "inception.pth").open("ab") as file:
        file.write(b"x")
    changed = judges.Judges(SimpleNamespace(models=Models(own), sample_rate=RATE, identity="things"), "cpu")
    assert changed.protocol("fid") != judging.protocol("fid") and changed.protocol("fad") == judging.protocol("fad")


def test_a_file_of_another_network_is_one_line(own: Path) -> None:
    shutil.copy(own / "vggish.pth", own / "inception.pth")
    damaged = judges.Judges(SimpleNamespace(models=Models(own), sample_rate=RATE, identity="things"), "cpu")
    with pytest.raises(UserError, match=r"judge_inception: .*inception\.pth cannot be used: .*it is no FidInception"):
        damaged.features("image", torch.rand(1, 3, 8, 8))


# ---------------------------------------------------------------------------------------------- other packages


@pytest.mark.slow
def test_frechet_distances_equal_those_of_frechet_audio_distance() -> None:
    tiny_models_once.package("frechet_audio_distance", imported=False)
    first, second = noise(300, 12).astype(np.float64), 0.3 + 2 * noise(200, 12, seed=1).astype(np.float64)
    fits = [frechet.fit(torch.from_numpy(each)) for each in (first, second)]
    assert peers.frechet_distance(first, second) == pytest.approx(frechet.distance(*fits), rel=1e-8)


@pytest.mark.slow
def test_sounds_are_prepared_as_laion_clap_does(tmp_path: Path) -> None:
    tiny_models_once.package("laion_clap", imported=False)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED_CLAP))
    sounds = noise(2, 480_000)
    own = pretrained_codecs.ClapSpectrogram(tmp_path)(torch.from_numpy(sounds)).numpy()
    np.testing.assert_allclose(own, peers.clap_spectrogram(sounds), atol=5e-3)


@pytest.mark.slow
def test_pictures_are_prepared_as_open_clip_does(folder: Path, real_data: Path) -> None:
    """But for one pixel: where the border that is cut off is odd, the two packages cut on different sides."""
    tiny_models_once.package("open_clip", imported=False)
    own = pretrained_codecs.ClipPixels(folder / "judge_clip")
    pictures = coco_pictures(real_data, 6)
    mean, deviation = own.mean.flatten().tolist(), own.deviation.flatten().tolist()
    theirs = peers.clip_pixels(pictures, own.crop, mean, deviation)
    for picture, expected in zip(pictures, theirs, strict=True):
        found = own(picture).numpy()
        moved = [np.roll(found, shift, axis) for axis in (1, 2) for shift in (0, -1, 1)]
        assert min(np.abs(each - expected)[:, 1:-1, 1:-1].max() for each in moved) < 1e-5


def test_a_peer_that_fails_is_one_line() -> None:
    with pytest.raises(UserError, match=r"mine cannot be asked \(ValueError: broken\): pip install") as raised:
        peers._ask("mine", "raise ValueError('broken')")
    assert "\n" not in str(raised.value)
    assert peers._ask("mine", "found = given['x'] + 1", x=np.arange(3)).tolist() == [1, 2, 3]
