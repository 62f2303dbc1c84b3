"""A shrunk copy of CoDi's repository and a checkpoint for it, random and in the published layout.

CoDi's Python runs it in its repository; FOLDER then has repository/ and checkpoint/:

    cd REPOSITORY && PYTHON codi_tiny.py FOLDER

The code is the repository's own. Shrunk are its configuration, and the sizes of the vocoder and of the audio encoder,
which are constants in its code. What its inference fixes stays: 768 numbers of a sentence, 8 x 256 x 16 of a sound.
"""

import json
import os
import shutil
import sys

WORKERS = os.path.join(
    os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "baselines", "published", "workers"
)
WIDTH = 32  # of the space that all conditions share
DIFFUSER = {
    "model_channels": 64,
    "channel_mult": [1, 1, 1, 1],
    "channel_mult_connector": [1, 1, 1],
    "num_noattn_blocks": [1, 1, 1, 1],
    "with_attn": [False, True, False, False],
    "with_connector": [False, True, False, False],
    "connector_output_channel": WIDTH,
    "context_dim": WIDTH,
    "num_heads": 2,
}
NEARLY_ZERO = ("clip.", "clap.", "optimus.decoder.", "audioldm.vocoder.")
LAYERS = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
HTSAT = os.path.join("core", "models", "encoders", "clap_modules", "open_clip")
HIFIGAN = os.path.join("core", "models", "latent_diffusion", "vae", "audioldm_modules", "hifigan", "utilities.py")


def shrink(folder):
    """Copy the code, with smaller sizes."""
    import yaml

    for name in ("core", "configs"):
        shutil.copytree(name, os.path.join(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
    replace(os.path.join(folder, HIFIGAN), '"upsample_initial_channel": 1024', '"upsample_initial_channel": 32')
    replace(os.path.join(folder, HTSAT, "htsat.py"), "embed_dim=96", "embed_dim=32")
    replace(
        os.path.join(folder, HTSAT, "htsat.py"),
        "depths=[2, 2, 6, 2],\n                num_heads",
        "depths=[1, 1, 1, 1],\n                num_heads",
    )
    replace(os.path.join(folder, HTSAT, "model_configs", "HTSAT-tiny.json"), '"embed_dim": 768', '"embed_dim": 256')

    def edit(name, change):
        path = os.path.join(folder, "configs", "model", name + ".yaml")
        with open(path, encoding="utf-8") as file:
            config = yaml.safe_load(file)
        change(config)
        with open(path, "w", encoding="utf-8") as file:
            yaml.safe_dump(config, file)

    def diffusers(config):
        for name in ("openai_unet_2d", "openai_unet_2d_audio", "openai_unet_0dmd"):
            config[name]["args"].update(DIFFUSER)

    def sentences(config):
        config["optimus_bert_encoder"]["args"]["config"].update(LAYERS)
        config["optimus_gpt2_decoder"]["args"]["config"].update(LAYERS, n_embd=16, n_head=2, n_layer=1)

    edit("openai_unet", diffusers)
    edit("optimus", sentences)
    edit("clap", lambda config: config["clap_audio"]["args"].update(amodel="HTSAT-tiny", joint_embed_shape=WIDTH))
    edit("sd", lambda config: config["sd_autoencoder"]["args"]["ddconfig"].update(ch=32, num_res_blocks=1))
    edit("audioldm", lambda config: config["audioldm_autoencoder"]["args"]["ddconfig"].update(ch=32, num_res_blocks=1))


def replace(path, old, new):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    assert old in text, (path, old)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text.replace(old, new))


def write_clip(folder):
    """CLIP's configuration, its preparation of pictures, and a vocabulary of single letters."""
    os.makedirs(folder)
    letters = [chr(code) for code in range(33, 127)]
    words = letters + [letter + "</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    files = {
        "vocab.json": {word: place for place, word in enumerate(words)},
        "tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77},
        "special_tokens_map.json": {
            "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
        },
        "config.json": {
            "model_type": "clip",
            "projection_dim": WIDTH,
            "text_config_dict": dict(LAYERS, vocab_size=len(words), **ends),
            "vision_config_dict": dict(LAYERS, image_size=224, patch_size=56),
        },
        "preprocessor_config.json": {  # as published
            "crop_size": 224,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "resample": 3,
            "size": 224,
        },
    }
    for name, content in files.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            json.dump(content, file)
    with open(os.path.join(folder, "merges.txt"), "w", encoding="utf-8") as file:
        file.write("#version: 0.2\n")


def write_weights(folder, runner):
    """The four files. Layers that begin at zero or nearly so, through which nothing would pass, begin larger."""
    import torch

    torch.manual_seed(0)
    net = runner.built(os.path.join(folder, runner.CLIP)).net
    for name, value in net.named_parameters():
        if not value.any() or (value.dim() > 1 and name.startswith(NEARLY_ZERO)):
            torch.nn.init.normal_(value, std=0.2)
    parts = {name: {} for name in runner.PARTS}
    for key, value in net.state_dict().items():
        parts[part_of(key, runner.PARTS)][key] = value
    for name, part in parts.items():
        torch.save(part, os.path.join(folder, name))


def part_of(key, names):
    """The file in which a key is. The names are those of the encoders and of the diffusers below, in this order."""
    for kind, name in enumerate(("text", "audio", "image"), 1):
        if key.startswith("model.diffusion_model.unet_" + name + "."):
            return names[kind]
    return names[0]


if __name__ == "__main__":
    place = os.path.abspath(sys.argv[1])
    shrink(os.path.join(place, "repository"))
    os.chdir(os.path.join(place, "repository"))
    sys.path[:0] = [os.getcwd(), WORKERS]
    import codi

    write_clip(os.path.join(place, "checkpoint", codi.CLIP))
    write_weights(os.path.join(place, "checkpoint"), codi)
