"""Tiny models with random weights of every pretrained class that image_text_audio uses, and a models.toml for them.

They stand in for the published weights where there are none: the same classes are saved and loaded by the same code,
so that everything from raw files to scores runs on a laptop, and only its numbers mean nothing. `bench tiny-models`
calls `write`. Eleven models, 6 MB, some ten seconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmark.api import UserError
from benchmark.files import write_atomic
from benchmark.runtime import seeded
from data_prep.pretrained.pretrained_codecs import SETTING, package, quiet

FEATURE = 32  # of pictures and captions; the autoencoder of sounds brings theirs to it
VECTOR = 16  # of CLAP
SHRINK = 16  # divides every channel of the three single-file networks
SENTENCES = (  # what the tokenizers learn their pieces from
    "a photo of a dog on a beach",
    "a cat sits on the mat beside a window",
    "rain falls while a dog barks in the distance",
    "the sound of a helicopter over the sea waves",
    "a man holds a surfboard and a woman rides a bicycle",
    "a rooster crows, a fire crackles and a clock ticks",
)
MODELS = """\
# Tiny models with random weights, for tests and for trying the commands: no number that they give means anything.

[text_encoder]
folder = "text_encoder"

[image_encoder]
folder = "image_encoder"

[audio_encoder]
folder = "audio_encoder"

[text_decoder]
folder = "text_decoder"
words = 16

[image_decoder]
folder = "image_decoder"
steps = 2

[audio_decoder]
folder = "audio_decoder"
steps = 2
seconds = 1.28

[judge_clip]
folder = "judge_clip"

[judge_clap]
folder = "judge_clap"

[judge_wav2clip]
file = "wav2clip.pt"

[judge_inception]
file = "inception.pth"

[judge_vggish]
file = "vggish.pth"
"""


def write(folder: Path, states: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Write every model and models.toml into a new or empty folder.

    states: file name -> tensors of the single-file networks, which the judges make
    (benchmark.judges.pretrained_judges.tiny). Raises UserError for a folder that holds anything else, and where a
    package is not installed.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "models.toml").exists())):
        raise UserError(
            f"{folder} is there and not empty: name a new folder for the tiny models, and set {SETTING} to it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with quiet("image_decoder"), seeded("tiny models"):
        _sentence_encoder(folder / "text_encoder")
        _clip(folder / "image_encoder", FEATURE)
        _clip(folder / "judge_clip", FEATURE)
        _clap(folder / "audio_encoder")
        _clap(folder / "judge_clap")
        _writer(folder / "text_decoder")
        _unclip(folder / "image_decoder")
        _audioldm(folder / "audio_decoder")
    for name, tensors in states.items():
        torch.save(dict(tensors), folder / name)
    write_atomic(folder / "models.toml", MODELS.encode())


# ------------------------------------------------------------------------------------------ tokenizers


def _pieces(special: Sequence[str], unknown: str) -> Any:
    """A byte-level tokenizer of the special tokens, the bytes and some pieces of SENTENCES."""
    tokenizers = package("tokenizers")
    found = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=unknown))
    found.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=256 + len(special) + 64,
        special_tokens=list(special),
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    found.train_from_iterator(SENTENCES * 4, trainer)
    return found


def _gemma_tokenizer(ends: bool) -> Any:
    """ends: whether sentences get an end token besides a start token, as EmbeddingGemma's do."""
    transformers, tokenizers = package("transformers"), package("tokenizers")
    pieces = _pieces(("<pad>", "<eos>", "<bos>", "<unk>"), "<unk>")
    pieces.post_processor = tokenizers.processors.TemplateProcessing(
        "<bos> $A <eos>" if ends else "<bos> $A", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )


