"""FlowBind's answers, by the encoders, flows and decoders of its repository: docs/external/flowbind.md.

A given modality is encoded to a feature of 768 numbers, and its flow is followed from data (time 1) to the shared
latent (time 0); several latents are averaged; the flow of every wanted modality is followed back, and its feature
decoded.

The public code names its weights and the device "cuda" in the middle of functions. Those names are replaced from
outside while its functions load: files of its own hub repository are read from the checkpoint folder, other models by
the names in the settings, pickles as tensors and numbers alone, and "cuda" is another device where that is asked for.
"""

import contextlib
import importlib
import json
import logging
import os
import re
import sys
import types
from unittest import mock

import numpy as np
import serve
import torch

ADDRESS = "https://github.com/yeonwoo378/flowbind"
GUIDE = "docs/external/flowbind.md"
MODALITIES = ("text", "image", "audio")  # in the order of the repository's init_mlpflow
FILES = ("model.pth", "config.json", "gemmae_3.pt", "clap.pt", "lightweight_audio_ae.pth")
STATISTICS = ("gemmae_text", "unclip_img", "clap_audio")  # of features: a mean and a std of each below samples/
SIDE = 224  # of what CLIP ViT-L/14 sees
HEARD, MADE = 48000, 16000  # Hz of what CLAP hears, and of AudioLDM's sounds
# The mean and spread of CLIP's pixels: the loader of the image encoder throws CLIP's own preprocessing away.
PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
# What transformers 4 says of weights that it did not find; and the models of which every key is loaded afterwards, from
# files of FlowBind's own.
DRAWN = r"Some weights of (\w+) were not initialized.*newly initialized: \[(.*?)\]"
OVERWRITTEN = ("RobertaModel", "Gemma3ForCausalLM")


class FlowBind(serve.Model):
    """`encoders` and `decoders`: by modality, of features (1, 768). `integrate`: the repository's ode_intergrate."""

    def __init__(self, flows, encoders, decoders, integrate, steps):
        self.flows, self.encoders, self.decoders = flows, encoders, decoders
        self.integrate, self.method = integrate, f"euler{steps}"

    def answer(self, item, folder):
        want = item["want"]
        serve.seed_all(item["seed"])  # the pipelines' noise, and where a long sound is cut
        with torch.no_grad():
            given = {}
            for name, value in sorted(item["inputs"].items()):
                given[name] = self.encoders[name](value if name == "text" else os.path.join(folder, value))
            features = self.translated(given, want)
            return {name: self.decoders[name](features[name]) for name in want}

    def translated(self, given, want):
        """Features of the wanted modalities, from features of the given ones."""
        latents = [
            self.integrate(self.flows[name], feature, method=self.method, init_t=1.0, final_t=0.0)
            for name, feature in given.items()
        ]
        if not latents:
            raise ValueError("FlowBind needs something given: it has no distribution of its latent")
        latent = sum(latents) / len(latents)
        return {
            name: self.integrate(self.flows[name], latent, method=self.method, init_t=0.0, final_t=1.0) for name in want
        }


def load(request):
    """The model of a request. Raises serve.Unusable where anything of it is not as it should be."""
    settings, checkpoint = request["settings"], request["checkpoint"]
    for name in FILES:
        if not os.path.isfile(os.path.join(checkpoint, name)):
            raise serve.Unusable(
                f"{name} is not in {checkpoint}: hf download yeonwoo378/flowbind --local-dir {checkpoint}"
            )
    _check_repository()
    device = _device(request["device"])
    utils = _utils()
    model = FlowBind({}, {}, {}, utils.ode_intergrate, settings["flow_steps"])
    drawn = _Drawn()
    with _bridged(utils, checkpoint, settings, drawn):
        model.flows, model.missing, model.unexpected = _flows(utils, checkpoint, device)
        if not model.missing and not model.unexpected:
            model.encoders, model.decoders = _coders(utils, device, settings)
            model.missing = drawn.keys
    return model


# ------------------------------------------------------------------------------------------ the repository


def _check_repository():
    """The working directory is a checkout, with the files that its functions read by relative paths."""
    statistics = [f"samples/{name}_{kind}.pt" for name in STATISTICS for kind in ("mean", "std")]
    for name in ["utils/utils.py", "model/mlp_flows.py", *statistics]:
        if not os.path.isfile(name):
            raise serve.Unusable(
                f"{os.getcwd()} is not a checkout of {ADDRESS} (it has no {name}): set repository in external.toml; "
                f"{GUIDE}"
            )


