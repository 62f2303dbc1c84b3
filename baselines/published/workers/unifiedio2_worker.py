"""Unified-IO 2's answers: its own task runner, which writes the prompts, samples tokens and decodes them.

Run by Unified-IO 2's own Python in its repository: see serve.py for the protocol and docs/external/unifiedio2.md for
the set-up. The checkpoint is a folder with `model/` and `preprocessor/`, two repositories of the hub, and LLaMA's
`tokenizer.model`; the vocoder of sounds lies in the repository.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import sys
import types
import wave

import serve

GUIDE = "docs/external/unifiedio2.md says how to set it up"
SOURCE = os.path.join("uio2", "runner.py")
VOCODER = os.path.join("uio2", "hifigan", "checkpoints", "g_00930000")
VOCODER_SIZES = os.path.join("uio2", "hifigan", "checkpoints", "config.json")
PARTS = (
    os.path.join("model", "config.json"),
    os.path.join("preprocessor", "preprocessor_config.json"),
    "tokenizer.model",
)
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
RATE = 16000  # Hz, of its vocoder
PROMPTS = ("random", "first")
DRAWS = 4  # of a picture or a sound whose tokens end too early
TOO_SHORT = "Did not generate a full"


class UnifiedIO2(serve.Model):
    """The task runner, and how it samples."""

    def __init__(self, tasks, settings, missing, unexpected):
        self.tasks, self.settings = tasks, settings
        self.missing, self.unexpected = missing, unexpected

    def answer(self, item, folder):
        (given,), (want,) = item["inputs"], item["want"]
        value = item["inputs"][given]
        if given != "text":
            value = os.path.join(folder, value)
        for draw in range(DRAWS):
            seed_all(item["seed"] + draw)
            try:
                return {want: self._made(given, want, value)}
            except ValueError as error:  # a token that says the end came before the last one that there must be
                if TOO_SHORT not in str(error) or draw == DRAWS - 1:
                    raise

    def _made(self, given, want, value):
        settings = self.settings
        if (given, want) == ("image", "text"):
            return self.tasks.image_captioning(value)
        if (given, want) == ("audio", "text"):
            return self.tasks.audio_captioning(value)
        if (given, want) == ("text", "image"):
            return self.tasks.image_generation(
                value, guidance_scale=settings["guidance_image"], top_p=settings["top_p_image"]
            )
        if (given, want) == ("text", "audio"):
            samples = self.tasks.audio_generation(
                value, guidance_scale=settings["guidance_audio"], top_p=settings["top_p_audio"]
            )
            return samples.tolist(), RATE
        raise ValueError(f"no way from {given} to {want}")


def load(request):
    """The model of a request. Raises Unusable where the repository or the checkpoint is not what it should be."""
    checkpoint, settings = request["checkpoint"], request["settings"]
    weights = look(checkpoint, settings)
    try:
        bridge()
        model, preprocessing, tasks = (
            importlib.import_module("uio2." + name) for name in ("model", "preprocessing", "runner")
        )
        prompt = importlib.import_module("uio2.prompt")
    except (ImportError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise serve.Unusable(
            f"Unified-IO 2's code does not import ({serve.one_line(error)}), with packages of other versions: {GUIDE}"
        ) from error
    try:
        network, missing, unexpected = load_network(model.UnifiedIOModel, weights)
        preprocessor = preprocessing.UnifiedIOPreprocessor.from_pretrained(
            os.path.join(checkpoint, "preprocessor"), tokenizer=os.path.join(checkpoint, "tokenizer.model")
        )
        preprocessor.tokenizer.load_model()  # else the first item would find out that it is none
        runner = tasks.TaskRunner(
            network.to(request["device"]).eval(),
            preprocessor,
            prompts=prompt.Prompt(single_prompt=settings["prompts"] == "first"),
        )
        runner.spectogram_converter.hifigan = load_vocoder(tasks.HifiganGenerator)
    except Exception as error:
        raise serve.Unusable(f"{checkpoint} cannot be loaded ({serve.one_line(error)}): {GUIDE}") from error
    return UnifiedIO2(runner, settings, missing, unexpected)


def look(checkpoint, settings):
    """The file of weights. Raises Unusable where something lacks that can be seen before anything is loaded."""
    here = os.getcwd()
    for name in (SOURCE, VOCODER_SIZES, VOCODER):
        if not os.path.isfile(name):
            raise serve.Unusable(
                f"{here} is not Unified-IO 2's repository (it has no {name}): set `repository` to a clone; {GUIDE}"
            )
    for name in PARTS:
        if not os.path.isfile(os.path.join(checkpoint, name)):
            raise serve.Unusable(f"{checkpoint} has no {name}: {GUIDE}")
    if settings["prompts"] not in PROMPTS:
        raise serve.Unusable(f"prompts is {settings['prompts']!r}: it is one of {', '.join(PROMPTS)}")
    for name in WEIGHTS:
        path = os.path.join(checkpoint, "model", name)
        if os.path.isfile(path):
            return path
    raise serve.Unusable(f"{os.path.join(checkpoint, 'model')} has neither {' nor '.join(WEIGHTS)}: {GUIDE}")


def load_network(kind, weights):
    """The network, and the keys that did not fit, on which from_pretrained says nothing. It has no buffers that are
    saved, and nothing in it has two names."""
    import torch

    with open(os.path.join(os.path.dirname(weights), "config.json"), encoding="utf-8") as file:
        network = kind(json.load(file))
    if weights.endswith(".safetensors"):
        from safetensors.torch import load_file

        state = load_file(weights)
    else:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    found = network.load_state_dict(state, strict=False)
    return network, list(found.missing_keys), list(found.unexpected_keys)


def load_vocoder(kind):
    """What the task runner would load at its first sound, with a pickle that may hold anything."""
    import torch

    with open(VOCODER_SIZES, encoding="utf-8") as file:
        vocoder = kind(types.SimpleNamespace(**json.load(file)))
    vocoder.load_state_dict(torch.load(VOCODER, map_location="cpu", weights_only=True)["generator"])
    vocoder.eval().remove_weight_norm()
    return vocoder


# ---------------------------------------------------------------------------- what the public code lacks or hides


def bridge():
    """Make the repository's code importable, and able to run on this machine."""
    sys.path.insert(0, os.getcwd())
    # The whole of the model lies in the checkpoint; a name that is not there would be tried for minutes.
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    import tensorflow
    import transformers

    # Later ones ask its decoder for what it does not have; earlier ones have no DynamicCache.
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if version not in ((4, 36), (4, 37)):
        raise ImportError(f"transformers {transformers.__version__}, and it runs with 4.36 and 4.37")
    # It prepares inputs with TensorFlow, which takes the whole memory of every GPU that it sees.
    tensorflow.config.set_visible_devices([], "GPU")
    with hashable_settings():
        importlib.import_module("uio2.config")
    # It asks ffprobe, a program, for the length of a sound. All that this reads are WAV files.
    importlib.import_module("uio2.audio_utils").get_audio_length = seconds_of


@contextlib.contextmanager
def hashable_settings():
    """Its settings have settings as defaults, which Python refuses from 3.11 on unless they can be hashed."""
    dataclass = dataclasses.dataclass

    def hashable(kind=None, **options):
        if kind is not None and kind.__module__ == "uio2.config":
            options["unsafe_hash"] = True
        return dataclass(kind, **options)

    dataclasses.dataclass = hashable
    try:
        yield
    finally:
        dataclasses.dataclass = dataclass


# ------------------------------------------------------------------------------------------------------ small things


def seconds_of(path):
    """The length of a WAV file."""
    with contextlib.closing(wave.open(path, "rb")) as file:
        return file.getnframes() / file.getframerate()


def seed_all(seed):
    """NumPy draws which prompt, torch which tokens."""
    import tensorflow

    serve.seed_all(seed)
    tensorflow.random.set_seed(seed)


if __name__ == "__main__":
    serve.serve(load)
