"""OmniFlow's answers: its released pipeline, and the vocoder that makes its spectrograms sounds.

Run by OmniFlow's own Python in its repository: serve.py has the protocol, docs/external/omniflow.md the set-up.
The checkpoint is a folder of the published layout that holds the models its pipeline takes from the hub, too, so that
checksums cover all that answers and nothing is fetched: `hub/` and, below it, the last part of each name.
"""

import contextlib
import importlib
import importlib.machinery
import os
import pathlib
import re
import sys
import types

import serve

GUIDE = "docs/external/omniflow.md says how to set it up"
SOURCE = os.path.join("omniflow", "pipelines", "omniflow_pipeline.py")
CLIP, T5 = "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K", "google/flan-t5-large"
LANGUAGEBIND, AUDIOLDM2 = "LanguageBind/LanguageBind_Audio_FT", "cvssp/audioldm2"
HALVES = (CLIP, T5)  # only the half that the pipeline asks for is loaded of these, and the other half is no fault
PARTS = ("tokenizer_2", "text_encoder_2", "vae", "vae_tokenizer", "text_vae", "transformer", "scheduler")
WEIGHTS, AVERAGED = os.path.join("transformer", "diffusion_pytorch_model.bin"), "transformer/ema_transformer.pt"
LOADED = (  # classes with which the pipeline loads weights, or what lies on the hub
    "AutoencoderKL",
    "CLIPImageProcessor",
    "CLIPTextModelWithProjection",
    "CLIPTokenizer",
    "CLIPVisionModelWithProjection",
    "LanguageBindAudio",
    "T5EncoderModel",
    "T5TokenizerFast",
)
TASKS = {
    ("text", "image"): "t2i",
    ("audio", "image"): "a2i",
    ("image", "text"): "i2t",
    ("audio", "text"): "a2t",
    ("text", "audio"): "t2a",
    ("image", "audio"): "i2a",
}
SIDE = 512  # of pictures: the pipeline crops those that are given to it
RATE, HOP = 16000, 160  # Hz, and samples of a frame, of the vocoder


class OmniFlow(serve.Model):
    """The pipeline, its vocoder, and how they sample."""

    def __init__(self, pipeline, vocoder, settings, report):
        self.pipeline, self.vocoder, self.settings = pipeline, vocoder, settings
        self.missing, self.unexpected = report.missing, report.unexpected

    def answer(self, item, folder):
        (given,), (want,) = item["inputs"], item["want"]
        serve.seed_all(item["seed"])
        task, value = TASKS[given, want], item["inputs"][given]
        made = self._sampled(task, given, want, value if given == "text" else os.path.join(folder, value))
        if want == "image":
            return {want: made.images[0]}
        if want == "text":
            return {want: plain(made[0][0])}
        return {want: (self._voiced(made[0]), RATE)}

    def _sampled(self, task, given, want, value):
        from PIL import Image

        options = {"text": {"prompt": value}, "image": {"prompt": ""}, "audio": {"prompt": "", "input_aud": value}}[
            given
        ]
        if given == "image":
            with Image.open(value) as picture:
                options["input_img"] = picture.convert("RGB")
        return self.pipeline(
            task=task,
            height=SIDE,
            width=SIDE,
            num_inference_steps=self.settings["steps"],
            guidance_scale=self.settings["guidance_" + want],
            cfg_mode=self.settings["guidance_mode"],
            add_token_embed=want in self.settings["normalised_prompts"],
            **options,
        )

    def _voiced(self, spectrogram):
        """Samples of a logarithmic mel spectrogram (1, 1, time, 64): the vocoder is no part of the pipeline.

        What it adds at the end is cut off, as AudioLDM2's own pipeline does.
        """
        import torch

        mel = torch.from_numpy(spectrogram[0, 0]).to(self.vocoder.device, self.vocoder.dtype)
        with torch.no_grad():
            return self.vocoder(mel).float().cpu().reshape(-1)[: len(mel) * HOP].tolist()


class Report:
    """Keys of checkpoints that did not fit, each with the name of its part."""

    def __init__(self):
        self.missing, self.unexpected = [], []

    def add(self, part, missing, unexpected):
        # position_ids: buffers that count from 0, which older versions of transformers wrote down and newer make anew.
        for found, keys in ((self.missing, missing), (self.unexpected, unexpected)):
            found += [part + ": " + key for key in keys if not key.endswith("position_ids")]


