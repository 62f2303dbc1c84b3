"""A tiny checkpoint of OmniFlow with random weights, in the published layout. OmniFlow's own Python runs it.

    cd REPOSITORY && PYTHON omniflow_tiny.py FOLDER

Sizes that the public code fixes stay: 512 pixels, 8 x 256 x 16 numbers of a sound, 4096 of a word, 768 of an embedding.
"""

import importlib.util
import json
import os
import sys

WORKERS = os.path.join(
    os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "baselines", "published", "workers"
)
LETTERS = [chr(code) for code in range(97, 123)]
WIDTH, SECOND = 32, 48  # of layers, and of the second text encoder's embedding
LATENT, TOKENS = 24, 8  # of the text autoencoder


def runner():
    """The runner as a module, under another name than the repository's package has."""
    sys.path.insert(0, WORKERS)
    spec = importlib.util.spec_from_file_location("runner", os.path.join(WORKERS, "omniflow.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(folder):
    import torch
    from transformers import LlamaConfig

    torch.manual_seed(0)
    write_clip(os.path.join(folder, "hub", "CLIP-ViT-L-14-DataComp.XL-s13B-b90K"), text_encoder_too=folder)
    encoder = write_t5(os.path.join(folder, "hub", "flan-t5-large"))
    write_languagebind(os.path.join(folder, "hub", "LanguageBind_Audio_FT"))
    write_audioldm2(os.path.join(folder, "hub", "audioldm2"))
    autoencoder(16, 4, shift_factor=0.06, scaling_factor=1.5).save_pretrained(os.path.join(folder, "vae"))
    words = write_llama_tokenizer(os.path.join(folder, "vae_tokenizer"))
    vae = {"prompt_size": WIDTH, "vae_dim": LATENT, "vae_hidden_size": LATENT, "n_tokens": TOKENS}
    vae.update(pre_norm=False, norm_type="layer_norm", vae_scale=1.0)
    config = LlamaConfig(words, WIDTH, 2 * WIDTH, 2, 4, max_position_embeddings=512, vae_config=vae)
    config.save_pretrained(os.path.join(folder, "text_vae"))
    write_transformer(folder, config, encoder)
    os.mkdir(os.path.join(folder, "scheduler"))
    with open(os.path.join(folder, "scheduler", "scheduler_config.json"), "w") as file:
        json.dump({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}, file)


def write_transformer(folder, config, encoder):
    """Its weights are pickled, and hold the text autoencoder and the text encoder, too, as training saves them."""
    import torch
    from omniflow.models.omni_flow import OmniFlowTransformerModel
    from omniflow.models.text_vae import LLamaForLatentConnector
    from omniflow.utils.ema import EMAModel

    transformer = OmniFlowTransformerModel(
        sample_size=64,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        pooled_projection_dim=768 + SECOND,
        pos_embed_max_size=32,
    )
    decoder = LLamaForLatentConnector._from_config(config)
    decoder.set_encoder(encoder)
    transformer.set_text_decoder(decoder)
    transformer.save_pretrained(os.path.join(folder, "transformer"), safe_serialization=False)
    average = EMAModel(transformer.parameters())
    torch.save(average.state_dict(), os.path.join(folder, "transformer", "ema_transformer.pt"))


def write_clip(folder, text_encoder_too):
    """The whole of a CLIP, of which the pipeline loads the halves, and the second text encoder."""
    import transformers

    os.makedirs(folder)
    ends = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: k for k, word in enumerate([*LETTERS, *(letter + "</w>" for letter in LETTERS), *ends])}
    with open(os.path.join(folder, "vocab.json"), "w") as file:
        json.dump(vocabulary, file)
    with open(os.path.join(folder, "merges.txt"), "w") as file:
        file.write("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        os.path.join(folder, "vocab.json"), os.path.join(folder, "merges.txt"), model_max_length=77
    )
    layers = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**layers, "vocab_size": len(vocabulary), "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    image = {**layers, "image_size": 32, "patch_size": 16}
    config = transformers.CLIPConfig(
        text_config={**text, "projection_dim": 768},
        vision_config={**image, "projection_dim": 768},
        projection_dim=768,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    second = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**text, projection_dim=SECOND))
    second.save_pretrained(os.path.join(text_encoder_too, "text_encoder_2"))
    tokenizer.save_pretrained(os.path.join(text_encoder_too, "tokenizer_2"))


def write_t5(folder):
    """The whole of a T5, whose encoder the pipeline loads."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration, T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    words = Tokenizer(models.Unigram(pieces, unk_id=2))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    T5TokenizerFast(tokenizer_object=words, extra_ids=0).save_pretrained(folder)
    layers = {"d_model": WIDTH, "d_kv": 8, "d_ff": WIDTH, "num_layers": 2, "num_heads": 4}
    config = T5Config(vocab_size=len(pieces), **layers, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return T5EncoderModel.from_pretrained(folder)


def write_llama_tokenizer(folder):
    """How many words it has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaTokenizerFast

    vocabulary = {word: k for k, word in enumerate(["<unk>", "<s>", "</s>", "▁", *LETTERS])}
    words = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    LlamaTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return len(vocabulary)


def write_languagebind(folder):
    """With the sizes of sounds that its published configuration has: 112 bands of 1036 frames."""
    from omniflow.models.encoders import LanguageBindAudio, LanguageBindAudioConfig

    layers = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
    sounds = {"num_mel_bins": 112, "target_length": 1036, "image_size": 28, "patch_size": 14, "num_frames": 1}
    config = LanguageBindAudioConfig(
        text_config={**layers, "vocab_size": 64},
        vision_config={**layers, **sounds, "audio_mean": -4.2677393, "audio_std": 4.5689974},
        projection_dim=768,
    )
    model = LanguageBindAudio(config)  # it changes the size of pictures into that of sounds, which it cannot read back
    model.config.vision_config.image_size = sounds["image_size"]
    model.save_pretrained(folder)


def write_audioldm2(folder):
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    autoencoder(8, 3, in_channels=1, out_channels=1).save_pretrained(os.path.join(folder, "vae"))
    rates = {"upsample_rates": [5, 4, 2, 2, 2], "upsample_kernel_sizes": [16, 16, 8, 4, 4]}
    config = SpeechT5HifiGanConfig(
        model_in_dim=64,
        sampling_rate=16000,
        upsample_initial_channel=32,
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1]],
        normalize_before=False,
        **rates,
    )
    SpeechT5HifiGan(config).save_pretrained(os.path.join(folder, "vocoder"))


def autoencoder(latent, levels, **options):
    """Of pictures, or of spectrograms; it halves a side at all levels but one."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=[8] * levels,
        latent_channels=latent,
        norm_num_groups=4,
        mid_block_add_attention=False,
        **options,
    )


if __name__ == "__main__":
    runner().bridge("cpu")
    write(sys.argv[1])