def _utils():
    """The repository's utils/utils.py as a module."""
    sys.path.append(os.getcwd())
    with _named("utils/utils.py cannot be imported"):
        found = importlib.import_module("utils.utils")
    if os.path.realpath(found.__file__) != os.path.realpath("utils/utils.py"):
        raise serve.Unusable(f"a package of this Python hides the repository's utils: {found.__file__}")
    return found


def _device(name):
    """Either cuda or cpu: autocast knows no other name for what it is on, so a GPU's number is set once, here."""
    kind, _, number = name.partition(":")
    if kind not in ("cuda", "cpu"):
        raise serve.Unusable(f"FlowBind runs on cuda or cpu, and the device is {name}")
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise serve.Unusable(f"the device is {name}, and the torch of this Python finds no GPU")
        torch.cuda.set_device(int(number or 0))
    return kind


@contextlib.contextmanager
def _named(what):
    """Whatever goes wrong inside is one line that says what it was about."""
    try:
        yield
    except serve.Unusable:
        raise
    except Exception as error:
        line = serve.one_line(f"{type(error).__name__}: {error}")
        raise serve.Unusable(f"{what} ({line[:400]}): {GUIDE}") from None


@contextlib.contextmanager
def _bridged(utils, checkpoint, settings, drawn):
    """While the repository's functions load: its hard-coded names stand for what the request says.

    drawn: hears what transformers says of weights that it drew at random.
    """
    import sentence_transformers
    import transformers

    encoder, clip, read = sentence_transformers.SentenceTransformer, utils.clip, torch.load

    def own_file(repo_id, filename):
        return os.path.join(checkpoint, filename)

    def sentences(name, **options):
        return encoder(_place(settings["text_encoder"]), **options)

    def pictures(name, **options):
        return clip.load(_place(settings["image_encoder"]), **options)

    def tensors_alone(*arguments, **options):
        return read(*arguments, **dict(options, weights_only=True))

    replaced = [
        (utils, "hf_hub_download", own_file),
        (utils, "clip", types.SimpleNamespace(load=pictures)),
        (sentence_transformers, "SentenceTransformer", sentences),
        (torch, "load", tensors_alone),  # laion_clap asks for whole pickles
    ]
    for place, name, setting in (
        (utils, "DiffusionPipeline", "image_decoder"),
        (utils, "AudioLDMPipeline", "audio_decoder"),
        (transformers, "AutoTokenizer", "text_decoder"),
        (transformers, "AutoModelForCausalLM", "text_decoder"),
    ):
        replaced.append((place, name, _Renamed(getattr(place, name), _place(settings[setting]))))
    logger = logging.getLogger("transformers")
    transformers.logging.set_verbosity_warning()  # or `drawn` hears nothing
    logger.addHandler(drawn)
    with contextlib.ExitStack() as stack:
        stack.callback(logger.removeHandler, drawn)
        stack.enter_context(torch.serialization.safe_globals(_numbers()))
        for place, name, value in replaced:
            stack.enter_context(mock.patch.object(place, name, value))
        yield


class _Renamed:
    """A class whose models are loaded by another name than the caller's."""

    def __init__(self, real, name):
        self._real, self._name = real, name

    def from_pretrained(self, name, **options):
        return self._real.from_pretrained(self._name, **options)


class _Drawn(logging.Handler):
    """Keys that transformers did not find and drew at random, which it only warns of."""

    def __init__(self):
        super().__init__()
        self.keys = []

    def emit(self, record):
        said = re.search(DRAWN, record.getMessage())
        if said and said.group(1) not in OVERWRITTEN:
            self.keys += [said.group(1) + "." + key.strip(" '") for key in said.group(2).split(",")]


def _place(name):
    """A name of the hub as it is; a path from the home folder as a path."""
    return os.path.expanduser(name)