def _roberta_tokenizer(folder: Path) -> int:
    """Written into the folder; the size of its vocabulary."""
    tokenizers, transformers = package("tokenizers"), package("transformers")
    pieces = _pieces(("<s>", "<pad>", "</s>", "<unk>", "<mask>"), "<unk>")
    pieces.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=77,
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def _clip_tokenizer(folder: Path) -> Any:
    """Written into the folder, and its ids of start and end, which stand last, as in CLIP's own."""
    tokenizers, transformers = package("tokenizers"), package("transformers")
    pieces = _pieces((), "")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces, model_max_length=77, model_input_names=["input_ids", "attention_mask"]
    )
    start, end = "<|startoftext|>", "<|endoftext|>"
    tokenizer.add_special_tokens({"bos_token": start, "eos_token": end, "pad_token": end, "unk_token": end})
    first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        f"{start} $A {end}", special_tokens=[(start, first), (end, last)]
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


# ------------------------------------------------------------------------------------------ models


def _save(model: Any, folder: Path) -> None:
    model.eval().save_pretrained(folder, safe_serialization=True)


def _json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _gemma_config(vocabulary: int, **more: Any) -> Any:
    return package("transformers").Gemma3TextConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=512,
        max_position_embeddings=1024,
        initializer_range=0.2,  # at its usual 0.02 no prefix could make a word likely
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        **more,
    )


def _writer(folder: Path) -> None:
    tokenizer = _gemma_tokenizer(ends=False)
    _save(package("transformers").Gemma3ForCausalLM(_gemma_config(len(tokenizer))), folder)
    tokenizer.save_pretrained(folder)


def _sentence_encoder(folder: Path) -> None:
    """The files of a sentence-transformers model with EmbeddingGemma's modules."""
    from safetensors.torch import save_file

    tokenizer = _gemma_tokenizer(ends=True)
    _save(
        package("transformers").Gemma3TextModel(_gemma_config(len(tokenizer), use_bidirectional_attention=True)),
        folder,
    )
    tokenizer.save_pretrained(folder)
    kinds = ("Transformer", "Pooling", "Dense", "Dense", "Normalize")
    paths = [f"{number}_{kind}" if number else "" for number, kind in enumerate(kinds)]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    _json(folder / "modules.json", modules)
    _json(folder / paths[1] / "config.json", {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})
    for path, sizes in ((paths[2], (32, 64)), (paths[3], (64, FEATURE))):
        config = {"in_features": sizes[0], "out_features": sizes[1], "bias": False}
        _json(folder / path / "config.json", config | {"activation_function": "torch.nn.modules.linear.Identity"})
        weight = torch.randn(sizes[1], sizes[0]) / sizes[0] ** 0.5
        save_file({"linear.weight": weight}, folder / path / "model.safetensors")


def _clip(folder: Path, size: int) -> None:
    transformers = package("transformers")
    tokenizer = _clip_tokenizer(folder)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower["projection_dim"] = size
    config = transformers.CLIPConfig(
        text_config=tower
        | ids
        | {"vocab_size": len(tokenizer), "max_position_embeddings": 77, "pad_token_id": tokenizer.pad_token_id},
        vision_config=tower | {"image_size": 32, "patch_size": 8},
        projection_dim=size,
    )
    _save(transformers.CLIPModel(config), folder)
    _json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 32},
            "crop_size": {"height": 32, "width": 32},
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
    )


def _clap(folder: Path) -> None:
    """One second at 48 kHz instead of ten."""
    transformers = package("transformers")
    vocabulary = _roberta_tokenizer(folder)
    config = transformers.ClapConfig(
        text_config=_clap_text(vocabulary),
        audio_config={
            "spec_size": 64,
            "window_size": 4,
            "num_mel_bins": 16,
            "patch_size": 4,
            "patch_stride": [4, 4],
            "depths": [1, 1],
            "num_attention_heads": [2, 2],
            "patch_embeds_hidden_size": 16,
            "hidden_size": 32,
            "num_classes": 4,
            "projection_dim": VECTOR,
            "num_hidden_layers": 2,
            "enable_fusion": False,
        },
        projection_dim=VECTOR,
    )
    _save(transformers.ClapModel(config), folder)
    _json(
        folder / "preprocessor_config.json",
        {
            "feature_extractor_type": "ClapFeatureExtractor",
            "feature_size": 16,
            "sampling_rate": 48_000,
            "hop_length": 480,
            "fft_window_size": 1024,
            "max_length_s": 1,
            "frequency_min": 50,
            "frequency_max": 14_000,
            "truncation": "rand_trunc",
            "padding": "repeatpad",
        },
    )