def load(request):
    """The model of a request. Raises Unusable where the repository or the checkpoint is not what it should be."""
    checkpoint, settings, report = request["checkpoint"], request["settings"], Report()
    _look(checkpoint, settings)
    try:
        bridge(request["device"])
        pipelines = importlib.import_module("omniflow.pipelines.omniflow_pipeline")
        sounds = importlib.import_module("omniflow.models.audio_vae")
    except (ImportError, NameError, AttributeError) as error:
        raise serve.Unusable(
            f"OmniFlow's code does not import ({error}), with packages of other versions: {GUIDE}"
        ) from error
    try:
        with _bridged_loading([pipelines, sounds], checkpoint, report):
            pipeline, vocoder = _loaded(pipelines, checkpoint, request["device"], settings, report)
    except serve.Unusable:
        raise
    except Exception as error:  # damaged in any way, or of other models
        raise serve.Unusable(f"{checkpoint} cannot be loaded ({serve.one_line(error)}): {GUIDE}") from error
    return OmniFlow(pipeline, vocoder, settings, report)


def _look(checkpoint, settings):
    """Raises Unusable where something lacks that can be seen before anything is loaded."""
    if not os.path.isfile(SOURCE):
        raise serve.Unusable(
            f"{os.getcwd()} is not OmniFlow's repository (it has no {SOURCE}): set `repository` to a clone; {GUIDE}"
        )
    needed = list(PARTS) + [WEIGHTS] + [AVERAGED] * settings["averaged_weights"]
    needed += [hub("", name) for name in (CLIP, T5, LANGUAGEBIND, AUDIOLDM2)]
    for name in needed:
        if not os.path.exists(os.path.join(checkpoint, name)):
            raise serve.Unusable(f"{checkpoint} has no {name}: {GUIDE}")
    for name in ("guidance_image", "guidance_audio"):
        if settings[name] <= 1:
            raise serve.Unusable(
                f"{name} is {settings[name]}: the pipeline goes from pictures to sounds and back only above 1"
            )


def _loaded(pipelines, checkpoint, device, settings, report):
    import torch
    from transformers import SpeechT5HifiGan

    pipeline = pipelines.OmniFlowPipeline.load_pretrained(
        checkpoint,
        device=device,
        weight_dtype=getattr(torch, settings["precision"]),
        load_ema=settings["averaged_weights"],
    )
    pipeline.set_progress_bar_config(disable=True)
    vocoder = Loader(SpeechT5HifiGan, checkpoint, report).from_pretrained(AUDIOLDM2, subfolder="vocoder")
    if vocoder.config.sampling_rate != RATE:
        raise serve.Unusable(f"the vocoder makes sounds of {vocoder.config.sampling_rate} Hz, not {RATE}")
    return pipeline, vocoder.to(device).eval()


# ---------------------------------------------------------------------------- what the public code lacks or hides


class Loader:
    """A class of transformers or diffusers to load with: names of the hub become folders of the checkpoint, and keys
    that do not fit are reported, which else is a warning in the log, and weights left random."""

    def __init__(self, kind, checkpoint, report):
        self._kind, self._checkpoint, self._report = kind, checkpoint, report

    def from_pretrained(self, name, **options):
        place = name if name == self._checkpoint else hub(self._checkpoint, name)
        if not hasattr(self._kind, "state_dict"):  # a tokenizer or a processor
            return self._kind.from_pretrained(place, **options)
        if hasattr(self._kind, "load_config"):  # of diffusers, whose fast way does not tell unexpected keys
            options["low_cpu_mem_usage"] = False
        model, found = self._kind.from_pretrained(place, output_loading_info=True, **options)
        part = os.path.join(os.path.relpath(place, self._checkpoint), options.get("subfolder", ""))
        mismatched = [each[0] for each in found["mismatched_keys"]]
        unexpected = [] if name in HALVES else found["unexpected_keys"]
        self._report.add(os.path.normpath(part), list(found["missing_keys"]) + mismatched, unexpected)
        return model


