"""CoDi's answers: one call of the repository's own inference for each item.

Run by CoDi's own Python in the folder i-Code-V3 of its repository: see serve.py for the protocol and
docs/external/codi.md for the set-up. The checkpoint is a folder of the four published files and, in
`clip-vit-large-patch14`, of the configuration and vocabulary of CLIP that the repository would fetch from the hub, so
that checksums cover all that answers and nothing is fetched.
"""

import os
import sys

import serve

GUIDE = "docs/external/codi.md says how to set it up"
SOURCE = os.path.join("core", "models", "model_module_infer.py")
PARTS = (  # in the order in which the repository's README names them
    "CoDi_encoders.pth",
    "CoDi_text_diffuser.pth",
    "CoDi_audio_diffuser_m.pth",
    "CoDi_video_diffuser_8frames.pth",
)
CLIP = "clip-vit-large-patch14"
CLIP_FILES = ("config.json", "preprocessor_config.json", "vocab.json", "merges.txt")
LATER = (  # constants, too, which the repository makes at the first sound that it hears
    "clap.model.audio_branch.spectrogram_extractor.",
    "clap.model.audio_branch.logmel_extractor.",
)
RATE = 16000  # Hz, of the sounds that it hears and of those that it makes


class CoDi(serve.Model):
    """The repository's inference module, and how it samples."""

    def __init__(self, module, settings, missing, unexpected):
        self.module, self.settings = module, settings
        self.missing, self.unexpected = missing, unexpected

    def answer(self, item, folder):
        import torch

        serve.seed_all(item["seed"])
        given, want = sorted(item["inputs"]), item["want"]
        with torch.no_grad():
            made = self.module.inference(
                xtype=list(want),
                condition=[self._read(name, item["inputs"][name], folder) for name in given],
                condition_types=given,
                n_samples=1,
                mix_weight=self.settings["mix_weight"],
                image_size=self.settings["side"],
                ddim_steps=self.settings["steps"],
                scale=self.settings["guidance"],
            )
        return {name: plain(name, value[0]) for name, value in zip(want, made)}  # noqa: B905 (not before Python 3.10)

    def _read(self, name, value, folder):
        """An input as the repository takes it: a sentence, a PIL image, or (1, samples) at 16 kHz."""
        if name == "text":
            return value
        path = os.path.join(folder, value)
        if name == "audio":
            return heard(path, self.settings["seconds_heard"])
        from PIL import Image

        with Image.open(path) as picture:
            return picture.convert("RGB")


def load(request):
    settings, device, checkpoint = request["settings"], request["device"], request["checkpoint"]
    check(settings, checkpoint)
    sys.path.insert(1, os.getcwd())  # after this file's folder
    go_to(device)
    module = built(os.path.join(os.path.abspath(checkpoint), CLIP))
    missing, unexpected = filled(module.net, checkpoint, tuple(settings["surplus"]))
    keep_levels(module.net.clip)
    hear_once(module.to(device).eval())
    return CoDi(module, settings, missing, unexpected)


def check(settings, checkpoint):
    """Raises Unusable where the repository, the checkpoint or a setting cannot be what is meant."""
    for path in (SOURCE, os.path.join("configs", "model", "codi.yaml")):
        if not os.path.isfile(path):
            raise serve.Unusable(
                f"{os.getcwd()} is not CoDi's code (it has no {path}): set repository to the folder i-Code-V3 of a "
                f"clone; {GUIDE}"
            )
    for path in PARTS + tuple(os.path.join(CLIP, name) for name in CLIP_FILES):
        if not os.path.isfile(os.path.join(checkpoint, path)):
            raise serve.Unusable(f"the checkpoint {checkpoint} has no {path}; {GUIDE}")
    if settings["guidance"] == 1:
        raise serve.Unusable("at guidance = 1 the repository's code fails: set another guidance")


def go_to(device):
    """Make the repository's code run on the device: it moves what it computes to the current one of CUDA.

    On a CPU its moves do nothing.
    """
    import torch

    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise serve.Unusable(f'no CUDA device is available: set device = "cpu", or install a CUDA build; {GUIDE}')
        if ":" in device:
            torch.cuda.set_device(device)
        return
    if device != "cpu":
        raise serve.Unusable(f'CoDi runs on "cuda", "cuda:N" or "cpu", not on {device!r}')
    from core.models.ddim.ddim import DDIMSampler

    torch.Tensor.cuda = lambda tensor, *_, **__: tensor
    DDIMSampler.register_buffer = lambda sampler, name, value: setattr(sampler, name, value)


