"""FLUX, LLaVA-NeXT and Qwen2-Audio: their classes on tiny models with random weights, saved and loaded as published
ones are, from real rows to things in the form in which real ones are scored."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.published import adapter
from benchmark import registry
from benchmark.api import Cell, Inapplicable, UserError
from benchmark.runtime import Draws, seeded

transformers = pytest.importorskip("transformers", reason="specialists need the extra image-text-audio")
diffusers = pytest.importorskip("diffusers", reason="specialists need the extra image-text-audio")

from data_prep.pretrained import tiny_models  # noqa: E402

DIRECTIONS = {"flux": ("text", "image"), "llava_next": ("image", "text"), "qwen2_audio": ("audio", "text")}
LANGUAGE_MODEL = {  # of Llama and of Qwen alike
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
TEMPLATE = "{% for part in messages[0]['content'] %}{{ part.text if part.type == 'text' else MARK }} {% endfor %}"


class Things:
    """Rows of pictures of one brightness, tones and sentences."""

    identity, sample_rate = "things", 8000

    def raw(self, split: str, indices: Tensor) -> dict[str, Any]:
        rows = len(indices)
        time = torch.arange(8000) / 8000
        return {
            "text": [f"a photo of a dog on a beach, {k}" for k in indices.tolist()],
            "image": (indices / 10)[:, None, None, None].expand(rows, 3, 24, 24).float(),
            "audio": torch.stack([0.5 * torch.sin(600 * (k + 1) * time) for k in indices.tolist()]),
        }


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("specialists")
    with seeded("tiny specialists"):
        write_flux(folder / "flux")
        write_llava_next(folder / "llava_next")
        write_qwen2_audio(folder / "qwen2_audio")
    return folder


@pytest.fixture
def here(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """external.toml of a machine that has them."""
    path = tmp_path / "external.toml"
    path.write_text(
        "".join(f'[{name}]\ncheckpoint = "{checkpoints / name}"\ndevice = "cpu"\n\n' for name in DIRECTIONS)
        .replace('flux"\n', 'flux"\nside = 16\nsteps = 2\n')
        .replace('llava_next"\n', 'llava_next"\nwords = 5\n')
        .replace('qwen2_audio"\n', 'qwen2_audio"\nwords = 5\n')
    )
    monkeypatch.setenv(adapter.SETTING, str(tmp_path))
    return path


def tokenizer(*special: str) -> Any:
    pieces = tiny_models._pieces(("<pad>", "<eos>", "<bos>", "<unk>", *special), "<unk>")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        additional_special_tokens=list(special),
        model_input_names=["input_ids", "attention_mask"],
    )


def write_flux(folder: Path) -> None:
    first, last = (tiny_models._clip_tokenizer(folder / name) for name in ("one", "two"))
    clip = transformers.CLIPTextConfig(
        vocab_size=len(first),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=32,
        max_position_embeddings=77,
        bos_token_id=first.bos_token_id,
        eos_token_id=first.eos_token_id,
        pad_token_id=first.pad_token_id,
    )
    t5 = transformers.T5Config(
        vocab_size=len(last), d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=True,
    )
    autoencoder = diffusers.AutoencoderKL(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=1,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
        scaling_factor=1.5,
    )
    diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder,
        text_encoder=transformers.CLIPTextModel(clip),
        tokenizer=first,
        text_encoder_2=transformers.T5EncoderModel(t5),
        tokenizer_2=last,
        transformer=transformer,
    ).save_pretrained(folder, safe_serialization=True)


def write_llava_next(folder: Path) -> None:
    words = tokenizer("<image>")
    place = words.convert_tokens_to_ids("<image>")
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
            projection_dim=32,
        ),
        text_config=transformers.LlamaConfig(vocab_size=len(words), **LANGUAGE_MODEL),
        image_token_index=place,
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
        vision_feature_layer=-2,
    )
    tiny_models._save(transformers.LlavaNextForConditionalGeneration(config), folder)
    kind = getattr(transformers, "LlavaNextImageProcessorPil", None) or transformers.LlavaNextImageProcessor
    images = kind(
        size={"shortest_edge": 16},
        crop_size={"height": 16, "width": 16},
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
    )
    transformers.LlavaNextProcessor(
        images,
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("MARK", "'<image>'"),
    ).save_pretrained(folder)


def write_qwen2_audio(folder: Path) -> None:
    words = tokenizer("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
    config = transformers.Qwen2AudioConfig(
        audio_config=transformers.Qwen2AudioEncoderConfig(
            num_mel_bins=16,
            d_model=32,
            encoder_layers=1,
            encoder_attention_heads=2,
            encoder_ffn_dim=32,
            max_source_positions=50,
        ),
        text_config=transformers.Qwen2Config(vocab_size=len(words), **LANGUAGE_MODEL),
        audio_token_index=words.convert_tokens_to_ids("<|AUDIO|>"),
    )
    tiny_models._save(transformers.Qwen2AudioForConditionalGeneration(config), folder)
    sounds = transformers.WhisperFeatureExtractor(feature_size=16, sampling_rate=16_000, chunk_length=1)
    mark = "'<|audio_bos|><|AUDIO|><|audio_eos|>'"
    transformers.Qwen2AudioProcessor(sounds, words, chat_template=TEMPLATE.replace("MARK", mark)).save_pretrained(
        folder
    )


def made(name: str, rows: int = 3, first: int = 0) -> Any:
    method = registry.load("method", name)((), None)
    method.bind(Things())
    given, want = DIRECTIONS[name]
    cell = Cell("things", (given,), (want,))
    draws = Draws("render", cell, 0, rows=rows, first_row=first)
    return method.things(cell, "test", torch.arange(first, first + rows), draws)[want], method


def test_flux_paints_its_own_picture_of_each_caption(here: Path) -> None:
    pictures, _ = made("flux")
    assert pictures.shape == (3, 3, 24, 24) and torch.isfinite(pictures).all()
    assert not torch.equal(pictures[0], pictures[1])  # of 16 x 16, brought to the size of real ones
    assert torch.equal(pictures, made("flux")[0])
    assert torch.equal(pictures[:2], made("flux", rows=2)[0])


@pytest.mark.parametrize("name", ["llava_next", "qwen2_audio"])
def test_a_caption_depends_on_what_is_given_and_is_one_line(here: Path, name: str) -> None:
    captions, method = made(name)
    assert all(isinstance(text, str) and text == " ".join(text.split()) for text in captions)
    assert len(set(captions)) > 1 and captions == made(name)[0]
    prompt = adapter.known(name)["settings"]["prompt"]
    assert prompt in method.loaded.asked and prompt not in " ".join(captions)
    assert method.protocol()["settings"]["prompt"] == prompt
    assert len(method.protocol()["checkpoint"]) == 10


def test_another_prompt_is_another_protocol(here: Path) -> None:
    before = made("llava_next")[1].protocol()
    here.write_text(here.read_text().replace("[llava_next]", '[llava_next]\nprompt = "What?"'))
    after = made("llava_next")[1]
    assert after.protocol() != before and "What?" in after.loaded.asked


def test_other_directions_are_refused(here: Path) -> None:
    for name, (given, want) in DIRECTIONS.items():
        method = registry.load("method", name)((), None)
        method.bind(Things())
        cell = Cell("things", (want,), (given,))
        with pytest.raises(Inapplicable, match=f"goes {given} -> {want} alone"):
            method.things(cell, "test", torch.arange(1), Draws("render", cell, 0, rows=1))


@pytest.mark.parametrize("name", ["llava_next", "qwen2_audio"])
def test_a_part_of_a_checkpoint_is_refused(here: Path, checkpoints: Path, tmp_path: Path, name: str) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    part = tmp_path / "part"
    shutil.copytree(checkpoints / name, part)
    tensors = load_file(part / "model.safetensors")
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
    here.write_text(here.read_text().replace(str(checkpoints / name), str(part)))
    with pytest.raises(UserError, match="a partial load: 1 keys do not fit"):
        made(name)


@pytest.mark.parametrize("name", sorted(DIRECTIONS))
def test_what_is_known_of_them_is_complete(name: str) -> None:
    known = tomllib.loads((adapter.WORKERS / f"{name}.toml").read_text())
    assert {"label", "checkpoint", "licence", "gigabytes", "memory", "directions", "setup", "settings"} <= known.keys()
    assert known["directions"] == [" -> ".join(DIRECTIONS[name])]
    assert known["label"] == registry.card("method", name).label
    assert (registry.ROOT / "docs" / "external" / f"{name}.md").is_file()
