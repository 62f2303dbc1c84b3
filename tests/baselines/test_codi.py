"""CoDi: its own code, shrunk, on a checkpoint with random weights, from raw inputs to outputs, and faults of both.

tests/baselines/published_models.py says what the drive needs, of which the repository is the folder i-Code-V3 of a
work tree.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from baselines.published import adapter
from baselines.published.adapter import Runner
from benchmark.api import TASKS, Cell, Inapplicable, Unanswered, cells
from benchmark.media.media_files import write_wav
from tests.baselines.published_models import (
    MODALITIES,
    RATE,
    ask,
    bound,
    change,
    check_rows,
    driven,
    linked,
    python,
    set_up,
    share_spoken_digits,
    thing,
    things,
    write_tiny,
)

WORKER = adapter.WORKERS / "codi_worker.py"
DIRECTIONS = [cell for task in TASKS if task != "uncond" for cell in cells("things", MODALITIES, task)]
ENTRY = adapter.known("codi")
SMALL = {"steps": 2, "side": 64}  # its only step, were there one, would change next to nothing
needs_codi = driven("codi")


# ------------------------------------------------------------------------------------ without the repository


def test_it_answers_from_any_input_and_refuses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(DIRECTIONS) == 12 and not any(adapter.refusal(ENTRY, cell) for cell in DIRECTIONS)
    set_up("codi", tmp_path, monkeypatch, "/bin/false", tmp_path, tmp_path)
    method = bound("codi")
    with pytest.raises(Inapplicable, match="needs an input"):
        things(method, (), MODALITIES)
    assert method.runner.status == 0  # nothing was asked


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The runner, of whose functions some need no more than torch."""
    monkeypatch.syspath_prepend(str(WORKER.parent))
    spec = importlib.util.spec_from_file_location("codi_runner", WORKER)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(2, 3), nn.BatchNorm1d(3)
        self.register_buffer("betas", torch.ones(4))


def parts(folder: Path, module: Any, first: dict[str, Any]) -> None:
    for name in module.PARTS:
        torch.save(first if name == module.PARTS[0] else {}, folder / name)


def test_keys_that_do_not_fit_are_found_and_constants_are_no_such(tmp_path: Path, module: Any) -> None:
    whole = Small().state_dict()
    learned = {key: value for key, value in whole.items() if key != "betas"}
    parts(tmp_path, module, learned | {module.LATER[1] + "melW": torch.ones(1)})
    net = Small()
    assert module.filled(net, tmp_path, ()) == ([], [])
    assert torch.equal(net.layer.weight, whole["layer.weight"])
    parts(tmp_path, module, {"layer.weight": whole["layer.weight"], "text_branch.a": torch.ones(1)})
    missing = sorted(key for key in learned if key != "layer.weight")
    assert module.filled(net, tmp_path, ()) == (missing, ["text_branch.a"])  # statistics of the norm are among these
    assert module.filled(net, tmp_path, ("text_branch.",)) == (missing, [])
    parts(tmp_path, module, {"layer.weight": torch.ones(5)})
    with pytest.raises(module.serve.Unusable, match=r"CoDi_encoders.pth does not fit .* layer.weight"):
        module.filled(net, tmp_path, ())


class Harmful:
    def __reduce__(self) -> Any:
        return os.system, ("touch harm",)