@contextlib.contextmanager
def _bridged_loading(modules, checkpoint, report):
    """While load_pretrained runs: its names of the hub, and its two loaders of pickled weights, which take what fits.

    Names are changed in its own modules alone.
    """

    def load_weights(path, transformer):
        import torch

        found = transformer.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=False)
        # text_decoder.encoder is flan-t5-large's, loaded from its own folder before: weights may or may not repeat it.
        missing = [key for key in found.missing_keys if not key.startswith("text_decoder.encoder.")]
        report.add("transformer", missing, found.unexpected_keys)

    def load_averaged(path, average):
        import torch

        state = torch.load(path, map_location="cpu", weights_only=True)
        shapes = [[tuple(each.shape) for each in kept] for kept in (state["shadow_params"], average.shadow_params)]
        if shapes[0] != shapes[1]:  # copied one by one, in order and without names, as far as the shorter list goes
            raise serve.Unusable(
                f"{path}: its {len(shapes[0])} tensors are not of the transformer's {len(shapes[1])} shapes"
            )
        average.load_state_dict(state)

    replaced = []
    for module in modules:
        for name, value in list(vars(module).items()):
            if name in ("load_safe_tensors", "load_safe_tensors_ema"):
                other = load_averaged if name.endswith("ema") else load_weights
            elif name in LOADED:
                other = Loader(value, checkpoint, report)
            else:
                continue
            replaced.append((module, name, value))
            setattr(module, name, other)
    try:
        yield
    finally:
        for module, name, value in replaced:
            setattr(module, name, value)


def bridge(device):
    """Make the repository's code importable, and able to run on this device."""
    # Before this folder, where this very file would be found as `omniflow` in place of the repository's package.
    sys.path.insert(0, os.getcwd())
    # The whole of the model lies in the checkpoint; a name that is not there would be tried for minutes.
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    import torch

    # deepspeed is imported by the transformer, and used by its training alone; it compiles for the machine's CUDA.
    if "deepspeed" not in sys.modules:
        stub = types.ModuleType("deepspeed")
        stub.__spec__ = importlib.machinery.ModuleSpec("deepspeed", None)
        sys.modules["deepspeed"] = stub
    _import_torchvision(torch)
    torchaudio = _import_torchaudio()
    # The repository calls it when it is imported; newer versions of torchaudio have dropped it.
    if not hasattr(torchaudio, "set_audio_backend"):
        torchaudio.set_audio_backend = lambda name: None
    # Newer versions need torchcodec to read a file, and all that this reads are WAV files of 16 bits.
    torchaudio.load = read_sound
    if torch.device(device).type == "cuda":
        torch.cuda.set_device(torch.device(device))  # the text decoder says .cuda(), which is the current one
    else:
        torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # as above, where there is none


def _import_torchvision(torch):
    """torchvision, whose compiled part is for CUDA in most wheels. Transforms do without it."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if torch.version.cuda is not None:
            raise serve.Unusable(f"torchvision does not fit torch ({error}): {GUIDE}") from error
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    global _operators  # they live as long as this
    _operators = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):  # asked for by name when torchvision is imported, and never called here
        _operators.define(name + "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    return importlib.import_module("torchvision")


def _import_torchaudio():
    """torchaudio without its compiled part, which demands the very CUDA of torch: resampling and filter banks do not
    need it, and where torchaudio finds no library it goes on without."""
    glob = pathlib.Path.glob

    def without_libraries(self, pattern, *others, **options):
        inside = (self.parent.name, self.name) == ("torchaudio", "lib")
        return iter(()) if inside else glob(self, pattern, *others, **options)

    pathlib.Path.glob = without_libraries
    try:
        return importlib.import_module("torchaudio")
    finally:
        pathlib.Path.glob = glob


# ---------------------------------------------------------------------------- small things


def hub(checkpoint, name):
    """The folder of the checkpoint that has what the hub calls so."""
    return os.path.join(checkpoint, "hub", name.split("/")[1])


def read_sound(path, *_, **__):
    """(samples of one channel (1, time), rate in Hz), as torchaudio.load has them."""
    import torch

    samples, rate = serve.read_wav(path)
    return torch.tensor([samples]), rate


def plain(text):
    """A caption without the marks of its beginning and end: the text decoder is started with dozens of them."""
    return " ".join(re.sub(r"</?s>|\[PAD\]", " ", text).split())


if __name__ == "__main__":
    serve.serve(load)
