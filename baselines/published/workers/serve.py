"""What the runner of every external model shares: it reads request folders and answers them item by item.

A runner is executed by the model's own Python, with the model's repository as its working directory, and is told
request folders on its standard input, one a line:

    cd REPOSITORY && echo REQUEST_FOLDER | MODEL_PYTHON workers/codi_worker.py

so this file needs the standard library alone, and runs on Python 3.6 and later. The folder holds `request.json`:

    {"schema": 1, "model": "codi", "given": ["text"], "want": ["image"], "device": "cuda", "checkpoint": "/...",
     "settings": {"steps": 50}, "items": [{"id": "000000", "seed": 7, "inputs": {"text": "a dog"}}]}

Inputs of pictures and sounds are paths of PNG and WAV files below the folder. A runner appends to `responses.jsonl` a
line {"id", "status": "started"} before an item and one after it, which is {"id", "status": "ok", "outputs", "seconds"}
or {"id", "status": "error", "error", "seconds"}; files that a line names are there before it. Items that have an
answer are passed over, so the same command goes on where it was killed. `environment.json` says what answered: Python,
packages, the repository's revision, the checkpoint's files, and the keys that did not fit.
"""

import contextlib
import hashlib
import json
import os
import platform
import random
import subprocess
import sys
import time
import traceback
import wave

SCHEMA = 1
REQUEST, RESPONSES, ENVIRONMENT = "request.json", "responses.jsonl", "environment.json"
FAULT = 3  # exit status where the model cannot be loaded as it should be


class Unusable(Exception):
    """The model cannot be used as it is: a part of a checkpoint, another repository. The run ends."""


class Model:
    """What a runner offers: `missing` and `unexpected`, keys of the checkpoint that did not fit, and `answer`."""

    missing = ()
    unexpected = ()

    def answer(self, item, folder):
        """{modality: text, PIL image, or (samples, rate)} of what item["want"] lists; its inputs lie below `folder`."""
        raise NotImplementedError


def serve(load):
    """Answer the request folders that standard input names, a line each. load(request) -> Model, or raises Unusable.

    A model that is loaded serves the next request, too, where that asks for the same one.
    """
    model, facts, loaded, suite = None, {}, None, os.getppid()
    for line in sys.stdin:
        folder = os.path.abspath(line.strip())
        with open(os.path.join(folder, REQUEST), encoding="utf-8") as file:
            request = json.load(file)
        if request["schema"] != SCHEMA:
            sys.exit(f"a request of schema {request['schema']}, and this runner knows {SCHEMA}")
        done = _answered(os.path.join(folder, RESPONSES))
        items = [item for item in request["items"] if item["id"] not in done]
        asked = [request[name] for name in ("model", "checkpoint", "device", "settings")]
        if items and asked != loaded:
            model, facts = _loaded(load, request, folder)
            loaded = asked
        if items:
            _replace(os.path.join(folder, ENVIRONMENT), facts)
        for item in items:
            if os.getppid() != suite:  # it was killed, and another command may be asking another process by now
                sys.exit("nobody waits for the answers any more")
            _append(folder, {"id": item["id"], "status": "started"})
            _append(folder, _answer(model, request, item, folder))


def _loaded(load, request, folder):
    """The model and what environment.json says of it. Ends the process where it is not what was asked for."""
    try:
        model = load(request)
        facts = _facts(request, model)
        partial = list(model.missing) + list(model.unexpected)
        if partial:
            _replace(os.path.join(folder, ENVIRONMENT), facts)
            raise Unusable(
                f"a partial load: {len(model.missing)} keys missing, {len(model.unexpected)} unexpected, "
                f"such as {partial[0]}"
            )
    except Unusable as fault:
        print(f"unusable: {fault}", file=sys.stderr)
        sys.exit(FAULT)
    return model, facts


def _answer(model, request, item, folder):
    before = time.time()
    try:
        asked = dict(item, want=request["want"])
        outputs = _written(model.answer(asked, folder), request["want"], item["id"], folder)
    except Exception as error:
        traceback.print_exc()
        text = one_line(f"{type(error).__name__}: {error}")
        return {"id": item["id"], "status": "error", "error": text, "seconds": time.time() - before}
    return {"id": item["id"], "status": "ok", "outputs": outputs, "seconds": time.time() - before}