def built(clip):
    """The repository's inference module without weights, with the CLIP that lies in a folder in place of the hub's."""
    from core.models import model_module_infer

    bank = model_module_infer.model_cfg_bank

    def bank_with_clip():
        configs = bank()

        def config(name):
            found = configs(name)
            found.args.clip_cfg.args.version = clip
            return found

        return config

    model_module_infer.model_cfg_bank = bank_with_clip
    try:
        return model_module_infer.model_module(pth=[])
    finally:
        model_module_infer.model_cfg_bank = bank


def filled(net, folder, surplus):
    """Read the weights into the network, which the repository does without a look at what fits.

    Keys of the network that no file has, but for constants, and keys of files that the network does not have, but for
    those of later constants and those that begin with one of `surplus`.
    """
    lacking, unexpected = set(net.state_dict()) - constants(net), []
    for name in PARTS:
        weights = tensors(os.path.join(folder, name))
        try:
            found = net.load_state_dict(weights, strict=False)
        except RuntimeError as error:  # another size
            raise serve.Unusable(f"{name} does not fit the repository's model: {serve.one_line(error)}") from None
        unexpected += [key for key in found.unexpected_keys if not key.startswith(LATER + surplus)]
        lacking -= set(weights)
    return sorted(lacking), sorted(unexpected)


def constants(net):
    """Keys of buffers that are computed when the network is made, and are the same whatever it has learned.

    These are noise schedules, windows and filters of spectrograms, masks, and indices of positions. Running statistics
    of normalisations are buffers, too, and are learned.
    """
    import torch

    layers = {name for name, layer in net.named_modules() if isinstance(layer, torch.nn.modules.batchnorm._NormBase)}
    return {name for name, _ in net.named_buffers() if name.rpartition(".")[0] not in layers}


def tensors(path):
    """The tensors of a file, by key. Nothing else in it is ever made: torch can tell from 1.13 on."""
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged in any way, or of anything else than tensors
        raise serve.Unusable(f"{path} is not a whole file of tensors: {serve.one_line(error)[:200]}") from None
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise serve.Unusable(f"{path} is not a table of tensors by key")
    return found


def keep_levels(clip):
    """See to it that CLIP gets the levels of a picture.

    The repository hands numbers in [0, 1] to transformers' preparation of pictures. Version 4.26.0, which it names,
    takes them for that. Later ones (4.30.2) divide them by 255 once more, so that all pictures are black to CLIP.
    """
    if levels_are_kept(clip):
        return
    clip.processor.feature_extractor.do_rescale = False
    if not levels_are_kept(clip):
        import transformers

        raise serve.Unusable(
            f"transformers {transformers.__version__} prepares pictures otherwise than 4.26.0, which the repository "
            f"names: install that; {GUIDE}"
        )


def levels_are_kept(clip):
    """Whether a grey picture is as grey after CLIP's preparation."""
    import numpy

    grey = numpy.full((32, 48, 3), 0.4, numpy.float32)
    prepare = clip.processor.feature_extractor
    for channel, mean, deviation in zip(  # noqa: B905 (not before Python 3.10)
        prepare([grey])["pixel_values"][0], prepare.image_mean, prepare.image_std
    ):
        if abs(numpy.asarray(channel) * deviation + mean - 0.4).max() > 0.01:
            return False
    return True


def hear_once(module):
    """Have the repository make what it makes at the first sound, for which it draws random numbers.

    Left to the first item that gives a sound, that would be answered otherwise than were it a later one.
    """
    import torch

    with torch.no_grad():
        module.net.clap_encode_audio(torch.zeros(1, 1, RATE))


def heard(path, seconds):
    """The beginning of a sound, (1, samples) at 16 kHz. Of a longer one the repository would hear a part by chance."""
    import torch

    samples, rate = serve.read_wav(path)
    sound = torch.tensor(samples, dtype=torch.float32)[None]
    if rate != RATE:
        import torchaudio

        sound = torchaudio.functional.resample(sound, rate, RATE)
    return sound[:, : round(seconds * RATE)]


def plain(name, value):
    """An output as serve.py takes it: sounds come as arrays of (1, samples)."""
    return (value[0].tolist(), RATE) if name == "audio" else value


if __name__ == "__main__":
    serve.serve(load)
