"""TangoFlux with random weights, tiny, in the published layout: TangoFlux's Python runs this in its repository.

    cd REPOSITORY && PYTHON tangoflux_tiny.py FOLDER            # writes a checkpoint
    cd REPOSITORY && PYTHON tangoflux_tiny.py RUNNER.py         # the runner, with the autoencoder's size of the above

The public code fixes the autoencoder's size, and a head's 128 numbers; all else is in config.json.
"""

import functools
import importlib.util
import json
import os
import runpy
import sys

WORKERS = os.path.join(
    os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "baselines", "published", "workers"
)
WIDTH = 32  # of the text encoder, and of what the transformer hears
FRAMES = 30  # of a sound: 2048 samples each
LETTERS = [chr(code) for code in range(97, 123)]


def runner():
    """The runner as a module, under another name than the repository's package has."""
    sys.path.insert(0, WORKERS)
    spec = importlib.util.spec_from_file_location("runner", os.path.join(WORKERS, "tangoflux.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shrink():
    import diffusers

    diffusers.AutoencoderOobleck = functools.partial(
        diffusers.AutoencoderOobleck, encoder_hidden_size=4, decoder_channels=4, channel_multiples=[1, 1, 1, 1, 1]
    )


def write(folder):
    import tangoflux
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    write_t5(os.path.join(folder, "flan-t5-large"))
    config = {
        "num_layers": 1,
        "num_single_layers": 1,
        "in_channels": 64,
        "attention_head_dim": 128,
        "joint_attention_dim": WIDTH,
        "num_attention_heads": 1,
        "audio_seq_len": FRAMES,
        "max_duration": 30,
        "uncondition": False,
        "text_encoder_name": "google/flan-t5-large",
    }
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file)
    network = tangoflux.TangoFlux(config, text_encoder_dir=os.path.join(folder, "flan-t5-large"))
    network.transformer.proj_out.weight.data *= 30  # else captions and seeds are lost in 16 bits
    state = network.state_dict()
    del state["text_encoder.encoder.embed_tokens.weight"]  # as published: it is text_encoder.shared.weight
    save_file(state, os.path.join(folder, "tangoflux.safetensors"))
    save_file(tangoflux.AutoencoderOobleck().state_dict(), os.path.join(folder, "vae.safetensors"))


def write_t5(folder):
    """The whole of a T5, whose encoder is loaded."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import T5Config, T5ForConditionalGeneration, T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)] + [(letter, -3.0) for letter in LETTERS]
    words = Tokenizer(models.Unigram(pieces, unk_id=2))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    T5TokenizerFast(tokenizer_object=words, extra_ids=0, model_max_length=512).save_pretrained(folder)
    layers = {"d_model": WIDTH, "d_kv": 8, "d_ff": WIDTH, "num_layers": 2, "num_heads": 4}
    config = T5Config(vocab_size=len(pieces), feed_forward_proj="gated-gelu", tie_word_embeddings=False, **layers)
    T5ForConditionalGeneration(config).save_pretrained(folder)


if __name__ == "__main__":
    shrink()
    if sys.argv[1].endswith(".py"):
        sys.path[0] = os.path.dirname(sys.argv[1])
        runpy.run_path(sys.argv[1], run_name="__main__")
    else:
        runner().bridge()
        write(sys.argv[1])
