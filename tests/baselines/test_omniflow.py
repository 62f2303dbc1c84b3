"""OmniFlow: its own code on a tiny checkpoint with random weights, from raw inputs to outputs, and faults of both.

tests/baselines/published_models.py says what the drive needs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.published import adapter
from baselines.published.adapter import Runner
from benchmark.api import TASKS, Cell, Inapplicable, Unanswered, cells
from tests.baselines.published_models import (
    MODALITIES,
    bound,
    change,
    check_rows,
    driven,
    linked,
    live_runner,
    place,
    python,
    same,
    set_up,
    share_spoken_digits,
    thing,
    things,
    tiny_checkpoint,
)
from tests.baselines.published_models import ask as ask_runner

WORKER = adapter.WORKERS / "omniflow_worker.py"
ONE_TO_ONE = list(cells("things", MODALITIES, "one_to_one"))
STEPS, RATE = 2, 16000
needs_omniflow = driven("omniflow")


# ------------------------------------------------------------------------------------ without the repository


@pytest.mark.parametrize("task", TASKS)
def test_it_goes_from_one_modality_to_another_alone(task: str) -> None:
    for cell in cells("things", MODALITIES, task):
        why = adapter.refusal(adapter.known("omniflow"), cell)
        assert (why == "") == (task == "one_to_one")
        assert task == "one_to_one" or "a sampler that nobody has published" in why


def test_refused_directions_are_not_applicable_and_nothing_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up("omniflow", tmp_path, monkeypatch, "/bin/false", tmp_path, tmp_path)
    method = bound("omniflow")
    with pytest.raises(Inapplicable, match="takes one modality at a time"):
        things(method, ("text", "image"), ("audio",))
    with pytest.raises(Inapplicable, match="makes one modality at a time"):
        things(method, ("text",), ("image", "audio"))
    with pytest.raises(Inapplicable, match="needs an input"):
        things(method, (), MODALITIES)
    assert method.runner.status == 0


# --------------------------------------------------------------------------------------------- with it


checkpoint = tiny_checkpoint("omniflow")
runner = live_runner("omniflow", WORKER)


def ask(
    folder: Path,
    runner: Runner,
    cell: Cell,
    checkpoint: Path,
    rows: Sequence[int] = (0,),
    seeds: Sequence[int] = (7,),
    **settings: Any,
) -> list[Any]:
    """Answers to rows of Things, each with its seed."""
    asked = [(seed, thing(cell.given[0], row)) for row, seed in zip(rows, seeds, strict=True)]
    return ask_runner("omniflow", folder, runner, cell, checkpoint, asked, **{"steps": STEPS, **settings})


@needs_omniflow
@pytest.mark.slow
@pytest.mark.parametrize("cell", ONE_TO_ONE, ids=str)
def test_every_direction_from_raw_inputs_to_outputs_by_its_seed_alone(
    cell: Cell, tmp_path: Path, runner: Runner, checkpoint: Path
) -> None:
    made, reseeded, again, of_another = ask(tmp_path, runner, cell, checkpoint, (0, 0, 0, 1), (7, 8, 7, 7))
    if cell.want == ("image",):
        assert made.shape == (3, 512, 512) and 0 <= made.min() < made.max() <= 1
    elif cell.want == ("audio",):
        samples, rate = made
        assert rate == RATE and samples.shape == (163840,) and samples.abs().max() > 0
    else:
        assert made and set(made) <= set("abcdefghijklmnopqrstuvwxyz▁ ")
    assert same(made, again) and not same(made, reseeded) and not same(made, of_another)


@needs_omniflow
@pytest.mark.slow
def test_the_method_answers_in_the_form_of_its_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    repository = place("omniflow") / "repository"
    set_up("omniflow", tmp_path, monkeypatch, python("omniflow"), repository, checkpoint, steps=STEPS)
    method = bound("omniflow")
    try:
        made = things(method, ("image",), ("audio",))
        assert made["audio"].shape == (2, 3 * RATE)
        assert len(things(method, ("audio",), ("text",))["text"]) == 2
    finally:
        method.runner.stop()
    facts = method.protocol()
    assert facts["settings"]["steps"] == STEPS and len(facts["revision"]) == 40
    files = {each["file"] for each in facts["checkpoint"]}
    assert {"transformer/diffusion_pytorch_model.bin", "hub/audioldm2/vocoder/config.json"} <= files


@needs_omniflow
@pytest.mark.slow
def test_random_weights_come_to_rows_of_a_table(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    repository = place("omniflow") / "repository"
    keys = {"steps": STEPS, "stand_in": True}
    set_up("omniflow", tmp_path, monkeypatch, python("omniflow"), repository, checkpoint, **keys)
    share_spoken_digits(tmp_path_factory, monkeypatch)
    check_rows("omniflow", tmp_path)


@needs_omniflow
@pytest.mark.slow
def test_averaged_weights_are_used_where_they_are_asked_for(tmp_path: Path, runner: Runner, checkpoint: Path) -> None:
    """Here they are halves: another picture comes of the same seed."""
    halved = linked(checkpoint, tmp_path / "checkpoint")
    averages = halved / "transformer" / "ema_transformer.pt"
    change(averages, lambda state: state.update(shadow_params=[each / 2 for each in state["shadow_params"]]))
    cell = Cell("things", ("text",), ("image",))
    plain, averaged = (
        ask(tmp_path / str(flag), runner, cell, halved, averaged_weights=flag)[0] for flag in (False, True)
    )
    assert not torch.equal(plain, averaged)
    short = linked(halved, tmp_path / "short")  # of the same folder, the model that is loaded would answer
    change(short / "transformer" / "ema_transformer.pt", lambda state: state["shadow_params"].pop())
    with pytest.raises(Unanswered, match=r"unusable: .*ema_transformer.pt: its \d+ tensors are not of"):
        ask(tmp_path / "short answers", runner, cell, short, averaged_weights=True)


REMOVED = {
    "transformer": ("transformer/diffusion_pytorch_model.bin", "transformer_blocks.1.attn.to_aud_out.weight"),
    "hub/audioldm2/vocoder": ("hub/audioldm2/vocoder/model.safetensors", "conv_post.weight"),
    "hub/LanguageBind_Audio_FT": ("hub/LanguageBind_Audio_FT/model.safetensors", "visual_projection.weight"),
    "hub/flan-t5-large": ("hub/flan-t5-large/model.safetensors", "encoder.final_layer_norm.weight"),
}
ADDED = {
    "transformer": "transformer/diffusion_pytorch_model.bin",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder_2": "text_encoder_2/model.safetensors",
}


@needs_omniflow
@pytest.mark.slow
def test_a_partial_load_is_refused_with_every_key_of_it(tmp_path: Path, runner: Runner, checkpoint: Path) -> None:
    """One key is removed from four models, and one of no model is added to three."""
    damaged = linked(checkpoint, tmp_path / "checkpoint")
    for file, key in REMOVED.values():
        change(damaged / file, lambda state, key=key: state.pop(key))
    for file in ADDED.values():
        change(damaged / file, lambda state: state.update(stranger=torch.zeros(1)))
    with pytest.raises(Unanswered, match="unusable: a partial load: 4 keys missing, 3 unexpected, such as "):
        ask(tmp_path / "a", runner, ONE_TO_ONE[0], damaged)
    facts = json.loads((tmp_path / "a" / adapter.ENVIRONMENT).read_text())
    assert set(facts["missing"]) == {f"{part}: {key}" for part, (_, key) in REMOVED.items()}
    assert set(facts["unexpected"]) == {f"{part}: stranger" for part in ADDED}


@needs_omniflow
@pytest.mark.slow
def test_a_checkpoint_or_a_repository_that_is_none_is_refused(tmp_path: Path, runner: Runner, checkpoint: Path) -> None:
    cell = ONE_TO_ONE[0]
    half = linked(checkpoint, tmp_path / "checkpoint")
    shutil.rmtree(half / "hub" / "flan-t5-large")
    with pytest.raises(Unanswered, match=r"unusable: .* has no hub/flan-t5-large: docs/external/omniflow.md"):
        ask(tmp_path / "a", runner, cell, half)
    with pytest.raises(Unanswered, match=r"unusable: guidance_audio is 1: .* only above 1"):
        ask(tmp_path / "b", runner, cell, checkpoint, guidance_audio=1)
    elsewhere = Runner(runner.command, tmp_path, tmp_path / "log")
    with pytest.raises(Unanswered, match=r"unusable: .* is not OmniFlow's repository"):
        ask(tmp_path / "c", elsewhere, cell, checkpoint)
