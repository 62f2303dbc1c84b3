"""Unified-IO 2: its own code on a tiny checkpoint with random weights, in its four directions, and faults of both.

tests/baselines/published_models.py says what the drive needs. What the runner asks of the package, a stand-in of that
shows anywhere.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.published import adapter
from baselines.published.adapter import Runner
from benchmark.api import TASKS, Cell, Inapplicable, cells
from tests.baselines.published_models import (
    MODALITIES,
    RATE,
    Things,
    bound,
    change,
    driven,
    linked,
    place,
    python,
    replace,
    same,
    set_up,
    things,
    write_tiny,
)
from tests.baselines.published_models import ask as ask_runner

WORKER = adapter.WORKERS / "unifiedio2_worker.py"
DIRECTIONS = [
    Cell("things", (given,), (want,))
    for given, want in (("text", "image"), ("image", "text"), ("text", "audio"), ("audio", "text"))
]
DATA = Things(seconds=10)
needs_unifiedio2 = driven("unifiedio2")


def ask(
    folder: Path, runner: Runner, cell: Cell, checkpoint: Path, seeds: Sequence[int] = (7,), **settings: Any
) -> list[Any]:
    """Answers to the first row of Things, with each of the seeds."""
    value = DATA.raw("test", torch.tensor([0]))[cell.given[0]][0]
    return ask_runner("unifiedio2", folder, runner, cell, checkpoint, [(seed, value) for seed in seeds], **settings)


# ------------------------------------------------------------------------------------ without the repository


@pytest.mark.parametrize("task", TASKS)
def test_it_goes_between_captions_and_the_other_two(task: str) -> None:
    known = [(cell.given, cell.want) for cell in DIRECTIONS]
    for cell in cells("things", MODALITIES, task):
        why = adapter.refusal(adapter.known("unifiedio2"), cell)
        assert (why == "") == ((cell.given, cell.want) in known)
        assert not why or why.startswith("UnifiedIO2-L goes text -> image, image -> text, text -> audio, audio -> text")


def test_refused_directions_are_not_applicable_and_nothing_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up("unifiedio2", tmp_path, monkeypatch, "/bin/false", tmp_path, tmp_path)
    method = bound("unifiedio2")
    for given, want in ((("image",), ("audio",)), (("text", "image"), ("audio",)), ((), MODALITIES)):
        with pytest.raises(Inapplicable, match=r"UnifiedIO2-L goes .* alone"):
            things(method, given, want)
    assert method.runner.status == 0


# ------------------------------------------------------------------------------------ what it asks of the package

STAND_IN = {
    "tensorflow.py": """
class config:
    set_visible_devices = staticmethod(lambda devices, kind: note("hidden", devices=devices, kind=kind))
class random:
    set_seed = staticmethod(lambda seed: None)
""",
    "transformers.py": "__version__ = '4.37.2'",
    "uio2/__init__.py": "",
    "uio2/config.py": """
import dataclasses
from dataclasses import dataclass
@dataclass
class Part:
    size: int = 2
@dataclass
class Config:
    part: Part = Part()
""",
    "uio2/audio_utils.py": "def get_audio_length(path):\n    raise OSError('no ffprobe')",
    "uio2/model.py": """