def _clap_text(vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 80,
        "projection_dim": VECTOR,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }


def _unclip(folder: Path) -> None:
    transformers, diffusers = package("transformers"), package("diffusers")
    normalizer = package("diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer")
    tokenizer = _clip_tokenizer(folder / "tokenizer")
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        projection_dim=FEATURE,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **tower,
    )
    vision = transformers.CLIPVisionConfig(image_size=32, patch_size=8, projection_dim=FEATURE, **tower)
    pipeline = diffusers.StableUnCLIPImg2ImgPipeline(
        feature_extractor=transformers.CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
        image_encoder=transformers.CLIPVisionModelWithProjection(vision),
        image_normalizer=normalizer.StableUnCLIPImageNormalizer(embedding_dim=FEATURE),
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=tokenizer,
        text_encoder=transformers.CLIPTextModel(text),
        unet=diffusers.UNet2DConditionModel(
            sample_size=32,
            in_channels=4,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(16, 32),
            norm_num_groups=8,
            attention_head_dim=(2, 4),
            class_embed_type="projection",
            projection_class_embeddings_input_dim=2 * FEATURE,
            cross_attention_dim=32,
            layers_per_block=1,
            use_linear_projection=True,
        ),
        scheduler=diffusers.PNDMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=True, steps_offset=1
        ),
        vae=_pictures_vae(3),
    )
    _save_pipeline(pipeline, folder)


def _pictures_vae(channels: int) -> Any:
    return package("diffusers").AutoencoderKL(
        block_out_channels=(16, 16),
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
    )


def _audioldm(folder: Path) -> None:
    """16 mel bands, 160 samples a frame, at 16 kHz."""
    transformers, diffusers = package("transformers"), package("diffusers")
    vocabulary = _roberta_tokenizer(folder / "tokenizer")
    pipeline = diffusers.AudioLDMPipeline(
        vae=_pictures_vae(1),
        text_encoder=transformers.ClapTextModelWithProjection(transformers.ClapTextConfig(**_clap_text(vocabulary))),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        unet=diffusers.UNet2DConditionModel(
            sample_size=32,
            in_channels=4,
            out_channels=4,
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=(16, 32),
            class_embed_type="simple_projection",
            projection_class_embeddings_input_dim=VECTOR,
            class_embeddings_concat=True,
            attention_head_dim=4,
        ),
        scheduler=diffusers.DDIMScheduler(
            beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
        ),
        vocoder=_audible(
            transformers.SpeechT5HifiGanConfig(
                model_in_dim=16,
                sampling_rate=16_000,
                upsample_initial_channel=16,
                upsample_rates=[10, 16],
                upsample_kernel_sizes=[20, 32],
                resblock_kernel_sizes=[3],
                resblock_dilation_sizes=[[1, 3]],
                normalize_before=False,
            )
        ),
    )
    _save_pipeline(pipeline, folder)


def _audible(config: Any) -> Any:
    """A vocoder whose random weights keep the variance of what goes in: with its own it would be silent."""
    vocoder = package("transformers").SpeechT5HifiGan(config)
    with torch.no_grad():
        for weight in vocoder.parameters():
            if weight.ndim == 3:
                weight.normal_(std=weight[0].numel() ** -0.5)
    return vocoder


def _save_pipeline(pipeline: Any, folder: Path) -> None:
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipeline.save_pretrained(folder, safe_serialization=True)