def _written(outputs, want, name, folder):
    """Outputs on disk: texts as they are, pictures and sounds as paths below the folder."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(os.path.join(folder, "outputs"))
    found = {}
    for modality in want:
        value = outputs[modality]
        if isinstance(value, str):
            found[modality] = one_line(value)
            continue
        sound = isinstance(value, tuple)
        path = f"outputs/{name}-{modality}.{'wav' if sound else 'png'}"
        if sound:
            write_wav(os.path.join(folder, path), *value)
        else:
            value.convert("RGB").save(os.path.join(folder, path))
        found[modality] = path
    return found


def seed_all(seed):
    """Seed what models draw from: Python, and NumPy and torch where this Python has them."""
    random.seed(seed)
    with contextlib.suppress(ImportError):
        import numpy

        numpy.random.seed(seed)
    with contextlib.suppress(ImportError):
        import torch

        torch.manual_seed(seed)


def one_line(text):
    """A text, or what an error says, without line breaks and double spaces."""
    return " ".join(str(text).split())


def write_wav(path, samples, rate):
    """Samples in [-1, 1], of one channel, or rows of one channel each, in 16 bits."""
    channels = [list(map(float, row)) for row in (samples if hasattr(samples[0], "__len__") else [samples])]
    frames = bytearray()
    for frame in zip(*channels):  # noqa: B905 (strict is not known before Python 3.10)
        for value in frame:
            if value != value:
                raise ValueError("a sound holds NaN")
            frames += round(max(-1.0, min(1.0, value)) * 32767).to_bytes(2, "little", signed=True)
    with contextlib.closing(wave.open(path, "wb")) as file:
        file.setnchannels(len(channels))
        file.setsampwidth(2)
        file.setframerate(int(rate))
        file.writeframes(bytes(frames))


def read_wav(path):
    """Samples of the mean channel in [-1, 1], and the rate in Hz."""
    with contextlib.closing(wave.open(path, "rb")) as file:
        channels, rate = file.getnchannels(), file.getframerate()
        content = file.readframes(file.getnframes())
    levels = [int.from_bytes(content[k : k + 2], "little", signed=True) for k in range(0, len(content), 2)]
    return [sum(levels[k : k + channels]) / channels / 32768 for k in range(0, len(levels), channels)], rate


def _answered(path):
    """Ids of the items that have an answer; a line that was cut off counts for nothing, and is ended."""
    if not os.path.exists(path):
        return set()
    with open(path, "rb") as file:
        content = file.read()
    if content and not content.endswith(b"\n"):
        with open(path, "ab") as file:
            file.write(b"\n")
    found = set()
    for line in content.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            response = json.loads(line.decode("utf-8"))
            if response["status"] in ("ok", "error"):
                found.add(response["id"])
    return found


def _append(folder, response):
    with open(os.path.join(folder, RESPONSES), "ab") as file:
        file.write(json.dumps(response).encode("utf-8") + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _facts(request, model):
    return {
        "schema": SCHEMA,
        "python": platform.python_version(),
        "packages": _packages(),
        "revision": _revision(),
        "checkpoint": _files(request["checkpoint"]),
        "missing": list(model.missing),
        "unexpected": list(model.unexpected),
    }


def _replace(path, facts):
    """A JSON file, as a whole or not at all."""
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump(facts, file, indent=2, sort_keys=True)
    os.replace(path + ".new", path)


def _packages():
    try:
        from importlib import metadata
    except ImportError:  # before Python 3.8
        return {}
    return {str(each.metadata["Name"]): each.version for each in metadata.distributions()}


def _revision():
    """The commit of the working directory's repository; empty where it is none."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return answer.stdout.decode("ascii").strip()


def _files(checkpoint):
    """Path below the checkpoint, size and SHA-256 of each of its files."""
    if not checkpoint:
        return []
    if os.path.isfile(checkpoint):
        paths = [checkpoint]
    else:
        paths = [os.path.join(place, name) for place, _, names in os.walk(checkpoint) for name in names]
    found = []
    for path in sorted(paths):
        content = hashlib.sha256()
        with open(path, "rb") as file:
            part = file.read(2**20)
            while part:
                content.update(part)
                part = file.read(2**20)
        name = os.path.relpath(path, os.path.dirname(checkpoint) if os.path.isfile(checkpoint) else checkpoint)
        found.append({"file": name, "bytes": os.path.getsize(path), "sha256": content.hexdigest()})
    return found