import torch
from uio2.config import Config
class UnifiedIOModel(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        note("model", config=config)
        self.one, self.two = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
""",
    "uio2/preprocessing.py": """
class Tokenizer:
    load_model = staticmethod(lambda: note("tokenizer"))
class UnifiedIOPreprocessor:
    tokenizer = Tokenizer
    @classmethod
    def from_pretrained(cls, folder, tokenizer):
        note("preprocessor", folder=folder, tokenizer=tokenizer)
        return cls
""",
    "uio2/prompt.py": """
class Prompt:
    def __init__(self, single_prompt=False):
        self.single_prompt = single_prompt
""",
    "uio2/runner.py": """
import numpy, torch
from uio2 import audio_utils
class HifiganGenerator(torch.nn.Linear):
    def __init__(self, sizes):
        super().__init__(sizes.wide, 1)
    def remove_weight_norm(self):
        note("vocoder", training=self.training)
class Converter:
    hifigan = None
class TaskRunner:
    def __init__(self, model, preprocessor, prompts):
        self.single, self.spectogram_converter = prompts.single_prompt, Converter()
        note("tasks", training=model.training)
        self.cut = 0
    def told(self, name, **options):
        drawn = [int(numpy.random.randint(1000)), int(torch.randint(1000, ()))]
        note(name, drawn=drawn, single=self.single, **options)
        assert self.spectogram_converter.hifigan is not None
    def image_captioning(self, image):
        self.told("image_captioning", image=image)
        return "a\\ncaption"
    def audio_captioning(self, audio):
        self.told("audio_captioning", audio=audio, seconds=audio_utils.get_audio_length(audio))
        return "a sound"
    def image_generation(self, text, guidance_scale, top_p):
        self.told("image_generation", text=text, guidance_scale=guidance_scale, top_p=top_p)
        self.cut += 1
        if self.cut < 3:
            raise ValueError("Did not generate a full image")
        from PIL import Image
        return Image.new("RGB", (256, 256), (255, 0, 0))
    def audio_generation(self, text, guidance_scale, top_p):
        self.told("audio_generation", text=text, guidance_scale=guidance_scale, top_p=top_p)
        if guidance_scale == 99:
            raise ValueError("Did not generate a full spectogram")
        return numpy.full(65536, 0.5, dtype=numpy.float32)
""",
}
NOTE = """
import builtins, json
def note(name, **options):
    with open("calls", "a") as file:
        file.write(json.dumps({"call": name, **options}) + "\\n")
builtins.note = note
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A repository of the public entry points that the runner knows, which note down how they are called."""
    pytest.importorskip("PIL", reason="pictures of the stand-in need pillow")
    place = tmp_path / "repository"
    for name, code in STAND_IN.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(NOTE + code if name == "tensorflow.py" else code)
    vocoder = place / "uio2" / "hifigan" / "checkpoints"
    vocoder.mkdir(parents=True)
    (vocoder / "config.json").write_text('{"wide": 3}')
    torch.save({"generator": torch.nn.Linear(3, 1).state_dict()}, vocoder / "g_00930000")
    checkpoint = tmp_path / "checkpoint"
    for name in ("model", "preprocessor"):
        (checkpoint / name).mkdir(parents=True)
    (checkpoint / "model" / "config.json").write_text('{"size": 1}')
    (checkpoint / "preprocessor" / "preprocessor_config.json").write_text("{}")
    (checkpoint / "tokenizer.model").touch()
    state = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2) for name in ("one", "two")}).state_dict()
    torch.save(state, checkpoint / "model" / "pytorch_model.bin")
    return place


def on(stand_in: Path) -> Runner:
    return Runner([sys.executable, str(WORKER)], stand_in, stand_in / "log")


def calls(stand_in: Path, *names: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (stand_in / "calls").read_text().splitlines()]
    return [{key: value for key, value in call.items() if key != "call"} for call in found if call["call"] in names]


def test_what_the_runner_asks_of_the_package(tmp_path: Path, stand_in: Path) -> None:
    checkpoint, runner = tmp_path / "checkpoint", on(stand_in)
    to_image, of_image, to_audio, of_audio = DIRECTIONS
    assert ask(tmp_path / "a", runner, of_image, checkpoint, seeds=(5, 6, 5)) == ["a caption"] * 3
    assert calls(stand_in, "hidden") == [{"devices": [], "kind": "GPU"}]
    started = [{"config": {"size": 1}}, {"training": False}, {"training": False}]
    assert calls(stand_in, "model", "tasks", "vocoder") == started
    assert calls(stand_in, "preprocessor", "tokenizer") == [
        {"folder": str(checkpoint / "preprocessor"), "tokenizer": str(checkpoint / "tokenizer.model")},
        {},
    ]
    first, second, third = calls(stand_in, "image_captioning")
    third["image"] = first["image"]  # a file of the same
    assert first == third and first["drawn"] != second["drawn"]  # prompts and tokens are the seed's
    assert first["image"] == str(tmp_path / "a" / "inputs" / "0.png") and not first["single"]
    # The length of a sound is read where ffprobe is not.
    assert ask(tmp_path / "b", runner, of_audio, checkpoint) == ["a sound"]
    assert calls(stand_in, "audio_captioning")[0]["seconds"] == 10
    ((sound, rate),) = ask(tmp_path / "c", runner, to_audio, checkpoint)
    assert rate == RATE and len(sound) == 65536 and calls(stand_in, "audio_generation")[0]["guidance_scale"] == 0
    # A picture that ends too early is drawn again, with the next seeds.
    (picture,) = ask(tmp_path / "d", runner, to_image, checkpoint, seeds=(4,))
    assert picture.shape == (3, 256, 256) and picture[0].eq(1).all() and picture[1:].eq(0).all()
    drawn = calls(stand_in, "image_generation")
    assert [call["text"] for call in drawn] == ["a dog barks"] * 3 and drawn[0]["guidance_scale"] == 10
    assert drawn[0]["drawn"] != drawn[1]["drawn"] == first["drawn"] and drawn[0]["top_p"] == 0.9
    assert len(calls(stand_in, "model")) == 1
    # Other settings load it anew; one that always ends too early is an item that fails.
    with pytest.raises(RuntimeError, match="ValueError: Did not generate a full spectogram"):
        ask(tmp_path / "e", runner, to_audio, checkpoint, guidance_audio=99, prompts="first")
    assert [call["single"] for call in calls(stand_in, "audio_generation")] == [False, *[True] * 4]
    runner.stop()


def test_what_is_not_as_it_should_be_is_refused(tmp_path: Path, stand_in: Path) -> None:
    checkpoint = tmp_path / "checkpoint"

    def refused(why: str, **settings: Any) -> None:
        with pytest.raises(RuntimeError, match=f"unusable: {why}"):
            ask(tmp_path / "request", on(stand_in), DIRECTIONS[0], checkpoint, **settings)

    weights = checkpoint / "model" / "pytorch_model.bin"
    whole = torch.load(weights, weights_only=True)
    torch.save({key: value for key, value in whole.items() if key != "two.bias"}, weights)
    refused("a partial load: 1 keys missing, 0 unexpected, such as two.bias")
    torch.save({**whole, "three": torch.zeros(1)}, weights)
    refused("a partial load: 0 keys missing, 1 unexpected, such as three")
    torch.save({**whole, "two.bias": torch.zeros(5)}, weights)
    refused(".*/checkpoint cannot be loaded .*size mismatch for two.bias")
    torch.save(whole, weights)
    torch.save({"generator": {}}, stand_in / "uio2" / "hifigan" / "checkpoints" / "g_00930000")
    refused(".*/checkpoint cannot be loaded .*Missing key")
    (stand_in / "transformers.py").write_text("__version__ = '4.38.2'")
    refused(r".*code does not import \(transformers 4.38.2, and it runs with 4.36 and 4.37\)")
    refused("prompts is 'all': it is one of random, first", prompts="all")
    weights.unlink()
    refused(".*/checkpoint/model has neither model.safetensors nor pytorch_model.bin: docs/external/unifiedio2.md")
    (checkpoint / "tokenizer.model").unlink()
    refused(".*/checkpoint has no tokenizer.model")
    (stand_in / "uio2" / "hifigan" / "checkpoints" / "g_00930000").unlink()
    refused(r".*/repository is not Unified-IO 2's repository \(it has no uio2/hifigan/checkpoints/g_00930000\)")


# --------------------------------------------------------------------------------------------- with it


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, into which a vocoder of random weights is written where the published one lies."""
    folder = tmp_path_factory.mktemp("unifiedio2") / "repository"
    shutil.copytree(place("unifiedio2") / "repository" / "uio2", folder / "uio2")
    write_tiny("unifiedio2", folder.parent / "checkpoint", folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(repository: Path) -> Path:
    return repository.parent / "checkpoint"


@pytest.fixture(scope="module")
def runner(repository: Path) -> Iterator[Runner]:
    made = Runner([python("unifiedio2"), str(WORKER)], repository, repository.parent / "log")
    yield made
    made.stop()


@needs_unifiedio2
@pytest.mark.slow
@pytest.mark.parametrize("cell", DIRECTIONS, ids=str)
def test_every_direction_from_raw_inputs_to_outputs_by_its_seed_alone(
    cell: Cell, tmp_path: Path, runner: Runner, checkpoint: Path
) -> None:
    made, other, again = ask(tmp_path, runner, cell, checkpoint, seeds=(7, 8, 7))
    if cell.want == ("image",):
        assert made.shape == (3, 256, 256) and 0 <= made.min() < made.max() <= 1
    elif cell.want == ("audio",):
        samples, rate = made
        assert rate == RATE and samples.shape == (65536,) and samples.abs().max() > 0
    else:
        assert made and "<s>" not in made
    assert same(made, again)
    assert not same(made, other) or cell.want == ("text",)  # the likeliest words of random weights may agree


@needs_unifiedio2
@pytest.mark.slow
def test_the_method_answers_in_the_form_of_its_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path, checkpoint: Path
) -> None:
    set_up("unifiedio2", tmp_path, monkeypatch, python("unifiedio2"), repository, checkpoint)
    method = bound("unifiedio2", DATA)
    try:
        texts = things(method, ("audio",), ("text",))["text"]
        sounds = things(method, ("text",), ("audio",))["audio"]
    finally:
        method.runner.stop()
    assert len(texts) == 2 and all(texts)
    assert (
        sounds.shape == (2, 10 * RATE) and sounds[:, :65536].abs().amax(1).min() > 0 and sounds[:, 65536:].eq(0).all()
    )
    facts = method.protocol()
    assert facts["settings"] == adapter.known("unifiedio2")["settings"]
    files = ["model/config.json", "model/model.safetensors", "preprocessor/preprocessor_config.json", "tokenizer.model"]
    assert [each["file"] for each in facts["checkpoint"]] == files


@needs_unifiedio2
@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path, runner: Runner, checkpoint: Path) -> None:
    damaged = linked(checkpoint, tmp_path / "checkpoint")
    lost = "decoder.layers_1.self_attention.query.weight"
    change(damaged / "model" / "model.safetensors", lambda state: state.pop(lost))
    with pytest.raises(RuntimeError, match=f"unusable: a partial load: 1 keys missing, 0 unexpected, such as {lost}"):
        ask(tmp_path / "a", runner, DIRECTIONS[0], damaged)
    replace(damaged / "tokenizer.model", b"not a model")
    with pytest.raises(RuntimeError, match=r"unusable: .*/checkpoint cannot be loaded"):
        ask(tmp_path / "b", runner, DIRECTIONS[0], damaged)
