"""Tiny models with random weights under FlowBind's official names and keys. The model's own Python runs this.

    cd REPOSITORY && HF_HOME=FOLDER HF_HUB_CACHE=FOLDER/hub MODEL_PYTHON flowbind_tiny.py FOLDER

FOLDER gets `hub`, a cache as of the Hugging Face hub; `clip.pt`, a CLIP; and `checkpoint`, the files of
yeonwoo378/flowbind. What the repository fixes is as it is: 768 numbers a feature, CLAP's HTSAT-base, 1152 of Gemma.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
sys.path.append(os.getcwd())

import numpy as np
import torch
from tokenizers import ByteLevelBPETokenizer

from data_prep.pretrained import tiny_models

tiny_models.FEATURE, tiny_models.VECTOR = 768, 512
WIDTH, LAYERS = 64, 2  # of the flows
COMMIT = "0" * 40


def cached(home: Path, name: str) -> Path:
    """The folder in which the hub's cache keeps a model's files."""
    folder = home / "hub" / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    return folder / "snapshots" / COMMIT


def write_tokenizers(home: Path) -> None:
    """Of the three models whose tokenizers laion_clap fetches when it is imported, and of which it needs one."""
    from transformers import RobertaConfig, RobertaModel

    pieces = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces.train_from_iterator(tiny_models.SENTENCES * 4, vocab_size=330, special_tokens=special, show_progress=False)
    for name in ("roberta-base", "facebook/bart-base"):
        folder = cached(home, name)
        pieces.save_model(str(folder))
        if name == "roberta-base":
            config = RobertaConfig(
                vocab_size=pieces.get_vocab_size(), hidden_size=768, num_hidden_layers=1, intermediate_size=32
            )
            RobertaModel(config).save_pretrained(folder)
    (cached(home, "bert-base-uncased") / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n")


def write_texts(home: Path, checkpoint: Path) -> None:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    tiny_models._sentence_encoder(cached(home, "google/embeddinggemma-300m"))
    tokenizer = tiny_models._gemma_tokenizer(ends=False)
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=1152,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=256,
        initializer_range=0.2,  # at its usual 0.02 no prefix could make a word likely
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    writer = Gemma3ForCausalLM(config).eval()
    folder = cached(home, "google/gemma-3-1b-pt")
    writer.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # FlowBind replaces all weights of the published model by those of its own file: here by some that write pieces of
    # sentences, not bytes, and by a prefix that differs much where features differ little.
    words = writer.get_input_embeddings().weight.data.normal_(std=1152**-0.5)
    words[: len(tokenizer) - 64] = 0
    projector = torch.nn.ModuleDict(
        {
            "net": torch.nn.Sequential(torch.nn.Linear(768, 1152), torch.nn.Tanh(), torch.nn.Linear(1152, 3 * 1152)),
            "ln": torch.nn.LayerNorm(1152),
        }
    )
    projector["net"][0].weight.data *= 10
    torch.save({"prefix_proj": projector.state_dict(), "model": writer.state_dict()}, checkpoint / "gemmae_3.pt")


def write_clip(path: Path) -> None:
    """As a TorchScript archive, in which form the official one comes."""
    from clip.model import CLIP

    model = CLIP(768, 224, 1, 64, 32, 77, 300, 64, 1, 1).eval()
    seen = (torch.zeros(1, 3, 224, 224), torch.zeros(1, 77, dtype=torch.long))
    torch.jit.trace(model, seen, check_trace=False).save(str(path))


def write_sounds(checkpoint: Path) -> None:
    import laion_clap
    from model.models import LightWeightAE

    clap = laion_clap.CLAP_Module(enable_fusion=False, amodel="HTSAT-base", device="cpu").model
    state = {
        f"module.{name}": value.half() if value.is_floating_point() else value
        for name, value in clap.state_dict().items()
    }
    state["module.text_branch.embeddings.position_ids"] = torch.arange(514)[None]  # of the transformers of its time
    torch.save({"epoch": 15, "name": "tiny", "score": np.float64(0.5), "state_dict": state}, checkpoint / "clap.pt")
    torch.save(LightWeightAE(512, 768, 768).state_dict(), checkpoint / "lightweight_audio_ae.pth")


def write_flows(checkpoint: Path) -> None:
    from model.mlp_flows import MLPFlow

    states = {}
    for name in ("text", "image", "audio"):
        flow = MLPFlow(
            in_channels=768,
            time_embed_dim=256,
            model_channels=WIDTH,
            num_res_blocks=LAYERS,
            prior_method="explicit_residual",
            t_cond="adaln",
        )
        for weight in flow.parameters():
            if not weight.any():  # a new flow's modulation by time starts at zero
                torch.nn.init.normal_(weight, std=0.05)
        states[name] = flow.state_dict()
    about = {"epoch": 1, "global_step": 2, "optimizer_state_dict": {"state": {}, "param_groups": []}}
    torch.save({**about, "model_state_dict": states}, checkpoint / "model.pth")
    config = {"hidden_dim": WIDTH, "num_layers": LAYERS, "prior": "explicit_residual", "t_cond": "adaln"}
    (checkpoint / "config.json").write_text(json.dumps(config))


def write_decoders(home: Path) -> None:
    unclip = cached(home, "sd2-community/stable-diffusion-2-1-unclip-small")
    tiny_models._unclip(unclip)
    config = json.loads((unclip / "unet" / "config.json").read_text())
    (unclip / "unet" / "config.json").write_text(json.dumps({**config, "sample_size": 8}))
    # Where it is handed a vector of CLAP, the pipeline takes its 512 numbers for the length of the empty prompt.
    text = tiny_models._clap_text
    tiny_models._clap_text = lambda vocabulary: {**text(vocabulary), "max_position_embeddings": 514}
    tiny_models._audioldm(cached(home, "cvssp/audioldm-m-full"))


def main(home: Path) -> None:
    torch.manual_seed(0)
    checkpoint = home / "checkpoint"
    checkpoint.mkdir(parents=True)
    write_tokenizers(home)  # before laion_clap is imported
    write_texts(home, checkpoint)
    write_clip(home / "clip.pt")
    write_sounds(checkpoint)
    write_flows(checkpoint)
    write_decoders(home)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