def test_files_that_are_not_whole_or_hold_more_than_tensors_are_refused(
    tmp_path: Path, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.pth"
    monkeypatch.chdir(tmp_path)
    for content, why in [(Harmful(), "a whole file of tensors"), ({"epoch": 3}, "a table of tensors")]:
        torch.save(content, path)
        with pytest.raises(module.serve.Unusable, match=why):
            module.tensors(path)
    assert not (tmp_path / "harm").exists()
    torch.save({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(module.serve.Unusable, match="a whole file of tensors"):
        module.tensors(path)


@pytest.mark.parametrize("divides", [True, False])
def test_pictures_that_transformers_would_make_black_are_not(module: Any, divides: bool) -> None:
    """As transformers 4.26 does, and as 4.30 does."""

    class Prepare:
        do_rescale, image_mean, image_std = True, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]

        def __call__(self, images: list[Any]) -> dict[str, Any]:
            scale = 255 if divides and self.do_rescale else 1
            return {
                "pixel_values": [
                    (images[0] / scale - self.image_mean).transpose(2, 0, 1) / np.c_[self.image_std][:, None]
                ]
            }

    clip = SimpleNamespace(processor=SimpleNamespace(feature_extractor=Prepare()))
    assert module.levels_are_kept(clip) is not divides
    module.keep_levels(clip)
    assert module.levels_are_kept(clip) and clip.processor.feature_extractor.do_rescale is not divides


def test_a_sound_is_heard_from_its_beginning(tmp_path: Path, module: Any) -> None:
    write_wav(tmp_path / "a.wav", thing("audio", 0), RATE)
    assert module.heard(str(tmp_path / "a.wav"), 10).shape == (1, 3 * RATE)
    half = thing("audio", 0)[: RATE // 2]
    torch.testing.assert_close(module.heard(str(tmp_path / "a.wav"), 0.5)[0], half, atol=1e-4, rtol=0)


# Of what the runner finds before it loads anything.
@pytest.mark.parametrize(
    ("lacks", "settings", "why"),
    [
        (
            "core",
            {},
            r"is not CoDi's code \(it has no core.*model_module_infer.py\): set repository to the folder i-Code-V3",
        ),
        ("CoDi_text_diffuser.pth", {}, "has no CoDi_text_diffuser.pth; docs/external/codi.md"),
        ("clip-vit-large-patch14/vocab.json", {}, r"has no clip-vit-large-patch14.vocab.json"),
        ("", {"guidance": 1}, "at guidance = 1 the repository's code fails"),
    ],
)
def test_what_cannot_be_it_is_refused(
    tmp_path: Path, module: Any, monkeypatch: pytest.MonkeyPatch, lacks: str, settings: dict[str, Any], why: str
) -> None:
    files = [module.SOURCE, "configs/model/codi.yaml", *module.PARTS]
    for name in [*files, *(f"{module.CLIP}/{name}" for name in module.CLIP_FILES)]:
        if not lacks or not name.startswith(lacks):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(module.serve.Unusable, match=why):
        module.check({**ENTRY["settings"], **settings}, str(tmp_path))


# --------------------------------------------------------------------------------------------- with it


def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with repository/ and checkpoint/."""
    folder = tmp_path_factory.mktemp("codi")
    write_tiny("codi", folder)
    return folder


@pytest.fixture(scope="module")
def runner(tiny: Path) -> Iterator[Runner]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        one_thread(monkeypatch)
        made = Runner([python("codi"), str(WORKER)], tiny / "repository", tiny / "log")
        yield made
        made.stop()


@needs_codi
@pytest.mark.slow
@pytest.mark.parametrize("cell", DIRECTIONS, ids=lambda cell: cell.stem)
def test_every_direction_from_raw_inputs_to_outputs(
    cell: Cell, tiny: Path, runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up("codi", tmp_path, monkeypatch, python("codi"), tiny / "repository", tiny / "checkpoint", **SMALL)
    method = bound("codi")
    method.runner = runner  # one process for all directions
    made = things(method, cell.given, cell.want, rows=1)
    assert made.keys() == set(cell.want)
    if "text" in made:
        (line,) = made["text"]
        assert line and line == " ".join(line.split())
    if "image" in made:
        assert made["image"].shape == (1, 3, 40, 40) and made["image"].min() >= 0 and made["image"].max() <= 1
        assert made["image"].std() > 0.01
    if "audio" in made:
        assert made["audio"].shape == (1, 3 * RATE) and made["audio"].abs().max() <= 1
        assert made["audio"].std() > 1e-4
    facts = method.facts
    assert facts["missing"] == facts["unexpected"] == [] and facts["packages"]["transformers"]
    assert {"CoDi_encoders.pth", "clip-vit-large-patch14/vocab.json"} <= {each["file"] for each in facts["checkpoint"]}
    assert method.protocol()["settings"] == {**ENTRY["settings"], **SMALL}


@needs_codi
@pytest.mark.slow
def test_random_weights_come_to_rows_of_a_table(
    tiny: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_thread(monkeypatch)
    keys = {**SMALL, "stand_in": True}
    set_up("codi", tmp_path, monkeypatch, python("codi"), tiny / "repository", tiny / "checkpoint", **keys)
    share_spoken_digits(tmp_path_factory, monkeypatch)
    check_rows("codi", tmp_path)


T_I, T_A = Cell("things", ("text",), ("image",)), Cell("things", ("text",), ("audio",))
ONE = [(7, "a dog barks")]


@needs_codi
@pytest.mark.slow
@pytest.mark.parametrize(
    "cell", [T_I, Cell("things", ("image",), ("audio",)), Cell("things", ("audio",), ("image",))], ids=str
)
def test_an_answer_hangs_on_its_input_and_its_seed_alone(
    cell: Cell, tmp_path: Path, tiny: Path, runner: Runner
) -> None:
    one, other = (thing(cell.given[0], row) for row in (0, 1))
    asked = [(7, one), (7, other), (8, one), (7, one)]
    answers = ask("codi", tmp_path / "a", runner, cell, tiny / "checkpoint", asked, **SMALL)
    first, second, third, again = (answer[0] for answer in answers)  # of a picture, its first channel
    assert torch.equal(first, again)
    assert not torch.equal(first, second) and not torch.equal(first, third)


@needs_codi
@pytest.mark.slow
def test_a_sound_is_as_long_as_its_latent_and_at_its_rate(tmp_path: Path, tiny: Path, runner: Runner) -> None:
    ((samples, rate),) = ask("codi", tmp_path / "a", runner, T_A, tiny / "checkpoint", ONE, **SMALL)
    assert rate == RATE and abs(len(samples) - 10.24 * RATE) < 200


@needs_codi
@pytest.mark.slow
def test_a_part_of_a_checkpoint_is_refused(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_thread(monkeypatch)
    damaged, name = linked(tiny / "checkpoint", tmp_path / "checkpoint"), "CoDi_audio_diffuser_m.pth"
    lost = sorted(torch.load(damaged / name, weights_only=True))[3]
    change(damaged / name, lambda weights: weights.update({"text_branch.a": weights.pop(lost)}))
    runner = Runner([python("codi"), str(WORKER)], tiny / "repository", tmp_path / "log")
    said = f"unusable: a partial load: 1 keys missing, 1 unexpected, such as {lost}"
    with pytest.raises(Unanswered, match=said):
        ask("codi", tmp_path / "a", runner, T_I, damaged, ONE, **SMALL)
    facts = json.loads((tmp_path / "a" / "environment.json").read_text())
    assert facts["missing"] == [lost] and facts["unexpected"] == ["text_branch.a"]


@needs_codi
@pytest.mark.slow
def test_another_repository_is_refused(tmp_path: Path, tiny: Path) -> None:
    runner = Runner([python("codi"), str(WORKER)], tmp_path, tmp_path / "log")
    with pytest.raises(Unanswered, match=r"unusable: .* is not CoDi's code"):
        ask("codi", tmp_path / "a", runner, T_I, tiny / "checkpoint", ONE, **SMALL)
