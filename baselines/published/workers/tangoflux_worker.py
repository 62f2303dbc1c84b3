"""TangoFlux's answers: its own inference class, fed from a folder in place of the hub, and seeded item by item.

Run by TangoFlux's own Python in its repository: see serve.py for the protocol and docs/external/tangoflux.md for the
set-up. The checkpoint is a folder of the published files that holds its text encoder, too, so that checksums cover all
that answers and nothing is fetched.
"""

import contextlib
import functools
import importlib
import importlib.machinery
import inspect
import json
import os
import sys
import types

import serve

GUIDE = "docs/external/tangoflux.md says how to set it up"
SOURCE = os.path.join("tangoflux", "model.py")
PARTS = ("config.json", "tangoflux.safetensors", "vae.safetensors")
TEXT_ENCODER = "google/flan-t5-large"  # where config.json names no other
TEXT_PARTS = ("config.json", "model.safetensors", "tokenizer.json")
RATE = 44100  # Hz, of its autoencoder


class TangoFlux(serve.Model):
    """The inference class, and how it samples."""

    def __init__(self, inference, settings, report):
        self.inference, self.settings = inference, settings
        self.missing, self.unexpected = report.missing, report.unexpected

    def answer(self, item, folder):
        serve.seed_all(item["seed"])
        # Its sampler seeds torch by itself, with 0 where nobody says otherwise, and generate() has no way to say so:
        # every sound would be made of the same noise.
        network = self.inference.model
        network.inference_flow = functools.partial(
            type(network).inference_flow, network, seed=item["seed"], disable_progress=True
        )
        seconds = self.settings["seconds"]
        sound = self.inference.generate(
            item["inputs"]["text"],
            steps=self.settings["steps"],
            duration=seconds,
            guidance_scale=self.settings["guidance"],
        )
        if sound.shape[-1] != int(seconds * RATE):
            raise ValueError(f"a sound of {sound.shape[-1]} samples, and {seconds} s were asked for")
        return {"audio": (sound.float().tolist(), RATE)}


class Report:
    """Keys of the two checkpoints that did not fit, each with the name of its part."""

    def __init__(self):
        self.missing, self.unexpected = [], []

    def recorded(self, part, build):
        """The class `build`, whose load_state_dict tells what did not fit: one of the two in use takes what fits, and
        says nothing."""

        def built(*args, **options):
            module = build(*args, **options)
            load = module.load_state_dict

            def load_state_dict(state, strict=True):
                found = load(state, strict=False)
                # One table of words has two names, and a file of tensors has each tensor once.
                kept = module.state_dict()
                there = {kept[key].data_ptr() for key in state if key in kept}
                missing = [key for key in found.missing_keys if kept[key].data_ptr() not in there]
                self.missing += [part + ": " + key for key in missing]
                self.unexpected += [part + ": " + key for key in found.unexpected_keys]
                return found

            module.load_state_dict = load_state_dict
            return module

        return built


def load(request):
    """The model of a request. Raises Unusable where the repository or the checkpoint is not what it should be."""
    checkpoint, settings, report = request["checkpoint"], request["settings"], Report()
    encoder = look(checkpoint, settings)
    bridge()
    try:
        package = importlib.import_module("tangoflux")
        sampler = inspect.signature(package.TangoFlux.inference_flow)
    except (ImportError, AttributeError, RuntimeError) as error:
        raise serve.Unusable(
            f"TangoFlux's code does not import ({serve.one_line(error)}), with packages of other versions: {GUIDE}"
        ) from error
    if "seed" not in sampler.parameters:
        raise serve.Unusable("TangoFlux's sampler takes no seed in this revision: " + GUIDE)
    try:
        with bridged(package, encoder, report):
            inference = package.TangoFluxInference(name=checkpoint, device=request["device"])
    except Exception as error:
        raise serve.Unusable(f"{checkpoint} cannot be loaded ({serve.one_line(error)}): {GUIDE}") from error
    inference.model.eval()
    inference.vae.eval()
    if inference.vae.config.sampling_rate != RATE:
        raise serve.Unusable(f"its autoencoder makes sounds of {inference.vae.config.sampling_rate} Hz, not {RATE}")
    return TangoFlux(inference, settings, report)


def bridge():
    """Make the repository's code importable."""
    # Before this folder, where this very file would be found as `tangoflux` in place of the repository's package.
    sys.path.insert(0, os.getcwd())
    # The whole of the model lies in the checkpoint; a name that is not there would be tried for minutes.
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    # Two names of datasets are imported by its model and used by its training alone; it needs a lot of packages.
    stub = types.ModuleType("datasets")
    stub.__spec__ = importlib.machinery.ModuleSpec("datasets", None)
    stub.load_dataset = stub.Audio = None
    sys.modules.setdefault("datasets", stub)


@contextlib.contextmanager
def bridged(package, encoder, report):
    """While its constructor runs, which takes a name of the hub for itself, and for its text encoder what config.json
    names, and does not tell what did not fit."""
    others = {
        "snapshot_download": lambda repo_id: repo_id,
        "TangoFlux": report.recorded("tangoflux", functools.partial(package.TangoFlux, text_encoder_dir=encoder)),
        "AutoencoderOobleck": report.recorded("vae", package.AutoencoderOobleck),
    }
    replaced = {name: getattr(package, name) for name in others}
    vars(package).update(others)
    try:
        yield
    finally:
        vars(package).update(replaced)


def look(checkpoint, settings):
    """The text encoder's folder. Raises Unusable where something lacks that can be seen before anything is loaded."""
    if not os.path.isfile(SOURCE):
        raise serve.Unusable(
            f"{os.getcwd()} is not TangoFlux's repository (it has no {SOURCE}): set `repository` to a clone; {GUIDE}"
        )
    require(checkpoint, PARTS)
    with open(os.path.join(checkpoint, "config.json"), encoding="utf-8") as file:
        encoder = json.load(file).get("text_encoder_name", TEXT_ENCODER).split("/")[-1]
    require(checkpoint, [os.path.join(encoder, name) for name in TEXT_PARTS])
    if settings["guidance"] <= 1:
        raise serve.Unusable(
            f"guidance is {settings['guidance']}: TangoFlux's sampler runs only above 1; below, it makes a wrong call"
        )
    if not 1 <= settings["seconds"] <= 30:
        raise serve.Unusable(f"seconds is {settings['seconds']}: TangoFlux makes sounds of 1 to 30 s")
    return os.path.join(checkpoint, encoder)


def require(checkpoint, names):
    for name in names:
        if not os.path.isfile(os.path.join(checkpoint, name)):
            raise serve.Unusable(f"{checkpoint} has no {name}: {GUIDE}")


if __name__ == "__main__":
    serve.serve(load)