def _numbers():
    """Numpy's numbers, which CLAP's training writes into its checkpoints besides tensors, under both of their names."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")}
    return [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype, *kinds]


# ------------------------------------------------------------------------------------------ flows


def _flows(utils, checkpoint, device):
    """By modality; and the keys of model.pth that they lack or do not know."""
    with _named(f"config.json and model.pth of {checkpoint} cannot be read"):
        with open(os.path.join(checkpoint, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        states = torch.load(os.path.join(checkpoint, "model.pth"), map_location="cpu", weights_only=True)[
            "model_state_dict"
        ]
    with _named(f"the flows cannot be built from config.json of {checkpoint}"):
        made = utils.init_mlpflow(config, None, text=True, image=True, audio=True, device=device)
    flows, missing, unexpected = dict(zip(MODALITIES, made)), [], []  # noqa: B905 (strict is of Python 3.10)
    for name, flow in flows.items():
        with _named(f"the flow of {name} has other sizes in model.pth than in config.json"):
            found = flow.load_state_dict(states.get(name, {}), strict=False)
        missing += [f"{name}.{key}" for key in found.missing_keys]
        unexpected += [f"{name}.{key}" for key in found.unexpected_keys]
    return flows, missing, unexpected + [name for name in states if name not in MODALITIES]


# ------------------------------------------------------------------------------------------ encoders and decoders


def _coders(utils, device, settings):
    """What encodes a sentence or a path to a feature, and what decodes a feature to an answer, by modality."""
    place = torch.device(device)
    pixels = _pixels(utils, settings["resize"])
    with _named(f"the text encoder {settings['text_encoder']} and the text decoder, gemmae_3.pt, cannot be loaded"):
        read_text, write_text = _on(device, utils.load_text_enc_and_dec)("gemmae", place)
    with _named(f"the image encoder {settings['image_encoder']} cannot be loaded"):
        see = utils.load_image_enc("clipvitl14_image", place)
    with _named(f"the image decoder {settings['image_decoder']} cannot be loaded"):
        draw = utils.load_image_dec("stable-unclip-small", place)
    with _named("the audio encoder, clap.pt and lightweight_audio_ae.pth, cannot be loaded"):
        hear = utils.load_audio_enc("clap", place)
    with _named(f"the audio decoder {settings['audio_decoder']} cannot be loaded"):
        play = utils.load_audio_dec("audioldm-m-full", place)
    encoders = {
        "text": lambda text: read_text([text]),
        "image": lambda path: see(pixels(_picture(utils, path))[None].to(place)),
        "audio": lambda path: hear(_sound(utils, path)[None].to(place)),
    }
    decoders = {
        "text": lambda feature: write_text(feature)[0],
        "image": lambda feature: _levels(utils, draw(feature)[0]),
        "audio": lambda feature: (np.asarray(play(feature))[0].tolist(), MADE),
    }
    return encoders, decoders


def _on(device, function):
    """The function with another device in place of the "cuda" that it writes over the one that it is handed.

    It is a constant of its code, used for models, tensors and autocast alike: no other single place reaches them all.
    """
    while hasattr(function, "__wrapped__"):  # torch.no_grad around it
        function = function.__wrapped__
    code = function.__code__
    if "cuda" not in code.co_consts:
        raise serve.Unusable(f"{function.__name__} is not as it was at the revision that the runner was written for")
    code = code.replace(co_consts=tuple(device if each == "cuda" else each for each in code.co_consts))
    return torch.no_grad()(
        types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    )


def _pixels(utils, resize):
    """What makes of a picture what CLIP sees of it."""
    kinds = utils.transforms
    modes = {"bilinear": kinds.InterpolationMode.BILINEAR, "bicubic": kinds.InterpolationMode.BICUBIC}
    if resize not in modes:
        raise serve.Unusable(f"resize is {resize!r} in external.toml, and can be {' or '.join(modes)}")
    steps = [kinds.Resize(SIDE, modes[resize]), kinds.CenterCrop(SIDE), kinds.ToTensor(), kinds.Normalize(*PIXELS)]
    return kinds.Compose(steps)


def _picture(utils, path):
    with utils.Image.open(path) as image:
        return image.convert("RGB")


def _sound(utils, path):
    """Samples at CLAP's rate. Ten seconds are used: a longer one is cut at a place that the item's seed draws."""
    samples, rate = serve.read_wav(path)
    return utils.torchaudio.functional.resample(torch.tensor(samples), rate, HEARD)


def _levels(utils, pixels):
    """Pixels (3, height, width) in [0, 1] as an image of 256 levels."""
    pixels = pixels.float().cpu()
    if not torch.isfinite(pixels).all():
        raise ValueError("a picture holds NaN")
    return utils.Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


if __name__ == "__main__":
    serve.serve(load)
