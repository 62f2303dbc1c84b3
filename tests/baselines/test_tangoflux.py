"""TangoFlux: its own code on a tiny checkpoint with random weights, from captions to sounds, and faults of both.

tests/baselines/published_models.py says what the drive needs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.published import adapter
from baselines.published.adapter import Runner
from benchmark.api import TASKS, Cell, Inapplicable, cells
from tests.baselines.published_models import (
    MODALITIES,
    RATES,
    WRITERS,
    Things,
    bound,
    change,
    driven,
    linked,
    live_runner,
    place,
    python,
    set_up,
    things,
    tiny_checkpoint,
)
from tests.baselines.published_models import ask as ask_runner

WORKER = adapter.WORKERS / "tangoflux_worker.py"
TINY = WRITERS / "tangoflux_tiny.py"
T_A = Cell("things", ("text",), ("audio",))
RATE = RATES["tangoflux"]
SMALL = {"steps": 2, "seconds": 1}
needs_tangoflux = driven("tangoflux")


# ------------------------------------------------------------------------------------ without the repository


def test_its_settings_are_those_that_its_authors_recommend() -> None:
    assert adapter.known("tangoflux")["settings"] == {"steps": 50, "guidance": 4.5, "seconds": 10}


@pytest.mark.parametrize("task", TASKS)
def test_it_goes_from_captions_to_sounds_alone(task: str) -> None:
    for cell in cells("things", MODALITIES, task):
        why = adapter.refusal(adapter.known("tangoflux"), cell)
        assert why == ("" if (cell.given, cell.want) == (T_A.given, T_A.want) else "TangoFlux goes text -> audio alone")


def test_refused_directions_are_not_applicable_and_nothing_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up("tangoflux", tmp_path, monkeypatch, "/bin/false", tmp_path, tmp_path)
    method = bound("tangoflux")
    for given, want in ((("image",), ("audio",)), (("audio",), ("text",)), (("text",), ("image", "audio"))):
        with pytest.raises(Inapplicable, match="TangoFlux goes text -> audio alone"):
            things(method, given, want)
    assert method.runner.status == 0


# --------------------------------------------------------------------------------------------- with it


checkpoint = tiny_checkpoint("tangoflux")
runner = live_runner("tangoflux", TINY, WORKER)


def ask(
    folder: Path, runner: Runner, checkpoint: Path, asked: tuple[tuple[int, str], ...] = ((7, "rain"),), **settings: Any
) -> list[Any]:
    """Sounds of seeds and captions."""
    return ask_runner("tangoflux", folder, runner, T_A, checkpoint, asked, **{**SMALL, **settings})


@needs_tangoflux
@pytest.mark.slow
def test_sounds_of_captions_by_their_seed_alone(tmp_path: Path, runner: Runner, checkpoint: Path) -> None:
    """The public class makes every sound of the same noise: a runner that forgets it gives two seeds one sound."""
    asked = ((7, "a dog barks"), (8, "a dog barks"), (7, "rain on a roof"), (7, "a dog barks"))
    (made, rate), (other, _), (rain, _), (again, _) = ask(tmp_path, runner, checkpoint, asked)
    assert rate == RATE and made.shape == (RATE,) and 0 < made.abs().max() < 1
    assert torch.equal(made, again) and not torch.equal(made, other) and not torch.equal(made, rain)
    ((guided, _),) = ask(tmp_path / "guided", runner, checkpoint, asked[:1], guidance=9.0)
    assert not torch.equal(guided, made)


@needs_tangoflux
@pytest.mark.slow
def test_the_method_answers_in_the_form_of_its_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    shrinking = tmp_path / "python"
    shrinking.write_text(f'#!/bin/sh\nexec "{python("tangoflux")}" "{TINY}" "$@"\n')
    shrinking.chmod(0o755)
    repository = place("tangoflux") / "repository"
    set_up("tangoflux", tmp_path, monkeypatch, shrinking, repository, checkpoint, **SMALL)
    method = bound("tangoflux", Things(seconds=2))
    try:
        made = things(method, T_A.given, T_A.want)["audio"]
    finally:
        method.runner.stop()
    # A second of 44,100 Hz in two, at the dataset's own rate.
    rate = method.data.sample_rate
    assert made.shape == (2, 2 * rate)
    assert made[:, :rate].abs().amax(1).min() > 0 and made[:, rate + 200 :].eq(0).all()
    facts = method.protocol()
    assert facts["settings"] == {**SMALL, "guidance": 4.5} and len(facts["revision"]) == 40
    files = {each["file"] for each in facts["checkpoint"]}
    assert {"tangoflux.safetensors", "vae.safetensors", "flan-t5-large/model.safetensors"} <= files


FAULTS = {  # file, key that is taken away, those that are put there, what is said
    "a missing key": (
        "tangoflux.safetensors",
        "transformer.transformer_blocks.0.attn.to_q.weight",
        {"stranger": torch.zeros(1)},
        "a partial load: 1 keys missing, 1 unexpected, such as tangoflux: transformer.transformer_blocks.0.attn.to_q",
    ),
    "no words": (
        "tangoflux.safetensors",
        "text_encoder.shared.weight",
        {},
        "a partial load: 2 keys missing, 0 unexpected, such as tangoflux: text_encoder.",
    ),
    "half an autoencoder": (
        "vae.safetensors",
        "decoder.conv2.weight_v",
        {},
        "a partial load: 1 keys missing, 0 unexpected, such as vae: decoder.conv2.weight_v",
    ),
    "another size": (
        "tangoflux.safetensors",
        "fc.0.weight",
        {"fc.0.weight": torch.zeros(3, 3)},
        r".* cannot be loaded \(.*size mismatch for fc.0.weight",
    ),
}


@needs_tangoflux
@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_checkpoint_that_does_not_fit_is_refused(
    fault: str, tmp_path: Path, runner: Runner, checkpoint: Path
) -> None:
    name, lost, added, why = FAULTS[fault]
    damaged = linked(checkpoint, tmp_path / "checkpoint")
    change(damaged / name, lambda state: (state.pop(lost), state.update(added)))
    with pytest.raises(RuntimeError, match=f"unusable: {why}"):
        ask(tmp_path / "a", runner, damaged)


def test_what_is_not_as_it_should_be_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    """Any Python can say so."""
    repository, half = tmp_path / "repository", tmp_path / "half"
    (half / "flan-t5-large").mkdir(parents=True)
    repository.mkdir()

    def refused(why: str, **settings: Any) -> None:
        runner = Runner([sys.executable, str(WORKER)], repository, tmp_path / "log")
        with pytest.raises(RuntimeError, match=f"unusable: {why}"):
            ask(tmp_path / "request", runner, half, **settings)

    refused(
        r".*/repository is not TangoFlux's repository \(it has no tangoflux/model.py\): .*docs/external/tangoflux.md"
    )
    (repository / "tangoflux").mkdir()
    (repository / "tangoflux" / "model.py").touch()
    for name in ("config.json", "tangoflux.safetensors", "vae.safetensors"):
        refused(f".*/half has no {name}: docs/external/tangoflux.md")
        (half / name).write_text("{}")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        refused(f".*/half has no flan-t5-large/{name}")
        (half / "flan-t5-large" / name).touch()
    refused("guidance is 1.0: .* only above 1", guidance=1.0)
    refused("seconds is 40: TangoFlux makes sounds of 1 to 30 s", seconds=40)
