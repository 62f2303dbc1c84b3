"""A checkpoint of Unified-IO 2 with random weights, tiny, in the published layout: its Python runs this where it is.

    cd REPOSITORY && PYTHON unifiedio2_tiny.py FOLDER

Sizes that the public code fixes stay: 1024 tokens of a picture, 512 of a sound, and the vocoder, which is written into
the repository, where it is published.
"""

import os
import sys
from pathlib import Path

WORKERS = os.path.join(
    os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "baselines", "published", "workers"
)
SIGNS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;?!'\"[]{}<>_-"
LAYERS = {"emb_dim": 32, "num_heads": 2, "head_dim": 16, "mlp_dim": 32}
SPECIAL = 1200 + 18 + 7  # places, inputs and tasks that its tokenizer adds to the words


def write(folder):
    import torch
    from uio2.config import Config
    from uio2.model import UnifiedIOModel
    from uio2.preprocessing import UnifiedIOPreprocessor

    torch.manual_seed(0)
    for name in ("model", "preprocessor"):
        os.makedirs(os.path.join(folder, name))
    words = write_tokenizer(os.path.join(folder, "tokenizer.model"))
    halves = {"_".join([half, name]): 32 for half in ("encoder", "decoder") for name in ("hidden_size", "mlp_dim")}
    heads = {"encoder_num_heads": 2, "decoder_num_heads": 2, "encoder_head_dim": 16, "decoder_head_dim": 16}
    # The size of masks that are made anew in every layer for every token of a picture or a sound, and then not used.
    masks = {"default_image_size": (64, 64), "default_audio_size": (64, 64)}
    config = Config.from_dict(
        {
            "t5_config": {**LAYERS, **masks, "vocab_size": words, "num_encoder_layers": 2, "num_decoder_layers": 2},
            "image_history_cfg": LAYERS,
            "audio_history_cfg": LAYERS,
            "image_vqgan": {"ch": 32, "num_res_blocks": 1},
            "audio_vqgan": {**halves, **heads, "encoder_num_layers": 1, "decoder_num_layers": 1},
            "image_vit_cfg": {**LAYERS, "num_layers": 2},
            "audio_vit_cfg": {**LAYERS, "num_layers": 2},
        }
    )
    network = UnifiedIOModel(config)
    network.text_token_embedder.weight.data *= 0.1  # else every word is followed by itself
    network.encoder.encoder_norm.scale.data *= 10  # else inputs hardly matter
    for embedding in (network.image_token_embedder, network.audio_token_embedder):
        embedding.weight.data[1] = 0  # the end, which is no more likely than any other
    network._save_pretrained(Path(folder, "model"))
    UnifiedIOPreprocessor.from_config(config, os.path.join(folder, "tokenizer.model")).save_pretrained(
        os.path.join(folder, "preprocessor")
    )
    write_vocoder(os.path.join("uio2", "hifigan", "checkpoints"))


def write_tokenizer(path):
    """One of letters that begins as LLaMA's does, with unknown, beginning and end. How many words there will be."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    kinds = model.SentencePiece
    model.pieces.add(piece="<unk>", score=0.0, type=kinds.UNKNOWN)
    for piece in ("<s>", "</s>"):
        model.pieces.add(piece=piece, score=0.0, type=kinds.CONTROL)
    for sign in "▁" + SIGNS:
        model.pieces.add(piece=sign, score=-1.0, type=kinds.NORMAL)
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.remove_extra_whitespaces = False
    with open(path, "wb") as file:
        file.write(model.SerializeToString())
    return len(model.pieces) + SPECIAL


def write_vocoder(folder):
    import json
    import types

    import torch
    from uio2.hifigan.models import Generator

    with open(os.path.join(folder, "config.json")) as file:
        vocoder = Generator(types.SimpleNamespace(**json.load(file)))
    torch.save({"generator": vocoder.state_dict()}, os.path.join(folder, "g_00930000"))


if __name__ == "__main__":
    sys.path.insert(0, WORKERS)
    import unifiedio2

    unifiedio2.bridge()
    write(sys.argv[1])
